"""Configurations: types, bounds, keys without effect, unknown keys, invalid files, and the configuration's hash."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import config
from usb_rsmatch.usb.config import DEAD, FORMER_PLUGINS, KEYS, NOT_IDENTITY, config_hash, identity, resolve


def refused(given: Any, overrides: dict[str, Any] | None = None) -> str:
    """The one-line message with which a configuration is refused."""
    with pytest.raises(UserError) as caught:
        resolve(given, overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def resolved(**given: Any) -> Any:
    return resolve(given)[0]


# types and bounds ---------------------------------------------------------------------------------------------------


def test_an_empty_configuration_has_every_default() -> None:
    args, notes = resolve({})
    assert notes == []
    for name, key in KEYS.items():
        assert getattr(args, name) == key.default, name


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_default_is_valid_for_its_key(key: config.Key) -> None:
    """A run folder's config.yaml contains the defaults, and a resumed run reads them."""
    assert config.convert(key, key.default, "here") == key.default
    assert key.help and key.origin in ("usb", "paper", "ours")


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("num_labels", "40", 40),
        ("num_labels", 4e1, 40),
        ("num_labels", "1e3", 1000),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("num_train_iter", 2**53 + 1, 2**53 + 1),  # exact, unlike a float
        ("lr", 1, 1.0),
        ("lr", "1e-3", 0.001),
        ("lr", np.float64(0.5), 0.5),
        ("amp", "True", True),
        ("amp", "no", False),
        ("amp", 0, False),
        ("save_name", 7, "7"),
        ("save_name", "None", None),
        ("num_classes", None, None),
        ("synthetic_ratio", "None", None),
        ("data_dir", Path("images"), "images"),
        ("plugins", (), []),
        ("rs_queue", "single", "single"),
        ("save_name", datetime.date(2024, 5, 1), "2024-05-01"),
    ],
)
def test_values_are_converted_to_the_type_of_their_key(key: str, given: Any, value: Any) -> None:
    got = getattr(resolved(**{key: given}), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_labels", "forty", "num_labels takes a number or all, not 'forty'"),
        ("num_labels", 1.5, "whole number"),
        ("num_labels", 0, "at least 1"),
        ("num_labels", True, "a number"),
        ("num_labels", [1], "a number"),
        ("num_labels", None, "a value (int)"),
        ("num_labels", 10**400, "num"),
        ("lr", float("nan"), "finite"),
        ("lr", "inf", "finite"),
        ("lr", -0.1, "at least 0"),
        ("ema_m", 1.1, "at least 0 and at most 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**32, "at most"),
        ("reencode", 101, "at most 100"),
        ("rs_threshold", "high", "a number or adaptive, not 'high'"),
        ("rs_threshold", 1.5, "at most 1 or adaptive"),
        ("amp", "maybe", "true or false"),
        ("amp", 2, "true or false"),
        ("optim", "adam", "SGD or AdamW"),
        ("rs_queue", "both", "classwise or single"),
        ("rs_queue", [], "classwise or single"),
        ("net", ["wrn"], "one word"),
        ("net", None, "a value (str)"),
        ("synthetic", "folder:./images", "a list"),
        ("synthetic", ["folder:./images"], "needs a `source`"),
        ("synthetic", [{"generator": "sd14"}], "needs a `source`"),
        ("layouts", ["a"], "a mapping"),
        ("layouts", {"mine": {1, 2}}, "holds a set"),
        ("plugins", "my_module", "a list"),
        ("rs_detector", "oracles", "csqueue, pu, supervised, oracle, random, none or scores:FILE.csv"),
        ("data_dir", object(), "holds a object"),
        ("save_name", "a\ud800", "lone surrogates"),
        ("synthetic", [{"source": "npz:\ud800"}], "lone surrogates"),
        ("synthetic", [{"source": "npz:a.npz", "generator": "\udcff"}], "lone surrogates"),
    ],
)
def test_the_message_about_a_wrong_value_names_the_key(key: str, value: Any, message: str) -> None:
    error = refused({key: value})
    assert message in error
    assert key in error or "configuration" in error


