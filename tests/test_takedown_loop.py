"""The takedown drill after a loop: two models were trained on the picture, and tables of pairs and held-out pictures name it."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import block_list, files, tombstones
from curate.cards.card import write_card
from curate.cli import main
from curate.errors import RunStopped
from curate.pages.page import write as write_report
from curate.shards import verify
from curate.store import Store
from curate.training import Trainer
from tests.embedded import DIMS, STEP, indexed
from tests.picture_server import Pictures, served
from tests.running import environment, tree
from tests.test_takedown import left, stored, uid_of
from tests.train.toys import COLOURS, colour_of

ROWS = 96
TRAINED, HELD = (3, 4, 10, 15), (7, 30)
"""Which rows go together: 4 is 3 under another caption, 10 a smaller JPEG, 15 a duplicate by embedding; 30 is 7 once more."""
COPY_OF, URL_OF = {10: 3, 20: 3}, {4: 3, 30: 7}
"""20 is ill at first and turns out to be picture 3."""
WHOLE = ("source", "columns", "images", "kept", "shards", "index", "report", "card", "models", "tombstones", "funnel.json",
         "rounds.json", "run.json")


def picture(number: int, side_px: int = 48) -> Image.Image:
    """Large soft spots, unlike any other's, in the colour that the caption says."""
    spots = np.random.default_rng(number).integers(0, 256, (6, 6, 3)) * 0.5 + np.array(COLOURS[colour_of(number)]) * 0.5
    return Image.fromarray(spots.astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC).resize((side_px, side_px))


def file_of(number: int) -> bytes:
    out = io.BytesIO()
    if number in COPY_OF:
        picture(COPY_OF[number], 40).save(out, "JPEG")
    else:
        picture(number).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def web() -> Iterator[Pictures]:
    with served(Pictures(file_of, ill={20: 503})) as found:
        yield found


def url(web: Pictures, number: int) -> str:
    """That of the row with this number."""
    return web.url(URL_OF.get(number, number))


def split(web: Pictures) -> int:
    """A seed of `held_out` that sets picture 7 aside and trains on 3: which pictures it takes depends on their urls."""
    def is_held(seed: int, number: int) -> bool:
        hashed = blake2b(f"{seed} {block_list.image_id_of(url(web, number))}".encode(), digest_size=8).digest()
        return int.from_bytes(hashed) < 0.3 * 2**64
    return next(seed for seed in range(1000) if is_held(seed, 7) and not is_held(seed, 3))


def prepare(here: Path, web: Pictures) -> None:
    """pool.parquet, steps.py and pipeline.yaml."""
    pics = [3 if n == 15 else COPY_OF.get(n, URL_OF.get(n, n)) for n in range(ROWS)]
    captions = [f"a {colour_of(pic)} thing, the very private caption {n}x" for n, pic in enumerate(pics)]
    pq.write_table(pa.table({"url": [url(web, n) for n in range(ROWS)], "caption": captions, "n": range(ROWS), "pic": pics}),
                   here / "pool.parquet")
    (here / "steps.py").write_text(STEP)
    (here / "photo.png").write_bytes(file_of(3))
    (here / "held.png").write_bytes(file_of(7))
    (here / "pipeline.yaml").write_text(f"""\
source: {{pairs: pool.parquet, url: url, caption: caption, shard_rows: 20}}
steps:
  - download: {{image_size: 48, resize_mode: keep_ratio, resize_only_if_bigger: true, allow_private: [127.0.0.0/8], retries: 0,
               part_images: 32, min_success: 0}}
  - keep: status = 'ok'
  - image_shape
  - image_hash
  - same_image
  - ./steps.py:embed
  - dedupe: {{cos: 0.96}}
  - held_out: {{share: 0.3, seed: {split(web)}}}
  - keep: not held_out
  - clip_embed: {{as: loop, model: curate-conv-64, pretrained: loop, first: raw}}
  - clip_score: {{of: loop}}
  - keep: {{top: 0.8, by: loop_clip_cos}}
shards: {{rows: 20, block: 1}}
train: {{samples_seen: 480, batch: 16, threads: 1, lr: 1e-3, tensorboard: false}}
loop: {{trainings: 2, promote_if: recall_at_5 improves}}
""")


