"""Model ranks by search: all representations of a function on a grid, ranked without a closed form.

Nothing of ``llr.theory`` is used. Neurons are combinations of linearly independent formal functions (the
values and slopes of distinct hyperplanes, the coordinates and 1), using the reflection of the activation. The
representations of a function are the solutions of a linear system in the outgoing weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product

from flint import fmpq, fmpq_mat, nmod_mat

REFLECTIONS = {
    "tanh": "odd",
    "erf": "odd",
    "sigmoid": "sigmoid",
    "softplus": "hinge",
    "gelu": "hinge",
    "silu": "hinge",
    "relu": "hinge",
}
Vector = list[Fraction]
ZERO = Fraction(0)
PRIME = 2**61 - 1


@dataclass(frozen=True)
class Setting:
    """A function ``sum_g alpha_g s(z_g) + affine`` and the architecture to represent it in."""

    activation: str
    planes: tuple[tuple[int, ...], ...]
    """(w_g, b_g): the planes of the function, then others that neurons may have."""
    alpha: tuple[tuple[int, ...], ...]
    """Outgoing weights for each plane of the function."""
    affine: tuple[tuple[Fraction, ...], ...]
    """(q, d + 1)"""
    m: int
    bias: bool
    output_bias: bool

    @property
    def d(self) -> int:
        return len(self.planes[0]) - 1

    @property
    def q(self) -> int:
        return len(self.affine)


@dataclass(frozen=True)
class _Shape:
    """A neuron's incoming parameters: a plane and an orientation; or w = 0, with a value and a slope."""

    plane: int
    side: int
    value: bool = True
    slope: bool = True


def smallest(setting: Setting) -> tuple[int, int, int]:
    """The smallest and the largest dim T of the representations, and the number of representations."""
    dimensions = [dimension(setting, *found) for found in representations(setting)]
    return min(dimensions, default=-1), max(dimensions, default=-1), len(dimensions)


def representations(setting: Setting) -> Iterator[tuple[tuple[_Shape, ...], list[Vector]]]:
    """Incoming shapes and outgoing weights, (m, q)."""
    options: list[Vector] = [[ZERO] * setting.q]
    units = [[Fraction(i == j) for i in range(setting.q)] for j in range(setting.q)]
    rows = [[Fraction(v) for v in row] for row in (*setting.alpha, *_transposed(setting.affine))]
    for candidate in (*units, *rows, *([-v for v in row] for row in rows)):
        if candidate not in options:
            options.append(candidate)
    for shapes in combinations_with_replacement(_shapes(setting), setting.m):
        for a in _solutions(setting, shapes, options):
            yield shapes, a


def _transposed(rows: Sequence[Sequence[Fraction]]) -> list[tuple[Fraction, ...]]:
    return list(zip(*rows, strict=True))


def _shapes(setting: Setting) -> list[_Shape]:
    found = [_Shape(g, side) for g in range(len(setting.planes)) for side in (1, -1)]
    act = setting.activation
    if act in ("sigmoid", "softplus"):
        return [*found, _Shape(-1, 1)]
    if act == "relu":
        return [*found, _Shape(-1, 1, False, False)] + [_Shape(-1, 1)] * setting.bias
    found.append(_Shape(-1, 1, False))
    if setting.bias:
        found.append(_Shape(-1, 1))
        if act in ("gelu", "silu"):
            found.append(_Shape(-1, 1, True, False))
    return found


def _value(setting: Setting, shape: _Shape) -> Vector:
    """Coefficients of s_g for all planes, then of x_1, ..., x_d, 1."""
    groups, size = len(setting.planes), setting.d + 1
    v = [ZERO] * (groups + size)
    if shape.plane < 0:
        v[-1] = Fraction(shape.value)  # a constant; outgoing weights are relative to it
        return v
    reflection = REFLECTIONS[setting.activation]
    v[shape.plane] = Fraction(shape.side if reflection in ("odd", "sigmoid") else 1)
    if shape.side < 0:
        if reflection == "sigmoid":
            v[-1] += 1
        if reflection == "hinge":
            for i, c in enumerate(setting.planes[shape.plane]):
                v[groups + i] -= c
    return v


