"""`curate evaluate` and `curate export`: what they print, what they leave, what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BlipForConditionalGeneration

from curate.cli import main
from tests.blips import write_blip
from tests.train.blip_toys import TOY, saved, toy
from tests.train.test_benchmarks import classification
from tests.train.test_weights import Payload
from tests.train.toys import shard
from train.checkpoint import write_model
from train.files import write_json
from train.models.folder import CARD
from train.models.weights import load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, load("toy-vit-32", "random:1"))
    write_json(folder / CARD, {"model": "toy-vit-32", "data": {"decontaminated": []}})
    return folder


def curate(*words: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def test_figures_and_what_is_not_known_of_the_data(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "0.tar", range(3))
    assert curate("evaluate", checkpoint, "--retrieval", tmp_path / "0.tar") == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()][:3] == [
        "text_to_image_recall_at_1", "image_to_text_recall_at_1", "recall_at_1"]
    assert str(tmp_path / "0.tar") in said.err


NO_LIST = "'decontaminated' is no list of maps, each with a benchmark and its digest"


@pytest.mark.parametrize(("said", "message"), [
    ('{"model": "toy-vit-32", "data": {"decontaminated": [1]}}', NO_LIST),
    ('{"model": "toy-vit-32", "data": {"decontaminated": "coco"}}', NO_LIST),
    ('{"model": "toy-vit-32", "data": "pool.parquet"}', "not what a training writes"),
    ("[]", "not what a training writes"), ("no json", "not what a training writes")])
def test_a_card_that_no_training_wrote_is_one_line_before_anything_is_measured(
        said: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / CARD).write_text(said)
    shard(tmp_path / "0.tar", range(3))
    for model in ((), ("--model", "toy-vit-32")):
        assert curate("evaluate", folder, "--retrieval", tmp_path / "0.tar", "--results", tmp_path / "r", *model) == 2
        assert capsys.readouterr() == ("", f"{folder / CARD}: {message}\n")
    assert not (tmp_path / "r").exists()


def test_weights_in_a_file_have_no_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(load("toy-vit-32", "random").model.state_dict(), tmp_path / "weights.pt")
    shard(tmp_path / "0.tar", range(3))
    assert curate("evaluate", tmp_path / "weights.pt", "--retrieval", tmp_path / "0.tar", "--model", "toy-vit-32") == 0
    assert capsys.readouterr().err.startswith("nothing says that the training data was checked")


def test_results_are_appended_and_stand_side_by_side(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.probe.MAX_ITERATIONS", 3)
    folder, results = classification(tmp_path / "colours", test=range(6), train=range(12)), tmp_path / "results.jsonl"
    for _ in range(2):
        assert curate("evaluate", checkpoint, "--benchmark", folder, "--probe", "--results", results) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {**lines[0], "date": ""} == {**lines[1], "date": ""}
    assert list(lines[0]["figures"]) == ["colours/accuracy_at_1", "colours/accuracy_at_5", "colours/mean_per_class",
                                         "colours/probe_accuracy_at_1", "colours/probe_mean_per_class", "colours/probe_l2"]
    table = capsys.readouterr().out.splitlines()[-9:]
    assert [len(row.split()) for row in table] == [2, *[3] * 8]
    assert table[3].split() == ["colours/accuracy_at_1", *[f"{lines[0]['figures']['colours/accuracy_at_1']:.4f}"] * 2]


def test_an_export_says_how_far_it_is_from_the_original(checkpoint: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert curate("export", checkpoint, tmp_path / "out", "--format", "safetensors") == 0
    assert (tmp_path / "out" / CARD).read_bytes() == (checkpoint / CARD).read_bytes()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("largest difference of image embeddings: ")
    assert said[-1] == f"{tmp_path / 'out'}: open_clip, safetensors"


def test_a_pickle_with_a_payload_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {**load("toy-vit-32", "random").model.state_dict(), "payload": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / "weights.pt")
    benchmark = classification(tmp_path / "colours", test=range(2))
    for verb, where in (("export", [tmp_path / "out"]), ("evaluate", ["--benchmark", benchmark])):
        assert curate(verb, tmp_path / "weights.pt", *where, "--model", "toy-vit-32") == 2
        said = capsys.readouterr().err
        assert "weights.pt: holds more than tensors" in said and said.count("\n") == 1
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_captions_are_judged_behind_the_prompt_that_was_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(toy(), tmp_path / "model")
    write_json(model / CARD, {"model": TOY, "settings": {"loss": "blip_captioner", "prompt": "a photo of "}})
    held_out, results = shard(tmp_path / "0.tar", range(4)), tmp_path / "results.jsonl"
    for more in ((), ("--caption-prompt", ""), ("--caption-beams", 3)):
        assert curate("evaluate", model, "--captions", held_out, "--results", results, *more) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert all(list(line["figures"]) == [f"caption_{name}" for name in (
        "bleu_4", "rouge_l", "cider_d", "distinct_1", "distinct_2", "num_words")] and set(line["data"]) == {"captions"}
        for line in lines)
    ways = ("nucleus p 0.9, seed 0, 5 to 30 tokens, repetition penalty 1.1, prompt 'a photo of'",
            "nucleus p 0.9, seed 0, 5 to 30 tokens, repetition penalty 1.1, prompt ''",
            "beam 3, 5 to 30 tokens, repetition penalty 1, prompt 'a photo of'")
    assert tuple(line["settings"]["decoding"] for line in lines) == ways
    said = capsys.readouterr()
    assert said.out.count("caption_cider_d") == 3 and str(held_out) in said.err


def test_others_captioners_write_behind_blips_prompt(tmp_path: Path) -> None:
    """A folder as transformers' captioner has it: the other half is not asked for."""
    theirs, results = tmp_path / "theirs", tmp_path / "results.jsonl"
    BlipForConditionalGeneration.from_pretrained(write_blip(theirs)).save_pretrained(theirs)
    assert curate("evaluate", theirs, "--model", f"hf-blip:{theirs}", "--captions", shard(tmp_path / "0.tar", range(2)),
                  "--results", results) == 0
    assert json.loads(results.read_text())["settings"]["decoding"].endswith("prompt 'a picture of'")


