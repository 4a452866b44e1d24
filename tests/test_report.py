"""The report of a run: every number in it, the rows on either side of each line, and that the page is harmless and complete."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.cli import main
from curate.errors import UserError
from curate.pages import atlas, tallies
from curate.pages import page as report_page
from curate.pages.charts import histogram, rounds_chart
from curate.pages.figures import Rows, Values, boundary
from curate.pages.histogram import QUANTILES, Distribution, Histogram, edges_of
from curate.pages.page import Content, gather, judged, render, verdict, write
from curate.pages.thresholds import Line, lines_of
from curate.pages.wording import brief, figure, shown
from curate.store import ALIVE, DROPPED, REMOVED, Kept
from tests.running import run_here, write_pipeline, write_pool
from tests.site.make import make
from tests.site.server import serve

CHROMIUM = Path("/usr/bin/chromium")
SCRIPT = "<script>alert(1)</script> & <img src=x onerror=alert(2)> a b"
ROWS = 60
MINE = '''\
"""Steps of a test."""
import numpy as np
from PIL.Image import Image
from curate.step import bool_, float32, step, vector


@step(adds={"image_emb": vector})
def colour(image: list[Image]):
    """The mean colour of a picture, 0 to 1."""
    return np.array([np.asarray(p, np.float32).mean(axis=(0, 1)) / 255 for p in image])


@step(adds={"nsfw_prob": float32})
def redness(image: list[Image]):
    """How red a picture is, 0 to 1: what this test takes for unsafe."""
    return [float(np.asarray(p)[..., 0].mean()) / 255 for p in image]


@step(adds={"odd": bool_})
def odd(num_words: list[int]):
    """Whether the number of words is odd; raises on thirteen."""
    if 13 in num_words:
        raise ValueError("thirteen <b>words</b>")
    return [n % 2 == 1 for n in num_words]
'''


class Page(HTMLParser):
    """What a page asks for, and the words on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@dataclass(frozen=True)
class Planted:
    """A run with planted values, and its report."""

    out: Path
    content: Content
    page: str


def words(number: int, first: str) -> str:
    return " ".join([first, *["word"] * (number - 1)])


def leaves(i: int) -> str:
    """The clause at which a planted row leaves, or nothing where it comes as far as the top."""
    if not 3 <= len(CAPTIONS[i].split()) <= 11:
        return "num_words between 3 and 11"
    return "score < 0.75" if i / ROWS >= .75 else "len(caption) < 37" if len(CAPTIONS[i]) >= 37 else ""


