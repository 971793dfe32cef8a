"""Numbers with error bounds: python-flint's precision, and the activations in its arithmetic.

A ball (``flint.arb``) is a midpoint and a radius. A result computed from balls is a ball that contains the
result for all exact numbers in the arguments. Activations with rational values, such as polynomials, also
take rationals (``flint.fmpq``).

Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE
Transactions on Computers 66 (2017).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import flint
import numpy as np
from flint import arb, fmpq

Number = Any
"""A ball (``flint.arb``) or a rational (``flint.fmpq``)."""
Function = Callable[[Number], Number]
Array = np.ndarray[Any, Any]
"""A NumPy array of `Number` objects."""

LOWEST_BITS, HIGHEST_BITS = 32, 1 << 20
MOST_BITS = 4096
"""The default of the largest precision that :func:`llr.certify` uses."""

_PRECISION = threading.RLock()


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Set python-flint's working precision for a block, and restore it afterwards, also after an exception.

    All threads share the precision, so only one block runs at a time.
    """
    with _PRECISION:
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
    # Take the form that does not overflow.
    return z.exp() / (1 + z.exp()) if z < 0 else 1 / (1 + (-z).exp())


def _softplus(z: arb) -> arb:
    return z.exp().log1p() if z < 0 else z + (-z).exp().log1p()


def _gauss_cdf(z: arb) -> arb:
    if z < -(2**16):
        return _gauss_tail(-z)
    return (-z / arb(2).sqrt()).erfc() / 2


def _gauss_tail(t: arb) -> arb:
    """The tail probability beyond t, for t above 2^16.

    Arb's erfc has no correct digits there at some precisions. The asymptotic series alternates, so its error
    is less than the first omitted term.
    """
    u, term, total = 1 / (t * t), arb(1), arb(0)
    for k in range(flint.ctx.prec // 16 + 2):
        total += term
        term *= -(2 * k + 1) * u
    return (total + arb(0, abs(term).upper())) * _gauss_density(t) / t


def _gauss_density(z: arb) -> arb:
    return (-z * z / 2).exp() / (2 * arb.pi()).sqrt()


def _identity(z: Number) -> Number:
    return z


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
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
"""name -> (sigma, sigma') in exact arithmetic, for the names of ``llr.operators.formula.ACTIVATIONS``."""
RATIONAL = frozenset({"identity", "relu"})
"""The activations whose values and slopes at rational numbers are rational."""

_POLYNOMIAL = "polynomial("


def activation(name: str) -> tuple[Function, Function]:
    """sigma and sigma' of an activation of the table, or of a polynomial named by its coefficients.

    Args:
        name: a key of :data:`ACTIVATIONS`, or "polynomial(c_0, c_1, ...)", as
            ``llr.models.Polynomial.name`` writes it: each coefficient is the float64 nearest to the text.

    Raises:
        KeyError: no such name.

    Example:
        >>> from flint import fmpq
        >>> from llr.linalg.balls import activation
        >>> value, slope = activation("polynomial(1, 0, 0.5)")
        >>> value(fmpq(1, 3)), slope(fmpq(1, 3))
        (19/18, 1/3)
    """
    if not name.startswith(_POLYNOMIAL):
        return ACTIVATIONS[name]
    exact = [fmpq(*c.as_integer_ratio()) for c in coefficients(name)]
    return _horner(exact), _horner([k * c for k, c in enumerate(exact)][1:])


def coefficients(name: str) -> tuple[Fraction, ...]:
    """c_0, c_1, ... of the activation "polynomial(c_0, c_1, ...)"; empty for any other."""
    if not name.startswith(_POLYNOMIAL):
        return ()
    texts = name.removeprefix(_POLYNOMIAL).removesuffix(")").split(",")
    return tuple(Fraction(float(text)) for text in texts)


def is_rational(name: str) -> bool:
    """Whether values and slopes of the activation at rational numbers are rational."""
    return name in RATIONAL or name.startswith(_POLYNOMIAL)


def _horner(terms: Sequence[fmpq]) -> Function:
    def value(z: Number) -> Number:
        total = type(z)(0)
        for c in reversed(terms):
            total = total * z + c
        return total

    return value
