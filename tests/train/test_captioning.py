"""Captions of held-out pictures: which are judged and against what, behind which prompt, in a training and by whom not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from tests.train.blip_toys import TOY
from tests.train.toys import caption, config, encoded, logged, scene, shard, uid_pairs, write_tar
from train.captioning import decoding, writer, written_figures
from train.captions import caption_figures
from train.config import Data, Eval
from train.data import open_data
from train.errors import ConfigError, DataError
from train.loop import train
from train.models.weights import load


class Says:
    """Writes the same whatever it sees, and remembers what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), list[str]()

    def captions(self, images: Sequence[Image.Image], uids: Sequence[str]) -> list[list[str]]:
        self.asked += uids
        return [[self.texts.pop(0)] for _ in images]


def held_out(path: Path, members: list[tuple[str, bytes]]) -> Data:
    return Data(shards=(str(write_tar(path, members)),))


def test_one_caption_a_picture_against_all_that_it_has(tmp_path: Path) -> None:
    """The second of two is as right as the first; a broken picture is neither written of nor counted."""
    written = [["a red dog runs on grass", "the dog is red and runs"], ["two boats at sea in fog"], ["a hill"]]
    members = uid_pairs(range(3), dict(enumerate(written)))
    broken = [("9.png", b"no picture"), ("9.txt", b"a cat")]
    rows = open_data(held_out(tmp_path / "0.tar", [*members[:2], *broken, *members[2:]]))
    made = ["the dog is red and runs", "a ship", "a hill"]
    says = Says(*made)
    found = written_figures(cast(Any, says), rows, batch=2)
    assert found == {f"caption_{name}": value for name, value in caption_figures(made, written).items()}
    assert found["caption_cider_d"] > caption_figures(["a cat", *made[1:]], written)["cider_d"]
    assert len(set(says.asked)) == 3


@pytest.mark.slow
def test_the_same_pictures_have_the_same_captions_whatever_the_batch(tmp_path: Path) -> None:
    rows = open_data(held_out(tmp_path / "0.tar", uid_pairs(range(5))))
    settings = Eval(captions=Data(shards=("x",)))
    for model in (TOY, "toy-coca-32"):
        writes = writer(load(model, "random:1"), settings)
        assert writes is not None
        assert written_figures(writes, rows, batch=2) == written_figures(writes, rows)


def test_no_picture_at_all(tmp_path: Path) -> None:
    rows = open_data(held_out(tmp_path / "0.tar", [("0.png", b"no picture"), ("0.txt", b"a cat")]))
    with pytest.raises(DataError, match="captions: no picture can be decoded"):
        written_figures(cast(Any, Says()), rows)


@pytest.mark.parametrize(("settings", "prompt"), [
    ({"loss": "blip_captioner"}, "a picture of "), ({"loss": "blip_captioner", "prompt": "a photo of "}, "a photo of "),
    ({"loss": "blip"}, ""), ({"loss": "coca"}, ""), ({"loss": "blip", "eval": {"caption_prompt": "here "}}, "here "),
    ({"loss": "blip_captioner", "eval": {"caption_prompt": ""}}, "")])
def test_captions_begin_as_those_that_were_learnt(settings: dict[str, Any], prompt: str) -> None:
    found = config(data="x", **{**settings, "eval": {"captions": "y.tar", **settings.get("eval", {})}})
    assert decoding(found.eval).prompt == prompt


def test_a_training_without_captions_is_the_one_it_was() -> None:
    assert not any("caption" in name for name in config(data="x", eval={"retrieval": "y.tar"}).identity()["eval"])


def test_what_cannot_be_asked() -> None:
    for asked, message in (({"caption_beams": 3}, "eval: caption_prompt and caption_beams need captions"),
                           ({"captions": "x", "caption_beams": 1}, "eval.caption_beams: 1 is not a whole number of 2 or more"),
                           ({"captions": "x", "caption_prompt": 3}, "eval.caption_prompt: 3 is not text")):
        with pytest.raises(ConfigError, match=message):
            config(data="x", eval=asked)
    with pytest.raises(ConfigError, match=r"^eval.captions: a CoCa samples its captions; beams are for BLIP$"):
        writer(load("toy-coca-32", "random"), Eval(captions=Data(shards=("x",)), caption_beams=3))
    assert writer(load("toy-vit-32", "random"), Eval()) is None


def test_a_training_of_a_model_that_writes_nothing_is_refused_before_its_first_step(tmp_path: Path) -> None:
    tar = str(shard(tmp_path / "0.tar", range(16)))
    with pytest.raises(ConfigError, match=r"^eval.captions: toy-conv-32 writes no captions"):
        train(config(data=tar, eval={"captions": tar}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_says_how_good_its_captions_are(tmp_path: Path) -> None:
    """At every evaluation, and the best by a figure of captions is what is exported."""
    tar = str(shard(tmp_path / "0.tar", range(16)))
    result = train(config(data=tar, model=TOY, loss="blip_captioner", samples_seen=16,
                          eval={"captions": tar, "every": 1, "keep_best": "caption_rouge_l"}), tmp_path / "run")
    lines = [line for line in logged(tmp_path / "run") if "caption_bleu_4" in line]
    assert len(lines) == 2 and all(0 <= line["caption_rouge_l"] <= 1 and line["caption_num_words"] > 0 for line in lines)
    assert result.figures["caption_rouge_l"] == max(line["caption_rouge_l"] for line in lines)
    card = json.loads((result.checkpoint / "train.json").read_text())
    assert card["chosen_by"] == "caption_rouge_l" and card["settings"]["eval"]["caption_prompt"] == "a picture of "


@pytest.mark.slow
def test_a_captioner_that_knows_its_pictures_by_heart(tmp_path: Path) -> None:
    """Eight scenes: searched for, their captions are nearly the written ones; before, they were not."""
    members = [member for n in range(8) for member in (
        (f"{n}.png", encoded(scene(n))), (f"{n}.txt", f"here you see {caption(n)} and no more".encode()))]
    tar = str(write_tar(tmp_path / "0.tar", members))
    result = train(config(data=tar, model=TOY, loss="blip_captioner", batch=8, samples_seen="150 epochs", lr=3e-3, crop=[1, 1],
                          log_every=50, eval={"captions": tar, "caption_beams": 3, "before": True}), tmp_path / "run")
    before = json.loads((result.checkpoint / "train.json").read_text())["before"]
    assert before["caption_bleu_4"] < 0.1 and result.figures["caption_bleu_4"] > 0.6
    assert result.figures["forgetting_caption_cider_d"] < -3
