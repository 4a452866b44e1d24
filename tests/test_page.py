"""The retrieval page in a real browser: every way to ask, the keyboard, a phone's width, and that hostile captions stay text."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from curate.retrieval.guard import Limits
from curate.retrieval.server import Settings, create_app
from tests.colours import ROWS, SCRIPT, Colours, uid_of
from tests.running import environment
from tests.serving import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--no-first-run"]
QUICKSTART = Path(__file__).resolve().parents[1] / "runs" / "quickstart"
FUNNEL = [{"what": "source", "in": 60, "kept": 60, "dropped": 0},
          {"what": "keep num_words between 3 and 256", "in": 60, "kept": 55, "dropped": 5,
           "clauses": [{"text": "num_words between 3 and 256", "dropped": 5, "unknown": 0}]}]
ROUNDS = [{"round": 0, "data": {"rows": 55}, "figures": {"recall_at_10": 0.25}, "promoted": True, "weights_digest": "ab" * 16}]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60),
              pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}")]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("run")
    (root / "funnel.json").write_text(json.dumps(FUNNEL))
    (root / "rounds.json").write_text(json.dumps(ROUNDS))
    settings = Settings(limits=Limits(rate=10_000, burst=10_000))
    with serving(create_app(Colours(broken=frozenset({8})), root, settings)) as port:   # type: ignore[arg-type]
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page(browser: "playwright.Browser", address: str) -> Iterator["playwright.Page"]:
    """The page, opened; it must ask nobody else, log no error and run no caption."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=address)
    tab = context.new_page()
    tab.set_default_timeout(10_000)
    asked: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto("/")
    ready(tab)
    yield tab
    assert tab.evaluate("window.hacked") is None
    outside = {url for url in asked if not url.startswith("data:") and urlsplit(url).netloc != urlsplit(address).netloc}
    assert not {url for url in outside if not url.startswith(f"blob:{address}")}
    assert [e for e in errors if "responded with a status of 40" not in e and "TrustedHTML" not in e] == []
    context.close()


def ready(tab: "playwright.Page") -> None:
    playwright.expect(tab.locator("#counts strong")).to_be_visible()
    playwright.expect(tab.locator("#search-view[aria-busy]")).to_have_count(0)


def captions(tab: "playwright.Page") -> list[str]:
    ready(tab)
    return [caption.replace(" pixels", "") for caption in tab.locator(".tile .caption").all_inner_texts()]


def search(tab: "playwright.Page", words: str) -> None:
    tab.fill("#words", words)
    tab.press("#words", "Enter")
    playwright.expect(tab.locator(".chip .words").first).to_have_text(words)


def test_words_find_pictures_and_what_was_left_out_is_counted(page: "playwright.Page") -> None:
    search(page, "blue square")
    assert captions(page)[:2] == ["a blue square of 96", "a blue square of 160"]
    counts = page.inner_text("#counts")
    assert "40 found of 60 searched · left out: 5 dropped by the run, 15 as near-duplicates" in counts
    assert page.locator("#counts").get_attribute("aria-live") == "polite"


def test_a_picture_and_a_caption_are_searched_by_when_clicked(page: "playwright.Page") -> None:
    search(page, "green triangle")
    page.locator(".tile .picture").first.click()
    playwright.expect(page.locator(".chip .face img")).to_have_attribute("src", re.compile("/v1/image/"))
    assert captions(page)[0].startswith("a green triangle")
    page.locator(".tile .caption", has_text="yellow").first.click()
    playwright.expect(page.locator(".chip .words")).to_have_text(re.compile("^a yellow"))
    assert captions(page)[0].startswith("a yellow")


def test_parts_are_added_subtracted_weighed_and_removed(page: "playwright.Page") -> None:
    search(page, "red circle")
    page.fill("#words", "triangle")
    page.press("#words", "Shift+Enter")
    playwright.expect(page.locator(".chip")).to_have_count(2)
    page.locator(".chip .sign").nth(0).click()
    playwright.expect(page.locator(".chip").nth(0)).to_have_class("chip minus")
    assert not any("red" in c or "circle" in c for c in captions(page)[:8])
    page.locator(".chip input").nth(1).fill("2")
    playwright.expect(page).to_have_url(re.compile(r"t=2%3Atriangle"))
    page.locator(".chip .remove").nth(0).click()
    playwright.expect(page.locator(".chip")).to_have_count(1)
    assert "triangle" in captions(page)[0]


