"""Cells of an arrangement in any position, in integers: deletion and restriction.

Rows are added one by one. A new row's hyperplane cuts the cells of the earlier rows that it meets, and these
are the cells of the earlier rows restricted to the hyperplane: the same problem in one dimension less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llr.linalg.deadline import poll
from llr.linalg.integers import without_divisor

Array = np.ndarray[Any, np.dtype[Any]]


class TooMany(Exception):
    """There are more cells than were asked for."""


def line(row: Sequence[int]) -> tuple[int, ...]:
    """The same for all rows that are parallel to this one, which is not zero."""
    row = without_divisor(row)
    first = next(x for x in row if x)
    return tuple(row if first > 0 else (-x for x in row))


def all_cells(rows: Sequence[Sequence[int]], d: int, most: int) -> tuple[Array, Array]:
    """All cells of integer rows, none of them zero and no two parallel.

    Args:
        rows: of d integers each.
        d: the dimension.
        most: the largest number of cells that is computed.

    Returns:
        A point in each, (p, d) of Python integers, and its signs (p, n), int8.

    Raises:
        TooMany: there are more.
    """
    points = np.zeros((1, d), dtype=object)
    found = np.zeros((1, 0), dtype=np.int8)
    for i, row in enumerate(rows):
        poll()
        a = np.array(row, dtype=object)
        earlier = np.array([list(r) for r in rows[:i]], dtype=object).reshape(i, d)
        v = _on_hyperplane(earlier, row, d, most)
        beside = v @ earlier.T
        cut = _signs(beside)
        # Points beside v, on either side of the hyperplane and in no other cell of the earlier rows.
        across = [abs(c).bit_length() for c in (earlier @ a).tolist()]
        steps = [_step(p, q, across, row) for p, q in zip(v.tolist(), beside.tolist(), strict=True)]
        ahead = np.array([max(step, 0) for step in steps], dtype=object)[:, None]
        moved = v * 2 ** (ahead - np.array(steps, dtype=object)[:, None])
        move = a * 2**ahead
        whole = {s.tobytes() for s in cut}
        kept = np.array([s.tobytes() not in whole for s in found], dtype=bool)
        points, found = (
            np.concatenate((points[kept], _reduced(moved + move), _reduced(moved - move))),
            np.concatenate(
                (
                    np.column_stack((found[kept], _signs(points[kept] @ a))),
                    np.column_stack((cut, np.ones(len(cut), dtype=np.int8))),
                    np.column_stack((cut, -np.ones(len(cut), dtype=np.int8))),
                )
            ),
        )
        if len(points) > most:
            raise TooMany
    return points, found


def _step(v: list[int], beside: list[int], across: list[int], row: Sequence[int]) -> int:
    """The exponent of a power of two by which row may be added to v without crossing an earlier hyperplane.

    Args:
        v: the point.
        beside: its products with the earlier rows.
        across: the bit lengths of the new row's products with them.
        row: the new row.
    """
    size = max(abs(p).bit_length() for p in v)
    if not size:
        return 0
    steps = [abs(q).bit_length() - c - 1 for q, c in zip(beside, across, strict=True) if c]
    return min([size - max(abs(r).bit_length() for r in row), *steps])


def _on_hyperplane(earlier: Array, row: Sequence[int], d: int, most: int) -> Array:
    """A point of the hyperplane row.u = 0 in each cell of the earlier rows that it meets."""
    pivot = min((k for k in range(d) if row[k]), key=lambda k: abs(row[k]))
    basis = np.zeros((d, d - 1), dtype=object)
    for column, k in enumerate(k for k in range(d) if k != pivot):
        divisor = math.gcd(row[pivot], row[k])
        basis[k, column], basis[pivot, column] = row[pivot] // divisor, -row[k] // divisor
    restricted = dict.fromkeys(line(r) for r in (earlier @ basis).tolist())
    points, _ = all_cells(list(restricted), d - 1, most)
    return _reduced(points @ basis.T)


def _reduced(points: Array) -> Array:
    return np.array([without_divisor(p) for p in points.tolist()], dtype=object).reshape(
        points.shape
    )


def _signs(values: Array) -> Array:
    return np.sign(values).astype(np.int8)
