"""From a faulty web to shards, and every row where the truth says: the quickstart's steps, on every executor.

What is expected is computed here from the site's truth.parquet. Only `near_dup` is left open: whether an edited picture still
counts as the same is a matter of degree, so its rows have bounds.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curate.measure import Shard
from curate.run import Outcome
from curate.sources.source import Source
from curate.store import STATE_NAMES, Store
from curate.tar import members
from tests.running import exits, run_here, tree
from tests.site.faults import FAULTS
from tests.site.make import make
from tests.site.routes import load as load_plan
from tests.site.server import Site, serve
from tests.sources import pid

ROOT = Path(__file__).resolve().parents[1]
ROWS = 400
FAULTS_HERE = {**FAULTS, "frequent_text": .04}
"""More rows with one text than `text_images <= 10` lets through."""
SAME = "not is_same_image"


@dataclass(frozen=True)
class Web:
    """The site while it answers, the truth about its rows, and the pipeline over it."""

    site: Site
    truth: list[dict[str, Any]]
    pipeline: Path


@dataclass(frozen=True)
class Undisturbed:
    """The run that others are compared with: where it lies, what came of it, what it asked the site for."""

    out: Path
    outcome: Outcome
    asked: dict[str, int]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """400 rows with every fault there is, answered on loopback."""
    folder = tmp_path_factory.mktemp("web")
    make(folder / "site", ROWS, seed=3, faults={k: v for k, v in FAULTS_HERE.items() if k != "mismatched"})
    with serve(folder / "site") as site:
        pipeline = folder / "pipeline.yaml"
        pipeline.write_text(quickstart_until_its_pool_is_complete(site.pool))
        yield Web(site, pq.read_table(folder / "site" / "truth.parquet").to_pylist(), pipeline)


@pytest.fixture(scope="module")
def undisturbed(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The pipeline run in this process."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    web.site.reset()
    outcome = run_here(web.pipeline, out)
    return Undisturbed(out, outcome, web.site.log())


def quickstart_until_its_pool_is_complete(pool: Path) -> str:
    """The steps of pipelines/quickstart.yaml up to where models begin, over a pool in seven shards, into small tars."""
    steps = yaml.safe_load((ROOT / "pipelines" / "quickstart.yaml").read_text())["steps"]
    end = next((i for i, entry in enumerate(steps) if isinstance(entry, dict) and "held_out" in entry), len(steps))
    download = next(entry["download"] for entry in steps if isinstance(entry, dict) and "download" in entry)
    download["deadline_seconds"] = 4            # one url drips for ever
    source = {"pairs": str(pool), "url": "url", "caption": "caption", "shard_rows": 60}
    return yaml.safe_dump({"source": source, "steps": steps[:end], "shards": {"rows": 50, "block": 2}}, sort_keys=False)


def leaves(row: dict[str, Any]) -> str:
    """The clause at which a row leaves by the truth, or `kept`; of two rows with one picture, as if it were the one to go."""
    if row["kind"] == "repeated_row":
        return "repeated_row"
    if len(row["caption"]) < 5:
        return "num_chars >= 5"
    if not 3 <= len(row["caption"].split()) <= 256:
        return "num_words between 3 and 256"
    by_caption = {"repeated_words": "repeated_word_share <= 0.5", "shouting": "upper_ratio <= 0.5", "foreign": "lang = 'en'",
                  "frequent_text": "text_images <= 10"}
    if row["kind"] in by_caption:
        return by_caption[row["kind"]]
    if row["expected_status"] != "ok":
        return "status = 'ok'"
    return {"stretched": "aspect <= 3.0", "tiny": "width_px >= 48", "exact_dup": SAME}.get(row["kind"], "kept")


def is_asked_for(row: dict[str, Any]) -> bool:
    """Whether the row is alive when pictures are fetched."""
    return leaves(row) in ("status = 'ok'", "aspect <= 3.0", "width_px >= 48", SAME, "kept")


def fates(run: Undisturbed) -> list[str]:
    """What became of every row of the pool, in its order: the clause that dropped it, or its state."""
    store = Store(run.out)
    source = Source.open(store.source)
    labels = [[c["text"] for c in entry.get("clauses", ())] for entry in run.outcome.funnel]
    found = []
    for number in range(source.num_shards):
        kept = store.read_kept(run.outcome.chain, number)
        for state, stage, clause in zip(kept.state, kept.stage, kept.clause, strict=True):
            dropped = STATE_NAMES[state] == "dropped"
            found.append(labels[stage + 1][max(clause, 0)] if dropped else STATE_NAMES[state])
    return found


def column(run: Undisturbed, name: str) -> list[Any]:
    """A column of every row of the pool, in its order."""
    store = Store(run.out)
    source = Source.open(store.source)
    shards = (Shard.at(store, source, n, run.outcome.chain) for n in range(source.num_shards))
    return [value for shard in shards for value in shard.column(run.outcome.columns[name]).to_pylist()]


def shard_rows(folder: Path, *names: str) -> list[tuple[Any, ...]]:
    """These columns of all rows in a set of shards, in order."""
    table = pa.concat_tables([pq.read_table(path, columns=list(names)) for path in sorted(folder.glob("*.parquet"))])
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def pictures(folder: Path) -> dict[str, bytes]:
    """key → the picture's bytes, of all tars."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        data = path.read_bytes()
        for member in members(io.BytesIO(data)):
            key, _, extension = member.name.partition(".")
            if extension not in ("txt", "json"):
                found[key] = data[member.offset : member.offset + member.length]
    return found


