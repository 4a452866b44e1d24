"""What is certified of rows stays certified of any choice of them, and of nothing else."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import files
from curate.cards.verify import verify as verify_place
from curate.certificate import digest_of
from curate.cli import main
from curate.folder import Folder
from curate.searched import lines
from curate.shards import verify
from curate.takedown.command import takedown
from tests.running import run_here, write_pipeline
from tests.sources import write_tar
from tests.train.toys import SMALL
from tests.train.toys import shard as write_shard
from tests.train.toys import table as write_table
from train.config import Data, from_mapping
from train.data import decontaminated
from train.errors import DataError
from train.loop import train

Entries = list[dict[str, Any]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two benchmarks of a picture each, and four other pictures in two folders: a, b, c, d."""
    monkeypatch.chdir(tmp_path)
    for seed, place in enumerate(("coco/1", "flickr/1", "pool/a", "pool/b", "more/c", "more/d")):
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(exist_ok=True)
        spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(spots).resize((96, 72), Image.Resampling.BICUBIC).save(path)
        path.with_suffix(".txt").write_text(f"caption of {path.stem}")
    return tmp_path


def a_run(out: str, *against: str, source: str = "images: pool", name: str = "") -> Path:
    """A run whose rows were checked for benchmarks; over tars of such a run under another name."""
    hashed = () if name else ("image_hash",)
    named = f"as: {name}, " if name else ""
    steps = (*hashed, f"decontaminate: {{{named}against: [{', '.join(against)}]}}",
             f"keep: not {name}{'_' * bool(name)}contaminated") if against else ("keep: caption != ''",)
    run_here(write_pipeline(Path(), *steps, source=f"source: {{{source}}}\n", after=""), Path(out))
    return Path(out)


def entry(name: str, keep: str = "not contaminated") -> dict[str, Any]:
    return {"benchmark": name, "digest": digest_of(name), "keep": keep, "bytes": True, "hash_bits": 4, "max_levels": 24}


def shard(*arguments: str) -> Entries:
    """What the manifest of `curate shard … --out out` says."""
    with contextlib.suppress(SystemExit):
        main(["shard", *arguments, "--out", "out", "--workers", "0"])
    assert list(verify(Path("out"))) == []
    said: Entries = files.read_json(Path("out/manifest.json")).get("decontaminated", [])
    assert decontaminated(Data(shards=("out/*.tar",))) == ({"decontaminated": said} if said else {}), "the trainer's view of it"
    return said


def test_a_choice_of_what_a_run_kept_has_what_the_run_has(here: Path) -> None:
    a_run("run", "coco", "flickr")
    assert shard("run") == shard("run", "--where", "caption <> 'caption of a'") == [entry("coco"), entry("flickr")]
    assert shard("run", "--dropped-too") == [], "the row that was contaminated may be among them"


def test_a_choice_from_tars_has_what_their_manifest_says(here: Path) -> None:
    a_run("run", "coco")
    pq.write_table(pq.read_table("run/shards/00000.parquet")[1:3], "list.parquet")
    assert shard("run/shards") == shard("run/shards/*.tar", "--where", "caption <> 'x'") == [entry("coco")]
    assert shard("run/shards", "--uids", "list.parquet") == [entry("coco")]
    shutil.copytree("out", "once")
    assert shard("once") == [entry("coco")], "and again"


def test_a_set_cut_from_several_has_what_all_of_them_have(here: Path) -> None:
    a_run("sets/one", "coco", "flickr")
    a_run("sets/two", "flickr", source="images: more")
    assert shard("sets/*/shards/*.tar") == [entry("flickr")]
    a_run("sets/three", source="images: coco")
    assert shard("sets/*/shards/*.tar") == []


def foreign(shards: Path) -> None:
    write_tar(shards / "00009.tar", [("x.png", Path("more/d.png").read_bytes()), ("x.txt", b"a new caption")])


def edited(shards: Path) -> None:
    manifest = files.read_json(shards / "manifest.json")
    manifest["decontaminated"][0]["benchmark"] = "imagenet"
    files.write_json(shards / "manifest.json", manifest, "test")


def grown(shards: Path) -> None:
    with open(shards / "00000.tar", "ab") as tar:
        tar.write(bytes(10240))


def gone(shards: Path) -> None:
    (shards / "manifest.json").unlink()


