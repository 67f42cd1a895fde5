"""Writes the tables of README.md and docs/ from the code's configuration keys and from committed results.

python -m benchmarks.readme_tables            # write the files that differ
python -m benchmarks.readme_tables --check    # write nothing; exit code 1 if a file differs
python -m benchmarks.readme_tables --quickstart saved_models/quickstart --out results/quickstart.json
python -m benchmarks.readme_tables --quickstart saved_models/photos --out results/photos_quickstart.json
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
PHOTOS = ROOT / "results" / "photos_quickstart.json"
PHOTO_FIGURES = ROOT / "results" / "photos.json"
ORIGINS = {"usb": "USB", "paper": "paper", "ours": "ours"}


def format_default(value: Any) -> str:
    """Return a default as text in YAML form."""
    return "" if value is None else json.dumps(value) if not isinstance(value, str) else value or '""'


def table_row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def key_table(keys: Sequence[Key]) -> str:
    """Return a table with one row per key: default, meaning, and origin of the default."""
    lines = [table_row("key", "default", "meaning", "whose choice"), "|---|---|---|---|"]
    lines += [
        table_row(f"`{key.name}`", f"`{format_default(key.default)}`", key.help, ORIGINS[key.origin]) for key in keys
    ]
    return "\n".join(lines).replace("| `` |", "|  |")


def allowed_values(key: Key) -> str:
    """Return the allowed values of a key in words: its type or choices, and its bounds."""
    if key.word:
        return f"{allowed_values(replace(key, word=None))}, or `{key.word}`"
    if key.parts:
        return f"{allowed_values(replace(key, parts=()))}, or some of {', '.join(f'`{part}`' for part in key.parts)}"
    if "|" in key.kind:
        return " or ".join(f"`{word}`" for word in key.kind.split("|"))
    words = {
        "int": "whole number",
        "float": "number",
        "bool": "`true` or `false`",
        "str": "word",
        "file": "file, or mapping",
    }
    kind = words.get(key.kind, key.kind)
    if key.low is not None and key.high is not None:
        return f"{kind}, {key.low:.10g} to {key.high:.10g}"
    return kind if key.low is None else f"{kind} from {key.low:.10g}"


def full_table(keys: Sequence[Key]) -> str:
    """Return the same table with the allowed values of each key."""
    lines = [table_row("key", "allowed values", "default", "meaning", "whose choice"), "|---|---|---|---|---|"]
    lines += [
        table_row(f"`{k.name}`", allowed_values(k), f"`{format_default(k.default)}`", k.help, ORIGINS[k.origin])
        for k in keys
    ]
    return "\n".join(lines).replace("| `` |", "|  |")


def own_key_table() -> str:
    """Return the README's table of RSMatch's own keys."""
    return key_table([key for key in KEYS.values() if key.name.startswith("rs_")])


def config_page() -> str:
    """Return the text of docs/config.md: all keys, and the keys without effect."""
    usb = [key for key in KEYS.values() if key.origin == "usb"]
    own = [key for key in KEYS.values() if key.name.startswith("rs_")]
    pool = [key for key in KEYS.values() if key.origin != "usb" and not key.name.startswith("rs_")]
    dead = "\n".join(table_row(f"`{key}`", reason) for key, reason in DEAD.items())
    return f"""# Configuration keys

Made by `python -m benchmarks.readme_tables`. The keys of the chosen algorithm (`p_cutoff`, `T`, ...) are added with
USB's defaults. Any key may also be given as a flag: `--num_labels 100`. An empty default means that none is set. "Whose
choice" is the origin of the default: USB, what is known of RSMatch's paper, or us.

## RSMatch

{full_table(own)}

## Pool and run

{full_table(pool)}

## USB's

{full_table(usb)}

## Without effect

Accepted with a note, because USB's shipped configurations contain them.

