"""Checkpoint files: damage is detected, a failed write loses nothing, and USB and this package read each other's."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from semilearn import get_net_builder
from semilearn.core.utils import ALGORITHMS

from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import checkpoint
from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import read_yaml, resolve
from usb_rsmatch.usb.training import build, train


def content(step: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(40, 30, generator=generator),
            "count": torch.tensor(step),
            "half": torch.randn(30, generator=generator).bfloat16(),
            "flags": torch.rand(50, generator=generator) > 0.5,
            "empty": torch.empty(0, 3),
        },
        "it": step,
        checkpoint.KEY: {"it": step, "hooks": {}, "random": checkpoint.random_state()},
    }


def test_read_returns_what_write_saved(tmp_path: Path) -> None:
    path = tmp_path / "latest_model.pth"
    checkpoint.write(content(), path)
    got, expected = checkpoint.read(path), content()
    assert got["it"] == 3 and got["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert torch.equal(got["model"][name], tensor) and got["model"][name].dtype == tensor.dtype


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "latest_model.pth"
    checkpoint.write(content(), path)
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_detected_or_changes_no_content(written: Path, where: float, bit: int) -> None:
    """A flipped bit in the archive's padding may remain undetected; the content is then unchanged."""
    damaged = bytearray(written.read_bytes())
    damaged[int(where * len(damaged))] ^= 1 << bit
    path = written.with_name("damaged.pth")
    path.write_bytes(damaged)
    try:
        got = checkpoint.read(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        expected = checkpoint.read(written)
        assert checkpoint.digest(got) == checkpoint.digest(expected)


@pytest.mark.parametrize("name", ["weight", "half", "flags"])
def test_a_flipped_bit_in_tensor_data_is_detected(name: str, written: Path, tmp_path: Path) -> None:
    """torch.load reads such a file without an error."""
    whole, path = written.read_bytes(), tmp_path / "latest_model.pth"
    raw = content()["model"][name].view(torch.uint8).numpy().tobytes()
    start = whole.index(raw)
    for offset in range(0, len(raw), max(1, len(raw) // 25)):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 1
        path.write_bytes(damaged)
        torch.load(path, weights_only=True)
        with pytest.raises(UserError, match="do not match their checksums"):
            checkpoint.read(path)


def test_changed_contents_with_valid_checksums_are_detected(written: Path, tmp_path: Path) -> None:
    changed = torch.load(written, weights_only=True)
    changed["model"]["weight"][0, 0] += 1e-6
    torch.save(changed, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="do not match its digest"):
        checkpoint.read(tmp_path / "changed.pth")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(share: float, written: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(written.read_bytes()[: int(share * written.stat().st_size)])
    with pytest.raises(UserError, match="cannot be read") as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value)


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_that_executes_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "evil": Touch(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    """A compressed file of a thousandth of its content's size, and a one-value tensor whose shape claims a terabyte."""
    torch.save({"model": {"weight": torch.zeros(10**6)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it is compressed"):
        checkpoint.read(tmp_path / "bomb.pth")
    torch.save({"model": {"weight": torch.zeros(1).expand(1 << 38)}}, tmp_path / "claim.pth")
    with pytest.raises(UserError, match="claims more values"):
        checkpoint.read(tmp_path / "claim.pth")


def test_nested_lists_that_expand_without_limit_are_refused(tmp_path: Path) -> None:
    """A few hundred bytes that expand to 9**12 values, and a list that contains itself."""
    bomb: list[Any] = [0] * 9
    for _ in range(12):
        bomb = [bomb] * 9
    endless: list[Any] = []
    endless.append(endless)
    for value in (bomb, endless):
        torch.save({"model": {}, "value": value}, tmp_path / "bomb.pth")
        with pytest.raises(UserError, match="more values than it has bytes"):
            checkpoint.read(tmp_path / "bomb.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes exist only on POSIX systems")
def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "latest_model.pth")
    with pytest.raises(UserError, match="it is not a regular file"):
        checkpoint.read(tmp_path / "latest_model.pth")


@pytest.mark.parametrize("content", [{"model": {}, checkpoint.KEY: 3}, {"model": {}, checkpoint.KEY: {"digest": []}}])
def test_an_invalid_value_under_our_key_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read(tmp_path / "odd.pth")


def test_a_file_that_is_no_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.read(tmp_path / "absent.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="no key 'model'"):
        checkpoint.read(tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read(tmp_path)


# writing ------------------------------------------------------------------------------------------------------------


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.write(content(step), tmp_path / "latest_model.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest_model.pth", "previous_model.pth"]
    assert checkpoint.read(tmp_path / "previous_model.pth")["it"] == 2
    newest, note = checkpoint.read_latest(tmp_path)
    assert newest is not None and newest["it"] == 3 and note is None


def test_an_incomplete_write_leaves_both_files(tmp_path: Path) -> None:
    path = tmp_path / "latest_model.pth"
    for step in (1, 2):
        checkpoint.write(content(step), path)
    broken = content(3)
    broken["model"]["weight"] = torch.zeros(300, 300)
    broken["late"] = lambda: None  # cannot be pickled: raises after much has been written
    with pytest.raises(Exception, match="pickle"):
        checkpoint.write(broken, path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["latest_model.pth", "previous_model.pth"]
    assert checkpoint.read(path)["it"] == 2
    assert checkpoint.read(tmp_path / "previous_model.pth")["it"] == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_error_loses_at_most_the_newest_checkpoint(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    checkpoint.write(content(1), tmp_path / "latest_model.pth")
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            checkpoint.write(content(2), tmp_path / "latest_model.pth")
    newest, _ = checkpoint.read_latest(tmp_path)
    assert newest is not None and newest["it"] == 1


def test_damage_falls_back_to_the_previous_file_and_then_raises(tmp_path: Path) -> None:
    assert checkpoint.read_latest(tmp_path) == (None, None)
    for step in (1, 2):
        checkpoint.write(content(step), tmp_path / "latest_model.pth")
    (tmp_path / "latest_model.pth").write_bytes(b"PK damaged")
    before, note = checkpoint.read_latest(tmp_path)
    assert before is not None and before["it"] == 1
    assert note is not None and "resuming from the previous checkpoint" in note
    (tmp_path / "previous_model.pth").write_bytes(b"")
    with pytest.raises(UserError, match="no valid checkpoint is left"):
        checkpoint.read_latest(tmp_path)


# USB ----------------------------------------------------------------------------------------------------------------


def test_numpy_scalars_are_read(tmp_path: Path) -> None:
    """With some scikit-learn versions USB's best accuracy is a NumPy scalar, which torch refuses by default."""
    torch.save({"model": {}, "best_eval_acc": np.float64(0.5), "it": np.int64(3)}, tmp_path / "usb.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "usb.pth", weights_only=True)
    assert checkpoint.read(tmp_path / "usb.pth") == {"model": {}, "best_eval_acc": 0.5, "it": 3}


def unmodified_algorithm(args: Any, ours: Any) -> Any:
    """semilearn's own algorithm without our mixins, with the data sets and loaders of `ours`."""
    with cuda_calls_stay_on_cpu():
        algorithm = ALGORITHMS[args.algorithm].__new__(ALGORITHMS[args.algorithm], args)
        algorithm.set_dataset = lambda: ours.dataset_dict
        algorithm.set_data_loader = lambda: ours.loader_dict
        algorithm.__init__(args, get_net_builder(args.net, False))
    return algorithm


def assert_same_weights(first: Any, second: Any) -> None:
    states = [
        {f"{part}.{name}": t for part in ("model", "ema_model") for name, t in getattr(a, part).state_dict().items()}
        for a in (first, second)
    ]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize("name", ["fixmatch", "rsmatch"])
def test_usbs_load_model_reads_our_checkpoint(name: str, finished: dict[str, Path], tmp_path: Path) -> None:
    args, _ = resolve(read_yaml(finished[name] / "config.yaml"))
    args.device = "cpu"
    ours = build(args)
    ours.load_model(str(finished[name] / "latest_model.pth"))
    fresh = unmodified_algorithm(args, build(args))
    with pytest.raises(AssertionError):
        assert_same_weights(ours, fresh)
    with cuda_calls_stay_on_cpu():
        fresh.load_model(str(finished[name] / "latest_model.pth"))
    assert_same_weights(ours, fresh)
    assert fresh.it == ours.it == 60 and fresh.best_eval_acc == ours.best_eval_acc
    momentum = [
        [state["momentum_buffer"] for state in a.optimizer.state_dict()["state"].values()] for a in (ours, fresh)
    ]
    assert momentum[0] and all(map(torch.equal, *momentum))


@pytest.mark.parametrize(
    ("name", "wrapped"), [("fixmatch", False), ("softmatch", True), ("flexmatch", False), ("fixmatch", True)]
)
def test_training_starts_from_a_checkpoint_of_usb_with_a_note(
    name: str, wrapped: bool, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Also where both models are wrapped as USB's train.py wraps them, which it does by default."""
    config = {**tiny, "algorithm": name, "epoch": 1}
    args, longer = resolve(config)[0], resolve({**config, "num_train_iter": 16, "num_eval_iter": 16})[0]
    theirs = unmodified_algorithm(args, build(args))
    if wrapped:
        theirs.model, theirs.ema_model = map(torch.nn.DataParallel, (theirs.model, theirs.ema_model))
    with cuda_calls_stay_on_cpu():
        theirs.train()  # saves by USB's own hooks
    saved = Path(args.save_dir) / args.save_name / "latest_model.pth"
    content = torch.load(saved, weights_only=False)
    assert checkpoint.KEY not in content
    for part in ("model", "ema_model"):
        assert all(key.startswith("module.") == wrapped for key in content[part])
    path = Path(shutil.copy(saved, tmp_path / "usb.pth"))

    notes: list[str] = []
    started = {**config, "save_name": "ours", "num_train_iter": 16, "num_eval_iter": 16, "start_from": str(path)}
    assert train(started, note=notes.append)["iterations"] == 16
    assert any("a checkpoint of USB itself" in line for line in notes) and notes[-1].startswith("resuming after step 1")
    for changes, message in (
        ({"num_train_iter": 12, "num_eval_iter": 6}, "raise num_train_iter"),
        ({"net": "small_wrn_16_1"}, "does not fit the configuration"),
        ({"start_from": str(tmp_path / "none.pth")}, "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=message):
            train({**started, "save_name": "refused", **changes}, note=notes.append)
        assert not (Path(args.save_dir) / "refused").exists()

    ours, lines = build(longer), []
    ours.print_fn = lines.append
    ours.load_model(str(path))
    assert any("a checkpoint of USB itself" in line for line in lines)
    if wrapped:
        assert_same_weights(ours, SimpleNamespace(model=theirs.model.module, ema_model=theirs.ema_model.module))
    else:
        assert_same_weights(ours, theirs)
    before = {key: value.clone() for key, value in ours.model.state_dict().items()}
    ours.train()
    assert ours.it == 16
    assert any(not torch.equal(value, before[key]) for key, value in ours.model.state_dict().items())