def _solutions(
    setting: Setting, shapes: Sequence[_Shape], options: Sequence[Vector]
) -> Iterator[list[Vector]]:
    """Outgoing weights for which these neurons represent the function; free weights are taken from a grid."""
    m, q, groups = len(shapes), setting.q, len(setting.planes)
    columns = [_value(setting, shape) for shape in shapes]
    goal = [[ZERO] * q for _ in range(groups + setting.d + 1)]
    for g, alpha in enumerate(setting.alpha):
        goal[g] = [Fraction(v) for v in alpha]
    for j, row in enumerate(setting.affine):
        for i, v in enumerate(row):
            goal[groups + i][j] = Fraction(v)
    equations = len(goal) - setting.output_bias  # an output bias takes any constant
    entries = [
        fmpq(v.numerator, v.denominator)
        for i in range(equations)
        for v in [*(column[i] for column in columns), *goal[i]]
    ]
    reduced, r = fmpq_mat(equations, m + q, entries).rref()
    table = [[Fraction(int(v.p), int(v.q)) for v in row] for row in reduced.tolist()[:r]]
    pivots = [next(j for j, v in enumerate(row) if v) for row in table]
    if any(p >= m for p in pivots):
        return
    free = [j for j in range(m) if j not in pivots]
    for chosen in product(options, repeat=len(free)):
        a = [[ZERO] * q for _ in range(m)]
        for j, value in zip(free, chosen, strict=True):
            a[j] = value
        for row, p in zip(table, pivots, strict=True):
            a[p] = [row[m + j] - sum((row[f] * a[f][j] for f in free), ZERO) for j in range(q)]
        yield a


def dimension(setting: Setting, shapes: Sequence[_Shape], a: Sequence[Vector]) -> int:
    """dim T of this representation: the rank of its tangent functions, in formal functions."""
    d, q, groups = setting.d, setting.q, len(setting.planes)
    relu = setting.activation == "relu"
    # For each output: s_g; x_l s'_g and s'_g; x_l and 1.
    each = groups + groups * (d + 1) + d + 1
    rows = []

    def put(function: Vector, weights: Vector) -> None:
        rows.append([w * v if w and v else ZERO for w in weights for v in function])

    for shape, outgoing in zip(shapes, a, strict=True):
        value = _value(setting, shape)
        function = [*value[:groups], *[ZERO] * (groups * (d + 1)), *value[groups:]]
        if relu:  # s = z s'
            for g in range(groups):
                for i, c in enumerate(setting.planes[g]):
                    function[groups + g * (d + 1) + i] += value[g] * c
                function[g] = ZERO
        for j in range(q):
            put(function, [Fraction(i == j) for i in range(q)])
        for l in range(d + setting.bias):  # noqa: E741
            slope = [ZERO] * each
            if shape.plane < 0:
                slope[groups + groups * (d + 1) + l] = Fraction(shape.slope)
            else:
                sign = 1
                if shape.side < 0 and REFLECTIONS[setting.activation] == "hinge":
                    sign = -1
                    slope[groups + groups * (d + 1) + l] = Fraction(1)
                slope[groups + shape.plane * (d + 1) + l] = Fraction(sign)
            put(slope, outgoing)
    if setting.output_bias:
        for j in range(q):
            put([*[ZERO] * (each - 1), Fraction(1)], [Fraction(i == j) for i in range(q)])
    # Modulo a prime of 61 bits, a nonzero minor of these numbers could vanish only by an unlikely accident,
    # and the closed form would have to make the same error.
    whole = [_modular(v) if v else 0 for row in rows for v in row]
    return int(nmod_mat(len(rows), each * q, whole, PRIME).rank()) if rows else 0


@cache
def _modular(v: Fraction) -> int:
    return v.numerator * pow(v.denominator, -1, PRIME) % PRIME
