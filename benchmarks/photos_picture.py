"""Draws real and generated photographs of a run's pool with the detector's probability of being generated.

    python -m benchmarks.photos_picture --run saved_models/photos/rsmatch-whole-pool__seed-0 --out docs/photos.png

The images are not selected: they are the first two of each class in the pool's order that are not labelled.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.loaded_run import Run, load_run
from usb_rsmatch.io import atomic_write

OF_EACH_CLASS = 2
INCHES = 0.9  # side of an image


def first_of_each_class(run: Run, synthetic: bool) -> np.ndarray:
    """Rows int64 [n] of the pool's real or generated images, `OF_EACH_CLASS` of each class, without labelled ones."""
    pool = run.pool.unlabeled
    wanted = (pool.is_synthetic == synthetic) & ~pool.is_labeled
    rows = [np.flatnonzero(wanted & (pool.labels == c))[:OF_EACH_CLASS] for c in range(len(run.classes))]
    return np.concatenate(rows)


def picture(run: Run) -> bytes:
    """A PNG of two rows of images, real and generated, each with its probability of being generated."""
    from matplotlib.figure import Figure

    groups = {"real": first_of_each_class(run, False), "generated": first_of_each_class(run, True)}
    columns = max(len(rows) for rows in groups.values())
    figure = Figure(figsize=(INCHES * columns, INCHES * 2.7), layout="constrained")
    axes = figure.subplots(2, columns)
    for line, (name, rows) in zip(axes, groups.items(), strict=True):
        images = np.asarray(run.pool.unlabeled.images[rows])
        for place, image, score in zip(line, images, run.synthetic_score(images), strict=True):
            place.imshow(image, interpolation="nearest")
            place.set_xlabel(f"{score:.0%}", color="tab:red" if score > 0.5 else "tab:green", fontsize=10)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=10)
    figure.supxlabel("the detector's probability of being generated", fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, metadata={"Software": None})
    return png.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos_picture", description=__doc__)
    parser.add_argument("--run", required=True, metavar="FOLDER", help="run folder of rsmatch on photographs")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="output file (PNG)")
    args = parser.parse_args(argv)
    try:
        png = picture(load_run(args.run))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with atomic_write(args.out) as temporary:
        temporary.write_bytes(png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
