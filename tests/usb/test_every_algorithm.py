"""Every image algorithm trains on one hybrid pool; a stopped and resumed run ends with the same weights."""

from __future__ import annotations

import inspect
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from semilearn import get_net_builder
from semilearn.algorithms.crmatch import crmatch
from semilearn.core.utils import ALGORITHMS, IMB_ALGORITHMS

from usb_rsmatch.errors import Interrupted, UserError
from usb_rsmatch.usb import compat, training
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.crmatch_rotation import RotatedBatches

TEXT = {"multimatch"}  # in USB's HEAD; it concatenates the hidden states of a language model
OPEN_SET = ["openmatch", "iomatch", "scomatch", "uasd"]
# USB's imbalanced algorithms that cannot train on a pool, and a part of the error message.
NOT_ON_A_POOL = {
    "crest": "cannot be set up",  # rebuilds its labelled set for each generation, from USB's own data sets only
    "crest+": "cannot be set up",
    "cossl": "non-empty list",  # oversamples rare classes: needs an imbalanced labelled set
}
STEPS, STOP = 6, 4


@pytest.fixture
def short(tiny: dict[str, Any]) -> dict[str, Any]:
    return {**tiny, "num_train_iter": STEPS, "epoch": 2, "num_eval_iter": STEPS, "num_wu_iter": 2}


def train(config: dict[str, Any]) -> dict[str, Any]:
    return training.train(config, note=lambda line: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "latest_model.pth", weights_only=True)
    return {f"{part}.{name}": t for part in ("model", "ema_model") for name, t in content[part].items()}


def assert_stopping_changes_nothing(config: dict[str, Any], stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(config["save_dir"])
    whole = train({**config, "save_name": "whole"})
    left = iter([False] * (stop - 1) + [True])
    with monkeypatch.context() as patch:
        patch.setattr(training.StopBetweenSteps, "__call__", lambda self: next(left))
        with pytest.raises(Interrupted):
            train({**config, "save_name": "stopped"})
    again = train({**config, "save_name": "stopped"})
    first, second = weights(root / "whole"), weights(root / "stopped")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert again["accuracy"] == whole["accuracy"] and again["detection"] == whole["detection"]


@pytest.mark.parametrize("loader", ["pil", "batched"])
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS.keys()) - TEXT))
def test_a_stopped_run_resumes_to_the_same_weights(
    algorithm: str, loader: str, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_stopping_changes_nothing({**short, "algorithm": algorithm, "rs_loader": loader}, STOP, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("loader", ["pil", "batched"])
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS.keys()) - TEXT))
def test_resumes_from_any_step(
    algorithm: str, loader: str, fast: bool, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**short, "algorithm": algorithm, "rs_loader": loader, "rs_fast": fast}
    for stop in range(1, STEPS):
        root = f"{short['save_dir']}/{stop}"
        assert_stopping_changes_nothing({**config, "save_dir": root}, stop, monkeypatch)


@pytest.mark.parametrize("algorithm", sorted(set(IMB_ALGORITHMS.keys()) - set(NOT_ON_A_POOL)))
def test_imbalanced_algorithm_resumes_to_the_same_weights(
    algorithm: str, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**short, "imb_algorithm": algorithm, "rs_loader": "batched"}
    assert_stopping_changes_nothing(config, STOP, monkeypatch)


@pytest.mark.parametrize("algorithm", sorted(NOT_ON_A_POOL))
def test_unsupported_imbalanced_algorithm_raises_an_error(algorithm: str, short: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=NOT_ON_A_POOL[algorithm]):
        train({**short, "imb_algorithm": algorithm, "rs_loader": "batched"})


