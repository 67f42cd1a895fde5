"""The tables of README.md and docs/, made from the code's metadata and from committed results.

python -m benchmarks.readme_tables            # write what differs
python -m benchmarks.readme_tables --check    # write nothing; exit code 1 where something would change
python -m benchmarks.readme_tables --quickstart saved_models/quickstart --out results/quickstart.json  # or fashionmnist
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json, write_text
from usb_rsmatch.usb.config import DEAD, KEYS, Key

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "quickstart.json"
SPEED = ROOT / "results" / "speed.json"
SAME_RESULT = ROOT / "results" / "same_result.json"
FAULTS = ROOT / "results" / "faults.json"
METHOD = ROOT / "results" / "method.json"
ORIGINS = {"usb": "USB", "paper": "paper", "ours": "ours"}


def shown(value: Any) -> str:
    """A default as YAML shows it."""
    return "" if value is None else json.dumps(value) if not isinstance(value, str) else value or '""'


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def key_table(keys: Sequence[Key]) -> str:
    """One row a key: default, meaning, and whose choice it is."""
    lines = [row("key", "default", "what it is", "whose choice"), "|---|---|---|---|"]
    lines += [row(f"`{key.name}`", f"`{shown(key.default)}`", key.help, ORIGINS[key.origin]) for key in keys]
    return "\n".join(lines).replace("| `` |", "|  |")


def takes(key: Key) -> str:
    """What a key takes, in words: its type or choices, and its bounds."""
    if key.word:
        return f"{takes(replace(key, word=None))}, or `{key.word}`"
    if key.parts:
        return f"{takes(replace(key, parts=()))}, or some of {', '.join(f'`{part}`' for part in key.parts)}"
    if "|" in key.kind:
        return " or ".join(f"`{word}`" for word in key.kind.split("|"))
    words = {"int": "whole number", "float": "number", "bool": "`true` or `false`", "str": "word"}
    kind = words.get(key.kind, key.kind)
    if key.low is not None and key.high is not None:
        return f"{kind}, {key.low:.10g} to {key.high:.10g}"
    return kind if key.low is None else f"{kind} from {key.low:.10g}"


def full_table(keys: Sequence[Key]) -> str:
    """One row a key, with what it takes."""
    lines = [row("key", "takes", "default", "what it is", "whose choice"), "|---|---|---|---|---|"]
    lines += [row(f"`{k.name}`", takes(k), f"`{shown(k.default)}`", k.help, ORIGINS[k.origin]) for k in keys]
    return "\n".join(lines).replace("| `` |", "|  |")


def choices() -> str:
    """The README's table: RSMatch's own keys."""
    return key_table([key for key in KEYS.values() if key.name.startswith("rs_")])


def config_page() -> str:
    """docs/config.md: every key, and those without effect."""
    usb = [key for key in KEYS.values() if key.origin == "usb"]
    own = [key for key in KEYS.values() if key.name.startswith("rs_")]
    pool = [key for key in KEYS.values() if key.origin != "usb" and not key.name.startswith("rs_")]
    dead = "\n".join(row(f"`{key}`", reason) for key, reason in DEAD.items())
    return f"""# Configuration keys

Made by `python -m benchmarks.readme_tables`. The keys of the chosen algorithm (`p_cutoff`, `T`, ...) come on top, with
USB's defaults. Any key may also be given as a flag: `--num_labels 100`. Where no default is shown, none is set. "Whose
choice" says where the default comes from: USB, what is known of RSMatch's paper, or us.

## RSMatch

{full_table(own)}

## Pool and run

{full_table(pool)}

## USB's

{full_table(usb)}

## Without effect

Accepted with a note, because USB's shipped configurations hold them.

| key | why |
|---|---|
{dead}
"""


def quickstart_table(results: dict[str, Any]) -> str:
    """The README's table of the quickstart comparison, with what it was measured on."""
    lines = [row("real digits, 20 labels", "unlabelled pool", "accuracy (%)", "detector's AUROC"), "|---|---|--:|--:|"]
    for arm in results["rows"]:
        accuracy, auroc = arm["accuracy"], arm["auroc"]
        spread = "" if accuracy["std"] is None else f" ± {accuracy['std']:.1f}"
        measured = f"{accuracy['mean']:.1f}{spread}"
        lines.append(row(arm["arm"], arm["pool"], measured, f"{auroc['mean']:.2f}" if auroc else "–"))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [
        "",
        f"Mean and deviation over {results['rows'][0]['accuracy']['n']} seeds, {results['date']}, {results['threads']} "
        f"thread(s) a run, {versions}; `{results['command']}`.",
    ]
    return "\n".join(lines)


def summarise(folder: str) -> dict[str, Any]:
    """The contents of results/quickstart.json from the folder of a finished comparison.

    Raises UserError for runs of different versions or thread counts, which have no place in one table.
    """
    from usb_rsmatch.report.collection import collect
    from usb_rsmatch.report.statistics import estimate

    records = collect(folder, False)
    name = records.name  # of the grid, as shipped: quickstart/grid, fashionmnist/grid
    arms: dict[str, list[Any]] = {}
    for record in records.records:
        arms.setdefault(record.arm, []).append(record.result)
    rows = []
    for arm, results in arms.items():
        accuracy = estimate([100 * result.last for result in results])
        scores = [result.auroc for result in results if result.auroc is not None]
        rows.append(
            {
                "arm": arm,
                "pool": results[0].describe_pool(),
                "accuracy": {"mean": accuracy.mean, "std": accuracy.std, "n": len(results)},
                "auroc": {"mean": sum(scores) / len(scores), "n": len(scores)} if scores else None,
            }
        )
    everything = [result for results in arms.values() for result in results]
    for field in ("versions", "threads"):
        if any(getattr(result, field) != getattr(everything[0], field) for result in everything):
            raise UserError(f"{folder} holds runs of different {field}: remove them and compare again")
    threads = everything[0].threads
    return {
        "command": f"usb-rsmatch compare --c {name}/grid",
        "summarised_by": f"python -m benchmarks.readme_tables --quickstart saved_models/{name}",
        "versions": everything[0].versions,
        "threads": int(threads) if threads.isdigit() else threads,
        "date": max(result.finished for result in everything)[:10],
        "seconds": round(sum(result.train_seconds for result in everything), 1),
        "rows": rows,
    }


