"""Rows and columns multiplied by powers of two, so that a rank does not depend on units.

Such a scaling is exact and keeps the rank. Singular values are compared with the largest one: without
scaling, a row or column that is small because of its units would be lost in the rounding error of the
largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llr.linalg.error_bound import LEAST, LayerErrors

_SWEEPS = 4
_DEEP = 40.0  # bits below the largest at which an entry stops counting as badly scaled
_ENTRIES_AT_ONCE = 1 << 21


def power_of_two(exponents: Tensor) -> Tensor:
    """2^e in float64, exactly, for whole numbers e from -1022 to 1023."""
    return (exponents.to(torch.int64) + 1023 << 52).view(torch.float64)


def times_power(values: Tensor, exponents: Tensor) -> Tensor:
    """``values * 2^exponents`` in two steps, neither of which leaves the range if the result does not.

    Exponents beyond 2044 in absolute value belong to zeros or to values that underflow to zero: they are
    clamped.
    """
    whole = exponents.to(torch.int64).clamp(-2044, 2046)
    half = whole // 2
    return values * power_of_two(half) * power_of_two(whole - half)


def scales(A: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents of two for the rows and columns of matrices that bring their entries near 1.

    Of three ways, the one that leaves the fewest entries far below 1 is taken: columns by their largest entry
    and then rows (for inputs in different units), rows and then columns (for outputs), and rows and columns
    by least squares in the logarithms (for both, if many entries are zero).

    Args:
        A: (..., m, n), finite.

    Returns:
        (..., m) and (..., n), int64. Rows and columns of zeros get 0.

    Example:
        >>> import torch
        >>> from llr.linalg.equilibrate import scales
        >>> scales(torch.tensor([[2.0**40, 1.0], [2.0**40, -1.0]]).double())
        (tensor([0, 0]), tensor([-41,  -1]))
    """
    zero = A == 0
    bits = torch.frexp(A.double()).exponent.double()
    log = bits.masked_fill(zero, -torch.inf)
    filled, counted = bits.masked_fill(zero, 0.0), (~zero).double()
    rows, columns = log.new_zeros(A.shape[:-1]), log.new_zeros((*A.shape[:-2], A.shape[-1]))
    sums, numbers = zip(
        *((filled.sum(side), counted.sum(side).clamp(min=1)) for side in (-1, -2)), strict=True
    )
    for _ in range(_SWEEPS):
        rows = -(sums[0] + _times(counted, columns)) / numbers[0]
        columns = -(sums[1] + _times(counted.mT, rows)) / numbers[1]
    more = _by_largest(log + rows[..., None] + columns[..., None, :], columns_first=True)
    ways = [
        _by_largest(log, columns_first=True),
        _by_largest(log, columns_first=False),
        (rows + more[0], columns + more[1]),
    ]
    whole = [(r.round(), c.round()) for r, c in ways]
    depths = torch.stack(
        [
            (log + r[..., None] + c[..., None, :])
            .clamp(min=-_DEEP, max=0.0)
            .masked_fill(zero, 0.0)
            .sum((-2, -1))
            for r, c in whole
        ]
    )
    best = depths.argmax(0)
    chosen = []
    for side in range(2):
        options = torch.stack([way[side] for way in whole])
        index = best[None, ..., None].expand(1, *options.shape[1:])
        chosen.append(options.gather(0, index)[0].to(torch.int64))
    return chosen[0], chosen[1]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _by_largest(log: Tensor, *, columns_first: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns normalised by their largest entries, one after the other."""
    if columns_first:
        columns = -_finite(log.amax(-2))
        return -_finite((log + columns[..., None, :]).amax(-1)), columns
    rows = -_finite(log.amax(-1))
    return rows, -_finite((log + rows[..., None]).amax(-2))


def _finite(exponents: Tensor) -> Tensor:
    return torch.where(exponents.isfinite(), exponents, 0.0)


def scaled(A: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Matrices (..., m, n) with their rows and columns multiplied by these powers of two, in float64."""
    return times_power(A.double(), rows[..., None] + columns[..., None, :])


def scaled_error(
    layers: Sequence[LayerErrors],
    places: Sequence[tuple[int | None, int | None]],
    rows: Tensor,
    columns: Tensor,
    *,
    single: bool = False,
) -> Tensor:
    """A bound of the Frobenius norm of the errors of scaled Jacobians, (B).

    Args:
        layers: of :func:`llr.linalg.error_bound.layer_errors`.
        places: per layer the first column of its weight and of its bias, None for a tensor without columns.
        rows: (B, n q) exponents.
        columns: (B, P) exponents.
        single: whether the Jacobian's entries are rounded to float32.
    """
    rounding, lost = (6.1e-8, 2e-38) if single else (2.3e-16, LEAST)
    total = rows.new_zeros(len(rows), dtype=torch.float64)
    for layer, (weight, bias) in zip(layers, places, strict=True):
        one = torch.ones_like(layer.a[..., :1])
        for first, value, error in (
            (weight, layer.a + layer.ea, layer.ea + rounding * layer.a),
            (bias, one, (rounding if single and layer.d is not None else 0.0) * one),
        ):
            if first is not None:
                total = total + _squares(layer, value, error, first, rows, columns, lost)
    return (1.01 * total.sqrt() + 1e-150).nan_to_num(nan=math.inf, posinf=math.inf)


def _squares(
    layer: LayerErrors,
    value: Tensor,
    error: Tensor,
    first: int,
    rows: Tensor,
    columns: Tensor,
    lost: float,
) -> Tensor:
    """The sums of the squared errors of the entries d_i a_j of a tensor with columns from `first` on, (B)."""
    points, (n, w) = len(rows), value.shape[-2:]
    q = rows.shape[-1] // max(1, n)
    h = q if layer.d is None else layer.d.shape[-1]
    span = columns[:, first : first + h * w].reshape(points, 1, 1, h, w)
    total = columns.new_zeros(points, dtype=torch.float64)
    step = max(1, _ENTRIES_AT_ONCE // max(1, points * q * h * w))
    for start in range(0, n, step):
        some = slice(start, start + step)
        v, e = value[..., some, None, None, :], error[..., some, None, None, :]
        if layer.d is None or layer.ed is None:
            errors = torch.eye(q, dtype=v.dtype, device=v.device)[..., None] * e
        else:
            d, ed = layer.d[..., some, :, :, None], layer.ed[..., some, :, :, None]
            errors = ed * v + (d + ed) * e + lost
        power = rows.reshape(points, n, q)[:, some, :, None, None] + span
        total += times_power(errors, power).square().sum((1, 2, 3, 4))
    return total
