"""Settings: every mistake is one line that says where, what, and what there is."""

from pathlib import Path

import pytest

from train.config import Config, Data, Eval, Length, from_mapping, load
from train.errors import ConfigError

MINIMAL = "data: shards/*.tar\nsamples_seen: 3000\n"


def read(tmp_path: Path, text: str, *sets: str) -> Config:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return load(path, sets)


def test_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, MINIMAL)
    assert found == Config(data=Data(shards=("shards/*.tar",)), samples_seen=Length(samples=3000))
    assert (found.model, found.init, found.batch, found.lr, found.betas) == ("ViT-B-32", None, 256, 5e-4, (0.9, 0.98))
    assert (found.loss, found.micro_batch, found.ema) == ("clip", None, None)


def test_every_kind_of_setting(tmp_path: Path) -> None:
    found = read(tmp_path, """
model: curate-conv-64
init: laion2b_s34b_b79k
data: {table: subset.parquet, root: runs/x}
samples_seen: 1.5 epochs
batch: 1024
lr: 5e-4
lr_image: 0
betas: [0.9, 0.95]
clip_grad: null
crop: [0.5, 1]
flip: true
eval: {retrieval: [a.tar, b.tar], every: 100}
""", "lr_text=0.1", "eval.every=200", "precision=bf16")
    assert found == Config(
        model="curate-conv-64", init="laion2b_s34b_b79k", data=Data(table=("subset.parquet",), root="runs/x"),
        samples_seen=Length(epochs=1.5), batch=1024, lr=5e-4, lr_image=0.0, lr_text=0.1, betas=(0.9, 0.95), clip_grad=None,
        crop=(0.5, 1.0), flip=True, precision="bf16", eval=Eval(retrieval=Data(shards=("a.tar", "b.tar")), every=200))


@pytest.mark.parametrize(("value", "expected"), [
    ("50M", Length(50_000_000)), (3000, Length(3000)), ("3_000", Length(3000)), ("2.5k", Length(2500)), ("1B", Length(10**9)),
    ("3 epochs", Length(epochs=3)), ("1 epoch", Length(epochs=1)), ("0.5epochs", Length(epochs=0.5))])
def test_how_long(value: object, expected: Length) -> None:
    assert from_mapping({"data": "x", "samples_seen": value}).samples_seen == expected


def test_steps() -> None:
    assert Length(samples=1000).steps(128, 9) == 8
    assert Length(samples=1024).steps(128, 9) == 8
    assert Length(samples=1).steps(128, 9) == 1
    assert Length(epochs=3).steps(128, 9) == 27
    assert Length(epochs=0.5).steps(128, 9) == 5