| key | why |
|---|---|
{dead}
"""


def quickstart_table(results: dict[str, Any], images: str = "real digits, 20 labels") -> str:
    """Return a table of one of the quickstart comparisons, with the conditions of the measurement."""
    lines = [
        table_row(images, "unlabelled pool", "accuracy (%)", "detector's AUROC"),
        "|---|---|--:|--:|",
    ]
    for arm in results["rows"]:
        accuracy, auroc = arm["accuracy"], arm["auroc"]
        spread = "" if accuracy["std"] is None else f" ± {accuracy['std']:.1f}"
        measured = f"{accuracy['mean']:.1f}{spread}"
        lines.append(table_row(arm["arm"], arm["pool"], measured, f"{auroc['mean']:.2f}" if auroc else "–"))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [
        "",
        f"Mean and deviation over {results['rows'][0]['accuracy']['n']} seeds, {results['date']}, {results['threads']} "
        f"thread(s) a run, {versions}; `{results['command']}`.",
    ]
    return "\n".join(lines)


def summarise(folder: str, out: str = RESULTS.name) -> dict[str, Any]:
    """Return the contents of the result file `out` from the folder of a finished comparison.

    Raises UserError for runs with different versions or thread counts.
    """
    from usb_rsmatch.report.collection import collect
    from usb_rsmatch.report.statistics import estimate

    records = collect(folder, False)
    name = records.name  # of the shipped grid: quickstart or fashionmnist
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
            raise UserError(f"{folder} has runs with different {field}: remove them and compare again")
    threads = everything[0].threads
    return {
        "command": f"usb-rsmatch compare --c {name}/grid",
        "summarised_by": f"python -m benchmarks.readme_tables --quickstart saved_models/{name} --out results/{out}",
        "versions": everything[0].versions,
        "threads": int(threads) if threads.isdigit() else threads,
        "date": max(result.finished for result in everything)[:10],
        "seconds": round(sum(result.train_seconds for result in everything), 1),
        "rows": rows,
    }


SPEED_ROWS = {
    "views_ratio": "weak and strong views of 32 px colour images, one core: USB's PIL / ours",
    "step_ratio_wrn_28_2": "FixMatch step with data, wrn_28_2, 64 + 7 x 64 images: stock USB / ours",
    "step_ratio_small": "FixMatch step with data, the quickstart's network: stock USB / ours",
    "rsmatch_over_fixmatch_wrn_28_2": "RSMatch step / FixMatch step, wrn_28_2",
    "rsmatch_over_fixmatch_small": "RSMatch step / FixMatch step, the quickstart's network",
}


def speed_table(results: dict[str, Any]) -> str:
    """Return the README's table of speed: ratios of times, measured alternately in one run."""
    lines = [table_row("ratio", "median", "minimum", "maximum"), "|---|--:|--:|--:|"]
    for name, what in SPEED_ROWS.items():
        lines.append(table_row(what, *(f"{results[name][part]:.2f}" for part in ("median", "min", "max"))))
    return "\n".join(lines)


def faults_table(results: dict[str, Any]) -> str:
    """Return the README's table of fault injection: promise, test, last result."""
    done = results["mishaps"]  # the fault scenarios; the key keeps its name for committed result files
    passed = sum(outcome == "passed" for outcome in done.values())
    fuzzed = ", ".join(f"{count:,} {name}" for name, count in results["fuzzed"].items())
    slope = results["memory_slope_mib_per_hour"]
    endurance = "not yet" if slope is None else f"{results['soak_minutes']:g} minutes: {slope:+.1f} MiB an hour"
    lines = [table_row("promise", "how it is tested", "last measured"), "|---|---|---|"]
    lines += [
        table_row(
            "a killed run loses only the steps since its last checkpoint",
            "kill -9 at random moments and while a checkpoint is written; the resumed run ends with the same weights, "
            "bit for bit",
            f"{results['kills']} kills: {results['lost']} lost, {results['silent_wrong']} silently wrong",
        ),
        table_row(
            "the same holds for a run that lacks resources or is stopped",
            "disk full at each write, read-only folder, lost data, dead workers, damaged checkpoints, signals, NaN, "
            "two runs in one folder",
            f"{passed} of {len(done)} scenarios passed",
        ),
        table_row(
            "malformed files are refused in one line",
            "fuzzed readers of configurations, checkpoints, metadata and pools",
            f"{results['fuzz_cases']:,} cases ({fuzzed}): {results['tracebacks']} tracebacks, "
            f"{results['hangs']} hangs, {results['writes_outside']} writes outside",
        ),
        table_row("memory does not grow", "a long run, sampled every second", endurance),
    ]
    return "\n".join([*lines, "", f"{results['date'][:10]}, `{results['command']}`."])


