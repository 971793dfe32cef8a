"""Figures of the theory: ranks of classes of functions.

Needs matplotlib, as :mod:`llr.results.figures` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes

from llr.results.figures import (
    COLOURS,
    STYLE,
    axes_for,
    label_step,
    mark_parameters,
    name_rows,
)
from llr.results.figures import save as save

if TYPE_CHECKING:
    from llr.theory.functions.stratification import Stratification

_WORDS = {"exact": "proved", "almost everywhere": "almost all", "bounds": "at most"}


@matplotlib.rc_context(STYLE)
def stratification(table: Stratification, ax: Axes | None = None) -> Axes:
    """Draw the rank of every class of functions of an architecture, and its number of parameters.

    Args:
        table: a result of :func:`llr.theory.rank_stratification`.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Example:
        >>> from llr import theory
        >>> from llr.models import TwoLayer
        >>> from llr.theory import figure
        >>> ax = figure.stratification(theory.rank_stratification(TwoLayer(2, 3)))
    """
    rows = table.rows
    ax = axes_for(ax, len(rows))
    colours = dict(zip(_WORDS, (COLOURS[0], COLOURS[5], COLOURS[4]), strict=True))
    statuses = [status for status in _WORDS if any(row.status == status for row in rows)]
    for status in statuses:
        bars = [(place, row.rank) for place, row in enumerate(rows) if row.status == status]
        places, ranks = zip(*bars, strict=True)
        ax.barh(places, ranks, color=colours[status], height=0.7, label=_WORDS[status])
    step = label_step(len(rows))
    for place in range(0, len(rows), step):
        rank = rows[place].rank
        ax.annotate(
            str(rank),
            (rank, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            bbox={"fc": "white", "ec": "none", "pad": 0.5},  # covers the line at P
        )
    mark_parameters(ax, table.n_params)
    name_rows(ax, [row.text for row in rows])
    ax.set_xlim(0, 1.08 * max(table.n_params, 1))
    ax.set_xlabel("model rank = optimistic sample size")
    if statuses != ["exact"]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(statuses), borderaxespad=0.2)
    return ax
