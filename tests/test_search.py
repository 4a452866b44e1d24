"""Searching: as many hits as asked for while there are any, in one order however one pages, never a row that the policy hides."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.cli import main
from curate.decoding import images
from curate.errors import UserError
from curate.reshard import read_uids
from curate.retrieval import encoder, ranking
from curate.retrieval.search import BadQuery, Hit, Page, Part, Request, Searcher
from curate.shards import uid_bytes
from tests.embedded import DIMS, drawn, indexed, make_run
from tests.running import run_here, write_pipeline

ROWS = 1200
PICS = [n // 2 if n < 100 else n for n in range(ROWS)]
SAFE = [None if n % 11 == 0 else n % 5 / 5 for n in range(ROWS)]      # null, 0, 0.2, … 0.8
POLICY = "nsfw_prob < 0.5"
PNG = images.encode(Image.new("RGB", (70, 70), "red"), "png", 6)
DRAWN = drawn(*range(ROWS))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 1,200 rows, the first hundred in pairs of one picture, the last 200 dropped."""
    lang = ["de" if n % 3 else "en" for n in range(ROWS)]
    return make_run(tmp_path_factory.mktemp("made"), PICS, keep="n < 1000", shard_rows=300, nsfw_prob=SAFE, lang=lang)


@pytest.fixture(scope="module", params=["flat", "ivf"])
def root(request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run, with an exact index; and with one in lists all of which are looked at, always through FAISS' selectors."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp(request.param) / "run")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "ivf":
            for name, value in {"FEW": 0, "FEW_SHARE": 0, "EXACT": 0, "MOST": 0.6, "BLOCK": 16}.items():
                patch.setattr(ranking, name, value)
        indexed(folder, **({"flat_values": 0, "recall": 1.0} if request.param == "ivf" else {}))
        yield folder


@pytest.fixture(scope="module")
def searcher(root: Path) -> Searcher:
    """Without a policy."""
    return Searcher.open(root)


@pytest.fixture(scope="module")
def strict(root: Path) -> Searcher:
    """With one."""
    return Searcher.open(root, policy=POLICY)


def vector(seed: int) -> Part:
    """A query of its own."""
    return Part(vector=tuple(np.random.default_rng(10**7 + seed).standard_normal(DIMS).tolist()))


def by_hand(part: Part, allowed: Sequence[int]) -> list[int]:
    """The allowed rows by brute force, best first; ties, which only rows of one picture have, in any order."""
    query = np.array(part.vector)
    score = DRAWN[[PICS[n] for n in allowed]] @ query
    return [allowed[i] for i in np.argsort(-score, kind="stable")]


def numbers(page: Page) -> list[int]:
    """The rows found, by their captions."""
    return [number(hit) for hit in page.hits]


def number(hit: Hit) -> int:
    return int((hit.caption or "").removeprefix("row "))


def same(found: list[int], wanted: list[int]) -> bool:
    """Whether the same pictures stand in the same order, and each row once."""
    return [PICS[n] for n in found] == [PICS[n] for n in wanted] and len(set(found)) == len(found)


def all_pages(searcher: Searcher, request: Request, ks: Sequence[int]) -> list[Hit]:
    """The whole list, page by page, of these sizes in turn."""
    found: list[Hit] = []
    after = ""
    for turn in range(10_000):
        page = searcher.search(Request(**{**vars(request), "k": ks[turn % len(ks)], "after": after}))
        found += page.hits
        if page.exhausted:
            assert page.after == ""
            return found
        assert len(page.hits) == ks[turn % len(ks)]
        after = page.after
    raise AssertionError("endless")


@pytest.mark.parametrize(("where", "passes"), [
    ("", lambda n: True), ("n < 990", lambda n: n < 990), ("n % 2 = 0", lambda n: n % 2 == 0),
    ("n % 100 = 7", lambda n: n % 100 == 7), ("n = 500", lambda n: n == 500), ("n > 5000", lambda n: False)])
@pytest.mark.parametrize("dropped", [False, True])
def test_k_hits_whatever_the_filter(searcher: Searcher, where: str, passes: Any, dropped: bool) -> None:
    allowed = [n for n in range(ROWS if dropped else 1000) if passes(n)]
    for seed in range(3):
        page = searcher.search(Request((vector(seed),), k=40, where=where, dropped=dropped, group=False))
        assert same(numbers(page), by_hand(vector(seed), allowed)[:40])
        assert len(page.hits) == min(40, len(allowed)) and page.exhausted == (len(allowed) <= 40)
        assert [hit.score for hit in page.hits] == sorted((hit.score for hit in page.hits), reverse=True)


def test_what_was_left_out_is_counted(root: Path, strict: Searcher) -> None:
    ranked = by_hand(vector(0), range(ROWS))
    page = strict.search(Request((vector(0),), k=20, where="lang = 'en'"))
    before = ranked[: ranked.index(numbers(page)[-1])]
    safe = [n for n in before if SAFE[n] is not None and SAFE[n] < 0.5]  # type: ignore[operator]
    gone = [n for n in safe if n >= 1000]
    other = [n for n in safe if n < 1000 and n % 3]
    assert page.left_out == {"policy": len(before) - len(safe), "dropped": len(gone), "where": len(other),
                             "same_picture": len(before) - (len(before) - len(safe)) - len(gone) - len(other) - 19}


def test_the_last_page_counts_everything(searcher: Searcher) -> None:
    page = searcher.search(Request((vector(1),), k=1000, where="n % 2 = 0 and n < 100"))
    assert (len(page.hits), page.exhausted) == (50, True)
    assert page.left_out == {"policy": 0, "dropped": 200, "where": 950, "same_picture": 0}


def test_rows_of_one_picture_are_one_hit(searcher: Searcher) -> None:
    grouped = all_pages(searcher, Request((vector(2),)), [1000])
    assert len(grouped) == 950
    pair = next(hit for hit in grouped if hit.group_size > 1)
    assert pair.group_size == 2 and len(pair.group) == 1
    plain = {hit.uid: hit for hit in all_pages(searcher, Request((vector(2),), group=False), [1000])}
    assert len(plain) == 1000
    other = plain[pair.group[0]]
    assert (other.url, other.score) == (pair.url, pair.score) and other.uid > pair.uid


REQUESTS = st.builds(Request, parts=st.sampled_from([(), (vector(3),), (vector(4), Part(uid="", weight=-0.5))]),
                     where=st.sampled_from(["", "n % 2 = 1", "n % 50 = 3", "lang = 'de' and n > 900"]), dropped=st.booleans(),
                     group=st.booleans(), against=st.sampled_from(["image", "text"]))


@settings(max_examples=15, deadline=None)
@given(request=REQUESTS, ks=st.lists(st.integers(1, 300).filter(lambda k: k % 8), min_size=1, max_size=3))
def test_pages_are_pieces_of_one_list(searcher: Searcher, request: Request, ks: list[int]) -> None:
    some = searcher.search(Request(k=1)).hits[0].uid
    parts = tuple(Part(uid=some, weight=p.weight) if p.uid == "" else p for p in request.parts)
    request = Request(**{**vars(request), "parts": parts})
    searcher._lists._slots.clear()
    whole = all_pages(searcher, request, [1000])
    searcher._lists._slots.clear()
    assert all_pages(searcher, request, ks) == whole
    assert len({hit.uid for hit in whole}) == len(whole)


def test_lists_that_were_not_looked_at_come_behind(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEW", "FEW_SHARE", "EXACT"):
        monkeypatch.setattr(ranking, name, 0)
    root = shutil.copytree(made, tmp_path / "run")
    indexed(root, flat_values=0, recall=0.3)
    searcher = Searcher.open(root)
    assert searcher.spaces["image"].probes < searcher.spaces["image"].lists / 4
    for where, rows in (("", 1000), ("n % 20 = 3", 50)):
        request = Request((vector(1),), where=where, group=False)
        whole = all_pages(searcher, request, [1000])
        assert len({hit.uid for hit in whole}) == len(whole) == rows
        searcher._lists._slots.clear()
        assert all_pages(searcher, request, [37, 9]) == whole


def test_a_condition_is_searched_exactly_where_that_is_cheap(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "EXACT", 800)
    root = shutil.copytree(made, tmp_path / "run")
    indexed(root, flat_values=0, recall=0.3)
    page = Searcher.open(root).search(Request((vector(1),), where="n % 4 < 3", group=False))
    assert same(numbers(page), by_hand(vector(1), [n for n in range(1000) if n % 4 < 3])[:40])


def test_browsing_goes_by_uid(searcher: Searcher) -> None:
    found = all_pages(searcher, Request(where="n < 500", group=False), [70])
    assert [hit.uid for hit in found] == sorted(hit.uid for hit in found) and len(found) == 500
    assert searcher.uids(Request(where="n < 500", group=False), 10**6) == [hit.uid for hit in found]


def test_dropped_rows_say_why(searcher: Searcher) -> None:
    page = searcher.search(Request((vector(5),), where="state = 'dropped'", dropped=True))
    assert len(page.hits) == 40
    assert {(hit.state, hit.reason) for hit in page.hits} == {("dropped", "line 4: n < 1000")}
    assert searcher.search(Request((vector(5),), where="state = 'dropped'")).hits == ()


def test_queries_add_and_subtract(searcher: Searcher) -> None:
    def best(*parts: Part) -> Hit:
        return searcher.search(Request(parts, k=1)).hits[0]
    uid = next(hit.uid for hit in all_pages(searcher, Request(where="n = 700"), [10]))
    assert best(Part(uid=uid)).uid == uid and best(Part(uid=uid)).score == pytest.approx(1, abs=1e-3)
    a, b = drawn(300)[0], drawn(400)[0]
    less = Part(vector=tuple(b.tolist()), weight=-1 / float(np.linalg.norm(a + b)))
    assert number(best(Part(vector=tuple((a + b).tolist())), less)) == 300
    assert number(best(Part(vector=tuple((1e290 * a.astype(float)).tolist())))) == 300
    assert number(best(Part(vector=tuple((1e-290 * a.astype(float)).tolist()), weight=0.001))) == 300


@pytest.mark.parametrize(("request_", "says"), [
    (Request((Part(vector=(1.0,) * 15),)), "the vector has 15 numbers, and the index has 16"),
    (Request((Part(vector=(0.0,) * 16),)), "no direction"), (Request((Part(vector=(float("nan"),) * 16),)), "finite"),
    (Request((Part(vector=(float("inf"),) * 16),)), "finite"), (Request((Part(vector=(10**400,) * 16),)), "finite"),
    (Request((Part(vector=()),)), "finite"), (Request((Part(vector=("1",) * 16),)), "finite"),  # type: ignore[arg-type]
    (Request((vector(1), Part(vector=vector(1).vector, weight=-1))), "cancel each other out"),
    (Request((Part(vector=vector(1).vector, weight=0),)), "cancel"),
    (Request((Part(vector=vector(1).vector, weight=float("nan")),)), "a weight is"),
    (Request((Part(vector=vector(1).vector, weight=1e9),)), "a weight is"),
    (Request((vector(1),) * 17), "17 parts, and may have 16"), (Request((Part(),)), "one of text"),
    (Request((Part(text="a", uid="b"),)), "one of text"), (Request((Part(text="x" * 1001),)), "1 to 1,000 characters"),
    (Request((Part(text="  "),)), "1 to 1,000 characters"), (Request((Part(text="\ud800"),)), "half a character"),
    (Request(where="\udfff = 1"), "half a character"), (Request(k=0), "k is 0"), (Request(k=1001), "k is 1001"),
    (Request(k=10**9), "k is"), (Request(k=-1), "k is"), (Request(k=True), "k is"),
    (Request(k=1.5), "k is"),  # type: ignore[arg-type]
    (Request((Part(uid="f" * 32),)), f"no row has the uid '{'f' * 32}'"),
    (Request((Part(image=b"not a picture"),)), "can't be read"),
    (Request((Part(image=b""),)), "bytes"), (Request((Part(text="a dog"),)), "knows no model"),
    (Request((vector(1),), against="audio"), "against is 'audio'"),  # type: ignore[arg-type]
    (Request(after="abc"), "belongs to another query"), (Request(after="ä"), "belongs to another query"),
], ids=lambda value: value[:20] if isinstance(value, str) else "")
def test_bad_queries_are_one_line(searcher: Searcher, request_: Request, says: str) -> None:
    with pytest.raises(BadQuery, match=says.replace("(", r"\(")) as error:
        searcher.search(request_)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", [
    "n < 5; DROP TABLE rows", "n < (select max(n) from batch)", "exists (select 1)", "read_csv('/etc/passwd') is not null",
    "caption in (select * from read_csv('/etc/passwd'))", "COPY batch TO '/tmp/x'", "pragma version", "n < 5 union select 1",
    "getenv('HOME') = 'x'", "n < 5 -- and", "random() < n", "sum(n) > 1", "row_number() over () < n", "attach 'x' as y",
    "_picture = 1", "_image_vector = 1", "image_emb is not null", "rows.n = 1", "1 = 1", "n", "nn < 3",
    "(" * 300 + "n" + ")" * 300])
