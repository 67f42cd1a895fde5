"""Training the generator: it learns, resumes bit for bit, and refuses what it cannot learn from."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.flow import FlowModel, FlowSettings, sample, train_flow
from usb_rsmatch.synthesis.flow_training import model_fingerprint

Digits = tuple[np.ndarray, np.ndarray]
SHORT = FlowSettings(steps=12, width=8, batch_size=16, sampler_steps=2)


def assert_same(a: FlowModel, b: FlowModel) -> None:
    np.testing.assert_array_equal(a.losses, b.losses)
    for which in ("ema", "early"):
        for name, tensor in a.weights[which].items():
            assert torch.equal(tensor, b.weights[which][name]), (which, name)


def test_the_velocity_loss_falls(brief_model: FlowModel) -> None:
    """From that of a network that answers 0 to clearly less; early weights are not the final ones."""
    losses = brief_model.losses
    assert losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert any(
        not torch.equal(tensor, brief_model.weights["early"][name])
        for name, tensor in brief_model.weights["ema"].items()
    )


def test_global_random_state_is_neither_used_nor_changed(digits: Digits) -> None:
    torch.manual_seed(1)
    first = train_flow(*digits, 10, replace(SHORT, steps=2), 0, device="cpu")
    after_first = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after_first)
    assert_same(train_flow(*digits, 10, replace(SHORT, steps=2), 0, device="cpu"), first)


class Stopped(Exception):
    """Stands for an interrupt."""


def test_stopped_and_continued_is_the_same_bit_for_bit(digits: Digits, tmp_path: Path) -> None:
    def stop_at_seven(stage: str, done: int, total: int) -> None:
        if done == 7:
            raise Stopped

    straight = train_flow(*digits, 10, SHORT, seed=5, device="cpu")
    path = tmp_path / "flow.pt"
    with pytest.raises(Stopped):
        train_flow(*digits, 10, SHORT, 5, stop_at_seven, path, device="cpu", save_every=0)
    steps: list[int] = []
    resumed = train_flow(*digits, 10, SHORT, 5, lambda _, done, __: steps.append(done), path, device="cpu")
    assert steps == [8, 9, 10, 11, 12]
    assert_same(resumed, straight)
    loaded = train_flow(*digits, 10, SHORT, 5, lambda _, done, __: steps.append(done), path, device="cpu")
    assert len(steps) == 5  # a finished one is only loaded
    assert_same(loaded, straight)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_met_after_the_step_and_loses_none(
    number: signal.Signals, digits: Digits, tmp_path: Path
) -> None:
    def ask_at_seven(stage: str, done: int, total: int) -> None:
        if done == 7:
            os.kill(os.getpid(), number)

    path = tmp_path / "flow.pt"
    with pytest.raises(KeyboardInterrupt):
        train_flow(*digits, 10, SHORT, 5, ask_at_seven, path, device="cpu")
    steps: list[int] = []
    resumed = train_flow(*digits, 10, SHORT, 5, lambda _, done, __: steps.append(done), path, device="cpu")
    assert steps == [9, 10, 11, 12]
    assert_same(resumed, train_flow(*digits, 10, SHORT, seed=5, device="cpu"))


def test_a_checkpoint_of_other_images_or_a_damaged_one_is_refused(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    train_flow(*digits, 10, replace(SHORT, steps=1), 0, checkpoint=path, device="cpu")
    with pytest.raises(UserError, match="other images or settings"):
        train_flow(*digits, 10, replace(SHORT, steps=1), 1, checkpoint=path, device="cpu")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        train_flow(*digits, 10, replace(SHORT, steps=1), 0, checkpoint=path, device="cpu")


@pytest.mark.parametrize(("height", "width", "channels"), [(9, 9, 3), (28, 28, 1), (32, 24, 3), (64, 64, 3)])
def test_any_size_from_8_to_64_px_grey_or_colour(height: int, width: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, height, width, channels), dtype=np.uint8)
    labels = np.arange(6) % 3
    settings = FlowSettings(steps=2, batch_size=2, width=8, sampler_steps=1, guidance=1.0)
    model = train_flow(images, labels, 3, settings, 0, device="cpu")
    assert np.isfinite(model.losses).all()
    assert sample(model, labels, settings, 0, batch=2, device="cpu").shape == images.shape


def test_what_cannot_be_learnt_from_is_refused(digits: Digits) -> None:
    images, labels = digits
    bad = [
        (images.astype(np.float32), labels, 10, "uint8"),
        (images[:, :4], labels, 10, "8 to 64 px"),
        (images, labels - 1, 10, "class in 0..9"),
        (images, labels, 12, r"none of \[10, 11\]"),
    ]
    for pixels, classes, count, message in bad:
        with pytest.raises(UserError, match=message):
            train_flow(pixels, classes, count, SHORT, 0, device="cpu")


@pytest.mark.parametrize("change", [{"steps": 0}, {"solver": "rk4"}, {"weights": "late"}, {"ema": 1.0}])
def test_settings_out_of_range_are_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        FlowSettings(**change)  # type: ignore[arg-type]


def test_the_fingerprint_tells_models_apart_and_not_samplings(digits: Digits) -> None:
    images, labels = digits
    base = model_fingerprint(images, labels, 10, SHORT, 0)
    assert model_fingerprint(images, labels, 10, replace(SHORT, guidance=4.0, sampler_steps=9), 0) == base
    other_pixel = images.copy()
    other_pixel[0, 0, 0, 0] += 1
    others = [
        model_fingerprint(other_pixel, labels, 10, SHORT, 0),
        model_fingerprint(images, labels[::-1], 10, SHORT, 0),
        model_fingerprint(images, labels, 10, replace(SHORT, steps=13), 0),
        model_fingerprint(images, labels, 10, SHORT, 1),
    ]
    assert len({base, *others}) == 5
