"""Numbers → inline SVG. Colours come from the page (`report.css`), so one drawing serves light, dark and paper.

Drawings are as wide as their column and 300 units across, so that their small print stays readable on a telephone. Every text in
them goes through `Markup.format`, which escapes it. A `<title>` is what a pointer that rests on a bar is told.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from curate.pages.atlas import Atlas
from curate.pages.figures import Values, boundary
from curate.pages.histogram import Histogram
from curate.pages.tallies import PER_OCTAVE, Sizes
from curate.pages.thresholds import Line
from curate.pages.wording import brief, count, figure, shown

WIDTH, HEIGHT = 300, 132
LEFT, RIGHT, TOP, BASE = 2.0, 298.0, 24.0, 112.0
MAX_BARS, MIN_BINS = 7, 8
COLOURS = 8
SHADES = 6


def histogram(data: Histogram, lines: Sequence[Line] = ()) -> Markup:
    """Bars of the rows measured, the rows kept in front of them, and the thresholds; what a threshold cuts off is tinted."""
    if data.few is not None and data.is_whole and not lines and data.high[0] - data.low[0] > 60:
        return bars(Values(data.rows, {f"{value:.0f}": n for value, n in data.few.items()}))
    margin = max(0.0, (MIN_BINS - len(data.bins[0])) / 2) * (data.edges[1] - data.edges[0]) if not data.is_log else 0
    across = _Scale(data.edges[0] - margin, data.edges[-1] + margin, data.is_log)
    highest = max(1, *data.bins[0])
    spots = [across(edge) for edge in data.edges]
    parts = _cuts(data, lines, across)
    for kind, bins in zip(("m", "k"), data.bins, strict=True):
        parts.append(_bars_path(kind, spots, bins, highest))
    parts.append(_grid_line(data.bins[0], highest))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, BASE, RIGHT))
    parts += _ticks(data, across)
    parts += _marks(data, lines, across)
    parts += _pointers(data, spots)
    return _svg(parts, WIDTH, HEIGHT, f"Histogram of {count(data.rows[0])} rows measured and {count(data.rows[1])} kept")


def bars(data: Values) -> Markup:
    """A bar a value, the most frequent first; the rest together."""
    entries = list(data.counts.items())
    if len(entries) > MAX_BARS:
        rest = entries[MAX_BARS - 1:]
        total = sum(n for _, (n, _) in rest), sum(k for _, (_, k) in rest)
        entries = [*entries[: MAX_BARS - 1], (f"{len(rest)} others", total)]
    highest = max(1, *(n for _, (n, _) in entries))
    parts = []
    for place, (value, (rows, kept)) in enumerate(entries):
        y = 6 + place * 18
        parts.append(Markup(
            '<g><title>{}: {} measured, {} kept</title><text x="96" y="{}" class="e">{}</text>'
            '<rect class="m" x="102" y="{}" width="{}" height="13"/><rect class="k" x="102" y="{}" width="{}" height="13"/>'
            '<text x="{}" y="{}">{}</text></g>').format(
                shown(value), count(rows), count(kept), y + 10, shown(value or "(empty)", 15), y, _short(136 * rows / highest), y,
                _short(136 * kept / highest), _short(106 + 136 * rows / highest), y + 10, brief(rows)))
    return _svg(parts, WIDTH, HEIGHT, f"Counts of {len(data.counts)} values")


def ribbon(came: int, stayed: int, all_rows: int) -> Markup:
    """One stage of the funnel: as wide at its top as rows came, at its bottom as rows stayed; stretched to fit its row."""
    top, bottom = (_short(100 * n / max(all_rows, 1)) for n in (came, stayed))
    curve = f"M{top} 0C{top} 50 {bottom} 40 {bottom} 100"
    return Markup('<svg class="ribbon" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
                  '<path class="lost" d="{}H{}Z"/><path class="k" d="{}H0V0Z"/></svg>').format(curve, top, curve)


def density(grid: np.ndarray, sizes: Sizes, caption: str) -> Markup:
    """Rows by width (across) and height (up), both in octaves; darker is more, by the square root."""
    used = np.flatnonzero(sizes.measured.any(axis=0) | sizes.measured.any(axis=1))
    low = int(used[0]) // PER_OCTAVE * PER_OCTAVE
    high = (int(used[-1]) // PER_OCTAVE + 1) * PER_OCTAVE
    step = 240 / (high - low)
    parts = []
    for i, j in zip(*(axis.tolist() for axis in np.nonzero(grid)), strict=True):
        shade = min(SHADES, 1 + int(SHADES * math.sqrt(grid[i, j] / grid.max())))
        x, y, side = _short(40 + (i - low) * step), _short(260 - (j - low + 1) * step), _short(step + 0.2)
        parts.append(Markup('<rect class="d{}" x="{}" y="{}" width="{}" height="{}"><title>{} px wide, {} px high: {} rows'
                            '</title></rect>').format(shade, x, y, side, side, _octave(i), _octave(j), count(int(grid[i, j]))))
    every = max(1, (high - low) // PER_OCTAVE // 7 + 1) * PER_OCTAVE
    for place in range(low, high + 1, every):
        at, size = (place - low) * step, brief(2 ** (place // PER_OCTAVE))
        parts.append(Markup('<text x="{}" y="274" class="c">{}</text><text x="34" y="{}" class="e">{}</text>').format(
            _short(40 + at), size, _short(263 - at), size))
    parts.append(Markup('<path class="axis" d="M40 20V260H280"/><path class="square" d="M40 260L280 20"/>'
                        '<text x="160" y="290" class="c">width, px</text><text x="40" y="10" class="c">height, px</text>'))
    return _svg(parts, WIDTH, 296, caption)


def rounds_chart(figures: Mapping[str, Sequence[float | None]], numbers: Sequence[int]) -> Markup:
    """One line a figure over the rounds, named at its right end."""
    known = [v for values in figures.values() for v in values if v is not None]
    low, high = min(0.0, *known), max(1.0, *known)
    up = _Scale(low, high, False, 176, 10)
    across = _Scale(numbers[0], numbers[-1], False, 26, 190)
    parts = [Markup('<path class="grid" d="M26 {}H190"/><text x="22" y="{}" class="e">{}</text>').format(
        _short(up(v)), _short(up(v) + 3), figure(v)) for v in _linear_ticks(low, high, 4)]
    parts += [Markup('<text x="{}" y="190" class="c">{}</text>').format(_short(across(n)), n) for n in numbers]
    ends = []
    for place, (name, values) in enumerate(figures.items()):
        spots = [(across(n), up(v)) for n, v in zip(numbers, values, strict=True) if v is not None]
        path = "L".join(f"{_short(x)} {_short(y)}" for x, y in spots)
        dots = "".join(f"M{_short(x)} {_short(y)}h0" for x, y in spots)
        colour = place % COLOURS
        parts.append(Markup('<path class="r r{}" d="M{}"/><path class="r p r{}" d="{}"/>').format(colour, path, colour, dots))
        ends.append((spots[-1][1], name, place))
    for y, (_, name, place) in zip(_apart([e[0] for e in sorted(ends)], 11.5), sorted(ends), strict=True):
        parts.append(Markup('<text x="197" y="{}" class="t{}">{}</text>').format(_short(y + 3), place % COLOURS, shown(name, 24)))
    parts.append(Markup('<text x="108" y="203" class="c">round</text>'))
    return _svg(parts, WIDTH, 206, "Held-out figures by round")


def scatter(atlas: Atlas) -> Markup:
    """The map: rows that left as grey rings, rows kept by score in five classes of equal size (or in one colour)."""
    x, y = 6 + 288 * atlas.xy[:, 0], 6 + 183 * atlas.xy[:, 1]
    parts = [_points("gone", x[~atlas.is_kept], y[~atlas.is_kept])]
    scored = atlas.is_kept & ~np.isnan(atlas.score)
    parts.append(_points("s4", x[atlas.is_kept & ~scored], y[atlas.is_kept & ~scored]))
    for place, (low, high) in enumerate(score_classes(atlas)):
        some = scored & (atlas.score >= low) & ((atlas.score < high) | (place == 4))
        parts.append(_points(f"s{place}", x[some], y[some]))
    return _svg(parts, WIDTH, 195, f"Map of {len(x)} pictures")


def score_classes(atlas: Atlas) -> list[tuple[float, float]]:
    """Limits of the five classes of scores of the rows kept; empty where nothing is scored."""
    scores = atlas.score[atlas.is_kept]
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return []
    cuts = np.quantile(scores, np.linspace(0, 1, 6), method="inverted_cdf").tolist()
    return list(zip(cuts, cuts[1:], strict=False))


class _Scale:
    """From numbers to places in a drawing."""

    def __init__(self, low: float, high: float, is_log: bool, start: float = LEFT, end: float = RIGHT) -> None:
        self._low, self._high, self.is_log = self._value(low, is_log), self._value(high, is_log), is_log
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        span = self._high - self._low
        part = (self._value(value, self.is_log) - self._low) / span if span else 0.5
        return self._start + part * (self._end - self._start)

    @staticmethod
    def _value(value: float, is_log: bool) -> float:
        return math.log(max(value, 1e-300)) if is_log else value


def _svg(parts: Iterable[Markup], width: int, height: int, label: str) -> Markup:
    inner = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(width, height, label, inner)


def _short(value: float) -> str:
    """A coordinate with one digit, without a useless zero."""
    text = f"{value:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"


def _bars_path(kind: str, spots: Sequence[float], bins: Sequence[int], highest: int) -> Markup:
    """All bars of a series as one path, with a hair between them where there is room."""
    hair = 0.6 if len(bins) < 60 else 0
    path = "".join(f"M{_short(left + hair / 2)} {_short(BASE)}V{_short(BASE - max(0.8, (BASE - TOP) * n / highest))}"
                   f"H{_short(max(right - hair / 2, left + 0.5))}V{_short(BASE)}Z"
                   for left, right, n in zip(spots, spots[1:], bins, strict=False) if n)
    return Markup('<path class="{}" d="{}"/>').format(kind, path)


def _pointers(data: Histogram, spots: Sequence[float]) -> list[Markup]:
    """Invisible columns over the bars that say their numbers."""
    column = Markup('<rect class="h" x="{}" y="{}" width="{}" height="{}"><title>{}: {} measured, {} kept</title></rect>')
    top, height = _short(TOP), _short(BASE - TOP)
    return [column.format(_short(left), top, _short(max(right - left, 0.5)), height, _bin_name(data, i), count(n), count(kept))
            for i, (left, right, n, kept) in enumerate(zip(spots, spots[1:], *data.bins, strict=False)) if n]


def _bin_name(data: Histogram, place: int) -> str:
    low, high = data.edges[place], data.edges[place + 1]
    if not data.is_whole:
        return f"{figure(low)} to {figure(high)}"
    first, last = math.ceil(low), math.ceil(high) - 1
    return figure(first) if first == last else f"{figure(first)} to {figure(last)}"


def _grid_line(bins: Sequence[int], highest: int) -> Markup:
    """One horizontal line at a round number of rows, to read heights by; its number stands where bars are lower."""
    power = 10 ** math.floor(math.log10(highest))
    round_ = max(m * power for m in (1, 2, 5) if m * power <= highest)
    y = BASE - (BASE - TOP) * round_ / highest
    end = max(1, len(bins) // 7)
    x, anchor = (RIGHT, "e") if max(bins[-end:]) <= max(bins[:end]) else (LEFT, "b")
    return Markup('<path class="grid" d="M{} {}H{}"/><text x="{}" y="{}" class="{} g">{}</text>').format(
        LEFT, _short(y), RIGHT, x, _short(y - 2.5), anchor, brief(round_))


def _cuts(data: Histogram, lines: Sequence[Line], across: _Scale) -> list[Markup]:
    parts = []
    for line in lines:
        x = min(max(across(boundary(line, data.is_whole)), LEFT), RIGHT)
        left, right = (LEFT, x) if line.keeps == "above" else (x, RIGHT)
        if right - left > 0.1:
            parts.append(Markup('<rect class="cut" x="{}" y="{}" width="{}" height="{}"/>').format(
                _short(left), _short(TOP), _short(right - left), _short(BASE - TOP)))
    return parts


def _marks(data: Histogram, lines: Sequence[Line], across: _Scale) -> list[Markup]:
    """The thresholds with their numbers above; one outside of the picture is an arrow at its rim."""
    parts, taken = [], [-100.0, -100.0]
    for line in sorted(lines, key=lambda found: found.value):
        where = across(boundary(line, data.is_whole))
        x, label = min(max(where, LEFT), RIGHT), line.text.replace("<=", "≤").replace(">=", "≥")
        outside = where < LEFT - 0.5 or where > RIGHT + 0.5
        label = f"{'← ' if where < LEFT else ''}{label}{' →' if where > RIGHT else ''}" if outside else label
        half = 3.0 * len(label)
        middle = min(max(x, LEFT + half), RIGHT - half)
        level = 0 if middle - half > taken[0] else 1
        taken[level] = middle + half
        if not outside:
            parts.append(Markup('<path class="line" d="M{} {}V{}"/>').format(_short(x), _short(TOP - 3), _short(BASE)))
        y = _short(TOP - 6 - 10 * level)
        parts.append(Markup('<text x="{}" y="{}" class="c cutlabel">{}</text>').format(_short(middle), y, label))
    return parts


def _ticks(data: Histogram, across: _Scale) -> list[Markup]:
    low, high = data.edges[0], data.edges[-1]
    values = _log_ticks(low, high) if data.is_log else _linear_ticks(low, high, 5)
    if data.is_whole:
        values = sorted({v for v in values if v == int(v)})
    parts = []
    for value in values:
        label = brief(int(value)) if abs(value) >= 10_000 else figure(value)
        half = 2.8 * len(label)
        x = min(max(across(value), LEFT + half), RIGHT - half)
        parts.append(Markup('<text x="{}" y="{}" class="c">{}</text>').format(_short(x), _short(BASE + 12), label))
    return parts


def _linear_ticks(low: float, high: float, number: int) -> list[float]:
    if high <= low:
        return [low]
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or, where these are many, every second, third … of them; where few, 2 and 5 times them too."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    if last - first >= 3:
        return [10.0**p for p in range(first, last + 1, (last - first) // 6 + 1)]
    return [m * 10.0**p for p in range(first - 1, last + 1) for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _octave(place: int) -> str:
    low, high = (2 ** (p / PER_OCTAVE) for p in (place, place + 1))
    return f"{math.ceil(low):,} to {max(math.ceil(high) - 1, math.ceil(low)):,}"


def _points(kind: str, x: np.ndarray, y: np.ndarray) -> Markup:
    """Points as lines of no length with round ends: ten bytes each."""
    path = "".join(f"M{_short(a)} {_short(b)}h0" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return Markup('<path class="pt {}" d="{}"/>').format(kind, path) if path else Markup("")


def _apart(places: Sequence[float], distance: float) -> list[float]:
    """Places in ascending order moved down (then, past the end, up) so that labels at them do not touch."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + distance) if moved else place)
    limit = 178.0
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - distance
    return moved