def curate(here: Path, *words: str) -> str:
    """What a command says, as a process of its own."""
    done = subprocess.run([sys.executable, "-m", "curate", *words], cwd=here, env=environment(), text=True, capture_output=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def taken(*words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with contextlib.suppress(SystemExit):
        main(["takedown", *words])
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def needles(root: Path) -> dict[str, list[bytes]]:
    """Of each row that goes its caption, url, uid and image_id, its stored picture, and every vector there is of it."""
    source = pq.read_table(sorted((root / "source").glob("0*.parquet"))).to_pylist()
    found: dict[str, list[bytes]] = {}
    for number in (*TRAINED, *HELD):
        row = source[number]
        texts = [row["caption"], row["url"] + '"', row["uid"], row["image_id"]]
        drawn = [np.float16(np.random.default_rng(seed).standard_normal(DIMS)).tobytes() for seed in (1_000_000 + number,)]
        found[str(number)] = [t.encode() for t in texts] + drawn + stored(root, row["image_id"]) + list(vectors(root, number))
    return found


def vectors(root: Path, number: int) -> Iterator[bytes]:
    """What the loop's models made of a row, in every round."""
    for part in (root / "columns").glob(f"clip_embed-*/{number // 20:05d}.*.parquet"):
        for row in pq.read_table(part).to_pylist():
            if row["row"] == number % 20:
                yield from (np.array(v, np.float16).tobytes() for name, v in row.items() if name.endswith("_emb") and v)


def tables(root: Path, kind: str) -> list[set[str]]:
    """The uids in each table of pairs, or of held-out pairs."""
    return [set(pq.read_table(path)["uid"].to_pylist()) for path in sorted((root / "models").glob(f"{kind}-*.parquet"))]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("on", ["local", "ray"])
def test_after_a_loop_nothing_is_left_and_nothing_comes_back(tmp_path: Path, web: Pictures, on: str,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, web)
    run = ("run", "pipeline.yaml", "--on", on, "--workers", "2", "--out", "run")
    curate(tmp_path, *run)
    root = tmp_path / "run"
    write_report(root, "test")
    list(write_card(root, "test"))
    indexed(root, model="loop")
    rounds = json.loads((root / "rounds.json").read_text())
    models = sorted({Path(r["weights"]).parts[1] for r in rounds[1:]})
    assert len(models) == 2, "two trained rounds, or the drill shows less"
    wanted = needles(root)
    assert all(len(wanted[str(n)]) > 6 for n in (3, 4)), "vectors of several rounds and a stored picture"
    uids = {n: uid_of(root, n) for n in (*TRAINED, *HELD)}
    assert uids[3] in tables(root, "pairs")[0] & tables(root, "pairs")[1] and uids[7] in tables(root, "held_out")[0]
    places = {line.split(":")[0].split("/")[0] for line in left(root, wanted)}
    assert places >= {"source", "columns", "images", "shards", "index", "models"}, "or this test finds nothing anywhere"

    said = taken(str(root), "--image", str(tmp_path / "photo.png"), capsys=capsys)
    assert said[0].startswith("4 rows of 3 pictures go: ")
    saw = ", ".join(f"models/{name}" for name in models)
    assert f"trained on it, or may be: {saw}; a model does not forget, only a new training does without" in said
    assert left(root, {str(n): wanted[str(n)] for n in TRAINED}) == []
    assert not set().union(*tables(root, "pairs"), *tables(root, "held_out")) & {uids[n] for n in TRAINED}
    assert uids[7] in tables(root, "held_out")[0], "and of the others nothing went"
    assert list(verify(root / "shards")) == []

    said = taken(str(root), "--image", str(tmp_path / "held.png"), capsys=capsys)
    assert said[0].startswith("2 rows of 1 pictures go: ")
    assert not any(line.startswith("trained on it") for line in said), "it was held out, so no model was trained on it"
    assert left(root, wanted) == []
    assert_stays(tmp_path, run, web, wanted, capsys)


def assert_stays(here: Path, run: tuple[str, ...], web: Pictures, wanted: dict[str, list[bytes]],
                 capsys: pytest.CaptureFixture[str]) -> None:
    """Twice is the same as once; a rerun measures, trains and asks for nothing; what a heal brings again is thrown away."""
    root = here / "run"
    after, asked = tree(root, *WHOLE), list(web.asked)
    for photo in ("photo.png", "held.png"):
        assert taken(str(root), "--image", str(here / photo), capsys=capsys) == [f"{root} holds nothing of it"]
    assert tree(root, *WHOLE) == after
    assert "measured now: nothing" in curate(here, *run)
    assert web.asked == asked
    same = ("shards", "kept", "columns", "images", "models", "source")
    assert tree(root, *same) == {name: digest for name, digest in after.items() if name.split("/")[0] in same}
    web.ill = {}
    curate(here, "heal", "run", *run[2:6])
    assert web.asked[len(asked):] == [20]
    assert left(root, wanted) == []
    statuses = [s for part in root.glob("columns/download-*/*.parquet") for s in pq.read_table(part)["status"].to_pylist()]
    assert statuses.count("removed") == 1
    assert list(verify(root / "shards")) == []


@pytest.mark.slow
def test_a_model_that_saw_what_was_taken_down_is_not_trained_again(tmp_path: Path) -> None:
    """Its table is another one since; without tombstones another table is another training's, and is refused by the trainer."""
    trainer = Trainer(Store(tmp_path, "test"), {"samples_seen": 8, "batch": 4}, "curate-conv-64", "")
    model = tmp_path / "models" / files.digest([trainer.config_digest, "rows"]) / "model"
    files.write_json(model / "train.json", {}, "test")
    with pytest.raises(RunStopped, match="no file matches .*pairs.parquet"):
        trainer.train(tmp_path / "pairs.parquet", "rows")
    tombstones.add(tmp_path, ["image_id:" + "0" * 32], "test")
    assert trainer.train(tmp_path / "pairs.parquet", "rows") == str(model.relative_to(tmp_path))
