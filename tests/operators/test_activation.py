"""The activation table against 60 digits: mpmath's and, with proved error bounds, python-flint's.

Values and slopes come from the operator: for the net z -> sigma(z), the derivative with respect to the last
weight is sigma(z), and with respect to the first bias sigma'(z).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flint
import mpmath
import numpy as np
import pytest
import torch
from helpers.oracles import ACTIVATIONS, Net, draw, exact_rows

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

Function = Callable[[Any], Any]
EPS = 2.0**-52
DIGITS = 60


@pytest.fixture(autouse=True)
def digits():
    before = flint.ctx.dps
    flint.ctx.dps = DIGITS
    with mpmath.workdps(DIGITS):
        yield
    flint.ctx.dps = before


mp = mpmath.mp


def mp_logistic(z: Any) -> Any:
    return 1 / (1 + mp.exp(-z)) if z >= 0 else mp.exp(z) / (1 + mp.exp(z))


def mp_cdf(z: Any) -> Any:
    return mp.ncdf(z) if abs(z) < 1e6 else mp.mpf(z > 0)  # mpmath overflows far out


MPMATH: dict[str, tuple[Function, Function]] = {
    "identity": (lambda z: z, lambda z: mp.mpf(1)),  # noqa: ARG005
    "tanh": (mp.tanh, lambda z: mp.sech(z) ** 2),
    "sigmoid": (mp_logistic, lambda z: mp_logistic(z) * mp_logistic(-z)),
    "relu": (lambda z: z if z > 0 else mp.mpf(0), lambda z: mp.mpf(z > 0)),
    # Like torch.nn.Softplus: the identity beyond 20.
    "softplus": (
        lambda z: z if z > 20 else mp.log1p(mp.exp(z)),
        lambda z: mp.mpf(1) if z > 20 else mp_logistic(z),
    ),
    "gelu": (lambda z: z * mp_cdf(z), lambda z: mp_cdf(z) + z * mp.npdf(z)),
    "silu": (
        lambda z: z * mp_logistic(z),
        lambda z: mp_logistic(z) + z * mp_logistic(z) * mp_logistic(-z),
    ),
    "erf": (mp.erf, lambda z: 2 / mp.sqrt(mp.pi) * mp.exp(-z * z)),
    "sin": (mp.sin, mp.cos),
}


def arb_logistic(z: flint.arb) -> flint.arb:
    return 1 / (1 + (-z).exp()) if z >= 0 else z.exp() / (1 + z.exp())


def arb_cdf(z: flint.arb) -> flint.arb:
    return (-z / flint.arb(2).sqrt()).erfc() / 2


def arb_density(z: flint.arb) -> flint.arb:
    return (-z * z / 2).exp() / (2 * flint.arb.pi()).sqrt()


ARB: dict[str, tuple[Function, Function]] = {
    "identity": (lambda z: z, lambda z: flint.arb(1)),  # noqa: ARG005
    "tanh": (lambda z: z.tanh(), lambda z: z.sech() ** 2),
    "sigmoid": (arb_logistic, lambda z: arb_logistic(z) * arb_logistic(-z)),
    "relu": (lambda z: z if z > 0 else flint.arb(0), lambda z: flint.arb(int(z > 0))),
    "softplus": (
        lambda z: z if z > 20 else z.exp().log1p(),
        lambda z: flint.arb(1) if z > 20 else arb_logistic(z),
    ),
    "gelu": (lambda z: z * arb_cdf(z), lambda z: arb_cdf(z) + z * arb_density(z)),
    "silu": (
        lambda z: z * arb_logistic(z),
        lambda z: arb_logistic(z) + z * arb_logistic(z) * arb_logistic(-z),
    ),
    "erf": (lambda z: z.erf(), lambda z: 2 / flint.arb.pi().sqrt() * (-z * z).exp()),
    "sin": (lambda z: z.sin(), lambda z: z.cos()),
}

# --- what is allowed ---------------------------------------------------------------------------------

# Allowed errors of the value and of the slope, in units of 2^-52 of the exact result.
UNITS = {
    "identity": (0, 0),
    "tanh": (2, 3),
    "sigmoid": (2, 3),
    "relu": (0, 0),
    "softplus": (2, 2),
    "gelu": (3, 4),
    "silu": (3, 3),
    "erf": (2, 1),
    "sin": (2, 2),
}


def allowed(activation: str, z: float, value: float, slope: float) -> tuple[float, float]:
    """Largest allowed error of sigma(z) and sigma'(z).

    In addition to the units above: an exponential below 1e-307 is returned as 0, and e^(-z^2) has the error
    from rounding z^2. If a slope is a difference of two terms (gelu, silu near their minimum), the units are
    those of the terms.
    """
    units, slope_units = UNITS[activation]
    lost = 0.0 if activation in ("identity", "relu", "sin") else 4e-307 * max(1.0, abs(z))
    squares = {"gelu": z * z / 2, "erf": z * z}.get(activation, 0.0) if abs(z) < 40 else 0.0
    terms = abs(slope)
    if activation == "gelu" and abs(z) < 40:
        terms = max(terms, abs(z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi))
    if activation == "silu" and abs(z) < 700:
        terms = max(terms, abs(z) * math.exp(-abs(z)))
    value_squares = squares if z < 0 and activation == "gelu" else 0.0
    return (
        (units + value_squares) * EPS * abs(value) + lost,
        (slope_units + squares) * EPS * terms + lost,
    )


# --- where -------------------------------------------------------------------------------------------

LN2 = math.log(2)
EDGES = [0.0, -0.0, 5e-324, 1e-308, 1e-300, 1e-100, 1e-20, 1e-10, 1e-8, 1e-5, 0.35, 0.5, 0.75179]
EDGES += [
    1.0,
    1.278464542761074,
    1.5,
    2.0,
    3.0,
    5.0,
    5.9,
    6.0,
    8.0,
    8.3,
    9.0,
    19.0,
    20.0,
    21.0,
    26.5,
    27.0,
]
EDGES += [36.0, 36.7, 37.0, 37.5, 38.5, 100.0, 300.0, 353.0, 353.5, 354.0, 354.5]
EDGES += [k * LN2 / 2 for k in (1, 2, 3, 5, 7, 50, 51, 1000, 2043)]
EDGES += [k * math.pi / 2 for k in (1, 2, 3, 4, 100, 355, 1001, 333_772)]
EDGES += [
    600.0,
    700.0,
    706.5,
    707.0,
    707.5,
    708.0,
    709.0,
    710.0,
    744.0,
    745.0,
    746.0,
    1e3,
    1e5,
    5.2e5,
]
BEYOND = [524288.0, 524289.0, 6e5, 1e6, 1e7, 1e10, 1e15, 1e16, 1e22, 1e100, 1e154, 1e155, 1e300]


def around(points: list[float]) -> list[float]:
    """The points, the next numbers on either side, and all their negatives."""
    near = [
        q for p in points for q in (p, math.nextafter(p, math.inf), math.nextafter(p, -math.inf))
    ]
    return near + [-p for p in near]


def scattered(count: int) -> list[float]:
    random = np.random.default_rng(0)
    parts = [
        random.uniform(-2, 2, count),
        random.uniform(-40, 40, count),
        random.uniform(-750, 750, count // 4),
        random.uniform(-5e5, 5e5, count // 4),
        random.choice([-1, 1], count) * 10 ** random.uniform(-12, 5, count),
    ]
    return [float(p) for p in np.concatenate(parts)]


def read_table(activation: str, points: list[float], along: str) -> tuple[list[float], list[float]]:
    """sigma and sigma' at these points, computed together as samples or as neurons."""
    z = torch.tensor(points, dtype=torch.float64)
    count = len(points)
    one = torch.ones(1, 1, dtype=torch.float64)
    if along == "samples":
        J = _ops.mlp_jacobian(
            z[:, None], [one, one], [torch.zeros(1, dtype=torch.float64), None], activation
        )
        values, slopes = J[:, 0, 2], J[:, 0, 1]
    else:
        wide = [z[:, None], one.expand(1, count)]
        J = _ops.mlp_jacobian(
            one, wide, [torch.zeros(count, dtype=torch.float64), None], activation
        )
        values, slopes = J[0, 0, 2 * count :], J[0, 0, count : 2 * count]
    return values.tolist(), slopes.tolist()


