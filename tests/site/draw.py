"""The picture of a scene: paper shapes with soft shadows on a softly lit ground, with smooth edges.

Shapes and patterns are drawn at four times their size and reduced, so edges have sixteen steps; the canvas itself is drawn at its
own size, which makes some 500 pictures a second on one core. `render(scene)` depends on the scene alone.
"""

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from tests.site.scenes import BACKGROUNDS, COLOURS, Colour, Group, Scene, Size, contrast

RADIUS: dict[Size, float] = {"small": .082, "medium": .132, "large": .19}
"""Of a shape, as a part of the picture's shorter side, where two groups share the picture."""
FINER = 4
MARGIN = .035
PATTERN_SIDE = 112
WHITE: Colour = (255, 255, 255)
SHADOW: Colour = (22, 20, 34)

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels"""
Point = tuple[float, float]


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of its own width and height."""
    rng = scene.rng("draw")
    picture = _ground(scene, rng)
    for group, box, radius in _layout(scene, rng):
        _put(picture, group, _centres(rng, box, group.count, radius), radius, rng)
    return _grain(picture, rng)


def _layout(scene: Scene, rng: random.Random) -> list[tuple[Group, Box, float]]:
    """Each group with the part of the picture it may fill and its radius in pixels, the hindmost first."""
    w, h, side = scene.width_px, scene.height_px, min(scene.width_px, scene.height_px)
    m = MARGIN * side
    sizes = [RADIUS[g.size] * side for g in scene.groups]
    if scene.relation is None:
        (group,) = scene.groups
        return [(group, (m, m, w - m, h - m), sizes[0] * (1.5 if group.count == 1 else 1.18))]
    if scene.relation == "in front of":
        front, behind = scene.groups
        back = sizes[1] * 1.6
        x, y = w / 2 + rng.uniform(-.5, .5) * (w - 2 * back - 2 * m), h / 2 + rng.uniform(-.5, .5) * (h - 2 * back - 2 * m)
        return [(behind, _around(x, y, back), back), (front, _around(x, y, back * .62), sizes[0])]
    if scene.relation == "between":
        middle, left, right = scene.groups
        third = (w - 2 * m) / 3
        columns = [(m + i * third, m, m + (i + 1) * third, h - m) for i in range(3)]
        return [(g, box, min(RADIUS[g.size] * side, third / 2)) for g, box in zip((left, middle, right), columns, strict=True)]
    upper, lower = (m, m, w - m, h / 2), (m, h / 2, w - m, h - m)
    left_half, right_half = (m, m, w / 2, h - m), (w / 2, m, w - m, h - m)
    halves: dict[str, tuple[Box, Box]] = {"above": (upper, lower), "below": (lower, upper),
                                          "left of": (left_half, right_half), "right of": (right_half, left_half)}
    return list(zip(scene.groups, halves[scene.relation], sizes, strict=True))


def _around(x: float, y: float, reach: float) -> Box:
    return x - reach, y - reach, x + reach, y + reach