def test_a_number_too_large_to_print_is_refused() -> None:
    assert "bits" in refused({"num_labels": 10**5000})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_train_iter": 10, "epoch": 3}, "must be divisible by epoch (3)"),
        ({"synthetic_count": 1, "synthetic_ratio": 0.5}, "synthetic_count or synthetic_ratio, not both"),
        ({"algorithm": "rsmatch", "rs_base": "nomatch"}, "unknown algorithm 'nomatch'"),
        ({"algorithm": "FixMatch"}, "did you mean 'fixmatch'?"),
        ({"imb_algorithm": "abcd"}, "did you mean 'abc'?"),
        ({"plugins": ["no such module"]}, "cannot be imported"),
    ],
)
def test_contradicting_values_are_refused(given: dict[str, Any], message: str) -> None:
    assert message in refused(given)


# keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", DEAD)
def test_keys_without_effect_are_noted_and_dropped(key: str) -> None:
    args, notes = resolve({key: "anything"})
    assert notes == [f"{key} has no effect: {DEAD[key]}"]
    assert not hasattr(args, key)


@pytest.mark.parametrize(
    ("key", "near"), [("num_lables", "num_labels"), ("p_cutof", "p_cutoff"), ("rs_detecter", "rs_detector")]
)
def test_an_unknown_key_is_refused_with_file_and_nearest_key(key: str, near: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{key}: 1\n")
    assert refused(path) == f"{path}: unknown key {key!r}: did you mean {near!r}?"


def test_a_key_without_a_similar_one_is_refused_without_a_suggestion() -> None:
    assert refused({"qqqqqqqq": 1}) == "configuration: unknown key 'qqqqqqqq'"


def test_keys_of_another_algorithm_are_noted() -> None:
    """USB ships configurations with such keys, and a grid over algorithms has one base for all."""
    args, notes = resolve({"algorithm": "fixmatch", "ent_loss_ratio": 0.1})
    assert notes == ["ent_loss_ratio has no effect: it belongs to another algorithm than fixmatch"]
    assert not hasattr(args, "ent_loss_ratio")
    args, notes = resolve({"algorithm": "freematch", "ent_loss_ratio": "0.1"})
    assert notes == [] and args.ent_loss_ratio == 0.1


def test_rsmatch_accepts_the_keys_of_its_base_rule() -> None:
    assert not hasattr(resolved(algorithm="rsmatch"), "ent_loss_ratio")
    args = resolved(algorithm="rsmatch", rs_base="freematch", ent_loss_ratio=0.2)
    assert args.ent_loss_ratio == 0.2


def test_overrides_take_precedence_and_dashes_become_underscores(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("num_labels: 10\nlr: 0.1\nclip: 1\n")
    args, notes = resolve(path, {"num-labels": "20"})
    assert (args.num_labels, args.lr) == (20, 0.1)
    assert len(notes) == 1


def test_plugins_are_imported_before_keys_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_plugin_for_config.py").write_text(
        "from semilearn.core.utils import ALGORITHMS\n"
        "from semilearn.algorithms.fixmatch import FixMatch\n"
        "ALGORITHMS.register('minematch')(type('MineMatch', (FixMatch,), {}))\n"
    )
    assert resolved(plugins=["my_plugin_for_config"], algorithm="minematch").algorithm == "minematch"
    (tmp_path / "my_broken_plugin.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    assert "RuntimeError: first line second line" in refused({"plugins": ["my_broken_plugin"]})
    (tmp_path / "my_leaving_plugin.py").write_text("raise SystemExit('as a script would')\n")
    assert "SystemExit: as a script would" in refused({"plugins": ["my_leaving_plugin"]})


# files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1,\n", "line 3 is not valid YAML"),
        ("lr: 0.1\n\tseed: 1\n", "line 2 is not valid YAML"),
        ("lr: 1: 2\n", "line 1 is not valid YAML"),
        ("<<<<<<< HEAD\nlr: 0.1\n=======\n", "not valid YAML"),
        ("lr: !!python/object/apply:os.system ['true']\n", "line 1 is not valid YAML"),
        ("seed: 2024-13-45\n", "is not valid YAML: month must be in 1..12"),
        ("lr: " + "[" * 5000, "is not valid YAML"),
        ("lr: " + "[" * 100 + "]" * 100, "50 deep"),
        ("lr: " + "9" * 5000, "is not valid YAML"),
        ("just words\n", "contains no mapping"),
        ("- lr\n- seed\n", "contains no mapping"),
        ("? [lr]\n: 1\n", "not valid YAML"),
        ("layouts: &a [*a]\n", "50 deep"),
    ],
)
def test_errors_in_a_file_are_reported_with_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    error = refused(path)
    assert str(path) in error and message in error


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    assert "neither a file nor a shipped one" in refused(tmp_path / "absent.yaml")
    assert "neither a file nor a shipped one" in refused("x" * 300)
    assert "neither a file nor a shipped one" in refused("a\0b")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00lr")
    assert f"cannot read {binary}" in refused(binary)