def test_back_and_forward_and_a_shared_address(page: "playwright.Page") -> None:
    search(page, "black")
    black = captions(page)
    search(page, "yellow")
    assert captions(page) != black
    page.go_back()
    playwright.expect(page.locator(".chip .words")).to_have_text("black")
    assert captions(page) == black
    page.check("#dropped")
    ready(page)
    other = page.context.new_page()
    other.goto(page.url)
    assert captions(other) == captions(page)
    assert other.is_checked("#dropped")
    page.go_back()
    page.go_forward()
    playwright.expect(page.locator("#dropped")).to_be_checked()


def test_conditions_are_built_from_columns(page: "playwright.Page") -> None:
    page.click("#filter-toggle")
    page.click("#filter-add")
    page.get_by_label("Value").fill("150")
    page.get_by_label("Value").press("Enter")
    playwright.expect(page.locator("#whole")).to_have_text("where width_px >= 150")
    playwright.expect(page.locator("#counts")).to_contain_text("by the filter")
    assert {c.split()[-1] for c in captions(page)} == {"160"}
    page.fill("#where", "lang = 'de' or is_dup")
    page.press("#where", "Enter")
    playwright.expect(page.locator("#counts")).to_contain_text("Nothing")
    playwright.expect(page.locator("#whole")).to_have_text("where width_px >= 150 and (lang = 'de' or is_dup)")
    page.get_by_label("Remove this condition").click()
    playwright.expect(page.locator(".filter-row")).to_have_count(0)


def test_a_wrong_condition_is_said_in_its_own_words(page: "playwright.Page") -> None:
    page.click("#filter-toggle")
    page.fill("#where", "widht_px > 1")
    page.press("#where", "Enter")
    playwright.expect(page.locator("#problem")).to_have_text("no column 'widht_px'; did you mean 'width_px'?")
    page.fill("#where", "")
    page.press("#where", "Enter")
    assert len(captions(page)) == 40


def test_dropped_rows_are_shown_on_demand_with_the_keep_that_dropped_them(page: "playwright.Page") -> None:
    assert page.locator(".tile.gone").count() == 0
    page.check("#dropped")
    playwright.expect(page.locator(".tile.gone .reason").first).to_have_text("dropped line 7: num_words between 3 and 256")


def test_the_drawer_says_everything_about_a_row(page: "playwright.Page") -> None:
    page.check("#dropped")
    page.locator(".tile.gone .link").first.click()
    drawer = page.locator("#drawer")
    playwright.expect(drawer.locator("h2")).to_have_text("Dropped")
    playwright.expect(drawer.locator(".verdicts .decided code")).to_have_text("num_words between 3 and 256")
    playwright.expect(drawer.locator("tr", has_text="width_px")).to_contain_text("128")
    link = drawer.locator("a.url")
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert (link.get_attribute("href") or "").startswith("https://pictures.example/")
    assert "open=" in page.url
    page.reload()
    playwright.expect(drawer.locator("h2")).to_have_text("Dropped")
    page.keyboard.press("Escape")
    playwright.expect(page).not_to_have_url(re.compile("open="))
    playwright.expect(drawer).to_be_hidden()


def test_near_duplicates_are_folded_and_listed(page: "playwright.Page") -> None:
    tile = page.locator(f".tile[data-uid='{uid_of(2)}']")
    playwright.expect(tile.locator(".badge")).to_contain_text("×2")
    tile.locator(".link").click()
    page.locator(".duplicates button").click()
    playwright.expect(page).to_have_url(re.compile(f"open={uid_of(3)}"))
    page.keyboard.press("Escape")
    page.uncheck("#group")
    playwright.expect(page.locator(".badge")).to_have_count(0)