@pytest.mark.parametrize("imbalanced", ["saw", "debiaspl"])
def test_an_imbalanced_algorithm_that_rsmatch_cannot_carry_is_named(imbalanced: str, short: dict[str, Any]) -> None:
    """Both replace the loss or the mask of their core: the base rule is not at fault."""
    with pytest.raises(UserError, match=f"imb_algorithm: {imbalanced} replaces parts that rsmatch needs") as caught:
        train({**short, "algorithm": "rsmatch", "imb_algorithm": imbalanced, "rs_loader": "batched"})
    assert "rs_base" not in str(caught.value)
    assert not Path(short["save_dir"]).exists()


@pytest.mark.parametrize("algorithm", OPEN_SET)
def test_open_set_algorithm_reports_its_outlier_score_as_a_detector(algorithm: str, short: dict[str, Any]) -> None:
    detection = train({**short, "algorithm": algorithm, "rs_loader": "batched"})["detection"]
    assert detection is not None and 0 < detection["auroc"] < 1 and detection["by_generator"].keys() == {"blend"}


def test_uasd_resumes_with_a_threshold_from_the_validation_set(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**short, "algorithm": "uasd", "validation_count": 50, "rs_loader": "batched", "uasd_start": 0.0}
    assert_stopping_changes_nothing(config, STOP, monkeypatch)


class Recorded(list[dict[str, Any]]):
    """Batches of a loader, with the attribute that USB's training loops read."""

    sampler = None


# fixed defects ----------------------------------------------------------------------------------------------------


def one_step(name: str, tiny: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], Any]:
    """The log of the first step, and the algorithm."""
    args, _ = resolve({**tiny, "algorithm": name, **changes})
    args.device = "cpu"
    algorithm = training.build(args)
    with compat.cuda_calls_stay_on_cpu():
        algorithm.model.train()
        algorithm.call_hook("before_run")
        lb, ulb = next(iter(algorithm.loader_dict["train_lb"])), next(iter(algorithm.loader_dict["train_ulb"]))
        return algorithm.train_step(**algorithm.process_batch(**lb, **ulb))[1], algorithm


def test_mean_teacher_compares_student_and_teacher(tiny: dict[str, Any]) -> None:
    """Without the fix, USB's HEAD compares the teacher with itself, and the loss is always 0."""
    log_dict, _ = one_step("meanteacher", tiny)
    assert log_dict["train/unsup_loss"] > 0


def test_a_method_is_rewritten_only_if_every_line_is_found() -> None:
    class Defect:
        def value(self) -> int:
            return 1

    replaced = compat._rewrite(Defect, "value", {"return 1": "return 2", "no such line": ""})
    assert not replaced and Defect().value() == 1
    assert compat._rewrite(Defect, "value", {"return 1": "return 2"}) and Defect().value() == 2


@pytest.mark.parametrize(("size", "is_usbs"), [(8, False), (32, True)])
def test_crmatch_layer_matches_the_feature_map_and_is_usbs_at_32_pixels(size: int, is_usbs: bool) -> None:
    base = get_net_builder("small_wrn_10_1", False)(num_classes=10)
    net = crmatch.CRMatch_Net(base, Namespace(net="small_wrn_10_1", dataset="digits", img_size=size))
    assert net(torch.zeros(2, 3, size, size))["logits_ds"].shape == (2, base.num_features)
    assert (net.ds_classifier.in_features == 64 * base.num_features) is is_usbs
    assert base.training


@pytest.mark.parametrize("loader", ["pil", "batched"])
def test_crmatch_rotations_depend_only_on_the_step(loader: str, tiny: dict[str, Any]) -> None:
    _, algorithm = one_step("supervised", tiny, rs_loader=loader)
    step = 3
    batches = RotatedBatches(algorithm.dataset_dict["train_ulb"], 4, lambda: step)
    *rotated, labels = next(batches)
    for quarters, views in enumerate(rotated):  # CRMatch's own function, for one image
        expected = torch.stack([crmatch.rotate_img(image, 90 * quarters) for image in rotated[0]])
        assert torch.equal(views, expected)
    assert labels.tolist() == [[0, 1, 2, 3]] * 4
    assert all(torch.equal(a, b) for a, b in zip(rotated, next(batches), strict=False))
    step = 4
    assert not torch.equal(rotated[0], next(batches)[0])


