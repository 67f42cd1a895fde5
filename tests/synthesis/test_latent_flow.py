"""The latent flow: a transformer in an autoencoder's latents, exact when resumed, with the same command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from usb_rsmatch.autoencoder import build_decoder, build_encoder, open_autoencoder
from usb_rsmatch.cli import main
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.dit import VelocityTransformer
from usb_rsmatch.synthesis.flow import FlowModel, FlowSettings, train_flow
from usb_rsmatch.synthesis.flow_sampler import Sampler
from usb_rsmatch.synthesis.flow_training import channel_statistics
from usb_rsmatch.synthesis.latents import LatentSpace

Digits = tuple[np.ndarray, np.ndarray]
CPU = torch.device("cpu")
SHORT = FlowSettings(steps=6, width=64, depth=2, batch_size=8, sampler_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(build_encoder(4, False).state_dict(), folder / "encoder.pth")
    torch.save(build_decoder(4, False).state_dict(), folder / "decoder.pth")
    return folder


@pytest.fixture(scope="module")
def space(folder: Path) -> LatentSpace:
    return LatentSpace.of(open_autoencoder(str(folder), CPU), 8)


@pytest.fixture(scope="module")
def few(digits: Digits) -> Digits:
    return digits[0][:60], digits[1][:60]


@pytest.mark.parametrize(("side", "patch"), [(4, 1), (16, 1), (32, 2), (28, 2)])
def test_the_transformer_keeps_the_shape_and_starts_at_zero(side: int, patch: int) -> None:
    torch.manual_seed(0)
    network = VelocityTransformer((3, side, side), 5, 64, 2, difficulty=True)
    x, t, labels = torch.randn(2, 3, side, side), torch.rand(2), torch.tensor([0, 5])
    assert network.patch == patch
    assert torch.equal(network(x, t, labels), torch.zeros_like(x))


def test_class_time_difficulty_and_position_all_matter_after_a_few_steps() -> None:
    torch.manual_seed(0)
    network = VelocityTransformer((3, 4, 4), 5, 64, 2, difficulty=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 3, 4, 4)
    base = (torch.tensor([0.3]), torch.tensor([1]), torch.tensor([0.2]))
    out = network(x, *base)
    for place, other in enumerate((torch.tensor([0.9]), torch.tensor([2]), torch.tensor([0.8]))):
        changed = list(base)
        changed[place] = other
        assert not torch.allclose(network(x, *changed), out, atol=1e-4), place
    assert not torch.allclose(network(x.flip(3), *base).flip(3), out, atol=1e-4)


def test_the_space_is_enlarged_and_scaled(space: LatentSpace, few: Digits) -> None:
    assert space.side == 64 and space.shape == (4, 8, 8)
    assert LatentSpace.of(space.autoencoder, 100).side == 104
    latents = space.encode(few[0], CPU)
    assert latents.shape == (60, 4, 8, 8)
    mean, deviation = channel_statistics(latents)
    np.testing.assert_allclose(mean[:, 0, 0], latents.float().numpy().mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(deviation[:, 0, 0], latents.float().numpy().std((0, 2, 3)), rtol=1e-2)
    assert space.decode(latents[:3].float(), 8, 1).shape == (3, 1, 8, 8)


def trained(few: Digits, space: LatentSpace, path: Path | None = None, **more: object) -> FlowModel:
    return train_flow(*few, 10, SHORT, 5, checkpoint=path, device="cpu", latents=space, **more)  # type: ignore[arg-type]


def test_the_loss_falls(few: Digits, space: LatentSpace) -> None:
    settings = replace(SHORT, steps=60, lr=1e-3, batch_size=32)
    losses = train_flow(*few, 10, settings, 0, device="cpu", latents=space).losses
    assert losses[-10:].mean() < 0.8 * losses[:3].mean()


def test_stopped_and_resumed_is_the_same_bit_for_bit(few: Digits, space: LatentSpace, tmp_path: Path) -> None:
    def stop_at_three(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise InterruptedError

    scores = np.linspace(0, 1, 60)
    straight = trained(few, space, difficulty=scores)
    path = tmp_path / "flow.pt"
    with pytest.raises(InterruptedError):
        trained(few, space, path, difficulty=scores, progress=stop_at_three, save_every=0)
    resumed = trained(few, space, path, difficulty=scores)
    loaded = trained(few, space, path, difficulty=scores)  # finished: no image is encoded
    assert straight.latent_scale is not None
    made = []
    for model in (straight, resumed, loaded):
        np.testing.assert_array_equal(model.losses, straight.losses)
        labels = np.arange(4)
        made.append(Sampler(model, SHORT, 0, 4, "cpu")(labels, labels, np.full(4, 0.5)))
    assert made[0].shape == (4, 8, 8, 1) and made[0].tobytes() == made[1].tobytes() == made[2].tobytes()
    with pytest.raises(UserError, match=r"another condition \(difficulty and latents, not latents\)"):
        trained(few, space, path)


def words(out: Path, folder: Path, *more: str) -> list[str]:
    fast = ["--train-steps", "3", "--width", "64", "--depth", "1", "--train-batch-size", "4", "--steps", "1"]
    flow = ["synthesize", "--engine", "flow", "--dataset", "digits", "--part", "train[:40]", "--device", "cpu", *fast]
    cache = str(out.parent / "cache")
    return [*flow, "--cache", cache, "--autoencoder", str(folder), "--count", "20", "--batch-size", "8",
            "--out", str(out), *more]  # fmt: skip


def test_the_command_trains_samples_and_records_the_autoencoder(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(whole, folder)) == 0
    run = json.loads((whole / "synthesis.json").read_text())
    assert run["generator"] == "latent_flow" and run["settings"]["autoencoder"] == "tiny"
    assert run["settings"]["autoencoder_size"] == 64 and run["settings"]["train_depth"] == 1
    for part in ("2/2", "1/2"):
        assert main(words(parts, folder, "--shard", part)) == 0
    images = sorted(whole.rglob("[0-9].png"))
    assert len(images) == 20
    for path in images:
        assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes()


def test_images_may_be_larger_than_those_of_the_pixel_flow(folder: Path, tmp_path: Path) -> None:
    assert main(words(tmp_path / "out", folder, "--size", "96", "--count", "2")) == 0
    with Image.open(tmp_path / "out" / "0" / "0.png") as image:
        assert image.size == (96, 96)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "264"], "8 to 256 px, not 264"),
        (["--autoencoder", "nowhere/at/all"], "--autoencoder nowhere/at/all: is neither a folder"),
        (["--depth", "0"], "depth"),
    ],
)
def test_mistakes_are_told_in_one_line(
    more: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "out", folder, *more)) == 2
    told = [text for text in capsys.readouterr().err.splitlines() if text.startswith("usb-rsmatch: ")]
    assert len(told) == 1 and message in told[0] and not (tmp_path / "out").exists()


def test_depth_needs_an_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["synthesize", "--engine", "flow", "--dataset", "digits", "--count", "2", "--depth", "2"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    assert "--depth is for the latent flow" in capsys.readouterr().err
