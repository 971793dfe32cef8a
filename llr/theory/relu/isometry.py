"""Neural isometry conditions, and the margin of the gated program."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, as_given, needed, takes
from llr.results import Record
from llr.theory.relu.arguments import network_of, samples_of
from llr.theory.relu.margins import gated_margin
from llr.theory.relu.patterns import Patterns, checked
from llr.theory.relu.patterns import patterns as all_patterns
from llr.theory.relu.planted import Planted, plant


@dataclass(frozen=True, eq=False, repr=False)
class Isometry(Record):
    """How far a planted network is from satisfying, or from failing, the conditions for its recovery.

    Attributes:
        value: nic, the largest norm(A_j' lam0) over the groups j that are not planted, at the least lam0 with
            A_S' lam0 = b_S; below 1 the planted network is the unique minimizer. Infinite if there is no
            lam0.
        essential: the same without equalities that do no harm: for one plain neuron without the cells that
            contain its own, whose norms are exactly 1; below 1 it proves as much.
        margin: t*, the least that the largest norm can be over all lam with A_S' lam = b_S: below 1 the
            planted network is the unique minimizer of the gated program, above 1 there is a cheaper one.
        margin_lower: what the margin is at least, up to rounding; ``margin`` is the largest norm at ``dual``.
        dual: the lam of the margin, (n); empty if there is none.
        cell: the pattern at which ``value`` is attained, (n), bool; all True for a skip connection.
        complete: whether these are the numbers of all cells. If not, they are lower bounds.
    """

    value: float
    essential: float
    margin: float
    margin_lower: float
    dual: Tensor
    cell: Tensor
    complete: bool

    def __str__(self) -> str:
        """The conditions and the margin."""
        at_least = "" if self.complete else "at least "
        return f"nic {at_least}{self.value:.6g}, essential {self.essential:.6g}, margin {self.margin:.9g}"


@takes(x=needed, target=a_module, patterns=as_given)
def isometry(x: Tensor, target: nn.Module, *, patterns: Patterns | None = None) -> Isometry:
    """The isometry condition of a planted ReLU network on samples, and its margin in the gated program.

    The kind follows from the target: NIC-L for a ``SkipTwoLayer`` without neurons, NIC-1 for a ``TwoLayer``
    of one neuron, NIC-k for more, and those of normalized neurons for a ``NormalizedTwoLayer``.

    Args:
        x: samples (n, d).
        target: ``TwoLayer(activation="relu", bias=False)`` with one output, ``SkipTwoLayer`` or
            ``NormalizedTwoLayer`` of :mod:`llr.models`. Neurons that contribute nothing are left out.
        patterns: of x; default: all of them.

    Returns:
        The condition, the margin, and whether these are of all cells.

    Raises:
        ValueError: what :func:`patterns` refuses; a target with biases, another activation, several outputs,
            a neuron that is 0 on all samples, or a sample on a neuron's hyperplane; patterns that claim to
            be complete and are not.
        TypeError: no two-layer network.

    Example:
        >>> import torch
        >>> import llr
        >>> from llr.models import SkipTwoLayer
        >>> x = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> found = llr.relu.isometry(x, SkipTwoLayer.of(torch.tensor([1.0, -2.0])))
        >>> found.value >= found.margin, found.margin < 1
        (True, True)
    """
    samples = samples_of(x)
    planted = plant(network_of(target, samples), samples)
    given = all_patterns(x) if patterns is None else checked(patterns, samples)
    return of_planted(planted, given)


def of_planted(planted: Planted, given: Patterns) -> Isometry:
    """The conditions of planted groups over these patterns."""
    rest, _ = planted.others(given.mask)
    n = given.mask.shape[1]
    lam0 = planted.particular()
    if lam0 is None:
        nothing = torch.zeros(0, dtype=torch.float64)
        return Isometry(*(math.inf,) * 4, nothing, torch.zeros(n, dtype=torch.bool), given.complete)
    groups = planted.groups(rest)
    value, essential, cell = 0.0, 0.0, torch.zeros(n, dtype=torch.bool)
    if len(rest):
        norms = groups.pull(torch.from_numpy(lam0)).norm(dim=1)
        value = essential = float(norms.max())
        cell = rest[int(norms.argmax())]
        if planted.network.kind == "plain" and len(planted.active) == 1:
            own = torch.from_numpy(planted.active[0])
            harmless = (rest | ~own).all(1)
            essential = float(norms[~harmless].max()) if not bool(harmless.all()) else 0.0
    margin = gated_margin(planted, groups)
    assert margin is not None  # lam0 is there
    return Isometry(
        value,
        essential,
        margin.upper,
        margin.lower,
        torch.from_numpy(margin.lam),
        cell,
        given.complete,
    )