def _centres(rng: random.Random, box: Box, count: int, radius: float) -> list[Point]:
    """Middles of `count` shapes inside a box, in loose rows; they touch only where the box is too small for them."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    grids = [(columns, math.ceil(count / columns)) for columns in range(1, count + 1)]
    room = {grid: min(width / grid[0], height / grid[1]) / 2 for grid in grids}
    roomy = [grid for grid in grids if room[grid] >= radius * 1.06] or [max(grids, key=lambda grid: room[grid])]
    columns, rows = rng.choice(roomy)
    centres = []
    for i in range(count):
        row, column = divmod(i, columns)
        in_row = min(columns, count - row * columns)
        cell_w, cell_h = width / in_row, height / rows
        free_x, free_y = max(0.0, cell_w / 2 - radius) * .8, max(0.0, cell_h / 2 - radius) * .8
        x, y = left + (column + .5) * cell_w, top + (row + .5) * cell_h
        centres.append((x + rng.uniform(-free_x, free_x), y + rng.uniform(-free_y, free_y)))
    return centres


def _put(picture: Image.Image, group: Group, centres: list[Point], radius: float, rng: random.Random) -> None:
    """Draw the shapes of one group and their shadows; all of them are cut from one paper and turned alike."""
    mask = _mask(group.shape, radius, rng.uniform(-12, 12))
    side = mask.width
    corners = [(round(x - side / 2), round(y - side / 2)) for x, y in centres]
    shadow = Image.new("L", ((picture.width + 1) // 2, (picture.height + 1) // 2))
    small = mask.reduce(2).point(_scaled(.5))
    drop = max(1.0, radius * .1)
    for x, y in corners:
        shadow.paste(255, (round((x + drop) / 2), round((y + drop * 1.6) / 2)), small)
    shadow = shadow.filter(ImageFilter.GaussianBlur(1.2 + radius * .035)).resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste(SHADOW, (0, 0), shadow)
    paper = _paper(group, mask, radius, rng)
    for corner in corners:
        picture.paste(paper, corner, mask)


def _paper(group: Group, mask: Image.Image, radius: float, rng: random.Random) -> Image.Image:
    """A square of the group's colour and texture, lit from the upper left; the texture leaves a rim of the colour free."""
    colour, side = _varied(COLOURS[group.colour], rng), mask.width
    paper = Image.new("RGB", (side, side), colour)
    if group.texture != "plain":
        other = _mixed(colour, WHITE, .72) if contrast(colour, WHITE) > 260 else _mixed(colour, (70, 55, 60), .5)
        pattern = _pattern(group.texture, max(6, 2 * round(radius * .23)), rng.choice((0, 45, 90, 135)))
        x, y = rng.randrange(PATTERN_SIDE - side + 1), rng.randrange(PATTERN_SIDE - side + 1)
        inside = mask.filter(ImageFilter.MinFilter(5 if radius > 24 else 3))
        paper.paste(other, (0, 0), ImageChops.multiply(pattern.crop((x, y, x + side, y + side)), inside))
    light, dark = _lights(side)
    paper.paste(WHITE, (0, 0), light)
    paper.paste((0, 0, 20), (0, 0), dark)
    return paper


def _ground(scene: Scene, rng: random.Random) -> Image.Image:
    """The background: its colour, lighter towards a lamp somewhere, darker in the corners."""
    y, x = np.mgrid[-1:1:14j, -1:1:14j]
    lamp_x, lamp_y, reach = rng.uniform(-1, 1), rng.uniform(-1.1, .5), rng.uniform(.06, .18)
    light = 1.04 + reach * (.8 - np.hypot(x - lamp_x, y - lamp_y)) - .045 * (x**2 + y**2)
    colour = np.array(_varied(BACKGROUNDS[scene.background], rng))
    field = np.clip(colour * light[..., None], 0, 255).astype(np.uint8)
    return Image.fromarray(field).resize((scene.width_px, scene.height_px), Image.Resampling.BICUBIC)


def _grain(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = _noise()
    x, y = rng.randrange(noise.width - picture.width), rng.randrange(noise.height - picture.height)
    return ImageChops.add(picture, noise.crop((x, y, x + picture.width, y + picture.height)), 1, -128)


def _mask(shape: str, radius: float, degrees: float) -> Image.Image:
    """The shape in white on black with smooth edges, in a square just large enough."""
    side = 2 * math.ceil(radius) + 2
    big = Image.new("L", (side * FINER, side * FINER))
    draw, middle, r = ImageDraw.Draw(big), side * FINER / 2, radius * FINER
    if shape in ("circle", "ring", "moon"):
        _disc(draw, middle, middle, r, 255)
        if shape == "ring":
            _disc(draw, middle, middle, r * .54, 0)
        elif shape == "moon":
            _disc(draw, middle + r * .46, middle - r * (.1 + degrees / 60), r * .8, 0)
    else:
        turn = math.radians(degrees)
        cos, sin = r * math.cos(turn), r * math.sin(turn)
        draw.polygon([(middle + x * cos - y * sin, middle + x * sin + y * cos) for x, y in OUTLINES[shape]], fill=255)
    return big.reduce(FINER)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: int) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _corners(count: int, start: float, radii: tuple[float, ...]) -> tuple[Point, ...]:
    """Points at equal angles from `start` degrees on, their distances from the middle taken in turn."""
    turns = [math.radians(start + 360 * i / count) for i in range(count)]
    return tuple((math.cos(t) * radii[i % len(radii)], math.sin(t) * radii[i % len(radii)]) for i, t in enumerate(turns))


