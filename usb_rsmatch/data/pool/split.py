"""The split of real training images into labelled, unlabelled and validation ones, by (seed, data set, num_labels)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from usb_rsmatch import counter_rng
from usb_rsmatch.data.pool.balanced_order import interleave
from usb_rsmatch.data.pool.settings import ALL, PoolConfig
from usb_rsmatch.data.sources.dataset_registry import RealData
from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class Split:
    """Indices int64 into the training images: labelled, further unlabelled (in drawing order), validation."""

    labeled: np.ndarray
    rest: np.ndarray
    validation: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """The indices of all parts."""
        return np.concatenate([self.labeled, self.rest, self.validation])


def split_dataset(data: RealData, config: PoolConfig) -> Split:
    """The split that the configuration describes, with the further unlabelled images cut to `real_count`.

    Images that the data set never labels count as further training images of unknown class. Raises UserError where
    there are too few images.
    """
    labels = data.train.labels if data.unlabeled is None else np.concatenate([data.train.labels, data.unlabeled.labels])
    labeled, unlabeled = _class_counts(data, config)
    split = split_training(
        labels, len(data.classes), config.dataset, config.seed, labeled, unlabeled, config.validation_count
    )
    if config.validation_fold is not None:
        split = hold_out_fold(split, labels, *read_fold(config.validation_fold))
    if config.real_count is None:
        return split
    already = len(split.labeled) if config.labeled_in_pool else 0
    if not already <= config.real_count <= already + len(split.rest):
        raise UserError(
            f"real_count: {config.real_count} must lie between the {already} labelled images that are part "
            f"of the pool and the {already + len(split.rest)} real ones that there are"
        )
    return replace(split, rest=split.rest[: config.real_count - already])


def read_fold(text: str) -> tuple[int, int]:
    """Part and number of parts of `validation_fold: I/N`; UserError unless N is 2 or more and I from 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if parts < 2 or not 1 <= part <= parts:
        raise UserError(f"validation_fold: {text!r} is not I/N, such as 1/4")
    return part, parts


def hold_out_fold(split: Split, labels: np.ndarray, part: int, parts: int) -> Split:
    """The split with part `part` of `parts` of each class's labelled images as the validation images.

    They are in no other part of the pool. `labels` int64 [N] are those of the training images. Raises UserError where a
    class has fewer labelled images than parts.
    """
    held = np.zeros(len(split.labeled), dtype=np.bool_)
    for c in np.unique(labels[split.labeled]):
        members = np.flatnonzero(labels[split.labeled] == c)
        if len(members) < parts:
            raise UserError(f"validation_fold: class {c} has {len(members)} labelled images, {parts} are needed")
        held[members[part - 1 :: parts]] = True
    return replace(split, labeled=split.labeled[~held], validation=split.labeled[held])


def _class_counts(data: RealData, config: PoolConfig) -> tuple[list[int] | None, list[int] | None]:
    """Labelled and further unlabelled images of each class; None for all that are left."""
    n = len(data.classes)
    if config.num_labels == ALL:
        for key, neutral in (("lb_imb_ratio", 1), ("ulb_num_labels", None), ("ulb_imb_ratio", 1)):
            if getattr(config, key) != neutral:
                raise UserError(f"num_labels: all leaves nothing to choose by {key}; leave one of them out")
        return None, None
    if data.proportional or data.all_labeled:
        sizes = np.bincount(data.train.labels, minlength=n)
        if data.all_labeled:
            return sizes.tolist(), None
        return [int(size) for size in sizes * int(config.num_labels) // len(data.train)], None
    labeled = class_counts("num_labels", int(config.num_labels), n, config.lb_imb_ratio)
    if config.ulb_num_labels is not None:
        return labeled, class_counts("ulb_num_labels", config.ulb_num_labels, n, config.ulb_imb_ratio)
    if config.ulb_imb_ratio != 1:
        raise UserError("ulb_imb_ratio needs ulb_num_labels, the unlabelled images of the largest class")
    return labeled, None


def long_tailed(head: int, num_classes: int, ratio: float) -> list[int]:
    """Images per class, decreasing exponentially from `head` to `head / |ratio|`; a negative ratio reverses them.

    The counts are those of USB's long-tailed settings (Cui et al. 2019, class-balanced loss, section 5.1),
    rounded down.
    """
    if num_classes == 1:
        return [head]
    decay = np.power(1 / abs(ratio), 1 / (num_classes - 1))
    counts = [int(head * np.power(decay, c)) for c in range(num_classes - 1)] + [int(head / abs(ratio))]
    return counts[::-1] if ratio < 0 else counts


def class_counts(key: str, total: int, num_classes: int, ratio: float) -> list[int]:
    """Images per class: `total` divided equally, or with a `ratio` a long tail whose largest class has `total`.

    Raises UserError, naming the config's `key`, where `total` does not divide by the number of classes.
    """
    if ratio != 1.0:
        return long_tailed(total, num_classes, ratio)
    if total % num_classes:
        above = total - total % num_classes + num_classes
        raise UserError(f"{key}: {total} is not divisible by the {num_classes} classes; take {above}, for one")
    return [total // num_classes] * num_classes


def split_training(
    labels: np.ndarray,
    num_classes: int,
    dataset: str,
    seed: int,
    labeled_counts: list[int] | None,
    unlabeled_counts: list[int] | None,
    validation_count: int,
) -> Split:
    """Split training images with labels [N], where -1 marks images that are always unlabelled.

    Each class has one permutation, keyed by the seed. Labelled images are taken from its front, validation images
    from its back (in proportion to the class sizes), so that changing one number leaves the other part unchanged.
    `labeled_counts` None labels all that are left. `unlabeled_counts` limits the further unlabelled images per class,
    None takes all; all of them together have one keyed order, of which `real_count` takes a prefix. Raises
    UserError where a class has too few images.
    """
    orders = [
        counter_rng.generator(seed, "split", dataset, c).permutation(np.flatnonzero(labels == c))
        for c in range(num_classes)
    ]
    sizes = [len(order) for order in orders]
    if validation_count > sum(sizes):
        raise UserError(f"validation_count: {validation_count} asked for, the training data has {sum(sizes)} images")
    held = np.bincount(interleave(sizes)[:validation_count], minlength=num_classes)
    labeled, validation, free = [], [], []
    for c, order in enumerate(orders):
        left = len(order) - int(held[c])
        wanted = left if labeled_counts is None else labeled_counts[c]
        further = 0 if unlabeled_counts is None else unlabeled_counts[c]
        if wanted + further > left:
            raise UserError(
                f"class {c} has {left} training images (validation left out), {wanted} labelled "
                f"and {further} unlabelled ones are asked for; lower num_labels, ulb_num_labels or "
                "validation_count"
            )
        end = left if unlabeled_counts is None else wanted + further
        labeled.append(order[:wanted])
        free.append(order[wanted:end])
        validation.append(order[left:])
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[np.concatenate(free)] = True
    chosen[labels < 0] = True
    order = counter_rng.generator(seed, "unlabeled", dataset).permutation(len(labels))
    return Split(np.concatenate(labeled), order[chosen[order]], np.concatenate(validation))
