"""The takedown drill: after it nothing of a picture is in any file of a run, and no rerun and no heal brings it back."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from curate import block_list, files, shards, tombstones
from curate.cards.card import write_card
from curate.cli import main
from curate.errors import UserError
from curate.folder import Folder
from curate.pages.page import write as write_report
from curate.pairs import kept, write_pairs
from curate.retrieval.query import Part
from curate.retrieval.search import Request, Searcher
from curate.retrieval.server import Settings, create_app
from curate.store import Store
from curate.takedown.command import takedown
from tests.embedded import DIMS, STEP, drawn, indexed
from tests.picture_server import Pictures, served
from tests.running import run_here, tree, write_pipeline
from tests.sources import write_tar

ROWS = 24
GONE = (3, 4, 10, 15, 17)
"""4: the row asked for. 3, 17: its picture with other captions. 10: re-encoded. 15: a duplicate by embedding."""
STEPS = ("download: {image_size: 48, allow_private: [127.0.0.0/8], retries: 0, part_images: 32, min_success: 0}",
         "keep: status = 'ok'", "image_shape", "image_hash", "same_image", "keep: not is_same_image", "./steps.py:embed",
         "dedupe: {cos: 0.96}", "keep: not is_dup", "caption_length", "keep: num_chars >= 5")
SOURCE = "source: {pairs: POOL, url: url, caption: caption, shard_rows: 6}\n"
WHOLE = ("source", "columns", "images", "kept", "shards", "index", "report", "card", "models", "tombstones", "funnel.json",
         "run.json")


def noise(number: int) -> Image.Image:
    """Picture `number`: large soft spots, unlike any other's."""
    spots = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(spots).resize((48, 48), Image.Resampling.BICUBIC)


