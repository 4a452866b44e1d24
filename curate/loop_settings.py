"""`loop:` in a pipeline, checked: it needs a step with `pretrained: loop`, and pictures held out before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate.document import LOOP_KEYS
from curate.errors import UserError, did_you_mean
from curate.keep import Keep, parse
from curate.sources.locations import matching_files
from curate.stages import KeepUse, Stage, StepUse

FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "mismatch_auroc")


@dataclass(frozen=True)
class LoopSettings:
    """`loop:` in a pipeline: how often to train, by which held-out figure a round is promoted, what is known of the truth."""

    trainings: int
    """how many trainings at most; the loop ends earlier where a round is not promoted"""
    figure: str
    """the held-out figure by which a round is promoted"""
    first: str
    """the weights of round 0, from `first:` of the step that holds the loop's weights"""
    model: str
    truth: Path | None = None
    """a table with url and caption as in the source, and columns that say which rows are wrong: for figures only"""
    mismatched: Keep | None = None
    """an expression over that table, true where picture and caption do not belong together"""


def loop_settings(value: Any, stages: Sequence[Stage], path: Path, lines: Mapping[str, int]) -> LoopSettings | None:
    """The typed form of `loop:`, or None. It needs a step with `pretrained: loop`, and pictures held out before it."""
    holders = [s for s in stages if isinstance(s, StepUse) and s.first]
    if value is None:
        if holders:
            raise UserError(f"step '{holders[0].spec.name}' has 'pretrained: loop', but there is no 'loop:' in the file",
                            f"{path}:{holders[0].line}")
        return None
    try:
        return _loop(value, holders, stages, path)
    except UserError as error:
        raise UserError(str(error), f"{path}:{lines['loop']}") from None


def _loop(value: Any, holders: Sequence[StepUse], stages: Sequence[Stage], path: Path) -> LoopSettings:
    if not isinstance(value, Mapping):
        raise UserError("'loop:' is a map like {trainings: 2, promote_if: recall_at_10 improves}")
    for key in value:
        if key not in LOOP_KEYS:
            raise UserError(f"loop has no setting '{key}'{did_you_mean(str(key), LOOP_KEYS)}")
    trainings = value.get("trainings", 1)
    if not isinstance(trainings, int) or isinstance(trainings, bool) or trainings < 1:
        raise UserError(f"loop.trainings: {trainings!r} is not a whole number of 1 or more")
    figure, _, improves = str(value.get("promote_if", "recall_at_10 improves")).partition(" ")
    if figure not in FIGURES or improves != "improves":
        raise UserError(f"loop.promote_if: {value['promote_if']!r}; write it as 'FIGURE improves', with a FIGURE of "
                        f"{', '.join(FIGURES)}")
    if not holders:
        raise UserError("the loop has nothing to train: no step has 'pretrained: loop'")
    before = stages[: stages.index(holders[0])]
    if not any(isinstance(s, KeepUse) and any(c.text == "not held_out" for c in s.keep.clauses) for s in before):
        raise UserError("a round is judged on held-out pictures: put '- held_out' and '- keep: not held_out' before "
                        f"line {holders[0].line}")
    truth, mismatched = _truth(value, path)
    if figure == "mismatch_auroc" and truth is None:
        raise UserError("loop.promote_if: mismatch_auroc needs 'truth:', a table that says which rows are mismatched")
    return LoopSettings(trainings, figure, holders[0].first, str(holders[0].settings.get("model", "")), truth, mismatched)


def _truth(value: Mapping[str, Any], path: Path) -> tuple[Path | None, Keep | None]:
    """A table with url and caption as in the source, and an expression over it that is true where they don't belong together."""
    if "truth" not in value:
        return None, None
    [file] = matching_files(value["truth"])
    schema = pq.read_schema(file)
    return file, parse(str(value.get("mismatched", "mismatched")), {f.name: f.type for f in schema})