def _heart() -> tuple[Point, ...]:
    turns = [2 * math.pi * i / 48 for i in range(48)]
    tops = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return tuple((16 * math.sin(t) ** 3 / 16.8, (-top - 2.4) / 16.8) for t, top in zip(turns, tops, strict=True))


ARM, END = .34, .94
OUTLINES: dict[str, tuple[Point, ...]] = {
    "square": _corners(4, 45, (1.0,)), "hexagon": _corners(6, 0, (.98,)), "diamond": _corners(4, 0, (.66, 1.0)),
    "star": _corners(10, -90, (1.0, .45)), "heart": _heart(),
    "triangle": tuple((x, y + .18) for x, y in _corners(3, -90, (.98,))),
    "cross": ((-ARM, -END), (ARM, -END), (ARM, -ARM), (END, -ARM), (END, ARM), (ARM, ARM),
              (ARM, END), (-ARM, END), (-ARM, ARM), (-END, ARM), (-END, -ARM), (-ARM, -ARM))}
"""Corners about the unit circle, y downwards."""


@lru_cache(maxsize=256)
def _pattern(texture: str, period: int, degrees: int) -> Image.Image:
    """A square of PATTERN_SIDE pixels, white where the second colour goes; one repeat is `period` pixels."""
    side = PATTERN_SIDE * FINER
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / (period * FINER)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = x * cos + y * sin, y * cos - x * sin
    if texture == "striped":
        white = u % 1 < .46
    elif texture == "checked":
        white = (np.floor(u * 1.5) + np.floor(v * 1.5)) % 2 == 0
    elif texture == "dotted":
        white = np.hypot((u + .5 * (np.floor(v) % 2)) % 1 - .5, v % 1 - .5) < .29
    else:
        white = (u + np.abs(v % 1 - .5)) % 1 < .42
    return Image.fromarray(white.astype(np.uint8) * 255).reduce(FINER)


@lru_cache(maxsize=128)
def _lights(side: int) -> tuple[Image.Image, Image.Image]:
    """How much white and how much black lies on a square of paper: light from the upper left, shade at the lower right."""
    y, x = np.mgrid[-1:1:side * 1j, -1:1:side * 1j]
    light = np.clip(.30 - .24 * np.hypot(x + .55, y + .65), 0, 1)
    dark = np.clip(.20 * (x * .55 + y * .85), 0, 1)
    return Image.fromarray((light * 255).astype(np.uint8)), Image.fromarray((dark * 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _noise() -> Image.Image:
    """The grain of the paper, around 128; a picture takes a piece of it."""
    field = np.random.default_rng(7).normal(128, 2.4, (320, 320, 1)) + np.random.default_rng(8).normal(0, 1.2, (320, 320, 3))
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))


@lru_cache
def _scaled(factor: float) -> list[int]:
    return [round(value * factor) for value in range(256)]


def _varied(colour: Colour, rng: random.Random) -> Colour:
    """The colour as another printer would print it."""
    red, green, blue = (min(255, max(0, c + rng.randint(-9, 9))) for c in colour)
    return red, green, blue


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))
    return red, green, blue