def test_injections_are_refused(searcher: Searcher, where: str) -> None:
    with pytest.raises(BadQuery, match="where: ") as error:
        searcher.search(Request(where=where))
    assert "\n" not in str(error.value)


def test_cursors_belong_to_one_list(searcher: Searcher, strict: Searcher) -> None:
    after = searcher.search(Request((vector(1),), k=5)).after
    assert searcher.search(Request((vector(1),), k=7, after=after)).hits
    others = [Request((vector(2),), after=after), Request((vector(1),), where="n < 9", after=after), Request(after=after),
              Request((vector(1),), dropped=True, after=after), Request((vector(1),), group=False, after=after),
              Request((vector(1),), against="text", after=after)]
    data = bytearray(base64.urlsafe_b64decode(after))
    data[7] += 1
    forged = base64.urlsafe_b64encode(data).decode()
    for who, request in [*((searcher, r) for r in others), (strict, Request((vector(1),), after=after)),
                         (searcher, Request((vector(1),), after=forged))]:
        with pytest.raises(BadQuery, match="belongs to another query"):
            who.search(request)


def is_safe(n: int) -> bool:
    """What POLICY says by hand; unknown is no yes."""
    return SAFE[n] is not None and SAFE[n] < 0.5  # type: ignore[operator]


def test_the_policy_hides_rows_everywhere(searcher: Searcher, strict: Searcher) -> None:
    everything = all_pages(searcher, Request(dropped=True, group=False), [1000])
    hidden = {hit.uid for hit in everything if not is_safe(number(hit))}
    safe = {hit.uid for hit in everything} - hidden
    for request in (Request(dropped=True, group=False), Request((vector(1),), dropped=True, group=False),
                    Request((vector(1),), against="text", dropped=True, group=False)):
        assert {hit.uid for hit in all_pages(strict, request, [333])} == safe
        assert set(strict.uids(request, 5000)) == safe
    grouped = all_pages(strict, Request(dropped=True), [1000])
    assert {u for hit in grouped for u in (hit.uid, *hit.group)} == safe
    for uid in sorted(hidden)[:20]:
        assert strict.sample(uid) is strict.sample("0" * 32) is None and strict.image(uid) is strict.image("0" * 32) is None
        with pytest.raises(BadQuery) as error:
            strict.search(Request((Part(uid=uid),)))
        assert str(error.value) == f"no row has the uid '{uid}'"
    pairs = [hit.uid for hit in everything if number(hit) < 100 and is_safe(number(hit))]
    assert not {u for uid in pairs for u in (strict.sample(uid) or {})["duplicates"]} & hidden
    assert (strict.info["rows"], searcher.info["rows"]) == (len(safe), ROWS)


