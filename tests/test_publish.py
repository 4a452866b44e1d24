"""`curate publish`: exactly the rows kept, whole or not at all, twice the same, never over somebody else's files."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import files
from curate.cards import publish as module
from curate.cards.card import write_card
from curate.cards.publish import publish
from curate.cards.target import Local, Target
from curate.cli import main
from curate.errors import RunStopped, UserError
from curate.reshard import read_uids
from curate.shards import uid_bytes, verify
from tests.cards import YAML, fill, make_run, write_sections
from tests.running import tree


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a complete card."""
    root = make_run(tmp_path_factory.mktemp("publish"))
    fill(root)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def put(root: Path, to: Path | str, **options: Any) -> list[str]:
    """Publish; what is said."""
    return list(publish(root, str(to), with_images=options.pop("with_images", False), draft=options.pop("draft", False),
                        attempt="test"))


def kept_uids(root: Path) -> list[str]:
    return [u for p in sorted((root / "shards").glob("*.parquet")) for u in pq.read_table(p)["uid"].to_pylist()]


def test_metadata_uids_card_and_sums(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "pub"
    total = sum(p.stat().st_size for p in (made / "shards").glob("*.parquet"))
    (line,) = put(made, out)
    assert re.fullmatch(rf"19 rows, 7 files, [\d,]+ bytes: {out}", line)
    assert sorted(tree(out, "")) == ["README.md", "SHA256SUMS", "croissant.json", "manifest.json", "metadata/00000.parquet",
                                     "metadata/00001.parquet", "metadata/00002.parquet", "uids.npy"]
    tables = [out / "metadata" / f"{i:05d}.parquet" for i in range(3)]
    assert sum(p.stat().st_size for p in tables) == total
    rows = [r for p in tables for r in pq.read_table(p).to_pylist()]
    assert [r["n"] for r in rows] == [i for i in range(20) if i != 3]
    assert {"uid", "url", "caption", "num_chars", "score"} <= rows[0].keys()
    pairs = np.load(out / "uids.npy")
    assert pairs.dtype == np.dtype("u8,u8")
    assert [f"{a:016x}{b:016x}" for a, b in pairs.tolist()] == sorted(kept_uids(made))
    assert (read_uids(out / "uids.npy") == np.sort(uid_bytes(kept_uids(made)))).all()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)