@pytest.mark.parametrize(("text", "message"), [
    ("", "train.yaml:1: a training is a map of settings, with 'data:' and 'samples_seen:'"),
    ("- a\n", "train.yaml:1: a training is a map of settings, with 'data:' and 'samples_seen:'"),
    ("data: [\n", "train.yaml:2: not YAML: expected the node content, but found '<stream end>'"),
    ("data: x\n", "train.yaml:1: train needs the setting 'samples_seen'"),
    (MINIMAL + "modle: x\n", "train.yaml:3: train has no setting 'modle'; did you mean 'model'?"),
    (MINIMAL + "\nbatch: 0\n", "train.yaml:4: batch: 0 is not a whole number of 2 or more"),
    (MINIMAL + "batch: 2.5\n", "train.yaml:3: batch: 2.5 is not a whole number of 2 or more"),
    (MINIMAL + "batch: true\n", "train.yaml:3: batch: True is not a whole number of 2 or more"),
    (MINIMAL + "lr: 0\n", "train.yaml:3: lr: 0 is not a number above 0"),
    (MINIMAL + "lr: fast\n", "train.yaml:3: lr: 'fast' is not a number above 0"),
    (MINIMAL + "lr_text: -1\n", "train.yaml:3: lr_text: -1 is not a number of 0 or more"),
    (MINIMAL + "betas: 0.9\n", "train.yaml:3: betas: 0.9 is not a list of two numbers"),
    (MINIMAL + "betas: [0.9, 1]\n", "train.yaml:3: betas: 1 is not a number from 0 to 0.99999"),
    (MINIMAL + "crop: [1, 0.5]\n", "train.yaml:3: crop: [1, 0.5] is not a smaller and a larger share"),
    (MINIMAL + "flip: maybe\n", "train.yaml:3: flip: 'maybe' is neither true nor false"),
    (MINIMAL + "precision: bf17\n", "train.yaml:3: precision: 'bf17'; did you mean 'bf16'?"),
    (MINIMAL + "loss: itm\n", "train.yaml:3: loss: 'itm'; there is blip, blip_captioner, blip_filter, clip, coca, siglip"),
    (MINIMAL + "loss: siglp\n", "train.yaml:3: loss: 'siglp'; did you mean 'siglip'?"),
    (MINIMAL + "micro_batch: 0\n", "train.yaml:3: micro_batch: 0 is not a whole number of 1 or more, nor auto"),
    (MINIMAL + "ema: 1\n", "train.yaml:3: ema: 1 is not a number from 0 to 0.999999"),
    (MINIMAL + "eval: {evry: 3}\n", "train.yaml:3: eval has no setting 'evry'; did you mean 'every'?"),
    (MINIMAL + "eval: 3\n", "train.yaml:3: eval: 3 is not a map of settings"),
    (MINIMAL + "eval: {every: -1}\n", "train.yaml:3: eval.every: -1 is not a whole number of 0 or more"),
    (MINIMAL + "eval: {classes: names.txt}\n", "train.yaml:3: eval: classes need images, a folder with one folder a class"),
    (MINIMAL + "batch: 8\nbatch: 9\n", "train.yaml:4: 'batch' stands twice"),
    (MINIMAL + "eval: {every: 1,\n       retrieval: a.tar, every: 2}\n", "train.yaml:4: 'every' stands twice"),
    (MINIMAL + "betas: &a [*a]\n", "train.yaml:3: betas: [[...]] is not a list of two numbers"),
    ("data: 3\nsamples_seen: 1\n", "train.yaml:1: data: 3 is not a path or a list of paths"),
    ("data: {tabel: x}\nsamples_seen: 1\n", "train.yaml:1: data: no setting 'tabel'; did you mean 'table'?"),
    ("data: {root: x}\nsamples_seen: 1\n", "train.yaml:1: data: give either shards or a table"),
    ("data: [{shards: a, weight: 2}, b]\nsamples_seen: 1\n",
     "train.yaml:1: data: a list holds either paths or sources like {shards: a/*.tar, weight: 2}"),
    ("data: [{shards: a, weigth: 2}]\nsamples_seen: 1\n",
     "train.yaml:1: data: source 1: no setting 'weigth'; did you mean 'weight'?"),
    ("data: [{shards: a, weight: 0}]\nsamples_seen: 1\n",
     "train.yaml:1: data: source 1: weight: 0 is not a number above 0"),
    ("data: {shards: a, missing: drop}\nsamples_seen: 1\n", "train.yaml:1: data: missing belongs to scores"),
    ("data: 'pipe:cat a.tar'\nsamples_seen: 1\n",
     "train.yaml:1: data: 'pipe:cat a.tar' is no file; only files are read, commands never run"),
    (MINIMAL + "prompt: a photo of\n", "train.yaml:3: prompt: loss: clip knows none, only blip_captioner"),
    (MINIMAL + "caption_weight: 3\n", "train.yaml:3: caption_weight: loss: clip knows none, only coca"),
    (MINIMAL + "lock: {image: all, text: all}\n", "train.yaml:3: lock: both towers whole, and without init they stay random"),
    (MINIMAL + "curriculum: 0.3\n",
     "train.yaml:3: curriculum: 0.3 is not a map like {by: clip_cos, from: 0.3}"),
    (MINIMAL + "curriculum: {by: clip_cos, from: 2}\n",
     "train.yaml:3: curriculum: from: 2 is not a number above 0 and at most 1"),
    ("data: x\nsamples_seen: lots\n",
     "train.yaml:2: samples_seen: 'lots' is not a number of samples like 50M or 3000, nor of epochs like '3 epochs'"),
])
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(error.value) == f"{tmp_path}/{message}"
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("sets", "message"), [
    ("lr", "--set lr: write it as key=value, like lr=1e-3"),
    ("a.b.c=1", "--set a.b.c=1: write it as key=value, like lr=1e-3"),
    ("lr=[", "--set lr=[: '[' is not YAML"),
    ("data.root=x", "--set data.root=x: 'data' holds 'shards/*.tar', nothing can be set inside it"),
])
def test_wrong_overrides(tmp_path: Path, sets: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, MINIMAL, sets)
    assert str(error.value) == message


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "none.yaml")
    assert str(error.value) == f"no settings file {tmp_path}/none.yaml"


def test_settings_inside_a_pipeline_say_where() -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping({"data": "x", "samples_seen": 1, "lr": -1}, where="p.yaml:7")
    assert str(error.value) == "p.yaml:7: lr: -1 is not a number above 0"


def test_identity_leaves_out_what_changes_nothing() -> None:
    base = {"data": "a", "samples_seen": 100}
    first = from_mapping(base).identity()
    assert from_mapping({**base, "data": "b", "workers": 9, "keep": 3, "log_every": 1, "threads": 1}).identity() == first
    assert from_mapping({**base, "lr": 1e-4}).identity() != first
    assert from_mapping({**base, "samples_seen": 101}).identity() != first


def test_identity_knows_trainings_from_before_a_setting() -> None:
    base = {"data": "a", "samples_seen": 100}
    first = from_mapping(base).identity()
    assert not {"loss", "micro_batch", "ema"} & first.keys()
    assert from_mapping({**base, "loss": "clip", "micro_batch": None, "ema": None}).identity() == first
    for changed in ({"loss": "siglip"}, {"micro_batch": 64}, {"ema": 0.99}):
        assert from_mapping({**base, **changed}).identity() == {**first, **changed}


def test_identity_knows_trainings_from_before_a_setting_of_eval() -> None:
    first = from_mapping({"data": "a", "samples_seen": 100, "eval": {"images": "b"}}).identity()
    assert first["eval"] == {"retrieval": None, "images": "b", "classes": None, "every": 0}
    probed = from_mapping({"data": "a", "samples_seen": 100, "eval": {"images": "b", "images_train": "c", "benchmarks": "d"}})
    assert probed.identity()["eval"] == {**first["eval"], "images_train": "c", "benchmarks": ["d"]}


@pytest.mark.parametrize(("settings", "message"), [
    ({"images_train": "a"}, "eval: images_train needs images, the pictures that its probe is tested on"),
    ({"probe": True}, "eval: probe needs benchmarks; over folders of pictures it is images_train"),
    ({"benchmarks": 3}, "eval.benchmarks: 3 is not a path or a list of paths"),
])
def test_settings_of_eval_that_do_not_fit_together(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping({"data": "a", "samples_seen": 100, "eval": settings})
    assert str(error.value) == message
