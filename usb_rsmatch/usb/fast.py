"""`rs_fast`: the same training in less time, by mixins for a run's algorithm, hooks and networks.

`rs_fast: true` sets every switch of `Switches`, `rs_fast: [channels_last, foreach_ema]` only these two. For each
switch, where it applies, and how much its results differ from the exact default:

- `bf16`, on processors with AVX512-BF16 or AMX and GPUs from compute capability 8.0: the network's products have 8
  bits of mantissa, so its outputs differ by about 1 % of their norm. Losses, RSMatch's detector, weights, optimiser,
  EMA and every evaluation stay float32.
- `channels_last`, everywhere: a different order of summation in convolutions, 1e-5, relative.
- `fused`, where torch has a fused optimiser for the device: 1e-6, relative. SGD on a CPU is equal bit for bit, except
  for the last numbers of a tensor, which do not fill a vector register.
- `foreach_ema`, everywhere: a different rounding of the same averages, 1e-6, relative; the buffers are equal.
- `counts`, for FlexMatch and algorithms that build on it: equal bit for bit.
- `lazy_logs`, on GPUs: logged values are equal; SoftMatch, which computes with `.item()`, 1e-6, relative.

On a CPU a stopped and resumed run ends with the weights of the uninterrupted one, bit for bit, as without `rs_fast`.
Gradients need no switch (torch sets them to None by default), nor do views that a baseline does not use
(`rs_loader: batched` does not make them). `rs_compile` compiles the network, but not RSMatch's detector.

Data: `rs_loader: pil` keeps its worker processes from epoch to epoch and pins their batches for a GPU. `batched` has no
prefetching thread: on a CPU it would use the cores that the network needs, without measurable gain; on a GPU the pool
is in GPU memory, and views are launched without waiting. A pool on disk is read in the step, through pinned memory; a
step of RSMatch, OpenMatch or SCOMatch then waits for the indices of mined images. USB's own FreeMatch also waits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from semilearn.algorithms.flexmatch.utils import FlexMatchThresholdingHook
from semilearn.core.hooks import EMAHook, Hook
from semilearn.core.utils import EMA
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from usb_rsmatch.device import has_bfloat16
from usb_rsmatch.rsmatch_settings import FAST


@dataclass(frozen=True)
class Switches:
    """The switches of a run; the list above describes each."""

    bf16: bool = False
    channels_last: bool = False
    fused: bool = False
    foreach_ema: bool = False
    counts: bool = False
    lazy_logs: bool = False

    @classmethod
    def chosen(cls, rs_fast: bool | str, device: torch.device) -> Switches:
        """The switches that `rs_fast` names, or all, if `device` supports them; `fused` depends on the optimiser."""
        switches = cls(**{name: rs_fast is True or name in str(rs_fast).split(",") for name in FAST})
        has_bf16, waits = has_bfloat16(device), device.type == "cuda"
        return replace(switches, bf16=switches.bf16 and has_bf16, lazy_logs=switches.lazy_logs and waits)


# network ----------------------------------------------------------------------------------------------------------


def to_float32(value: Any) -> Any:
    """A network's output with every bfloat16 tensor converted to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, dict):
        return {key: to_float32(item) for key, item in value.items()}
    return type(value)(map(to_float32, value)) if type(value) in (list, tuple) else value


class Bfloat16Forward:
    """A mixin for a module: in training its forward pass autocasts to bfloat16 and returns float32.

    Evaluation is unchanged, so that a checkpoint gives the same results everywhere.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward: Callable[..., Any] = super().forward  # type: ignore[misc]
        if not self.training:  # type: ignore[attr-defined]
            return forward(*args, **kwargs)
        device = next(self.parameters()).device.type  # type: ignore[attr-defined]
        with torch.autocast(device, torch.bfloat16):
            return to_float32(forward(*args, **kwargs))


def in_bfloat16(module: nn.Module) -> None:
    """Add `Bfloat16Forward` to the class of one module, once; weights and their names stay."""
    kind = type(module)
    if not issubclass(kind, Bfloat16Forward):
        module.__class__ = type(kind.__name__, (Bfloat16Forward, kind), {"__module__": kind.__module__})


# optimiser --------------------------------------------------------------------------------------------------------


def fuse(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Use torch's fused update if the optimiser has one for this device; returns whether it does."""
    try:
        type(optimizer)([torch.zeros(1, device=device, requires_grad=True)], lr=0.1, fused=True)  # type: ignore[call-arg]
    except (RuntimeError, TypeError):
        return False
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    return True


# averaged weights -------------------------------------------------------------------------------------------------


class ForeachEMA(EMA):
    """USB's EMA in one pass over all parameters, and an `ema_model` that needs no copies.

    `ema_model` shares the storage of the averages and of the model's buffers, which USB copies in every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay)
        self.parameters = list(model.parameters())
        self.tied: nn.Module | None = None

    def update(self) -> None:
        """average <- average + (1 - m) (weight - average)."""
        weights = [parameter.data for parameter in self.parameters]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - self.decay)

    def load(self, ema_model: nn.Module) -> None:
        """Copy the weights of `ema_model`; call `tie` afterwards."""
        super().load(ema_model)
        self.tied = None

    def tie(self, ema_model: nn.Module) -> None:
        """Make `ema_model` share the averages and the model's buffers."""
        self.tied = ema_model
        for name, parameter in ema_model.named_parameters():
            parameter.data = self.shadow[name]
        modules = dict(ema_model.named_modules())
        for name, module in self.model.named_modules():
            modules[name]._buffers.update(module._buffers)


