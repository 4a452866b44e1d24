"""The rules that choose among a picture's texts, each on a few rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.pipeline import load
from curate.step import Chunks
from curate.steps.choose_caption import ADDS, NEEDS, _line, choose_caption
from tests.running import write_pipeline, write_pool

ORDER = ("caption", "synthetic_captions", "synthetic_model", "synthetic_decoding", "synthetic_faults", "itm_web", "itm_synthetic",
         "clip_cos", "clip_cos_synthetic")
KINDS = {"synthetic_captions": pa.list_(pa.string()), "synthetic_faults": pa.list_(pa.string()), "itm_web": pa.float32(),
         "itm_synthetic": pa.list_(pa.float32()), "clip_cos": pa.float32(), "clip_cos_synthetic": pa.list_(pa.float32())}


def run(rule: str, columns: dict[str, list[Any]], shard: int = 2, **settings: Any) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """All columns of all rows, in shards of two, and the facts."""
    rows = len(next(iter(columns.values())))

    def chunks(name: str) -> Chunks | None:
        if name not in columns:
            return None
        array = pa.array(columns[name], KINDS.get(name, pa.string()))
        return Chunks(lambda: (array[at : at + shard] for at in range(0, rows, shard)))

    uid = pa.array([str(n) for n in range(rows)])
    steps = choose_caption(Chunks(lambda: (uid[at : at + shard] for at in range(0, rows, shard))), *map(chunks, ORDER),
                           rule=rule, **settings)  # type: ignore[arg-type]
    found: dict[str, list[Any]] = {name: [] for name in ADDS}
    while True:
        try:
            for name, values in next(steps).items():
                found[name] += pa.array(values, ADDS[name]).to_pylist()
        except StopIteration as end:
            return found, end.value


# ---- capfilt

BELOW = float(np.nextafter(np.float32(0.5), np.float32(0)))
FOUR = {"caption": ["web", "web", "web", "web"], "synthetic_captions": [["made"]] * 4,
        "itm_web": [0.6, 0.5, BELOW, 0.1], "itm_synthetic": [[0.9], [BELOW], [0.5], [0.2]]}


def test_capfilt_keeps_what_passes_at_one_half() -> None:
    found, facts = run("capfilt", FOUR)
    assert found["captions"] == [["made", "web"], ["web"], ["made"], []], "the best first"
    assert found["chosen_caption"] == ["made", "web", "made", None]
    assert found["num_captions"] == [2, 1, 1, 0]
    assert found["caption_source"] == ["both", "web", "synthetic", "none"]
    assert found["chosen_itm"] == pytest.approx([0.9, 0.5, 0.5, None])
    assert facts == {"rule": "capfilt", "itm": 0.5, "rows": 4, "web": 1, "synthetic": 1, "both": 1, "none": 1, "captions": 4,
                     "web_judged": 4, "web_below": 2, "synthetic_judged": 4, "synthetic_below": 2}


def test_capfilt_with_more_candidates_keeps_all_that_pass_each_once() -> None:
    found, _ = run("capfilt", {"caption": ["web", None], "synthetic_captions": [["a", "b", "web "], ["c", "c"]],
                               "itm_web": [0.7, None], "itm_synthetic": [[0.6, 0.8, 0.9], [0.7, 0.7]]})
    assert found["captions"] == [["b", "web", "a"], ["c"]]


def test_a_degenerate_caption_is_never_chosen_and_still_judged() -> None:
    found, facts = run("capfilt", {**FOUR, "synthetic_faults": [["loop"], [None], ["loop+prompt"], [None]]})
    assert found["captions"] == [["web"], ["web"], [], []]
    assert (facts["synthetic_judged"], facts["synthetic_below"]) == (4, 2)


def test_a_text_without_a_score_or_without_words_passes_nothing() -> None:
    found, facts = run("capfilt", {"caption": ["  ", "web", "web"], "synthetic_captions": [["made"], [""], None],
                                   "itm_web": [None, float("nan"), 0.9], "itm_synthetic": [[None], [0.9], None]})
    assert found["captions"] == [[], [], ["web"]]
    assert (facts["web_judged"], facts["synthetic_judged"]) == (1, 1)


# ---- rules by CLIP

TEN = {"caption": [f"web {n}" for n in range(10)], "synthetic_captions": [["made", "other"]] * 10,
       "clip_cos": [0.1, 0.35, 0.3, 0.2, 0.31, 0.05, 0.29, None, 0.0, 0.15],
       "clip_cos_synthetic": [[0.31, 0.2], [0.9, 0.9], [0.2, 0.3], [0.1, 0.1], [0.2, 0.2], [0.3, 0.5], [0.0, 0.0], [0.4, 0.3],
                              [None, 0.3], [0.2999, 0.1]]}


def test_nguyen_mix_keeps_the_best_third_as_they_are_and_asks_the_same_of_what_replaces_the_rest() -> None:
    """Nine rows have a cosine: floor(0.34 * 9) = 3 keep the web's text, so the line is 0.3, for synthetic ones too."""
    found, facts = run("nguyen_mix", TEN, top=0.34)
    assert facts["clip_cos"] == 0.3
    assert found["captions"] == [["made"], ["web 1"], ["web 2"], [], ["web 4"], ["other"], [], ["made"], ["other"], []]
    assert found["chosen_clip_cos"] == pytest.approx([0.31, 0.35, 0.3, None, 0.31, 0.5, None, 0.4, 0.3, None])


