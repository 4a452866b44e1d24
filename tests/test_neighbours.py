"""The neighbours read our shards (webdataset, a reader of img2dataset's layout, open_clip's own trainer), and we read theirs."""

import gc
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from tests.benchmarks import peer_venv
from tests.running import environment, run_here, write_pipeline
from tests.site.make import make
from tests.site.server import serve

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (0, 0, 0), (255, 255, 255)]


def jpeg(colour: tuple[int, int, int], size: int = 32) -> bytes:
    """A square of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def is_near(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    """Whether the middle of a picture has this colour, but for what JPEG does to it."""
    return all(abs(a - b) < 8 for a, b in zip(image.getpixel((16, 16)), colour, strict=True))  # type: ignore[arg-type]


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of four rows each: a square and the colour's name."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i, colour in enumerate(COLOURS):
        Path(f"photos/{i}.jpg").write_bytes(jpeg(colour))
        Path(f"photos/{i}.txt").write_text(f"colour {colour}")
        Path(f"photos/{i}.json").write_text(json.dumps({"n": i, "uid": "a.b" if i == 3 else f"row{i}"}))
    file = write_pipeline(Path(), "image_shape", "keep: width_px = 32", source="source: {images: photos, uid: uid}\n",
                          after="shards: {rows: 4}\n")
    run_here(file, Path("out"))
    return tmp_path / "out" / "shards"


def test_webdataset_reads_them(shards: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)    # webdataset leaves closing its files to the garbage collector
        dataset = webdataset.WebDataset(str(shards / "{00000..00001}.tar"), shardshuffle=False)
        samples = list(dataset.decode("pil").to_tuple("jpg", "txt", "json"))
        del dataset
        gc.collect()
    assert [(text, meta["n"], meta["width_px"]) for _, text, meta in samples] == [
        (f"colour {colour}", i, 32) for i, colour in enumerate(COLOURS)]
    assert all(is_near(image, colour) for (image, _, _), colour in zip(samples, COLOURS, strict=True))


def by_img2datasets_layout(folder: Path) -> Iterator[tuple[Mapping[str, Any], bytes, str, Mapping[str, Any]]]:
    """(row, picture, text, meta) as a reader of img2dataset's output goes about it: parquet first, then the tar by key."""
    for path in sorted(folder.glob("*_stats.json")):
        stats = json.loads(path.read_text())
        number = path.name.removesuffix("_stats.json")
        table = pq.read_table(folder / f"{number}.parquet")
        assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"] == len(table)
        assert stats["status_dict"] == {"success": len(table)}
        with tarfile.open(folder / f"{number}.tar") as tar:
            for row in table.to_pylist():
                data = [tar.extractfile(f"{row['key']}.{e}").read() for e in ("jpg", "txt", "json")]  # type: ignore[union-attr]
                yield row, data[0], data[1].decode(), json.loads(data[2])


def test_a_reader_of_img2datasets_layout_reads_them(shards: Path) -> None:
    found = list(by_img2datasets_layout(shards))
    assert [(row["caption"], text, meta["caption"], row["n"]) for row, _, text, meta in found] == [
        (text := f"colour {colour}", text, text, i) for i, colour in enumerate(COLOURS)]
    assert [data for _, data, _, _ in found] == [jpeg(colour) for colour in COLOURS]


def test_what_img2datasets_own_writer_writes_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.writer import WebDatasetSampleWriter

    monkeypatch.chdir(tmp_path)
    names = ["url", "caption", "key", "status", "error_message"]
    writer = WebDatasetSampleWriter(0, str(tmp_path), True, 5, pa.schema([(n, pa.string()) for n in names]), "jpg")
    for i, colour in enumerate(COLOURS):
        status, error = ("failed_to_download", "HTTP Error 404: Not Found") if i == 2 else ("success", None)
        meta = dict(zip(names, (f"http://a.org/{i}.jpg", f"colour {i}", f"{i:09d}", status, error), strict=True))
        writer.write(None if i == 2 else jpeg(colour), meta["key"], meta["caption"], meta)
    writer.close()
    file = write_pipeline(tmp_path, "image_shape", "keep: width_px = 32 and caption <> 'colour 5'",
                          source="source: {shards: 00000.tar}\n", after="shards: {rows: 4}\n")
    run_here(file, tmp_path / "out")
    found = list(by_img2datasets_layout(tmp_path / "out" / "shards"))
    assert [(row["url"], row["source_key"], text) for row, _, text, _ in found] == [
        (f"http://a.org/{i}.jpg", f"{i:09d}", f"colour {i}") for i in (0, 1, 3, 4, 6, 7)]
    assert [data for _, data, _, _ in found] == [jpeg(COLOURS[i]) for i in (0, 1, 3, 4, 6, 7)]