SPEED_ROWS = {
    "views_ratio": "weak and strong views of 32 px colour images, one core: USB's PIL over ours",
    "step_ratio_wrn_28_2": "FixMatch step with data, wrn_28_2, 64 + 7 x 64 images: stock USB over ours",
    "step_ratio_small": "FixMatch step with data, the quickstart's network: stock USB over ours",
    "rsmatch_over_fixmatch_wrn_28_2": "RSMatch step over FixMatch step, wrn_28_2",
    "rsmatch_over_fixmatch_small": "RSMatch step over FixMatch step, the quickstart's network",
}


def speed_table(results: dict[str, Any]) -> str:
    """The README's table of speed: ratios of two sides timed in turn in one run."""
    lines = [row("ratio", "median", "minimum", "maximum"), "|---|--:|--:|--:|"]
    for name, what in SPEED_ROWS.items():
        lines.append(row(what, *(f"{results[name][part]:.2f}" for part in ("median", "min", "max"))))
    return "\n".join(lines)


def faults_table(results: dict[str, Any]) -> str:
    """The README's table of fault injection: promise, test, last result."""
    done = results["mishaps"]
    passed = sum(outcome == "passed" for outcome in done.values())
    fuzzed = ", ".join(f"{count:,} {name}" for name, count in results["fuzzed"].items())
    slope = results["memory_slope_mib_per_hour"]
    soaked = "not yet" if slope is None else f"{results['soak_minutes']:g} minutes: {slope:+.1f} MiB an hour"
    lines = [row("promise", "how it is tested", "last measured"), "|---|---|---|"]
    lines += [
        row(
            "a killed run loses nothing but the steps since its checkpoint",
            "kill -9 at random moments and while a checkpoint is written, then the same weights bit for bit",
            f"{results['kills']} kills: {results['lost']} lost, {results['silent_wrong']} silently wrong",
        ),
        row(
            "so does a run that lacks resources or is stopped",
            "disk full at each write, read-only folder, lost data, dead workers, damaged checkpoints, signals, NaN, "
            "two runs in one folder",
            f"{passed} of {len(done)} scenarios passed",
        ),
        row(
            "malformed files are refused in one line",
            "fuzzed readers of configurations, checkpoints, metadata and pools",
            f"{results['fuzz_cases']:,} cases ({fuzzed}): {results['tracebacks']} tracebacks, "
            f"{results['hangs']} hangs, {results['writes_outside']} writes outside",
        ),
        row("memory does not grow", "a long run, sampled each second", soaked),
    ]
    return "\n".join([*lines, "", f"{results['date'][:10]}, `{results['command']}`."])


def fill(text: str, marker: str, body: str) -> str:
    """`text` with what stands between `<!-- marker -->` and `<!-- end -->` replaced by `body`."""
    start = text.index(f"<!-- {marker} -->") + len(f"<!-- {marker} -->")
    return text[:start] + "\n" + body + "\n" + text[text.index("<!-- end -->", start) :]


def wanted() -> dict[Path, str]:
    """What README.md, docs/config.md and docs/method.md should hold."""
    readme = fill((ROOT / "README.md").read_text(encoding="utf-8"), "choices", choices())
    if RESULTS.exists():
        readme = fill(readme, "quickstart table", quickstart_table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    if SPEED.exists():
        readme = fill(readme, "speed table", speed_table(json.loads(SPEED.read_text(encoding="utf-8"))))
    if SAME_RESULT.exists():
        from benchmarks.same_result import table

        readme = fill(readme, "same result table", table(json.loads(SAME_RESULT.read_text(encoding="utf-8"))))
    if FAULTS.exists():
        readme = fill(readme, "faults table", faults_table(json.loads(FAULTS.read_text(encoding="utf-8"))))
    method = fill((ROOT / "docs" / "method.md").read_text(encoding="utf-8"), "choices", choices())
    if METHOD.exists():
        from benchmarks.method_tables import benchmark_table, measured

        results = json.loads(METHOD.read_text(encoding="utf-8"))
        method = fill(method, "measured", measured(results))
        if "benchmark" in results["tables"]:
            readme = fill(readme, "benchmark table", benchmark_table(results))
    return {ROOT / "README.md": readme, ROOT / "docs" / "config.md": config_page(), ROOT / "docs" / "method.md": method}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_tables", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quickstart", metavar="FOLDER")
    parser.add_argument("--out", metavar="FILE.json", default=str(RESULTS))
    args = parser.parse_args(argv)
    try:
        if args.quickstart:
            write_json(args.out, summarise(args.quickstart))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    stale = [path for path, text in wanted().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)} is not what the code says" if args.check else f"wrote {path.relative_to(ROOT)}"
        )
        if not args.check:
            write_text(path, wanted()[path])
    return int(bool(stale) and args.check)


if __name__ == "__main__":
    raise SystemExit(main())
