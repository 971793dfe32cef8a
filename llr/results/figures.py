"""What all figures share: style, colours, sizes, files. Each folder's ``figure.py`` draws its own results.

Figures are `matplotlib.figure.Figure` objects, so that no window opens and pyplot's global state does not
change. Needs matplotlib (``pip install 'llr[plot]'``).
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llr.inputs.files.writing import write_atomic

try:
    import matplotlib as matplotlib
    from matplotlib.axes import Axes as Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Figure
    from matplotlib.ticker import LogLocator as LogLocator
    from matplotlib.ticker import MaxNLocator as MaxNLocator
    from matplotlib.ticker import NullLocator as NullLocator
except ImportError as err:
    raise ImportError("figures need matplotlib: pip install 'llr[plot]'") from err

# Okabe and Ito's palette, distinguishable in all common forms of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in vector files
    "svg.fonttype": "none",
}
# With more rows than this, labels of all rows would overlap.
_LABELLED = 40
FORMATS = (".png", ".pdf", ".svg")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as .png (300 dpi), .pdf or .svg. A failure leaves no partial file.

    Raises:
        ValueError: another suffix.
    """
    suffix = require_format(path)
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=suffix.removeprefix("."), dpi=300)
    write_atomic(path, buffer.getvalue())


def require_format(path: str | os.PathLike[str]) -> str:
    """The suffix of a figure's file; ValueError for one that `save` cannot write."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"figure {os.fspath(path)!r}: expected a name ending in {', '.join(FORMATS)}"
        )
    return suffix


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def palette(number: int) -> list[Any]:
    """Distinct colours; if there are more than in the palette, a sequence with even steps of brightness."""
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    return [matplotlib.colormaps["viridis"](0.88 * i / (number - 1)) for i in range(number)]


def axes_for(ax: Axes | None, rows: int) -> Axes:
    """These axes; if None, those of a new figure that is high enough for `rows` rows."""
    return new_figure(5.6, min(1.3 + 0.2 * rows, 9.0)).add_subplot() if ax is None else ax


def mark_parameters(ax: Axes, n_params: int) -> None:
    """Draw a vertical line at P, with its name above the axes."""
    ax.axvline(n_params, color=GREY, ls=(0, (4, 2)), lw=1, zorder=0)
    at: Any = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
    ax.annotate(f"$P = {n_params}$", (n_params, 1), xytext=(0, 3), ha="center", color=GREY, **at)


def label_step(rows: int) -> int:
    """The step between labelled rows: 1 if all of them are labelled."""
    return 1 + rows // _LABELLED


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Label the rows with their names, from top to bottom."""
    step = label_step(len(names))
    ax.set_ylim(len(names) - 0.4, -0.6)  # in the order of the table
    ax.set_yticks(range(0, len(names), step), names[::step])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