def test_more_comes_as_the_end_comes_into_sight(page: "playwright.Page") -> None:
    page.uncheck("#group")
    page.check("#dropped")
    playwright.expect(page.locator(".tile")).to_have_count(40)
    page.locator("#more").scroll_into_view_if_needed()
    playwright.expect(page.locator(".tile")).to_have_count(60)
    playwright.expect(page.locator("#more")).to_be_hidden()
    playwright.expect(page.locator("#counts")).to_contain_text("60 found of 60 searched")
    uids = [tile.get_attribute("data-uid") for tile in page.locator(".tile").all()]
    assert len(set(uids)) == 60


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_the_found_set_is_saved(page: "playwright.Page", form: str, tmp_path: Path) -> None:
    search(page, "red")
    with page.expect_download() as download:
        page.click(f"#export-{form}")
    assert download.value.suggested_filename == f"found.{form}"
    download.value.save_as(tmp_path / "found")
    if form == "npy":
        assert len(np.load(tmp_path / "found")) == 40
    playwright.expect(page.locator("#counts")).to_contain_text(f"curate shard RUN --uids found.{form}")


def test_a_picture_of_ones_own_is_shrunk_and_searched_by(page: "playwright.Page", tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(ROWS[30].picture())
    page.set_input_files("#upload", tmp_path / "mine.png")
    playwright.expect(page.locator(".chip .face img")).to_have_attribute("src", re.compile("^data:image/jpeg;base64,"))
    assert captions(page)[0].startswith("a blue")
    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    assert captions(page)[0].startswith("a blue")
    (tmp_path / "mine.png").write_bytes(b"no picture")
    page.set_input_files("#upload", tmp_path / "mine.png")
    playwright.expect(page.locator("#problem")).to_have_text("that is no picture this browser can read")


def test_a_caption_with_a_script_is_text(page: "playwright.Page") -> None:
    search(page, "red circle")
    tile = page.locator(f".tile[data-uid='{uid_of(0)}']")
    playwright.expect(tile.locator(".caption")).to_have_text(SCRIPT)
    tile.locator(".link").click()
    playwright.expect(page.locator(".full-caption")).to_have_text(SCRIPT)
    assert page.locator("#drawer a.url").count() == 0                       # javascript: is no link
    playwright.expect(page.locator("#drawer .url")).to_have_text("javascript:window.hacked=1")
    page.keyboard.press("Escape")
    tile.locator(".caption").click()
    playwright.expect(page.locator(".chip .words")).to_have_text(SCRIPT)
    assert page.locator(".tile script, .chip script, .tile .caption img").count() == 0


@pytest.mark.parametrize("hash_", ["t=1:<img src=x onerror=window.hacked=1>", "t=x:y&u=1:&i=1:!!!&f=|&view=__proto__",
                                   "u=1:nobody", "t=99:a&against=javascript:1", "f=width_px|;drop|1", "f=constructor|=|1",
                                   "%%%&&&="])
def test_a_hostile_address_does_no_harm(page: "playwright.Page", hash_: str) -> None:
    page.goto("about:blank")
    page.goto("/#" + hash_)
    playwright.expect(page.locator("#counts strong, #problem:visible, .tables h1").first).to_be_visible()


def test_the_browser_would_not_let_a_caption_run_either(page: "playwright.Page") -> None:
    said = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch (e) { return e.name; } }")
    assert said == "TypeError"


