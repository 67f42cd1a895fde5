"""The commands eval, predict, audit and export: thin functions with heavy imports inside."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from usb_rsmatch.errors import UserError

Command = Callable[..., argparse.ArgumentParser]

IMAGES = "files, folders, globs, npz and npy files, text files with a path per line"


def add_commands(command: Command) -> None:
    """Add the commands to the command line; `command(name, run, help)` returns a parser for one."""
    sub = command("eval", _eval, "USB's metrics of a trained run on its test set or any labelled source")
    sub.add_argument("run_dir", metavar="RUN_DIR", help="a run folder, or a checkpoint file")
    sub.add_argument(
        "--data", default=None, metavar="SOURCE", help="class folders, an npz, a source such as cifake:DIR, a data set"
    )
    sub.add_argument("--out", default=None, metavar="FILE.json", help="also write the metrics to this file")
    _add_run_options(sub)

    sub = command("predict", _predict, "class, confidence and probability of synthetic for images, as CSV")
    sub.add_argument("images", nargs="+", metavar="IMAGES", help=IMAGES)
    sub.add_argument("--run", required=True, dest="run_dir", metavar="RUN_DIR", help="a run folder, or a checkpoint")
    sub.add_argument("--out", required=True, metavar="FILE.csv")
    _add_run_options(sub)

    sub = command("audit", _audit, "which images look synthetic, and what share of them: CSV, JSON and HTML gallery")
    sub.add_argument("images", nargs="*", metavar="IMAGES", help=f"{IMAGES} (only read)")
    sub.add_argument(
        "--pool", metavar="CONFIG", help="audit a configuration's unlabelled images; trusted are its labelled ones"
    )
    way = sub.add_mutually_exclusive_group()
    way.add_argument("--run", dest="run_dir", metavar="RUN_DIR", help="use the detector of a trained run")
    way.add_argument("--real", nargs="+", metavar="FOLDER", help="train a detector now, on trusted real images")
    way.add_argument("--detector", metavar="FILE", help="use a detector saved with --real")
    sub.add_argument("--out", required=True, metavar="FILE.csv", help="written next to it: .html and .json")
    sub.add_argument("--quick", action="store_true", help="one training for --real instead of three: a wider interval")
    sub.add_argument(
        "--fail-above",
        type=_fraction,
        metavar="SHARE",
        help="exit with 3 if the lower end exceeds it, 4 without a share",
    )
    sub.add_argument(
        "--false-positive-rate", type=_fraction, metavar="R", help="flag scores that this share of real images exceeds"
    )
    sub.add_argument("--seed", type=int, default=0, help="seed of --real; default: 0")
    sub.add_argument(
        "--size",
        type=int,
        default=None,
        metavar="PX",
        help="side of the native patches for --real; default: the images' own, at most 64",
    )
    sub.add_argument(
        "--jpeg", default="auto", metavar="Q", help="re-encode both sides for --real: a quality, off, or auto (default)"
    )
    _add_run_options(sub)

    sub = command("export", _export, "write a trained run as one verified file, with a description and a model card")
    sub.add_argument("run_dir", metavar="RUN_DIR", help="a run folder, or a checkpoint file")
    sub.add_argument("--format", required=True, choices=["onnx", "safetensors", "torch-export"])
    sub.add_argument("--out", required=True, metavar="FILE")
    sub.add_argument(
        "--detector",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="include the detector of synthetic images or not; default: if the run has one",
    )
    _add_load_options(sub)


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    """Options of a command that applies a trained run to images."""
    sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default=None)
    sub.add_argument("--batch-size", type=_positive, default=256, metavar="N", help="default: 256")
    _add_load_options(sub)


def _add_load_options(sub: argparse.ArgumentParser) -> None:
    """Options of every command that loads a trained run: where its parts are, and which of its code is allowed."""
    sub.add_argument("--c", default=None, metavar="CONFIG", help="configuration, for a checkpoint of USB itself")
    sub.add_argument(
        "--data_dir", "--data-dir", default=None, metavar="DIR", help="folder of the data sets, if it has moved"
    )
    sub.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="a plugin of the run that may be imported"
    )
    sub.add_argument("--trust-plugins", action="store_true", help="import every plugin that the run names")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def silence_deprecations() -> None:
    """Silence third-party deprecation warnings about names that semilearn still uses."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")


