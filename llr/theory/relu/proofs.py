"""Proofs in balls that a planted network is the unique minimum-norm interpolant, or that it is not.

Samples and parameters are the binary numbers that they are. Floating point only suggests: the dual variable,
and what would be cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_mat

from llr.linalg.balls import precision
from llr.linalg.deadline import poll
from llr.linalg.integers import as_integers
from llr.theory.relu.arguments import Network
from llr.theory.relu.cells import signs
from llr.theory.relu.nonnegative import nonnegative_least_squares

Array = np.ndarray[Any, np.dtype[Any]]
BITS = 192
_SURELY = 1 - 1e-12  # an upper bound in floating point below it is one
SPARE = 2  # cells, and random neurons, per sample, so that coefficients can be completed
_MOVED = 1e-2  # for more than one vector in a cell


@dataclass(frozen=True)
class Claim:
    """What is to be proved, exactly.

    Attributes:
        network: plain or with a skip connection.
        x: (n, d).
        active: patterns of the neurons, (m, n).
        others: patterns of all cells that are not those of a neuron, (q, n); with a row of ones for a skip
            connection that is not planted, which has no cone.
        free: whether that row is there, as the first.
        cones: which program.
    """

    network: Network
    x: Array
    active: Array
    others: Array
    free: bool
    cones: bool


def _balls(a: Array) -> arb_mat:
    rows = np.atleast_2d(a)
    return arb_mat(rows.shape[0], rows.shape[1], [arb(float(v)) for v in rows.ravel()])


def _planted(claim: Claim) -> tuple[Array, arb_mat]:
    """A_S, which is exact in floating point, and b_S in balls."""
    network, x = claim.network, claim.x
    blocks, directions = [], []
    if network.skip is not None and network.skip.any():
        blocks.append(x)
        directions.append((network.skip, 1))
    for w, a, active in zip(network.w, network.a, claim.active, strict=True):
        blocks.append(active[:, None] * x)
        directions.append((w, 1 if a > 0 else -1))
    entries: list[arb] = []
    for w, sign in directions:
        values = [arb(float(v)) for v in w]
        norm = sum((v * v for v in values), arb(0)).sqrt()
        entries += [sign * v / norm for v in values]
    return np.concatenate(blocks, axis=1), arb_mat(len(entries), 1, entries)


def certificate(claim: Claim, lam: Array) -> arb_mat | None:
    """Balls with a dual variable for which A_S' lam = b_S exactly, beside a given one.

    Call it within a precision.

    Returns:
        (n, 1); None if A_S is not proved to have full column rank.
    """
    exact, b = _planted(claim)
    A, near = _balls(exact), _balls(lam).transpose()
    try:
        moved: arb_mat = near + A * (A.transpose() * A).solve(b - A.transpose() * near)
    except ZeroDivisionError:  # the matrix may be singular
        return None
    return moved


def _norm_below_one(vector: arb_mat) -> bool:
    return bool(sum((v * v for v in vector.entries()), arb(0)) < 1)


def unproved(
    claim: Claim, lam: Array, multipliers: dict[bytes, Array], *, search: bool
) -> list[int] | None:
    """The groups in which a dual variable is not proved to be below 1; none of them proves uniqueness.

    Args:
        claim: what is to be proved.
        lam: near which the dual variable is, (n).
        multipliers: of the half-spaces of cells, (2, n) for the signs 1 and -1, by pattern. Any that are at
            least 0 bound the largest +-lam.(D X u) over the unit vectors of the cell.
        search: whether multipliers are computed, and written there; otherwise they are what is given.

    Returns:
        Indices into ``claim.others``; None if there is no such dual variable, as far as is proved.
    """
    with precision(BITS):
        balls = certificate(claim, lam)
        if balls is None:
            return None
        entries = balls.entries()
        middle = np.array([float(v.mid()) for v in entries])
        # How far the true entries may be from these numbers.
        radius = np.array(
            [
                float((v - arb(m)).abs_upper()) * (1 + 1e-9)
                for v, m in zip(entries, middle, strict=True)
            ]
        )
        n, x = len(middle), claim.x
        values = np.abs((claim.others * middle) @ x)
        slack = claim.others @ (np.abs(x) * (radius + (n + 4) * 2.0**-53 * np.abs(middle))[:, None])
        upper = np.linalg.norm(values + slack, axis=1) * (1 + (x.shape[1] + 4) * 2.0**-52)
        return [
            int(j)
            for j in np.flatnonzero(~(upper < _SURELY))
            if not _below_one(claim, int(j), entries, middle, multipliers, search)
        ]


def _below_one(
    claim: Claim,
    j: int,
    entries: list[arb],
    lam: Array,
    multipliers: dict[bytes, Array],
    search: bool,
) -> bool:
    """Whether group j is below 1, in balls: by its norm, or within its cone with both signs."""
    poll()
    x, mask = claim.x, claim.others[j]
    rows = np.flatnonzero(mask)
    z = [sum((entries[i] * arb(float(x[i, t])) for i in rows), arb(0)) for t in range(x.shape[1])]
    if _norm_below_one(arb_mat(len(z), 1, z)):
        return True
    if not claim.cones or (claim.free and j == 0):
        return False
    C = np.where(mask, 1.0, -1.0)[:, None] * x
    near = (mask * lam) @ x
    if search:
        found = [nonnegative_least_squares(C.T, -sign * near)[0] for sign in (1, -1)]
        multipliers[mask.tobytes()] = np.array(found)
    given = multipliers.get(mask.tobytes())
    if given is None or not (given >= 0).all():
        return False
    for sign, mu in zip((1, -1), given, strict=True):
        used = np.flatnonzero(mu)
        moved = [
            sign * z[t] + sum((arb(float(mu[i])) * arb(float(C[i, t])) for i in used), arb(0))
            for t in range(x.shape[1])
        ]
        if not _norm_below_one(arb_mat(len(moved), 1, moved)):
            return False
    return True


@dataclass(frozen=True)
class Features:
    """Columns D X u of neurons that could be in the network, with their cost.

    Attributes:
        masks: (k, n).
        vectors: (k, d).
        coefficients: (k), in floating point.
    """

    masks: Array
    vectors: Array
    coefficients: Array


def cheaper(claim: Claim, features: Features, v: Array) -> bool:
    """Whether a direction makes the network cheaper: proved in balls.

    The planted weights move along -v, the features come in, and the values stay: sum_k c_k D_k X u_k = A_S
    v. It is cheaper if b_S.v > sum_k abs(c_k) norm(u_k). Coefficients are completed to exact equality by a
    least-norm change.

    Args:
        claim: what is to be refuted.
        features: with a coefficient of 0 for spare ones. In the exact program masks follow from the vectors.
        v: near which the direction is, (the number of columns of A_S).
    """
    x = claim.x
    with precision(BITS):
        exact, b = _planted(claim)
        # Of samples that are positive multiples of each other, one; what holds there holds at the others.
        lines = {
            tuple(as_integers(row.tolist())): i
            for i, row in reversed(list(enumerate(x)))
            if row.any()
        }
        rows = sorted(lines.values())
        X, A, masks = _balls(x[rows]), _balls(exact[rows]), features.masks[:, rows]
        outputs = X * _balls(features.vectors).transpose()
        n, k = outputs.nrows(), outputs.ncols()
        open_ = (
            np.asarray(features.masks.all(axis=1)) & claim.free
        )  # the skip connection has no cone
        width = A.ncols()
        M = arb_mat(n, k + width)
        for i in range(n):
            for j in range(k):
                if open_[j] or (outputs[i, j] > 0 if claim.cones else masks[j, i]):
                    M[i, j] = outputs[i, j]
                elif claim.cones and not outputs[i, j] <= 0:
                    return False
            for j in range(width):
                M[i, k + j] = -A[i, j]
        near = _balls(np.concatenate((features.coefficients, v))).transpose()
        try:
            c = near - M.transpose() * (M * M.transpose()).solve(M * near)
        except ZeroDivisionError:
            return False
        gain = sum((b[t, 0] * c[k + t, 0] for t in range(width)), arb(0))
        for j in range(k):
            size = sum((arb(float(u)) ** 2 for u in features.vectors[j]), arb(0)).sqrt()
            gain -= abs(c[j, 0]) * size
        return bool(gain > 0)


def spare(x: Array, points: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """Patterns and unit vectors of neurons whose outputs, with those of the planted ones, span the samples.

    Args:
        x: (n, d).
        points: one in each cell, (p, d); narrow cells are met by no random neuron.
        generator: of random neurons, and of the cells that are taken.
    """
    n, d = x.shape
    some = points[generator.permutation(len(points))[: SPARE * n]]
    moved = some + _MOVED * generator.standard_normal((d, *some.shape))
    u = np.concatenate((generator.standard_normal((SPARE * n, d)), some, *moved))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    found = signs(x, u)
    certain = (found[:, x.any(axis=1)] != 0).all(axis=1)
    return found[certain] > 0, u[certain]
