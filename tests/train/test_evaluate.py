"""Recall, AUROC and accuracy by hand, against a naive count, and on folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.train.toys import caption, colour_of, encoded, scene, shard
from train import evaluate
from train.config import Data, Eval
from train.errors import DataError
from train.evaluate import accuracy_at_k, auroc, class_embeddings, evaluate_retrieval, read_classes, recall_at_k
from train.models.weights import Loaded, load

EYE = np.eye(4, dtype=np.float32)


def test_recall_by_hand() -> None:
    """Two pictures, three captions: picture 0 has captions 0 and 2, picture 1 has caption 1."""
    images = np.array([[1, 0], [0, 1]], np.float32)
    texts = np.array([[0.6, 0.8], [0.8, 0.6], [1, 0]], np.float32)
    assert recall_at_k(images, texts, np.array([0, 1, 0]), at=(1, 2)) == {
        "text_to_image_recall_at_1": pytest.approx(1 / 3), "image_to_text_recall_at_1": pytest.approx(1 / 2),
        "recall_at_1": pytest.approx(5 / 12), "text_to_image_recall_at_2": 1.0, "image_to_text_recall_at_2": 1.0,
        "recall_at_2": 1.0}


def test_other_right_captions_push_none_down() -> None:
    texts = EYE[[0, 0, 0, 1]]
    assert recall_at_k(EYE[:2], texts, np.array([0, 0, 0, 1]), at=(1,))["image_to_text_recall_at_1"] == 1.0


def test_a_model_that_says_the_same_of_all_is_at_chance() -> None:
    same = np.ones((10, 3), np.float32)
    found = recall_at_k(same, same, np.arange(10), at=(1, 5))
    assert found["recall_at_1"] == pytest.approx(0.1) and found["recall_at_5"] == pytest.approx(0.5)


def naive(queries: NDArray[np.float32], candidates: NDArray[np.float32], right: list[set[int]], k: int) -> float:
    order = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")
    hits = 0
    for query, wanted in enumerate(right):
        best = next(c for c in order[query] if c in wanted)
        wrong_before = [c for c in order[query][: list(order[query]).index(best)] if c not in wanted]
        hits += len(wrong_before) < k
    return hits / len(right)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_recall_equals_the_naive_count_whatever_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(-2, 3, (30, 4)).astype(np.float32)      # whole numbers: many ties, exact sums
    texts = rng.integers(-2, 3, (90, 4)).astype(np.float32)
    of = np.concatenate([np.arange(30), rng.integers(0, 30, 60)])
    monkeypatch.setattr(evaluate, "CHUNK_BYTES", chunk)
    found = recall_at_k(images, texts, of)
    captions = [set(np.flatnonzero(of == i).tolist()) for i in range(30)]
    for k in (1, 5, 10):
        assert found[f"text_to_image_recall_at_{k}"] == naive(texts, images, [{i} for i in of.tolist()], k)
        assert found[f"image_to_text_recall_at_{k}"] == naive(images, texts, captions, k)


def test_auroc() -> None:
    assert auroc(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])) == 1.0
    assert auroc(np.array([4, 3, 2, 1]), np.array([0, 0, 1, 1])) == 0.0
    assert auroc(np.array([1, 3, 2, 4]), np.array([0, 0, 1, 1])) == 0.75
    assert auroc(np.zeros(10), np.arange(10) < 3) == 0.5
    assert auroc(np.array([1, 1, 2]), np.array([0, 1, 1])) == 0.75
    assert np.isnan(auroc(np.array([1, 2]), np.array([1, 1])))
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200), rng.random(200) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert auroc(scores, positive) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=1e-12)


def test_accuracy() -> None:
    assert accuracy_at_k(EYE, EYE[:, :], np.array([0, 1, 3, 2])) == {"accuracy_at_1": 0.5}
    six = np.eye(6, dtype=np.float32)
    assert accuracy_at_k(six, six, np.arange(6)) == {"accuracy_at_1": 1.0, "accuracy_at_5": 1.0}


def test_the_templates_are_openais_80() -> None:
    lines = evaluate.TEMPLATES.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 80
    assert all(line.count("{}") == 1 for line in lines)
    assert (lines[0], lines[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


class Colours(torch.nn.Module):
    """A model that knows colours: mean pixel of the middle on one side, the colour's word on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def encode_image(self, pixels_NCHW: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return torch.nn.functional.normalize(0.97 - pixels_NCHW.mean((2, 3)), dim=-1)

    def encode_text(self, tokens_NL: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return torch.nn.functional.normalize(tokens_NL, dim=-1)


def colours() -> Loaded:
    def tokenizer(texts: list[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            number = next((n for n in range(6) if colour_of(n) in text), 0)
            rows.append(0.97 - preprocess(scene(number)).mean((1, 2)))
        return torch.stack(rows)

    def preprocess(picture: object) -> torch.Tensor:
        return torch.from_numpy(np.array(picture, np.float32).transpose(2, 0, 1) / 255)

    return Loaded("colours", Colours(), preprocess, tokenizer, torch.device("cpu"), {})


def test_zero_shot_over_folders(tmp_path: Path) -> None:
    for n in range(18):
        folder = tmp_path / "images" / f"n{n % 6}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.png").write_bytes(encoded(scene(n)))
    (tmp_path / "images" / "n0" / "broken.jpg").write_bytes(b"no picture")
    names = tmp_path / "names.txt"
    names.write_text("".join(f"n{n}\t{colour_of(n)}\n" for n in range(6)))
    settings = Eval(images=str(tmp_path / "images"), classes=str(names))
    assert evaluate.evaluate(colours(), settings) == {"accuracy_at_1": 1.0, "accuracy_at_5": 1.0}


def test_classes(tmp_path: Path) -> None:
    (tmp_path / "great_white").mkdir()
    (tmp_path / "hen").mkdir()
    assert read_classes(tmp_path, None) == {"great_white": "great white", "hen": "hen"}
    names = tmp_path / "names.txt"
    names.write_text("hen\n\ngreat_white\ta great white shark\n")
    assert read_classes(tmp_path, names) == {"hen": "hen", "great_white": "a great white shark"}
    names.write_text("cock\n")
    with pytest.raises(DataError, match=r"names\.txt: no folder .*/cock"):
        read_classes(tmp_path, names)
    with pytest.raises(DataError, match="no folder"):
        read_classes(tmp_path / "none", None)
    with pytest.raises(DataError, match="no pictures in the class folders"):
        evaluate.evaluate_classes(colours(), tmp_path)


def test_class_embeddings_have_length_one() -> None:
    found = class_embeddings(load("toy-vit-32", "random"), ["hen", "great white shark"])
    assert found.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_retrieval_of_a_shard(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(6))
    figures = evaluate.evaluate(colours(), Eval(retrieval=Data(shards=(str(tmp_path / "0.tar"),))))
    assert figures["recall_at_1"] == 1.0
    assert set(figures) == {f"{way}recall_at_{k}" for way in ("", "text_to_image_", "image_to_text_") for k in (1, 5, 10)}


def test_retrieval_leaves_broken_pictures_out(tmp_path: Path) -> None:
    from tests.train.toys import pairs, write_tar
    from train.data import open_data

    broken = [("000000099.png", b"no picture"), ("000000099.txt", caption(0).encode())]
    write_tar(tmp_path / "0.tar", [*pairs(range(3)), *broken, *pairs(range(3, 6))])
    assert evaluate_retrieval(colours(), open_data(Data(shards=(str(tmp_path / "0.tar"),))))["recall_at_1"] == 1.0
