"""What a caption says is to be seen, checked against a scene's truth: how far a captioner can be believed.

    mentions("two small red circles with stripes over a violet moon")    [("red", "circle"), ("purple", "moon")]
"""

import re
from collections.abc import Iterable

from tests.site import captions, scenes
from tests.site.scenes import Scene

_COLOURS = {word: colour for colour in scenes.COLOURS for word in captions.COLOURS.get(colour, (colour,))}
_SINGULAR = {noun.split()[-1]: shape for shape in scenes.SHAPES for noun in captions.SHAPES.get(shape, (shape,))}
_NOUNS = _SINGULAR | {captions.PLURALS.get(noun, noun + "s"): shape for noun, shape in _SINGULAR.items()}
_BETWEEN = {"striped", "dotted", "spotted", "checked", "chequered", "zigzag", "plain", "crescent"}
"""Words that may stand between a colour and its noun."""


def mentions(text: str) -> list[tuple[str, str]]:
    """The (colour, shape) pairs a caption names, in their order; a shape without a colour is none."""
    words, found = re.findall(r"[a-z]+", text.lower()), []
    for place, word in enumerate(words):
        if word in _NOUNS:
            before = place - 1
            while before >= 0 and words[before] in _BETWEEN:
                before -= 1
            if before >= 0 and words[before] in _COLOURS:
                found.append((_COLOURS[words[before]], _NOUNS[word]))
    return found


def attribute_accuracy(texts: Iterable[tuple[str, Scene]]) -> dict[str, float]:
    """Of captions with their pictures' truth: the share of named pairs that are to be seen, the share of what is to be seen that
    is named, and the share of captions that name something and nothing wrong; each 0 to 1."""
    right = named = seen = faultless = total = 0
    for text, scene in texts:
        pairs, things = set(mentions(text)), scene.things()
        right, named = right + len(pairs & things), named + len(pairs)
        seen, faultless, total = seen + len(things), faultless + bool(pairs and pairs <= things), total + 1
    return {"attribute_precision": right / max(1, named), "attribute_recall": right / max(1, seen),
            "faultless_share": faultless / max(1, total)}