def test_funnel_is_what_the_truth_says(web: Web, undisturbed: Undisturbed) -> None:
    """Every clause drops as many rows as were planted for it; nothing else happens to any row."""
    expected = Counter(map(leaves, web.truth))
    del expected["kept"]
    same = expected.pop(SAME)
    found = exits(undisturbed.outcome)
    dropped_as_same = found.pop(SAME)
    assert found == expected
    assert same <= dropped_as_same <= same + sum(row["kind"] == "near_dup" for row in web.truth)
    alive = ROWS
    for entry in undisturbed.outcome.funnel:
        assert (entry["in"], entry["unknown"], entry["quarantined"], entry["removed"]) == (alive, 0, 0, 0)
        alive = entry["kept"]
    assert undisturbed.outcome.manifest is not None
    assert alive == ROWS - expected.total() - dropped_as_same == undisturbed.outcome.manifest["rows"]


def test_every_fault_is_in_its_state(web: Web, undisturbed: Undisturbed) -> None:
    """fault × outcome, row by row. Of rows with one text and url the first stays, of equal pictures the lower image_id."""
    found, clean = fates(undisturbed), {row["url"]: n for n, row in enumerate(web.truth) if row["kind"] == "clean"}
    expected = [leaves(row) for row in web.truth]
    for n, row in enumerate(web.truth):
        if row["kind"] == "repeated_row":
            expected[n], expected[max(n, clean[row["twin_of"]])] = "kept", "repeated_row"
        if row["kind"] == "exact_dup":
            expected[n], expected[max(n, clean[row["twin_of"]], key=lambda i: pid(web.truth[i]["url"]))] = "kept", SAME
        if row["kind"] == "near_dup":
            pair = n, clean[row["twin_of"]]
            assert sorted(found[i] for i in pair) in (["kept", "kept"], ["kept", SAME])
            for i in pair:
                expected[i] = found[i]
    assert found == expected
    table = Counter(zip((row["kind"] for row in web.truth), found, strict=True))
    assert {kind for kind, _ in table} == {"clean", *FAULTS_HERE}
    assert table["mismatched", "kept"] == sum(row["kind"] == "mismatched" for row in web.truth)      # only a model sees those


def test_every_url_ends_as_it_should(web: Web, undisturbed: Undisturbed) -> None:
    """`status` of what was fetched; null for what captions dropped, unless its picture is another row's too."""
    wanted = {row["url"] for row in web.truth if is_asked_for(row)}
    expected = [row["expected_status"] if row["url"] in wanted else None for row in web.truth]
    pairs = zip(column(undisturbed, "status"), expected, fates(undisturbed), strict=True)
    assert all(status == right for status, right, fate in pairs if fate != "repeated_row")