def of_somebody(shards: Path) -> None:
    (shards / "manifest.json").write_text('["an app"]')


def no_json(shards: Path) -> None:
    (shards / "manifest.json").write_bytes(b"\xff{")


@pytest.mark.parametrize("change", [foreign, edited, grown, gone, of_somebody, no_json], ids=lambda change: change.__name__)
def test_tars_that_the_manifest_does_not_vouch_for_have_nothing(here: Path, change: Callable[[Path], None]) -> None:
    shards = a_run("run", "coco") / "shards"
    change(shards)
    assert shard("run/shards") == []


def test_a_run_over_certified_tars_says_so_of_its_rows_and_adds_its_own(here: Path) -> None:
    a_run("first", "coco")
    source = "shards: first/shards"
    assert files.read_json(a_run("plain", source=source) / "run.json")["decontaminated"] == [entry("coco")]
    second = a_run("second", "flickr", source=source, name="again")
    both = [entry("flickr", "not again_contaminated"), entry("coco")]
    assert files.read_json(second / "shards/manifest.json")["decontaminated"] == both
    assert list(lines(Folder.open(second)))[1:] == [
        ("The manifests of the tars that were read say: free of pictures of the benchmark coco, by `not contaminated`, content "
         f"digest {digest_of('coco')}.")]
    assert shard("second") == both
    assert shard("second", "--dropped-too") == [entry("coco")], "all of its source's rows are as its tars say"


def test_a_takedown_leaves_the_certificate(here: Path) -> None:
    a_run("run", "coco")
    said = list(takedown("run", file=None, image=Path("pool/a.png"), uids=(), bits=4, dry_run=False, attempt="test"))
    assert said[0].startswith("1 rows of 1 pictures go")
    assert files.read_json(Path("run/shards/manifest.json"))["decontaminated"] == [entry("coco")]
    assert shard("run") == [entry("coco")]


def test_a_foreign_tar_beside_certified_ones_is_not_trained_on_as_one(here: Path) -> None:
    shards = a_run("run", "coco") / "shards"
    assert decontaminated(Data(shards=(f"{shards}/*.tar",))) == {"decontaminated": [entry("coco")]}
    foreign(shards)
    assert decontaminated(Data(shards=(f"{shards}/*.tar",))) == {}
    (shards / "manifest.json").write_text(json.dumps({"decontaminated": "yes", "shards": 3}))
    assert decontaminated(Data(shards=(f"{shards}/00000.tar",))) == {}, "it names no tar"


NO_ENTRIES = ('"yes"', "true", "null", '{"coco": 1}', '["coco"]', '[{"benchmark": "coco"}]', '[{"benchmark": 1, "digest": []}]')


@pytest.mark.parametrize("said", [*NO_ENTRIES, "no json", "[" * 100_000])
def test_a_table_that_says_something_else_is_refused_by_name(tmp_path: Path, said: str) -> None:
    table = pq.read_table(write_table(tmp_path, range(8)))
    pq.write_table(table.replace_schema_metadata({"decontaminated": said}), tmp_path / "pairs.parquet")
    data = {"table": str(tmp_path / "pairs.parquet"), "root": str(tmp_path)}
    with pytest.raises(DataError, match=f"^{data['table']}: 'decontaminated' is no list of maps, each with a benchmark"):
        train(from_mapping({**SMALL, "data": data}), tmp_path / "out")


@pytest.mark.parametrize("said", NO_ENTRIES)
def test_a_manifest_that_says_something_else_is_refused_by_name(tmp_path: Path, said: str) -> None:
    write_shard(tmp_path / "0.tar", range(2))
    (tmp_path / "manifest.json").write_text(f'{{"shards": [{{"file": "0.tar"}}], "decontaminated": {said}}}')
    with pytest.raises(DataError, match=f"^{tmp_path}/manifest.json: 'decontaminated' is no list of maps"):
        decontaminated(Data(shards=(str(tmp_path / "0.tar"),)))


def test_a_publication_of_the_table_alone_says_it(here: Path) -> None:
    """With pictures the shards' own manifest goes along."""
    a_run("run", "coco")
    for command in (["card", "run"], ["publish", "run", "--to", "there", "--draft"]):
        with contextlib.suppress(SystemExit):
            main(command)
    assert files.read_json(Path("there/manifest.json"))["decontaminated"] == [entry("coco")]
    assert verify_place("there")[1] == []
