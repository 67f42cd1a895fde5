"""The difficulty of generated images: drawn by class and number, learned by the flow, exact when resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from usb_rsmatch.cli import main
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.difficulty_encoder import DifficultyEncoder
from usb_rsmatch.synthesis.difficulty_request import DifficultyRequest
from usb_rsmatch.synthesis.flow import FlowModel, FlowSettings, train_flow
from usb_rsmatch.synthesis.flow_sampler import Sampler
from usb_rsmatch.synthesis.flow_training import model_fingerprint

Digits = tuple[np.ndarray, np.ndarray]
Capture = pytest.CaptureFixture[str]
SHORT = FlowSettings(steps=12, width=8, batch_size=16, sampler_steps=2)


@pytest.fixture(scope="module")
def brightness(digits: Digits) -> np.ndarray:
    """A score that can be checked on generated images: the rank of an image's mean value."""
    means = digits[0].mean(axis=(1, 2, 3))
    return (np.argsort(np.argsort(means)) + 0.5) / len(means)


@pytest.fixture(scope="module")
def conditional(digits: Digits, brightness: np.ndarray) -> FlowModel:
    torch.set_num_threads(1)
    settings = FlowSettings(steps=300, width=16, batch_size=64, sampler_steps=6)
    return train_flow(*digits, 10, settings, 0, device="cpu", difficulty=brightness)


def test_requests_are_values_ranges_or_the_real_distribution() -> None:
    labels, ordinals = np.repeat([0, 1], 200), np.tile(np.arange(200), 2)
    real = {0: np.array([0.1, 0.2]), 1: np.array([0.9])}
    value = DifficultyRequest.parse("0.2").draw(0, labels, ordinals, real.__getitem__)
    assert set(value) == {0.2}
    drawn = DifficultyRequest.parse("0.3:0.7").draw(0, labels, ordinals, real.__getitem__)
    assert 0.3 <= drawn.min() < 0.32 and 0.68 < drawn.max() <= 0.7 and len(set(drawn)) > 350
    match = DifficultyRequest.parse("match").draw(0, labels, ordinals, real.__getitem__)
    assert set(match[200:]) == {0.9} and 0.4 < (match[:200] == 0.1).mean() < 0.6
    part = DifficultyRequest.parse("match").draw(0, labels[50:60], ordinals[50:60], real.__getitem__)
    np.testing.assert_array_equal(part, match[50:60])


@pytest.mark.parametrize("text", ["hard", "1.2", "-0.1", "0.7:0.3", "0.1:0.2:0.3", "nan", "0:nan", ""])
def test_other_requests_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--difficulty .*: must be a number from 0 to 1"):
        DifficultyRequest.parse(text)


def test_the_encoder_starts_at_zero_and_ignores_missing_scores() -> None:
    torch.manual_seed(0)
    encoder = DifficultyEncoder(3, 8)
    labels, scores = torch.tensor([0, 1, 1]), torch.tensor([0.2, 0.9, float("nan")])
    assert torch.equal(encoder(labels, scores), torch.zeros(3, 8))
    torch.nn.init.normal_(encoder.mlp[2].weight)
    out = encoder(labels, scores)
    assert (out[:2] != 0).all() and torch.equal(out[2], torch.zeros(8))
    assert not torch.equal(out[1], encoder(torch.tensor([0]), torch.tensor([0.9]))[0])  # the class counts as well
    out.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


def test_the_flow_follows_the_score(conditional: FlowModel) -> None:
    labels, ordinals = np.arange(100) % 10, np.arange(100) // 10
    sampler = Sampler(conditional, conditional.settings, 0, 100, "cpu")
    means = [sampler(labels, ordinals, np.full(100, level)).mean() for level in (0.05, 0.35, 0.65, 0.95)]
    assert means == sorted(means) and means[-1] > 1.3 * means[0]
    hidden = sampler(labels, ordinals)
    assert means[0] < hidden.mean() < means[-1]


