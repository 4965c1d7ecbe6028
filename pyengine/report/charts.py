"""Charts as inline SVG: lines over numbers, drawn directly, so that the page can be drawn anew while a model trains.

Colours are CSS variables of the page, so a chart follows its light and dark scheme; a dot tells its values when
pointed at. A chart takes about a millisecond.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate

from markupsafe import Markup

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 17.0, 12.0, 38.0
MOST_POINTS = 300  # of one line; longer ones are averaged

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart. colour: 1 to 6, or 0 for grey."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    dots: bool = False
    dashed: bool = False
    faint: bool = False
    band: Sequence[Point] = ()  # (low, high) around each point
    value: str = ""  # said beside the name


@dataclass(frozen=True)
class Axis:
    """How values are laid out: what they are, the scale, the form of the numbers."""

    title: str
    log: bool = False
    root: bool = False  # by the square root, from 0 on
    percent: bool = False
    low: float | None = None  # at the most
    high: float | None = None  # at the least
    ticks: Sequence[float] = ()

    def text(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:g}%"
        if abs(value) >= 1e6:
            return f"{value / 1e6:g}M"
        if abs(value) >= 1e4:
            return f"{value / 1e3:g}k"
        return f"{value:.6g}"


@dataclass(frozen=True)
class _Scale:
    axis: Axis
    start: float  # in SVG units
    length: float
    values: Sequence[float] = field(repr=False)

    def __post_init__(self) -> None:
        axis = self.axis
        extremes = [v for v in (axis.low, axis.high) if v is not None]
        found = [v for v in (*self.values, *extremes) if math.isfinite(v) and (v > 0 or not axis.log)]
        low, high = (min(found), max(found)) if found else (1.0, 2.0)
        if low == high and low == axis.low:
            high = low + 1.0
        elif low == high:
            low, high = (
                (low / 2, high * 2) if axis.log else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
            )
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def place(self, value: float) -> float:
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if self.axis.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        if self.axis.root:
            low, high, value = (math.sqrt(max(v, 0.0)) for v in (low, high, value))
        return self.start + self.length * min(max((value - low) / (high - low), -0.02), 1.02)

    def ticks(self) -> list[float]:
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if self.axis.ticks:
            return [t for t in self.axis.ticks if low <= t <= high]
        return _log_ticks(low, high) if self.axis.log else _ticks(low, high)


def chart(
    lines: Sequence[Line], x: Axis, y: Axis, levels: Sequence[tuple[float, str]] = (), about: str = ""
) -> Markup:
    """A chart of `lines` with its legend. levels: horizontal lines to compare with. about: for screen readers."""
    lines = [_finite(line) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    ys = [v for line in lines for _, v in line.points] + [v for line in lines for b in line.band for v in b]
    across = _Scale(x, LEFT, WIDTH - LEFT - RIGHT, [v for line in lines for v, _ in line.points])
    up = _Scale(y, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM), ys + [value for value, _ in levels])
    parts = [*_frame(across, up), *_levels(levels, up)]
    for line in lines:
        parts += _drawn(line, across, up)
    told = escape(about or f"{y.title} against {x.title}")
    svg = f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
    return Markup(_legend(lines) + svg)


def _finite(line: Line) -> Line:
    """The line without what is no number, averaged to a drawable length."""
    numbers = (int, float)
    kept = [
        (float(p[0]), float(p[1]), line.band[i] if line.band else None)
        for i, p in enumerate(line.points)
        if all(isinstance(v, numbers) and math.isfinite(v) for v in p)
    ]
    step = math.ceil(len(kept) / MOST_POINTS)
    points = [
        (sum(k[0] for k in kept[i : i + step]) / len(kept[i : i + step]),
         sum(k[1] for k in kept[i : i + step]) / len(kept[i : i + step]))
        for i in range(0, len(kept), step or 1)
    ]  # fmt: skip
    band = [b for _, _, b in kept if b is not None] if step <= 1 else []
    return Line(line.name, points, line.colour, line.dots, line.dashed, line.faint, band, line.value)


def _frame(across: _Scale, up: _Scale) -> list[str]:
    parts, bottom = [], HEIGHT - BOTTOM
    for tick in up.ticks():
        at = up.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT:g} {at:.1f}H{WIDTH - RIGHT:g}"/>')
        parts.append(
            f'<text x="{LEFT - 7:g}" y="{at + 3.5:.1f}" text-anchor="end">{up.axis.text(tick)}</text>'
        )
    for tick in across.ticks():
        at = across.place(tick)
        parts.append(f'<path class="tick" d="M{at:.1f} {bottom:g}v4"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 15:g}" text-anchor="middle">{across.axis.text(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT:g} {bottom:g}H{WIDTH - RIGHT:g}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="name" x="{middle:g}" y="{HEIGHT - 5:g}" text-anchor="middle">{escape(across.axis.title)}</text>'
    )
    return parts


def _levels(levels: Sequence[tuple[float, str]], up: _Scale) -> list[str]:
    parts = []
    for value, name in levels:
        if math.isfinite(value):
            at = up.place(value)
            below = at < TOP + 14
            parts.append(f'<path class="level" d="M{LEFT:g} {at:.1f}H{WIDTH - RIGHT:g}"/>')
            parts.append(
                f'<text class="level" x="{WIDTH - RIGHT:g}" y="{at + (11 if below else -4):.1f}" text-anchor="end">'
                f"{escape(name)}</text>"
            )
    return parts


def _drawn(line: Line, across: _Scale, up: _Scale) -> list[str]:
    places = [(across.place(a), up.place(b)) for a, b in line.points]
    parts, colour = [], f"c{line.colour}"
    if line.band:
        edge = [(p[0], up.place(b[1])) for p, b in zip(places, line.band, strict=False)]
        edge += [(p[0], up.place(b[0])) for p, b in reversed(list(zip(places, line.band, strict=False)))]
        parts.append(f'<path class="band {colour}" d="{_path(edge)}Z"/>')
    style = " dashed" if line.dashed else " faint" if line.faint else ""
    if len(places) > 1:
        parts.append(f'<path class="line {colour}{style}" d="{_path(places)}"/>')
    if line.dots or len(places) == 1:
        for (a, b), (px, py) in zip(line.points, places, strict=True):
            told = f"{line.name}: {up.axis.title} {_value(up, b)} at {across.axis.title} {_value(across, a)}"
            parts.append(
                f'<circle class="{colour}" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{escape(told)}</title></circle>'
            )
    return parts


def _value(scale: _Scale, value: float) -> str:
    return f"{100 * value:.1f} %" if scale.axis.percent else f"{value:.4g}"


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for line in lines:
        if line.name and not line.faint:
            value = f" <b>{escape(line.value)}</b>" if line.value else ""
            dashed = " dashed" if line.dashed else ""
            items.append(f'<li><i class="c{line.colour}{dashed}"></i>{escape(line.name)}{value}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    multiples: Callable[[Sequence[int]], list[float]] = lambda ms: [  # noqa: E731
        p * m for p in powers for m in ms if low * 0.999 <= p * m <= high * 1.001
    ]
    return multiples((1,)) if high / low >= 1e3 else multiples((1, 2, 5))


def smooth(points: Sequence[Point], share: float = 0.03) -> list[Point]:
    """The mean over a window around each point, of `share` of all points; what is no number is left out."""
    kept = [(x, y) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]
    sums = [0.0, *accumulate(y for _, y in kept)]
    reach = int(share * len(kept) / 2)
    out = []
    for i, (x, _) in enumerate(kept):
        half = min(reach, i, len(kept) - 1 - i)  # even on both sides, so that the line does not lag
        out.append((x, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)))
    return out
