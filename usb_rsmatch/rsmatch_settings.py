"""The settings that this package adds to USB's for training: the keys `rs_...`, with the origin of each default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from usb_rsmatch.keys import keys_of, read_values, setting

FAST = ("bf16", "channels_last", "fused", "foreach_ema", "counts", "lazy_logs")  # described in `usb/fast.py`


@dataclass(frozen=True)
class RSMatchSettings:
    """One field per key, under its name in a configuration."""

    rs_base: str = setting("str", "fixmatch", "base rule of RSMatch: a pseudo-label algorithm of USB", "ours")
    rs_detector: str = setting(
        "str", "csqueue", "detector: csqueue, pu, supervised, oracle, random, scores:FILE.csv or none", "paper"
    )
    rs_detector_input: str = setting(
        "str",
        "residual",
        "detector's input: residual, contrast_free (photographs), npr, feature, feature_gradient, or a plugin's",
        "ours",
    )
    rs_pseudo_fakes: str = setting(
        "components|pool",
        "components",
        "detector's first synthetic examples: labelled images rebuilt from components, or (photographs) the pool",
        "ours",
    )
    rs_queue: str = setting("classwise|single", "classwise", "one queue per class, or one for all classes", "paper")
    rs_queue_length: int = setting("int", 32, "queue entries per class", "ours", low=1)
    rs_synthetic_to: str = setting(
        "dummy|main|both|drop", "both", "heads that learn from images identified as synthetic", "ours"
    )
    rs_threshold: float | str = setting(
        "float", 0.5, "probability above which an image counts as synthetic", "ours", low=0, high=1, word="adaptive"
    )
    rs_norm: str = setting(
        "split|shared", "split", "separate BatchNorm statistics for synthetic images, or shared ones", "ours"
    )
    rs_warmup: float = setting(
        "float", 0.2, "share of the training steps before identification starts", "ours", low=0, high=1
    )
    rs_lambda_syn: float = setting("float", 1.0, "weight of the dummy head's loss (lambda_s)", "ours", low=0)
    rs_lambda_det: float = setting("float", 1.0, "weight of the detector's loss (lambda_d)", "ours", low=0)
    rs_loader: str = setting("pil|batched", "pil", "augment one image at a time as USB does, or whole batches", "ours")
    rs_fast: bool | str = setting(
        "bool", False, "all speed-ups, or a list of them; false is USB's exact arithmetic", "ours", parts=FAST
    )
    rs_eval_bf16: bool = setting(
        "bool",
        False,
        "evaluate in bfloat16 where the device supports it: faster, accuracies may differ slightly",
        "ours",
    )
    rs_on_nan: str = setting("stop|skip", "stop", "if the loss is not finite: stop the run, or skip the step", "ours")
    rs_compile: bool = setting(
        "bool", False, "with rs_fast, compile the network by torch.compile; the start is slow", "ours"
    )

    @classmethod
    def read(cls, args: Any) -> RSMatchSettings:
        """The keys of a namespace; missing ones take their defaults. Raises UserError for an invalid value."""
        return cls(**read_values(RSMATCH_KEYS, args, "configuration"))

    @property
    def detector_kind(self) -> str:
        """The kind of detector, without the file that `scores:` names."""
        return self.rs_detector.partition(":")[0]

    @property
    def score_file(self) -> str:
        """The file that `scores:FILE` names."""
        return self.rs_detector.removeprefix("scores:")

    @property
    def adaptive(self) -> bool:
        """Whether the threshold follows the estimated share."""
        return self.rs_threshold == "adaptive"


RSMATCH_KEYS = keys_of(RSMatchSettings)
