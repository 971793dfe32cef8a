"""Cells of the arrangement of hyperplanes x_i.u = 0: a point in each, found in floating point.

In general position every cell has extreme rays, on each of which d - 1 samples vanish, and each ray bounds
the 2^(d-1) cells with any signs there. The sum of a cell's rays is a point in it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_CHUNK = 1 << 21  # candidates at a time
_MOST_CANDIDATES = 1 << 27
_SEED = 0x3A7C_51D9  # no seed that samples are drawn with: they must be independent
_TINY = (
    2.0**-1000
)  # covers products that underflow, in units in which the largest factors are about 1


def most_cells(n: int, d: int) -> int:
    """The largest number of cells of n hyperplanes through the origin of R^d.

    They have as many in general position.
    """
    return 2 * sum(math.comb(n - 1, k) for k in range(min(d, n))) if n else 1


def in_units(rows: Array) -> Array:
    """Each row times the power of two that brings its largest entry to between 1/2 and 1."""
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    return np.ldexp(rows, -np.frexp(largest)[1])


def signs(x: Array, points: Array) -> Array:
    """The signs of x_i.u in exact arithmetic, (p, n), int8; 0 where rounding leaves them open.

    Args:
        x: (n, d).
        points: (p, d), the u.
    """
    x, points = in_units(x), in_units(points)
    values = points @ x.T
    bound = (x.shape[1] + 2) * 2.0**-53 * (np.abs(points) @ np.abs(x).T) + _TINY
    return np.where(np.abs(values) > bound, np.sign(values), 0).astype(np.int8)


def distinct(found: Array) -> Array:
    """The indices of the first of equal rows of a boolean matrix, in the order of the rows as bits."""
    packed = np.ascontiguousarray(np.packbits(found, axis=1))
    if not packed.shape[1]:
        return np.arange(min(1, len(found)))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return np.unique(keys, return_index=True)[1]


def by_rays(x: Array) -> Array | None:
    """A point in every cell, for rows in general position.

    Nothing is promised: that these are all cells shows when as many different ones are verified as there can
    be.

    Returns:
        (p, d), or None if there are too many candidates or the rows are not in general position.
    """
    n, d = x.shape
    x = in_units(x)
    if n <= d:  # any signs
        if n > 26 or np.linalg.matrix_rank(x) < n:
            return None
        choices = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        return choices @ np.linalg.pinv(x).T
    if math.comb(n, d - 1) << (d - 1) > _MOST_CANDIDATES:
        return None
    generator = np.random.default_rng(_SEED)
    # A code for each sign vector. Codes that coincide lose a cell, which the count then shows.
    weights = generator.integers(0, 2**63, n, dtype=np.uint64)
    if n < 64:
        weights = np.left_shift(np.uint64(1), np.arange(n, dtype=np.uint64))
    choices = np.array(list(itertools.product((0, 1), repeat=d - 1)), dtype=np.uint64)
    subsets = itertools.combinations(range(n), d - 1)
    codes, sums = np.empty(0, np.uint64), np.empty((0, d))
    while batch := list(itertools.islice(subsets, max(1, _CHUNK >> (d - 1)))):
        chosen = np.array(batch, dtype=np.int64).reshape(len(batch), d - 1)
        rays = _common_zeros(x, chosen, generator)
        if rays is None:
            return None
        positive = rays @ x.T > 0
        np.put_along_axis(positive, chosen, False, axis=1)
        base = positive.astype(np.uint64) @ weights
        near = (base[:, None] + weights[chosen] @ choices.T).ravel()
        codes, sums = _collected(
            np.concatenate((codes, near)),
            np.concatenate((sums, np.repeat(rays, len(choices), axis=0))),
        )
    # A ray's opposite bounds the opposite cells.
    opposite = weights.sum(dtype=np.uint64) - codes
    _, sums = _collected(np.concatenate((codes, opposite)), np.concatenate((sums, -sums)))
    return sums


def _collected(codes: Array, points: Array) -> tuple[Array, Array]:
    """The different codes, and the sums of the points that belong to each."""
    different, of = np.unique(codes, return_inverse=True)
    sums = [np.bincount(of, weights=column, minlength=len(different)) for column in points.T]
    return different, np.stack(sums, axis=1)


def _common_zeros(x: Array, chosen: Array, generator: np.random.Generator) -> Array | None:
    """A unit vector u for each choice of d - 1 rows, with x_i.u = 0 for these; None if one is not unique."""
    d = x.shape[1]
    systems = np.empty((len(chosen), d, d))
    systems[:, :-1] = x[chosen]
    systems[:, -1] = generator.standard_normal(d)
    right = np.zeros((len(chosen), d, 1))
    right[:, -1] = 1
    try:
        found = np.linalg.solve(systems, right)[..., 0]
    except np.linalg.LinAlgError:  # dependent rows
        return None
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return found / norms if np.isfinite(norms).all() else None
