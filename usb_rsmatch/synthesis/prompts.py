"""Prompts from class names: by templates, by the user's own list, or by a T5 that writes sentences."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usb_rsmatch.counter_rng import derive, seeded_globals
from usb_rsmatch.data.sources.class_names import plain
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.class_descriptions import ClassDescription, read_object, suggest_class
from usb_rsmatch.synthesis.hub import error_summary, missing_extra, model_name, quiet, text_model_folder

# Our choice: plain descriptions of one object, after CLIP's (Radford et al. 2103.00020, section 3.1.4).
TEMPLATES = (
    "a photo of a {name}",
    "a photo of the {name}",
    "a close-up photo of a {name}",
    "a bright photo of a {name}",
    "a dark photo of a {name}",
    "a photo of one {name} from the side",
    "a photo of a {name} in its usual surroundings",
    "a photo of a {name} on a plain background",
)
FIELDS = "{name} and {definition}"
MAX_TOKENS = 32  # limit of a sentence by a T5

Prompts = Mapping[str, Sequence[str]]  # by class


def prompt_of(prompts: Prompts, name: str, ordinal: int) -> str:
    """The prompt of a class's image number `ordinal`: the class's prompts are used cyclically."""
    return prompts[name][ordinal % len(prompts[name])]


def from_templates(templates: Sequence[str], descriptions: Mapping[str, ClassDescription]) -> dict[str, list[str]]:
    """Every template for every class. Raises UserError for a template with other fields or with none."""
    if not templates:
        raise UserError("no prompt: give a template such as 'a photo of a {name}'")
    return {
        name: list(dict.fromkeys(_fill_template(template, description) for template in templates))
        for name, description in descriptions.items()
    }


def from_file(path: str, descriptions: Mapping[str, ClassDescription]) -> dict[str, list[str]]:
    """Prompts from a text file of templates, one per line, or from a `.json` file with one or more prompts for each
    class.

    Raises UserError for a missing or invalid file, and for a class without prompts.
    """
    if not path.endswith(".json"):
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {path}: cannot be read ({error}); check the path") from None
        return from_templates([line.strip() for line in lines if line.strip()], descriptions)
    content = read_object(path, '{"cat": ["a cat on a mat", "a sleeping cat"]}')
    known = {plain(name): name for name in descriptions}
    prompts: dict[str, list[str]] = {}
    for key, value in content.items():
        if plain(str(key)) not in known:
            raise UserError(
                f"{path}: {key!r} is not one of the requested classes{suggest_class(str(key), list(descriptions))}"
            )
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{path}: {key!r} needs a list of prompts, got {value!r}")
        prompts[known[plain(str(key))]] = texts
    if missing := [name for name in descriptions if name not in prompts]:
        raise UserError(f"{path}: has no prompts for {missing[0]!r}; add some")
    return prompts


def from_t5(
    model: str, template: str, sentences: int, descriptions: Mapping[str, ClassDescription], seed: int
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Prompts that a T5 writes, `sentences` for each class, and the settings that identify the T5.

    `model` is a name on the hub or a local folder. Its input is `template` with the class's description; it samples
    with top-p 0.95 (our choice) on the CPU, and the result depends only on the seed. The class's name is prepended to a
    sentence that does not contain it (our choice), and duplicates are removed. Raises UserError if the model or
    packages are missing.
    Source of the idea: He et al. 2210.07574 (section 3.1, language enhancement).
    """
    if sentences < 1:
        raise UserError(f"--sentences {sentences}: must be at least 1")
    try:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    except ImportError as error:
        raise missing_extra("--t5", error) from None
    folder, revision = text_model_folder(model, "--t5")
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        except Exception as error:  # two packages raise various errors for missing or damaged files
            raise UserError(
                f"--t5 {model}: is not a model from text to text ({error_summary(error)}); give another --t5"
            ) from None
        prompts = {
            name: _sentences(
                network, tokenizer, _fill_template(template, description), description.name, sentences, seed
            )
            for name, description in descriptions.items()
        }
    return prompts, {"t5": model_name(model), "t5_revision": revision}


def prompts_digest(prompts: Prompts) -> str:
    """A hash (12 hexadecimal digits) of all prompts."""
    return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:12]


def _sentences(network: Any, tokenizer: Any, text: str, name: str, count: int, seed: int) -> list[str]:
    import torch

    inputs = tokenizer(text, return_tensors="pt")
    with seeded_globals(derive(seed, "sentences", text), 0, 0), torch.inference_mode():
        written = network.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            top_p=0.95,
            max_new_tokens=MAX_TOKENS,
            num_return_sequences=count,
        )
    found = [" ".join(sentence.split()) for sentence in tokenizer.batch_decode(written, skip_special_tokens=True)]
    contains_name = re.compile(rf"\b{re.escape(name)}", re.IGNORECASE)  # also in the plural
    named = [s if contains_name.search(s) else f"{name}, {s}" if s else name for s in found]
    return list(dict.fromkeys(named))


def _fill_template(template: str, description: ClassDescription) -> str:
    """The template with a class's description. Raises UserError for unknown fields, and for a template without
    fields.
    """
    try:
        text = template.format(name=description.name, definition=description.definition or description.name)
        plain_text = template.format(name="", definition="")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise UserError(f"prompt {template!r}: may contain {FIELDS}; write other braces twice") from None
    if text == plain_text:
        raise UserError(f"prompt {template!r}: must contain {{name}} or {{definition}}, to distinguish classes")
    return text