def test_stopped_and_resumed_is_the_same_bit_for_bit(digits: Digits, brightness: np.ndarray, tmp_path: Path) -> None:
    def stop_at_seven(stage: str, done: int, total: int) -> None:
        if done == 7:
            raise InterruptedError

    scores = brightness.copy()
    scores[::3] = np.nan  # images without a score
    straight = train_flow(*digits, 10, SHORT, 5, device="cpu", difficulty=scores)
    path = tmp_path / "flow.pt"
    with pytest.raises(InterruptedError):
        train_flow(*digits, 10, SHORT, 5, stop_at_seven, path, device="cpu", save_every=0, difficulty=scores)
    resumed = train_flow(*digits, 10, SHORT, 5, None, path, device="cpu", difficulty=scores)
    assert np.isfinite(straight.losses).all()
    np.testing.assert_array_equal(resumed.losses, straight.losses)
    for name, tensor in straight.weights["ema"].items():
        assert torch.equal(tensor, resumed.weights["ema"][name]), name
    with pytest.raises(UserError, match=r"another condition \(difficulty, not the class alone\)"):
        train_flow(*digits, 10, SHORT, 5, None, path, device="cpu")


def test_a_model_without_scores_keeps_its_key_and_its_checkpoint(digits: Digits, tmp_path: Path) -> None:
    """The key is that of version 0.1.0 before difficulty existed, so that trained models are found again."""
    settings = replace(SHORT, bf16=False)
    assert model_fingerprint(*digits, 10, settings, 5) == "5435748a2c22b7a6"
    assert "p_no_difficulty" not in settings.stage("train")
    keys = {model_fingerprint(*digits, 10, settings, 5, np.full(len(digits[1]), level)) for level in (0.2, 0.8)}
    assert len(keys) == 2 and "5435748a2c22b7a6" not in keys
    path = tmp_path / "flow.pt"
    train_flow(*digits, 10, settings, 5, None, path, device="cpu")
    assert set(torch.load(path, weights_only=True)) == {"key", "step", "optimizer", "state"}
    with pytest.raises(UserError, match=r"another condition \(the class alone, not difficulty\)"):
        train_flow(*digits, 10, settings, 5, None, path, device="cpu", difficulty=np.full(len(digits[1]), 0.2))


def test_a_model_without_scores_refuses_a_difficulty(brief_model: FlowModel) -> None:
    sampler = Sampler(brief_model, brief_model.settings, 0, 2, "cpu")
    with pytest.raises(UserError, match="trained without difficulty scores"):
        sampler(np.array([0, 1]), np.array([0, 0]), np.array([0.5, 0.5]))


# the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path: Path, digits: Digits, brightness: np.ndarray) -> list[str]:
    from usb_rsmatch.data.sources.digits import open_digits

    labels = open_digits(tmp_path).train.labels
    scores = "".join(f"{index},{index / len(labels):.4f}\n" for index in range(len(labels)))
    (tmp_path / "s.csv").write_text(f"index,score\n{scores}")
    fast = ["--train-steps", "4", "--width", "8", "--train-batch-size", "8", "--steps", "2", "--count", "40"]
    words = ["synthesize", "--engine", "flow", "--dataset", "digits", "--cache", str(tmp_path / "cache"), *fast]
    return [*words, "--device", "cpu", "--difficulty-scores", str(tmp_path / "s.csv"), "--batch-size", "16"]


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_metadata_have_the_asked_difficulty_and_shards_change_nothing(line: list[str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*line, "--difficulty", "0.3:0.7", "--out", str(whole)]) == 0
    asked = [row["difficulty"] for row in rows_of(whole)]
    assert all(isinstance(value, float) and 0.3 <= value <= 0.7 for value in asked) and len(set(asked)) > 30
    assert json.loads((whole / "synthesis.json").read_text())["settings"]["difficulty"] == "0.3:0.7"
    for part in ("2/2", "1/2"):
        assert main([*line, "--difficulty", "0.3:0.7", "--out", str(parts), "--shard", part]) == 0
    for path in whole.rglob("*.png"):
        assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes()
    assert rows_of(parts) == rows_of(whole)
    assert len(list((tmp_path / "cache").glob("flow-*.pt"))) == 1


