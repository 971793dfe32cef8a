"""Figures of landscapes: branches of global minima, embedded Hessians.

Needs matplotlib, as :mod:`llr.results.figures` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from llr.results.figures import (
    COLOURS,
    GREY,
    STYLE,
    axes_for,
    mark_parameters,
    name_rows,
    new_figure,
)
from llr.results.figures import save as save

if TYPE_CHECKING:
    from llr.landscape.branches import Branches
    from llr.landscape.embedded import EmbeddedSpectrum
    from llr.landscape.flow import Flow
    from llr.landscape.spectra import HessianSpectrum

# The largest number of labelled powers of ten on either side of zero.
_DECADES = 4
_NEW_TO_OLD = LinearSegmentedColormap.from_list("share", [COLOURS[1], "#C4C4C4", COLOURS[0]])


@matplotlib.rc_context(STYLE)
def branches(found: Branches, ax: Axes | None = None) -> Axes:
    """Draw from how many observations on each branch of global minima is isolated.

    A branch is not isolated below the ring (dim T), and isolated from the dot (its codimension) on. If ring
    and dot coincide, the branch is linearly stable.

    Args:
        found: the result of :func:`llr.landscape.branches`.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Example:
        >>> from llr import landscape
        >>> from llr.landscape import figure
        >>> from llr.models import TwoLayer
        >>> ax = figure.branches(landscape.branches(TwoLayer(1, 1), 3))
    """
    rows = list(found)
    ax = axes_for(ax, len(rows))
    for place, row in enumerate(rows):
        ax.plot([row.tangent, row.codimension], [place, place], color=COLOURS[0], lw=4, alpha=0.35)
    places = range(len(rows))
    marks: Any = {"ls": "", "marker": "o", "color": COLOURS[0]}
    starts, ends = ([getattr(row, name) for row in rows] for name in ("tangent", "codimension"))
    ax.plot(starts, places, **marks, ms=7, mfc="white", label=r"$\dim\,T$")
    ax.plot(ends, places, **marks, ms=3.5, label="codimension")
    mark_parameters(ax, found.n_params)
    name_rows(ax, [row.description for row in rows])
    ax.set_xlim(0, 1.08 * max(found.n_params, 1))
    ax.set_xlabel("observations")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return ax


@matplotlib.rc_context(STYLE)
def flow(found: Flow, ax: Axes | None = None) -> Axes:
    """Draw the loss along a solution of gradient flow.

    Args:
        found: the result of :func:`llr.landscape.flow`.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.
    """
    ax = axes_for(ax, 8)
    ax.plot(found.times.tolist(), found.losses.tolist(), color=COLOURS[0])
    if bool((found.losses > 0).any()):
        ax.set_yscale("log")
    if found.decay is not None:
        ax.set_title(rf"residuals fall like $\exp(-{found.decay:.4g}\,t)$", loc="left")
    ax.set_xlabel("time $t$")
    ax.set_ylabel("loss")
    return ax


@matplotlib.rc_context(STYLE)
def hessian(found: HessianSpectrum, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of a Hessian; those that count as zero are drawn on the axis.

    Args:
        found: the result of :func:`llr.landscape.hessian_spectrum`.
        ax: where to draw; default: a new figure.

    Returns:
        The axes; ``ax.figure`` is the figure.
    """
    ax = axes_for(ax, 10)
    _eigenvalues(ax, f"{found.kind} Hessian", found, [1.0] * len(found.eigenvalues))
    _symmetric_scale(ax, _counted([found]), found.index > 0)
    ax.set_ylabel("eigenvalues")
    return ax


@matplotlib.rc_context(STYLE)
def explained(found: EmbeddedSpectrum, ax: Axes) -> Axes:
    """Draw the wide Hessian's eigenvalues on these axes, coloured as by :func:`embedded`."""
    _eigenvalues(ax, "wide", found.wide, found.explained.tolist())
    _symmetric_scale(ax, _counted([found.wide]), found.wide.index > 0)
    ax.set_ylabel("eigenvalues of the Hessian")
    return ax