@pytest.mark.parametrize("where", ["nsfw_prob >= 0.5", "nsfw_prob >= 0.5 or nsfw_prob < 0.5", "not nsfw_prob < 0.5", "n >= 0"])
def test_a_condition_only_narrows(strict: Searcher, where: str) -> None:
    assert all(is_safe(number(hit)) for hit in all_pages(strict, Request(where=where, dropped=True), [500]))


@pytest.mark.parametrize("policy", ["watermark_prob < 0.5", "nsfw_prob < 0.5; select 1", "nsfw_prob", "true"])
def test_a_policy_that_cannot_be_decided_opens_nothing(root: Path, policy: str) -> None:
    with pytest.raises(UserError, match="can't be decided"):
        Searcher.open(root, policy=policy)


def test_a_sample_tells_everything(searcher: Searcher) -> None:
    uid = {number(hit): hit.uid for hit in all_pages(searcher, Request(dropped=True, group=False), [1000])}
    found = searcher.sample(uid[1100])
    assert found is not None and json.loads(json.dumps(found)) == found
    shown = [found[name] for name in ("uid", "caption", "state", "reason")]
    assert shown == [uid[1100], "row 1100", "dropped", "line 4: n < 1000"]
    assert found["verdicts"] == [{"line": 4, "text": "n < 1000", "verdict": "no"}]
    assert found["columns"]["n"] == 1100 and found["columns"]["nsfw_prob"] is None and "image_emb" not in found["columns"]
    assert (searcher.sample(uid[10]) or {})["duplicates"] == [uid[11]]
    assert searcher.sample("\ud800") is None and searcher.sample("") is None


