"""Names and definitions of classes for prompts: from the user's file, from WordNet for ids such as n02084071, or the
class's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from usb_rsmatch.data.sources.class_names import UNKNOWN, ClassIndex, plain
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassDescription:
    """A class's name in prompts, and its definition ("" if there is none)."""

    name: str
    definition: str = ""


def describe_classes(classes: Sequence[str], names: str | Path | None = None) -> dict[str, ClassDescription]:
    """ClassDescription for each class. `names` is a JSON object from classes to words, which has priority.

    WordNet ids are looked up in the tables that timm ships (21,844 synsets: those of ImageNet-21k, thus all of
    ImageNet's and TinyImageNet's). Raises UserError for another kind of file and for unknown ids.
    """
    given = {} if names is None else read_names(names, classes)
    ids = [name for name in classes if WORDNET_ID.fullmatch(name) and name not in given]
    table = _wordnet() if ids else {}
    descriptions = {}
    for name in classes:
        if name in given:
            descriptions[name] = ClassDescription(given[name])
        elif name in ids:
            if name not in table:
                raise UserError(f"{name}: this WordNet id is not in timm's tables; give its name in --names FILE.json")
            descriptions[name] = table[name]
        else:
            descriptions[name] = ClassDescription(re.sub(r"[_\s]+", " ", name).strip())
    return descriptions


def read_names(path: str | Path, classes: Sequence[str]) -> dict[str, str]:
    """Read a JSON object that maps some of the classes to names. Raises UserError for other contents."""
    content = read_object(path, '{"n02123045": "tabby cat"}')
    known = {plain(name): name for name in classes}
    named = {}
    for key, text in content.items():
        if plain(str(key)) not in known:
            raise UserError(f"{path}: {key!r} is not a class{suggest_class(str(key), classes)}")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}: the name for {key!r} must be a text, got {text!r}")
        named[known[plain(str(key))]] = text.strip()
    return named


def read_object(path: str | Path, example: str) -> Mapping[str, object]:
    """Read the JSON object in a file. Raises UserError, which shows an example, for other contents."""
    try:
        content = parse_json(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the path") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be an object such as {example}")
    return content


def choose_classes(
    wanted: Sequence[str] | None, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All classes, and the numbers of the requested ones (None: of all).

    `wanted` are names, or one file with a name per line. If there is no data set (`classes` is None), the names are the
    classes.
    Raises UserError for an unknown class, with the most similar one, and for a duplicate.
    """
    if wanted is None:
        if classes is None:
            raise UserError("no classes: give --dataset NAME, or --classes with their names or a file of them")
        return tuple(classes), tuple(range(len(classes)))
    names = list(wanted)
    if len(names) == 1 and (path := Path(names[0]).expanduser()).is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise UserError(f"{path}: contains no class names")
    everything = tuple(names if classes is None else classes)
    index = ClassIndex(everything)
    chosen = [everything.index(name) if name in everything else index.number(name) for name in names]
    if UNKNOWN in chosen:
        name = names[chosen.index(UNKNOWN)]
        raise UserError(f"--classes: {name!r} is not a class{suggest_class(name, everything)}")
    if len(set(chosen)) < len(chosen):
        twice = next(name for place, name in enumerate(names) if chosen[place] in chosen[:place])
        raise UserError(f"--classes: {twice!r} is given twice; remove one")
    return everything, tuple(chosen)


def suggest_class(name: str, classes: Sequence[str]) -> str:
    """The end of a message about an unknown class: the most similar class, or the known ones."""
    close = get_close_matches(plain(name), [plain(known) for known in classes], n=1)
    if close:
        similar = next(known for known in classes if plain(known) == close[0])
        return f"; did you mean {similar!r}?"
    shown = ", ".join(repr(known) for known in classes[:5])
    return f"; the classes are {shown}" + (f", ... ({len(classes)})" if len(classes) > 5 else "")


def _wordnet() -> dict[str, ClassDescription]:
    """WordNet's noun synsets of ImageNet-21k by id: the first lemma as name, and the definition."""
    from importlib import resources

    folder = resources.files("timm") / "data" / "_info"
    columns = []
    for file in ("imagenet_synset_to_lemma.txt", "imagenet_synset_to_definition.txt"):
        try:
            text = (folder / file).read_text(encoding="utf-8")
        except OSError:
            raise UserError(
                f"WordNet ids need timm's table {file}, which this timm lacks: update timm, or give --names FILE.json"
            ) from None
        columns.append(dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line))
    lemmas, definitions = columns
    return {
        key: ClassDescription(lemma.split(",")[0].strip(), definitions.get(key, "")) for key, lemma in lemmas.items()
    }