CAPTIONS = [SCRIPT if i == 26 else words(1 + i // 5, f"row{i:02}") for i in range(ROWS)]
ALIVE_AT_TOP = [i for i in range(ROWS) if not leaves(i)]
OUTSIDE, INSIDE = ALIVE_AT_TOP[: -(len(ALIVE_AT_TOP) // 2)], ALIVE_AT_TOP[-(len(ALIVE_AT_TOP) // 2):]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """60 rows: row i has 1 + i // 5 words and score i / 60; a column of nulls, one of two texts; two rows repeat."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "mine.py").write_text(MINE)
    write_pool(folder, CAPTIONS, score=[i / ROWS for i in range(ROWS)], empty=pa.nulls(ROWS, pa.float64()),
               kind=["ab"[i % 2] if i else None for i in range(ROWS)])
    pool = pq.read_table(folder / "pool.parquet")
    pq.write_table(pa.concat_tables([pool, pool.slice(0, 2)]), folder / "pool.parquet")
    file = write_pipeline(folder, "caption_length", "keep: num_words between 3 and 11 and score < 0.75",
                          "keep: len(caption) < 37", "keep: {top: 0.5, by: score}")
    run_here(file, folder / "out")
    content = gather(folder / "out")
    return Planted(folder / "out", content, render(content))


def column(planted: Planted, name: str) -> Histogram:
    shape = next(c.shape for c in planted.content.columns if c.name == name)
    assert isinstance(shape, Histogram)
    return shape


# Numbers


@pytest.mark.parametrize(("clause", "lines"), [
    ("num_words between 3 and 256", [("num_words", 3, "above", True), ("num_words", 256, "below", True)]),
    ("aspect <= 3.0", [("aspect", 3, "below", True)]),
    ("score > -0.25", [("score", -.25, "above", False)]),
    ("0.3 < clip_cos", [("clip_cos", .3, "above", False)]),
    ("1 >= x", [("x", 1, "below", True)]),
    ('"a.b ""c""" >= 1e3', [('a.b "c"', 1000, "above", True)]),
    ("lang = 'en'", []), ("n = 3", []), ("n != 3", []), ("not is_dup", []), ("len(caption) > 3", []), ("a + b > 3", []),
    ("num_words not between 3 and 5", []), ("a > 1 or b > 2", []), ("a < b", []), ("status in ('ok', '1 < 2')", []),
    ("name = 'x > 3'", [])])
def test_lines_are_read_from_simple_clauses_only(clause: str, lines: list[tuple[str, float, str, bool]]) -> None:
    assert [(x.column, x.value, x.keeps, x.inclusive) for x in lines_of(clause)] == lines


def test_a_line_among_whole_numbers_stands_between_them() -> None:
    lines = [Line("n", 3, "above"), Line("n", 3, "above", False), Line("n", 3, "below"), Line("n", 3, "below", False)]
    assert [boundary(line, True) for line in lines] == [2.5, 3.5, 3.5, 2.5]
    up = math.nextafter(3, 4)
    assert [boundary(line, False) for line in lines] == [3, up, up, 3]


def distribution(values: list[float], kept: list[bool], marks: tuple[float, ...] = (), batch: int = 7) -> Histogram:
    found = Distribution()
    starts = range(0, len(values), batch)
    batches = [(np.array(values[i : i + batch], float), np.array(kept[i : i + batch], bool)) for i in starts]
    for some in batches:
        found.see(*some)
    found.settle(marks)
    for some in batches:
        found.see_again(*some)
    return found.finish()


NUMBERS = st.integers(-9000, 9000) | st.sampled_from([math.inf, -math.inf])


@settings(max_examples=50)
@given(st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=80))
def test_counts_and_quantiles_are_those_of_sorting(rows: list[tuple[float, bool]]) -> None:
    values, kept = [float(v) for v, _ in rows], [k for _, k in rows]
    found = distribution(values, kept)
    for which, some in enumerate((values, [v for v, k in rows if k])):
        finite = sorted(v for v in some if math.isfinite(v))
        assert found.rows[which] == len(some) == sum(found.bins[which]) + found.below[which] + found.above[which]
        assert found.quantiles[which] == tuple(finite[max(1, math.ceil(q * len(finite))) - 1] for q in QUANTILES if finite)
        for low, high, number in zip(found.edges, found.edges[1:], found.bins[which], strict=False):
            last = high == found.edges[-1]
            assert number == sum(low <= v < high or (last and v == high) for v in some)


@settings(max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False), st.booleans(),
       st.lists(st.floats(allow_nan=False), max_size=2))
def test_there_are_edges_for_whatever_comes(low: float, high: float, whole: bool, marks: list[float]) -> None:
    low, high = min(low, high), max(low, high)
    edges, _ = edges_of(*(float(math.floor(end)) if whole else end for end in (low, high)), whole, marks)
    assert 2 <= len(edges) <= 200
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()


def test_a_long_tail_is_counted_beside_the_picture_and_orders_of_magnitude_are_logarithmic() -> None:
    tail = distribution([float(i % 100) for i in range(1000)] + [1e6], [True] * 1001)
    assert (tail.edges[0], tail.above, tail.below, tail.high, tail.is_log) == (-0.5, (1, 1), (0, 0), (1e6, 1e6), False)
    assert tail.edges[-1] < 110
    wide = distribution([10.0 ** (i / 10) for i in range(60)], [True] * 60)
    assert wide.is_log
    assert sum(wide.bins[0]) == 60


def test_a_threshold_near_the_values_is_in_the_picture_and_is_an_edge_of_it() -> None:
    values = [float(v) for v in range(10, 110)]
    assert 4.5 in distribution(values, [True] * 100, (4.5,)).edges
    assert distribution(values, [True] * 100, (5000.5,)).edges[-1] < 120


def test_planted_numbers_are_counted_exactly(planted: Planted) -> None:
    """Rows 0 and 1 stand twice: a repeated row is measured by no step, and kept by none."""
    found = column(planted, "num_words")
    measured, kept = Counter(len(CAPTIONS[i].split()) for i in range(ROWS)), Counter(len(CAPTIONS[i].split()) for i in INSIDE)
    assert found.edges == tuple(n - .5 for n in range(1, 14))
    assert found.bins == tuple(tuple(some[n] for n in range(1, 13)) for some in (measured, kept))
    columns = {c.name: c for c in planted.content.columns}
    assert (columns["num_words"].rows, columns["num_words"].nulls) == ((60, len(INSIDE)), (2, 0))
    assert (columns["score"].rows, columns["score"].nulls) == ((62, len(INSIDE)), (0, 0))
    assert (columns["num_words"].stage, columns["score"].stage) == ("caption_length", "source")


def test_columns_of_nulls_truths_and_few_texts(planted: Planted) -> None:
    columns = {c.name: c for c in planted.content.columns}
    assert columns["empty"].shape is None
    assert columns["empty"].nulls[0] == 62
    shape = columns["kind"].shape
    assert isinstance(shape, Values)
    assert {value: n for value, (n, _) in shape.counts.items()} == {"b": 31, "a": 29}
    assert "no row has a value" in planted.page


def test_reasons_are_those_of_the_funnel(planted: Planted) -> None:
    left = Counter(leaves(i) or ("kept" if i in INSIDE else "top 0.5 by score") for i in range(ROWS))
    assert len(left) == 5
    assert {j.decision.text: j.dropped for j in judged(planted.content)} | {"kept": len(INSIDE)} == left
    text = Page(planted.page).text
    for reason in ("num_words between 3 and 11", "score < 0.75"):
        assert f"−{left[reason]} {reason} look" in text
    assert "−2 repeated_row" in text
    assert verdict(planted.content).startswith(f"{len(INSIDE)} of 62 rows were kept (")


# Rows on either side


def test_the_nearest_rows_on_either_side_of_every_line(planted: Planted) -> None:
    borders = {(b.decision.text, b.line.keeps): b for b in planted.content.borders}
    low, high = borders["num_words between 3 and 11", "above"], borders["num_words between 3 and 11", "below"]
    assert [x.values["num_words"] for x in low.dropped] == [2] * 5 + [1]
    assert {x.caption for x in low.dropped[:5]} == {words(2, f"row{i:02}") for i in range(5, 10)}
    assert [x.values["num_words"] for x in low.passed] == [3] * 5 + [4]
    assert {x.caption for x in low.passed[:5]} == {words(3, f"row{i:02}") for i in range(10, 15)}
    assert [x.values["num_words"] for x in high.dropped] == [12] * 5
    score = borders["score < 0.75", "below"]
    assert [x.values["score"] for x in score.dropped] == [i / ROWS for i in (45, 46, 47, 48, 49, 50)]
    assert [x.values["score"] for x in score.passed] == [i / ROWS for i in (44, 43, 42, 41, 40, 39)]
    assert score.line in next(c.lines for c in planted.content.columns if c.name == "score")


def test_the_line_of_a_top_is_its_last_row_in(planted: Planted) -> None:
    border = next(b for b in planted.content.borders if b.decision.is_top)
    assert border.line.value == INSIDE[0] / ROWS
    assert [x.values["score"] for x in border.passed] == [i / ROWS for i in INSIDE[:6]]
    assert [x.values["score"] for x in border.dropped] == [i / ROWS for i in OUTSIDE[::-1][:6]]
    assert border.line in next(c.lines for c in planted.content.columns if c.name == "score")


def test_a_keep_of_functions_shows_some_rows_that_left(planted: Planted) -> None:
    found = next(x for x in planted.content.leavers if x.title == "len(caption) < 37")
    assert len(found.rows) == 6
    assert {x.caption for x in found.rows} <= {c for i, c in enumerate(CAPTIONS) if leaves(i) == "len(caption) < 37"}


def test_rows_equally_near_are_shown_with_different_captions(tmp_path: Path) -> None:
    write_pool(tmp_path, ["logo"] * 20 + ["one two three"] + [f"number {i}" for i in range(3)])
    run_here(write_pipeline(tmp_path, "caption_length", "keep: num_words >= 3"), tmp_path / "out")
    [border] = gather(tmp_path / "out").borders
    assert Counter(x.caption for x in border.dropped) == {"number 0": 1, "number 1": 1, "number 2": 1, "logo": 3}


def test_rows_taken_down_are_on_neither_side() -> None:
    kept = Kept(np.array([ALIVE, DROPPED, DROPPED, REMOVED], np.uint8), np.array([-1, 1, 2, 5], np.int16),
                np.array([-1, 0, 1, -1], np.int16))
    rows = Rows(0, pa.table({}), kept)
    assert rows.passed(1, 0).tolist() == [True, False, True, False]
    assert rows.passed(2, 0).tolist() == [True, False, True, False]
    assert rows.passed(2, 1).tolist() == [True, False, False, False]
    assert rows.dropped(1, 0).tolist() == [False, True, False, False]


# Counts by name


def test_hosts_and_domains() -> None:
    urls = pa.chunked_array([["http://a.b.Example.co.uk:80/x", "https://u:p@cdn.example.com?q", "http://10.0.0.1/x", "http://[::1]:8/x",
                              "nothing", None, "http://localhost/", "http:///x", "ftp://example.org./y"]])
    found = tallies.hosts(urls)
    assert found.to_pylist() == ["a.b.example.co.uk", "cdn.example.com", "10.0.0.1", "[::1]", None, None, "localhost", None,
                                 "example.org"]
    assert tallies.domains(found).to_pylist() == ["example.co.uk", "example.com", "10.0.0.1", "[::1]", None, None, "localhost",
                                                  None, "example.org"]


def test_concentration_over_domains(tmp_path: Path) -> None:
    """Ten rows on one domain and two on each of five: the Gini coefficient is that of the definition."""
    counts = [10, 2, 2, 2, 2, 2]
    urls = [f"http://www.d{d}.org/{i}.jpg" for d, n in enumerate(counts) for i in range(n)]
    pq.write_table(pa.table({"url": urls, "caption": [f"caption {i}" for i in range(20)]}), tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "caption_length", "keep: num_chars >= 10"), tmp_path / "out")
    found = gather(tmp_path / "out").tallies.domains
    assert found is not None
    assert [(d.name, d.rows, d.kept) for d in found.top[:2]] == [("d0.org", 10, 0), ("d1.org", 2, 2)]
    expected = sum(abs(a - b) for a in counts for b in counts) / (2 * len(counts) ** 2 * (sum(counts) / len(counts)))
    assert found.gini == pytest.approx(expected)
    assert (found.rows, found.domains, found.share_of_10) == (20, 6, 1)


# The page


def test_the_page_asks_for_nothing_and_runs_nothing(planted: Planted) -> None:
    page = Page(planted.page)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert not page.handlers
    assert all(a.startswith(("#", "data:image/webp;base64,")) for a in page.addresses), page.addresses
    assert "url(" not in planted.page
    assert "@import" not in planted.page
    assert "default-src 'none'" in planted.page


def test_a_hostile_caption_is_only_text(planted: Planted) -> None:
    assert "&lt;script&gt;alert(1)" in planted.page
    assert "<script" not in planted.page
    assert "<img src=x" not in planted.page
    assert SCRIPT in Page(planted.page).text


def test_hostile_names_and_values_are_only_text(tmp_path: Path) -> None:
    name = "<b>&\"'"
    urls = [f"http://<i>{i % 2}.org/x{i}.jpg" for i in range(12)]
    pq.write_table(pa.table({"url": urls, "caption": ["\u202eevil\x00 \ud7ff" + "e" + "\u0301" * 50] * 12,
                             name: ["</svg><script>", "b"] * 6, "n<u>": list(range(12))}), tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "keep: '\"n<u>\" >= 3'"), tmp_path / "out")
    page = render(gather(tmp_path / "out"))
    tags = Page(page).tags
    assert tags["script"] == tags["u"] == 0
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "\u0301" * 4 not in page


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(planted: Planted, tmp_path: Path) -> None:
    assert write(planted.out, "a").read_bytes() == planted.page.encode()
    shutil.copytree(planted.out, tmp_path / "elsewhere")
    assert write(tmp_path / "elsewhere", "b") == tmp_path / "elsewhere" / "report" / "index.html"
    assert (tmp_path / "elsewhere" / "report" / "index.html").read_bytes() == planted.page.encode()


