"""The card of a run: its figures are the run's own, what a human wrote stays, what a stranger wrote harms nobody."""

import contextlib
import html
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from curate import files
from curate.cards import facts
from curate.cards.card import SECTIONS, write_card
from curate.cards.markdown import escaped, sections
from curate.cli import main
from curate.errors import UserError
from curate.sketch import Sketch
from tests.cards import HOSTILE, PLAIN, YAML, fill, make_downloaded, make_run, rows_of, write_sections
from tests.running import tree

markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py comes with rich")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with hostile captions, its card filled in."""
    root = make_run(tmp_path_factory.mktemp("card"))
    fill(root)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def readme(root: Path) -> str:
    return (root / "card" / "README.md").read_text()


def matter(root: Path) -> dict[str, Any]:
    """The front matter, read as Hugging Face reads it."""
    return dict(yaml.safe_load(readme(root).split("---\n")[1]))


def said(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    with contextlib.suppress(SystemExit):
        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Figures

def test_the_front_matter_is_what_the_hub_reads(made: Path) -> None:
    found = matter(made)
    assert found["license"] == "cc-by-4.0"
    assert found["language"] == ["und"]
    assert found["pretty_name"] == "some-pairs"
    assert found["size_categories"] == ["n<1K"]
    assert found["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]},
        {"config_name": "metadata", "data_files": [{"split": "train", "path": "shards/*.parquet"}]}]
    assert {f["name"]: f["dtype"] for f in found["dataset_info"]["features"]} == {
        "key": "string", "uid": "string", "image_id": "string", "url": "string", "caption": "string", "n": "int64",
        "score": "float64", "source_key": "string", "num_chars": "int32", "num_words": "int32"}
    assert found["dataset_info"]["splits"][0]["num_examples"] == 19
    assert found["dataset_info"]["download_size"] == sum(p.stat().st_size for p in (made / "shards").glob("*.parquet"))


def test_a_licence_that_the_hub_does_not_know_is_named(run: Path) -> None:
    fill(run, YAML.replace("CC-BY-4.0", "[CC-BY-4.0, LPPL-1.3a]"))
    found = matter(run)
    assert (found["license"], found["license_name"]) == ("other", "cc-by-4.0-and-lppl-1.3a")


def test_the_funnel_has_every_reason_and_adds_up(made: Path) -> None:
    assert rows_of(readme(made), "## Filtering") == [
        ["source", "20", "0", "20", ""],
        ["caption_length", "20", "0", "20", ""],
        ["keep num_chars &#62;= 5 and n &#33;= 3", "20", "1", "19", "1 dropped: <code>n &#33;= 3</code>"]]


def test_quantiles_are_values_of_the_rows_before_and_after(made: Path) -> None:
    rows = rows_of(readme(made), "### Distributions")
    at = next(i for i, row in enumerate(rows) if row[0] == "<code>score</code>")
    for row, side, scores in ((rows[at], "before", [i / 8 for i in range(20)]),
                              (rows[at + 1], "after", [i / 8 for i in range(20) if i != 3])):
        expected = np.quantile(scores, [.01, .05, .25, .5, .75, .95, .99], method="inverted_cdf")
        assert row[1:] == [side, str(len(scores)), *(f"{v:.3g}" for v in expected)]


def test_the_concentration_of_hosts(made: Path) -> None:
    hosts = Counter({"a.example": 11, "b.example": 4, "c.example": 4})     # www, capitals and ports aside; row 3 is not kept
    assert rows_of(readme(made), "### Concentration of hosts") == [
        [h, str(n), f"{n / 19:.1%}"] for h, n in sorted(hosts.items(), key=lambda i: (-i[1], i[0]))]
    hhi = sum((n / 19) ** 2 for n in hosts.values())
    pairs = sum(abs(a - b) for a in hosts.values() for b in hosts.values())
    gini = pairs / (2 * 3 * 19)
    assert f"index {hhi:.3g} (1 is one host), Gini {gini:.3g} (0 is all alike)" in readme(made)
    assert "The top 10 hold 100.0% of the kept rows" in readme(made)


def test_opt_outs_failures_and_positions_are_counted(tmp_path: Path) -> None:
    root = make_downloaded(tmp_path)
    fill(root)
    card = readme(root)
    assert rows_of(card, "### Downloads, failures and opt-outs") == [
        ["ok", "7", "70.0%"], ["http_404", "2", "20.0%"], ["opt_out", "1", "10.0%"]]
    said = card.split("Who said no, how", 1)[1]
    assert rows_of("x\n" + said, "x") == [
        ["download", "standard", "X-Robots-Tag and tdm-reservation in headers, robots.txt", "x-robots-tag", "1"]]
    assert "1 of 7 rows with a fetched picture had a GPS position in its file's EXIF, 1 of them were kept." in card
    assert "no EXIF, XMP, IPTC or other metadata of the file is stored" in card
    assert "a secret of its owner" not in card, "who opted out is not quoted"
    assert "picture gone" in card
    document = files.read_json(root / "card" / "croissant.json")
    assert document["rai:dataCollectionType"] == ["Web Scraping"]
    assert document["rai:dataCollectionMissingData"] == (
        "Rows whose picture could not be had or was not taken: 2 http_404, 1 opt_out.")


def test_of_pictures_that_were_there_nothing_is_claimed(made: Path) -> None:
    assert "metadata in them (EXIF, GPS, XMP) was neither counted nor removed" in readme(made)
    assert "This run downloaded nothing" in readme(made)


def test_a_reason_of_safety_gives_no_example(tmp_path: Path) -> None:
    root = make_run(tmp_path, ["a fine caption", "an awful caption"], keep="n < 1 and score < 3")
    assert "an awful caption" in card_of(root)
    run_json = root / "run.json"
    run_json.write_text(run_json.read_text().replace('"n < 1"', '"nsfw_prob < 1"'))
    assert "an awful caption" not in card_of(root)


def card_of(root: Path) -> str:
    fill(root)
    return readme(root)


def test_hashes_and_files_are_those_on_disk(made: Path) -> None:
    manifest = made / "shards" / "manifest.json"
    found = {row[0]: re.sub("<.*?>", "", row[1]) for row in rows_of(readme(made), "### Hashes")}
    assert found["manifest.json of the shards, sha256"] == files.file_digest(manifest)
    assert found["chain of stages"] == files.read_json(made / "run.json")["chain"]
    for path, size, _, sha256 in rows_of(readme(made), "### Files"):
        local = made / html.unescape(path)
        assert (int(size.replace(",", "")), sha256) == (local.stat().st_size, files.file_digest(local))


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    before = tree(run, "card")
    list(write_card(run, "again"))
    assert tree(run, "card") == before


def test_a_card_tells_no_place_of_this_machine(made: Path) -> None:
    for name in ("README.md", "croissant.json"):
        text = (made / "card" / name).read_text()
        assert str(made.parent) not in text and "/tmp" not in text


@pytest.mark.parametrize(("setting", "told"), [
    ("/home/me/lists/bad.txt", "bad.txt"), ("~/x/y.txt", "y.txt"), ("s3://bucket/key/of.parquet", "of.parquet"),
    ("C:\\Users\\me\\x.txt", "x.txt"), ("lists/bad.txt", "lists/bad.txt"), ("hf-hub:org/model", "hf-hub:org/model"),
    (["/a/b", {"k": "/c/d"}], ["b", {"k": "d"}]), (3, 3)])
def test_of_a_place_only_the_last_part_is_told(setting: Any, told: Any) -> None:
    assert facts.public(setting) == told


# What a human wrote

def test_hand_written_sections_stay_byte_for_byte(run: Path) -> None:
    body = "\r\n\n  Ünïcode, \t tabs, {{ braces }}, <b>html</b>, | pipes |\n\n---\n# not a heading of ours\n\\x00 "
    write_sections(run / "card" / "README.md", motivation=body)
    list(write_card(run, "test"))
    assert f"<!-- human: motivation -->{body}<!-- /human -->".encode() in (run / "card" / "README.md").read_bytes()
    for name in list(SECTIONS)[1:]:
        assert f"<!-- human: {name} -->\nWritten by hand: {name}.\n<!-- /human -->" in readme(run)


DAMAGE = {
    "no end": ("<!-- /human -->", ""),
    "no begin": ("<!-- human: contact -->", ""),
    "a typo in the begin": ("<!-- human: contact -->", "<!-- human contact -->"),
    "a typo in the end": ("<!-- /human -->", "<!--/human-->"),
    "a section twice": ("<!-- human: contact -->", "<!-- human: contact -->x<!-- /human --><!-- human: contact -->"),
    "another name": ("<!-- human: contact -->", "<!-- human: contacts -->"),
    "one inside another": ("<!-- human: contact -->", "<!-- human: contact --><!-- human: licence -->"),
    "nothing left": (None, "# my own card\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_card_with_damaged_markers_is_refused_and_not_touched(run: Path, damage: tuple[str | None, str]) -> None:
    path = run / "card" / "README.md"
    path.write_text(damage[1] if damage[0] is None else path.read_text().replace(damage[0], damage[1], 1))
    before = tree(run, "card")
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        list(write_card(run, "test"))
    assert "\n" not in str(caught.value)
    assert tree(run, "card") == before


def test_a_damaged_marker_is_named_with_its_line(run: Path) -> None:
    path = run / "card" / "README.md"
    path.write_text(path.read_text().replace("<!-- human: contact -->", "<!-- human contact -->"))
    line = 1 + path.read_text().split("<!-- human contact -->")[0].count("\n")
    with pytest.raises(UserError) as caught:
        list(write_card(run, "test"))
    assert str(caught.value) == (f"{path}: a marker of a hand-written section is damaged (line {line}); "
                                 "each is '<!-- human: NAME -->' … '<!-- /human -->'")


def test_the_first_card_writes_a_template_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_run(tmp_path)
    code, out, _ = said("card", str(root), capsys=capsys)
    assert code == 0
    assert out.splitlines() == [
        f"{root}/card/card.yaml: a template; fill it in and run the same command again",
        f"{root}/card/README.md and croissant.json: 19 rows, 10 files",
        ("TODO-HUMAN: name, description, url, datePublished, license, creator, motivation, intended-use, out-of-scope, "
         "bias-analysis, licence, contact")]


def test_check_passes_a_complete_card_and_fails_a_stale_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said("card", str(run), "--check", capsys=capsys) == (0, f"{run}/card: complete, and every file is as it says\n", "")
    path = run / "card" / "README.md"
    path.write_text(path.read_text().replace("19 of 20", "20 of 20"))
    code, out, _ = said("card", str(run), "--check", capsys=capsys)
    assert (code, out) == (1, f"{path} is not what the run and card.yaml give now; run `curate card {run}` again\n")


def test_check_lists_what_waits_for_a_human(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sections(run / "card" / "README.md", motivation="\nTODO-HUMAN\n")
    code, out, _ = said("card", str(run), "--check", capsys=capsys)
    assert (code, out) == (1, f"{run}/card/README.md: 'motivation' still says TODO-HUMAN\n")


# card.yaml

MISTAKES = [
    ("license: CC-BY-4.0", "licence: CC-BY-4.0", ":4: no key 'licence'; did you mean 'license'?"),
    ("name: some-pairs\n", "", ": 'name' is missing; write TODO-HUMAN where it is not known yet"),
    ("url: https", "url: ftp", ":3: url: 'ftp://example.org/some-pairs' is no http:// or https:// address"),
    ("2026-11-30", "30.11.2026", ":6: datePublished: '30.11.2026' is no date like 2026-11-30"),
    ("1.0.0", "'1.0'", ":7: version: '1.0' is not MAJOR.MINOR.PATCH, like 1.0.0"),
    ("1.0.0", "1.0", ":7: version: takes text, not 1.0; put it in quotes"),
    ("type: Person", "type: Human", ":5: creator: type is Organization or Person, not 'Human'"),
    ("type: Person", "typ: Person", ":5: creator: has no 'typ'; did you mean 'type'?"),
    ("name: some-pairs", "name: [a]", ":1: name: takes text, not ['a']"),
    ("name: some-pairs", "name: a/b", ":1: name: takes one line of at most 120 characters without slashes"),
    ("name: some-pairs", "name: a\nname: b", ":2: not YAML: 'name' stands twice"),
    (YAML, "", " holds no 'key: value'; remove it and `curate card` writes its template again"),
    (YAML, "- a\n", " holds no 'key: value'; remove it and `curate card` writes its template again"),
]


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_a_mistake_in_card_yaml_is_one_line(run: Path, old: str, new: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "card" / "card.yaml"
    path.write_text(YAML.replace(old, new))
    before = tree(run, "card")
    assert said("card", str(run), capsys=capsys) == (2, "", f"{path}{line}\n")
    assert tree(run, "card") == before


def test_a_folder_without_a_finished_run(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said("card", str(tmp_path), capsys=capsys)[::2] == (
        2, f"{tmp_path} holds no run (there is no {tmp_path / 'run.json'})\n")
    (run / "kept" / files.read_json(run / "run.json")["chain"] / "00001.parquet").unlink()
    assert said("card", str(run), capsys=capsys)[::2] == (
        2, f"{run} is not finished (1 of 3 source shards are not through all stages); run its pipeline again first\n")


def test_a_funnel_that_does_not_add_up_makes_no_card(run: Path) -> None:
    funnel = files.read_json(run / "funnel.json")
    funnel[-1]["dropped"] += 1
    files.write_json(run / "funnel.json", funnel, "test")
    with pytest.raises(UserError, match="does not add up at 'keep num_chars >= 5 and n != 3'"):
        list(write_card(run, "test"))


# What strangers wrote

def test_hostile_captions_are_shown_and_do_nothing(made: Path) -> None:
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(readme(made).split("---\n", 2)[2])
    inside = [t for token in tokens for t in (token.children or [])]
    assert {t.content for t in inside if t.type == "html_inline"} <= {"<code>", "</code>", "<br>"}
    assert not [t for t in inside if t.type in ("link_open", "image", "em_open")]
    assert {t.content for t in inside if t.type == "code_inline"} == {"www"}
    assert all(len(row) == 3 for row in rows_of(readme(made), "## Examples"))


@given(st.one_of(st.text(max_size=80), st.sampled_from(HOSTILE + PLAIN),
                 st.text(alphabet="<>|`*_[]()!#-=~&;\\\n wW.:/@", max_size=60)))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    parser = markdown_it.MarkdownIt("commonmark").enable("table").enable("strikethrough")
    shown = parser.render(f"| a |\n| --- |\n| x {escaped(text, 500)} |\n")
    cells = re.findall(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert len(cells) == 1 and not re.search("<[a-z]", cells[0])
    plain = " ".join(text.split())
    kept = "".join(c if escaped(c) != "\ufffd" else "\ufffd" for c in plain)
    assert html.unescape(cells[0]) == f"x {kept}".strip()


def test_the_front_matter_holds_any_name(run: Path) -> None:
    fill(run, YAML.replace("name: some-pairs", 'name: "x: {y} # z --- <b>"\npretty_name: "- --- \'q\' |"'))
    assert matter_of_hostile(run)["pretty_name"] == "- --- 'q' |"


def matter_of_hostile(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(re.split(r"(?m)^---$", readme(root))[1]))


# Quantiles

@given(st.lists(st.integers(-16383, 16383), min_size=1, max_size=60), st.floats(0, 1), st.randoms(use_true_random=False))
def test_small_integers_give_exact_quantiles_in_any_order(values: list[int], share: float, random: Any) -> None:
    expected = np.quantile(values, share, method="inverted_cdf")
    for _ in range(2):
        random.shuffle(values)
        sketch = Sketch()
        for part in np.array_split(np.array(values), 3):
            sketch.add(part)
        assert sketch.quantile(share) == expected


@given(st.lists(st.floats(allow_nan=True, width=64), max_size=60), st.floats(0.01, 1))
def test_any_number_is_near_its_quantile(values: list[float], share: float) -> None:
    sketch = Sketch()
    sketch.add(np.array(values, np.float64))
    finite = sorted(v for v in values if np.isfinite(v))
    assert sketch.count == len(finite)
    found = sketch.quantile(share)
    if not finite:
        assert found is None
        return
    assert found in finite
    exact = finite[max(int(np.ceil(share * len(finite))), 1) - 1]
    largest = float(np.finfo(np.float32).max)
    a, b = (np.clip(v, -largest, largest) for v in (found, exact))
    assert abs(a - b) <= abs(b) / 8192 * 1.01 + 1e-40


# The cards in the repository

CARDS = sorted((Path(__file__).parents[1] / "data_cards").glob("*/README.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.parent.name)
def test_a_published_card_is_complete_and_tells_no_place(path: Path) -> None:
    document = path.with_name("croissant.json").read_text()
    for text in (path.read_text(), document):
        assert "TODO-HUMAN" not in text
        assert not re.search(r"(^|[\s\"'(])(/(work|home|tmp|root|Users|mnt)/|file://)", text)
    assert set(sections(path.read_bytes(), str(path), tuple(SECTIONS))) == set(SECTIONS)
    assert f"{json.loads(document)['size']['value']:,} of " in path.read_text()
