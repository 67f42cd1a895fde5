"""Training runs: baselines and RSMatch train on one pool, and resumed runs equal uninterrupted ones bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usb_rsmatch.errors import Interrupted, UserError
from usb_rsmatch.usb import checkpoint
from usb_rsmatch.usb.training import build, train

ALGORITHMS = ["rsmatch", "fixmatch", "flexmatch", "freematch", "softmatch", "meanteacher"]


def silent(line: str) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "latest_model.pth", weights_only=True)
    return {f"{part}.{name}": t for part in ("model", "ema_model") for name, t in content[part].items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:5]


class StopAfter:
    """Requests a stop after a number of steps, instead of a signal."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def interrupted_at(config: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from usb_rsmatch.usb import training

    with monkeypatch.context() as patch:
        stop = StopAfter(step)
        patch.setattr(training.StopBetweenSteps, "__call__", lambda self: stop())
        with pytest.raises(Interrupted, match=f"after step {step} of 12"):
            train(config, note=silent)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_run_equals_the_uninterrupted_one(
    algorithm: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["algorithm"] = algorithm
    whole = train({**tiny, "save_name": "whole"}, note=silent)
    for step in (3, 6):  # in the middle of an epoch, and at its end
        config = {**tiny, "save_name": f"stopped{step}"}
        interrupted_at(config, step, monkeypatch)
        result = train(config, note=silent)
        root = Path(tiny["save_dir"])
        assert_same(weights(root / "whole"), weights(root / f"stopped{step}"))
        assert result["accuracy"] == whole["accuracy"]
        assert result["detection"] == whole["detection"]
    assert [line["it"] for line in map(json.loads, (root / "stopped3" / "metrics.jsonl").open())] == [
        2,
        4,
        6,
        8,
        10,
        12,
    ]


def test_training_changes_the_weights_and_the_seed_matters(tiny: dict[str, Any]) -> None:
    train({**tiny, "save_name": "a"}, note=silent)
    train({**tiny, "save_name": "b", "seed": 1}, note=silent)
    root = Path(tiny["save_dir"])
    a, b = weights(root / "a"), weights(root / "b")
    assert not torch.equal(a["model.conv1.weight"], b["model.conv1.weight"])
    assert not torch.equal(a["model.conv1.weight"], a["ema_model.conv1.weight"])


@pytest.mark.parametrize(
    "changes", [{}, {"rs_threshold": "adaptive", "rs_detector_input": "feature"}, {"rs_detector": "pu"}]
)
def test_provenance_does_not_affect_training(
    changes: dict[str, Any], tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shuffling the unlabelled images' provenance flags and true labels, or making a third of the flags unknown, does
    not change RSMatch's weights at all."""
    import dataclasses

    import numpy as np

    from usb_rsmatch.data.pool.provenance import Provenance
    from usb_rsmatch.usb import training

    tiny |= {"algorithm": "rsmatch", "rs_warmup": 0.0, **changes}
    train({**tiny, "save_name": "true"}, note=silent)
    complete_args = training.complete_args

    def shuffled(args: Any) -> None:
        complete_args(args)
        rng, pool = np.random.default_rng(0), args.pool.unlabeled
        order = rng.permutation(len(pool))
        unknown = (rng.random(len(pool)) < 1 / 3) & ~pool.is_labeled
        mixed = dataclasses.replace(
            pool,
            provenance=np.where(unknown, Provenance.UNKNOWN, pool.provenance[order]).astype(np.int8),
            generator=np.where(unknown, len(pool.generators), pool.generator[order]).astype(np.int16),
            generators=(*pool.generators, "unknown"),
            labels=np.where(pool.is_labeled, pool.labels, pool.labels[order]),
        )
        args.pool = dataclasses.replace(args.pool, unlabeled=mixed)

    monkeypatch.setattr(training, "complete_args", shuffled)
    other = train({**tiny, "save_name": "shuffled"}, note=silent)
    root = Path(tiny["save_dir"])
    assert_same(weights(root / "true"), weights(root / "shuffled"))
    assert other["detection"] != json.loads((root / "true" / "result.json").read_text())["detection"]


def test_the_split_depends_on_the_seed_but_not_on_the_algorithm(tiny: dict[str, Any]) -> None:
    from argparse import Namespace

    from usb_rsmatch.usb.config import resolve

    def split(**changes: Any) -> Any:
        args, _ = resolve({**tiny, **changes})
        algorithm = build(Namespace(**vars(args)))
        return algorithm.dataset_dict["train_lb"].data, algorithm.dataset_dict["train_ulb"].data

    labeled, unlabeled = split()
    for algorithm in ("rsmatch", "meanteacher"):
        again = split(algorithm=algorithm)
        assert (again[0] == labeled).all() and (again[1] == unlabeled).all()
    assert (split(seed=1)[0] != labeled).any()


def test_a_finished_run_is_reported_and_another_configuration_is_refused(tiny: dict[str, Any]) -> None:
    result, lines = train(tiny, note=silent), []
    assert train(tiny, note=lines.append) == result
    assert "is done" in lines[-1]
    with pytest.raises(UserError, match=r"lr: 0\.03, not 0\.5"):
        train({**tiny, "lr": 0.5}, note=silent)


def test_a_folder_that_is_not_a_run_folder_stays_unchanged(tiny: dict[str, Any]) -> None:
    folder = Path(tiny["save_dir"]) / "run"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("important")
    with pytest.raises(UserError, match="is not a run folder"):
        train(tiny, note=silent)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "fixmach"}, "unknown algorithm 'fixmach': did you mean 'fixmatch'"),
        ({"dataset": "digts"}, "digts"),
        ({"dataset": "digts", "synthetic": [], "synthetic_count": None}, "'digts': did you mean 'digits'"),
        ({"dataset": "digts", "synthetic": [], "synthetic_count": None, "num_classes": 10}, "'digts': did you mean"),
        ({"num_lables": 10}, "unknown key 'num_lables': did you mean 'num_labels'"),
        ({"lr": "fast"}, "lr takes a number"),
        ({"num_labels": 15}, "15"),
        ({"net": "small_wrn_10_3"}, "unknown net 'small_wrn_10_3': did you mean"),
        ({"net": "resnet19", "net_from_name": True}, "unknown net 'resnet19': did you mean 'resnet18'"),
        ({"net": "wrn"}, "unknown net 'wrn'"),  # a module of semilearn.nets
        ({"net": "vit_tiny_patch2_32"}, "vit_tiny_patch2_32 takes images of 32 px, these have 8"),
        ({"use_pretrain": True}, "pretrain_path ''"),
        ({"use_pretrain": True, "pretrain_path": "gone.pth"}, "pretrain_path 'gone.pth' is neither a file"),
        ({"use_pretrain": True, "pretrain_path": "http://127.0.0.1:1/x.pth"}, "cannot be set up: URLError"),
        ({"crop_ratio": 0}, "crop_ratio 0 pads by 8 px"),
        ({"crop_ratio": 0, "rs_loader": "batched"}, "crop_ratio 0 pads by 8 px"),
        ({"synthetic": [{"source": "npz:nowhere.npz"}]}, "nowhere.npz"),
        ({"synthetic_ratio": 0.5}, "synthetic_count or synthetic_ratio"),
        ({"synthetic_count": 100000}, "300"),
        ({"rs_base": "mixmatch", "algorithm": "rsmatch"}, "rs_base: mixmatch"),
        ({"num_train_iter": 13}, "must be divisible by epoch"),
        ({"uratio": 1000000}, "uratio takes a number of at least 1 and at most 1000"),
        ({"batch_size": 10**9}, "batch_size takes a number of at least 1 and at most 65536"),
        ({"batch_size": 60000, "uratio": 7}, "batch_size x uratio is 420,000 images a step"),
        ({"start_from": "gone.pth"}, "no checkpoint at gone.pth"),
        ({"imb_algorithm": "abcd"}, "abc"),
        ({"plugins": ["no_such_module"]}, "no_such_module"),
        ({"rs_detector": "magic", "algorithm": "rsmatch"}, "rs_detector"),
    ],
)
def test_invalid_input_raises_one_line_and_writes_nothing(
    change: dict[str, Any], message: str, tiny: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        train({**tiny, **change}, note=silent)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(tiny["save_dir"]).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_cuda_without_a_gpu_is_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        train({**tiny, "device": "cuda"}, note=silent)


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train({**tiny, "save_name": "whole"}, note=silent)
    interrupted_at(tiny, 9, monkeypatch)
    latest = Path(tiny["save_dir"]) / "run" / "latest_model.pth"
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    notes: list[str] = []
    result = train(tiny, note=notes.append)
    assert any("resuming from the previous checkpoint" in line for line in notes)
    assert any("after step 6 of 12" in line for line in notes)
    assert result["accuracy"] == whole["accuracy"]
    assert checkpoint.read(latest.with_name("previous_model.pth"))["it"] == 6, "not the damaged one"
    assert latest.with_name("damaged_model.pth").read_bytes() == content


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_invalid_max_minutes_are_refused(minutes: float, tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="max-minutes takes a number of at least 0"):
        train(tiny, max_minutes=minutes, note=silent)
    assert not Path(tiny["save_dir"]).exists()


def test_a_pool_with_changed_images_is_refused(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queue, order and split are indices into the pool; a checkpoint contains no images."""
    with np.load(tiny["synthetic"][0]["source"].removeprefix("npz:")) as blends:
        images, labels = blends["image"], blends["label"]
    np.savez(tmp_path / "mine.npz", image=images, label=labels)
    config = {**tiny, "synthetic": [{"source": f"npz:{tmp_path / 'mine.npz'}"}]}
    interrupted_at(config, 3, monkeypatch)
    folder = Path(tiny["save_dir"]) / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = images.copy()
    changed[:, 0, 0] ^= 1
    np.savez(tmp_path / "mine.npz", image=changed, label=labels)
    with pytest.raises(UserError, match="the unlabeled images are not those with which the run started"):
        train(config, note=silent)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    np.savez(tmp_path / "mine.npz", image=images, label=labels)
    assert train(config, note=silent)["iterations"] == 12


def test_an_imbalanced_algorithm_on_top_of_another(tiny: dict[str, Any]) -> None:
    for algorithm in ("fixmatch", "rsmatch"):
        config = {**tiny, "algorithm": algorithm, "imb_algorithm": "abc", "save_name": algorithm}
        assert 0 <= train(config, note=silent)["accuracy"]["last"] <= 1


def test_a_run_that_trains_the_generator_equals_one_that_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training a generator takes global random numbers, which must not reach the network's first weights."""
    from usb_rsmatch.usb.config import resolve

    monkeypatch.setenv("USB_RSMATCH_CACHE", str(tmp_path / "cache"))
    built = []
    for _ in range(2):
        args, _ = resolve(
            {
                "algorithm": "fixmatch",
                "net": "small_wrn_16_2",
                "dataset": "digits",
                "num_labels": 20,
                "synthetic": [{"source": "flow:", "steps": 3, "sampler_steps": 2}],
                "synthetic_count": 10,
                "save_dir": str(tmp_path),
            }
        )
        args.device = "cpu"
        built.append({name: t.clone() for name, t in build(args).model.state_dict().items()})
    assert (tmp_path / "cache").is_dir()
    assert_same(*built)