def test_info_says_what_may_be_asked(searcher: Searcher, strict: Searcher) -> None:
    info = searcher.info
    assert (info["rows"], info["kept"], info["dims"], info["has_text"], info["recall"]) == (ROWS, 1000, DIMS, True, 1.0)
    assert info["columns"]["n"] == {"kind": "number", "type": "int64"} and info["columns"]["state"]["kind"] == "text"
    assert not {"_picture", "_image_vector", "image_emb", "image"} & info["columns"].keys()
    assert info["index_id"] == strict.info["index_id"] and info["policy_id"] != strict.info["policy_id"]


def test_many_threads_get_the_same_answers(searcher: Searcher) -> None:
    requests = [Request((vector(seed % 5),), where=f"n % {2 + seed % 3} = 0", k=30) for seed in range(60)]
    alone = [searcher.search(request).hits for request in requests]
    searcher._lists._slots.clear()
    searcher._masks._slots.clear()
    answers: dict[int, Any] = {}

    def ask(turn: int) -> None:
        for i in range(turn, len(requests), 6):
            answers[i] = searcher.search(requests[i]).hits
    threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i] for i in range(len(requests))] == alone


def test_near_pictures_fold_by_cosine_where_the_run_does_not_say(tmp_path: Path) -> None:
    root = make_run(tmp_path, [0, 1, 10**6, 3])      # rows 0 and 2 look the same under two urls
    indexed(root)
    page = Searcher.open(root).search(Request((vector(0),)))
    assert {number(hit): hit.group_size for hit in page.hits if number(hit) % 2} == {1: 1, 3: 1}
    pair = next(hit for hit in page.hits if number(hit) % 2 == 0)
    assert len(page.hits) == 3 and pair.group_size == 2 and pair.group[0] > pair.uid
    assert page.left_out["same_picture"] == 1