def file_of(number: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    noise(number).save(out, kind)
    return out.getvalue()


def sent(number: int) -> bytes:
    """What /N.png answers: picture 10 is a JPEG of picture 3, and 20, which is ill at first, turns out to be picture 3."""
    return file_of(3, "JPEG") if number == 10 else file_of({20: 3}.get(number, number))


@pytest.fixture(scope="module")
def web() -> Iterator[Pictures]:
    with served(Pictures(sent, ill={20: 503})) as found:
        yield found


def url(web: Pictures, number: int) -> str:
    """That of the row with this number: 4 and 17 have the picture of 3."""
    return web.url({4: 3, 17: 3}.get(number, number))


def captions(number: int) -> str:
    return f"the very private caption {number}x"


@pytest.fixture(scope="module")
def made(web: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and its finished run: index, report, card, a table of pairs and a model that saw it."""
    here = tmp_path_factory.mktemp("made")
    pics = [3 if n in GONE else n for n in range(ROWS)]
    pq.write_table(pa.table({"url": [url(web, n) for n in range(ROWS)], "caption": [captions(n) for n in range(ROWS)],
                             "n": range(ROWS), "pic": pics}), here / "pool.parquet")
    (here / "steps.py").write_text(STEP)
    source = SOURCE.replace("POOL", str(here / "pool.parquet"))
    run_here(write_pipeline(here, *STEPS, source=source, after="shards: {rows: 6, block: 1}\n"), here / "run")
    root = here / "run"
    folder = Folder.open(root)
    write_pairs(Store(root, "test"), folder.source, folder.columns, folder.chain, root / "models" / "pairs-abc.parquet", kept)
    for name in ("m1/model/open_clip_config.json", "m1/checkpoints/8/train.json", "m2/checkpoints/8/train.json"):
        files.write_json(root / "models" / name, {}, "test")
    funnel = json.loads((root / "funnel.json").read_text())
    files.write_json(root / "rounds.json", [{
        "round": 1, "weights": "models/m1/model", "weights_digest": "d", "trained_on": "abc", "figures": {"recall_at_10": 0.5},
        "config": "c", "data": {"rows": 18, "digest": ""}, "promoted": True, "funnel": funnel}], "test")
    indexed(root)
    write_report(root, "test")
    list(write_card(root, "test"))
    return here


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "here"))


def taken(root: Path, dry_run: bool = False, bits: int = 4, **asked: Any) -> list[str]:
    given = {"file": None, "image": None, "uids": (), **asked}
    return list(takedown(str(root), bits=bits, dry_run=dry_run, attempt="test", **given))


def uid_of(root: Path, number: int) -> str:
    """The uid of row `number` in a run that still has it."""
    return str(pq.read_table(sorted((root / "source").glob("0*.parquet")))["uid"][number])


def needles(root: Path) -> dict[str, list[bytes]]:
    """What must be nowhere: of each row that goes its caption, url, uid and image_id, its stored picture and its vectors."""
    found = {}
    source = pq.read_table(sorted((root / "source").glob("0*.parquet"))).to_pylist()
    for number in GONE:
        row = source[number]
        texts = [row["caption"], row["url"] + '"', row["uid"], row["image_id"]]
        raw = [np.random.default_rng(seed).standard_normal(DIMS) for seed in (3, 1_000_000 + number)]
        vectors = [np.float16(v).tobytes() for v in (*raw, *drawn(3, 1_000_000 + number))]
        found[str(number)] = [t.encode() for t in texts] + vectors + stored(root, row["image_id"])
    return found


def stored(root: Path, image_id: str) -> list[bytes]:
    """The bytes of a stored picture."""
    for part in (root / "columns").glob("download-*/*.parquet"):
        for row in pq.read_table(part).to_pylist():
            if row["image_id"] == image_id and row["image"]:
                data = (root / row["image"]["file"]).read_bytes()
                return [data[row["image"]["offset"]:][: row["image"]["length"]]]
    return []


def content(path: Path) -> bytes:
    """A file's bytes, and those of its values where it is a table."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
    elif path.suffix == ".arrow":
        table = pa.ipc.open_file(path).read_all()
    else:
        return data
    buffers = [b for c in table.columns for chunk in c.chunks for b in chunk.buffers() if b is not None]
    quoted = json.dumps(table.to_pylist(), default=str).encode()
    return data + quoted + b"".join(b.to_pybytes() for b in buffers)


def left(root: Path, wanted: dict[str, list[bytes]]) -> list[str]:
    """Where something of it is still to be found. A tombstone may hold an image_id, which is a hash."""
    texts = {path: content(path) for path in sorted(root.rglob("*")) if path.is_file()}
    return [f"{path.relative_to(root)}: {number} {needle[:40]!r}" for path, text in texts.items()
            for number, parts in wanted.items() for needle in parts
            if needle in text and not (path.name == tombstones.NAME and len(needle) == 32)]


def test_the_drill(here: Path, web: Pictures) -> None:
    root, pipeline = here / "run", here / "pipeline.yaml"
    wanted, uid = needles(root), uid_of(root, 4)
    seen, others = uid_of(root, 15), uid_of(root, 5)
    assert len({line.split(":")[0] for line in left(root, wanted)}) > 20, "or this test finds nothing anywhere"
    before = tree(root, "shards")
    block = next(n for n in GONE if uid_of(root, n) in packed(root)) // 6
    assert len(packed(root) & {uid_of(root, n) for n in GONE}) == 1

    with TestClient(create_app(Searcher.open(root), root, Settings()), "http://127.0.0.1") as client:
        assert client.get(f"/v1/image/{seen}").status_code == 200
        said = taken(root, uids=[uid])
        assert client.get(f"/v1/image/{seen}").status_code == 503, "a server that was there before answers nothing any more"
    assert said[0] == ("5 rows of 3 pictures go: 1 on the list, 3 that look like them, 1 tied to these (one picture, copies, "
                       "duplicates)")
    assert left(root, wanted) == []
    funnel = json.loads((root / "funnel.json").read_text())
    assert funnel[0] == {"what": "source", "in": 24, "dropped": 0, "unknown": 0, "quarantined": 0, "removed": 5, "kept": 19,
                         "clauses": [{"text": "taken down", "dropped": 0, "unknown": 0, "removed": 5}]}
    assert funnel[-1]["kept"] == 18                                        # 20 has not come yet
    assert list(shards.verify(root / "shards")) == []
    changed = {name for name, digest in tree(root, "shards").items() if before[name] != digest} - {"shards/manifest.json"}
    assert changed == {f"shards/0000{block}{end}" for end in (".tar", ".parquet", "_stats.json")}, "only the block that held it"
    record = json.loads((root / "takedowns.jsonl").read_text())
    assert (record["rows"], record["pictures"], record["kept_rows"], record["models"]) == (5, 3, 1, ["models/m1", "models/m2"])
    assert [path.parent.name for path in (root / "models").glob("*/checkpoints")] == ["m1"], "what is not finished begins anew"
    assert not {"caption", "url", "uid"} & record.keys()
    assert any("models/m1, models/m2; a model does not forget" in line for line in said)
    assert_not_found(root, seen, others)

    after, asked = tree(root, *WHOLE), list(web.asked)
    assert taken(root, uids=[uid]) == [f"{root} holds nothing of it"]
    assert tree(root, *WHOLE, "takedowns.jsonl").keys() == after.keys() | {"takedowns.jsonl"}
    assert tree(root, *WHOLE) == after
    outcome = run_here(pipeline, root)
    assert +outcome.measured == {} and web.asked == asked, "nothing is decided, measured or asked for anew"
    same = ("shards", "kept", "columns", "images")
    assert tree(root, *same) == {name: digest for name, digest in after.items() if name.startswith(same)}

    web.ill = {}
    healed = run_here(pipeline, root, heal=True)
    web.ill = {20: 503}
    assert web.asked[len(asked):] == [20]
    assert {e["what"]: e["removed"] for e in healed.funnel if e["removed"]} == {"source": 5, "download": 1}
    assert left(root, wanted) == []
    assert statuses(root).count("removed") == 1


def packed(root: Path) -> set[str]:
    """The uids in the shards."""
    return set(pq.read_table(sorted((root / "shards").glob("0*.parquet")))["uid"].to_pylist())


def statuses(root: Path) -> list[str]:
    folder = Folder.open(root)
    tables = [pq.read_table(part) for part in folder.root.glob("columns/download-*/*.parquet")]
    return [status for table in tables for status in table["status"].to_pylist()]


def assert_not_found(root: Path, uid: str, other: str) -> None:
    """Not by search, not by uid, and its picture is answered as one that never was."""
    searcher = Searcher.open(root)
    page = searcher.search(Request((Part(vector=drawn(3)[0].tolist()),), k=100, dropped=True, group=False))
    assert len(page.hits) == 18 and max(hit.score for hit in page.hits) < 0.9
    with TestClient(create_app(searcher, root, Settings()), "http://127.0.0.1", raise_server_exceptions=False) as client:
        never, gone, there = (client.get(f"/v1/image/{u}") for u in ("0" * 32, uid, other))
    assert (gone.status_code, gone.content) == (never.status_code, never.content) and gone.status_code == 404
    assert there.status_code == 200


def test_a_dry_run_names_what_would_go_and_changes_nothing(here: Path) -> None:
    root = here / "run"
    before, uids = tree(root, *WHOLE), sorted(uid_of(root, n) for n in GONE)
    said = taken(root, dry_run=True, uids=[uid_of(root, 3)])
    assert said[0].startswith("5 rows of 3 pictures would go: ")
    assert sorted(line.strip() for line in said if line.startswith("  ")) == uids
    assert tree(root, *WHOLE) == before and not (root / "takedowns.jsonl").exists()


def entries(root: Path) -> dict[str, str]:
    """The same picture, named in every way there is."""
    url = str(pq.read_table(root / "source" / "00000.parquet")["url"][3])
    small = hashlib.sha256(stored(root, block_list.image_id_of(url))[0])
    return {"url": url, "sha256 as it came": hashlib.sha256(file_of(3)).hexdigest(),
            "sha256 as stored": f"sha256:{small.hexdigest()}",
            "md5 as stored": block_list.md5_of(stored(root, block_list.image_id_of(url))[0]),
            "image_id": f"image_id:{block_list.image_id_of(url)}", "uid": f"uid:{uid_of(root, 17)}",
            "phash": str(Folder.open(root).shard(0).column(Folder.open(root).columns["phash"])[3].as_py())}


@pytest.mark.parametrize("kind", ["url", "sha256 as it came", "sha256 as stored", "md5 as stored", "image_id", "uid", "phash"])
def test_every_way_to_name_a_picture_finds_all_of_it(made: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "list.txt").write_text(f"# one entry\n\n{entries(made / 'run')[kind]}\n")
    said = taken(made / "run", dry_run=True, file=tmp_path / "list.txt")
    assert said[0].startswith("5 rows of 3 pictures would go: "), said


def test_a_picture_finds_what_looks_like_it(made: Path, tmp_path: Path) -> None:
    noise(7).resize((200, 200)).save(tmp_path / "photo.jpg", quality=60)
    said = taken(made / "run", dry_run=True, image=tmp_path / "photo.jpg")
    assert [line.strip() for line in said if line.startswith("  ")] == [uid_of(made / "run", 7)]
    noise(99).save(tmp_path / "other.png")
    assert taken(made / "run", dry_run=True, image=tmp_path / "other.png") == [f"{made / 'run'} holds nothing of it"]


@pytest.mark.parametrize("writes", [2, 7, 18, pytest.param(1, marks=pytest.mark.slow), *(
    pytest.param(n, marks=pytest.mark.slow) for n in range(3, 42, 3))])
def test_killed_at_any_write_the_same_command_ends_the_same(here: Path, tmp_path: Path, writes: int,
                                                            request: pytest.FixtureRequest) -> None:
    root, uid = here / "run", uid_of(here / "run", 3)
    if not request.node.get_closest_marker("slow"):
        for name in ("index", "report", "card"):
            shutil.rmtree(root / name)
    wanted, whole = needles(root), Path(shutil.copytree(here, tmp_path / "whole")) / "run"
    taken(whole, uids=[uid])
    with full_disk_at(writes):
        taken(root, uids=[uid])
    if writes > 1:
        with pytest.raises(UserError, match="a takedown of .* did not come to its end; `curate takedown .*` goes on with it"):
            tombstones.refuse_unfinished(root)
        assert not names_a_row((root / tombstones.PENDING).read_text(), wanted)
    taken(root, uids=[uid])
    assert left(root, wanted) == []
    assert tree(root, *WHOLE) == tree(whole, *WHOLE)
    assert len((root / "takedowns.jsonl").read_text().splitlines()) == 1


def names_a_row(text: str, wanted: dict[str, list[bytes]]) -> bool:
    """Whether a text holds caption, url or uid of a row that goes."""
    return any(needle.decode() in text for parts in wanted.values() for needle in parts[:3])


@contextmanager
def full_disk_at(writes: int) -> Iterator[None]:
    """The disk is full at this rename, and what is under way dies of it. 0: never."""
    left_writes, replace = [writes], os.replace

    def failing(*paths: Any) -> None:
        left_writes[0] -= 1
        if not left_writes[0]:
            raise OSError(28, "No space left on device")
        replace(*paths)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(Exception, match="No space left") if writes else nullcontext():
            yield


@pytest.mark.slow
def test_a_row_that_comes_again_is_blank_from_the_start(made: Path, here: Path, web: Pictures) -> None:
    root = here / "run"
    wanted = needles(root)
    taken(root, uids=[uid_of(root, 3)])
    again = pa.table({"url": [url(web, 3), url(web, 30)], "caption": [captions(3), "a new one"], "n": [3, 30], "pic": [3, 30]})
    pq.write_table(again, here / "pool2.parquet")
    pool = f"{made / 'pool.parquet'}"
    text = (here / "pipeline.yaml").read_text().replace(pool, f"[{pool}, {here / 'pool2.parquet'}]")
    (here / "pipeline.yaml").write_text(text)
    asked = len(web.asked)
    outcome = run_here(here / "pipeline.yaml", root)
    assert (outcome.funnel[0]["in"], outcome.funnel[0]["removed"]) == (26, 6)
    assert web.asked[asked:] == [30]
    assert left(root, wanted) == []


def test_mistakes_are_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made / "run"
    (tmp_path / "list.txt").write_text("example.com\nsecret entry\n")
    (tmp_path / "empty").mkdir()
    for words, line in (
            ([str(root)], "say what to take down: --list FILE, --image FILE or --uid UID"),
            ([str(root), "--uid", "x", "--near", "9"], "--near 9: 0 to 8 bits of 64"),
            ([str(tmp_path / "empty"), "--uid", "x"], f"{tmp_path / 'empty'} is no run and holds no tars"),
            ([str(root / "shards"), "--uid", "x"],
             f"{root / 'shards'} are the shards of a run, which would make them again; take it down in the run: {root}")):
        with pytest.raises(SystemExit) as end:
            main(["takedown", *words])
        assert (end.value.code, capsys.readouterr().err) == (2, line + "\n")
    with pytest.raises(SystemExit) as end:
        main(["takedown", str(root), "--list", str(tmp_path / "list.txt")])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith(f"{tmp_path / 'list.txt'}:2: a line is a domain") and "secret" not in said


def foreign(folder: Path) -> Path:
    """Two tars as img2dataset writes them, with tables and stats; 00001 and 10000 are one picture."""
    for tar, numbers in enumerate(([0, 1, 2], [1, 4])):
        rows = [{"key": f"{tar}000{i}", "url": f"https://a.example/{n}-{tar}.png", "caption": f"words {n}", "status": "success"}
                for i, n in enumerate(numbers)]
        members = [(f"{row['key']}.{end}", data) for row, n in zip(rows, numbers, strict=True)
                   for end, data in (("png", file_of(n)), ("txt", row["caption"].encode()), ("json", json.dumps(row).encode()))]
        write_tar(folder / f"0000{tar}.tar", members)
        failed = {"key": f"{tar}0009", "url": "https://a.example/gone.png", "caption": "x", "status": "failed_to_download"}
        pq.write_table(pa.Table.from_pylist([*rows, failed]), folder / f"0000{tar}.parquet")
        stats = {"count": len(rows) + 1, "successes": len(rows), "failed_to_download": 1,
                 "status_dict": {"success": len(rows), "HTTP Error 404": 1}}
        files.write_json(folder / f"0000{tar}_stats.json", stats, "test")
    return folder


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 4, 5, 6, 7])
def test_tars_of_anybody_lose_the_sample_and_nothing_else(tmp_path: Path, killed_at: int) -> None:
    (tmp_path / "tars").mkdir()
    folder = foreign(tmp_path / "tars")
    (tmp_path / "list.txt").write_text("https://a.example/1-0.png\n")
    before = (folder / "00000.tar").read_bytes()
    with full_disk_at(killed_at):
        taken(folder, file=tmp_path / "list.txt", dry_run=not killed_at)
    if (folder / tombstones.PENDING).exists():
        assert "00001" not in (folder / tombstones.PENDING).read_text().replace("00001.tar", ""), "hashes of keys, no keys"
    said = taken(folder, file=tmp_path / "list.txt")
    assert killed_at > 1 or said[0] == "2 samples in 2 of 2 tars"
    for tar, keys in enumerate((["00000", "00002"], ["10001"])):
        assert pq.read_table(folder / f"0000{tar}.parquet")["key"].to_pylist() == [*keys, f"{tar}0009"]
        stats = json.loads((folder / f"0000{tar}_stats.json").read_text())
        assert (stats["successes"], stats["count"], stats["status_dict"]["success"]) == (len(keys), len(keys) + 1, len(keys))
    after = (folder / "00000.tar").read_bytes()
    assert file_of(1) not in after + (folder / "00001.tar").read_bytes() and b"words 1" not in after
    assert file_of(0) in after and file_of(2) in after and len(after) < len(before)
    assert taken(folder, file=tmp_path / "list.txt") == [f"{folder} holds nothing of it"]


def test_a_set_of_ours_stays_whole(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "run" / "shards", tmp_path / "set"))
    rows = json.loads((folder / "manifest.json").read_text())["rows"]
    assert taken(folder, uids=[uid_of(made / "run", 5)])[0] == "1 samples in 1 of 4 tars"
    assert list(shards.verify(folder)) == []
    assert json.loads((folder / "manifest.json").read_text())["rows"] == rows - 1
