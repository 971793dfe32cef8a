"""Figures of single results: the errors of widths, and of members in training.

Needs matplotlib, as :mod:`llr.results.figures` does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llr.results.figures import COLOURS, GREY, STYLE, Axes, MaxNLocator, axes_for, matplotlib

if TYPE_CHECKING:
    from llr.recovery.outcome import Recovery
    from llr.recovery.train.result import History

_MOST_LINES = 200


@matplotlib.rc_context(STYLE)
def widths(found: Recovery, ax: Axes | None = None) -> Axes:
    """Draw the error of the best fit of every width; a filled dot marks an error that rounding explains.

    Args:
        found: the result of :func:`llr.recovery.recover`.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.
    """
    ax = axes_for(ax, 8)
    fits = list(found.fits.values())
    errors = [math.sqrt(fit.error) for fit in fits]
    drawn = [error for error in errors if 0 < error < math.inf]
    foot = min(drawn, default=1e-16) / 10
    ax.plot([fit.width for fit in fits], [max(e, foot) for e in errors], color=GREY, lw=1, zorder=1)
    for explained, face in ((True, COLOURS[2]), (False, "white")):
        chosen = [
            (fit.width, max(error, foot))
            for fit, error in zip(fits, errors, strict=True)
            if fit.consistent == explained
        ]
        if chosen:
            label = "explained by rounding" if explained else "not explained"
            ax.plot(*zip(*chosen, strict=True), "o", mfc=face, color=COLOURS[2], label=label)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("width")
    ax.set_ylabel("relative error (root mean square)")
    ax.set_title(found.status.replace("_", " "), loc="left")
    ax.legend(loc="best")
    return ax


@matplotlib.rc_context(STYLE)
def training(history: History, ax: Axes | None = None) -> Axes:
    """Draw the relative squared error of the members against steps, or times of gradient flow.

    If there are more than 200 members, only the first 200 are drawn.

    Args:
        history: the history of a :class:`llr.recovery.train.Training`.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.
    """
    ax = axes_for(ax, 8)
    lines = history.relative[:, :_MOST_LINES].cpu().double()
    alpha = max(0.15, 1 / max(1, lines.shape[1]) ** 0.5)
    ax.plot(history.at.tolist(), lines.tolist(), color=COLOURS[0], alpha=alpha, lw=1)
    ax.set_yscale("log")
    positive = [t for t in history.at.tolist() if t > 0]
    if positive:
        ax.set_xscale("symlog", linthresh=min(positive))
        ax.set_xlim(left=0)
    ax.set_xlabel("steps, or time")
    ax.set_ylabel("relative squared error")
    return ax