def test_same_as_decides_where_the_run_has_it(tmp_path: Path) -> None:
    ids = [f"{n:032x}" for n in range(4)]
    make_run(tmp_path, [0, 0, 2, 3], same_as=[None, None, None, ids[0]])
    root = tmp_path / "run"
    indexed(root)
    assert json.loads((root / "index" / "index.json").read_text())["same_by"] == "same_as"
    table = pq.read_table(root / "index" / "rows.parquet")["_picture"].to_pylist()
    assert table[0] == table[1] and len(set(table)) == 3


def test_another_chain_is_refused(tmp_path: Path) -> None:
    root = make_run(tmp_path, [0, 1, 2, 3])
    indexed(root)
    run_here(write_pipeline(tmp_path, "./steps.py:embed", "keep: n > 1",
                            source="source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 100}\n"), root)
    with pytest.raises(UserError, match="the run has changed since"):
        Searcher.open(root)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two pictures that lie here, embedded by a small model with random weights."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "photos").mkdir()
    for name in ("a", "b"):
        (folder / "photos" / f"{name}.png").write_bytes(PNG)
        (folder / "photos" / f"{name}.txt").write_text(f"\x1b[31mred {name}")
    embed = "clip_embed: {model: curate-conv-64, pretrained: 'random:0'}"
    run_here(write_pipeline(folder, embed, source="source: {images: photos}\n"), folder / "run")
    indexed(folder / "run")
    return folder / "run"


