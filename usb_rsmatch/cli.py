"""The command `usb-rsmatch`: one thin function per subcommand, with heavy imports inside."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usb_rsmatch.errors import Interrupted, RunFailed, UserError
from usb_rsmatch.inference.commands import add_commands, silence_deprecations
from usb_rsmatch.synthesis.arguments import add_arguments
from usb_rsmatch.version import __version__


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors instead of the whole usage, and without abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 a run failed, 2 bad usage or data, 130 interrupted with a checkpoint saved."""
    try:
        args, rest = _parser().parse_known_args(argv)
        if rest and not args.takes_keys:
            raise UserError(f"unknown argument {rest[0]!r} (see usb-rsmatch {args.command} --help)")
        return args.run(args, rest) or 0
    except (UserError, RunFailed, Interrupted) as error:
        process = os.environ.get("RANK", "0")  # set by torchrun
        print(f"usb-rsmatch{f' (process {process})' if process != '0' else ''}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("usb-rsmatch: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the program that reads our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:  # a missing or broken package
        reason = " ".join(str(error).split())
        print(f"usb-rsmatch: {reason}; `usb-rsmatch doctor` shows what is installed", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be written, a full disk
        named = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        print(f"usb-rsmatch: {named}", file=sys.stderr)
        return 2


def _parser() -> _Parser:
    parser = _Parser(
        prog="usb-rsmatch",
        description="RSMatch for USB: semi-supervised learning when the unlabelled images are partly AI-generated.",
    )
    parser.add_argument("--version", action="version", version=f"usb-rsmatch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Any, help: str, takes_keys: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run, takes_keys=takes_keys)
        return sub

    sub = command("train", _train, "train one configuration, or resume where its run folder stopped", takes_keys=True)
    sub.add_argument(
        "--c", required=True, metavar="CONFIG", help="a file, or a shipped name such as quickstart/rsmatch"
    )
    sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default=None)
    sub.add_argument(
        "--max-minutes", type=float, default=None, metavar="M", help="save and exit with code 130 after M minutes"
    )
    sub.epilog = "any key of the configuration may be given as --KEY VALUE"

    sub = command("compare", _compare, "run a grid of configurations and report it", takes_keys=True)
    sub.add_argument(
        "--c", required=True, metavar="GRID", help="a grid file, or a shipped name such as quickstart/grid"
    )
    sub.add_argument("--jobs", type=int, default=None, metavar="N", help="parallel runs; default: one per core")
    sub.add_argument("--submit", default=None, choices=["slurm", "local"], help="run the grid as jobs, by submitit")
    sub.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="for submitit, such as slurm_partition=gpu"
    )
    sub.add_argument("--shard", default=None, metavar="I/N", help="every N-th run, beginning with the I-th")
    sub.add_argument(
        "--dry-run", action="store_true", help="print the runs and, from a few measured steps, their time; run none"
    )
    sub.epilog = "any key of the base configuration may be given as --KEY VALUE, for all runs"

    sub = command("report", _report, "tables and plots from the results of runs")
    sub.add_argument("results", metavar="RESULTS_DIR")
    sub.add_argument("--out", default=None, metavar="DIR", help="default: RESULTS_DIR/report")
    sub.add_argument("--baseline", default=None, metavar="ARM", help="the arm with which the others are compared")
    sub.add_argument("--mixed", action="store_true", help="allow results of different pools in one table")

    sub = command("pool", _pool, "show what a configuration's pool contains", takes_keys=True)
    sub.add_argument("--c", required=True, metavar="CONFIG")
    sub.add_argument(
        "--out", default=None, metavar="FILE.json", help="write the manifest there, and a contact sheet next to it"
    )
    sub.add_argument("--check-shortcuts", action="store_true", help="check whether trivial cues reveal provenance")
    sub.add_argument(
        "--pack", action="store_true", help="decode image files once into arrays in the cache, which runs then read"
    )

    add_commands(command)
    add_arguments(command("synthesize", _synthesize, "generate synthetic images by a flow model or a pipeline"))

    command("doctor", _doctor, "show installed versions, applied fixes and missing packages")
    return parser


def _keys(rest: Sequence[str]) -> dict[str, Any]:
    """`--KEY VALUE` and `--KEY=VALUE` pairs as a mapping, with values read as YAML unless the key takes plain text."""
    from usb_rsmatch.usb.config import KEYS
    from usb_rsmatch.usb.plain_values import parse

    pairs: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UserError(f"unexpected argument {word!r}: keys are given as --KEY VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{key} needs a value")
            value = words.pop(0)
        name = key.replace("-", "_")
        text = name in KEYS and KEYS[name].kind == "str" and value != "null"
        pairs[name] = value if text else parse(value, f"--{key}")
    return pairs


def _train(args: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = _keys(rest)
    silence_deprecations()
    from usb_rsmatch.usb.run_result import result_line
    from usb_rsmatch.usb.training import train

    if args.device is not None:
        overrides["device"] = args.device
    result = train(args.c, overrides, max_minutes=args.max_minutes)
    if os.environ.get("RANK", "0") == "0":
        print(result_line(result))
    return 0


def _compare(args: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = _keys(rest)
    silence_deprecations()
    from usb_rsmatch.compare.command import compare

    return compare(
        args.c,
        overrides,
        jobs=args.jobs,
        part=args.shard,
        only_show=args.dry_run,
        submit=args.submit,
        options=args.option,
    )


def _report(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from usb_rsmatch.report.command import report

    written = report(args.results, out=args.out, baseline=args.baseline, mixed=args.mixed)
    for path in written.files:
        print(path)
    return 0


def _pool(args: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = _keys(rest)
    silence_deprecations()
    from usb_rsmatch.inference.pool_report import pool_report

    print(pool_report(args.c, overrides, Path(args.out) if args.out else None, args.check_shortcuts, args.pack))
    return 0


def _synthesize(args: argparse.Namespace, rest: Sequence[str]) -> int:
    silence_deprecations()
    from usb_rsmatch.synthesis.command import run

    print(run(args))
    return 0


def _doctor(args: argparse.Namespace, rest: Sequence[str]) -> int:
    silence_deprecations()
    from usb_rsmatch.usb.doctor import report

    print(report())
    return 0
