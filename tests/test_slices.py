"""Pass rates by slice: every cell against counting by hand, what is called different, and how the page says it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.folder import Folder
from curate.pages.page import gather, render, write
from curate.pages.slices import FEW, Slices, countries, slices_of
from curate.pages.tallies import hosts
from tests.running import run_here, write_pipeline, write_pool
from tests.test_report import CHROMIUM, Page, exit_code, opened, tab  # noqa: F401  a fixture

N = 400
COUNTRY = ["de", "uk", "com", "io"]
CAPTIONS = [f"{('A woman', 'A man', 'Two cats', 'Her brother')[i // 4 % 4]} number {i}" for i in range(N)]
URLS = [f"http://a.site{i % 4}.{COUNTRY[i % 4]}/{i}.jpg" for i in range(N)]
WIDTH = [32 << (i % 6) for i in range(N)]
SCORES = [0.0 if i % 4 == 0 and i % 8 == 0 else 1.0 for i in range(N)]    # half of the German rows have a bad score


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    pq.write_table(pa.table({"url": URLS, "caption": CAPTIONS, "width": WIDTH, "height": [4096] * N, "score": SCORES}),
                   folder / "pool.parquet")
    file = write_pipeline(folder, "keep: score > 0.5", "caption_length", "keep: width >= 64 and num_words >= 4")
    run_here(file, folder / "out")
    return folder / "out"


def of(out: Path, kind: str) -> Slices:
    return next(s for s in slices_of(Folder.open(out)) if s.kind == kind)


def test_every_cell_is_what_counting_gives(out: Path) -> None:
    found = of(out, "country of the domain")
    assert (found.names, found.rows) == (("none", "de", "gb"), (200, 100, 100))
    first, second, end = found.judges
    assert (first.what, first.line, first.rate) == ("score > 0.5", 3, 350 / 400)
    assert [(c.came, c.stayed) for c in first.cells] == [(200, 200), (100, 50), (100, 100)]
    assert [c.ratio for c in first.cells] == [1 / .875, .5 / .875, 1 / .875]
    left = [i for i in range(N) if SCORES[i]]
    stay = [i for i in left if WIDTH[i] >= 64 and len(CAPTIONS[i].split()) >= 4]
    assert second.rate == len(stay) / len(left)
    assert [(c.came, c.stayed) for c in second.cells] == [
        (sum(i % 4 in some for i in left), sum(i % 4 in some for i in stay)) for some in ((2, 3), (0,), (1,))]
    assert (end.what, end.rate) == ("kept at the end", len(stay) / N)


def test_words_may_be_of_several_groups_and_are_held_against_all_rows(out: Path) -> None:
    found = of(out, "words of the caption")
    assert found.names == ("women", "men")
    assert found.rows == (200, 200)                                       # "her brother" is in both, cats are in neither
    assert found.judges[0].rate == 350 / 400


def test_a_slice_is_different_where_chance_would_hardly_make_it(out: Path) -> None:
    found = of(out, "country of the domain")
    assert [c.differs for c in found.judges[0].cells] == [True, True, True]
    sizes = of(out, "shorter side")
    assert sizes.names[:2] == ("< 64 px", "64–127 px")                    # from small to large, not by rows
    wide = next(j for j in sizes.judges if j.what.startswith("width"))
    assert wide.cells[0].stayed == 0
    assert wide.cells[0].differs


def test_few_rows_are_never_called_different(tmp_path: Path) -> None:
    urls = [f"http://x.{'fr' if i < FEW - 1 else 'de'}/{i}" for i in range(300)]
    pq.write_table(pa.table({"url": urls, "caption": ["a b"] * 300, "bad": [i < FEW - 1 for i in range(300)]}),
                   tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "keep: not bad"), tmp_path / "out")
    [judge] = of(tmp_path / "out", "country of the domain").judges
    assert [(c.came, c.stayed, c.differs) for c in judge.cells] == [(271, 271, True), (FEW - 1, 0, False)]


def test_keeps_before_a_slice_is_measured_have_no_rate_by_it(tmp_path: Path) -> None:
    texts = ["This is a photograph of a large red house by the sea", "Das ist ein Bild von einem grossen roten Haus am Meer"]
    pq.write_table(pa.table({"url": [f"http://x/{i}" for i in range(80)], "caption": [texts[i % 2] for i in range(80)],
                             "score": list(range(80))}), tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "keep: score >= 10", "language", "keep: lang = 'en'"), tmp_path / "out")
    found = of(tmp_path / "out", "language")
    assert [j.what for j in found.judges] == ["lang = 'en'"]
    assert dict(zip(found.names, (c.ratio for c in found.judges[0].cells), strict=True)) == {"de": 0.0, "en": 2.0}


def test_countries_are_those_of_country_domains() -> None:
    urls = ["http://a.de/", "http://b.co.uk:80/x", "http://c.io", "http://d.com", "http://10.0.0.1/", "x", None]
    assert countries(hosts(pa.chunked_array([urls]))).to_pylist() == ["de", "gb", "none", "none", "none", None, None]


def test_the_page_shows_them_and_stays_harmless(out: Path) -> None:
    page = render(gather(out))
    text = Page(page).text
    assert "Pass rates by country of the domain, over the rate of all" in text
    assert "score > 0.5 87.5 % 1.14 0.57 1.14" in text
    assert 'href="#slices"' in page
    assert page.count('class="heat') > 10
    assert all(address.startswith("#") for address in Page(page).addresses)


def test_a_run_with_nothing_to_slice_has_no_such_part(tmp_path: Path) -> None:
    write_pool(tmp_path, ["x"] * 5)
    run_here(write_pipeline(tmp_path, "caption_length"), tmp_path / "out")
    assert slices_of(Folder.open(tmp_path / "out")) == []
    assert 'id="slices"' not in render(gather(tmp_path / "out"))
    assert exit_code("report", str(tmp_path / "out")) == 0


@pytest.mark.browser
@pytest.mark.timeout(60)
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tables_need_no_sideways_scrolling_of_the_page(out: Path, tab: object, scheme: str) -> None:  # noqa: F811
    page = write(out, "a")
    assert opened(tab, page, scheme) == ([], [page.as_uri()])
