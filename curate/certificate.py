"""What a set of shards may say of itself: against which benchmarks its rows were checked, and how."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from curate.keep import KEPT, evaluate, parse
from curate.locations import content
from curate.stages import KeepUse, Stage, StepUse

HOW = ("bytes", "hash_bits", "max_levels", "cos", "model", "pretrained")


def certificates(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """An entry for each benchmark of each `decontaminate` behind which a keep lets nothing contaminated or unknown pass.

    {benchmark, digest (of its files' contents), keep, and the settings that said how}.
    """
    return [entry for number, stage in enumerate(stages) if isinstance(stage, StepUse) and stage.spec.name == "decontaminate"
            for entry in _of(stage, stages[number + 1 :])]


def digest_of(where: str) -> str:
    """The digest that a certificate has for the files at `where`: a folder, a file or a pattern. Raises UserError without any."""
    return str(content({"": where})[""])


def lacking(entries: Sequence[Mapping[str, Any]] | None, benchmarks: Sequence[str]) -> Iterator[str]:
    """A line for each place of benchmark files that a training set, of which `entries` are known, is not known to be free of."""
    for where in benchmarks:
        if not entries:
            yield (f"nothing says that the training data was checked for the pictures of {where}: decontaminate, "
                   "keep: not contaminated")
        elif digest_of(where) not in {entry["digest"] for entry in entries}:
            names = ", ".join(sorted({entry["benchmark"] for entry in entries}))
            yield f"the training data was checked for the pictures of {names}, not for those of {where}"


def _of(stage: StepUse, behind: Sequence[Stage]) -> Iterator[dict[str, Any]]:
    column = stage.adds["contaminated"]
    clauses = (c for s in behind if isinstance(s, KeepUse) for c in s.keep.clauses if c.columns == (column,))
    keep = next((clause.text for clause in clauses if _drops(clause.text, column)), None)
    if keep is not None:
        how = {name: stage.settings[name] for name in HOW if stage.settings[name] not in (None, "", False)}
        if "hash_bits" not in how:
            how.pop("max_levels", None)
        for name, digest in content(stage.settings["against"]).items():
            yield {"benchmark": name, "digest": digest, "keep": keep, **how}


def _drops(clause: str, column: str) -> bool:
    """Whether a keep stops a row that is contaminated, and one of which that is not known."""
    rows = pa.table({column: pa.array([True, None])})
    return not bool((evaluate(parse(clause, {column: pa.bool_()}), rows).state == KEPT).any())
