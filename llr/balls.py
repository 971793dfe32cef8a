"""Numbers with error bounds: python-flint's precision, and the activations in its arithmetic.

A ball (``flint.arb``) is a midpoint and a radius; what is computed from balls contains what the exact numbers
in them would give. Activations with rational values also take rationals (``flint.fmpq``).

Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE
Transactions on Computers 66 (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flint
from flint import arb

Number = Any
"""A ball (``flint.arb``) or a rational (``flint.fmpq``)."""


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """python-flint's working precision for a block, restored whatever happens in it."""
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        yield
    finally:
        flint.ctx.prec = before


def _cases(
    z: Number, threshold: int, below: Callable[[Number], Number], above: Callable[[Number], Number]
) -> Number:
    """``above(z)`` where z > threshold, else ``below(z)``; both for a ball that may be on either side."""
    if z > threshold:
        return above(z)
    if z <= threshold:
        return below(z)
    return below(z).union(above(z))


def _constant(value: int) -> Callable[[Number], Number]:
    return lambda z: type(z)(value)


def _logistic(z: arb) -> arb:
    # Whichever form does not overflow.
    return z.exp() / (1 + z.exp()) if z < 0 else 1 / (1 + (-z).exp())


def _softplus(z: arb) -> arb:
    return z.exp().log1p() if z < 0 else z + (-z).exp().log1p()


def _gauss_cdf(z: arb) -> arb:
    return (-z / arb(2).sqrt()).erfc() / 2


def _gauss_density(z: arb) -> arb:
    return (-z * z / 2).exp() / (2 * arb.pi()).sqrt()


def _identity(z: Number) -> Number:
    return z


ACTIVATIONS: dict[str, tuple[Callable[[Number], Number], Callable[[Number], Number]]] = {
    "identity": (_identity, _constant(1)),
    "tanh": (lambda z: z.tanh(), lambda z: z.sech() ** 2),
    "sigmoid": (_logistic, lambda z: _logistic(z) * _logistic(-z)),
    # torch's slope at 0 is 0.
    "relu": (
        lambda z: _cases(z, 0, _constant(0), _identity),
        lambda z: _cases(z, 0, _constant(0), _constant(1)),
    ),
    # As torch.nn.Softplus is by default: the identity beyond 20.
    "softplus": (
        lambda z: _cases(z, 20, _softplus, _identity),
        lambda z: _cases(z, 20, _logistic, _constant(1)),
    ),
    "gelu": (lambda z: z * _gauss_cdf(z), lambda z: _gauss_cdf(z) + z * _gauss_density(z)),
    "silu": (
        lambda z: z * _logistic(z),
        lambda z: _logistic(z) + z * _logistic(z) * _logistic(-z),
    ),
    "erf": (lambda z: z.erf(), lambda z: (-z * z).exp() * 2 / arb.pi().sqrt()),
    "sin": (lambda z: z.sin(), lambda z: z.cos()),
}
"""name -> (sigma, sigma') in exact arithmetic, the twin of ``llr.reference.ACTIVATIONS``."""
RATIONAL = frozenset({"identity", "relu"})
"""Activations whose values and slopes at rational numbers are rational."""