def test_the_command_prints_the_funnel_and_the_page(planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(planted.out, out, ignore=shutil.ignore_patterns("report"))
    assert exit_code("report", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == planted.content.funnel
    assert not (out / "report").exists()
    assert exit_code("report", str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rows", "share", "stage"]
    assert lines[-1] == str(out / "report" / "index.html")
    assert (out / "report" / "index.html").exists()


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def test_an_unfinished_run_is_refused_in_one_line(planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(planted.out, out, ignore=shutil.ignore_patterns("report"))
    next((out / "kept" / planted.content.folder.chain).glob("*.parquet")).unlink()
    with pytest.raises(UserError, match=r"out is not finished: 6 of 7 shards are through all stages; see 'curate status .*out'$"):
        write(out, "a")
    (out / "funnel.json").write_text(json.dumps(planted.content.funnel[:2]))
    (out / "funnel.json").unlink()
    with pytest.raises(UserError, match="has no funnel yet"):
        write(out, "a")
    assert not (out / "report").exists()


def test_a_funnel_of_an_earlier_attempt_is_refused(planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(planted.out, out)
    (out / "funnel.json").write_text(json.dumps([{**e, "kept": 7} for e in planted.content.funnel]))
    with pytest.raises(UserError, match="its funnel is of an earlier attempt"):
        write(out, "a")


@pytest.mark.parametrize("entries", [(), ("caption_length", "keep: num_chars >= 1000"),
                                     ("caption_length", "keep: {top: 0.0001, by: num_chars}")],
                         ids=["no stages", "nothing kept", "an empty top"])
def test_any_run_has_a_report(entries: tuple[str, ...], tmp_path: Path) -> None:
    write_pool(tmp_path, [f"caption {i}" for i in range(15)])
    steps = SOURCE_ONLY if not entries else None
    file = write_pipeline(tmp_path, *entries)
    if steps:
        file.write_text(steps)
    outcome = run_here(file, tmp_path / "out")
    page = render(gather(tmp_path / "out"))
    assert f"{outcome.funnel[-1]['kept']} of 15 rows were kept" in Page(page).text


SOURCE_ONLY = "source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 10}\nsteps: []\nshards: none\n"


def test_rows_that_a_step_could_not_measure_are_shown_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    write_pool(tmp_path, [words(n, "a") for n in (12, 13, 14)])
    run_here(write_pipeline(tmp_path, "caption_length", "./mine.py:odd"), tmp_path / "out")
    text = Page(render(gather(tmp_path / "out"))).text
    assert "odd could not measure" in text
    assert "ValueError: thirteen <b>words</b>" in text
    assert "1 quarantined" in text


def test_rounds_stand_side_by_side(planted: Planted) -> None:
    rounds = [{"round": n, "weights": "w", "weights_digest": "ab" * 16, "trained_on": "", "data": {"rows": 10 + n, "digest": ""},
               "figures": {"recall_at_10": .25 * (n + 1), "late": .5} if n else {"recall_at_10": .25}, "promoted": n < 2}
              for n in range(3)]
    text = Page(render(replace(planted.content, rounds=rounds))).text
    assert "recall_at_10 0.250 0.500 0.750" in text
    assert "late – 0.500 0.500" in text
    assert "promoted yes yes no" in text
    one = Page(render(replace(planted.content, rounds=rounds[:1]))).text
    assert "recall_at_10 0.250" in one
    assert "Held-out figures of every round" not in one


def test_drawings_escape_and_stay_inside() -> None:
    assert "&lt;b&gt;" in rounds_chart({"<b>": [.1, .9]}, [0, 1])
    drawn = histogram(distribution([1.0, 2.0, 3.0], [True, False, True]), [Line("x", 1e6, "below"), Line("x", -1e6, "above")])
    assert "≤ 1e+06 →" in drawn
    assert "← ≥ -1e+06" in drawn


def test_numbers_and_texts_are_written_for_people() -> None:
    counts = {0: "0", 9999: "9,999", 10_000: "10k", 12_345: "12.3k", 999_499: "999k", 999_600: "1M", 25_000_000: "25M"}
    assert {n: brief(n) for n in counts} == counts
    numbers = {0.31234: "0.3123", 3.0: "3", 1234567.8: "1,234,568", 0.00001234: "1.234e-05", math.inf: "inf"}
    assert {x: figure(x) for x in numbers} == numbers
    assert shown("  a\n\tb\u202ec\x07 " + "x" * 300, 10) == "a b\ufffdc\ufffd xx…"


# Pictures


def run_over_pictures(folder: Path, number: int) -> Path:
    """A run over pictures of one colour each, the first half blueish, the second red; the folder's name is photos."""
    (folder / "mine.py").write_text(MINE)
    (folder / "photos").mkdir()
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 25, (40, 60, 3), np.uint8)
        pixels += np.array([230 * (2 * i >= number), 0, 6 * (i % 20)], np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{i:02}.png")
        (folder / f"photos/{i:02}.txt").write_text(f"picture number {i}")
    file = write_pipeline(folder, "image_shape", "./mine.py:redness", "keep: num_pixels >= 100 and nsfw_prob < 0.5",
                          "./mine.py:colour", "keep: image_bytes > 10", source="source: {images: photos, shard_rows: 16}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_here(file, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The numbers of a run over 40 pictures."""
    return gather(run_over_pictures(tmp_path_factory.mktemp("pictures"), 40))


def test_pictures_are_shown_and_what_is_unsafe_is_only_hinted_at(pictures: Content) -> None:
    border = next(b for b in pictures.borders if b.line.column == "nsfw_prob")
    assert [x.is_veiled for x in border.dropped] == [True] * 6
    assert [x.is_veiled for x in border.passed] == [False] * 6
    assert render(pictures).count("data:image/webp;base64,") > 6
    assert pictures.atlas is not None
    assert (len(pictures.atlas.xy), pictures.atlas.candidates) == (20, 20)


def test_a_broken_picture_is_a_grey_box(tmp_path: Path) -> None:
    out = run_over_pictures(tmp_path, 8)
    whole = (tmp_path / "photos/02.png").read_bytes()
    (tmp_path / "photos/02.png").write_bytes(whole[:40] + bytes(len(whole) - 40))
    (tmp_path / "photos/03.png").write_bytes(whole[:40])
    (tmp_path / "photos/05.png").unlink()
    assert Page(render(gather(out))).text.count("cannot be shown") == 3


def test_the_page_stays_under_its_limit(pictures: Content) -> None:
    full = len(render(pictures).encode())
    assert full < report_page.MAX_BYTES
    assert len(render(pictures, full - 1).encode()) < full
    assert "data:image" not in render(pictures, 1)


def test_sizes_are_counted_in_quarter_octaves(pictures: Content) -> None:
    sizes = pictures.tallies.sizes
    assert sizes is not None
    assert sizes.columns == ("width_px", "height_px")
    place = int(4 * math.log2(60)), int(4 * math.log2(40))
    assert (sizes.measured[place], sizes.measured.sum(), sizes.kept[place]) == (40, 40, 20)


def test_a_map_is_the_same_whatever_the_order_of_chance() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 16)).astype(np.float32) * np.array([9, 4] + [.1] * 14, np.float32)
    xy, explained = atlas.layout(vectors)
    assert explained > 0.99
    assert ((xy >= 0) & (xy <= 1)).all()
    assert abs(np.corrcoef(xy[:, 0], vectors[:, 0])[0, 1]) > 0.99
    assert np.allclose(atlas.layout(vectors)[0], xy)
    assert atlas.layout(np.ones((5, 1), np.float32))[0].shape == (5, 2)


# A faulty web


def test_failures_of_a_download_and_copies(tmp_path: Path) -> None:
    make(tmp_path / "site", 120, seed=5, mismatch=0, faults={"dead_404": .1, "html": .05, "exact_dup": .1, "opt_out": .05})
    with serve(tmp_path / "site") as site:
        source = f"source: {{pairs: {site.pool}, url: url, caption: caption, shard_rows: 50}}\n"
        file = write_pipeline(tmp_path, "download: {image_size: 64, allow_private: [127.0.0.0/8]}", "keep: status = 'ok'",
                              "image_shape", "image_hash", "same_image", "keep: not is_same_image", source=source)
        run_here(file, tmp_path / "out")
    content = gather(tmp_path / "out")
    fetched, copies = content.tallies.fetched, content.tallies.copies
    assert fetched is not None
    assert copies is not None
    assert {s.name: s.rows for s in fetched.statuses} == {"ok": 96, "http_404": 12, "wrong_type": 6, "opt_out": 6}
    assert content.tallies.opt_outs == (tallies.Named("x-robots-tag", 6, 0),)
    assert "or stands on the list, by how. signal rows" in " ".join(Page(render(content)).text.split())
    assert sum(h.failed for h in fetched.hosts) == 24 or len(fetched.hosts) == tallies.TOP
    assert all(h.failed == sum(h.kinds.values()) <= h.rows for h in fetched.hosts)
    dropped = next(j.dropped for j in judged(content) if j.decision.text == "not is_same_image")
    assert copies.pictures == dropped == 12
    assert [n for n, rows in copies.largest] == [2] * 6
    assert all(rows[0].values == {} and len({x.uid for x in rows}) == 2 for _, rows in copies.largest)
    assert "12 pictures are copies of 12 others" in Page(render(content)).text


# A browser


@pytest.mark.browser
@pytest.mark.timeout(60)
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}")
def test_it_opens_from_disk_at_a_phones_width(planted: Planted, pictures: Content, tab: object) -> None:
    for content, scheme in ((planted.content, "light"), (pictures, "dark")):
        page = write(content.folder.root, "a")
        errors, asked = opened(tab, page, scheme)
        assert errors == []
        assert asked == [page.as_uri()]


@pytest.fixture
def tab() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM),
                                       args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser.new_page(viewport={"width": 390, "height": 800})
        browser.close()


def opened(tab: object, page: Path, scheme: str) -> tuple[list[str], list[str]]:
    """What went wrong while the page opened, and what it asked for besides pictures within itself."""
    errors: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: errors.append(message.text))          # type: ignore[attr-defined]
    tab.on("pageerror", lambda error: errors.append(str(error)))            # type: ignore[attr-defined]
    tab.on("dialog", lambda dialog: errors.append(dialog.message))          # type: ignore[attr-defined]
    tab.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)     # type: ignore[attr-defined]
    tab.emulate_media(color_scheme=scheme)                                  # type: ignore[attr-defined]
    tab.goto(page.as_uri())                                                 # type: ignore[attr-defined]
    wide, shown_ = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")               # type: ignore[attr-defined]
    broken = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length")               # type: ignore[attr-defined]
    if wide > shown_ or broken:
        errors.append(f"{wide} px wide, {broken} pictures broken")
    return errors, asked


