"""Prompts from templates, from the user's file, and from a real (tiny, untrained) T5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.class_descriptions import describe_classes
from usb_rsmatch.synthesis.prompts import TEMPLATES, from_file, from_t5, from_templates, prompt_of

WORDS = describe_classes(["cat", "n02084071"])


def test_templates_take_turns_with_names_and_definitions() -> None:
    prompts = from_templates(["a photo of a {name}", "{name}, {definition}"], WORDS)
    assert prompts["cat"] == ["a photo of a cat", "cat, cat"]
    assert prompt_of(prompts, "n02084071", 2) == "a photo of a dog"
    assert prompt_of(prompts, "n02084071", 3).startswith("dog, a member of the genus Canis")
    assert len(from_templates(TEMPLATES, WORDS)["cat"]) == len(TEMPLATES)


@pytest.mark.parametrize("template", ["a photo", "a {nam}", "a {0}", "{name", "a {name.x.y}"])
def test_a_template_that_tells_no_classes_apart_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="prompt"):
        from_templates([template], WORDS)


def test_prompts_come_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "templates.txt"
    lines.write_text("a {name} by day\n\na {name} by night\n")
    assert from_file(str(lines), WORDS)["cat"] == ["a cat by day", "a cat by night"]
    table = tmp_path / "prompts.json"
    table.write_text(json.dumps({"Cat": "my cat", "n02084071": ["my dog", "your dog"]}))
    assert from_file(str(table), WORDS) == {"cat": ["my cat"], "n02084071": ["my dog", "your dog"]}
    for content, message in [({"cat": "x"}, "no prompts for"), ({"cow": "x"}, "'cow'"), ({"cat": []}, "list")]:
        table.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            from_file(str(table), WORDS)
    with pytest.raises(UserError, match="cannot be read"):
        from_file(str(tmp_path / "none.txt"), WORDS)


def test_a_t5_writes_sentences_that_hold_the_class_and_depend_on_the_seed_alone(t5_folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    prompts, told = from_t5(str(t5_folder), "{name}", 6, WORDS, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert told["t5"] == "tiny-t5" and len(told["t5_revision"]) == 16
    for word, sentences in (("cat", prompts["cat"]), ("dog", prompts["n02084071"])):
        assert 1 < len(sentences) <= 6 and all(word in sentence for sentence in sentences)
    again, _ = from_t5(str(t5_folder), "{name}", 6, WORDS, seed=0)
    other, _ = from_t5(str(t5_folder), "{name}", 6, WORDS, seed=1)
    alone, _ = from_t5(str(t5_folder), "{name}", 6, {"cat": WORDS["cat"]}, seed=0)
    assert again == prompts and other != prompts and alone["cat"] == prompts["cat"]


def test_a_folder_that_is_no_t5_is_named(tmp_path: Path, t5_folder: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cut = tmp_path / "cut"
    shutil.copytree(t5_folder, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])  # half a download
    for folder in (tmp_path, cut):
        with pytest.raises(UserError, match="is not a model from text to text"):
            from_t5(str(folder), "{name}", 2, WORDS, seed=0)
