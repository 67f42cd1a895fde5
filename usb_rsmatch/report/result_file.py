"""Reads `result.json`, the result of a finished run, strictly: it is valid or refused in one line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

Scalar = str | int | float | bool | None
Figures = dict[str, float | None]  # auroc, ap, fpr95; None if all images are real or all synthetic


@dataclass(frozen=True)
class UnknownShare:
    """The estimated share of synthetic images, 0 to 1, among `images` of unknown provenance, with its 95 % interval.

    `real_images` of the `real_part` of the data set served as real ones. All three shares are None if not estimated.
    """

    images: int
    estimate: float | None
    low: float | None
    high: float | None
    real_images: int
    real_part: str


@dataclass(frozen=True)
class Result:
    """One run's `result.json`. Accuracies and detection figures are 0 to 1, times seconds, memory MiB."""

    path: Path
    algorithm: str
    dataset: str
    seed: int
    num_labels: int
    iterations: int
    real: int
    synthetic: int
    unknown: int  # images of unknown provenance
    by_generator: dict[str, int]
    last: float  # final EMA weights on the test set: what tables quote
    best: float  # chosen on the test set, as USB quotes it
    best_iteration: int
    validation: float | None
    detection: Figures | None
    detection_by_generator: dict[str, Figures]
    unknown_share: UnknownShare | None  # None without such images, or without a trained detector
    train_seconds: float
    images_per_second: float
    peak_memory_mib: float | None  # None if the system does not report it
    versions: dict[str, str]
    config_sha256: str
    device: str = ""  # older files lack these three
    threads: str = ""
    finished: str = ""
    shortcuts: tuple[str, ...] = ()  # cues of the pool that reveal provenance without synthesis

    @property
    def pool(self) -> tuple[Any, ...]:
        """The counts that two comparable pools of one data set share: real images, images of each generator, and images
        of unknown provenance."""
        return self.real, tuple(sorted(self.by_generator.items())), self.unknown

    @property
    def share_synthetic(self) -> float | None:
        """Share of the unlabelled pool that is synthetic, 0 to 1; None for a pool with images of unknown provenance."""
        return None if self.unknown else self.synthetic / max(self.real + self.synthetic, 1)

    @property
    def auroc(self) -> float | None:
        """Area under the detector's ROC curve on the pool, 0 to 1; None without a detector."""
        return self.detection["auroc"] if self.detection else None

    def describe_pool(self) -> str:
        """The pool in words: `600 real + 2,700 synthetic (flow) + 50 of unknown provenance`."""
        if not self.real + self.synthetic + self.unknown:
            return "USB's own"
        made = f" + {self.synthetic:,} synthetic ({', '.join(sorted(self.by_generator))})" if self.synthetic else ""
        unknown = f" + {self.unknown:,} of unknown provenance" if self.unknown else ""
        return f"{self.real:,} real{made}{unknown}"


