"""A model on shards, on folders of classes and on benchmarks."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.test_benchmarks import classification, retrieval
from tests.train.toys import caption, colour_of, config, encoded, scene, shard
from train import evaluate
from train.config import Data, Eval
from train.errors import ConfigError, DataError
from train.evaluate import class_embeddings, evaluate_retrieval, read_classes
from train.figures import accuracy_at_k, recall_at_k
from train.loop import train
from train.models.weights import Loaded, load


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
    assert evaluate.evaluate(colours(), settings) == {
        "accuracy_at_1": 1.0, "accuracy_at_5": 1.0, "mean_per_class": 1.0}


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
    recalls = {f"{way}recall_at_{k}" for way in ("", "text_to_image_", "image_to_text_") for k in (1, 5, 10)}
    assert set(figures) - recalls == {"alignment", "modality_gap", "image_uniformity", "text_uniformity", "image_effective_rank",
                                      "text_effective_rank"}


def test_retrieval_leaves_broken_pictures_out(tmp_path: Path) -> None:
    from tests.train.toys import pairs, write_tar
    from train.data import open_data

    broken = [("000000099.png", b"no picture"), ("000000099.txt", caption(0).encode())]
    write_tar(tmp_path / "0.tar", [*pairs(range(3)), *broken, *pairs(range(3, 6))])
    assert evaluate_retrieval(colours(), open_data(Data(shards=(str(tmp_path / "0.tar"),))))["recall_at_1"] == 1.0


def test_a_benchmark_of_classes_by_its_own_templates(tmp_path: Path) -> None:
    """Under OpenAI's prompts the colour model is right; under a template of the folder that always says red, of one in six."""
    folder = classification(tmp_path / "colours", test=range(12))
    settings = Eval(benchmarks=(str(folder),))
    assert evaluate.evaluate(colours(), settings) == {
        "colours/accuracy_at_1": 1.0, "colours/accuracy_at_5": 1.0, "colours/mean_per_class": 1.0}
    (folder / "zeroshot_classification_templates.txt").write_text("red, and not {c}\n")
    assert evaluate.evaluate(colours(), settings)["colours/accuracy_at_1"] == pytest.approx(1 / 6)


def test_a_probe_of_a_benchmark_and_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.probe.MAX_ITERATIONS", 30)
    folder = classification(tmp_path / "colours", test=range(12), train=range(12, 36), val=range(36, 48))
    found = evaluate.evaluate(colours(), Eval(benchmarks=(str(folder),), probe=True))
    assert found["colours/probe_accuracy_at_1"] == found["colours/probe_mean_per_class"] == 1.0
    for part, numbers in (("train", range(12, 24)), ("test", range(6))):
        for n in numbers:
            (tmp_path / part / colour_of(n)).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / colour_of(n) / f"{n}.png").write_bytes(encoded(scene(n)))
    found = evaluate.evaluate(colours(), Eval(images=str(tmp_path / "test"), images_train=str(tmp_path / "train")))
    assert found["probe_accuracy_at_1"] == found["accuracy_at_1"] == 1.0


def test_a_benchmark_of_captions(tmp_path: Path) -> None:
    """Every one of a picture's captions is right for it."""
    found = evaluate.evaluate(colours(), Eval(benchmarks=(str(retrieval(tmp_path / "scenes", range(6))),)))
    assert found["scenes/recall_at_1"] == 1.0 and len(found) == 9 + 6


def test_what_is_missing_is_said_before_any_time_is_spent(tmp_path: Path) -> None:
    first = classification(tmp_path / "a" / "colours", test=range(6))
    second = classification(tmp_path / "b" / "colours", test=range(6))
    (tmp_path / "images" / "hen").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    for settings, message in (
            (Eval(benchmarks=(str(first), str(second))), "two benchmarks are called colours"),
            (Eval(benchmarks=(str(first),), probe=True), "colours: no tars in train/"),
            (Eval(benchmarks=(str(tmp_path / "none"),)), "no folder .*/none"),
            (Eval(images=str(tmp_path / "images"), images_train=str(tmp_path / "train")), "no folder .*/train/hen")):
        with pytest.raises(DataError, match=message):
            evaluate.opened(settings)


def test_every_figure_is_known_by_name_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`keep_best` is checked against these names before the first step."""
    monkeypatch.setattr("train.probe.MAX_ITERATIONS", 3)
    folder = classification(tmp_path / "colours", test=range(12), train=range(12, 24))
    for n in range(6):
        (tmp_path / "images" / colour_of(n)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / colour_of(n) / f"{n}.png").write_bytes(encoded(scene(n)))
    images = str(tmp_path / "images")
    settings = Eval(retrieval=Data(shards=(str(shard(tmp_path / "0.tar", range(6))),)), images=images, images_train=images,
                    benchmarks=(str(folder), str(retrieval(tmp_path / "scenes", range(6)))), probe=True)
    assert set(evaluate.measured(settings, evaluate.opened(settings))) == evaluate.evaluate(colours(), settings).keys()


@pytest.mark.parametrize(("what", "message"), [
    ({"keep_best": "recal_at_1"}, "'recal_at_1' is not measured; did you mean 'recall_at_1'?"),
    ({"retrieval": "cut.tar"}, "cut short"),
    ({"benchmarks": ["colours"]}, "says class 2, and classnames.txt has 2")])
def test_what_cannot_be_judged_is_not_trained(what: dict[str, object], message: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = shard(tmp_path / "0.tar", range(8)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    classification(tmp_path / "colours", test=range(6))
    (tmp_path / "colours" / "classnames.txt").write_text("red\nblue\n")
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        train(config(data="0.tar", eval={"retrieval": "0.tar", **what}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_model_is_right_about_nothing(tmp_path: Path) -> None:
    """Embeddings that are no numbers rank last, whatever a comparison with them says."""
    broken = np.full((6, 4), np.nan, np.float32)
    assert set(recall_at_k(broken, broken, np.arange(6)).values()) == {0.0}
    assert set(accuracy_at_k(broken, np.eye(6, 4, dtype=np.float32), np.arange(6)).values()) == {0.0}
    half = np.eye(6, 4, dtype=np.float32)
    half[0] = np.nan
    assert recall_at_k(half, half, np.arange(6), at=(1,))["recall_at_1"] < 0.6
    loaded = colours()
    with torch.no_grad():
        loaded.model.encode_image = lambda pixels, normalize=False: torch.full((len(pixels), 3), torch.nan)  # type: ignore[assignment]
    found = evaluate.evaluate(loaded, Eval(retrieval=Data(shards=(str(shard(tmp_path / "0.tar", range(6))),))))
    assert found["recall_at_10"] == 0 and "alignment" not in found
