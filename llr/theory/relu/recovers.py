"""Whether the minimum-norm network is the planted one, in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from llr.inputs.accept import a_module, as_given, needed, takes
from llr.inputs.roles import a_flag
from llr.results import Record
from llr.theory.relu.arguments import OnHyperplane, network_of, samples_of
from llr.theory.relu.cells import most_cells
from llr.theory.relu.clarabel_program import need_clarabel
from llr.theory.relu.closed_forms import exact_rank, has_all_ones_cell
from llr.theory.relu.margins import Margin, exact_margin, gated_margin, searched_margin
from llr.theory.relu.patterns import Patterns, checked
from llr.theory.relu.patterns import patterns as all_patterns
from llr.theory.relu.planted import Planted, plant

AMBIGUOUS = 1e-6
"""Margins that are no farther from 1 decide nothing: solvers are not that precise."""
_MOST_CELLS = 200_000  # that are enumerated without being asked for

Status = Literal["recovered", "not recovered", "ambiguous", "undecided"]


@dataclass(frozen=True, repr=False)
class Recovery(Record):
    """Whether a planted network is the unique minimum-norm interpolant of its values, in floating point.

    Attributes:
        status: "recovered", "not recovered", "ambiguous" if the margin is within the tolerance of 1 and no
            theorem decides, "undecided" if the network is in no open cell, or a search found nothing and
            proves nothing.
        margin: t*, below 1 if and only if it is recovered, except at 1; infinite if there is no dual
            certificate, NaN if it was not computed.
        reason: what decided, and, where that is a search and no enumeration, that it is evidence.
        tolerance: how far from 1 a margin has to be to decide.
        accuracy: how far apart the bounds of the margin are that the solver left.
        complete: whether the status rests on all cells or on a theorem, not on a search.
    """

    status: Status
    margin: float
    reason: str
    tolerance: float
    accuracy: float
    complete: bool

    def __bool__(self) -> bool:
        return self.status == "recovered"

    def __str__(self) -> str:
        """The status, the margin and the reason."""
        return f"{self.status} (margin {self.margin:.9g}): {self.reason}"


@takes(x=needed, target=a_module, cones=a_flag, patterns=as_given)
def recovers(
    x: Tensor, target: nn.Module, *, cones: bool = True, patterns: Patterns | None = None
) -> Recovery:
    """Whether the minimum-norm network through a planted network's values is the planted network.

    Args:
        x: samples (n, d).
        target: the planted network, as for :func:`isometry`.
        cones: True for the minimum-norm network itself (needs clarabel), False for the gated relaxation,
            which recovers less.
        patterns: of x; default: all, up to 200,000 cells. With more, or with incomplete patterns, cells are
            searched and the result says that it is evidence.

    Raises:
        ValueError: what :func:`isometry` refuses, except samples on a neuron's hyperplane, which are
            "undecided".
        TypeError: no two-layer network.
        ImportError: cones without clarabel.

    Example:
        >>> import torch
        >>> import llr
        >>> from llr.models import SkipTwoLayer
        >>> x = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> llr.relu.recovers(x, SkipTwoLayer.of(torch.tensor([1.0, -2.0])), cones=False).status
        'recovered'
    """
    samples = samples_of(x)
    network = network_of(target, samples)
    try:
        planted = plant(network, samples)
    except OnHyperplane as error:
        return Recovery("undecided", math.nan, str(error), AMBIGUOUS, math.nan, True)
    given = None if patterns is None else checked(patterns, samples)
    if cones:
        need_clarabel()
    never = _never(planted, cones)
    if never is not None and (planted.same_cell or planted.unseen is not None):
        return Recovery("not recovered", math.inf, never, AMBIGUOUS, 0.0, True)
    rows = samples[samples.any(axis=1)]
    if given is None and most_cells(len(rows), exact_rank(rows)) <= _MOST_CELLS:
        given = all_patterns(x)
    found, complete = _margin(planted, given, cones)
    if found is None:
        why = never or "no lam has A_S' lam = b_S, which a dual optimum must"
        return Recovery("not recovered", math.inf, why, AMBIGUOUS, 0.0, True)
    accuracy = found.upper - found.lower
    if never is not None:
        return Recovery("not recovered", found.upper, never, AMBIGUOUS, accuracy, True)
    return _decided(planted, found, complete)


def _decided(planted: Planted, found: Margin, complete: bool) -> Recovery:
    accuracy = found.upper - found.lower
    network = planted.network
    if network.kind == "normalized" and len(network.a) == 1:
        why = "the active samples of the one normalized neuron have full rank (Theorem 8)"
        return Recovery("recovered", found.upper, why, AMBIGUOUS, accuracy, True)
    if found.lower > 1 + AMBIGUOUS:
        why = "the margin is above 1: there is a cheaper network"
        return Recovery("not recovered", found.lower, why, AMBIGUOUS, accuracy, True)
    if found.upper >= 1 - AMBIGUOUS:
        why = f"the margin is within {AMBIGUOUS:g} of 1, or its bounds are on both sides"
        return Recovery("ambiguous", found.upper, why, AMBIGUOUS, accuracy, complete)
    if complete:
        why = "the margin is below 1 over all cells"
    else:
        why = "no violated gate found: the margin is below 1 over the cells that a search found (evidence)"
    return Recovery("recovered", found.upper, why, AMBIGUOUS, accuracy, complete)


def _margin(planted: Planted, given: Patterns | None, cones: bool) -> tuple[Margin | None, bool]:
    """The margin, and whether it is over all cells."""
    complete = given is not None and given.complete
    if cones:
        masks = given.mask.numpy() if given is not None and given.complete else None
        exact = exact_margin(planted, masks)
        return (None, True) if exact is None else exact
    if given is None:
        return searched_margin(planted)
    rest, _ = planted.others(given.mask)
    return gated_margin(planted, planted.groups(rest)), complete


def _never(planted: Planted, cones: bool) -> str | None:
    """What proves that the planted network is not the unique solution, whatever the margin; or None."""
    network, x = planted.network, planted.x
    if (unseen := planted.unseen) is not None:
        return f"neuron {unseen} is 0 on all {len(x)} samples, which say nothing about it"
    if (pair := planted.same_cell) is not None:
        return f"neurons {pair[0]} and {pair[1]} are in one cell, where a single neuron or none is cheaper"
    if not planted.independent:
        return "the planted features are linearly dependent on these samples"
    if network.kind == "normalized":
        for j, active in enumerate(planted.active):
            if exact_rank(x[active]) < x.shape[1]:
                return (
                    f"the active samples of neuron {j} have rank below d = {x.shape[1]}: it can be "
                    "moved without a change at the samples (Theorem 8)"
                )
    if network.kind == "skip":
        used = x[x.any(axis=1)]
        if planted.with_skip and not cones and has_all_ones_cell(used):
            return "some gate opens for all samples, and copies the skip connection (Theorem 5)"
        if planted.with_skip and network.skip is not None:
            values = used @ network.skip
            if (values >= 0).all() or (values <= 0).all():
                return "the skip connection has values of one sign: a neuron does the same at the same norm"
        if not planted.with_skip and planted.active[:, x.any(axis=1)].all(axis=1).any():
            return "a neuron is active at all samples: the skip connection does the same at the same norm"
    return None
