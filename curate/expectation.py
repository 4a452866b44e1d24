"""`expect:` in a pipeline: what should come out, so that a run in which something drifted says so. Nothing stops."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.errors import UserError, did_you_mean

EXPECT_KEYS = ("kept_share",)


@dataclass(frozen=True)
class Expectation:
    """`expect:` in a pipeline, checked."""

    kept_share: tuple[float, float]
    """the least and the largest share of the source's rows that should stay, 0 to 1; outside it the run and its report warn"""


def expectation(value: Any) -> Expectation | None:
    """The typed form of `expect:`, or None. UserError for what it is not."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise UserError("'expect:' is a map like {kept_share: [0.01, 0.2]}")
    for key in value:
        if key not in EXPECT_KEYS:
            raise UserError(f"expect has no setting '{key}'{did_you_mean(str(key), EXPECT_KEYS)}")
    shares = value["kept_share"]
    right = isinstance(shares, list) and len(shares) == 2 and all(_is_share(share) for share in shares)
    if not right or shares[0] > shares[1]:
        raise UserError(f"expect.kept_share: {shares!r} is not two shares from 0 to 1, the smaller first")
    return Expectation((float(shares[0]), float(shares[1])))


def drift(expected: Mapping[str, Any] | None, funnel: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence where the share kept lies outside; `expected` as run.json has it."""
    if not expected or not funnel or not funnel[0]["in"]:
        return
    low, high = expected["kept_share"]
    share = funnel[-1]["kept"] / funnel[0]["in"]
    if not low <= share <= high:
        yield f"{100 * share:.3g} % of the rows were kept; the pipeline expects {100 * low:.3g} to {100 * high:.3g} %"


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
