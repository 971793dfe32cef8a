"""Figures: spectra with the tolerance that determines the rank, and ranks against parameters.

Needs matplotlib, as :mod:`llr.results.figures` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llr.results.figures import (
    GREY,
    STYLE,
    Axes,
    Figure,
    LogLocator,
    MaxNLocator,
    NullLocator,
    matplotlib,
    new_figure,
    palette,
)
from llr.results.figures import require_format as require_format
from llr.results.figures import save as save

if TYPE_CHECKING:
    from llr.ranks.model_rank import ModelRank
    from llr.ranks.result import RankResult


def spectrum(result: RankResult | Mapping[str, RankResult], ax: Axes | None = None) -> Axes:
    """Draw singular values relative to the largest, the tolerance, and the last value above it.

    Values above the tolerance are drawn in full colour, those below it pale. A ring marks the smallest
    counted value. Exact zeros, which a logarithmic axis cannot show, are triangles at the bottom.

    Args:
        result: one result (the spectra of a batch are drawn alike), or several by label.
        ax: where to draw; None makes a new figure.

    Returns:
        The axes; ``axes.figure`` is the figure.
    """
    results = result if isinstance(result, Mapping) else {"": result}
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_figure(4.4, 3.3).add_subplot()
        _draw(ax, _all_curves(results))
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="best")
    return ax


@matplotlib.rc_context(STYLE)
def growth(found: ModelRank, ax: Axes | None = None) -> Axes:
    """Draw the rank against the number of samples, the upper bound, and the sample that attains the rank.

    Args:
        found: what :func:`llr.model_rank` returned.
        ax: where to draw; None makes a new figure.

    Returns:
        The axes; ``axes.figure`` is the figure.
    """
    ax = new_figure(4.4, 3.3).add_subplot() if ax is None else ax
    trace = sorted(found.trace)
    colour = palette(1)[0]
    ax.plot([n for n, _ in trace], [r for _, r in trace], "o-", ms=4, color=colour, label="rank")
    ax.plot(found.n_samples, found.rank, "o", ms=7, mfc="white", mew=1.4, color=colour, zorder=3)
    label = f"at most {found.upper} ({found.upper_from})"
    ax.axhline(found.upper, color=GREY, ls=(0, (4, 2)), lw=1, label=label)
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, None)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("samples")
    ax.set_ylabel("rank")
    ax.legend(loc="lower right")
    return ax


def widths(rows: Sequence[Mapping[str, Any]], results: Mapping[str, RankResult]) -> Figure:
    """The demo's figure: spectra of trained networks, and their ranks against their parameters.

    Args:
        rows: one dict per network with its label, P, rank, and n_rows.
        results: the `RankResult` of each label, in the same order.
    """
    colours = palette(len(rows))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 3.6)
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _draw(left, _all_curves(results))
        _draw_ranks(right, rows, colours)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
        for panel, letter in ((left, "a"), (right, "b")):
            panel.set_title(letter, loc="left", fontweight="bold")
    return figure


@dataclass(frozen=True)
class _Curve:
    """One spectrum relative to its largest value."""

    label: str
    colour: Any
    values: list[float]
    rank: int
    tol: float
    line: str
    """The name of the threshold."""


def _all_curves(results: Mapping[str, RankResult]) -> list[_Curve]:
    colours = palette(len(results))
    labelled = zip(results.items(), colours, strict=True)
    return [c for (label, result), colour in labelled for c in _curves(label, colour, result)]


def _curves(label: str, colour: Any, result: RankResult) -> list[_Curve]:
    """One curve per spectrum; the first of a batch has the label."""
    ranks = torch.as_tensor(result.rank).reshape(-1).tolist()
    tols = torch.as_tensor(result.tol).reshape(-1).tolist()
    ambiguous = int(torch.as_tensor(result.ambiguous).sum())
    if len(ranks) == 1:
        gap = ", clear gap" if result.clear else ""
        known = f" (ambiguous{gap})" if ambiguous else ""
        text = f"rank {ranks[0]}{known}"
    else:
        span = f"{min(ranks, default=0)} to {max(ranks, default=0)}"
        text = f"{len(ranks)} spectra, ranks {span} ({ambiguous} ambiguous)"
    if label:
        text = f"{label}: {text}"
    curves: list[_Curve] = []
    counted = result.spectrum if result.equilibrated is None else result.equilibrated
    spectra = counted.reshape(len(ranks), counted.shape[-1])
    for values, rank, tol in zip(spectra.tolist(), ranks, tols, strict=True):
        top = values[0] if values and values[0] > 0 else 1.0
        relative = [v / top for v in values]
        first = "" if curves else text
        curves.append(_Curve(first, colour, relative, rank, tol / top, result.counted_above))
    return curves


def _draw(ax: Axes, curves: Sequence[_Curve]) -> None:
    positive = [v for c in curves for v in c.values if v > 0]
    tols = sorted({c.tol for c in curves if c.tol > 0})
    lowest = min([*positive, *tols], default=0.1)
    foot = 10.0 ** (math.floor(math.log10(lowest)) - 1)
    crowded = len(curves) > 20
    for curve in curves:
        _draw_curve(ax, curve, foot, crowded)
    if not any(c.values for c in curves):
        ax.text(0.5, 0.5, "no singular values", transform=ax.transAxes, ha="center", color=GREY)
    names = sorted({c.line for c in curves if c.tol > 0})
    _draw_tolerance(ax, tols, " or ".join(names))
    ax.set_yscale("log")
    ax.set_ylim(foot, 4)
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("index $i$")
    ax.set_ylabel(r"$\sigma_i\,/\,\sigma_1$")


def _draw_curve(ax: Axes, curve: _Curve, foot: float, crowded: bool) -> None:
    r, colour = curve.rank, curve.colour
    alpha = 0.4 if crowded else 1.0
    index = list(range(1, len(curve.values) + 1))
    ax.plot(index[:r], curve.values[:r], color=colour, alpha=alpha, label=curve.label or None)
    noise = [i for i in index[r:] if curve.values[i - 1] > 0]
    ax.plot(noise, [curve.values[i - 1] for i in noise], color=colour, alpha=0.4 * alpha)
    zeros = [i for i in index if curve.values[i - 1] == 0]
    if zeros:
        ax.plot(zeros, [foot] * len(zeros), "v", ms=3, mfc="none", color=colour, clip_on=False)
    if r and not crowded:
        ax.plot(r, curve.values[r - 1], "o", ms=4.5, mfc="white", mew=1.2, color=colour, zorder=3)


def _draw_tolerance(ax: Axes, tols: Sequence[float], name: str) -> None:
    if not tols:
        return
    low, high = tols[0], tols[-1]
    if high > 1.05 * low:
        ax.axhspan(low, high, color=GREY, alpha=0.18, lw=0, label=rf"{name}s $/\,\sigma_1$")
    else:
        ax.axhline(
            high, color=GREY, ls=(0, (4, 2)), lw=1, label=rf"{name} $/\,\sigma_1$ = {_power(high)}"
        )


def _power(value: float) -> str:
    exponent = math.floor(math.log10(value))
    return rf"${value / 10.0**exponent:.1f}\times10^{{{exponent}}}$"


def _draw_ranks(ax: Axes, rows: Sequence[Mapping[str, Any]], colours: Sequence[Any]) -> None:
    n_rows = rows[0]["n_rows"]
    last = 1.12 * max(row["P"] for row in rows)
    ax.plot(
        [0, min(n_rows, last), last],
        [0, min(n_rows, last), min(n_rows, last)],
        color=GREY,
        ls=(0, (4, 2)),
        lw=1,
        label=f"min({n_rows}, $P$)",
    )
    for row, colour in zip(rows, colours, strict=True):
        ax.plot(row["P"], row["rank"], "o", ms=6, mec="white", mew=0.6, color=colour, clip_on=False)
        if row["rank"] < min(row["P"], n_rows):
            ax.annotate(
                row["label"],
                (row["P"], row["rank"]),
                xytext=(0, -11),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    ax.set_xlim(0, last)
    ax.set_ylim(0, None)
    ax.set_xlabel("parameters $P$")
    ax.set_ylabel("rank of the Jacobian")
    ax.legend(loc="upper left")
