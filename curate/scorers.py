"""A score knows its scorer: thresholds that papers give for the score of one model say nothing about another model's.

A keep that holds a column against a published number, measured here by another model than it was published for, is said when the
pipeline is planned and run. It is no mistake, so nothing stops.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from curate.pages.thresholds import lines_of
from curate.pipeline import Pipeline
from curate.stages import KeepUse, StepUse


@dataclass(frozen=True)
class Published:
    """A threshold: the column as its step calls it, the number, the model and weights it is for, and where it stands."""

    column: str
    value: float
    model: str
    pretrained: str
    source: str


_B, _L = ("ViT-B-32", "openai"), ("ViT-L-14", "openai")
_CLIP = "clip_cos"
PUBLISHED = (
    Published(_CLIP, 0.3, *_B, "LAION-400M"),                      # laion.ai blog: ViT-B/32, below 0.3 dropped
    Published(_CLIP, 0.28, *_B, "LAION-2B-en, DataComp laion2b"),   # laion.ai blog on LAION-5B; datacomp baselines/
    Published(_CLIP, 0.25, *_B, "DataComp clip_score B/32"),        # datacomp baselines/
    *(Published("aesthetic_score", value, *_L, "LAION-Aesthetics V2") for value in (4.5, 4.75, 5, 6, 6.25, 6.5)),
)
"""Published thresholds on scores. LAION-5B's 0.26 for other languages is of a multilingual text tower that no step here loads."""


def warnings(pipeline: Pipeline) -> Iterator[str]:
    """A line for each published threshold of a pipeline that another model's score is held against."""
    made: dict[str, tuple[str, StepUse]] = {}
    for stage in pipeline.stages:
        if isinstance(stage, StepUse):
            made |= {name: (own, stage) for own, name in stage.adds.items()}
        elif isinstance(stage, KeepUse):
            for clause in stage.keep.clauses:
                yield from _of_clause(f"{pipeline.path}:{stage.line}", clause.text, made)


def _of_clause(where: str, clause: str, made: Mapping[str, tuple[str, StepUse]]) -> Iterator[str]:
    for line in lines_of(clause):
        own, stage = made.get(line.column, ("", None))
        scorer = stage and _scorer(stage, made)
        known = [p for p in PUBLISHED if (p.column, p.value) == (own, line.value)]
        if scorer and known and scorer not in {(p.model, p.pretrained) for p in known}:
            found = known[0]
            yield (f"warning: {where}: {clause}: {line.value:g} is the threshold of {found.source} for {found.model} "
                   f"{found.pretrained}; '{line.column}' is of {' '.join(scorer)}, whose scores lie elsewhere")


def _scorer(stage: StepUse, made: Mapping[str, tuple[str, StepUse]]) -> tuple[str, str] | None:
    """(model, weights) of the step, or of the first step before it that has them."""
    if "model" in stage.settings and "pretrained" in stage.settings:
        return str(stage.settings["model"]), str(stage.settings["pretrained"])
    for column in stage.reads.values():
        found = made[column][1] if column in made else None
        if found is not None and (scorer := _scorer(found, made)):
            return scorer
    return None