def test_an_empty_file_has_every_default(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert resolve(path)[0] == resolve({})[0]


@pytest.mark.parametrize("key", ["lr", "synthetic", "layouts", "plugins", "dataset", "qqqqqqqq"])
def test_nested_yaml_aliases_are_refused_quickly(key: str, tmp_path: Path) -> None:
    """Nine aliases in each of nine levels: a few hundred bytes in the file would expand to ten gigabytes."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join([*lines, f"{key}: *a9"]))
    started = time.monotonic()
    assert "100,000 values" in refused(path)
    assert time.monotonic() - started < 5


# random mappings ----------------------------------------------------------------------------------------------------

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["None", "true", "1e3", "fixmatch", "rsmatch", "scores:", "0"]),
)
VALUES = st.one_of(
    PLAIN,
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from([object(), b"bytes", {1}, datetime.date(2024, 1, 1), np.float32(1), float, 10**400]),
)
NAMES = st.one_of(st.sampled_from([*KEYS, *DEAD, "p_cutoff"]), st.text(max_size=10))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_mapping_resolves_or_is_refused_in_one_line(given: dict[str, Any]) -> None:
    given.pop("plugins", None)  # a user alone decides which modules are imported
    try:
        args, _ = resolve(given)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:  # an accepted configuration can be written, read again and hashed
        again = yaml.safe_load(yaml.safe_dump(vars(args)))
        assert resolve(again)[0] == args
        assert config_hash(again) == config_hash(args)


# identity -----------------------------------------------------------------------------------------------------------


def test_the_hash_depends_only_on_keys_that_change_the_result() -> None:
    first = config_hash(resolved(lr=1, seed=3))
    assert first == config_hash(resolved(seed="3", lr=1.0))
    assert first == config_hash(resolved(lr=1, seed=3, save_dir="/elsewhere", num_workers=7, device="cpu", clip=1))
    for change in ({"seed": 4}, {"lr": 0.5}, {"rs_loader": "batched"}, {"synthetic": [{"source": "flow"}]}):
        assert config_hash(resolved(**{"lr": 1, "seed": 3, **change})) != first
    assert identity(resolved()).keys() == vars(resolved()).keys() - NOT_IDENTITY


def test_the_order_of_keys_in_a_source_does_not_change_the_hash() -> None:
    one, other = {"source": "flow", "generator": "a"}, {"generator": "a", "source": "flow"}
    assert config_hash(resolved(synthetic=[one])) == config_hash(resolved(synthetic=[other]))


def test_default_run_names_differ() -> None:
    """For changes between which users usually compare."""
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"num_labels": 20},
        {"dataset": "digits"},
        {"algorithm": "rsmatch"},
        {"algorithm": "rsmatch", "rs_base": "freematch"},
        {"imb_algorithm": "abc"},
    ]
    names = [config.default_save_name(resolved(**change)) for change in changes]
    assert len(set(names)) == len(names)


def test_a_former_plugin_name_still_works_with_one_note() -> None:
    former, present = next(iter(FORMER_PLUGINS.items()))
    args, notes = resolve({"dataset": "digits", "plugins": [former], "algorithm": "rsmatch_half_weight"})
    assert [note for note in notes if former in note and present in note]
    assert args.plugins == [former]  # unchanged: it is part of the identity of runs that were started with that name
    assert resolve({"dataset": "digits", "plugins": [present], "algorithm": "rsmatch_half_weight"})[1] == []