def test_a_model_that_writes_nothing_is_refused_first(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.evaluate.evaluate_retrieval", lambda *args: pytest.fail("measured before it was refused"))
    tar = shard(tmp_path / "0.tar", range(3))
    assert curate("evaluate", checkpoint, "--retrieval", tar, "--captions", tar) == 2
    assert capsys.readouterr().err == ("eval.captions: toy-vit-32 writes no captions; coca_ViT-B-32 does, and a BLIP with a "
                                       "decoder\n")


@pytest.mark.parametrize(("words", "message"), [
    (("evaluate", "random"), "say what to evaluate on: --images DIR, --retrieval TARS, --captions TARS, --benchmark DIR"),
    (("evaluate", "random", "--benchmark", "none"), "no folder none"),
    (("evaluate", "random", "--images", ".", "--probe"),
     "eval: probe needs benchmarks; over folders of pictures it is images_train"),
    (("evaluate", "random", "--captions", "none.tar"), "no file matches none.tar"),
    (("evaluate", "random", "--images", ".", "--caption-prompt", ""),
     "eval: caption_prompt and caption_beams need captions, the pictures to write of"),
    (("evaluate", "random", "--captions", "x", "--caption-beams", "1"),
     "eval.caption_beams: 1 is not a whole number of 2 or more"),
    (("evaluate", "random", "--images", ".", "--results", "setup.cfg"), "setup.cfg: not a file of results"),
    (("export", "runs/gone", "out"), "no file or folder runs/gone"),
    (("export", "random", "out"), "random does not say which model it is; name it with --model"),
    (("export", "random", "out", "--model", "toy-vit-32", "--format", "onnx"),
     "no format 'onnx'; there is huggingface, safetensors"),
    (("export", "random", "out", "--model", "toy-conv-32"),
     ("toy-conv-32 cannot be a CLIPModel or SiglipModel of transformers: its image tower is a ModifiedResNet, and theirs is "
      "a ViT")),
])
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("[x]\n")
    assert curate(*words) == 2
    assert capsys.readouterr().err == message + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["setup.cfg"]
