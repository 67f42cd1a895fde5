"""The settings of views and loaders, read from a configuration once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from usb_rsmatch.data.sources.dataset_registry import is_known_dataset
from usb_rsmatch.data.views.batched import WHOLE, Share
from usb_rsmatch.keys import is_rsmatch_variant


def describes_pool(args: Any) -> bool:
    """Whether the configuration describes a pool of this package: sources of images, or a data set that it reads."""
    asked = getattr(args, "synthetic", None) or getattr(args, "unlabeled", None)
    return bool(asked) or is_known_dataset(getattr(args, "dataset", ""))


@dataclass(frozen=True)
class LoaderSettings:
    """How the images of a pool become batches.

    `algorithm` is the name by which USB chooses the views: RSMatch wants those of its base rule. `batch_size` counts
    labelled images of a step over all processes, `uratio` the unlabelled ones for each of them; `share` is this
    process's part of every batch. `batched` makes the views of whole batches instead of one image at a time.
    """

    algorithm: str
    seed: int = 0
    crop_ratio: float = 0.875
    batched: bool = False
    batch_size: int = 8
    uratio: int = 1
    eval_batch_size: int = 16
    num_workers: int = 0
    steps_per_epoch: int = 1
    share: Share = WHOLE

    @classmethod
    def read(cls, args: Any) -> LoaderSettings:
        """The settings of a namespace with USB's keys and `rs_loader`; keys that are missing take their defaults."""
        base = getattr(args, "rs_base", "fixmatch")
        steps, epochs = getattr(args, "num_train_iter", 1), getattr(args, "epoch", 1)
        return cls(
            algorithm=base if is_rsmatch_variant(args.algorithm) else args.algorithm,
            seed=int(getattr(args, "seed", 0)),
            crop_ratio=getattr(args, "crop_ratio", cls.crop_ratio),
            batched=getattr(args, "rs_loader", "pil") == "batched",
            batch_size=getattr(args, "batch_size", cls.batch_size),
            uratio=getattr(args, "uratio", cls.uratio),
            eval_batch_size=getattr(args, "eval_batch_size", cls.eval_batch_size),
            num_workers=int(getattr(args, "num_workers", cls.num_workers)),
            steps_per_epoch=steps // epochs,
            share=(getattr(args, "rank", 0), max(getattr(args, "world_size", 1), 1)),
        )

    def images_per_step(self, stream: str) -> int:
        """Images of a step over all processes, labelled ("lb") or unlabelled ("ulb")."""
        return self.batch_size * (1 if stream == "lb" else self.uratio)
