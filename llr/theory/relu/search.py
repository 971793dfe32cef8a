"""A search for gates at which a dual variable is largest: evidence where there are too many cells to look at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Heights = Callable[[Array], tuple[Array, Array]]
"""From unit vectors u (p, d) to values (p) and directions in which to go on (p, d)."""

_ROUNDS = 40
_STEPS = (np.inf, 2.0, 0.5, 0.1, 0.02)  # in units of u; infinity is the direction itself
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
        found = [np.linalg.lstsq(x[a], lam[a], rcond=None)[0] if a.any() else v
                 for a, v in zip(active, pulled, strict=True)]  # fmt: skip
        directions = np.array(found)
        squares = (directions * pulled).sum(axis=1)  # lam' A A^+ lam
        return np.sqrt(np.maximum(squares, 0)), directions

    return heights


def climb(heights: Heights, starts: Array) -> tuple[Array, Array]:
    """From each start to where no step goes higher.

    Returns:
        The unit vectors (p, d) and their values (p).
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
    return u, values


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