def test_nguyen_mix_without_a_row_above_the_line() -> None:
    found, facts = run("nguyen_mix", {name: values[:2] for name, values in TEN.items()}, top=0.3)
    assert found["captions"] == [[], []] and "clip_cos" not in facts


def test_nguyen_mix_ranks_over_all_shards() -> None:
    assert run("nguyen_mix", TEN, shard=3) == run("nguyen_mix", TEN, shard=10)


def test_blip2_top2_takes_the_two_nearest_and_keeps_every_picture() -> None:
    found, _ = run("blip2_top2", {"caption": ["web", "web", None], "synthetic_captions": [["a", "b"], ["a", "web"], ["a"]],
                                  "clip_cos": [0.2, 0.3, None], "clip_cos_synthetic": [[0.1, 0.4], [-0.1, 0.9], [-0.2]]})
    assert found["captions"] == [["b", "web"], ["web", "a"], ["a"]]
    assert found["caption_source"] == ["both", "both", "synthetic"]


def test_web_only_needs_nothing_that_was_made() -> None:
    found, facts = run("web_only", {"caption": ["web", None, " "]})
    assert found["captions"] == [["web"], [], []]
    assert (facts["web"], facts["none"], facts["synthetic_judged"]) == (1, 2, 0)


# ---- the record


def test_every_text_is_on_record_chosen_or_not() -> None:
    one = {name: values[:1] for name, values in FOUR.items()}
    found, _ = run("capfilt", {**one, "synthetic_model": ["abc"], "synthetic_decoding": ["beam 3"], "clip_cos": [0.25],
                               "synthetic_faults": [["loop"]]})
    assert found["caption_provenance"] == [[
        {"text": "web", "source": "web", "model": None, "decoding": None, "itm": 0.6, "clip_cos": 0.25, "faults": None,
         "is_chosen": True},
        {"text": "made", "source": "synthetic", "model": "abc", "decoding": "beam 3", "itm": 0.9, "clip_cos": None,
         "faults": "loop", "is_chosen": False}]]


@pytest.mark.parametrize(("rule", "maker"), [
    ("capfilt", "blip_match"), ("nguyen_mix", "clip_score"), ("blip2_top2", "clip_score")])
def test_a_rule_without_its_columns_is_refused_before_anything_runs(rule: str, maker: str, tmp_path: Any) -> None:
    write_pool(tmp_path, ["a"])
    with pytest.raises(UserError) as error:
        load(write_pipeline(tmp_path, f"choose_caption: {{rule: {rule}}}"))
    needed = " and ".join(NEEDS[rule])
    assert str(error.value).endswith(f"step 'choose_caption': rule {rule} goes by {needed}; put {maker} before it, or name other "
                                     "columns with of: or reads:")


def test_columns_of_the_source_will_do(tmp_path: Any) -> None:
    write_pool(tmp_path, ["a"], itm=[0.5], made=[[0.5]])
    assert load(write_pipeline(tmp_path, "choose_caption: {reads: {itm_web: itm, itm_synthetic: made}}")).stages


def test_a_text_that_stands_there_twice_is_the_one_with_a_score() -> None:
    twice = {"caption": ["made"], "synthetic_captions": [["made"]], "itm_web": [None], "itm_synthetic": [[0.9]]}
    found, _ = run("capfilt", twice)
    assert found["captions"] == [["made"]]


def test_shares_are_counted_exactly() -> None:
    """0.29 of 100 rows are 29, though 0.29 * 100 is less."""
    values = [n / 100 for n in range(100)]
    assert _line(Chunks(lambda: iter([pa.array(values, pa.float32())])), 0.29) == pytest.approx(0.71)