class ForeachEMAHook(EMAHook):
    """USB's EMA hook with `ForeachEMA`."""

    def before_run(self, algorithm: Any) -> None:
        algorithm.ema = ForeachEMA(algorithm.model, algorithm.ema_m)
        algorithm.ema.register()
        if algorithm.resume:
            algorithm.ema.load(algorithm.ema_model)
        algorithm.ema.tie(algorithm.ema_model)

    def after_train_step(self, algorithm: Any) -> None:
        algorithm.ema.update()
        if algorithm.ema.tied is not algorithm.ema_model:  # CReST and CoSSL replace it
            algorithm.ema.tie(algorithm.ema_model)


# FlexMatch --------------------------------------------------------------------------------------------------------


class CountingFlexMatchHook(FlexMatchThresholdingHook):
    """FlexMatch's thresholds by counting on the device; USB counts the whole pool as a Python list in every step."""

    classwise_acc: Tensor
    selected_label: Tensor

    @torch.no_grad()
    def masking(
        self, algorithm: Any, logits_x_ulb: Tensor, idx_ulb: Tensor, softmax_x_ulb: bool = True, *_: Any, **__: Any
    ) -> Tensor:
        """The mask [uB] of logits or probabilities [uB, K]; the confident images' labels are stored.

        USB selects these images, which waits for a GPU to report their number; here the other images' labels are
        written to an extra place after the last.
        """
        device, last = logits_x_ulb.device, len(self.selected_label)
        self.selected_label, self.classwise_acc = self.selected_label.to(device), self.classwise_acc.to(device)
        logits = logits_x_ulb.detach()
        confidence, label = (logits.softmax(-1) if softmax_x_ulb else logits).max(-1)
        learnt = self.classwise_acc[label]
        mask = confidence.ge(algorithm.p_cutoff * (learnt / (2.0 - learnt))).to(confidence.dtype)
        place = torch.where(confidence.ge(algorithm.p_cutoff), idx_ulb, last)
        self.selected_label = torch.cat([self.selected_label, label[:1]]).scatter_(0, place, label)[:last]
        self.update()
        return mask

    @torch.no_grad()
    def update(self, *args: Any, **kwargs: Any) -> None:
        """The share of each class among the pool's selected labels, int64 [N] with -1 for none."""
        counts = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=self.selected_label.device)
        counts.scatter_add_(0, self.selected_label + 1, torch.ones_like(counts[:1]).expand(len(self.selected_label)))
        largest = (counts if self.thresh_warmup else counts[1:]).max()
        shares = (counts[1:].double() / largest).to(self.classwise_acc)
        self.classwise_acc = torch.where(counts.max() < self.ulb_dest_len, shares, self.classwise_acc)


# logged values ----------------------------------------------------------------------------------------------------


class LazyItems(TorchFunctionMode):
    """A context in which `tensor.item()` returns the detached tensor, so that only log lines wait for the GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def with_lazy_items(step: Callable[..., Any]) -> Callable[..., Any]:
    """A training step, with its signature, whose logged values stay tensors."""

    @functools.wraps(step)
    def lazy_step(*args: Any, **kwargs: Any) -> Any:
        with LazyItems():
            return step(*args, **kwargs)

    return lazy_step


# the run ----------------------------------------------------------------------------------------------------------


class FastMixin:
    """The mixin for the class of a run; see the list above."""

    def __init__(self, args: Any, *rest: Any, **kwargs: Any) -> None:
        self.args = args
        self._switches = Switches.chosen(args.rs_fast, self.device)  # type: ignore[attr-defined]
        super().__init__(args, *rest, **kwargs)  # type: ignore[call-arg]
        if self._switches.lazy_logs:
            self.train_step = with_lazy_items(self.train_step)  # type: ignore[has-type]

    def set_model(self) -> nn.Module:
        model: nn.Module = super().set_model()  # type: ignore[misc]
        if self._switches.channels_last:
            model.to(memory_format=torch.channels_last)
        if self._switches.bf16:
            in_bfloat16(model)
        if getattr(self.args, "rs_compile", False):
            model.compile()
        return model

    def set_ema_model(self) -> nn.Module:
        model: nn.Module = super().set_ema_model()  # type: ignore[misc]
        return model.to(memory_format=torch.channels_last) if self._switches.channels_last else model

    def set_optimizer(self) -> Any:
        optimizer, scheduler = super().set_optimizer()  # type: ignore[misc]
        if self._switches.fused:
            fuse(optimizer, self.device)  # type: ignore[attr-defined]
        return optimizer, scheduler

    def set_hooks(self) -> None:
        super().set_hooks()  # type: ignore[misc]
        faster: dict[type[Hook], type[Hook]] = {}
        if self._switches.foreach_ema:
            faster[EMAHook] = ForeachEMAHook
        if self._switches.counts:
            faster[FlexMatchThresholdingHook] = CountingFlexMatchHook
        for hook in self._hooks:  # type: ignore[attr-defined]
            hook.__class__ = faster.get(type(hook), type(hook))  # replaces it, with its state and priority

    def load_checkpoint(self, content: dict[str, Any]) -> None:
        super().load_checkpoint(content)  # type: ignore[misc]
        if self._switches.fused:  # a checkpoint contains the flag of the machine that wrote it
            fuse(self.optimizer, self.device)  # type: ignore[attr-defined]
