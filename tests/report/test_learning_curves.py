"""Learning curves from metrics files."""

from __future__ import annotations

import json
from pathlib import Path

from usb_rsmatch.report.learning_curves import mean_curve, read_curve


def test_a_curve_is_read_around_other_lines_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"it": 10, "train/total_loss": 2.0}',
        '{"it": 20, "eval/top-1-acc": 0.5}',
        '{"it": 30, "eval/top-1-acc": NaN}',
        '{"it": 40, "eval/top-1-acc": "high"}',
        '{"eval/top-1-acc": 0.6}',
        '[1, "eval/top-1-acc"]',
        '{"it": 50, "eval/top-1-acc": 0.75}',
        '{"it": 60, "eval/top-1-acc": 0.7',
    ]
    path.write_text("\n".join(lines))
    assert read_curve(path, "eval/top-1-acc") == {20: 0.5, 50: 0.75}
    assert read_curve(path, "detection/auroc") == {}
    assert read_curve(tmp_path / "none.jsonl", "eval/top-1-acc") == {}


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps({"it": step, "a": step / 2}) for step in range(1, 5001)))
    curve = read_curve(path, "a")
    assert 100 < len(curve) <= 201
    assert next(iter(curve)) == 1 and list(curve)[-1] == 5000
    assert all(value == step / 2 for step, value in curve.items())


def test_a_mean_is_taken_where_all_have_values() -> None:
    assert mean_curve([{1: 0.0, 2: 1.0, 3: 5.0}, {2: 3.0, 3: 7.0, 4: 1.0}]) == {2: 2.0, 3: 6.0}
