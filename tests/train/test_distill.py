"""Learning from a teacher's stored embeddings: beside every contrastive loss, in chunks, from a run's own tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curate.cli import main
from tests.train.blip_toys import TOY
from tests.train.toys import COLOURS, Killed, caption, config, logged, scene, uid_pairs, write_tar
from train.data import open_data
from train.errors import ConfigError
from train.loader import Loader
from train.loop import Result, train
from train.models.clip import embed_images, embed_texts, normalised
from train.models.weights import load
from train.order import make_order
from train.pictures import TrainCrop

NUM = 24


def taught() -> np.ndarray:
    """(NUM, colours): what the teacher makes of a picture, and of its text: their colour, and nothing else."""
    return np.array([[float(colour in caption(n).split()) for colour in COLOURS] for n in range(NUM)], np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pictures, and a table in which picture and text of a row are one to the teacher."""
    folder = tmp_path_factory.mktemp("distill")
    write_tar(folder / "0.tar", uid_pairs(range(NUM), {n: [caption(n)] for n in range(NUM)}))
    vectors = pa.array(list(taught()), pa.list_(pa.float32()))
    pq.write_table(pa.table({"uid": [f"u{n}" for n in range(NUM)], "ref_image_emb": vectors, "ref_text_emb": vectors}),
                   folder / "ref.parquet")
    return {"shards": str(folder / "0.tar"), "scores": str(folder / "ref.parquet")}


def trained(data: dict[str, str], out: Path, *, kill: int = -1, **more: Any) -> Result:
    settings = {"data": data, "model": "toy-vit-32", "distill": {"of": "ref", "weight": 2.0, "scale": 10},
                "samples_seen": "2 epochs"}

    def watch(progress: Any) -> None:
        if progress.step == kill:
            raise Killed

    return train(config(**{**settings, **more}), out, watch)


@pytest.mark.parametrize(("loss", "model"), [("clip", "toy-vit-32"), ("siglip", "toy-vit-32"), ("blip_filter", TOY)])
def test_it_stands_beside_every_contrastive_loss(loss: str, model: str, data: dict[str, str], tmp_path: Path) -> None:
    trained(data, tmp_path, loss=loss, model=model)
    lines = [line for line in logged(tmp_path) if "loss" in line]
    assert all(line["loss_distill"] > 0 for line in lines)
    for line in lines:
        parts = [line[name] for name in line if name.startswith("loss_")]
        assert sum(parts) == pytest.approx(line["loss"], rel=1e-5)


def test_weight_times_how_far_the_pupil_is(data: dict[str, str], tmp_path: Path) -> None:
    """By hand, of the first batch of a model that has not learnt yet."""
    settings = config(data=data, model="toy-vit-32", crop=(1.0, 1.0), distill={"of": "ref", "weight": 2.0, "scale": 10})
    trained(data, tmp_path, crop=(1.0, 1.0))
    index = open_data(settings.data, None, ("ref_image_emb", "ref_text_emb"))
    loaded = load("toy-vit-32", "random:0")
    crop = TrainCrop(32, (1.0, 1.0), False, loaded.squash)
    batch = next(Loader(index, make_order(index, settings), crop, loaded.tokenizer).batches(0, 1))
    pixels_NCHW = normalised(batch.pixels_NHWC, loaded.model, torch.device("cpu"))
    with torch.no_grad():
        image = loaded.model.encode_image(pixels_NCHW, normalize=True)
        text = loaded.model.encode_text(batch.tokens_NL, normalize=True)
        ours = loaded.model.logit_scale.exp() * image @ text.T
        theirs = torch.from_numpy(taught()[batch.pictures])
        wanted = (10 * theirs @ theirs.T).softmax(1)
        found = -(wanted * ours.log_softmax(1)).sum(1).mean() - (wanted * ours.T.log_softmax(1)).sum(1).mean()
    assert logged(tmp_path)[0]["loss_distill"] == pytest.approx(float(2 * found / 2), rel=2e-3)