def read_result(path: str | Path) -> Result:
    """Read a `result.json`; every field is checked for presence, type, range and consistency.

    Raises UserError, one line that names the file, for an incomplete, older or edited file.
    """
    path = Path(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except ValueError:
        raise UserError(f"{path} is incomplete or not JSON: remove it and run again") from None
    fields = _Fields(path, "", content)
    accuracy, time, versions = (fields.section(name) for name in ("accuracy", "time", "versions"))
    if fields.get("pool") is None:  # a data set of USB without a hybrid pool
        fields.content["pool"] = {"real": 0, "synthetic": 0, "by_generator": {}}
    pool = fields.section("pool")
    generators = pool.section("by_generator")
    detection = None if fields.get("detection") is None else fields.section("detection")
    by_generator = detection.section("by_generator") if detection else None
    counts = {name: generators.whole(name) for name in generators.content}
    result = Result(
        path=path,
        algorithm=fields.text("algorithm"),
        dataset=fields.text("dataset"),
        seed=fields.whole("seed"),
        num_labels=fields.whole("num_labels"),
        iterations=fields.whole("iterations", low=1),
        real=pool.whole("real"),
        synthetic=pool.whole("synthetic"),
        unknown=pool.whole("unknown") if "unknown" in pool.content else 0,  # older files lack it
        by_generator={name: count for name, count in counts.items() if count},
        last=accuracy.number("last", high=1),
        best=accuracy.number("best", high=1),
        best_iteration=accuracy.whole("best_iteration"),
        validation=accuracy.optional("validation", high=1),
        detection=detection.figures() if detection else None,
        detection_by_generator=(
            {name: by_generator.section(name).figures() for name in by_generator.content} if by_generator else {}
        ),
        unknown_share=detection.unknown_share() if detection and "unknown" in detection.content else None,
        train_seconds=time.number("train_seconds"),
        images_per_second=time.number("images_per_second"),
        peak_memory_mib=fields.optional("peak_memory_mib"),
        versions={name: versions.text(name) for name in versions.content},
        config_sha256=fields.text("config_sha256"),
        shortcuts=fields.lines("shortcuts"),
        device=fields.extra("device"),
        threads=fields.extra("threads"),
        finished=fields.extra("finished"),
    )
    fields.agree("usb_rsmatch" in result.versions, "versions does not contain usb_rsmatch")
    fields.agree(sum(counts.values()) == result.synthetic, "pool.synthetic is not the sum of pool.by_generator")
    share = result.unknown_share
    fields.agree(share is None or share.images == result.unknown, "detection.unknown.images is not pool.unknown")
    fields.agree(result.best >= result.last - 1e-9, "accuracy.best is under accuracy.last")
    fields.agree(result.best_iteration <= result.iterations, "accuracy.best_iteration is past the last iteration")
    fields.agree(bool(re.fullmatch(r"[0-9a-f]{64}", result.config_sha256)), "config_sha256 is not a SHA-256")
    return result


class _Fields:
    """One mapping of the file, with checks of its values."""

    def __init__(self, path: Path, place: str, content: Any) -> None:
        self.path, self.place, self.content = path, place, content
        self.agree(isinstance(content, dict), f"{place.rstrip('.') or 'the file'} is not a mapping")

    def lines(self, name: str) -> tuple[str, ...]:
        """A list of texts that older files lack."""
        values = self.content.get(name, [])
        self.agree(
            isinstance(values, list) and all(isinstance(v, str) for v in values), f"{self.place}{name} is no list"
        )
        return tuple(values)

    def agree(self, holds: bool, complaint: str) -> None:
        if not holds:
            raise UserError(f"{self.path}: {complaint}: it was edited or damaged; remove it and run again")

    def get(self, name: str) -> Any:
        if name not in self.content:
            raise UserError(
                f"{self.path} lacks {self.place}{name}: edited or of an older version; remove it, run again"
            )
        return self.content[name]

    def section(self, name: str) -> _Fields:
        return _Fields(self.path, f"{self.place}{name}.", self.get(name))

    def check(self, name: str, right: bool) -> Any:
        value = self.content[name]
        self.agree(right, f"{self.place}{name} cannot be {value!r}")
        return value

    def number(self, name: str, high: float = math.inf) -> float:
        value = self.get(name)
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(self.check(name, plain and 0 <= value <= high and math.isfinite(value)))

    def optional(self, name: str, high: float = math.inf) -> float | None:
        return None if self.get(name) is None else self.number(name, high)

    def whole(self, name: str, low: int = 0) -> int:
        value = self.get(name)
        return int(self.check(name, isinstance(value, int) and not isinstance(value, bool) and value >= low))

    def text(self, name: str) -> str:
        value = self.get(name)
        return str(self.check(name, isinstance(value, str) and value != ""))

    def extra(self, name: str) -> str:
        value = self.content.get(name)
        return "" if value is None else str(value)

    def figures(self) -> Figures:
        return {name: self.optional(name, high=1) for name in ("auroc", "ap", "fpr95")}

    def unknown_share(self) -> UnknownShare:
        part = self.section("unknown")
        shares = [part.optional(name, high=1) for name in ("low", "estimate", "high")]
        known = [value for value in shares if value is not None]
        part.agree(len(known) in (0, 3) and known == sorted(known), f"{part.place}estimate is not within its interval")
        low, estimate, high = shares
        real = part.whole("real_images"), part.text("real_part")
        return UnknownShare(part.whole("images"), estimate, low, high, *real)
