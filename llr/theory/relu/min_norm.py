"""Minimum-norm interpolation by ReLU networks: the exact program and its gated relaxation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.accept import as_given, needed, takes
from llr.inputs.roles import a_flag, word
from llr.results import Record
from llr.theory.relu.arguments import Kind, samples_of, values_of
from llr.theory.relu.cells import most_cells
from llr.theory.relu.clarabel_program import need_clarabel
from llr.theory.relu.closed_forms import exact_rank
from llr.theory.relu.columns import with_cells_found
from llr.theory.relu.cones import Cells, solve_cones
from llr.theory.relu.gated import solve
from llr.theory.relu.groups import Gates, NormalizedGates
from llr.theory.relu.margins import unreached
from llr.theory.relu.patterns import Patterns, checked
from llr.theory.relu.patterns import patterns as all_patterns
from llr.theory.relu.solution import LEAVES, Solution, network_from

Array = np.ndarray[Any, np.dtype[Any]]
Status = Literal[
    "optimal", "optimal for these patterns", "no violated gate found", "inaccurate", "infeasible"
]

TOLERANCE = 1e-7
"""Of the relative gap and of the residual, above which a solution is "inaccurate"."""
_KINDS = ("plain", "skip", "normalized")
_MOST_CELLS = 20_000  # that are enumerated without being asked for
_PRECISION = 1e-9  # asked of our own solver
_DROPPED = 1e-9  # of the norm: vectors below it are a solver's rounding
_RCOND = 1e-8  # of features, so that coefficients change little


@dataclass(frozen=True, eq=False, repr=False)
class MinNorm(Record):
    """A minimum-norm interpolant.

    Attributes:
        solution: the network as a point of the convex program; None if there is none.
        norm: the objective.
        dual: lam, (n), scaled to be feasible over all cells that were looked at.
        gap: how far the norm may be above the least one, relative to it: the norm minus lam.y.
        residual: how far the values are from y, relative to y.
        status: "optimal" over all cells; "optimal for these patterns", which were given and are not all; "no
            violated gate found" by a search among too many cells to list, which is evidence and no proof;
            "inaccurate", with a gap or residual above 1e-7; "infeasible": no network has these values (of
            these patterns).
    """

    solution: Solution | None
    norm: float
    dual: Tensor
    gap: float
    residual: float
    status: Status

    @property
    def model(self) -> nn.Module | None:
        """The network, in float64; None if there is no solution, or one that no ReLU network has."""
        solution = self.solution
        if solution is None or solution.leaves() > LEAVES:
            return None
        if solution.kind == "normalized" and not len(solution.vectors):
            return None
        return network_from(solution)

    def __str__(self) -> str:
        """The norm, its accuracy, and the status."""
        size = "no solution" if self.solution is None else f"{len(self.solution.vectors)} neurons"
        accuracy = f"gap {self.gap:.1e}, residual {self.residual:.1e}"
        return f"norm {self.norm:.9g} with {size} ({self.status}; {accuracy})"


@takes(x=needed, y=needed, kind=word, cones=a_flag, patterns=as_given)
def min_norm(
    x: Tensor,
    y: Tensor,
    *,
    kind: Literal["plain", "skip", "normalized"] = "plain",
    cones: bool = True,
    patterns: Patterns | None = None,
) -> MinNorm:
    """The network through the values y of least norm, to which training with vanishing weight decay tends.

    ==============  ======================================  ==============================
    kind            network                                 norm
    ==============  ======================================  ==============================
    "plain"         sum a_i (x.w_i)_+                       sum abs(a_i) norm(w_i)
    "skip"          the same + x.w_0                        the same + norm(w_0)
    "normalized"    sum r_i (Xw_i)_+ / norm((Xw_i)_+)       sum abs(r_i)
    ==============  ======================================  ==============================

    Args:
        x: samples (n, d).
        y: values (n) or (n, 1).
        kind: of the network.
        cones: True for networks, by clarabel, with cutting planes beyond some hundreds of cells; False for
            the gated relaxation, by a proximal point and semismooth Newton method of our own.
        patterns: of x; default: all, up to 20,000 cells. With more, cells are searched.

    Returns:
        The network, its norm, and how sure that is.

    Raises:
        ValueError: x or y of another shape or not finite, values that no network has at zero or at equal
            samples, an unknown kind, patterns of other samples or that claim to be complete and are not.
        ImportError: cones without clarabel.

    Example:
        >>> import torch
        >>> import llr
        >>> x = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> w = torch.tensor([1.0, -2.0], dtype=torch.float64)
        >>> found = llr.relu.min_norm(x, x @ w, kind="skip", cones=False)
        >>> found.status, round(found.norm**2, 6), len(found.solution.vectors)
        ('optimal', 5.0, 0)
    """
    samples = samples_of(x)
    values = values_of(y, samples)
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, _KINDS))}")
    if cones:
        need_clarabel()
    given = None if patterns is None else checked(patterns, samples)
    if not values.any():
        return _zero(kind, samples)
    rows = samples[samples.any(axis=1)]
    if given is None and most_cells(len(rows), exact_rank(rows)) <= _MOST_CELLS:
        given = all_patterns(x)
    found = (_exact if cones else _gated)(samples, values, kind, given)
    if found.status == "infeasible" or max(found.gap, found.residual) <= TOLERANCE:
        return found
    return replace(found, status="inaccurate")


def _zero(kind: str, x: Array) -> MinNorm:
    n, d = x.shape
    nothing = torch.zeros(0, d, dtype=torch.float64)
    skip = torch.zeros(d, dtype=torch.float64) if kind == "skip" else None
    none = torch.zeros(0, n, dtype=torch.bool)
    solution = Solution(cast(Kind, kind), torch.from_numpy(x), none, nothing, skip)
    dual = torch.zeros(n, dtype=torch.float64)
    return MinNorm(solution, 0.0, dual, 0.0, 0.0, "optimal")


def _status(given: Patterns | None) -> Status:
    if given is None:
        return "no violated gate found"
    return "optimal" if given.complete else "optimal for these patterns"


def _gated(x: Array, y: Array, kind: Kind, given: Patterns | None) -> MinNorm:
    """The gated program over given patterns, or over those that a search finds."""
    X, Y = torch.from_numpy(x), torch.from_numpy(y)
    skips = int(kind == "skip")

    def over(masks: Tensor) -> tuple[MinNorm, Array]:
        with_skip = torch.cat((masks.new_ones(skips, masks.shape[1]), masks))
        groups = NormalizedGates(X, with_skip) if kind == "normalized" else Gates(X, with_skip)
        if (off := unreached(groups, Y)) is not None:
            residual = float(
                Y.norm() / off.norm()
            )  # lam.y = |y|^2 at the part off y that is not reached
            found = MinNorm(None, math.inf, off, math.inf, residual, "infeasible")
            return found, off.numpy()
        solved = solve(groups, Y, tolerance=_PRECISION)
        used = (solved.u[skips:].norm(dim=1) > _DROPPED * solved.value).nonzero()[:, 0]
        u = solved.u[skips:][used]
        vectors = groups.directions(used, u) if isinstance(groups, NormalizedGates) else u
        skip = solved.u[0] if skips else None
        solution = Solution(kind, X, masks[used], vectors, skip)
        # What a solver's rounding leaves of other groups is dropped, and the rest judged.
        norm, away = solution.norm(), float((solution.values() - Y).norm() / Y.norm())
        gap = (norm - float(solved.lam @ Y)) / norm
        found = MinNorm(solution, norm, solved.lam, gap, away, _status(given))
        return found, solved.lam.numpy()

    if given is not None:
        found, _ = over(given.mask)
        highest = 1.0
    else:
        none = np.zeros((0, len(x)), dtype=bool)
        found, highest = with_cells_found(
            x, kind == "normalized", none, over, np.stack((x.T @ y, -x.T @ y))
        )
    if found.solution is None:
        return found
    dual = found.dual / highest
    gap = (found.norm - float(dual @ Y)) / found.norm
    return replace(found, dual=dual, gap=gap)


def _exact(x: Array, y: Array, kind: Kind, given: Patterns | None) -> MinNorm:
    """The exact program over the cells of given patterns, or over those that a search finds."""
    X, Y = torch.from_numpy(x), torch.from_numpy(y)
    cells = Cells(x, kind, None if given is None else given.mask.numpy())
    start = np.stack((x.T @ y, -x.T @ y))
    found = solve_cones(cells, np.eye(len(y)), y, free=kind == "skip", starts=start)
    lam = torch.from_numpy(found.lam)
    if not found.feasible:
        return MinNorm(None, math.inf, lam, math.inf, math.inf, "infeasible")
    sizes = [
        float(np.linalg.norm(cells.parts(row)[1] @ u))
        for (row, _), u in zip(found.pairs, found.u, strict=True)
    ]
    kept = [k for k, size in enumerate(sizes) if size > _DROPPED * found.value]
    masks = np.array([np.frombuffer(found.pairs[k][0], dtype=np.uint8) > 0 for k in kept])
    vectors = np.array([found.pairs[k][1] * found.u[k] for k in kept])
    skip = None if found.free is None else torch.from_numpy(found.free)
    solution = _completed(
        Solution(
            kind,
            X,
            torch.from_numpy(masks.reshape(len(kept), len(y)).astype(bool)),
            torch.from_numpy(vectors.reshape(len(kept), x.shape[1])),
            skip,
        ),
        Y,
    )
    norm = solution.norm()
    dual = lam / found.highest
    gap = (norm - float(dual @ Y)) / norm
    made = MinNorm(solution, norm, dual, gap, 0.0, _status(given))
    model = made.model
    outputs = solution.values() if model is None else model(X).detach()[:, 0]
    return replace(made, residual=float((outputs - Y).norm() / Y.norm()))


def _completed(solution: Solution, y: Tensor) -> Solution:
    """The same directions with coefficients that interpolate better: a least-norm change of them."""
    products = solution.vectors @ solution.x.T
    sign = torch.where((solution.cells * products).sum(1, keepdim=True) >= 0, 1.0, -1.0)
    columns = (
        sign * (sign * products).relu()
    ).T  # what neurons have, also where v_j is beside its cell
    if solution.skip is not None:
        columns = torch.cat((columns, (solution.x @ solution.skip)[:, None]), 1)
    off = y - columns.sum(1)
    change = (
        1 + torch.linalg.lstsq(columns, off[:, None], driver="gelsd", rcond=_RCOND).solution[:, 0]
    )
    if bool((change < 0).any()):
        return solution
    k = len(solution.vectors)
    skip = None if solution.skip is None else change[k] * solution.skip
    return replace(solution, vectors=change[:k, None] * solution.vectors, skip=skip)
