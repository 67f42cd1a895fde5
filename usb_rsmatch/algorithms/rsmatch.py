"""RSMatch on a base rule: images identified as synthetic have their own BatchNorm statistics and train a dummy head
too.

    p     = softmax(h(f(x_w)))            q = argmax p, kept where the base rule's mask m says so
    s     = [sigma(d(x_w)) > threshold]   identified as synthetic (never the ground truth)
    L_ulb = mean(m t CE(h(f(x_s)), q))    the base rule's own loss, with its mask times t
    L_syn = mean(m s CE(g(f(x_s)), q))
    L_det = BCE(d(x_l), 0) + BCE(d(CSQueue sample), 1)
    L     = L_sup + lambda_u L_ulb + lambda_s L_syn + lambda_d L_det

f normalises the images with s = 1 by statistics of their own (`split_batchnorm`). `rs_synthetic_to` selects the heads
that learn from them: `both` (t = 1), `main` only (t = 1, no L_syn), `dummy` only (t = 1 - s), or none (`drop`).

Detector, class-wise queue and dummy head are the paper's (arXiv 2405.16930, as summarised by others); these equations
are ours. The base rule's running statistics (FlexMatch's counts, FreeMatch's thresholds, SoftMatch's Gaussian) include
every image, synthetic or not, as without RSMatch: our choice.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from typing import Any

from semilearn.algorithms.utils import SSL_Argument, str2bool
from semilearn.core.algorithmbase import AlgorithmBase
from semilearn.core.utils import ALGORITHMS
from torch import Tensor, nn

from usb_rsmatch.algorithms.fine_tuning import FixedBatchNorm, is_norm
from usb_rsmatch.algorithms.networks import HeadsOnBackbone, RSNet
from usb_rsmatch.algorithms.timm_backbone import TimmBackbone
from usb_rsmatch.detection.detector import (
    TRAINED,
    build_detector,
    multiply_adds,
    reads_features,
    teaches_backbone,
    training_cost,
    widened,
)
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import Key, is_rsmatch_variant
from usb_rsmatch.rsmatch_settings import RSMATCH_KEYS, RSMatchSettings

# The columns of a batch that the step uses; a base rule may use any subset of them.
BATCH_KEYS = frozenset({"idx_lb", "x_lb", "y_lb", "idx_ulb", "x_ulb_w", "x_ulb_s"})

# USB's imbalanced algorithms that replace the mask or the loss with its targets.
REPLACE_PARTS = ("saw", "debiaspl")


def base_rule(name: str) -> type[AlgorithmBase]:
    """USB's class of a base rule; UserError if RSMatch cannot use it."""
    if name not in ALGORITHMS or is_rsmatch_variant(name):
        raise UserError(f"rs_base: unknown algorithm {name!r}")
    core: type[AlgorithmBase] = ALGORITHMS[name]
    keys = set(inspect.signature(core.train_step).parameters) - {"self"}
    if not keys <= BATCH_KEYS or "x_ulb_s" not in keys:
        raise unfit(name)
    return core


def unfit(name: str, imbalanced: str | None = None) -> UserError:
    """The error for an algorithm that cannot be a base rule: it has no mask to split, or no loss with targets.

    Every base rule that `base_rule` accepts has both, unless an imbalanced algorithm on top replaces them.
    """
    if imbalanced is not None:
        return UserError(f"imb_algorithm: {imbalanced} replaces parts that rsmatch needs; take {name} without rsmatch")
    return UserError(f"rs_base: {name} has no masked pseudo-label loss; take fixmatch, flexmatch, freematch, ...")


