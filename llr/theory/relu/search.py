"""A search for gates at which a dual variable is largest, where there are too many cells to look at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Heights = Callable[[Array], tuple[Array, Array]]
"""From unit vectors u (p, d) to values (p) and directions in which to go on (p, d)."""

_ROUNDS = 40
_STEPS = (np.inf, 2.0, 0.5, 0.1, 0.02)  # in units of u; infinity is the direction itself
_CROSSED, _CROSSINGS, _ACROSS = (
    200,
    20,
    1.001,
)  # vectors, how often, and how far beyond the hyperplane
_REGULAR = 1e-13  # relative
_GAIN = 1e-10  # relative, less of which does not count


def neurons(x: Array, lam: Array, normalized: bool) -> Heights:
    """lam.(Xu)_+, for normalized neurons over norm((Xu)_+): what must be at most 1 in the exact program."""

    def heights(u: Array) -> tuple[Array, Array]:
        outputs = np.maximum(u @ x.T, 0)
        values = outputs @ lam
        if not normalized:
            return values, ((outputs > 0) * lam) @ x
        sizes = np.maximum(np.linalg.norm(outputs, axis=1), np.finfo(float).tiny)
        values = values / sizes
        along = (outputs > 0) * lam - (values / sizes)[:, None] * outputs
        return values, along @ x

    return heights


def gates(x: Array, lam: Array, normalized: bool) -> Heights:
    """norm(A_j' lam) in the cell j of u: what must be at most 1 in the gated program."""

    def heights(u: Array) -> tuple[Array, Array]:
        active = (u @ x.T) > 0
        pulled = (active * lam) @ x
        if not normalized:
            return np.linalg.norm(pulled, axis=1), pulled
        # lam' A A^+ lam = z' M^-1 z with z = X' D lam and M = X' D X, made regular.
        M = np.einsum("pn,nd,ne->pde", active, x, x, optimize=True)
        M += _REGULAR * np.trace(M, axis1=1, axis2=2)[:, None, None] * np.eye(x.shape[1])
        M += np.finfo(float).tiny * np.eye(x.shape[1])
        directions = np.linalg.solve(M, pulled[..., None])[..., 0]
        return np.sqrt(np.maximum((directions * pulled).sum(axis=1), 0)), directions

    return heights


def climb(heights: Heights, x: Array, starts: Array) -> tuple[Array, Array]:
    """From each start to where no step goes higher, and from the highest of these across hyperplanes.

    Returns:
        Unit vectors (p, d) and their values (p).
    """
    u = _unit(starts)
    values, along = heights(u)
    for _ in range(_ROUNDS):
        base, along = u, _unit(along)
        improved = False
        for step in _STEPS:
            tried = _unit(along if np.isinf(step) else base + step * along)
            there, _ = heights(tried)
            better = there > values + _GAIN * np.abs(values)
            u = np.where(better[:, None], tried, u)
            values = np.where(better, there, values)
            improved |= bool(better.any())
        if not improved:
            break
        _, along = heights(u)
    return _crossed(heights, x, u, values)


def _crossed(heights: Heights, x: Array, u: Array, values: Array) -> tuple[Array, Array]:
    """The vectors, moved across the hyperplane of one sample after the other while that helps."""
    squares = (x * x).sum(axis=1)
    rows, squares = x[squares > 0], squares[squares > 0]
    best = np.argsort(-values)[:_CROSSED]
    for _ in range(_CROSSINGS):
        here = u[best]
        steps = _ACROSS * (here @ rows.T) / squares
        moved = _unit((here[:, None, :] - steps[:, :, None] * rows).reshape(-1, x.shape[1]))
        there = heights(moved)[0].reshape(len(best), len(rows))
        at = there.argmax(axis=1)
        highest = there[np.arange(len(best)), at]
        better = highest > values[best] + _GAIN * np.abs(values[best])
        if not better.any():
            break
        moved = moved.reshape(len(best), len(rows), -1)[np.arange(len(best)), at]
        u[best] = np.where(better[:, None], moved, here)
        values[best] = np.where(better, highest, values[best])
        best = best[better]
    return u, values


def starts(x: Array, count: int, generator: np.random.Generator) -> Array:
    """Vectors in random cells: as many drawn at random, and beside rays on which d - 1 random samples vanish.

    The latter reach small cells as often as large ones.
    """
    n, d = x.shape
    drawn = generator.standard_normal((count, d))
    if n < d or d == 1:
        return drawn
    chosen = generator.permuted(np.tile(np.arange(n), (count, 1)), axis=1)[:, : d - 1]
    systems = np.concatenate((x[chosen], generator.standard_normal((count, 1, d))), axis=1)
    right = np.zeros((count, d, 2))
    right[:, -1, 0] = generator.choice((-1.0, 1.0), count)
    right[:, :-1, 1] = generator.choice((-1.0, 1.0), (count, d - 1))
    regular = np.linalg.matrix_rank(systems) == d
    rays, beside = np.moveaxis(np.linalg.solve(systems[regular], right[regular]), 2, 0)
    across, along = np.abs(rays @ x.T), np.abs(beside @ x.T)
    np.put_along_axis(across, chosen[regular], np.inf, axis=1)
    room = (across / np.maximum(along, np.finfo(float).tiny)).min(axis=1, keepdims=True)
    return np.concatenate((drawn, _unit(rays + np.minimum(room / 2, 1e6) * beside)))


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
