"""A picture's texts, the web's and those that were made for it, and the published rules that choose among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

Rule = Literal["capfilt", "nguyen_mix", "blip2_top2", "web_only"]
NEEDS: dict[str, tuple[str, ...]] = {"capfilt": ("itm_web", "itm_synthetic"), "nguyen_mix": ("clip_cos", "clip_cos_synthetic"),
                                     "blip2_top2": ("clip_cos", "clip_cos_synthetic"), "web_only": ("caption",)}
"""The columns that a rule cannot do without."""
TOP_2 = 2


@dataclass(frozen=True)
class Text:
    """One of a picture's texts, with all that is known of it."""

    text: str
    source: Literal["web", "synthetic"]
    model: str | None = None
    decoding: str | None = None
    itm: float | None = None
    clip_cos: float | None = None
    faults: str | None = None

    @property
    def num_scores(self) -> int:
        """Of ITM and cosine, how many are known."""
        return (self.itm is not None) + (self.clip_cos is not None)

    @property
    def is_sound(self) -> bool:
        """Whether it may be chosen at all."""
        return bool(self.text.strip()) and not self.faults


Choose = Callable[[Sequence[Text]], list[Text]]
"""A picture's texts, the web's first → those it keeps, the best first."""


def number(value: float | None) -> float | None:
    """A score as its shortest decimal, None where it is no number."""
    return float(str(np.float32(value))) if value is not None and np.isfinite(value) else None


def chosen_of(texts: Sequence[Text], choose: Choose) -> list[Text]:
    """What the rule keeps of the sound texts; one that stands there twice counts once, as the first that has most scores."""
    sound: dict[str, Text] = {}
    for text in texts:
        there = sound.get(text.text.strip())
        if text.is_sound and (there is None or text.num_scores > there.num_scores):
            sound[text.text.strip()] = text
    return choose(list(sound.values()))


def chooser(rule: Rule, itm: float, line: float | None) -> Choose:
    """A rule with its numbers: the least ITM of capfilt, the cosine that nguyen_mix asks for (None: no web text reaches it)."""
    if rule == "capfilt":
        return partial(_capfilt, itm=itm)
    if rule == "nguyen_mix":
        return partial(_nguyen_mix, line=np.inf if line is None else line)
    return _blip2_top2 if rule == "blip2_top2" else _web_only


def _capfilt(texts: Sequence[Text], itm: float) -> list[Text]:
    return sorted((t for t in texts if t.itm is not None and t.itm >= itm), key=lambda t: -(t.itm or 0))


def _nguyen_mix(texts: Sequence[Text], line: float) -> list[Text]:
    web, synthetic = ([t for t in _by_cosine(texts) if t.source == source and (t.clip_cos or 0) >= line]
                      for source in ("web", "synthetic"))
    return (web or synthetic)[:1]


def _blip2_top2(texts: Sequence[Text]) -> list[Text]:
    return _by_cosine(texts)[:TOP_2]


def _web_only(texts: Sequence[Text]) -> list[Text]:
    return [t for t in texts if t.source == "web"]


def _by_cosine(texts: Sequence[Text]) -> list[Text]:
    """Those that have a cosine, the largest first, equal ones in their order."""
    return sorted((t for t in texts if t.clip_cos is not None), key=lambda t: -(t.clip_cos or 0))


def source_of(kept: Sequence[Text]) -> str:
    """Where they come from: web, synthetic, both or none."""
    sources = {text.source for text in kept}
    return "both" if len(sources) == 2 else sources.pop() if sources else "none"
