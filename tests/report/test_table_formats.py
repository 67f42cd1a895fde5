"""Every format shows every name as it is."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.report import table_formats
from usb_rsmatch.report.collection import collect
from usb_rsmatch.report.comparison import Table, make_table
from usb_rsmatch.report.text_table import overview

MakeGrid = Callable[..., Path]
NAMES = ["=1+1", "a|b <b>&amp; $x_1$ 100% \\cmd [a](b) `c`", "@x", "plain"]


@pytest.fixture
def table(finished_grid: MakeGrid) -> Table:
    arms = {name: {"lr": index} for index, name in enumerate(NAMES)}
    axes = {"num_labels": [20, 40], "seed": [0, 1]}
    folder = finished_grid(lambda run: 0.8 + run.config["lr"] / 100, arms=arms, axes=axes, baseline="plain")
    return make_table(collect(folder))


def test_csv_holds_plain_numbers_and_no_formula(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(table_formats.figures_csv(table))))
    assert [row["arm"] for row in rows[:4]] == ["'=1+1", NAMES[1], "'@x", "plain"]
    assert [row["num_labels"] for row in rows] == ["20"] * 4 + ["40"] * 4
    first = rows[0]
    assert float(first["accuracy_mean"]) == 80 and float(first["difference_mean"]) == -3
    assert first["auroc_mean"] == "" and first["seeds"] == "2" and first["average_rank"] == "4.0"
    assert [row["is_best"] for row in rows[:4]] == ["0", "0", "0", "1"]


def test_usbs_layout_holds_error_rates(table: Table) -> None:
    rows = list(csv.reader(io.StringIO(table_formats.usb_csv(table))))
    assert rows[0] == ["", "digits_20", "digits_40"]
    assert rows[4] == ["plain", "17.00±0.00", "17.00±0.00"]


@given(st.text())
def test_no_spreadsheet_takes_a_text_for_a_formula(text: str) -> None:
    escaped = table_formats.escape_csv(text)
    assert escaped[:1] not in tuple("=+-@\t\r") or escaped == ""
    assert escaped.removeprefix("'") == text.removeprefix("'")


def test_markdown_rows_have_one_entry_a_column(table: Table) -> None:
    for sheet in overview(table):
        lines = table_formats.markdown(sheet).splitlines()
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert counts == {len(sheet.columns) + 1}
        assert "**83.00 ± 0.00**" in lines[-1]
    assert r"a\|b \<b\>&amp;amp; \$x\_1\$ 100% \\cmd [a]\(b) \`c\`" in table_formats.markdown(overview(table)[0])


@given(st.text())
def test_latex_leaves_no_special_character(text: str) -> None:
    escaped = table_formats.escape_latex(text)
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}"):
        escaped = escaped.replace(command, "")
    for command in (r"\textgreater{}", r"\textbar{}", r"$\pm$", "$-$", "{[}", "{]}"):
        escaped = escaped.replace(command, "")
    assert not re.search(r"[~^<>|]|\\(?![&%$#_{}])|(?<!\\)[&%$#_{}]", escaped)


def test_latex_tables_are_whole(table: Table) -> None:
    text = table_formats.latex(table)
    assert text.count(r"\begin{tabular}{l") == text.count(r"\end{tabular}") == 3
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 and line.endswith(r"\\") for line in body)
    assert r"\textbf{83.00 $\pm$ 0.00}" in text and r"a\textbar{}b" in text


def test_plain_text_is_aligned(table: Table) -> None:
    lines = table_formats.plain(table).split("\n\n")[0].splitlines()
    assert lines[0] == "Accuracy (%)" and set(lines[2]) == {"-"}
    assert len({line.index("8", 40) for line in lines[3:]}) == 1
    assert lines[-1].rstrip().endswith("1.0 *")