@matplotlib.rc_context(STYLE)
def embedded(found: EmbeddedSpectrum) -> Figure:
    """Draw the Hessian's eigenvalues before and after an embedding, and which of them it explains.

    Eigenvalues are coloured by the share of their eigenvectors in the image of the embedding: blue ones are
    directions of the narrow network, red ones are new. The axis is linear up to the smallest absolute value
    that is not zero, and logarithmic beyond.

    Args:
        found: the result of :func:`llr.landscape.embedded_spectrum`.

    Returns:
        The figure.

    Example:
        >>> import torch
        >>> from llr import landscape
        >>> from llr.embedding import split
        >>> from llr.landscape import figure
        >>> from llr.models import mlp
        >>> narrow, x = mlp([1, 1, 1]).double(), torch.randn(9, 1).double()
        >>> wide, embedding = split(narrow, 0, 0)
        >>> spectrum = landscape.embedded_spectrum(narrow, wide, embedding, x, x.sin())
        >>> drawn = figure.embedded(spectrum)
    """
    figure = new_figure(6.4, 3.2)
    sizes = (found.narrow.n_params, found.wide.n_params)
    left, right = figure.subplots(
        1, 2, sharey=True, width_ratios=(max(sizes[0], sum(sizes) / 4), sizes[1])
    )
    _eigenvalues(left, "narrow", found.narrow, [1.0] * sizes[0])
    _eigenvalues(right, "wide", found.wide, found.explained.tolist())
    counted = _counted([found.narrow, found.wide])
    _symmetric_scale(left, counted, found.wide.index + found.narrow.index > 0)
    left.set_ylabel("eigenvalues of the Hessian")
    shares = ScalarMappable(cmap=_NEW_TO_OLD)
    shares.set_clim(0, 1)
    bar = figure.colorbar(
        shares, ax=right, label="share in the image", ticks=[0, 0.5, 1], aspect=30
    )
    bar.outline.set_linewidth(0.8)
    return figure


def _eigenvalues(ax: Axes, name: str, spectrum: HessianSpectrum, shares: Sequence[float]) -> None:
    values = spectrum.eigenvalues.flip(0).tolist()
    shown = [v if abs(v) > spectrum.tolerance else 0.0 for v in values]
    fill = [_NEW_TO_OLD(min(max(share, 0.0), 1.0)) for share in reversed(shares)]
    ax.axhline(0, color=GREY, lw=0.8)
    index = range(1, len(shown) + 1)
    size = min(22.0, max(5.0, 1500 / len(shown)))
    ax.scatter(index, shown, s=size, c=fill, linewidths=0, zorder=3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    ax.set_xlabel("index $i$")
    zero = "" if spectrum.nullity is None else f", {spectrum.nullity} zero"
    ax.set_title(f"{name}, $P = {spectrum.n_params}$\n{spectrum.index} negative{zero}", loc="left")


def _counted(spectra: Sequence[HessianSpectrum]) -> list[float]:
    """The absolute values of the eigenvalues that do not count as zero; [1.0] if there are none."""
    sizes = [
        abs(v)
        for spectrum in spectra
        for v in spectrum.eigenvalues.tolist()
        if abs(v) > spectrum.tolerance
    ]
    return sizes or [1.0]


def _symmetric_scale(ax: Axes, sizes: Sequence[float], negative: bool) -> None:
    """Scale the axis in powers of ten on both sides of zero, and label a few of them."""
    low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
    ax.set_yscale("symlog", linthresh=10.0**low)
    step = max(1, math.ceil((high - low) / _DECADES))
    powers = [10.0**e for e in range(high, low - 1, -step)]
    ticks = [*(-p for p in powers if negative), 0.0, *reversed(powers)]
    ax.yaxis.set_major_locator(FixedLocator(sorted(ticks)))
    ax.yaxis.set_minor_locator(NullLocator())
