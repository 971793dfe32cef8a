"""Rows and columns multiplied by powers of two, so that units do not decide a rank.

Such a scaling is exact and keeps the rank. Singular values are compared with the largest one: a row or column that is
small for the sake of its units would drown in its rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llr.error_bound import LEAST, LayerErrors

_SWEEPS = 4
_DEEP = 40.0  # bits below the largest at which an entry stops counting as badly scaled
_ENTRIES_AT_ONCE = 1 << 21


def power_of_two(exponents: Tensor) -> Tensor:
    """2^e in float64, exactly, for whole numbers e from -1022 to 1023."""
    return (exponents.to(torch.int64) + 1023 << 52).view(torch.float64)


def times_power(values: Tensor, exponents: Tensor) -> Tensor:
    """``values * 2^exponents`` in two steps, neither of which leaves the range if the result does not."""
    half = exponents.to(torch.int64) // 2
    return values * power_of_two(half) * power_of_two(exponents.to(torch.int64) - half)


def scales(A: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents of two for the rows and columns of a matrix, with which its entries come near 1.

    Of three ways the one is taken that leaves the fewest entries far below 1: columns by their largest entry and then
    rows (for inputs in different units), rows and then columns (for outputs), and rows and columns by least squares
    in the logarithms (for both, where many entries are zero).

    Args:
        A: (m, n), finite.

    Returns:
        (m) and (n), int64. Rows and columns of zeros get 0.

    Example:
        >>> import torch
        >>> from llr.equilibrate import scales
        >>> scales(torch.tensor([[2.0**40, 1.0], [2.0**40, -1.0]]).double())
        (tensor([0, 0]), tensor([-41,  -1]))
    """
    m, n = A.shape
    zero = A == 0
    bits = torch.frexp(A.double()).exponent.double()
    log = bits.masked_fill(zero, -torch.inf)
    candidates = [_by_largest(log, first) for first in (1, 0)]
    counted = (~zero).double()
    rows, columns = log.new_zeros(m), log.new_zeros(n)
    sums = (bits * counted).sum(1), (bits * counted).sum(0)
    numbers = counted.sum(1).clamp(min=1), counted.sum(0).clamp(min=1)
    for _ in range(_SWEEPS):
        rows = -(sums[0] + counted @ columns) / numbers[0]
        columns = -(sums[1] + rows @ counted) / numbers[1]
    fitted = log + rows[:, None] + columns
    more = _by_largest(fitted, 1)
    candidates.append((rows + more[0], columns + more[1]))

    def far_below(candidate: tuple[Tensor, Tensor]) -> float:
        depth = log + candidate[0].round()[:, None] + candidate[1].round()
        return float(depth.clamp(min=-_DEEP, max=0.0).masked_fill(zero, 0.0).sum())

    best = max(candidates, key=far_below)
    return best[0].round().to(torch.int64), best[1].round().to(torch.int64)


def _by_largest(log: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Rows and columns normalised by their largest entries: columns first for 1, rows first for 0."""
    if first == 0:
        rows = -_finite(log.amax(1))
        return rows, -_finite((log + rows[:, None]).amax(0))
    columns = -_finite(log.amax(0))
    return -_finite((log + columns).amax(1)), columns


def _finite(exponents: Tensor) -> Tensor:
    return torch.where(exponents.isfinite(), exponents, 0.0)


def scaled(A: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The matrix (m, n) with its rows and columns multiplied by these powers of two, in float64."""
    return times_power(A.double(), rows[:, None] + columns)


def scaled_error(
    layers: list[LayerErrors],
    places: list[tuple[int | None, int | None]],
    rows: Tensor,
    columns: Tensor,
    *,
    single: bool = False,
) -> float:
    """A bound of the Frobenius norm of the error of a scaled Jacobian.

    Args:
        layers: of :func:`llr.error_bound.layer_errors`, without a batch.
        places: per layer the first column of its weight and of its bias, None for what is no column.
        rows: (n q) exponents.
        columns: (P) exponents.
        single: whether the Jacobian's entries are rounded to float32.
    """
    rounding, lost = (6.1e-8, 2e-38) if single else (2.3e-16, LEAST)
    total = 0.0
    for layer, (weight, bias) in zip(layers, places, strict=True):
        one = torch.ones_like(layer.a[:, :1])
        for first, value, error in (
            (weight, layer.a + layer.ea, layer.ea + rounding * layer.a),
            (bias, one, (rounding if single and layer.d is not None else 0.0) * one),
        ):
            if first is not None:
                total += _squares(layer, value, error, first, rows, columns, lost)
    error = 1.01 * math.sqrt(total) + 1e-150 if math.isfinite(total) else math.inf
    return error


def _squares(
    layer: LayerErrors,
    value: Tensor,
    error: Tensor,
    first: int,
    rows: Tensor,
    columns: Tensor,
    lost: float,
) -> float:
    """The sum of the squared errors of the entries d_i a_j of a tensor with columns from `first` on."""
    n, w = value.shape
    q = len(rows) // max(1, n)
    h = q if layer.d is None else layer.d.shape[-1]
    span = columns[first : first + h * w].view(h, w)
    total, step = 0.0, max(1, _ENTRIES_AT_ONCE // max(1, q * h * w))
    for start in range(0, n, step):
        some = slice(start, start + step)
        v, e = value[some, None, None], error[some, None, None]
        if layer.d is None or layer.ed is None:
            errors = torch.eye(q, dtype=v.dtype, device=v.device)[..., None] * e
        else:
            d, ed = layer.d[some, ..., None], layer.ed[some, ..., None]
            errors = ed * v + (d + ed) * e + lost
        power = rows.view(n, q)[some, :, None, None] + span
        total += float(times_power(errors, power).square().sum())
    return total
