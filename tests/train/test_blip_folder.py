"""A BLIP's folder: both classes load it, anything that is none is refused in one line, and nothing is unpickled that acts."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.blips import write_blip
from train.errors import WeightsError
from train.models import weights
from train.models.blip_folder import digest, load
from train.models.folder import learnt

KINDS = ("BlipForConditionalGeneration", "BlipForImageTextRetrieval")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("blip") / "model")


@pytest.fixture
def copy(blip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blip, tmp_path / "copy"))


def refused(folder: Path, kind: str = KINDS[0]) -> str:
    with pytest.raises(WeightsError) as error:
        load(kind, str(folder))  # type: ignore[arg-type]
    said = str(error.value).replace(str(folder), "FOLDER")
    assert "\n" not in said
    return said


def test_one_folder_is_a_captioner_and_a_matcher(blip: Path) -> None:
    captioner, matcher = (load(kind, str(blip)).model for kind in KINDS)  # type: ignore[arg-type]
    ours = load_file(blip / "model.safetensors")
    assert torch.equal(captioner.text_decoder.bert.encoder.layer[1].output.dense.weight,
                       ours["text_decoder.bert.encoder.layer.1.output.dense.weight"])
    assert torch.equal(matcher.itm_head.weight, ours["itm_head.weight"])
    assert torch.equal(captioner.vision_model.post_layernorm.weight, matcher.vision_model.post_layernorm.weight)


def test_weights_of_the_other_kind_alone_are_refused(copy: Path) -> None:
    """transformers would fill what is missing with random numbers."""
    tensors = load_file(copy / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("itm_head")}, copy / "model.safetensors", {"format": "pt"})
    said = refused(copy, KINDS[1])
    assert said == "FOLDER: not weights of a BlipForImageTextRetrieval: it lacks 2 tensors, first itm_head.bias"
    assert load("BlipForConditionalGeneration", str(copy))


def test_tensors_in_a_pickle_are_loaded(blip: Path, copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert torch.equal(load("BlipForImageTextRetrieval", str(copy)).model.itm_head.weight,
                       load("BlipForImageTextRetrieval", str(blip)).model.itm_head.weight)
    assert digest(str(copy)) == digest(str(blip)), "the content counts, not the form"


class Payload:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_with_a_payload_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"itm_head.weight": torch.zeros(2, 32), "x": Payload(copy / "trace")}, copy / "pytorch_model.bin")
    assert refused(copy).startswith("FOLDER: not weights of a BlipForConditionalGeneration: ")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        digest(str(copy))
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(copy / "trace"), protocol=2))
    refused(copy)
    assert not (copy / "trace").exists()


@pytest.mark.parametrize(("file", "content"), [
    ("model.safetensors", b"\x08\0\0\0"), ("config.json", b"{}"), ("config.json", b"[1"),
    ("config.json", b'{"model_type": "blip", "text_config": {"hidden_size": "x"}}')])
def test_broken_files_are_one_line(file: str, content: bytes, copy: Path) -> None:
    (copy / file).write_bytes(content)
    assert refused(copy).startswith("FOLDER: not weights of a BlipForConditionalGeneration: ")


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "no folder FOLDER, and no name of Hugging Face's"
    assert refused(tmp_path) == "FOLDER holds neither model.safetensors nor pytorch_model.bin"


def test_the_digest_is_of_tensors_tokenizer_and_preprocessing(blip: Path, copy: Path, tmp_path: Path) -> None:
    same = digest(str(blip))
    assert digest(str(copy)) == same
    (copy / "notes.txt").write_text("other")
    assert digest(str(copy)) == same
    settings = (copy / "preprocessor_config.json").read_text()
    (copy / "preprocessor_config.json").write_text(settings.replace("true", "false", 1))
    assert digest(str(copy)) != same
    assert digest(str(write_blip(tmp_path / "other", seed=1))) != same


def test_a_tokenizer_that_is_not_the_model_s_is_refused(copy: Path) -> None:
    """Without its files transformers makes one that knows five words, and every caption is empty."""
    for path in (*copy.glob("tokenizer*"), *copy.glob("vocab.txt")):
        path.unlink()
    assert "its tokenizer knows 5 words and the model" in refused(copy)
    with pytest.raises(WeightsError, match="its tokenizer knows 5 words"):
        weights.load("blip-toy-32", str(copy))


def test_preprocessing_of_another_size_is_refused(copy: Path) -> None:
    said = json.loads((copy / "preprocessor_config.json").read_text())
    del said["size"]
    (copy / "preprocessor_config.json").write_text(json.dumps(said))
    assert "makes pictures of 384 pixels, and it sees 48" in refused(copy)


def test_what_is_no_blip_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="no BLIP: its config.json is missing, or no BLIP's"):
        digest(str(tmp_path))


@pytest.mark.parametrize(("card", "loss"), [
    (None, None), ('{"settings": {"loss": "blip_filter"}}', "blip_filter"), ('{"settings": {}}', None), ("[1]", None),
    ("{", None)])
def test_what_weights_learnt_by(card: str | None, loss: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "train.json").write_text(card)
    assert learnt(str(tmp_path)) == loss