def test_chunks_and_a_kill_change_nothing(data: dict[str, str], tmp_path: Path) -> None:
    whole = trained(data, tmp_path / "whole", checkpoint_every=2, keep=2)
    trained(data, tmp_path / "chunks", micro_batch=3)
    steps = ([line for line in logged(tmp_path / name) if "loss" in line] for name in ("whole", "chunks"))
    for one, other in zip(*steps, strict=True):
        assert other["loss_distill"] == pytest.approx(one["loss_distill"], rel=1e-4)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    with pytest.raises(Killed):
        trained(data, tmp_path / "killed", kill=3, checkpoint_every=2, keep=2)
    assert trained(data, tmp_path / "killed", checkpoint_every=2, keep=2).weights == whole.weights


def test_a_pupil_comes_to_see_what_its_teacher_sees(data: dict[str, str], tmp_path: Path) -> None:
    """Its pictures and texts are alike where their colours are; a pupil without a teacher tells shapes and places too."""
    theirs = taught() @ taught().T
    apart = ~np.eye(NUM, dtype=bool)

    def likeness(result: Result) -> float:
        pupil = load("toy-vit-32", str(result.checkpoint))
        images, texts = embed_images(pupil, [scene(n) for n in range(NUM)]), embed_texts(pupil, [caption(n) for n in range(NUM)])
        return float(np.corrcoef((images @ texts.T)[apart], theirs[apart])[0, 1])

    more = {"samples_seen": "30 epochs", "lr": 3e-3, "weight_decay": 0.0, "batch": 24}
    alone = trained(data, tmp_path / "alone", **{**more, "distill": None})
    with_teacher = trained(data, tmp_path / "taught", **{**more, "distill": {"of": "ref", "weight": 5.0, "scale": 10}})
    assert likeness(with_teacher) > likeness(alone) + 0.1


def test_what_makes_no_embeddings_cannot_be_taught() -> None:
    with pytest.raises(ConfigError, match="distill: loss: blip_captioner makes no embeddings"):
        config(data="x", model=TOY, loss="blip_captioner", distill={})
    with pytest.raises(ConfigError, match="distill: no setting 'off'; did you mean 'of'"):
        config(data="x", distill={"off": "ref"})


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline over twelve pictures that embeds them and trains on what it packed."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for n in range(12):
        scene(n).save(f"pictures/{n:02d}.png")
        Path(f"pictures/{n:02d}.txt").write_text(f"picture number {n}")
    Path("pipeline.yaml").write_text("""\
source: {images: pictures}
steps:
  - clip_embed: {as: ref, model: curate-conv-64, pretrained: 'random:1'}
  - keep: caption != 'picture number 3'
shards: {rows: 6, vectors: [ref_image_emb, ref_text_emb]}
train: {model: curate-conv-64, samples_seen: 16, batch: 4, threads: 1, tensorboard: false, distill: {of: ref}}
""")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", "pipeline.yaml", "--out", "out", "--on", "local", "--workers", "0", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_a_pipeline_trains_on_what_it_embedded(pool: Path) -> None:
    """The tables beside the tars have the vectors, the tars have none."""
    assert run() == 0
    table = pq.read_table(sorted(Path("out/shards").glob("*.parquet")))
    assert len(table) == 11 and {len(v) for v in table["ref_image_emb"].to_pylist()} == {128}
    assert b"ref_image_emb" not in Path("out/shards/00000.tar").read_bytes()
    (log,) = Path("out/models").glob("*/log.jsonl")
    assert '"loss_distill"' in log.read_text()


@pytest.mark.parametrize(("setting", "line"), [
    ("shards={rows: 6}", "6: train.distill: it reads ref_image_emb and ref_text_emb beside the shards, which hold them with"),
    ("shards={vectors: [ref_image_emb, ref_text_emb], caption: uid}",
     "6: train.distill: 'caption' was embedded, and 'uid' is the shards' caption"),
    ("shards.vectors=ref_image_emb", "5: shards.vectors: 'ref_image_emb' is not a list of columns of embeddings"),
    ("shards.vectors=[ref_imag_emb]", "5: shards.vectors: 'ref_imag_emb' is not a column of embeddings; did you mean")])
def test_tables_without_the_vectors(setting: str, line: str, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--set", setting) == 2
    assert f"pipeline.yaml:{line}" in " ".join(capsys.readouterr().err.split())
    assert not Path("out/shards").exists()
