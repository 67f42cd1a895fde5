"""Checkpoint files: damage is found, a write that fails loses nothing, and USB reads ours as we read USB's."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
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


def test_what_is_written_is_read(tmp_path: Path) -> None:
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
def test_a_flipped_bit_anywhere_changes_nothing_or_is_found(written: Path, where: float, bit: int) -> None:
    """A bit of the archive's padding may flip unseen; what is read is then what was written."""
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
def test_every_flipped_byte_of_a_tensor_is_found(name: str, written: Path, tmp_path: Path) -> None:
    """torch.load takes such a file without a word."""
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


def test_contents_that_were_changed_and_saved_again_are_found(written: Path, tmp_path: Path) -> None:
    changed = torch.load(written, weights_only=True)
    changed["model"]["weight"][0, 0] += 1e-6
    torch.save(changed, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="do not match its digest"):
        checkpoint.read(tmp_path / "changed.pth")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_is_refused(share: float, written: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(written.read_bytes()[: int(share * written.stat().st_size)])
    with pytest.raises(UserError, match="cannot be read") as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value)


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "evil": Touch(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_would_unfold_to_any_size_is_refused(tmp_path: Path) -> None:
    """A thousandth of the size, and a tensor of few numbers that claims a terabyte."""
    torch.save({"model": {"weight": torch.zeros(10**6)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it is compressed"):
        checkpoint.read(tmp_path / "bomb.pth")
    torch.save({"model": {"weight": torch.zeros(1).expand(1 << 38)}}, tmp_path / "claim.pth")
    with pytest.raises(UserError, match="claims more numbers"):
        checkpoint.read(tmp_path / "claim.pth")


def test_lists_of_one_list_again_and_again_are_refused(tmp_path: Path) -> None:
    """Some hundred bytes that unfold to 9**12 values, and a list that holds itself."""
    bomb: list[Any] = [0] * 9
    for _ in range(12):
        bomb = [bomb] * 9
    endless: list[Any] = []
    endless.append(endless)
    for value in (bomb, endless):
        torch.save({"model": {}, "value": value}, tmp_path / "bomb.pth")
        with pytest.raises(UserError, match="more values than it has bytes"):
            checkpoint.read(tmp_path / "bomb.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "latest_model.pth")
    with pytest.raises(UserError, match="it is not a regular file"):
        checkpoint.read(tmp_path / "latest_model.pth")


@pytest.mark.parametrize("content", [{"model": {}, checkpoint.KEY: 3}, {"model": {}, checkpoint.KEY: {"digest": []}}])
def test_a_part_of_ours_that_is_none_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read(tmp_path / "odd.pth")


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.read(tmp_path / "absent.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="no key 'model'"):
        checkpoint.read(tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read(tmp_path)


# writing ------------------------------------------------------------------------------------------------------------


def test_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.write(content(step), tmp_path / "latest_model.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest_model.pth", "previous_model.pth"]
    assert checkpoint.read(tmp_path / "previous_model.pth")["it"] == 2
    newest, note = checkpoint.read_latest(tmp_path)
    assert newest is not None and newest["it"] == 3 and note is None


def test_a_write_that_fails_half_way_leaves_both_files(tmp_path: Path) -> None:
    path = tmp_path / "latest_model.pth"
    for step in (1, 2):
        checkpoint.write(content(step), path)
    broken = content(3)
    broken["model"]["weight"] = torch.zeros(300, 300)
    broken["late"] = lambda: None  # cannot be pickled: found when much is written already
    with pytest.raises(Exception, match="pickle"):
        checkpoint.write(broken, path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["latest_model.pth", "previous_model.pth"]
    assert checkpoint.read(path)["it"] == 2
    assert checkpoint.read(tmp_path / "previous_model.pth")["it"] == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_loses_at_most_the_last_checkpoint(
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


def test_damage_falls_back_once_and_then_stops(tmp_path: Path) -> None:
    assert checkpoint.read_latest(tmp_path) == (None, None)
    for step in (1, 2):
        checkpoint.write(content(step), tmp_path / "latest_model.pth")
    (tmp_path / "latest_model.pth").write_bytes(b"PK damaged")
    before, note = checkpoint.read_latest(tmp_path)
    assert before is not None and before["it"] == 1
    assert note is not None and "resuming from the previous checkpoint" in note
    (tmp_path / "previous_model.pth").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        checkpoint.read_latest(tmp_path)


# USB ----------------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    """USB's best accuracy is one where scikit-learn gives it so; torch's own default refuses the file."""
    torch.save({"model": {}, "best_eval_acc": np.float64(0.5), "it": np.int64(3)}, tmp_path / "usb.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "usb.pth", weights_only=True)
    assert checkpoint.read(tmp_path / "usb.pth") == {"model": {}, "best_eval_acc": 0.5, "it": 3}


def stock(args: Any, ours: Any) -> Any:
    """semilearn's own algorithm, nothing laid over it, on the data sets and loaders of ours."""
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
def test_usbs_own_load_model_reads_ours(name: str, finished: dict[str, Path], tmp_path: Path) -> None:
    args, _ = resolve(read_yaml(finished[name] / "config.yaml"))
    args.device = "cpu"
    ours = build(args)
    ours.load_model(str(finished[name] / "latest_model.pth"))
    fresh = stock(args, build(args))
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


@pytest.mark.parametrize("name", ["fixmatch", "softmatch", "flexmatch"])
def test_a_checkpoint_of_usb_itself_goes_on_with_a_note(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    config = {**tiny, "algorithm": name, "epoch": 1}
    args, longer = resolve(config)[0], resolve({**config, "num_train_iter": 16, "num_eval_iter": 16})[0]
    theirs = stock(args, build(args))
    with cuda_calls_stay_on_cpu():
        theirs.train()  # saves by USB's own hooks
    saved = Path(args.save_dir) / args.save_name / "latest_model.pth"
    assert checkpoint.KEY not in torch.load(saved, weights_only=False)
    path = Path(shutil.copy(saved, tmp_path / "usb.pth"))

    told: list[str] = []
    begun = {**config, "save_name": "ours", "num_train_iter": 16, "num_eval_iter": 16, "start_from": str(path)}
    assert train(begun, note=told.append)["iterations"] == 16
    assert any("a checkpoint of USB itself" in line for line in told) and told[-1].startswith("resuming after step 1")
    for changes, message in (
        ({"num_train_iter": 12, "num_eval_iter": 6}, "raise num_train_iter"),
        ({"net": "small_wrn_16_1"}, "does not fit the configuration"),
        ({"start_from": str(tmp_path / "none.pth")}, "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=message):
            train({**begun, "save_name": "refused", **changes}, note=told.append)
        assert not list((Path(args.save_dir) / "refused").glob("[!.]*"))

    ours, lines = build(longer), []
    ours.print_fn = lines.append
    ours.load_model(str(path))
    assert any("a checkpoint of USB itself" in line for line in lines)
    assert_same_weights(ours, theirs)
    before = {key: value.clone() for key, value in ours.model.state_dict().items()}
    ours.train()
    assert ours.it == 16
    assert any(not torch.equal(value, before[key]) for key, value in ours.model.state_dict().items())
