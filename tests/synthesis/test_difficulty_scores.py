"""Difficulty scores: no image is scored by a model that saw it, files hold them exactly, and bad files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from usb_rsmatch.data.sources.source import ArraySource
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis import quality
from usb_rsmatch.synthesis.difficulty_scores import (
    DifficultyScores,
    assign_folds,
    cached_scores,
    out_of_fold_scores,
    ranks,
    read_scores,
    write_scores,
)

Digits = tuple[np.ndarray, np.ndarray]
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def scored(digits: Digits) -> DifficultyScores:
    return out_of_fold_scores(*digits, 10, 0, folds=3, repeats=1, steps=40, device="cpu")


def test_ranks_are_those_of_scipy() -> None:
    values = np.array([3.0, 1.0, 1.0, 7.0, 3.0])
    np.testing.assert_allclose(ranks(values), (rankdata(values) - 0.5) / 5, atol=1e-6)


def test_no_classifier_scores_an_image_that_it_saw(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([digits[0][:300], digits[0][:20]])  # twenty images twice, also in one fold each
    labels = np.concatenate([digits[1][:300], digits[1][:20]])
    seen: list[set[bytes]] = []
    scored: list[int] = []
    train, judge = quality.train_classifier, quality.class_log_probabilities

    def watch_training(images: np.ndarray, *rest: object) -> object:
        seen.append({image.tobytes() for image in images})
        return train(images, *rest)  # type: ignore[arg-type]

    def watch_scoring(classifier: object, images: np.ndarray, *rest: object) -> np.ndarray:
        assert not seen[-1] & {image.tobytes() for image in images}
        scored.append(len(images))
        return judge(classifier, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "train_classifier", watch_training)
    monkeypatch.setattr(quality, "class_log_probabilities", watch_scoring)
    out_of_fold_scores(images, labels, 10, 0, folds=4, repeats=2, steps=2, device="cpu")
    assert len(scored) == 8 and sum(scored) == 2 * 320


def test_folds_are_balanced_over_classes(digits: Digits) -> None:
    fold_of = assign_folds(*digits, 5, np.random.default_rng(0))
    counts = np.array([np.bincount(digits[1][fold_of == fold], minlength=10) for fold in range(5)])
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_hard_images_are_hard_for_another_kind_of_classifier(digits: Digits, scored: DifficultyScores) -> None:
    images, labels = digits
    flat, half = images.reshape(len(images), -1) / 255.0, len(images) // 2
    wrong = np.empty(len(images), dtype=bool)
    for known, unseen in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        judge = LogisticRegression(max_iter=1000).fit(flat[known], labels[known])
        wrong[unseen] = judge.predict(flat[unseen]) != labels[unseen]
    hard = scored.score > 0.8
    assert wrong[hard].mean() > 5 * wrong[scored.score < 0.5].mean()
    assert scored.score.min() > 0 and scored.score.max() < 1 and abs(scored.score.mean() - 0.5) < 1e-3


def test_scores_are_cached_and_the_same_again(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = digits[0][:200], digits[1][:200]
    first = cached_scores(*small, 10, 0, tmp_path, "cpu")
    assert "out-of-fold" in capsys.readouterr().err
    again = cached_scores(*small, 10, 0, tmp_path, "cpu")
    np.testing.assert_array_equal(first.score, again.score)
    assert capsys.readouterr().err == ""
    file = next(tmp_path.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match="damaged"):
        cached_scores(*small, 10, 0, tmp_path, "cpu")


def test_a_written_file_is_read_back_exactly(digits: Digits, scored: DifficultyScores, tmp_path: Path) -> None:
    images, labels = digits
    source, rows = ArraySource("digits", images, labels), np.arange(len(labels))[::-1].copy()
    reverse = DifficultyScores(scored.score[rows], scored.probability[rows])
    write_scores(tmp_path / "scores.csv", reverse, source, rows, labels[rows], CLASSES)
    np.testing.assert_array_equal(
        read_scores(str(tmp_path / "scores.csv"), source, np.arange(len(labels)), labels, CLASSES), scored.score
    )
    with pytest.raises(UserError, match="exists"):
        write_scores(tmp_path / "scores.csv", reverse, source, rows, labels[rows], CLASSES)


class Files:
    """A training set whose images are files."""

    paths = ("data/cat/1.png", "data/cat/2.png", "data/dog/1.png", "data/dog/3.png")

    def __len__(self) -> int:
        return 4

    def name(self, index: int) -> str:
        return self.paths[index]

    def file_sizes(self, indices: np.ndarray) -> np.ndarray:
        return np.ones(len(indices), dtype=np.int64)


def test_files_are_known_by_the_end_of_their_path_and_some_may_lack_a_score(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("file,score,note\n2.png,0.25,x\ncat/1.png,0\ndata/dog/1.png,1,\n")
    found = read_scores(str(tmp_path / "s.csv"), Files(), np.arange(4), np.array([0, 0, 1, 1]), ("cat", "dog"))
    np.testing.assert_array_equal(found, [0, 0.25, 1, np.nan])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,score\n1.png,0.5\n", "s.csv:2: 1.png matches data/cat/1.png and data/dog/1.png"),
        ("file,score\nbird/9.png,0.5\n", "s.csv:2: bird/9.png is not in the training set"),
        ("file,score\n,0.5\n", "an empty name is not in the training set"),
        ("index,score\n4,0.5\n", "index 4 is not in the training set, which has 4 images"),
        ("index,score\n1.5,0.5\n", "index 1.5 is not"),
        ("index,score\n0,1.01\n", "s.csv:2: score 1.01 is not a number from 0 to 1"),
        ("index,score\n0,nan\n", "score nan is not a number from 0 to 1"),
        ("index,score\n0,high\n", "score high is not"),
        ("index,score\n0\n", "score None is not"),
        ("index,score\n0,0.1\n0,0.2\n", "s.csv:3: the image has a second score"),
        ("index,score\n0,0.1\n1,0.2\n", "has no score for any training image of class dog"),
        ("file,difficulty\ncat/1.png,0.1\n", "needs the columns score, and index or file"),
        ("", "needs the columns"),
    ],
)
def test_bad_files_are_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_scores(str(tmp_path / "s.csv"), Files(), np.arange(4), np.array([0, 0, 1, 1]), ("cat", "dog"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_class_of_one_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_scores(str(tmp_path / "s.csv"), Files(), np.arange(4), np.zeros(4, np.int64), ("cat",))
    images = load_digits().images.astype(np.uint8)[:5, ..., None]
    with pytest.raises(UserError, match="class number 1 has fewer than two"):
        assign_folds(images, np.array([0, 0, 0, 0, 1]), 2, np.random.default_rng(0))
