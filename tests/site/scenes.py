"""What a picture shows, as structured truth: one to three groups of equal shapes, and how they lie to each other.

`scene(seed, index)` is a function of its two numbers only. Nothing here draws or writes; `draw.render` and `captions.captions`
turn a Scene into a picture and into words.
"""

import random
from dataclasses import dataclass
from typing import Literal

Size = Literal["small", "medium", "large"]
Relation = Literal["above", "below", "left of", "right of", "in front of", "between"]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (212, 45, 48), "orange": (236, 124, 32), "yellow": (246, 204, 54), "green": (44, 156, 88), "blue": (42, 104, 216),
    "purple": (126, 68, 178), "pink": (242, 124, 170), "brown": (126, 80, 48), "black": (36, 38, 44), "white": (250, 250, 247)}
BACKGROUNDS: dict[str, Colour] = {
    "cream": (246, 236, 212), "light grey": (220, 223, 227), "light blue": (194, 219, 240), "pale green": (200, 232, 214),
    "lavender": (222, 211, 241), "pale pink": (247, 218, 222), "dark blue": (36, 50, 88), "dark grey": (70, 74, 82),
    "dark green": (28, 74, 60)}
TEXTURES = {"plain": 6, "striped": 3, "dotted": 3, "checked": 2, "zigzag": 1}
"""How often each texture comes, as weights."""
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "hexagon", "diamond", "cross", "moon")
SOLID = ("circle", "square", "heart", "hexagon")
"""Shapes broad enough to have another one in front of them."""
SIZES: tuple[Size, ...] = ("small", "medium", "large")
MOST: dict[Size, int] = {"small": 5, "medium": 3, "large": 2}
"""How many shapes of a size fit side by side into half a picture."""
ALONE: tuple[Size, ...] = ("medium", "medium", "large")
"""Sizes of a group that has the picture to itself."""
CONTRAST = 170
"""Sum of the differences of red, green and blue, 0 to 765, below which two colours are too much alike."""
ASPECTS = (1.0, 1.0, 1.0, 1.15, 1.25, 1.33, 1.4, 1.5)
SHORT_SIDE = (128, 160)


@dataclass(frozen=True)
class Group:
    """`count` equal shapes."""

    count: int
    size: Size
    colour: str
    texture: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """A picture's truth. `relation` is that of groups[0] to groups[1]; `between`: groups[1] is left, groups[2] right of it."""

    seed: int
    index: int
    width_px: int
    height_px: int
    background: str
    relation: Relation | None
    groups: tuple[Group, ...]

    def rng(self, purpose: str) -> random.Random:
        """Random numbers of this scene's own, another stream for each purpose."""
        return random.Random(f"{purpose} {self.seed} {self.index}")

    def things(self) -> frozenset[tuple[str, str]]:
        """The (colour, shape) pairs to be seen."""
        return frozenset((g.colour, g.shape) for g in self.groups)


def scene(seed: int, index: int) -> Scene:
    """The scene with this number: the same for the same two numbers, always."""
    rng = random.Random(f"scene {seed} {index}")
    background = rng.choice(tuple(BACKGROUNDS))
    layout = rng.choices(("alone", "beside", "front", "between"), (32, 48, 12, 8))[0]
    if layout == "alone":
        relation, groups = None, [_group(rng, background, (), size=rng.choice(ALONE))]
    elif layout == "beside":
        relation, groups = _beside(rng, background)
    elif layout == "front":
        relation, groups = _in_front(rng, background)
    else:
        relation, groups = _between(rng, background)
    width, height = _size(rng, wide=layout == "between")
    return Scene(seed, index, width, height, background, relation, tuple(groups))


def contrast(a: Colour, b: Colour) -> int:
    """How far two colours lie apart, 0 to 765."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _beside(rng: random.Random, background: str) -> tuple[Relation, list[Group]]:
    first = _group(rng, background, ())
    relations: tuple[Relation, ...] = ("above", "below", "left of", "right of")
    return rng.choice(relations), [first, _group(rng, background, (first,))]


def _in_front(rng: random.Random, background: str) -> tuple[Relation, list[Group]]:
    behind = _group(rng, background, (), count=1, size="large", shapes=SOLID)
    front = _group(rng, background, (behind,), count=rng.choice((1, 1, 2)), size="small")
    return "in front of", [front, behind]


def _between(rng: random.Random, background: str) -> tuple[Relation, list[Group]]:
    groups: list[Group] = []
    for _ in range(3):
        groups.append(_group(rng, background, tuple(groups), count=1))
    return "between", groups


def _group(rng: random.Random, background: str, others: tuple[Group, ...], *, count: int | None = None, size: Size | None = None,
           shapes: tuple[str, ...] = SHAPES) -> Group:
    """A group that stands out against the background and differs from the other groups in its shape and, clearly, its colour."""
    against = [BACKGROUNDS[background], *(COLOURS[g.colour] for g in others)]
    colour = rng.choice([name for name, rgb in COLOURS.items() if all(contrast(rgb, other) >= CONTRAST for other in against)])
    shape = rng.choice([s for s in shapes if s not in {g.shape for g in others}])
    by_lot = rng.choice(SIZES)
    size = size or by_lot
    count = count or min(MOST[size], rng.choice((1, 1, 1, 2, 2, 3, 4, 5)))
    return Group(count, size, colour, rng.choices(tuple(TEXTURES), tuple(TEXTURES.values()))[0], shape)


def _size(rng: random.Random, *, wide: bool) -> tuple[int, int]:
    """Width and height in pixels, at most 1.5 to 1; every fifth picture that may be upright is."""
    short, aspect = rng.randint(*SHORT_SIDE), rng.choice(ASPECTS)
    if wide:
        aspect = max(aspect, 1.33)
    long = round(short * aspect)
    return (short, long) if rng.random() < .2 and not wide else (long, short)
