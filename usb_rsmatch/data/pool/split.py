"""Which real training images are labelled, unlabelled and for validation, by (seed, data set, num_labels)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from usb_rsmatch import counter_rng
from usb_rsmatch.data.pool.balanced_order import interleave
from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class Split:
    """Indices int64 into the training images: labelled, further unlabelled (in drawing order), validation."""

    labeled: np.ndarray
    rest: np.ndarray
    validation: np.ndarray


def long_tailed(head: int, num_classes: int, ratio: float) -> list[int]:
    """Images a class, falling exponentially from `head` to `head / |ratio|`; a negative ratio reverses them.

    The counts are those of USB's long-tailed settings (Cui et al. 2019, class-balanced loss, section 5.1),
    rounded down.
    """
    if num_classes == 1:
        return [head]
    decay = np.power(1 / abs(ratio), 1 / (num_classes - 1))
    counts = [int(head * np.power(decay, c)) for c in range(num_classes - 1)] + [int(head / abs(ratio))]
    return counts[::-1] if ratio < 0 else counts


def class_counts(key: str, total: int, num_classes: int, ratio: float) -> list[int]:
    """Images a class: `total` shared out equally, or with a `ratio` a long tail whose head class has `total`.

    Raises UserError, naming the config's `key`, where `total` cannot be shared out.
    """
    if ratio != 1.0:
        return long_tailed(total, num_classes, ratio)
    if total % num_classes:
        above = total - total % num_classes + num_classes
        raise UserError(
            f"{key}: {total} is not divisible by the {num_classes} classes; take {above}, for one"
        )
    return [total // num_classes] * num_classes


def split_training(
    labels: np.ndarray,
    num_classes: int,
    dataset: str,
    seed: int,
    labeled_counts: list[int],
    unlabeled_counts: list[int] | None,
    validation_count: int,
) -> Split:
    """Split training images with labels [N], where -1 marks images that are unlabelled in any case.

    Each class has one keyed permutation: labelled images are its front, validation images its back (in
    proportion to the classes' sizes), so neither moves when the other's number changes. `unlabeled_counts`
    bounds the further unlabelled images a class, None takes all; together they stand in one keyed order, of
    which `real_count` takes a prefix. Raises UserError where a class has too few images.
    """
    orders = [
        counter_rng.generator(seed, "split", dataset, c).permutation(np.flatnonzero(labels == c))
        for c in range(num_classes)
    ]
    sizes = [len(order) for order in orders]
    if validation_count > sum(sizes):
        raise UserError(
            f"validation_count: {validation_count} asked for, the training data has {sum(sizes)} images"
        )
    held = np.bincount(interleave(sizes)[:validation_count], minlength=num_classes)
    labeled, validation, free = [], [], []
    for c, order in enumerate(orders):
        left = len(order) - int(held[c])
        further = 0 if unlabeled_counts is None else unlabeled_counts[c]
        if labeled_counts[c] + further > left:
            raise UserError(
                f"class {c} has {left} training images (validation left out), {labeled_counts[c]} labelled "
                f"and {further} unlabelled ones are asked for; lower num_labels, ulb_num_labels or "
                "validation_count"
            )
        end = left if unlabeled_counts is None else labeled_counts[c] + further
        labeled.append(order[: labeled_counts[c]])
        free.append(order[labeled_counts[c] : end])
        validation.append(order[left:])
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[np.concatenate(free)] = True
    chosen[labels < 0] = True
    order = counter_rng.generator(seed, "unlabeled", dataset).permutation(len(labels))
    return Split(np.concatenate(labeled), order[chosen[order]], np.concatenate(validation))