def test_everything_by_keyboard(page: "playwright.Page") -> None:
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.className"))

    page.keyboard.press("/")
    assert focused() == "words"
    page.keyboard.type("green")
    page.keyboard.press("Enter")
    assert captions(page)[0].startswith("a green")
    page.keyboard.press("ArrowDown")
    assert focused() == "picture"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("[...document.querySelectorAll('.tile')].indexOf(document.activeElement.closest('.tile'))") == 1
    assert page.locator(".tile button[tabindex='0']").count() == 3
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("i")
    playwright.expect(page.locator("#drawer")).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#drawer")).to_be_hidden()
    assert focused() == "picture"
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".chip .face img")).to_have_count(1)
    playwright.expect(page.locator("#search-view:not([aria-busy])")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("-")
    playwright.expect(page.locator(".chip.minus")).to_have_count(1)
    page.keyboard.press("Escape")
    assert focused() == "words"
    page.keyboard.press("Tab")
    assert focused() == "pick"
    page.locator("#home").focus()
    page.keyboard.press("?")
    playwright.expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")


def test_every_control_has_a_name(page: "playwright.Page") -> None:
    page.click("#filter-toggle")
    page.click("#filter-add")
    search(page, "red")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, a")].filter((e) =>
        !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim() || e.ariaHidden)).map((e) => e.outerHTML)""")
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0


def test_a_picture_that_is_broken_has_a_placeholder(page: "playwright.Page") -> None:
    image = page.locator(f".tile[data-uid='{uid_of(8)}'] img")
    image.scroll_into_view_if_needed()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_the_funnel_and_the_rounds(page: "playwright.Page") -> None:
    assert page.locator("#tabs a").all_inner_texts() == ["Search", "Funnel", "Rounds"]      # this run has no card
    page.click("#tabs a[data-view=funnel]")
    playwright.expect(page.locator(".funnel li.quiet-stage")).to_contain_text("source")
    playwright.expect(page.locator(".funnel .reasons")).to_have_text("5 dropped")
    page.click("#tabs a[data-view=rounds]")
    playwright.expect(page.locator(".rounds")).to_contain_text("recall_at_10")
    page.go_back()
    page.go_back()
    ready(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phones_width_needs_no_sideways_scrolling(browser: "playwright.Browser", address: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, base_url=address, color_scheme=scheme, has_touch=True)
    tab = context.new_page()
    for state in ("", "#t=1:a+red+circle&t=-0.5:a+very+long+caption+that+goes+on+and+on+and+on+and+on&f=width_px|>=|10&dropped=1",
                  "#view=funnel", "#view=rounds", f"#open={uid_of(5)}"):
        tab.goto("about:blank")
        tab.goto("/" + state)
        playwright.expect(tab.locator(".tile, .tables h1").first).to_be_visible()
        if "open" in state:
            playwright.expect(tab.locator(".measurements")).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, state
        assert tab.evaluate("document.querySelector('#drawer').scrollWidth") <= 390, state
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 20, 19)") == (scheme == "dark")
    context.close()


def test_a_busy_server_is_asked_again_and_a_lost_one_is_said(browser: "playwright.Browser", tmp_path: Path) -> None:
    slow = Colours(fault=RuntimeError("gone"))
    with serving(create_app(slow, tmp_path, Settings())) as port:      # type: ignore[arg-type]
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{port}/")
        playwright.expect(tab.locator("#problem")).to_have_text("the index cannot answer; the server's log says why")
        slow.fault = None
        tab.fill("#words", "red")
        tab.press("#words", "Enter")
        ready(tab)
        context.close()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that `make demo` leaves, with an index."""
    if not (QUICKSTART / "rounds.json").exists():
        pytest.skip("there is no finished runs/quickstart; make demo makes it")
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    shutil.copytree(QUICKSTART, folder)
    done = curate("index", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def curate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "curate", *arguments], capture_output=True, text=True, env=environment(),
                          timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_from_end_to_end(browser: "playwright.Browser", indexed: Path) -> None:
    command = [sys.executable, "-m", "curate", "serve", str(indexed), "--port", "0", "--policy", "not held_out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            assert server.stdout is not None
            asked_of(browser, server.stdout.readline().strip())
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


def asked_of(browser: "playwright.Browser", address: str) -> None:
    """Words, a click on a picture, the drawer: what a first visitor does, and what must come of it."""
    tab = browser.new_page(base_url=address)
    score, patient = tab.locator(".tile .meta span").first, {"timeout": 120_000}     # the model may still be loading
    tab.goto("/")
    ready(tab)
    tab.fill("#words", "a red heart")
    tab.press("#words", "Enter")
    playwright.expect(score).to_have_text(re.compile(r"^0\.\d+$"), **patient)
    assert sum("red" in caption.lower() for caption in captions(tab)) >= 20
    tab.locator(".tile .picture").first.click()
    playwright.expect(score).to_have_text("1.000", **patient)
    tab.locator(".tile .link").first.click()
    playwright.expect(tab.locator(".verdicts .yes").first).to_be_visible()
    assert tab.locator(".verdicts .yes").count() == tab.locator(".verdicts li").count()
    assert tab.locator(".measurements tr", has_text="held_out").inner_text().split() == ["held_out", "false"]
    assert tab.locator("#tabs a").all_inner_texts()[:3] == ["Search", "Funnel", "Rounds"]
    tab.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_policy_that_cannot_be_decided_is_not_served_without(indexed: Path) -> None:
    done = curate("serve", str(indexed), "--policy", "nsfw_prob < 0.5", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nsfw_prob" in done.stderr and done.stderr.count("\n") == 1
