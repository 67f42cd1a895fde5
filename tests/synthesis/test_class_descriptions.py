"""What classes are called in prompts, WordNet ids among them, and which classes are meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.class_descriptions import choose_classes, describe_classes


def test_wordnet_ids_are_looked_up() -> None:
    words = describe_classes(["n02123045", "n02084071", "pickup_truck"])
    assert words["n02123045"].name == "tabby" and "cat" in words["n02123045"].definition
    assert words["n02084071"].name == "dog"
    assert words["pickup_truck"].name == "pickup truck" and words["pickup_truck"].definition == ""


def test_every_class_of_imagenet_has_words() -> None:
    from timm.data import ImageNetInfo

    ids = ImageNetInfo("imagenet-1k").label_names()
    words = describe_classes(ids)
    assert len(words) == 1000 and all(meaning.name and meaning.definition for meaning in words.values())


def test_the_users_words_come_first(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"n02123045": "striped cat", "Cat": "a cat"}))
    words = describe_classes(["n02123045", "cat", "dog"], file)
    assert [words[name].name for name in ("n02123045", "cat", "dog")] == ["striped cat", "a cat", "dog"]
    refused = [('{"cow": "x"}', "'cow' is not a class"), ('{"cat": 3}', "must be a text"), ("[]", "object")]
    for content, message in refused:
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            describe_classes(["cat"], file)
    with pytest.raises(UserError, match="n99999999"):
        describe_classes(["n99999999"])


def test_classes_are_chosen_by_name_or_from_a_file(tmp_path: Path) -> None:
    garments = ("T-shirt/top", "Trouser", "Bag")
    assert choose_classes(None, garments) == (garments, (0, 1, 2))
    assert choose_classes(["bag", "t_shirt_top"], garments) == (garments, (2, 0))
    file = tmp_path / "classes.txt"
    file.write_text("cat\n\ndog\n")
    assert choose_classes([str(file)], None) == (("cat", "dog"), (0, 1))
    for wanted, message in [(["trousre"], "did you mean 'Trouser'"), (["Bag", "bag"], "is given twice")]:
        with pytest.raises(UserError, match=message):
            choose_classes(wanted, garments)
    with pytest.raises(UserError, match="--dataset"):
        choose_classes(None, None)
