"""Settings that are more than a number or a word: which part of a tower stays as it is, what a spike of the loss is,
who teaches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.checks import as_number, number, text, whole
from train.errors import did_you_mean

Held = str | int | None
"""What of a tower is locked: nothing (null), `all`, or all but the last N blocks and what stands above them."""
TOWERS = ("image", "text")


@dataclass(frozen=True)
class Spike:
    """When a finite loss is too high to learn from: more than `z` robust deviations above the median of the last `window`."""

    z: float = 6.0
    window: int = 100


@dataclass(frozen=True)
class Lock:
    """Parts of the towers that do not learn."""

    image: Held = None
    text: Held = None


@dataclass(frozen=True)
class Distill:
    """Learning from what another model made of the same pairs."""

    of: str = ""
    weight: float = 1.0
    scale: float = 100.0

    @property
    def columns(self) -> tuple[str, str]:
        """Of the score table: its embeddings of pictures and of texts."""
        return (f"{self.of}_image_emb", f"{self.of}_text_emb") if self.of else ("image_emb", "text_emb")


def distill(value: Any) -> Distill:
    """`{of: ref, weight: 1, scale: 100}`, all by default."""
    if isinstance(value, Distill):
        return value
    found = _map(value, ("of", "weight", "scale"), "{of: ref, weight: 1, scale: 100}")
    above = number(0, above=True)
    return Distill(text(found["of"]) if "of" in found else "", above(found.get("weight", Distill.weight)),
                   above(found.get("scale", Distill.scale)))


def spike(value: Any) -> Spike:
    """`{z: 6, window: 100}`, either of them by default."""
    if isinstance(value, Spike):
        return value
    found = _map(value, ("z", "window"), "{z: 6, window: 100}")
    return Spike(number(0, above=True)(found.get("z", Spike.z)), whole(10)(found.get("window", Spike.window)))


def lock(value: Any) -> Lock:
    """`{image: all}`, `{image: {but_last: 2}, text: all}`."""
    if isinstance(value, Lock):
        return value
    found = _map(value, TOWERS, "{image: all} or {text: {but_last: 2}}")
    return Lock(_held(found.get("image")), _held(found.get("text")))


def micro_batch(value: Any) -> int | str:
    """A whole number of 1 or more, or `auto`."""
    if value == "auto":
        return "auto"
    try:
        found: int = whole(1)(value)
    except ValueError as error:
        raise ValueError(f"{error}, nor auto") from None
    return found


def alphas(value: Any) -> tuple[float, ...]:
    """One share of the way from the start to the trained weights, 0 to 1, or a list of them; each once, from low to high."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError("[] names no share from 0 to 1")
    return tuple(sorted({number(0, 1)(one) for one in values}))


def _held(value: Any) -> Held:
    if value is None or value == "all":
        return None if value is None else "all"
    if isinstance(value, Mapping) and list(value) == ["but_last"]:
        blocks = as_number(value["but_last"])
        if blocks is not None and blocks >= 0 and blocks == int(blocks):
            return int(blocks)
    raise ValueError(f"{value!r} is neither all nor {{but_last: N}}, N whole and 0 or more")


def _map(value: Any, known: tuple[str, ...], example: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a map like {example}")
    for key in value:
        if key not in known:
            raise ValueError(f"no setting '{key}'{did_you_mean(str(key), known)}")
    return value