def test_texts_and_pictures_are_embedded_by_the_models_own_weights(pictures: Path) -> None:
    searcher = Searcher.open(pictures)
    assert searcher.info["model"] == "curate-conv-64" and len(searcher.info["weights_digest"]) == 64
    hits = searcher.search(Request((Part(image=PNG),), group=False)).hits
    assert [hit.score for hit in hits] == pytest.approx([1, 1], abs=2e-3)
    text = searcher.search(Request((Part(text=str(hits[0].caption)),), against="text")).hits[0]
    assert text.uid == hits[0].uid and text.score == pytest.approx(1, abs=2e-3)
    assert searcher.image(hits[0].uid) == PNG


def test_other_weights_are_refused(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher.open(pictures)
    monkeypatch.setattr(searcher.encoder, "_weights", "random:1")
    with pytest.raises(UserError, match="random:1 are not the weights that measured this index") as error:
        searcher.search(Request((Part(text="a dog"),)))
    assert not isinstance(error.value, BadQuery)
    monkeypatch.setattr(searcher.encoder, "_weights", "gone/model")
    with pytest.raises(UserError, match="can't be loaded: no file, checkpoint folder or pretrained tag"):
        searcher.search(Request((Part(text="a dog"),)))
    with pytest.raises(BadQuery, match="too_many_pixels"):
        monkeypatch.setattr(encoder, "MAX_PIXELS", 0)
        searcher.search(Request((Part(image=PNG),)))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    assert (ended.value.code, printed.err) == (0, "")
    return printed.out


def test_the_command_prints_hits(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "query.png").write_bytes(PNG)
    out = said(capsys, "search", str(pictures), "a dog", "--minus", "a cat", "--image", str(tmp_path / "query.png"), "--k", "1")
    assert "\x1b" not in out and "�[31mred" in out
    assert len(out.splitlines()) == 2 and out.splitlines()[-1].startswith("1 hit; ")
    found = json.loads(said(capsys, "search", str(pictures), "--json"))
    assert found["exhausted"] and len(found["hits"]) + sum(h["group_size"] - 1 for h in found["hits"]) == 2
    assert [h["score"] for h in found["hits"]] == [0] * len(found["hits"])


def test_the_uids_found_are_a_list_for_shard(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = np.sort(uid_bytes(Searcher.open(root).uids(Request(where="n < 300", group=False), 10**6)))
    for name in ("uids.npy", "uids.parquet"):
        path = tmp_path / name
        assert said(capsys, "search", str(root), "--where", "n < 300", "--export", str(path)) == f"300 uids: {path}\n"
        assert (read_uids(path) == wanted).all()
    one = Searcher.open(root).search(Request(k=1)).hits[0].uid
    said(capsys, "search", str(root), "--uid", one, "--k", "7", "--export", str(tmp_path / "few.parquet"))
    assert pq.read_table(tmp_path / "few.parquet")["uid"].to_pylist()[0] == one
    assert len(pq.read_table(tmp_path / "few.parquet")) == 7


def test_mistakes_of_the_command_are_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in [(["--export", "x.csv"], "a .npy or a .parquet"), (["--where", "nn = 1"], "no column 'nn'"),
                            (["--image", str(tmp_path / "no.jpg")], "No such file"), (["--k", "0"], "k is 0")]:
        with pytest.raises(SystemExit) as ended:
            main(["search", str(root), *arguments])
        printed = capsys.readouterr()
        assert ended.value.code == 2 and says in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_an_index_built_anew_does_not_disturb_one_that_is_open(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "copy")
    opened = Searcher.open(copy)
    before = opened.search(Request((vector(0),)))
    shutil.rmtree(copy / "index")
    after = opened.search(Request((vector(0),), where="n < 1000"))
    assert [h.uid for h in before.hits] == [h.uid for h in after.hits]