def _load_run(args: argparse.Namespace, device: str | None) -> Any:
    """Load the run that the arguments name."""
    silence_deprecations()
    from usb_rsmatch.inference.loaded_run import load_run

    trust = {"trust_plugins": args.trust_plugins, "plugins": args.plugin}
    return load_run(args.run_dir, device, args.c, data_dir=args.data_dir, **trust)


def _eval(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from usb_rsmatch.csv_files import refuse_existing
    from usb_rsmatch.inference.evaluate import evaluate, metrics_text
    from usb_rsmatch.inference.predict import unreadable_lines
    from usb_rsmatch.io import write_json

    if args.out:
        refuse_existing(Path(args.out))
    run = _load_run(args, args.device)
    evaluation = evaluate(run, args.data, args.batch_size)
    print(metrics_text(evaluation))
    for line in (*(f"note: {line}" for line in evaluation.notes), *unreadable_lines(dict(evaluation.unreadable))):
        print(line, file=sys.stderr)
    if args.out:
        write_json(args.out, evaluation.as_dict())
    return 0


def _predict(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from usb_rsmatch.csv_files import refuse_existing
    from usb_rsmatch.inference.input_images import open_images
    from usb_rsmatch.inference.predict import predict, unreadable_lines

    out = Path(args.out)
    refuse_existing(out)
    images = open_images(args.images)
    predicted = predict(_load_run(args, args.device), images, out, args.batch_size)
    for line in unreadable_lines(predicted.unreadable):
        print(line, file=sys.stderr)
    print(f"{predicted.written} images: {out}")
    return 0


def _audit(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from usb_rsmatch.csv_files import refuse_existing
    from usb_rsmatch.detection import audit_detector
    from usb_rsmatch.inference import audit_report
    from usb_rsmatch.inference.audit import audit_with_detector, audit_with_real, audit_with_run, jpeg_quality
    from usb_rsmatch.inference.audited_pool import pool_sides
    from usb_rsmatch.inference.detector_file import load_detector, save_detector
    from usb_rsmatch.inference.input_images import open_images
    from usb_rsmatch.inference.predict import unreadable_lines

    out, page, summary, detector_file = audit_report.output_paths(Path(args.out))
    trains = bool(args.real or args.pool)
    if bool(args.images) == bool(args.pool):
        raise UserError("give either IMAGES or --pool CONFIG")
    if not (trains or args.run_dir or args.detector):
        raise UserError("one of the arguments --run --real --detector is required (see usb-rsmatch audit --help)")
    if args.pool and (args.run_dir or args.detector):
        raise UserError("--pool trains a detector: leave out --run and --detector")
    written = (out, page, summary, *([detector_file] if trains else []))
    refuse_existing(*written)
    if trains:
        jpeg = jpeg_quality(args.jpeg)
        sides = pool_sides(args.pool) if args.pool else None
        images = sides[1] if sides else open_images(args.images)
        trusted = sides[0] if sides and not args.real else open_images(args.real)
        trainings = audit_detector.QUICK_TRAININGS if args.quick else audit_detector.TRAININGS
        audit, saved = audit_with_real(trusted, images, args.seed, args.size, jpeg, trainings)
        save_detector(saved, detector_file)
    elif args.detector:
        audit = audit_with_detector(load_detector(Path(args.detector)), open_images(args.images))
    else:
        audit = audit_with_run(_load_run(args, args.device), open_images(args.images), args.batch_size)
    audit_report.write_report(audit, out, args.false_positive_rate)
    for line in (*(f"warning: {line}" for line in audit.warnings), *unreadable_lines(audit.unreadable)):
        print(line, file=sys.stderr)
    print(audit_report.summary_text(audit))
    print("\n".join(map(str, written)))
    return audit_report.exit_code(audit, args.fail_above)


def _export(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from usb_rsmatch.inference.export import export

    for path in export(_load_run(args, "cpu"), args.format, Path(args.out), args.detector):
        print(path)
    return 0
