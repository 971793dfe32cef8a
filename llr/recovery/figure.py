"""The figure of the experiment on embeddings. The others are those of any sweep.

Needs matplotlib, as :mod:`llr.results.figures` does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llr.recovery.sweep import Row
from llr.results.figures import COLOURS, GREY, STYLE, new_figure


@matplotlib.rc_context(STYLE)
def embedded(rows: Sequence[Row]) -> Figure:
    """Draw ranks of an embedded function, and how often it is found, against the width.

    Args:
        rows: the rows of a sweep whose cells :func:`llr.recovery.embedded.run_cell` computed.

    Raises:
        ValueError: no cell is done.
    """
    done = [
        (row.cell.values, row.outcome.values) for row in rows if row.outcome and row.outcome.values
    ]
    if not done:
        raise ValueError("no cell is done; run the sweep first")
    ranks: dict[int, list[tuple[float, float]]] = defaultdict(list)
    rates: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for values, result in done:
        width = int(values["width"])
        ranks[width].append((float(result["wide_rank"] or 0), float(result["parameters"] or 0)))
        rates[str(values["strategy"])][width].append(float(result["recovered"] or 0))
    figure = new_figure(6.4, 2.8)
    left, right = figure.subplots(1, 2)
    widths = sorted(ranks)
    left.plot(widths, [ranks[w][0][1] for w in widths], "--", color=GREY, label="parameters")
    for pick, style in ((max, "o"), (min, "x")):
        found = [pick(rank for rank, _ in ranks[w]) for w in widths]
        left.plot(widths, found, style, color=COLOURS[0], label=f"rank, {pick.__name__}imum")
    left.set_ylabel("proved rank after embedding")
    left.set_ylim(0, None)
    for colour, (strategy, found_at) in zip(COLOURS, sorted(rates.items()), strict=False):
        right.plot(widths, [mean(found_at[w]) for w in widths], "o-", color=colour, label=strategy)
    right.set_ylabel("recovered")
    right.set_ylim(-0.05, 1.05)
    for ax in (left, right):
        ax.set_xlabel("width")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="best")
    return figure
