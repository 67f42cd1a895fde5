"""Any network of timm as a USB backbone: features and head, input size and normalisation, groups for layer decay."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.algorithms.pretrained_weights import load_weights, read_weights, without_prefix
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import nearest

PREFIX = "timm:"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class NetworkInput:
    """What a network takes: square images of `size` px, enlarged by `interpolation`, x scale + shift per channel.

    `scale` and `shift` turn the pool's normalisation into that of the pretrained weights.
    """

    size: int
    interpolation: str = "bicubic"
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)

    @classmethod
    def renormalised(
        cls,
        size: int,
        interpolation: str,
        pool: tuple[Sequence[float], Sequence[float]],
        network: tuple[Sequence[float], Sequence[float]],
    ) -> NetworkInput:
        """From images normalised by the pool's (mean, std), of 1 or 3 channels, to the network's (mean, std)."""
        (mean, std), (wanted_mean, wanted_std) = pool, network
        if len(mean) == 1:
            mean, std = list(mean) * 3, list(std) * 3
        scale = tuple(s / wanted for s, wanted in zip(std, wanted_std, strict=True))
        shift = tuple((m - w) / s for m, w, s in zip(mean, wanted_mean, wanted_std, strict=True))
        return cls(size, interpolation if interpolation in INTERPOLATIONS else "bicubic", scale, shift)


class TimmBackbone(nn.Module):
    """A timm network with USB's interface: `only_feat`, `only_fc`, `extract`, `group_matcher`, `no_weight_decay`.

    Raises UserError for a network whose features and classifier cannot be separated.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, taken: NetworkInput) -> None:
        super().__init__()
        self.model, self.input = model, taken
        for name, values in (("scale", taken.scale), ("shift", taken.shift)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.changes_values = taken.scale != (1.0, 1.0, 1.0) or taken.shift != (0.0, 0.0, 0.0)
        self.num_features = self._separate()

    @torch.no_grad()
    def _separate(self) -> int:
        """The number of features; checks that the classifier of the features gives the network's own logits."""
        was_training = self.training
        self.eval()
        image = torch.zeros(1, 3, self.input.size, self.input.size)
        try:
            feat = self.model.forward_head(self.model.forward_features(image), pre_logits=True)  # type: ignore[operator]
            logits = self.classifier(feat)
            fits = feat.ndim == 2 and torch.allclose(logits, self.model(image), atol=1e-4)
        except (AttributeError, TypeError, NotImplementedError):
            fits = False
        self.train(was_training)
        if not fits:
            raise UserError(
                f"{type(self.model).__name__} of timm has no single linear head on its features: take another"
            )
        return int(feat.shape[1])

    @property
    def classifier(self) -> nn.Module:
        return self.model.get_classifier()  # type: ignore[operator]

    def prepare(self, x: Tensor) -> Tensor:
        """Images float [B, 3, S, S], normalised as the pool's, at the network's size and normalisation."""
        if x.shape[-1] != self.input.size:
            smooth = x.shape[-1] > self.input.size and self.input.interpolation != "nearest"
            corners = None if self.input.interpolation == "nearest" else False
            size = (self.input.size, self.input.size)
            x = F.interpolate(x, size, mode=self.input.interpolation, align_corners=corners, antialias=smooth)
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype)) if self.changes_values else x

    def extract(self, x: Tensor) -> Tensor:
        """The network's last feature map or tokens."""
        return self.model.forward_features(self.prepare(x))  # type: ignore[operator]

    def forward(self, x: Tensor, only_fc: bool = False, only_feat: bool = False, **_: Any) -> Any:
        """`logits` [B, K] and `feat` [B, F] of images [B, 3, S, S]; or one of them, with `only_fc` of features."""
        if only_fc:
            return self.classifier(x)
        feat = self.model.forward_head(self.extract(x), pre_logits=True)  # type: ignore[operator]
        return feat if only_feat else {"logits": self.classifier(feat), "feat": feat}

    def head_names(self) -> list[str]:
        """The prefixes of the classifier's weights, as names of the timm network."""
        return [name for name, module in self.model.named_modules() if module is self.classifier]

    def group_matcher(self, coarse: bool = False, prefix: str = "") -> Callable[[str], tuple[float, ...]]:
        """The layer of a weight, by its name with `prefix`, for layer-wise decay; the head and others are the last."""
        from timm.models import group_parameters

        layers = group_parameters(self.model, self.model.group_matcher(coarse=coarse), reverse=True)  # type: ignore[operator]
        heads = tuple(f"{name}." for name in self.head_names())
        last = {layer for name, layer in layers.items() if name.startswith(heads)}
        layers = {name: layer for name, layer in layers.items() if layer not in last}

        def layer(name: str) -> tuple[float, ...]:
            inside = name.removeprefix(prefix).removeprefix(".").removeprefix("model.")
            return (float(layers[inside]),) if inside in layers else (math.inf,)

        return layer

    def no_weight_decay(self) -> list[str]:
        names: Any = getattr(self.model, "no_weight_decay", list)
        return [f"model.{name}" for name in names()]


def timm_config(net: str) -> Any:
    """timm's default configuration of `timm:NAME`; UserError for a name that timm does not know."""
    import timm

    name = net.removeprefix(PREFIX)
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise UserError(f"unknown net {net!r}{nearest(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the network has no weights by this tag
        tags = ", ".join(known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")) or "none"
        raise UserError(f"unknown net {net!r}: the weights of {base} that timm knows are: {tags}") from None
    return config or timm.models.PretrainedCfg(input_size=(3, 224, 224))


def build_timm(net: str, num_classes: int, taken: NetworkInput, options: Mapping[str, Any], hub: bool) -> TimmBackbone:
    """The network `timm:NAME` with a head for `num_classes`, new or, with `hub`, with its weights from timm's hub.

    `options` are arguments of timm's builder. Raises UserError for weights that cannot be fetched.
    """
    import timm

    name, options = net.removeprefix(PREFIX), dict(options)
    if timm_config(net).fixed_input_size:
        options.setdefault("img_size", taken.size)
    try:
        model = timm.create_model(name, pretrained=hub, num_classes=num_classes, **options)
    except Exception as error:
        if not hub:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"the weights of {net} cannot be fetched ({reason}): give a file by pretrain_path") from None
    return TimmBackbone(model, taken)


def load_timm(backbone: TimmBackbone, path: str) -> list[str]:
    """Load a file of weights, with timm's own conversions (position embeddings, original names); returns notes."""
    model = backbone.model
    state = without_prefix(read_weights(path), model.state_dict())
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with contextlib.suppress(KeyError, TypeError, RuntimeError, AttributeError, IndexError):  # named below
            state = convert(state, model)
    return load_weights(model, state, path, backbone.head_names())
