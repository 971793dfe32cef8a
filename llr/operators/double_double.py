"""Double-double arithmetic on tensors: the native operators' reference, used where they are missing.

A number is an unevaluated sum high + low of two float64 numbers, about 106 bits together. A Gram matrix
K = J J' squares the singular values of J, so that float64 keeps half of their digits; in double-double it
keeps all of them, and the singular values of its Cholesky factor are as good as those of J in float64.

Every function is a sequence of ordinary torch operations, on any device. torch has no fused multiply-add, so
factors are split in halves whose products are exact, for factors below 2^996 and products above 2^-968. Do
not compile these functions: a compiler may contract a product and a sum into one operation, and the errors
computed here are then not the errors that were made.

Source: T. J. Dekker, "A floating-point technique for extending the available precision", Numer. Math. 18
(1971).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_SPLITTER = 134217729.0  # 2^27 + 1


class DoubleDouble(NamedTuple):
    """high + low, with high the sum rounded to float64."""

    high: Tensor
    low: Tensor

    def plus(self, other: DoubleDouble) -> DoubleDouble:
        """The sum, to a few units of 2^-106."""
        high, low = two_sum(self.high, other.high), two_sum(self.low, other.low)
        first = _normalised(high.high, high.low + low.high)
        return _normalised(first.high, first.low + low.low)

    def times(self, other: DoubleDouble) -> DoubleDouble:
        """The product, to a few units of 2^-106."""
        p = two_product(self.high, other.high)
        return _normalised(p.high, p.low + (self.high * other.low + self.low * other.high))

    def negative(self) -> DoubleDouble:
        """The number with the other sign."""
        return DoubleDouble(-self.high, -self.low)


def two_sum(a: Tensor, b: Tensor) -> DoubleDouble:
    """a + b exactly, as the rounded sum and its rounding error."""
    s = a + b
    bb = s - a
    return DoubleDouble(s, (a - (s - bb)) + (b - bb))


def two_product(a: Tensor, b: Tensor) -> DoubleDouble:
    """``a b`` exactly, as the rounded product and its rounding error."""
    p = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return DoubleDouble(p, ((ah * bh - p) + ah * bl + al * bh) + al * bl)


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    c = _SPLITTER * a
    high = c - (c - a)
    return high, a - high


def _normalised(a: Tensor, b: Tensor) -> DoubleDouble:
    s = a + b
    return DoubleDouble(s, b - (s - a))


def _cross(left: Tensor, right: Tensor) -> DoubleDouble:
    """Left (N, k) times right (N, k) transposed."""
    zero = left.new_zeros(len(left), len(right))
    total = DoubleDouble(zero, zero)
    for a, b in zip(left.unbind(1), right.unbind(1), strict=True):
        total = total.plus(two_product(a[:, None], b[None, :]))
    return total


def gram_add_(K: Tensor, delta: Tensor, a: Tensor, bias: bool = False, weight: bool = True) -> None:
    """Add to K, in place, the Gram matrix of the derivatives with respect to one layer.

    Row i of the Jacobian has the derivatives ``sum_t delta[i, t] a[i, t]'`` with respect to the layer's
    weight and ``sum_t delta[i, t]`` with respect to its bias. Their inner products follow without forming
    the rows:

    K[i, k] += sum over t, s of (delta[i, t] . delta[k, s]) (weight (a[i, t] . a[k, s]) + bias).

    Args:
        K: (N, N) float64, or (2, N, N) with high and low parts for double-double arithmetic.
        delta: (N, T, h) float64, derivatives of the network's outputs with respect to the layer's output.
        a: (N, T, w) float64, the layer's input.
        bias: whether to include the derivatives with respect to the bias.
        weight: whether to include those with respect to the weight.

    In double-double the error of an entry is at most about (h + w + T^2) 2^-104 of the sum of the absolute
    values of all terms.

    Example:
        >>> import torch
        >>> from llr.operators import double_double
        >>> K = torch.zeros(2, 1, 1, dtype=torch.float64)
        >>> row = torch.tensor([[[1.0, 2.0**-60]]], dtype=torch.float64)
        >>> double_double.gram_add_(K, torch.ones(1, 1, 1, dtype=torch.float64), row)
        >>> K[1].item() == 2.0**-120  # the low part
        True
    """
    positions = range(delta.shape[1])
    if K.dim() == 2:
        for t in positions:
            for s in positions:
                factor = a[:, t] @ a[:, s].mT + float(bias) if weight else float(bias)
                K += delta[:, t] @ delta[:, s].mT * factor
        return
    total = DoubleDouble(K[0].clone(), K[1].clone())
    one, zero = torch.ones_like(K[0]), torch.zeros_like(K[0])
    for t in positions:
        for s in positions:
            inner = DoubleDouble(float(bias) * one, zero)
            if weight:
                inner = inner.plus(_cross(a[:, t], a[:, s]))
            total = total.plus(_cross(delta[:, t], delta[:, s]).times(inner))
    K[0], K[1] = total


def gram_factor(K: Tensor) -> Tensor:
    """L with L L' = K: Cholesky's factorisation with diagonal pivoting, in double-double.

    The factorisation stops when the pivots have fallen to the level of rounding errors: N 2^-104 of the
    largest diagonal entry. An entry of the remaining matrix is the result of at most N sums, each rounded to
    a few units of 2^-106 of the diagonal. The neglected remainder has a trace of at most N times this level.
    A singular value moves by at most the square root of the trace, N 2^-52 of the largest singular value. An
    SVD of J in float64 has an uncertainty of this size too.

    Args:
        K: (2, N, N) or (2, B, N, N) float64, high and low parts of positive semidefinite matrices.

    Returns:
        (N, r) or (B, N, r) float64, rounded at the end. Rows are in the order of K; r is the number of
        pivots, in a batch the largest number, with zeros after fewer pivots. The singular values of L are the
        square roots of K's eigenvalues.

    Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. (2002), section 10.3.

    Example:
        >>> import torch
        >>> from llr.operators import double_double
        >>> K = torch.stack((torch.tensor([[4.0, 2.0], [2.0, 1.0]]).double(), torch.zeros(2, 2).double()))
        >>> double_double.gram_factor(K)  # rank 1
        tensor([[2.],
                [1.]], dtype=torch.float64)
    """
    if not bool(torch.isfinite(K).all()):
        raise RuntimeError("gram_factor: K has NaN or infinite entries; expected finite ones")
    if K.dim() == 4:
        factors = [gram_factor(K[:, b]) for b in range(K.shape[1])]
        most = max((L.shape[1] for L in factors), default=0)
        padded = [torch.nn.functional.pad(L, (0, most - L.shape[1])) for L in factors]
        return torch.stack(padded) if padded else K.new_zeros(0, K.shape[-1], 0)
    size = K.shape[-1]
    rest = DoubleDouble(K[0].clone(), K[1].clone())
    taken = torch.zeros(size, dtype=torch.bool, device=K.device)
    least = float(K[0].diagonal().max()) * size * 2.0**-104 if size else 0.0
    columns: list[Tensor] = []
    for _ in range(size):
        diagonal = rest.high.diagonal().masked_fill(taken, -math.inf)
        pivot = int(diagonal.argmax())
        if not float(diagonal[pivot]) > max(least, 0.0):
            break
        value = DoubleDouble(rest.high[pivot, pivot], rest.low[pivot, pivot])
        scale = _inverse_root(value)
        column = DoubleDouble(rest.high[:, pivot], rest.low[:, pivot]).times(scale)
        column = DoubleDouble(*(part.masked_fill(taken, 0.0) for part in column))
        outer = DoubleDouble(column.high[:, None], column.low[:, None]).times(
            DoubleDouble(column.high[None, :], column.low[None, :])
        )
        rest = rest.plus(outer.negative())
        taken[pivot] = True
        columns.append(column.high)
    return torch.stack(columns, 1) if columns else K.new_zeros(size, 0)


def _inverse_root(value: DoubleDouble) -> DoubleDouble:
    """1 / sqrt, by a step of Newton's method from the rounded root."""
    r = value.high.rsqrt()
    one, zero = torch.ones_like(r), torch.zeros_like(r)
    rest = DoubleDouble(one, zero).plus(value.times(two_product(r, r)).negative())
    return DoubleDouble(r, zero).plus(DoubleDouble(0.5 * r, zero).times(rest))
