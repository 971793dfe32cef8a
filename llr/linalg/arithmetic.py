"""Arrays of exact numbers or of balls, with one interface for code that evaluates models exactly."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flint
import numpy as np
from flint import arb, arb_mat, fmpq, fmpq_mat
from torch import Tensor

from llr.linalg.balls import Array, Number
from llr.linalg.deadline import poll

# The number of multiplications in one call, at 64 bits. Between calls the time limit and signals are checked.
_AT_ONCE = 1 << 26
# The number of entries that one entrywise call takes.
_ENTRIES = 1 << 16


def each(function: Callable[[Number], Number], x: Array) -> Array:
    """A function of every entry."""
    poll()
    return np.frompyfunc(function, 1, 1)(x).reshape(x.shape)


@dataclass(frozen=True)
class Arithmetic:
    """Operations on arrays of numbers of one kind."""

    matrix: Callable[[int, int, list[Number]], Any]
    number: Callable[[float], Number]

    def array(self, t: Tensor) -> Array:
        """The entries as exact numbers, in the tensor's shape."""
        values = t.detach().cpu().numpy()
        return np.frompyfunc(self.number, 1, 1)(values).astype(object).reshape(values.shape)

    def zeros(self, *shape: int) -> Array:
        """An array of zeros."""
        return np.full(shape, self.number(0.0), dtype=object)

    def product(self, A: Array, B: Array) -> Array:
        """A B of (m, k) and (k, n), in C, some rows at a time."""
        right = self.matrix(len(B), B.shape[1], B.ravel().tolist())
        at_once = _AT_ONCE / max(1.0, flint.ctx.prec / 64) ** 1.3
        rows = max(1, int(at_once / max(1, B.size)))
        parts = []
        for first in range(0, len(A), rows):
            poll()
            left = A[first : first + rows]
            found = self.matrix(len(left), A.shape[1], left.ravel().tolist()) * right
            parts.append(np.array(found.entries(), dtype=object).reshape(len(left), B.shape[1]))
        return np.concatenate(parts) if parts else self.zeros(0, B.shape[1])

    def apply(self, function: Callable[[Number], Number], x: Array) -> Array:
        """A function of every entry."""
        return each(function, x)

    def times(self, a: Array, b: Array) -> Array:
        """a b, entry by entry, for arrays with the same number of rows."""
        return _in_pieces(operator.mul, a, b)

    def plus(self, a: Array, b: Array) -> Array:
        """a + b, entry by entry; b may be one row for all."""
        return _in_pieces(operator.add, a, np.broadcast_to(b, a.shape))


def _in_pieces(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """An operation on arrays, some rows at a time: numpy does not handle signals during a call."""
    size = max(math.prod(a.shape[1:]), math.prod(b.shape[1:]), 1)
    rows = max(1, _ENTRIES // size)
    parts = []
    for first in range(0, len(a), rows):
        poll()
        parts.append(function(a[first : first + rows], b[first : first + rows]))
    return np.concatenate(parts) if parts else function(a, b)


BALLS = Arithmetic(arb_mat, lambda v: arb(float(v)))
RATIONALS = Arithmetic(fmpq_mat, lambda v: fmpq(*float(v).as_integer_ratio()))