def replace_between_markers(text: str, marker: str, body: str) -> str:
    """Return `text` with `body` between `<!-- marker -->` and the next `<!-- end -->`."""
    start = text.index(f"<!-- {marker} -->") + len(f"<!-- {marker} -->")
    return text[:start] + "\n" + body + "\n" + text[text.index("<!-- end -->", start) :]


def generated_texts() -> dict[Path, str]:
    """Return the up-to-date texts of README.md and of the pages of docs/ that have tables, by path."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    photographs = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
    if PHOTOS.exists():
        results = json.loads(PHOTOS.read_text(encoding="utf-8"))
        table = quickstart_table(results, "real photographs, 80 labels")
        readme = replace_between_markers(readme, "photographs table", table)
    if PHOTO_FIGURES.exists():
        from benchmarks.photos import measured as measured_on_photographs

        results = json.loads(PHOTO_FIGURES.read_text(encoding="utf-8"))
        photographs = replace_between_markers(photographs, "measured", measured_on_photographs(results))
    if SPEED.exists():
        readme = replace_between_markers(
            readme, "speed table", speed_table(json.loads(SPEED.read_text(encoding="utf-8")))
        )
    if SAME_RESULT.exists():
        from benchmarks.same_result import table as same_result_table

        readme = replace_between_markers(
            readme, "same result table", same_result_table(json.loads(SAME_RESULT.read_text(encoding="utf-8")))
        )
    if FAULTS.exists():
        readme = replace_between_markers(
            readme, "faults table", faults_table(json.loads(FAULTS.read_text(encoding="utf-8")))
        )
    method = replace_between_markers(
        (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), "choices", own_key_table()
    )
    if RESULTS.exists():
        digits = quickstart_table(json.loads(RESULTS.read_text(encoding="utf-8")))
        method = replace_between_markers(method, "quickstart table", digits)
    if METHOD.exists():
        from benchmarks.method_tables import benchmark_table, measured

        results = json.loads(METHOD.read_text(encoding="utf-8"))
        method = replace_between_markers(method, "measured", measured(results))
        if "benchmark" in results["tables"]:
            method = replace_between_markers(method, "benchmark table", benchmark_table(results))
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "config.md": config_page(),
        ROOT / "docs" / "method.md": method,
        ROOT / "docs" / "photographs.md": photographs,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is out of date")
    parser.add_argument("--quickstart", metavar="FOLDER", help="finished comparison to summarise first")
    parser.add_argument("--out", metavar="FILE", default=str(RESULTS), help="its result file (results/quickstart.json)")
    args = parser.parse_args(argv)
    try:
        if args.quickstart:
            write_json(args.out, summarise(args.quickstart, Path(args.out).name))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    stale = [
        path
        for path, text in generated_texts().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)} is out of date: run python -m benchmarks.readme_tables"
            if args.check
            else f"wrote {path.relative_to(ROOT)}"
        )
        if not args.check:
            write_text(path, generated_texts()[path])
    return int(bool(stale) and args.check)


if __name__ == "__main__":
    raise SystemExit(main())
