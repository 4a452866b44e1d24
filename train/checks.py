"""Checks of settings: a raw value of YAML in, the typed value out; a ValueError says what is allowed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.errors import did_you_mean

Check = Callable[[Any], Any]


def number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """A number from `low` (or above it) to `high`; `5e-4`, a string to YAML, counts."""
    def check(value: Any) -> float:
        found = as_number(value)
        if found is None or not (low < found <= high if above else low <= found <= high):
            raise ValueError(f"{value!r} is not a number {_range(low, high, above)}")
        return float(found)
    return check


def whole(low: int) -> Check:
    """A whole number of `low` or more."""
    def check(value: Any) -> int:
        found = as_number(value)
        if found is None or found != int(found) or found < low:
            raise ValueError(f"{value!r} is not a whole number of {low} or more")
        return int(found)
    return check


def optional(inner: Check) -> Check:
    """None, or what `inner` takes."""
    return lambda value: None if value is None else inner(value)


def word(*known: str) -> Check:
    """One of `known`."""
    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f"{value!r}{did_you_mean(str(value), known)}")
        return str(value)
    return check


def text(value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a name")
    return value


def words(value: Any) -> str:
    """A string, be it empty."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def yes_no(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def two(inner: Check) -> Check:
    """A list of two of what `inner` takes."""
    def check(value: Any) -> tuple[Any, Any]:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise ValueError(f"{value!r} is not a list of two numbers")
        return inner(value[0]), inner(value[1])
    return check


def crop_area(value: Any) -> tuple[float, float]:
    """[smallest, largest] share of the picture that a training crop shows."""
    low, high = two(number(0, 1, above=True))(value)
    if low > high:
        raise ValueError(f"{value!r} is not a smaller and a larger share")
    return low, high


def paths(value: Any) -> tuple[str, ...]:
    """One path or glob, or a list of them."""
    values = [value] if isinstance(value, str | Path) else value
    if not isinstance(values, Sequence) or not values or not all(isinstance(v, str | Path) and str(v) for v in values):
        raise ValueError(f"{value!r} is not a path or a list of paths")
    return tuple(str(v) for v in values)


def as_number(value: Any) -> float | None:
    """The finite number that a value is or spells; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _range(low: float, high: float, above: bool) -> str:
    if high == math.inf:
        return f"above {low:g}" if above else f"of {low:g} or more"
    return f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
