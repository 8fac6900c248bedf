"""Small drawings for pages: SVG without scripts and without styles of its own; the style sheet gives the colours.

Each says in words what it shows (``aria-label``); the numbers stand beside it in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# Units of a drawing; it is stretched to the width that the page has.
WIDTH = 600.0
_BAR_HEIGHT, _AXIS = 110.0, 18.0
_PLAIN = (
    '<svg class="chart {kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}"{more}>{body}</svg>'
)
_STRETCH = ' preserveAspectRatio="none"'


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, perhaps with a second part on top of the first.

    Attributes:
        name: what a hand that rests on it reads.
        value: of the lower part, 0 or more; None draws nothing.
        more: of the part on top.
        tick: text below it, or empty.
    """

    name: str
    value: float | None
    more: float = 0.0
    tick: str = ""


def interval(value: float, low: float, high: float, label: str, *, mark: float | None = None) -> Markup:
    """A value from 0 to 1 with its interval, on a line from 0 to 1.

    Args:
        value: a dot.
        low: where the interval begins; an interval that does not exist (NaN) is not drawn.
        high: where it ends.
        label: in words.
        mark: a place to compare with, such as chance.
    """
    parts = ['<line class="axis" x1="4" x2="196" y1="10" y2="10"/>']
    parts += [f'<line class="tick" x1="{_at(x):g}" x2="{_at(x):g}" y1="7" y2="13"/>' for x in (0.0, 0.5, 1.0)]
    if mark is not None:
        parts.append(f'<line class="mark" x1="{_at(mark):.1f}" x2="{_at(mark):.1f}" y1="2" y2="18"/>')
    if low == low and high == high:
        parts.append(f'<line class="range" x1="{_at(low):.1f}" x2="{_at(high):.1f}" y1="10" y2="10"/>')
    parts.append(f'<circle class="value" cx="{_at(value):.1f}" cy="10" r="4.5"/>')
    return _svg("interval", 200, 20, label, parts)


def bars(values: Sequence[Bar], label: str) -> Markup:
    """Bars side by side from 0 up, with the largest value written at the top left.

    Args:
        values: at least one.
        label: in words.
    """
    highest = max([(one.value or 0.0) + one.more for one in values] + [0.0])
    top = _round_up(highest)
    step = WIDTH / max(1, len(values))
    parts = [_grid(top)]
    for number, one in enumerate(values):
        parts += _bar(one, number * step, step, top)
    return _svg("bars", WIDTH, _BAR_HEIGHT + _AXIS, label, parts)


def _bar(one: Bar, x: float, step: float, top: float) -> list[str]:
    width = min(step * 0.72, 26.0)
    left = x + (step - width) / 2
    parts = []
    if one.value is not None:
        lower = _BAR_HEIGHT * one.value / top
        upper = _BAR_HEIGHT * one.more / top
        title = f"<title>{escape(one.name)}</title>"
        shape = '<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="1.5"/>'
        drawn = [shape.format(kind="value", x=left, y=_BAR_HEIGHT - lower, w=width, h=lower)]
        if upper:
            drawn.append(shape.format(kind="more", x=left, y=_BAR_HEIGHT - lower - upper, w=width, h=upper))
        parts.append(f"<g>{title}{''.join(drawn)}</g>")
    if one.tick:
        middle = x + step / 2
        parts.append(f'<text x="{middle:.1f}" y="{_BAR_HEIGHT + 14:g}" text-anchor="middle">{escape(one.tick)}</text>')
    return parts


def _grid(top: float) -> str:
    lines = "".join(
        f'<line class="tick" x1="0" x2="{WIDTH:g}" y1="{y:g}" y2="{y:g}"/>' for y in (0.5, _BAR_HEIGHT / 2, _BAR_HEIGHT)
    )
    return f'{lines}<text x="0" y="11" class="top">{top:g}</text>'


def scale(value: float, ticks: Sequence[float], most: float, label: str, *, alert: bool = False) -> Markup:
    """A bar from 0 to ``most`` with marks; what is longer ends at the edge.

    Args:
        value: its length.
        ticks: places to compare with.
        most: the full length.
        label: in words.
        alert: whether it is drawn as something to look at.
    """
    width = 200 * min(value / most, 1.0)
    kind = "value alert" if alert else "value"
    parts = [
        '<rect class="track" width="200" height="10" rx="2"/>',
        f'<rect class="{kind}" width="{width:.1f}" height="10" rx="2"/>',
    ]
    parts += [f'<rect class="mark" x="{200 * min(tick / most, 1.0):.1f}" width="1" height="10"/>' for tick in ticks]
    return _svg("scale", 200, 10, label, parts, _STRETCH)


def _at(value: float) -> float:
    """Place on the line of an interval."""
    return 4 + 192 * min(max(value, 0.0), 1.0)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 …; 1 for nothing."""
    top = 1.0
    while top < value:
        top *= 2.5 if str(top)[0] == "2" else 2.0
    return top


def _svg(kind: str, width: float, height: float, label: str, parts: Sequence[str], more: str = "") -> Markup:
    # Numbers are ours and words are escaped.
    text = _PLAIN.format(kind=kind, width=width, height=height, label=escape(label), more=more, body="".join(parts))
    return Markup(text)