def run_loop(algorithm: Any) -> list[float]:
    """Losses of every step of the algorithm's own training loop, including its warm-up if it has one."""
    losses: list[float] = []
    step = algorithm.train_step

    def recorded(**batch: Any) -> Any:
        out_dict, log_dict = step(**batch)
        losses.append(float(out_dict["loss"].detach()))
        return out_dict, log_dict

    recorded.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    algorithm.train_step = recorded
    if hasattr(algorithm, "warmup"):
        algorithm.warmup()
    algorithm.train()
    return losses


@pytest.mark.parametrize("name", ["crmatch", "dash"])
def test_losses_equal_those_of_semilearns_own_loop(name: str, tiny: dict[str, Any]) -> None:
    """The two algorithms with further loaders or steps: CRMatch's rotations and Dash's warm-up, on the same batches."""
    args, _ = resolve({**tiny, "algorithm": name, "epoch": 1, "num_wu_iter": 2})
    args.device = "cpu"
    ours = training.build(args)
    recorded: dict[str, Any] = {key: Recorded(ours.loader_dict[key]) for key in ("train_lb", "train_ulb", "eval")}
    if name == "crmatch":
        for ours.it in range(12):
            recorded.setdefault("train_ulb_rot", []).append(next(ours.loader_dict["train_ulb_rot"]))
        ours.it = 0
        recorded["train_ulb_rot_iter"] = iter(recorded["train_ulb_rot"])
    losses = run_loop(ours)

    torch.manual_seed(args.seed)
    random.seed(args.seed)
    np.random.seed(args.seed)
    with compat.cuda_calls_stay_on_cpu():
        unmodified = ALGORITHMS[name].__new__(ALGORITHMS[name])
        unmodified.set_dataset = lambda: ours.dataset_dict
        unmodified.set_data_loader = lambda: recorded
        unmodified.__init__(args, get_net_builder(args.net, False))
        theirs = run_loop(unmodified)
    assert len(losses) == 12 and losses == theirs


def test_dash_warms_up_for_num_wu_iter_steps(tiny: dict[str, Any]) -> None:
    """Also if that is more than the training steps; the warm-up's loss sets the first threshold."""
    args, _ = resolve({**tiny, "algorithm": "dash", "num_wu_iter": 18, "rs_loader": "batched"})
    args.device = "cpu"
    algorithm = training.build(args)
    updates = algorithm.hooks_dict["ParamUpdateHook"]
    count, after = [0], updates.after_train_step

    def counted(owner: Any) -> None:
        count[0] += 1
        after(owner)

    updates.after_train_step = counted
    algorithm.warmup()
    assert count[0] == 18 and algorithm.it == 0
    algorithm.train()
    assert count[0] == 18 + 12
    assert algorithm.hooks_dict["MaskingHook"].rho_init == algorithm.rho_init > 0


@pytest.mark.parametrize("name", ["rsmatch", "openmatch", "iomatch", "scomatch", "uasd"])
def test_a_detector_is_measured_after_the_ema_update_of_its_step(name: str, tiny: dict[str, Any]) -> None:
    args, _ = resolve({**tiny, "algorithm": name})
    args.device = "cpu"
    hooks = list(training.build(args).hooks_dict)
    measured = "SyntheticDetectionHook" if name == "rsmatch" else "OutlierHook"
    places = [hooks.index(hook) for hook in ("ParamUpdateHook", "EMAHook", measured, "CheckpointHook")]
    assert places == sorted(places)


def test_crmatch_accepts_channels_last_feature_maps(short: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**short, "algorithm": "crmatch", "rs_loader": "batched", "rs_fast": True}
    assert_stopping_changes_nothing(config, STOP, monkeypatch)
