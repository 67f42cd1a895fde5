"""Networks: RSMatch's heads on any backbone of USB, and small WideResNets for a CPU."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from semilearn import nets
from semilearn.core.algorithmbase import AlgorithmBase
from semilearn.nets.wrn.wrn import WideResNet
from torch import Tensor, nn

from usb_rsmatch.algorithms.distributed_batchnorm import restore_split_batchnorm
from usb_rsmatch.algorithms.split_batchnorm import Group, use_split_batchnorm
from usb_rsmatch.distributed import average_tensors


class BackboneWithHeads(nn.Module):
    """A wrapper of a USB backbone; modules that a subclass adds join the optimiser, EMA and checkpoint.

    Calls are forwarded to the backbone; so are `group_matcher` (layer-wise decay) and `no_weight_decay`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features: int = backbone.num_features  # type: ignore[assignment]

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """The backbone's own output: `logits` of the main head [B, K] and `feat` [B, F]."""
        return self.backbone(x, **kwargs)

    def extract(self, x: Tensor) -> Tensor:
        return self.backbone.extract(x)  # type: ignore[operator]

    def group_matcher(self, coarse: bool = False, prefix: str = "") -> Any:
        return self.backbone.group_matcher(coarse, prefix=f"{prefix}backbone.")  # type: ignore[operator]

    def no_weight_decay(self) -> list[str]:
        names: Any = getattr(self.backbone, "no_weight_decay", list)
        return [f"backbone.{name}" for name in names()]


class HeadsOnBackbone(AlgorithmBase, ABC):
    """An algorithm whose model and averaged model are `wrap(backbone)`.

    The heads' initial weights have a random generator of their own, so that they change no other random number.
    """

    @abstractmethod
    def wrap(self, backbone: Any) -> BackboneWithHeads:
        """The backbone with the algorithm's heads."""

    def _wrapped(self, backbone: Any) -> BackboneWithHeads:
        with torch.random.fork_rng(devices=[]):
            return self.wrap(backbone)

    def set_model(self) -> BackboneWithHeads:
        return self._wrapped(super().set_model())

    def set_ema_model(self) -> BackboneWithHeads:
        ema_model = self._wrapped(self.net_builder(num_classes=self.num_classes))
        ema_model.load_state_dict(self.model.state_dict())
        return ema_model


class RSNet(BackboneWithHeads):
    """A backbone with its main head, a dummy head, and a detector.

    The dummy head learns from images identified as synthetic and is not used at test (source: third-party summary of
    arXiv 2405.16930; its form, one linear layer on the pooled features, is our choice). The detector is held here so
    that it joins optimiser, EMA and checkpoint.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, detector: nn.Module | None, split: bool = False) -> None:
        super().__init__(backbone)
        self.group = Group()
        self.ddp = False  # whether DistributedDataParallel averages the backbone's gradients
        self._parts: tuple[Tensor, ...] | None = None
        self.split_norms = use_split_batchnorm(backbone, self.group) if split else 0
        self.dummy_head = nn.Linear(self.num_features, num_classes)
        nn.init.xavier_normal_(self.dummy_head.weight)
        nn.init.zeros_(self.dummy_head.bias)
        self.detector = detector
        # The step calls these heads outside of `forward`. DistributedDataParallel would take them for unused, and then
        # refuse their gradients: it leaves them to us.
        heads = [name for name, _ in self.named_parameters() if not name.startswith("backbone.")]
        self._ddp_params_and_buffers_to_ignore = heads
        for name, weight in self.named_parameters():
            if name in heads:
                weight.register_post_accumulate_grad_hook(self._average_gradient)

    def _average_gradient(self, weight: Tensor) -> None:
        """Average a head's gradient over the processes of DistributedDataParallel."""
        if self.ddp and weight.grad is not None:
            average_tensors([weight.grad])

    @contextlib.contextmanager
    def split_statistics(self, x_lb: Tensor, x_ulb_w: Tensor, x_ulb_s: Tensor, synthetic: Tensor) -> Iterator[None]:
        """A context in which images with `synthetic` float [uB] = 1 have BatchNorm statistics of their own."""
        self._parts = x_lb, x_ulb_w, x_ulb_s, synthetic
        try:
            yield
        finally:
            self._parts = None

    def _second_group(self, x: Tensor) -> Tensor | None:
        """Which images of a batch have BatchNorm statistics of their own, float [B]; None for labelled images only."""
        if self._parts is None:
            return None
        x_lb, x_ulb_w, x_ulb_s, synthetic = self._parts
        if x is x_ulb_w or x is x_ulb_s:
            return synthetic
        if len(x) == len(x_lb) + 2 * len(synthetic):  # USB's joint forward pass, in this order
            return torch.cat([synthetic.new_zeros(len(x_lb)), synthetic, synthetic])
        return None

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        second = self._second_group(x)
        if second is None:
            return super().forward(x, **kwargs)
        restore_split_batchnorm(self.backbone, self.group)
        with self.group.through(x, second) as (batch, places):
            out = super().forward(batch, **kwargs)
        return out if places is None else {name: value[places] for name, value in out.items()}


def _small_wrn(depth: int, width: int) -> Any:
    """A builder with USB's signature for a WideResNet of `depth` = 6 n + 4 layers and `width` times 16 channels."""

    def build(pretrained: bool = False, pretrained_path: str | None = None, **kwargs: Any) -> nn.Module:
        model = WideResNet(first_stride=1, depth=depth, widen_factor=width, **kwargs)
        # USB averages BatchNorm statistics over about a thousand steps, which short runs on a CPU do not have.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01
        if pretrained:
            from semilearn.nets.utils import load_checkpoint

            model = load_checkpoint(model, pretrained_path)
        return model

    build.__name__ = f"small_wrn_{depth}_{width}"
    build.__doc__ = f"WideResNet-{depth}-{width} for a CPU, any input of 8 px and more (Zagoruyko & Komodakis 2016)."
    return build


SMALL_NETS = {f"small_wrn_{depth}_{width}": (depth, width) for depth in (10, 16) for width in (1, 2, 4)}


def register_networks() -> None:
    """Add the small networks to `semilearn.nets`, where `get_net_builder` looks names up."""
    for name, (depth, width) in SMALL_NETS.items():
        if not hasattr(nets, name):
            setattr(nets, name, _small_wrn(depth, width))
