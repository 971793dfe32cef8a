"""Results in notebooks: a table with inline styles, and spectra as inline SVG. Everything is escaped.

Text and lines have the text colour of the page, so that they are readable on light and dark backgrounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import torch

Tone = Literal["good", "doubt", "bad"]
Verdict = tuple[str, Tone]
Table = tuple[Sequence[str], Sequence[Sequence[object]]]

_TONES = {"good": "#1a7f4b", "doubt": "#b26a00", "bad": "#c0392b"}
_ABOVE, _BELOW = "#2f7fd1", "#d9822b"
_LONGEST = 300  # characters of a value
_MOST_ROWS = 40
_MOST_POINTS = 400
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 190, 54, 12, 12, 30
_NARROW, _WIDE = 250, 600  # widths of values, beside a picture and without one
_DECADES = 5  # most labels of the axis


@dataclass(frozen=True)
class Spectrum:
    """Values to be drawn in their order on a logarithmic axis.

    Attributes:
        values: of any sign; their absolute values are drawn.
        line: the threshold above which values count; 0 for none.
        line_name: what the threshold is.
        name: what the values are.
        cut: how many of the first values count; None if `line` alone decides.
    """

    values: Sequence[float]
    line: float
    line_name: str
    name: str
    cut: int | None = None


def is_short(value: object) -> bool:
    """Whether a value is short enough for a table."""
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST
    if isinstance(value, tuple):
        return 0 < len(value) <= 12 and all(type(part) is int for part in value)
    return isinstance(value, bool | int | float | torch.dtype)


def text(value: object) -> str:
    """A value as human-readable text, escaped."""
    if isinstance(value, bool):
        plain = "yes" if value else "no"
    elif isinstance(value, float):
        plain = f"{value:.4g}"
    elif isinstance(value, int):
        plain = f"{value:,}"
    elif isinstance(value, tuple):
        plain = ", ".join(map(str, value))
    else:
        plain = str(value).removeprefix("torch.")
    return escape(plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 1]}…")


def card(
    title: str,
    line: str,
    verdict: Verdict | None,
    facts: Mapping[str, object],
    table: Table | None,
    pictures: Sequence[Spectrum],
) -> str:
    """One result: its name and verdict, its line of text, facts, rows and spectra."""
    badge = ""
    if verdict is not None:
        words, tone = verdict
        badge = (
            f'<span style="background:{_TONES[tone]};color:#fff;border-radius:3px;padding:1px 7px;'
            f'margin-left:8px;font-size:90%">{escape(words)}</span>'
        )
    parts = [
        f'<div style="margin-bottom:4px"><strong>{escape(title)}</strong>{badge}</div>',
        f'<div style="margin-bottom:6px;opacity:0.85">{text_of_line(line)}</div>',
    ]
    drawn = [f"<div>{svg(picture)}</div>" for picture in pictures if len(picture.values)]
    columns = ([_facts(facts, _NARROW if drawn else _WIDE)] if facts else []) + drawn
    if columns:
        inside = "".join(columns)
        parts.append(
            f'<div style="display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start">{inside}</div>'
        )
    if table is not None:
        parts.append(_table(*table))
    return f'<div style="max-width:900px">{"".join(parts)}</div>'


def text_of_line(line: str) -> str:
    """A line of text, escaped, cut after 2000 characters."""
    return escape(line if len(line) <= 2000 else f"{line[:1999]}…")


_CELL = "padding:1px 10px 1px 0;border:none;background:none;vertical-align:top"


def _facts(facts: Mapping[str, object], width: int) -> str:
    narrow = f"max-width:{width}px;overflow-wrap:anywhere"
    rows = "".join(
        f'<tr style="background:none"><td style="{_CELL};text-align:left;opacity:0.7">'
        f"{escape(name.replace('_', ' '))}</td>"
        f'<td style="{_CELL};text-align:left;{narrow}">{text(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table style="border-collapse:collapse;border:none;margin:0">{rows}</table>'


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def side(value: object) -> str:
        return "left" if isinstance(value, str) else "right"

    sides = [side(value) for value in rows[0]] if rows else ["left"] * len(head)
    top = "".join(
        f'<th style="{_CELL};text-align:{s};border-bottom:1px solid currentColor">{escape(name)}</th>'
        for name, s in zip(head, sides, strict=True)
    )
    body = "".join(
        '<tr style="background:none">'
        + "".join(
            f'<td style="{_CELL};text-align:{s}">{text(value)}</td>'
            for value, s in zip(row, sides, strict=True)
        )
        + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = len(rows) - _MOST_ROWS
    rest = f'<div style="opacity:0.7">and {more} more rows</div>' if more > 0 else ""
    return (
        '<table style="border-collapse:collapse;border:none;margin:8px 0 0 0">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{rest}"
    )


def svg(picture: Spectrum) -> str:
    """Draw absolute values against their index on a logarithmic axis, with the threshold and the cut."""
    sizes = [abs(float(v)) for v in picture.values]
    line = picture.line if math.isfinite(picture.line) else 0.0
    positive = [v for v in (*sizes, line) if 0 < v < math.inf]
    low = math.floor(math.log10(min(positive))) - 1 if positive else -1
    high = max(math.ceil(math.log10(max(positive))), low + 1) if positive else 0
    bottom = _HEIGHT - _BOTTOM

    def x(i: float) -> float:
        return _LEFT + (i + 0.5) * (_WIDTH - _LEFT - _RIGHT) / len(sizes)

    def level(exponent: float) -> float:
        return _TOP + (high - exponent) / (high - low) * (bottom - _TOP)

    def y(value: float) -> float:
        if value <= 0:
            return level(low)
        return level(high if value == math.inf else math.log10(value))

    parts = [*_axes(picture.name, len(sizes), low, high, level)]
    for i in _some(len(sizes), picture.cut):
        size = sizes[i]
        counts = i < picture.cut if picture.cut is not None else size > line
        colour = _ABOVE if counts else _BELOW
        if size > 0:
            parts.append(f'<circle cx="{x(i):.1f}" cy="{y(size):.1f}" r="2.4" fill="{colour}"/>')
        else:  # an exact zero, at the bottom of the axis
            left, middle = x(i) - 2.6, y(0)
            parts.append(
                f'<path d="M{left:.1f} {middle - 4.5:.1f}h5.2l-2.6 4.5z" fill="none" stroke="{colour}"/>'
            )
    if line > 0:
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(line):.1f}" y2="{y(line):.1f}" '
            'stroke="currentColor" stroke-dasharray="5 3" opacity="0.7"/>'
            f'<text x="{_WIDTH - _RIGHT}" y="{y(line) - 4:.1f}" text-anchor="end" fill="currentColor">'
            f"{escape(picture.line_name)} {line:.1e}</text>"
        )
    if picture.cut is not None and 0 < picture.cut < len(sizes):
        at = x(picture.cut - 0.5)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}" stroke="currentColor" '
            f'opacity="0.4"/><text x="{at - 3:.1f}" y="{_TOP + 9}" text-anchor="end" '
            f'fill="currentColor">{picture.cut}</text>'
        )
    inside = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="11" font-family="sans-serif" role="img" '
        f'aria-label="{escape(picture.name)}">{inside}</svg>'
    )


def _axes(name: str, count: int, low: int, high: int, level: Callable[[float], float]) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    step = max(1, math.ceil((high - low) / _DECADES))
    frame = f"M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}"
    parts = [f'<path d="{frame}" fill="none" stroke="currentColor" opacity="0.5"/>']
    for exponent in range(high, low, -step):
        at = level(exponent)
        parts.append(
            f'<line x1="{_LEFT - 3}" x2="{_LEFT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
            f'opacity="0.5"/><text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" '
            f'fill="currentColor">10<tspan dy="-4" font-size="8">{exponent}</tspan></text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{_LEFT}" y="{bottom + 14}" fill="currentColor">1</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{bottom + 14}" text-anchor="end" fill="currentColor">{count}'
        f'</text><text x="{middle:.0f}" y="{bottom + 24}" text-anchor="middle" fill="currentColor">'
        f"{escape(name)}</text>"
    )
    return parts


def _some(count: int, cut: int | None) -> list[int]:
    """Indices of at most a few hundred values: the first, the last, and those on both sides of the cut."""
    if count <= _MOST_POINTS:
        return list(range(count))
    even = {round(i * (count - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)}
    beside = {cut - 1, cut} & set(range(count)) if cut is not None else set()
    return sorted(even | beside)
