"""The light detector: one logit per image, high if the image looks synthetic."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.errors import UserError

# (num_features of the backbone, width) -> module
Builder = Callable[[int, int], nn.Module]

TRAINED = ("csqueue", "pu", "supervised")  # kinds of `rs_detector` that train a network

_DETECTORS: dict[str, Builder] = {}


def register_detector(name: str, builder: Builder) -> None:
    """Make `rs_detector_input: name` build a detector by `builder(num_features, width)`.

    The module takes normalised images float [B, 3, H, W] and returns logits [B], or takes pooled features
    [B, F] if it has an attribute `reads_features = True`. Raises UserError if the name is taken by
    another builder.
    """
    if _DETECTORS.setdefault(name, builder) is not builder:
        raise UserError(f"detector {name!r} is registered already: choose another name")


def build_detector(kind: str, num_features: int, width: int = 8) -> nn.Module:
    """A new detector of a registered kind; `width` scales its channels. UserError for an unknown kind."""
    if kind not in _DETECTORS:
        known = ", ".join(sorted(_DETECTORS))
        raise UserError(f"rs_detector_input: unknown detector {kind!r}; known are {known}")
    return _DETECTORS[kind](num_features, width)


def reads_features(detector: nn.Module) -> bool:
    """Whether the detector takes the backbone's features rather than images."""
    return bool(getattr(detector, "reads_features", False))


def teaches_backbone(detector: nn.Module) -> bool:
    """Whether the loss of a detector on features also trains the backbone."""
    return bool(getattr(detector, "teaches_backbone", False))


def widened(value: Tensor) -> Tensor:
    """The tensor as float32 if it has fewer bits."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def blur_residual(x: Tensor) -> Tensor:
    """Images [B, C, H, W] minus their 3 x 3 mean: noise and edges, not the object (our choice).

    Computed as sums along columns and rows, which takes a CPU at most half the time of pooling.
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    down = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return torch.sub(x, down[..., :-2] + down[..., 1:-1] + down[..., 2:], alpha=1 / 9)


def contrast_free_residual(x: Tensor) -> Tensor:
    """Residuals of images [B, C, H, W] of first and second order, divided by the local contrast: [B, 2 C, H, W].

    The local contrast is the root mean square of the first residual over channels and 5 x 5 pixels. Without it, strong
    edges of the object outweigh the weak traces between them (our choice; the floor 0.1 is in units of a normalised
    image).
    """
    first = blur_residual(x)
    contrast = F.avg_pool2d(first.square().mean(1, keepdim=True), 5, stride=1, padding=2)
    return torch.cat([first, blur_residual(first)], 1) / (contrast + 0.01).sqrt()


def neighbouring_pixel_residual(x: Tensor) -> Tensor:
    """Images [B, C, H, W] minus their copies reduced and enlarged by a factor of 2, both by nearest neighbour.

    This is each 2 x 2 patch minus its first pixel; it shows the traces of up-sampling layers.
    Source: NPR, Tan et al. (CVPR 2024, arXiv 2312.10461).
    """
    height, width = x.shape[-2:]
    first = x[..., ::2, ::2].repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    return x - first[..., :height, :width]


def in_eight_positions(x: Tensor, places: np.ndarray) -> Tensor:
    """Square images [B, C, S, S], each rotated and mirrored into one of the eight orientations: `places` modulo 8.

    The detector has few real images, and a generator's traces look alike in all eight orientations (our choice). No
    random numbers are drawn: `places` int [B] number the images of a step's batch, which is shuffled.
    """
    source = _eight_positions(x.shape[-1])[places % 8].to(x.device, non_blocking=True)  # [B, S * S]
    return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).view_as(x)


@lru_cache(maxsize=8)
def _eight_positions(size: int) -> Tensor:
    """The source of each pixel of a square in each of the eight orientations, int64 [8, size * size]."""
    square = torch.arange(size * size).view(size, size)
    quarters = [square.rot90(k) for k in range(4)]
    return torch.stack([position.flatten() for position in (*quarters, *(turn.flip(1) for turn in quarters))])


class ResidualDetector(nn.Module):
    """A small CNN on a residual of the image, for images of 8 px and more.

    The first layer has few channels and full resolution, since the traces are fine and local. Its BatchNorm statistics
    are its own, over labelled and mined images together, so that they never affect the classifier's (our choice;
    GroupNorm learnt far less in the same number of steps).
    """

    def __init__(self, residual: Callable[[Tensor], Tensor], width: int, channels: int = 3) -> None:
        """`residual` makes `channels` of an image's three; the layers have `width`, 2 and 4 times as many."""
        super().__init__()
        self.residual = residual
        channels_of = (channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for (before, after), stride in zip(itertools.pairwise(channels_of), (1, 2, 2), strict=True):
            convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels_of[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of normalised images [B, 3, H, W]."""
        return self.head(self.layers(self.residual(x)).mean(dim=(2, 3))).squeeze(1)


class FeatureDetector(nn.Module):
    """A small MLP on the backbone's pooled features; with `teaches_backbone` its gradient flows back into them."""

    reads_features = True

    def __init__(self, num_features: int, width: int, teaches_backbone: bool = False) -> None:
        super().__init__()
        self.teaches_backbone = teaches_backbone
        self.layers = nn.Sequential(
            nn.LayerNorm(num_features),
            nn.Linear(num_features, 4 * width),
            nn.ReLU(inplace=True),
            nn.Linear(4 * width, 1),
        )

    def forward(self, feat: Tensor) -> Tensor:
        """Logits [B] of features [B, num_features]."""
        return self.layers(feat).squeeze(1)


register_detector("residual", lambda num_features, width: ResidualDetector(blur_residual, width))
register_detector(
    "contrast_free", lambda num_features, width: ResidualDetector(contrast_free_residual, 2 * width, channels=6)
)
register_detector("npr", lambda num_features, width: ResidualDetector(neighbouring_pixel_residual, width))
register_detector("feature", FeatureDetector)
register_detector("feature_gradient", lambda num_features, width: FeatureDetector(num_features, width, True))


def multiply_adds(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of the convolutions and linear layers for one input of `input_shape` (without the batch).

    Norms, activations and pooling are not counted, as usual. The module's mode and weights do not change.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight: Tensor = layer.weight  # type: ignore[assignment]
        total += output.numel() * weight[0].numel()  # each output value is a dot product with one filter

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    modes = [(m, m.training) for m in module.modules()]
    parameter = next(module.parameters())
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
    return total


def training_cost(module: nn.Module, input_shape: tuple[int, ...], images: int = 8) -> tuple[float, int]:
    """Seconds of a forward and backward pass of `images` inputs, and bytes that are kept for the backward pass.

    Measured in evaluation mode, after a first pass, so that no statistic and no random generator changes. Weights count
    as kept where the backward pass needs them.
    """
    modes = [(m, m.training) for m in module.modules()]
    parameter = next(module.parameters())
    x = torch.zeros(images, *input_shape, device=parameter.device, dtype=parameter.dtype, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = 0.0
    try:
        module.eval()
        for _ in range(2):
            kept.clear()
            started = time.perf_counter()
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                out = module(x)
                out = out["logits"] if isinstance(out, dict) else out
            torch.autograd.grad(out.sum(), x)  # no gradient is accumulated in the weights
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
    finally:
        for m, mode in modes:
            m.training = mode
    return seconds, sum(kept.values())
