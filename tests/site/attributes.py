"""What a caption says is to be seen, checked against a scene's truth: how far a captioner can be believed.

    mentions("two small red circles with stripes over a violet moon")    [("red", "circle"), ("purple", "moon")]
"""

import re
from collections.abc import Iterable, Sequence, Set
from typing import Any

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
    """Of captions with their pictures' truth, each 0 to 1: the share of named pairs that are to be seen, and that of the colours
    and of the shapes in them; the share of the pairs to be seen that is named; the share of captions that name something and
    nothing wrong."""
    pairs = [(set(mentions(text)), scene.things()) for text, scene in texts]
    colours, shapes = ([({pair[n] for pair in said}, {thing[n] for thing in things}) for said, things in pairs] for n in (0, 1))
    return {"attribute_precision": _share(pairs), "colour_precision": _share(colours), "shape_precision": _share(shapes),
            "attribute_recall": _share([(things, said) for said, things in pairs]),
            "faultless_share": sum(bool(said and said <= things) for said, things in pairs) / max(1, len(pairs))}


def _share(found: Sequence[tuple[Set[Any], Set[Any]]]) -> float:
    """Of what the first sets hold, the share that the second ones hold too."""
    return sum(len(held & there) for held, there in found) / max(1, sum(len(held) for held, _ in found))