def test_the_manifest_lists_every_file(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub")
    manifest = files.read_json(tmp_path / "pub" / "manifest.json")
    for entry in manifest["files"]:
        content = (tmp_path / "pub" / entry["path"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {e["path"] for e in manifest["files"]} == set(tree(tmp_path / "pub", "")) - {"manifest.json"}
    assert manifest["rows"] == sum(e.get("rows", 0) for e in manifest["files"]) == 19
    assert (manifest["name"], manifest["version"]) == ("some-pairs", "1.0.0")
    assert manifest.pop("digest") == files.digest(manifest)


def test_the_card_is_of_these_files(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub")
    document = files.read_json(tmp_path / "pub" / "croissant.json")
    assert {n["contentUrl"] for n in document["distribution"] if "contentUrl" in n} == {
        "metadata/00000.parquet", "metadata/00001.parquet", "metadata/00002.parquet"}
    card = (tmp_path / "pub" / "README.md").read_text()
    assert "path: metadata/*.parquet" in card and "shards/" not in card
    assert "Written by hand: motivation." in card and "DRAFT" not in card


def test_with_images_the_shards_come_along(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub", with_images=True)
    assert tree(tmp_path / "pub", "shards") == tree(made, "shards")
    assert list(verify(tmp_path / "pub" / "shards")) == []
    assert (tmp_path / "pub" / "README.md").read_bytes() == (made / "card" / "README.md").read_bytes()
    assert not (tmp_path / "pub" / "metadata").exists()


def test_mlcroissant_reads_the_rows_that_were_published(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlcroissant

        found = list(mlcroissant.Dataset(str(tmp_path / "pub" / "croissant.json")).records("rows"))
    assert [r["rows/n"] for r in found] == [i for i in range(20) if i != 3]
    assert [r["rows/uid"].decode() for r in found] == kept_uids(made)
    assert found[0]["rows/caption"].decode() == "a | b | c cell"


def test_twice_is_once(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "pub").rglob("*")}
    assert put(made, tmp_path / "pub")[1:] == ["7 files were there already"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "pub").rglob("*")} == times


def test_another_form_replaces_the_one_before(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub", with_images=True)
    put(made, tmp_path / "pub")
    put(made, tmp_path / "fresh")
    assert tree(tmp_path / "pub", "") == tree(tmp_path / "fresh", "")
    assert not (tmp_path / "pub" / "shards").exists()


def test_a_new_card_is_published_over_the_old_one(run: Path, tmp_path: Path) -> None:
    put(run, tmp_path / "pub")
    fill(run, YAML.replace("1.0.0", "1.0.1"))
    assert put(run, tmp_path / "pub")[1:] == ["4 files were there already"]
    assert files.read_json(tmp_path / "pub" / "manifest.json")["version"] == "1.0.1"


def test_a_broken_file_there_is_mended(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub")
    before = tree(tmp_path / "pub", "")
    path = tmp_path / "pub" / "metadata" / "00001.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    put(made, tmp_path / "pub")
    assert tree(tmp_path / "pub", "") == before


class Breaking:
    """A target that fails at its nth write."""

    def __init__(self, inner: Target, writes: int) -> None:
        self._inner, self._left = inner, writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def write(self, path: str) -> Iterator[Any]:
        self._left -= 1
        with self._inner.write(path) as out:
            yield out
            if self._left == 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a publication that nobody interrupted holds."""
    out = tmp_path_factory.mktemp("whole")
    put(made, out)
    return tree(out, "")


@pytest.mark.parametrize("write", range(1, 10))     # the plan, seven files, the manifest
@pytest.mark.parametrize("place", ["{}/pub", "memory://interrupted{}"])
def test_interrupted_at_any_file_and_repeated_it_ends_the_same(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               whole: dict[str, str], place: str, write: int) -> None:
    to, real = place.format(tmp_path), module.target_of
    with monkeypatch.context() as patch:
        patch.setattr(module, "target_of", lambda to, attempt: Breaking(real(to, attempt), write))
        with pytest.raises(KeyboardInterrupt):
            put(made, to)
    assert "manifest.json" not in real(to, "test").sizes(), "it looks whole and is not"
    put(made, to)
    assert contents(to) == whole


def contents(to: str) -> dict[str, str]:
    """path → hash of what lies at a place."""
    system, root = fsspec.core.url_to_fs(to)
    return {p[len(root) :].lstrip("/"): hashlib.sha256(system.cat_file(p)).hexdigest() for p in system.find(root)}


@pytest.mark.parametrize("url", ["memory://published/pairs", "file://{}/pub"])
def test_a_place_by_url_gets_the_same_files(made: Path, tmp_path: Path, url: str) -> None:
    url = url.format(tmp_path)
    put(made, url)
    put(made, tmp_path / "local")
    assert contents(url) == tree(tmp_path / "local", "")
    assert put(made, url)[1:] == ["7 files were there already"]


def test_a_truncated_object_is_written_again(made: Path, tmp_path: Path) -> None:
    put(made, "memory://cut")
    whole = contents("memory://cut")
    system = fsspec.filesystem("memory")
    system.pipe("/cut/metadata/00001.parquet", b"half")
    put(made, "memory://cut")
    assert contents("memory://cut") == whole


@pytest.mark.parametrize(("name", "content"), [("notes.txt", b"mine"), ("manifest.json", b'{"layout": "theirs"}'),
                                               ("metadata/00000.parquet", b"PAR1"), (".git", b"x")])
def test_a_place_that_holds_something_else_is_refused(made: Path, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        put(made, tmp_path / "theirs")
    assert str(caught.value) == (f"--to {tmp_path / 'theirs'} holds '{name}', which no publication of curate put there; "
                                 "give an empty place")
    assert tree(tmp_path, "theirs") == {f"theirs/{name}": hashlib.sha256(content).hexdigest()}


def test_somebody_elses_file_among_ours_is_refused(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub")
    (tmp_path / "pub" / "metadata" / "extra.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=re.escape("holds 'metadata/extra.parquet', which no publication")):
        put(made, tmp_path / "pub")


def test_refusals_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    write_sections(run / "card" / "README.md", contact="\nTODO-HUMAN\n")
    cases = [
        (("--to", str(tmp_path / "pub")),
         "the card still waits for a human: contact say TODO-HUMAN; write them, or publish with --draft"),
        (("--to", str(run / "pub"), "--draft"), f"--to {run / 'pub'} lies inside the run; give a folder of its own"),
        (("--to", str(tmp_path / "file")), f"--to {tmp_path / 'file'} is a file; give a folder"),
        (("--to", "nowhere://x"), "cannot open 'nowhere://x': Protocol not known: nowhere"),
    ]
    for arguments, line in cases:
        with pytest.raises(SystemExit) as end:
            main(["publish", str(run), *arguments])
        assert (end.value.code, capsys.readouterr().err) == (2, line + "\n")
    assert not (tmp_path / "pub").exists()


def test_a_run_without_a_card_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "card")
    with pytest.raises(UserError, match=f"^{run} has no card yet; run `curate card {run}` and fill in what it asks for$"):
        put(run, tmp_path / "pub")


def test_a_draft_says_so_in_its_head(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "card")
    list(write_card(run, "test"))
    said = put(run, tmp_path / "pub", draft=True)
    card = (tmp_path / "pub" / "README.md").read_text()
    first = card.split("\n# ", 1)[1].splitlines()[2]
    assert first.startswith("> **DRAFT.** This card still waits for what only a human can write")
    assert "- draft\n" in card.split("---\n")[1]
    assert files.read_json(tmp_path / "pub" / "croissant.json")["description"].startswith("DRAFT. ")
    assert said[-1].startswith("a draft: name, description, url")


def test_a_complete_card_is_no_draft(made: Path, tmp_path: Path) -> None:
    put(made, tmp_path / "pub", draft=True)
    assert "DRAFT" not in (tmp_path / "pub" / "README.md").read_text()


def test_tables_that_are_not_the_rows_kept_are_refused(run: Path, tmp_path: Path) -> None:
    path = run / "shards" / "00002.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([1, 0, *range(2, len(table))])), path)
    with pytest.raises(UserError, match="^not published: 'metadata/00002.parquet': the file's sha256 is another one"):
        put(run, tmp_path / "pub")
    assert not (tmp_path / "pub").exists()


def test_a_run_that_went_on_after_its_shards_is_refused(run: Path, tmp_path: Path) -> None:
    manifest = files.read_json(run / "shards" / "manifest.json")
    manifest["shards"].pop()
    files.write_json(run / "shards" / "manifest.json", manifest, "test")
    with pytest.raises(UserError, match="its files hold 16 rows and the run kept 19; run its pipeline to the end first"):
        put(run, tmp_path / "pub")


def test_a_run_without_shards_publishes_its_table(tmp_path: Path) -> None:
    root = make_run(tmp_path, after="shards: none\n")
    fill(root)
    put(root, tmp_path / "pub")
    assert (tmp_path / "pub" / "metadata" / "00000.parquet").read_bytes() == (root / "subset.parquet").read_bytes()
    assert (tmp_path / "pub" / "uids.npy").read_bytes() == (root / "subset.npy").read_bytes()
    with pytest.raises(UserError, match=f"--with-images: {root} has no shards"):
        put(root, tmp_path / "more", with_images=True)


def test_a_place_that_cannot_be_written_is_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    with pytest.raises(RunStopped, match="^cannot publish to file://.*; the same command goes on from there$"):
        put(made, f"file://{tmp_path}/blocked/pub")


def test_half_written_files_of_others_are_not_swept(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "pub" / ".theirs.tmp"
    other.parent.mkdir()
    other.write_text("mine")
    assert Local(tmp_path / "pub", "test").sizes() == {}
    put(made, tmp_path / "pub")
    assert json.loads((tmp_path / "pub" / "manifest.json").read_text())["rows"] == 19
    assert other.read_text() == "mine"