IMG2DATASET = """
from img2dataset import download
if __name__ == "__main__":
    download(url_list="pool.parquet", input_format="parquet", url_col="url", caption_col="caption", output_folder="theirs",
             output_format="webdataset", image_size=64, processes_count=1, thread_count=4, number_sample_per_shard=40, timeout=5)
"""


@pytest.mark.slow
def test_a_model_is_trained_on_what_img2dataset_downloaded(tmp_path: Path) -> None:
    """img2dataset's own download of a site where some pages are gone, then `curate train` on its tars as they are."""
    make(tmp_path / "site", 120, faults={"dead_404": .05, "html": .05})
    with serve(tmp_path / "site") as site:
        (tmp_path / "pool.parquet").write_bytes(site.pool.read_bytes())
        env = {**environment(), "NO_ALBUMENTATIONS_UPDATE": "1"}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMG2DATASET], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=100)
    stats = [json.loads(p.read_text()) for p in sorted((tmp_path / "theirs").glob("*_stats.json"))]
    assert [s["count"] for s in stats] == [40, 40, 40] and sum(s["successes"] for s in stats) == 108, done.stderr[-2000:]
    (tmp_path / "train.yaml").write_text("{model: curate-conv-64, data: theirs/*.tar, samples_seen: 2 epochs, batch: 36, "
                                         "threads: 1, log_every: 1, tensorboard: false, eval: {retrieval: theirs/*.tar}}")
    done = subprocess.run([sys.executable, "-m", "curate", "train", "train.yaml", "--out", "model"], cwd=tmp_path,
                          env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "model/log.jsonl").read_text().splitlines()]
    assert [line["samples_seen"] for line in log if "loss" in line] == [36 * n for n in range(1, 7)]
    assert any("recall_at_10" in line for line in log)


TINY = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}
TRAIN = """
import sys, open_clip, webdataset
from open_clip_train.main import main
assert webdataset.__version__ == "0.2.86", webdataset.__version__
open_clip.add_model_config("configs")
main(sys.argv[1:])
"""


def open_clip_python() -> Path:
    """An environment with the webdataset that open_clip's trainer pins; the rest is that of ours, which is gigabytes."""
    try:
        python = peer_venv("open_clip", ["webdataset==0.2.86", f"numpy=={version('numpy')}", f"pyyaml=={version('pyyaml')}"])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no environment for open_clip's trainer: {error}")
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_open_clips_own_trainer_trains_on_them(shards: Path, tmp_path: Path) -> None:
    python = open_clip_python()
    Path("configs").mkdir()
    Path("configs/tiny.json").write_text(json.dumps(TINY))
    done = subprocess.run(
        [python, "-W", "ignore", "-c", TRAIN, "--train-data", str(shards / "{00000..00001}.tar"), "--dataset-type", "webdataset",
         "--train-num-samples", "8", "--model", "tiny", "--batch-size", "2", "--workers", "1", "--epochs", "2", "--warmup", "1",
         "--precision", "fp32", "--device", "cpu", "--log-every-n-steps", "1", "--logs", "logs", "--name", "run"],
        capture_output=True, text=True, timeout=300, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    log = Path("logs/run/out.log").read_text()
    assert "Handling webdataset error" not in log
    losses = re.findall(r"Train Epoch: (\d) \[ *(\d+)/8 .*Contrastive_loss: ([0-9.]+)", log)
    assert [(epoch, count) for epoch, count, _ in losses] == [(str(e), str(n)) for e in range(2) for n in (2, 4, 6, 8)]
    assert all(0 < float(loss) < 3 for _, _, loss in losses)
    assert Path("logs/run/checkpoints/epoch_2.pt").exists()