def test_nothing_is_asked_for_in_vain_or_twice(web: Web, undisturbed: Undisturbed) -> None:
    """By the site's own log: what captions dropped is never asked for, and only what said "later" is asked for again.

    Every host is asked for its robots.txt, once.
    """
    routes = load_plan(web.site.folder).routes
    path_of = {row["url"]: "/" + row["url"].split("/", 3)[3] for row in web.truth}
    again = {"flaky_500": 2, "busy_429": 2}
    expected = {path_of[row["url"]]: again.get(row["kind"], 1) for row in web.truth if is_asked_for(row)}
    asked = [row for row in web.truth if is_asked_for(row)]
    moved = [routes[path_of[row["url"]]].headers["Location"] for row in asked if row["kind"] == "redirect"]
    expected["/robots.txt"] = len({urlsplit(url).hostname for url in (*moved, *(row["url"] for row in asked))} - {None})
    led_to = {path for path in undisturbed.asked if path.startswith(("/moved/", "/again/"))}
    assert {path: n for path, n in undisturbed.asked.items() if path not in led_to} == expected
    assert led_to == {path for path in routes if path.startswith(("/moved/", "/again/"))}
    assert {undisturbed.asked[path] for path in led_to} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_same_bytes_with_worker_processes(web: Web, undisturbed: Undisturbed, tmp_path: Path, workers: int) -> None:
    """One process or several: the same shards, the same funnel."""
    run_here(web.pipeline, tmp_path / "out", workers=workers)
    assert tree(tmp_path / "out", "shards", "funnel.json") == tree(undisturbed.out, "shards", "funnel.json")


@pytest.mark.slow
def test_same_bytes_on_ray(web: Web, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The same on Ray."""
    from curate.cluster import RayPool

    run_here(web.pipeline, tmp_path / "out", pool=RayPool(tmp_path / "out", "test", 2, "ray"))
    assert tree(tmp_path / "out", "shards", "funnel.json") == tree(undisturbed.out, "shards", "funnel.json")


@pytest.mark.slow
def test_same_funnel_in_one_shard(web: Web, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """How the source is cut decides where tars begin, not what is in them."""
    whole = run_here(web.pipeline, tmp_path / "out", sets=("source.shard_rows=10000",))
    assert whole.funnel == undisturbed.outcome.funnel
    columns = ("key", "url", "caption", "sha256", "width_px")
    assert shard_rows(tmp_path / "out" / "shards", *columns) == shard_rows(undisturbed.out / "shards", *columns)
    assert pictures(tmp_path / "out" / "shards") == pictures(undisturbed.out / "shards")


def test_a_second_run_asks_and_measures_nothing(web: Web, undisturbed: Undisturbed) -> None:
    """Everything is there already."""
    before = tree(undisturbed.out, "columns", "kept", "images", "shards", "funnel.json")
    web.site.reset()
    again = run_here(web.pipeline, undisturbed.out)
    assert +again.measured == {} and web.site.log() == {}
    assert tree(undisturbed.out, "columns", "kept", "images", "shards", "funnel.json") == before


def test_run_from_the_tars_that_came_out(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Shards are a source: the same rows under the same uids, the same pictures, read in place."""
    pipeline = tmp_path / "again.yaml"
    pipeline.write_text(f"source: {{shards: {undisturbed.out}/shards/*.tar}}\n"
                        "steps:\n  - caption_length: {as: now}\n  - image_shape: {as: now}\n"
                        "  - keep: now_num_words >= 3 and now_width_px = width_px\n"
                        "shards: {rows: 1000}\n")
    outcome = run_here(pipeline, tmp_path / "out")
    assert undisturbed.outcome.manifest is not None and outcome.manifest is not None
    assert [entry["kept"] for entry in outcome.funnel] == [undisturbed.outcome.manifest["rows"]] * 4
    assert not (tmp_path / "out" / "images").exists()
    old, new = undisturbed.out / "shards", tmp_path / "out" / "shards"
    assert shard_rows(new, "key", "uid", "url", "caption") == shard_rows(old, "key", "uid", "url", "caption")
    assert pictures(new) == pictures(old)
