"""The detectors: residuals against independent references, cost, scores free of the batch, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_digits
from torch import nn

from usb_rsmatch.detection import detector as detector_module
from usb_rsmatch.detection.detector import (
    blur_residual,
    build_detector,
    contrast_free_residual,
    in_eight_positions,
    multiply_adds,
    neighbouring_pixel_residual,
    reads_features,
    register_detector,
    training_cost,
)
from usb_rsmatch.errors import UserError

IMAGE_KINDS = ["contrast_free", "residual", "npr"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 9, 11, generator=torch.Generator().manual_seed(0))


def test_blur_residual_is_scipys(images: torch.Tensor) -> None:
    blurred = uniform_filter(images.double().numpy(), size=(1, 1, 3, 3), mode="mirror")
    np.testing.assert_allclose(blur_residual(images).numpy(), images.numpy() - blurred, atol=1e-6)


def test_contrast_free_residual_is_scipys(images: torch.Tensor) -> None:
    def residual(x: np.ndarray) -> np.ndarray:
        return x - uniform_filter(x, size=(1, 1, 3, 3), mode="mirror")

    first = residual(images.double().numpy())
    power = uniform_filter((first**2).mean(1, keepdims=True), size=(1, 1, 5, 5), mode="constant")
    expected = np.concatenate([first, residual(first)], 1) / np.sqrt(power + 0.01)
    np.testing.assert_allclose(contrast_free_residual(images).numpy(), expected, atol=1e-5)


def test_neighbouring_pixel_residual_is_the_papers(images: torch.Tensor) -> None:
    even = images[..., :8, :10]
    small = F.interpolate(even, scale_factor=0.5, mode="nearest")
    expected = even - F.interpolate(small, scale_factor=2.0, mode="nearest")
    assert torch.equal(neighbouring_pixel_residual(even), expected)


def test_neighbouring_pixel_residual_of_odd_sizes(images: torch.Tensor) -> None:
    residual = neighbouring_pixel_residual(images)
    assert residual.shape == images.shape
    assert torch.equal(residual[0, 0, 3, 7], images[0, 0, 3, 7] - images[0, 0, 2, 6])
    assert residual[..., ::2, ::2].abs().max() == 0


def test_eight_positions_are_those_of_a_square() -> None:
    image = torch.arange(18.0).view(1, 2, 3, 3)
    assert in_eight_positions(image[:0], np.arange(0)).shape == (0, 2, 3, 3)
    turned = in_eight_positions(image.expand(9, -1, -1, -1), np.arange(5, 14))
    quarter_turns = [image[0].rot90(k, (1, 2)) for k in range(4)]
    all_eight = [*quarter_turns, *(turn.flip(2) for turn in quarter_turns)]
    found = [[k for k, one in enumerate(all_eight) if torch.equal(one, row)] for row in turned]
    assert {place for places in found[:8] for place in places} == set(range(8)) and found[8] == found[0]
    assert torch.equal(turned[3], image[0])  # place 8


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("shape", [(8, 8), (9, 13), (28, 28), (32, 32), (64, 48)])
def test_one_logit_an_image_that_ignores_constant_shifts(kind: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    detector = build_detector(kind, 128)
    x = torch.randn(5, 3, *shape)
    logits = detector(x)
    assert logits.shape == (5,) and logits.std() > 0
    torch.testing.assert_close(detector(x + 0.7), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [*IMAGE_KINDS, "feature"])
def test_in_evaluation_a_logit_depends_on_its_image_alone(kind: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(kind, 24).eval()
    x = torch.randn(6, 24) if reads_features(detector) else torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(detector(x)[:2], detector(x[:2]))


def test_feature_detector_sends_gradient_to_its_input() -> None:
    detector = build_detector("feature", 24)
    assert reads_features(detector) and not reads_features(build_detector("residual", 24))
    feat = torch.randn(3, 24, requires_grad=True)
    detector(feat).sum().backward()
    assert feat.grad is not None and feat.grad.abs().sum() > 0


def test_multiply_adds_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5)).train()
    assert multiply_adds(net, (3, 8, 8)) == 4 * 4 * 8 * 3 * 9 + 8 * 16 * 5
    assert multiply_adds(nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6)) == 6 * 6 * 8 * 9
    assert net.training and all(m.training for m in net)
    assert not net[0]._forward_hooks


def test_detectors_are_light_beside_wide_resnet_28_2() -> None:
    from semilearn.nets import wrn_28_2

    backbone = wrn_28_2(num_classes=10)
    budget = 0.05 * multiply_adds(backbone, (3, 32, 32))
    for kind in IMAGE_KINDS:
        cost = multiply_adds(build_detector(kind, backbone.num_features), (3, 32, 32))
        print(f"{kind}: {cost / 1e6:.2f} M multiply-adds, {cost / budget * 5:.2f} % of WRN-28-2")
        assert 0 < cost <= budget
    assert multiply_adds(build_detector("feature", backbone.num_features), (backbone.num_features,)) <= budget


def test_unknown_kind_and_taken_name_are_told() -> None:
    with pytest.raises(UserError, match=r"unknown detector 'fourier'; known are .*residual"):
        build_detector("fourier", 128)
    with pytest.raises(UserError, match="registered already"):
        register_detector("residual", lambda num_features, width: nn.Identity())


def test_a_users_detector_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_module, "_DETECTORS", dict(detector_module._DETECTORS))

    def builder(num_features: int, width: int) -> nn.Module:
        return nn.Linear(num_features, width)

    register_detector("mine", builder)
    register_detector("mine", builder)  # importing a plugin twice is no collision
    built = build_detector("mine", 7, width=3)
    assert isinstance(built, nn.Linear) and built.weight.shape == (3, 7)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_learns_to_tell_blurred_digits(kind: str) -> None:
    torch.manual_seed(0)
    digits = torch.from_numpy(load_digits().images[:400].astype(np.float32) / 8 - 1)
    real = digits[:, None].expand(-1, 3, -1, -1)
    fake = F.avg_pool2d(F.pad(real, (1, 0, 1, 0), mode="reflect"), 2, stride=1)
    detector = build_detector(kind, 0)
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    for step in range(60):
        chosen = torch.arange(32) + (step * 32) % 192
        logits = detector(torch.cat([real[chosen], fake[chosen]]))
        loss = F.binary_cross_entropy_with_logits(logits, torch.arange(64).ge(32).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    detector.eval()
    with torch.no_grad():
        ahead = detector(fake[224:])[:, None] > detector(real[224:])[None]
    assert ahead.float().mean() > 0.9


def test_training_cost_counts_what_the_backward_pass_keeps_and_changes_nothing() -> None:
    """Two linear layers and a ReLU: the input of each layer with weights, and the ReLU's output, once."""
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)).train()
    seconds, kept = training_cost(network, (10,), images=4)
    activations, weights = 4 * (10 + 20), 10 * 20 + 20 * 5
    assert seconds > 0 and kept == 4 * (activations + weights)
    assert network.training and all(weight.grad is None for weight in network.parameters())
    normalised = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in normalised.state_dict().items()}
    small, large = (training_cost(normalised, (3, size, size))[1] for size in (16, 32))
    assert 3.5 < large / small < 4.6
    assert all(torch.equal(tensor, before[name]) for name, tensor in normalised.state_dict().items())
