"""`expect:` in a pipeline: checked with it, a warning of the run and a sentence of its report where another share is kept."""

import json
from pathlib import Path

import pytest

from curate.errors import UserError
from curate.expectation import drift, expectation
from curate.pages.page import gather, verdict
from curate.pipeline import load
from curate.start import start
from tests.running import write_pipeline, write_pool


def funnel(rows: int, kept: int) -> list[dict[str, object]]:
    return [{"what": "source", "in": rows, "kept": rows}, {"what": "keep x", "in": rows, "kept": kept}]


@pytest.mark.parametrize(("kept", "warns"), [(19, True), (20, False), (50, False), (51, True), (0, True)])
def test_both_ends_belong_to_the_band(kept: int, warns: bool) -> None:
    expected = {"kept_share": [0.2, 0.5]}
    assert bool([*drift(expected, funnel(100, kept))]) is warns


def test_nothing_is_said_where_nothing_is_expected_or_there_are_no_rows() -> None:
    assert not [*drift(None, funnel(100, 1))]
    assert not [*drift({"kept_share": [0.2, 0.5]}, funnel(0, 0))]
    assert not [*drift({"kept_share": [0.2, 0.5]}, [])]


def test_the_share_is_said_with_three_digits() -> None:
    assert [*drift({"kept_share": [0.0002, 0.004]}, funnel(30_000, 1))] == [
        "0.00333 % of the rows were kept; the pipeline expects 0.02 to 0.4 %"]


@pytest.mark.parametrize(("value", "message"), [
    ("0.2", "'expect:' is a map like {kept_share: [0.01, 0.2]}"), ({}, "'expect:' is a map like {kept_share: [0.01, 0.2]}"),
    ({"kept": 1}, "expect has no setting 'kept'; there is kept_share"),
    *(({"kept_share": bad}, f"expect.kept_share: {bad!r} is not two shares from 0 to 1, the smaller first")
      for bad in (0.2, [0.2], [0.5, 0.2], [0, 1.1], [-0.1, 1], ["a", 1], [False, True], [float("nan"), 1], {"a": 1}))])
def test_mistakes(value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        expectation(value)
    assert str(error.value) == message


def test_a_mistake_has_its_line_and_until_expects_nothing(tmp_path: Path) -> None:
    write_pool(tmp_path, ["a dog"])
    path = write_pipeline(tmp_path, "caption_length", after="shards: none\nexpect: {kept_share: [0, 1]}\n")
    found = load(path).expect
    assert found is not None and found.kept_share == (0, 1)
    assert load(path, until="caption_length").expect is None
    with pytest.raises(UserError, match=r"pipeline.yaml:5: expect.kept_share: 2 is not"):
        load(path, ["expect.kept_share=2"])


def test_the_run_warns_and_its_report_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of four rows stay, at most a quarter is expected; with a wider band nobody says anything."""
    write_pool(tmp_path, ["a", "a dog", "a dog runs", "two dogs run fast"])
    write_pipeline(tmp_path, "caption_length", "keep: num_words >= 3", after="shards: none\nexpect: {kept_share: [0.1, 0.25]}\n")
    sentence = "50 % of the rows were kept; the pipeline expects 10 to 25 %"

    def run(out: str, *sets: str) -> str:
        """What it complains of."""
        said = start(tmp_path / "pipeline.yaml", tmp_path / out, on="local", workers=0, limit=None, until=None, part=None,
                     retry=False, sets=sets, attempt="test")
        assert "2   50.0%  keep num_words >= 3" in "\n".join(said)
        return capsys.readouterr().err
    assert run("narrow") == f"warning: {tmp_path}/pipeline.yaml:6: {sentence}\n"
    assert json.loads((tmp_path / "narrow/run.json").read_text())["expect"] == {"kept_share": [0.1, 0.25]}
    assert verdict(gather(tmp_path / "narrow")).endswith(f" Warning: {sentence}.")
    assert run("wide", "expect.kept_share=[0.1, 0.5]") == ""
    assert "Warning" not in verdict(gather(tmp_path / "wide"))