class KeepTargets(nn.Module):
    """The base rule's consistency loss; it also stores its targets q for the dummy head."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.targets: Tensor | None = None

    def forward(self, logits: Tensor, targets: Tensor, name: str = "ce", mask: Tensor | None = None) -> Tensor:
        self.targets = targets
        return self.loss(logits, targets, name, mask=mask)


class RSMatch(HeadsOnBackbone):
    """RSMatch (arXiv 2405.16930) on the base rule that `rs_base` names.

    As USB composes an imbalanced algorithm with a core algorithm, creating an instance first creates the class
    `RSMatch[base]`, which inherits the base rule's `train_step`, hooks and arguments.
    """

    def __new__(cls, args: Any, *rest: Any, **kwargs: Any) -> RSMatch:
        if cls.__dict__.get("composed"):
            return object.__new__(cls)
        name = getattr(args, "rs_base", "fixmatch")
        base = base_rule(name)
        for argument in [*RSMatch.get_argument(), *base.get_argument()]:  # USB's parser only adds those of fixmatch
            if not hasattr(args, argument.name.lstrip("-")):
                setattr(args, argument.name.lstrip("-"), argument.default)
        label = f"{cls.__name__}[{name}]"
        composed = type(label, (cls, base), {"composed": True, "__module__": cls.__module__})
        return object.__new__(composed)

    def __init__(self, args: Any, net_builder: Any, tb_log: Any = None, logger: Any = None, **kwargs: Any) -> None:
        self.settings = RSMatchSettings.read(args)
        if getattr(args, "imb_algorithm", None) in REPLACE_PARTS:  # else the first step would raise it
            raise unfit(self.settings.rs_base, args.imb_algorithm)
        self.teaches_main = self.settings.rs_synthetic_to in ("main", "both")
        self.teaches_dummy = self.settings.rs_synthetic_to in ("dummy", "both")
        self.lambda_syn, self.lambda_det = self.settings.rs_lambda_syn, self.settings.rs_lambda_det
        super().__init__(args, net_builder, tb_log, logger, **kwargs)
        self.consistency_loss: KeepTargets = KeepTargets(self.consistency_loss)

    # network and hooks ------------------------------------------------------------------------------------------

    def wrap(self, backbone: Any) -> RSNet:
        needs_detector = self.settings.rs_detector in TRAINED
        detector = build_detector(self.settings.rs_detector_input, backbone.num_features) if needs_detector else None
        return RSNet(backbone, self.num_classes, detector, split=self.settings.rs_norm == "split")

    def set_ema_model(self) -> Any:
        try:
            return super().set_ema_model()
        except RuntimeError:  # the weights belong to another network architecture
            base = self.settings.rs_base
            if self.imbalanced is not None:
                raise unfit(base, self.imbalanced) from None
            raise UserError(f"rs_base: {base} builds a network of its own; take fixmatch, ...") from None

    def set_hooks(self) -> None:
        from usb_rsmatch.detection.hook import SyntheticDetectionHook

        super().set_hooks()
        if "MaskingHook" not in self.hooks_dict:
            raise unfit(self.settings.rs_base, self.imbalanced)
        # HIGH: its state is ready before a checkpoint; after USB's own: it measures this step's averaged weights.
        self.register_hook(SyntheticDetectionHook(self), "SyntheticDetectionHook", "HIGH")

    @property
    def imbalanced(self) -> str | None:
        """The name of the imbalanced algorithm on top, if there is one."""
        name = getattr(self.args, "imb_algorithm", None)
        return None if name in (None, "None") else str(name)

    # what the detection hook uses -------------------------------------------------------------------------------

    @property
    def network(self) -> RSNet:
        """The backbone with its heads, inside any data-parallel or imbalanced wrapper."""
        return next(module for module in self.model.modules() if isinstance(module, RSNet))

    @property
    def detector(self) -> nn.Module:
        assert self.network.detector is not None
        return self.network.detector

    def synthetic_logit(self, x: Tensor) -> Tensor:
        """The detector's logit [B] of normalised images [B, 3, H, W]."""
        return self.detector(self.network(x, only_feat=True) if reads_features(self.detector) else x)

    def synthetic_probability(self, x: Tensor) -> Tensor:
        """The probability of synthetic float [B] of normalised images [B, 3, H, W]."""
        return self.synthetic_logit(x).float().sigmoid()

    def detector_cost(self) -> float | None:
        """The detector's multiply-adds over the backbone's, for one image; None without a detector."""
        detector, image = self.network.detector, (3, self.args.img_size, self.args.img_size)
        if detector is None:
            return None
        seen = (self.network.num_features,) if reads_features(detector) else image
        return multiply_adds(detector, seen) / max(multiply_adds(self.network.backbone, image), 1)

    def detector_note(self) -> str | None:
        """Input size, time and memory of the detector and of a network of timm; None for other networks."""
        detector, backbone, size = self.network.detector, self.network.backbone, self.args.img_size
        if detector is None or not isinstance(backbone, TimmBackbone) or reads_features(detector):
            return None
        (seconds, kept), (whole_seconds, whole_kept) = (training_cost(m, (3, size, size)) for m in (detector, backbone))
        return (
            f"detector: {size} px, {seconds:.3g} s and {kept / 2**20:.3g} MiB for 8 images; "
            f"network: {backbone.input.size} px, {whole_seconds:.3g} s and {whole_kept / 2**20:.3g} MiB"
        )

    def normalisation_note(self) -> str:
        """One line that says how real and synthetic images are normalised in this network."""
        choice, network = self.settings.rs_norm, self.network
        fixed = isinstance(network.backbone, FixedBatchNorm)
        if network.split_norms and not fixed:
            return f"rs_norm: split: {network.split_norms} BatchNorm layers have separate statistics"
        norms = Counter(type(m).__name__.removeprefix("Split") for m in network.backbone.modules() if is_norm(m))
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(norms.items())) or "no normalisation layer"
        lacking = "with trained statistics " if fixed else ""
        why = f" has no effect, since the network has 0 BatchNorm layers {lacking}" if choice == "split" else ""
        return f"rs_norm: {choice}{why.rstrip()}: real and synthetic images are normalised alike ({kinds})"

    def _split_normalisation(
        self, x_lb: Tensor, x_ulb_w: Tensor, x_ulb_s: Tensor
    ) -> contextlib.AbstractContextManager[None]:
        """Before identification starts, the step equals the base rule's bit for bit."""
        if self.settings.rs_norm == "split" and self.hooks_dict["SyntheticDetectionHook"].acts(self):
            return self.network.split_statistics(x_lb, x_ulb_w, x_ulb_s, self.synthetic)
        return contextlib.nullcontext()

    def _refuse_wrapper(self) -> None:
        """UserError where a parallel wrapper of USB's own train.py would change the result in silence."""
        if isinstance(self.model, nn.DataParallel) and len(self.model.device_ids) > 1:
            raise UserError("rsmatch does not run under DataParallel: take one gpu, or multiprocessing_distributed")
        if self.network.ddp and self.settings.rs_detector in TRAINED and teaches_backbone(self.detector):
            raise UserError("rs_detector_input: this one does not run under DistributedDataParallel; take feature")

    # the step ---------------------------------------------------------------------------------------------------

    def train_step(
        self,
        idx_ulb: Tensor,
        x_lb: Tensor,
        y_lb: Tensor,
        x_ulb_w: Tensor,
        x_ulb_s: Tensor,
        idx_lb: Tensor | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; `idx_*` int64 [B], images float32 [B, 3, H, W], `y_lb` int64 [B]."""
        batch = dict(idx_lb=idx_lb, x_lb=x_lb, y_lb=y_lb, idx_ulb=idx_ulb, x_ulb_w=x_ulb_w, x_ulb_s=x_ulb_s)
        self.network.ddp = isinstance(self.model, nn.parallel.DistributedDataParallel)
        self._refuse_wrapper()
        base_step = super().train_step
        self.synthetic = self.call_hook("identify", "SyntheticDetectionHook", x_ulb_w=x_ulb_w, idx_ulb=idx_ulb)  # s
        self.mask: Tensor | None = None  # the base rule's step sets mask and targets
        self.consistency_loss.targets = None
        with self._split_normalisation(x_lb, x_ulb_w, x_ulb_s):
            out_dict, log_dict = base_step(**{key: batch[key] for key in inspect.signature(base_step).parameters})
        if self.mask is None or self.consistency_loss.targets is None:
            raise unfit(self.settings.rs_base, self.imbalanced)

        feat = {name: widened(value) for name, value in out_dict["feat"].items()}  # of half precision with `amp`
        mask, pseudo_label = self.mask, self.consistency_loss.targets
        self.call_hook("observe", "SyntheticDetectionHook", idx_ulb=idx_ulb, pseudo_label=pseudo_label, mask=mask)
        if self.teaches_dummy:
            logits_dummy = self.network.dummy_head(feat["x_ulb_s"])
            syn_loss = self.consistency_loss.loss(logits_dummy, pseudo_label, "ce", mask=mask * self.synthetic)
            out_dict["loss"] = out_dict["loss"] + self.lambda_syn * syn_loss
            log_dict["train/syn_loss"] = syn_loss.detach()
        det_loss = self.call_hook(
            "detection_loss",
            "SyntheticDetectionHook",
            idx_ulb=idx_ulb,
            x_lb=x_lb,
            x_ulb_w=x_ulb_w,
            feat=feat,
            pseudo_label=pseudo_label,
        )
        if det_loss is not None:
            out_dict["loss"] = out_dict["loss"] + self.lambda_det * det_loss
            log_dict["train/det_loss"] = det_loss.detach()
        log_dict["train/synthetic_share"] = self.synthetic.mean()
        log_dict["train/total_loss"] = out_dict["loss"].detach()
        return out_dict, log_dict

    def call_hook(self, fn_name: str, hook_name: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """The base rule calls its MaskingHook by name for m; it receives m t, and m is stored for the dummy head."""
        result = super().call_hook(fn_name, hook_name, *args, **kwargs)
        if hook_name == "MaskingHook" and fn_name == "masking":
            self.mask = result
            return self.for_main(result)
        return result

    def for_main(self, mask: Tensor) -> Tensor:
        """m t float [uB], the part of m for the main head."""
        return mask if self.teaches_main else mask * (1.0 - self.synthetic.to(mask.dtype))

    @staticmethod
    def get_argument() -> list[Any]:
        """RSMatch's own arguments; those of the base rule are added once it is known."""
        kinds = {"int": int, "float": float, "bool": str2bool}

        def kind(key: Key) -> Any:
            return str if key.word or key.parts else kinds.get(key.kind, str)  # words are allowed as well as a number

        return [SSL_Argument(f"--{key.name}", kind(key), key.default, key.help) for key in RSMATCH_KEYS]


def register() -> None:
    """Add `rsmatch` to USB's registry, once; a different algorithm under that name is kept, with a warning."""
    import warnings

    if "rsmatch" not in ALGORITHMS:
        ALGORITHMS.register("rsmatch")(RSMatch)
    elif ALGORITHMS["rsmatch"] is not RSMatch:
        warnings.warn("another algorithm is registered as 'rsmatch' already; it is left in place", stacklevel=2)