def test_without_a_request_the_real_distribution_is_matched(line: list[str], tmp_path: Path) -> None:
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    asked = [row["difficulty"] for row in rows_of(tmp_path / "out")]
    assert min(asked) < 0.2 and max(asked) > 0.8  # type: ignore[type-var]
    assert json.loads((tmp_path / "out" / "synthesis.json").read_text())["settings"]["difficulty"] == "match"


def test_scores_are_written_once_and_then_read(tmp_path: Path, capsys: Capture) -> None:
    words = ["synthesize", "--engine", "flow", "--dataset", "digits", "--cache", str(tmp_path / "c"), "--device", "cpu"]
    part = ["--part", "train[:200]"]
    assert main([*words, *part, "--write-difficulty", str(tmp_path / "s.csv")]) == 0
    assert "difficulty of 200 images" in capsys.readouterr().out
    fast = ["--train-steps", "2", "--width", "8", "--train-batch-size", "8", "--steps", "1", "--count", "10"]
    made = [*words, *part, *fast, "--difficulty", "0.5", "--out"]
    assert main([*made, str(tmp_path / "a"), "--difficulty-scores", str(tmp_path / "s.csv")]) == 0
    assert main([*made, str(tmp_path / "b")]) == 0  # the same scores, from the cache
    assert len(list((tmp_path / "c").glob("flow-*.pt"))) == 1
    assert main([*words, *part, "--write-difficulty", str(tmp_path / "s.csv")]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--difficulty", "2"], "--difficulty 2: must be"),
        (["--difficulty-scores", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--write-difficulty", "x.csv"], "remove --out"),
        (["--engine", "diffusers"], "cannot be combined with --engine diffusers"),
        (["--p-no-difficulty", "1"], "p_no_difficulty"),
    ],
)
def test_mistakes_are_told_in_one_line(
    more: list[str], message: str, line: list[str], tmp_path: Path, capsys: Capture
) -> None:
    words = [*line, "--out", str(tmp_path / "out"), *more]
    if more[0] == "--engine":
        words = ["synthesize", "--dataset", "digits", "--count", "4", "--out", str(tmp_path / "out"), *more]
        words += ["--difficulty", "0.2"]
    assert main(words) == 2
    told = [text for text in capsys.readouterr().err.splitlines() if text.startswith("usb-rsmatch: ")]
    assert len(told) == 1 and message in told[0]
    assert not (tmp_path / "out").exists()


def test_a_share_of_hidden_scores_needs_scores_and_images_need_a_folder(tmp_path: Path, capsys: Capture) -> None:
    words = ["synthesize", "--engine", "flow", "--dataset", "digits", "--count", "4"]
    assert main([*words, "--out", str(tmp_path / "out"), "--p-no-difficulty", "0.2"]) == 2
    assert "needs --difficulty" in capsys.readouterr().err
    assert main(words) == 2
    assert "give --out DIR" in capsys.readouterr().err


def test_the_commands_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those about difficulty, with short training; the file that one writes is read by the next."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "synthesis.md").read_text(encoding="utf-8")
    section = page.split("## Easier and harder images")[1].split("\n## ")[0]
    lines = [text.split()[1:] for text in section.splitlines() if text.startswith("    usb-rsmatch ")]
    assert len(lines) == 5
    monkeypatch.chdir(tmp_path)
    fast = ["--part", "train[:100]", "--cache", "cache", "--device", "cpu"]
    short = ["--train-steps", "2", "--width", "8", "--train-batch-size", "8", "--steps", "1", "--count", "10"]
    for words in lines:
        assert main([*words, *fast, *([] if "--write-difficulty" in words else short)]) == 0, words
    folders = ("hard", "medium", "like_real", "scored")
    assert [len(rows_of(tmp_path / "synthetic" / name)) for name in folders] == [10] * 4
    assert len(list((tmp_path / "cache").glob("flow-*.pt"))) == 1