class Library(NamedTuple):
    """High-precision arithmetic: its numbers, the activations, and upper bounds of numbers as floats."""

    number: Function
    table: dict[str, tuple[Function, Function]]
    upper: Callable[[Any], float]


LIBRARIES = {
    "mpmath": Library(mp.mpf, MPMATH, float),
    "flint": Library(flint.arb, ARB, lambda ball: float(ball.upper())),
}


def faults(activation: str, points: list[float], along: str, library: Library) -> list[str]:
    """All points where the table's error is larger than allowed."""
    found = []
    values, slopes = read_table(activation, points, along)
    for z, computed in zip(points, zip(values, slopes, strict=True), strict=True):
        truth = [function(library.number(z)) for function in library.table[activation]]
        limits = allowed(activation, z, *map(float, truth))
        for mark, result, exact, most in zip(("", "'"), computed, truth, limits, strict=True):
            off = library.upper(abs(library.number(result) - exact))
            if not off <= most:
                found.append(f"sigma{mark}({z!r}) = {result!r}, off by {off:.3g} > {most:.3g}")
    return found


@pytest.mark.parametrize("along", ["samples", "neurons"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_edges_by_mpmath(activation, along):
    assert faults(activation, around(EDGES), along, LIBRARIES["mpmath"]) == []


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_far_out_by_mpmath(activation):
    assert faults(activation, around(BEYOND), "samples", LIBRARIES["mpmath"]) == []


@pytest.mark.parametrize("along", ["samples", "neurons"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_scattered_by_flint(activation, along):
    assert faults(activation, scattered(1500), along, LIBRARIES["flint"]) == []


@pytest.mark.parametrize("activation", ["tanh", "erf", "sin", "identity"])
def test_odd(activation):
    points = [abs(z) for z in around(EDGES) + scattered(100)]
    values, slopes = read_table(activation, points, "neurons")
    mirrored, mirrored_slopes = read_table(activation, [-z for z in points], "neurons")
    assert values == [-v for v in mirrored]
    assert slopes == mirrored_slopes


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "erf"])
def test_slopes_do_not_vanish_early(activation):
    # Computed as 1 - tanh(z)^2, the slope would be 0 from z = 19.1 on, and the rank too small.
    _, slopes = read_table(activation, [19.5, 20.0, 22.0, 25.0, 26.0], "samples")
    assert all(s > 0 for s in slopes)


# --- whole networks ----------------------------------------------------------------------------------

NETS = [
    Net((2, 3, 1), 2),
    Net((3, 5, 4, 2), 2, biases=(True, False, True)),
    Net((2, 4, 3, 4, 2, 3), 1, biases=False),
]


@pytest.mark.parametrize("net", NETS, ids=lambda net: "-".join(map(str, net.widths)))
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=list(LIBRARIES))
def test_networks(library, activation, net):
    x, weights, biases = draw(net)
    result = _ops.mlp_jacobian(x, weights, biases, activation)

    def convert(values: Any) -> Any:
        return [convert(v) for v in values] if isinstance(values, list) else library.number(values)

    rows = [
        row
        for sample in x.tolist()
        for row in exact_rows(
            convert(sample),
            [convert(w.tolist()) for w in weights],
            [None if b is None else convert(b.tolist()) for b in biases],
            *library.table[activation],
        )
    ]
    largest = max(abs(float(value)) for row in rows for value in row)
    found = result.flatten(0, 1).tolist()
    worst = max(
        library.upper(abs(library.number(f) - value))
        for computed, row in zip(found, rows, strict=True)
        for f, value in zip(computed, row, strict=True)
    )
    # A dozen roundings per layer at most, and layers whose weights are of order one.
    assert worst <= 12 * EPS * len(weights) * largest
