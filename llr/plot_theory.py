"""Figures of the theory: ranks of classes of functions, and branches of global minima.

Needs matplotlib, as :mod:`llr.plot` does, which draws the spectra.
"""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from llr.landscape import Branches
from llr.plot import COLOURS, GREY, STYLE, new_figure
from llr.plot import save as save
from llr.theory import Stratification

# More rows than this do not fit labels beside them.
_LABELLED = 40


@matplotlib.rc_context(STYLE)
def stratification(table: Stratification, ax: Axes | None = None) -> Axes:
    """Draw the rank of every class of functions of an architecture, against its number of parameters.

    Args:
        table: what :func:`llr.theory.rank_stratification` returned.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Example:
        >>> from llr import plot_theory, theory
        >>> from llr.models import TwoLayer
        >>> ax = plot_theory.stratification(theory.rank_stratification(TwoLayer(2, 3)))
    """
    rows = table.rows
    ax = _axes(ax, len(rows))
    places = range(len(rows))
    proved = [COLOURS[0] if row.status == "exact" else COLOURS[5] for row in rows]
    ax.barh(places, [row.rank for row in rows], color=proved, height=0.7)
    ax.axvline(table.n_params, color=GREY, ls=(0, (4, 2)), lw=1, label=f"$P = {table.n_params}$")
    for place, row in zip(places, rows, strict=True):
        ax.annotate(
            str(row.rank),
            (row.rank, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    _name(ax, [row.text for row in rows])
    ax.set_xlabel("model rank = optimistic sample size")
    ax.legend(loc="lower right")
    return ax


@matplotlib.rc_context(STYLE)
def branches(found: Branches, ax: Axes | None = None) -> Axes:
    """Draw from how many observations on each branch of global minima is isolated.

    Below the left end of a bar (dim T) a branch is not isolated, from the right end on (its codimension) it
    is; where they are one point, it is drawn as that.

    Args:
        found: what :func:`llr.landscape.branches` returned.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Example:
        >>> from llr import landscape, plot_theory
        >>> from llr.models import TwoLayer
        >>> ax = plot_theory.branches(landscape.branches(TwoLayer(1, 1), 3))
    """
    rows = list(found)
    ax = _axes(ax, len(rows))
    for place, row in enumerate(rows):
        ax.plot([row.tangent, row.codimension], [place, place], color=COLOURS[0], lw=4, alpha=0.5)
        ax.plot(row.codimension, place, "o", ms=5, color=COLOURS[0])
        ax.plot(row.tangent, place, "o", ms=5, mfc="white", mew=1.2, color=COLOURS[0])
    ax.axvline(found.n_params, color=GREY, ls=(0, (4, 2)), lw=1, label=f"$P = {found.n_params}$")
    _name(ax, [row.description for row in rows])
    ax.set_xlabel(r"observations: $\dim\,T$ (open) to codimension (full)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower right")
    return ax


def _axes(ax: Axes | None, rows: int) -> Axes:
    return new_figure(5.2, min(1.2 + 0.2 * rows, 9.0)).add_subplot() if ax is None else ax


def _name(ax: Axes, names: list[str]) -> None:
    ax.invert_yaxis()  # in the order of the table
    step = 1 + len(names) // _LABELLED
    ax.set_yticks(range(0, len(names), step), names[::step])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
