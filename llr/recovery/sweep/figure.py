"""The figure of a sweep: how often targets are recovered from n samples, and the predicted size.

Needs matplotlib, as :mod:`llr.results.figures` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from llr.recovery.sweep.spec import Value, ordered, table_order
from llr.recovery.sweep.store import Row
from llr.results.figures import COLOURS, GREY, STYLE, new_figure
from llr.results.figures import save as save

_LINES_SIZE = (4.4, 3.3)  # width and height of the panel of lines, in inches
_MOST_PANELS = 12
_MOST_LINES = len(COLOURS)
_LIKELY = 1.96  # standard deviations: an interval of 95 %


@dataclass(frozen=True)
class _Point:
    """The runs of one n and one width: their number, the successes, and the predicted size."""

    n: int
    width: Value | None
    successes: float
    runs: int
    predicted: float | None

    @property
    def rate(self) -> float:
        return self.successes / self.runs


def selected(rows: Sequence[Row], where: Iterable[str]) -> list[Row]:
    """The rows whose coordinates satisfy ``name=value`` for each condition of `where`.

    Raises:
        ValueError: a malformed condition, an unknown coordinate, or no row that satisfies all conditions.
    """
    rows = list(rows)
    for condition in where:
        name, equals, value = condition.partition("=")
        found = {str(row.cell.values[name]) for row in rows if name in row.cell.values}
        if not equals or value not in found:
            names = ", ".join(ordered({name for row in rows for name in row.cell.values}))
            known = (
                f"{name} is one of {', '.join(sorted(found))}" if found else f"names are {names}"
            )
            raise ValueError(f"condition {condition!r}: expected name=value of some cell; {known}")
        rows = [row for row in rows if str(row.cell.values.get(name)) == value]
    return rows


def draw(
    rows: Sequence[Row], *, success: str = "recovered", predicted: str = "predicted"
) -> Figure:
    """Draw the mean of a result over seeds, against n.

    Each combination of the other coordinates is drawn separately. A combination with several widths is a heat
    map of n and width, with a mark at the predicted size of each width. A combination with one width is a
    line with its 95 % interval (Wilson's), and a dashed line of the same colour at the predicted size. Lines
    share a panel to the right of the heat maps. Failed cells are left out.

    Args:
        rows: the rows of the sweep, from ``store.rows()``.
        success: the result that is drawn, between 0 and 1 or true and false.
        predicted: the result that holds the predicted number of samples, if there is one.

    Raises:
        ValueError: no finished cell has such a result, a result is not between 0 and 1, or there are more
            combinations than a figure can show.
    """
    groups = _grouped(rows, success, predicted)
    maps = {k: points for k, points in groups.items() if len({p.width for p in points}) > 1}
    lines = {k: points for k, points in groups.items() if k not in maps}
    for found, most, what in ((maps, _MOST_PANELS, "panels"), (lines, _MOST_LINES, "lines")):
        if len(found) > most:
            raise ValueError(
                f"the figure would have {len(found)} {what}, such as {next(iter(found))!r}; expected at "
                f"most {most}: select with --where name=value"
            )
    label = f"{success}, mean over seeds"
    with matplotlib.rc_context(STYLE):
        if not maps or not lines:
            figure = new_figure(*(_map_size(len(maps)) if maps else _LINES_SIZE))
            if maps:
                _heat_maps(figure, maps, label)
            else:
                _lines(figure, lines, label)
            return figure
        width, height = _map_size(len(maps))
        figure = new_figure(width + _LINES_SIZE[0], max(height, _LINES_SIZE[1]))
        sides: Any = figure.subfigures(1, 2, width_ratios=[width, _LINES_SIZE[0]])
        left, right = sides
        _heat_maps(left, maps, label)
        _lines(right, {_with_width(k, points): points for k, points in lines.items()}, label)
        return figure


def _with_width(label: str, points: Sequence[_Point]) -> str:
    width = points[0].width
    return ", ".join(filter(None, (label, None if width is None else f"width {width}")))


def _grouped(rows: Sequence[Row], success: str, predicted: str) -> dict[str, list[_Point]]:
    """Points by the label of their group: the coordinates that vary, except n, width and seed."""
    done = [
        row
        for row in sorted(rows, key=lambda row: table_order(row.cell))
        if row.outcome and row.outcome.values and row.outcome.values.get(success) is not None
    ]
    if not done:
        known = sorted({n for r in rows if r.outcome for n in r.outcome.values or ()})
        raise ValueError(
            f"no cell has a result {success!r}; expected one of: {', '.join(known) or 'none yet'}"
        )
    names = ordered({name for row in done for name in row.cell.values} - {"n", "width", "seed"})
    varying = [name for name in names if len({row.cell.values.get(name) for row in done}) > 1]
    runs: dict[str, dict[tuple[int, Value | None], list[Mapping[str, Any]]]] = {}
    for row in done:
        values = row.cell.values
        label = ", ".join(_described(name, values[name]) for name in varying if name in values)
        place = (int(values["n"]), values.get("width"))
        assert row.outcome is not None
        runs.setdefault(label, {}).setdefault(place, []).append(row.outcome.values or {})
    return {
        label: [_point(*place, found, success, predicted) for place, found in places.items()]
        for label, places in runs.items()
    }


def _described(name: str, value: Value) -> str:
    return value if isinstance(value, str) else f"{name} {value}"


def _point(
    n: int, width: Value | None, runs: list[Mapping[str, Any]], success: str, predicted: str
) -> _Point:
    rates = [run[success] for run in runs]
    for rate in rates:
        if isinstance(rate, str) or not 0 <= rate <= 1:
            raise ValueError(f"{success} is {rate!r} at n = {n}; expected true, false, or 0 to 1")
    sizes = [run[predicted] for run in runs if isinstance(run.get(predicted), int | float)]
    # Targets of one kind may differ in their predicted size: the mean is marked.
    size = sum(sizes) / len(sizes) if sizes else None
    return _Point(n, width, float(sum(rates)), len(rates), size)


def _wilson(point: _Point) -> tuple[float, float]:
    z2 = _LIKELY**2 / point.runs
    centre = (point.rate + z2 / 2) / (1 + z2)
    half = math.sqrt(max(0.0, point.rate * (1 - point.rate) + z2 / 4) * z2) / (1 + z2)
    return centre - half, centre + half


def _lines(figure: FigureBase, groups: Mapping[str, Sequence[_Point]], ylabel: str) -> None:
    ax = figure.add_subplot()
    sizes = {p.predicted for points in groups.values() for p in points if p.predicted is not None}
    for colour, (label, points) in zip(COLOURS, groups.items(), strict=False):
        points = sorted(points, key=lambda point: point.n)
        n = [point.n for point in points]
        low, high = zip(*map(_wilson, points), strict=True)
        ax.fill_between(n, low, high, color=colour, alpha=0.15, lw=0)
        ax.plot(n, [p.rate for p in points], "o-", ms=3, color=colour, label=label or None)
        for size in sorted({p.predicted for p in points if p.predicted is not None}):
            ax.axvline(size, color=colour if len(sizes) > 1 else GREY, ls=(0, (4, 2)), lw=1)
    ax.set_ylim(-0.03, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("samples $n$")
    ax.set_ylabel(ylabel)
    if sizes:
        ax.plot([], [], color=GREY, ls=(0, (4, 2)), lw=1, label="predicted size")
    if ax.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=2)


def _map_size(count: int) -> tuple[float, float]:
    """Width and height of `count` heat maps, in inches."""
    columns, rows = _map_grid(count)
    return 0.9 + 2.6 * columns, 0.6 + 2.3 * rows


def _map_grid(count: int) -> tuple[int, int]:
    columns = min(3, count)
    return columns, math.ceil(count / columns)


def _heat_maps(figure: FigureBase, groups: Mapping[str, Sequence[_Point]], ylabel: str) -> None:
    columns, rows = _map_grid(len(groups))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    image: Any = None
    for ax, (label, points) in zip(panels, groups.items(), strict=False):
        image = _heat_map(ax, points)
        ax.set_title(label, loc="left")
    for ax in panels[len(groups) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=list(panels), label=ylabel)
    if any(point.predicted for points in groups.values() for point in points):
        key = Line2D([], [], color=COLOURS[1], lw=2, label="predicted size")
        figure.legend(handles=[key], loc="outside lower center")


def _heat_map(ax: Axes, points: Sequence[_Point]) -> Any:
    """Draw cells of equal size in the order of n and of width, for any steps between these."""
    ns = sorted({point.n for point in points})
    widths = sorted({point.width for point in points if point.width is not None})
    rates = [[math.nan] * len(ns) for _ in widths]
    for point in points:
        if point.width is not None:
            rates[widths.index(point.width)][ns.index(point.n)] = point.rate
    ax.set_facecolor("#dddddd")  # where there are no runs
    image = ax.pcolormesh(rates, cmap="viridis", vmin=0, vmax=1)
    for row, width in enumerate(widths):
        for size in sorted({p.predicted for p in points if p.width == width and p.predicted}):
            place = _place(size, ns)
            if place is not None:
                ax.plot([place, place], [row, row + 1], color=COLOURS[1], lw=2)
    _label(ax.set_xticks, ns)
    _label(ax.set_yticks, widths)
    ax.set_xlabel("samples $n$")
    ax.set_ylabel("width")
    return image


def _place(size: float, ns: Sequence[int]) -> float | None:
    """The position of a size on an axis with cells at 0.5, 1.5, ...; None if it is outside."""
    if not ns[0] <= size <= ns[-1]:
        return None
    above = next(i for i, n in enumerate(ns) if n >= size)
    if ns[above] == size:
        return above + 0.5
    return above - 0.5 + (size - ns[above - 1]) / (ns[above] - ns[above - 1])


def _label(set_ticks: Any, values: Sequence[Any]) -> None:
    step = math.ceil(len(values) / 10)
    set_ticks([i + 0.5 for i in range(0, len(values), step)], [str(v) for v in values[::step]])
