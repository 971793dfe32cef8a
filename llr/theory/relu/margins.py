"""The margin t*: the least that the largest norm(A_j' lam) off S is, over all lam with A_S' lam = b_S."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llr.theory.relu.columns import with_cells_found
from llr.theory.relu.cones import Cells, solve_cones
from llr.theory.relu.gated import solve
from llr.theory.relu.groups import Gates, Groups, NormalizedGates, Within
from llr.theory.relu.planted import Planted

Array = np.ndarray[Any, np.dtype[Any]]
TOLERANCE = 1e-10
_TAKEN_IN = 1e-7  # relative; smaller vectors are a solver's rounding
_IN_SPAN = 1e-10  # relative, of a vector and the groups' columns


@dataclass(frozen=True)
class Margin:
    """A margin between two bounds, and the lam of the upper one.

    Attributes:
        lower: no lam has a smaller largest norm, up to rounding.
        upper: the largest norm at `lam`.
        lam: (n).
        masks: patterns of the groups that a cheaper network would take in, if the margin is above 1, (k, n).
        vectors: their vectors, (k, d), and in the exact program
        signs: the signs of their outgoing weights, (k). The sum of sign_k D_k X u_k is in the range of A_S.
    """

    lower: float
    upper: float
    lam: Array
    masks: Array | None = None
    vectors: Array | None = None
    signs: Array | None = None


def affine(planted: Planted) -> tuple[Array, float] | None:
    """All lam with A_S' lam = b_S, as scale times B e_1 and combinations of the other columns of B.

    Returns:
        B, (n, m), with columns of norm 1, and the scale; None if there is no such lam.
    """
    particular = planted.particular()
    if particular is None:
        return None
    U, s, _ = np.linalg.svd(planted.A, full_matrices=True)
    rank = int((s > s[0] * max(planted.A.shape) * np.finfo(float).eps).sum())
    scale = float(np.linalg.norm(particular))
    return np.column_stack((particular / scale, U[:, rank:])), scale


def gated_margin(planted: Planted, inner: Gates | NormalizedGates) -> Margin | None:
    """The margin over these groups, which are those off S.

    1 / t* is the least sum of norms of u_j with B' sum_j A_j u_j = e_1 / scale: the gated program again.

    Returns:
        The margin; None if it is infinite, since no lam has A_S' lam = b_S.
    """
    found = affine(planted)
    if found is None:
        return None
    B, scale = torch.from_numpy(found[0]), found[1]
    within = Within(inner, B)
    first = torch.zeros(within.rows, dtype=torch.float64)
    first[0] = 1.0
    free = unreached(within, first)
    if free is not None:  # some lam vanishes on all groups
        return Margin(0.0, _largest(within, free) * scale, (scale * (B @ free)).numpy())
    solution = solve(within, first, tolerance=TOLERANCE)
    lam = solution.lam / float(solution.lam[0])
    lower = scale / solution.value if solution.value > 0 else math.inf
    upper = _largest(within, lam) * scale
    used = solution.u.norm(dim=1).nonzero()[:, 0]
    return Margin(
        min(lower, upper),
        upper,
        (scale * (B @ lam)).numpy(),
        inner.mask[used].numpy() > 0,
        solution.u[used].numpy(),
        np.ones(len(used)),
    )


def searched_margin(planted: Planted) -> tuple[Margin | None, bool]:
    """The gated margin over cells that a search finds, which is not over all: (margin or None, False)."""

    def over(masks: Tensor) -> tuple[Margin | None, Array]:
        rest, _ = planted.others(masks)
        margin = gated_margin(planted, planted.groups(rest))
        return margin, np.zeros(len(planted.x)) if margin is None else margin.lam / margin.upper

    normalized = planted.network.kind == "normalized"
    starts = _directions(planted)
    margin, highest = with_cells_found(planted.x, normalized, planted.active, over, starts)
    if margin is None:
        return None, True
    return replace(margin, upper=margin.upper * highest), False


def _directions(planted: Planted) -> Array:
    """The planted directions, their opposites, and vectors just across one hyperplane from them."""
    network = planted.network
    own = network.w if network.skip is None else np.concatenate((network.w, network.skip[None]))
    return np.concatenate((own, -own, _beside(planted.x, own)))


def exact_margin(planted: Planted, masks: Array | None) -> tuple[Margin, bool] | None:
    """The margin of the exact program, with vectors that stay in their cells.

    Args:
        planted: the planted groups.
        masks: patterns of all cells; None if they are not known.

    Returns:
        The margin, and whether all cells were looked at; otherwise its upper bound is that of the cells
        which a search found. None if it is infinite.

    Raises:
        ImportError: clarabel is not installed.
    """
    found = affine(planted)
    if found is None:
        return None
    B, scale = found
    network = planted.network
    own = frozenset(row.tobytes() for row in planted.active.astype(np.uint8))
    cells = Cells(planted.x, network.kind, masks, own)
    free = network.kind == "skip" and not planted.with_skip
    first = np.zeros(B.shape[1])
    first[0] = 1.0
    solution = solve_cones(cells, B, first, free=free, starts=_directions(planted))
    along = float(B[:, 0] @ solution.lam)
    lam = solution.lam * (scale / along)
    if not solution.feasible:
        return Margin(0.0, solution.highest * scale / along, lam), solution.checked
    lower = scale / solution.value
    upper = max(lower, solution.highest * scale / along)
    masks_ = [np.frombuffer(row, dtype=np.uint8) > 0 for row, _ in solution.pairs]
    vectors, signs = solution.u, [float(sign) for _, sign in solution.pairs]
    if solution.free is not None:
        masks_, vectors, signs = (
            [*masks_, np.ones(len(lam), bool)],
            [*vectors, solution.free],
            [*signs, 1.0],
        )
    used = [k for k, u in enumerate(vectors) if np.linalg.norm(u) > _TAKEN_IN * solution.value]
    return Margin(
        lower,
        upper,
        lam,
        np.array([masks_[k] for k in used]),
        np.array([vectors[k] for k in used]),
        np.array([signs[k] for k in used]),
    ), solution.checked


def _beside(x: Array, w: Array) -> Array:
    """Vectors just across the hyperplane of one sample each."""
    squares = (x * x).sum(axis=1)
    steps = 1.001 * (w @ x.T) / np.where(squares > 0, squares, 1.0)
    moved: Array = w[:, None, :] - steps[:, :, None] * x
    return moved.reshape(-1, x.shape[1])


def unreached(groups: Groups, y: Tensor) -> Tensor | None:
    """If y is not in the span of the groups' columns, a lam with A_j' lam = 0 and lam.y = |y|^2."""
    if not groups.count:
        return y
    everything = torch.arange(groups.count)
    zeros = torch.zeros(groups.count, dtype=y.dtype)
    nothing = torch.zeros(groups.count, groups.width, dtype=y.dtype)
    H = groups.curvature(everything, zeros + 1, zeros, nothing)
    values, vectors = torch.linalg.eigh(H)
    null = vectors[:, values <= values[-1] * len(y) * torch.finfo(y.dtype).eps * 10]
    off = null @ (null.T @ y)
    if float(off.norm()) <= _IN_SPAN * float(y.norm()):
        return None
    lam: Tensor = off * (float(y @ y) / float(off @ y))
    return lam


def _largest(groups: Groups, lam: Tensor) -> float:
    return float(groups.pull(lam).norm(dim=1).max()) if groups.count else 0.0
