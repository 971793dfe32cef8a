"""Functions of networks as polynomials in symbols: coordinates, and the values and slopes of neurons.

Equal neurons have equal symbols, and so do neurons that are equal by the activation's reflection, such as
tanh(-z) = -tanh(z). The symbols do not include other relations of the functions of neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, cast

from flint import arb, fmpq

from llr.linalg.balls import Number, activation, precision
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import Row

Monomial = tuple[int, ...]
"""Symbols, ascending, as often as they occur; those of numbers are negative and come first."""
Vector = Mapping[Monomial, Fraction]
"""Monomials with their coefficients, none of which is 0."""

ONE: Vector = {(): Fraction(1)}

# The values and slopes at 0 if they are rational, else None.
_AT_ZERO: dict[str, tuple[Fraction | None, Fraction | None]] = {
    "tanh": (Fraction(0), Fraction(1)),
    "erf": (Fraction(0), None),
    "sin": (Fraction(0), Fraction(1)),
    "sigmoid": (Fraction(1, 2), Fraction(1, 4)),
    "softplus": (None, Fraction(1, 2)),
    "gelu": (Fraction(0), Fraction(1, 2)),
    "silu": (Fraction(0), Fraction(1, 2)),
}
# The precisions at which numbers are tested for being nonzero.
_BITS = (64, 256, 1024)


class Neuron(NamedTuple):
    """The value s(z) and the slope s'(z) of a neuron."""

    value: Vector
    slope: Vector


@dataclass(frozen=True)
class _Symbol:
    kind: Literal["coordinate", "output", "value", "slope"]
    index: int = 0
    activation: str = ""
    z: Vector | None = None


def combined(terms: Sequence[tuple[Fraction, Vector]]) -> Vector:
    """The linear combination of vectors with these coefficients."""
    total: dict[Monomial, Fraction] = {}
    for c, v in terms:
        if c:
            for m, value in v.items():
                total[m] = total.get(m, 0) + c * value
    return {m: value for m, value in total.items() if value}


def primitive(v: Vector) -> tuple[Monomial, Vector]:
    """The numbers that are a factor of all monomials of a vector, and the vector divided by them."""
    common: list[int] = []
    for symbol in dict.fromkeys(next(iter(v), ())):
        if symbol < 0:
            common += [symbol] * min(m.count(symbol) for m in v)
    if not common:
        return (), v
    return tuple(common), {_without(m, common): c for m, c in v.items()}


def _without(m: Monomial, factors: Sequence[int]) -> Monomial:
    rest = list(m)
    for symbol in factors:
        rest.remove(symbol)
    return tuple(rest)


class Symbols:
    """The symbols of one or several networks on the same inputs; equal functions share them.

    Example:
        >>> from fractions import Fraction
        >>> from llr.theory.spans.symbols import Symbols
        >>> symbols = Symbols()
        >>> z = {symbols.coordinate(0): Fraction(2)}
        >>> plus, minus = symbols.neuron("tanh", z), symbols.neuron("tanh", {m: -c for m, c in z.items()})
        >>> plus.slope == minus.slope, list(plus.value.values()), list(minus.value.values())
        (True, [Fraction(1, 1)], [Fraction(-1, 1)])
    """

    def __init__(self) -> None:
        self._symbols: dict[int, _Symbol] = {}
        self._ids: dict[tuple[str, int], int] = {}
        self._neurons: dict[tuple[str, frozenset[tuple[Monomial, Fraction]]], tuple[int, int]] = {}
        self._idempotent: set[int] = set()
        self._expansions: dict[int, Vector] = {}
        self._sizes: dict[int, int] = {}
        self._functions = self._numbers = 0

    def coordinate(self, index: int) -> Monomial:
        """The symbol of an input."""
        return self._named("coordinate", index)

    def output(self, index: int) -> Monomial:
        """The symbol of an output, a unit vector of R^q."""
        return self._named("output", index)

    def neuron(self, act: str, z: Vector, coefficients: Row = ()) -> Neuron:
        """The value and the slope of the neuron with this activation and preactivation.

        Args:
            act: a name of ``llr.operators.formula.ACTIVATIONS``, or "polynomial".
            z: the argument of the activation.
            coefficients: of a polynomial, from the constant term on.

        Raises:
            ValueError: an activation whose reflection is not known.
        """
        if act == "identity":
            return Neuron(z, ONE)
        if act == "polynomial":
            slopes = [n * c for n, c in enumerate(coefficients)][1:]
            return Neuron(self._horner(coefficients, z), self._horner(slopes, z))
        if act not in PARITY:
            raise ValueError(
                f"activation is {act!r}, whose reflection is not known; expected one of {', '.join(PARITY)}"
            )
        if act == "relu" and not any(z):
            c = z.get((), Fraction(0))
            return Neuron(_rational(max(c, Fraction(0))), _rational(Fraction(int(c > 0))))
        known = (None, None) if z else _AT_ZERO[act]
        # ReLU neurons are equal up to a positive factor.
        scale = abs(z[max(z)]) if act == "relu" else Fraction(1)
        z = combined([(1 / scale, z)])
        minus = {m: -c for m, c in z.items()}
        key, mirror = (act, frozenset(z.items())), (act, frozenset(minus.items()))
        reflected = (
            key not in self._neurons
            and mirror in self._neurons
            and (act != "relu" or self._is_affine(z))
        )
        if reflected:
            neuron = self._reflected(act, z, *self._neurons[mirror])
        else:
            if key not in self._neurons:
                self._neurons[key] = self._new_pair(act, z)
            v, s = self._neurons[key]
            neuron = Neuron({(v,): Fraction(1)}, {(s,): Fraction(1)})
        value, slope = (
            found if exact is None else _rational(exact)
            for found, exact in zip(neuron, known, strict=True)
        )
        return Neuron(combined([(scale, value)]), slope)

    def product(self, u: Vector, v: Vector) -> Vector:
        """The product of two vectors."""
        total: dict[Monomial, Fraction] = {}
        for m, c in u.items():
            for n, e in v.items():
                monomial = self._times(m, n)
                total[monomial] = total.get(monomial, 0) + c * e
        return {m: c for m, c in total.items() if c}

    def expanded(self, v: Vector) -> Vector:
        """The vector with every value of a ReLU neuron written as z times its slope, down to the inputs."""
        parts = []
        for m, c in v.items():
            part: Vector = {(): c}
            for symbol in m:
                part = self.product(part, self._expansion(symbol))
            parts.append((Fraction(1), part))
        return combined(parts)

    def expanded_size(self, v: Vector) -> int:
        """An upper bound of the number of monomials that :meth:`expanded` returns."""
        return sum(math.prod(self._expanded_size(symbol) for symbol in m) for m in v)

    def is_constant(self, v: Vector) -> bool:
        """Whether the vector is a number."""
        return all(symbol < 0 for m in v for symbol in m)

    def is_polynomial(self, v: Vector) -> bool:
        """Whether the vector is a polynomial in the coordinates, with rational coefficients."""
        return all(
            self._symbols[symbol].kind in ("coordinate", "output") for m in v for symbol in m
        )

    def value(self, v: Vector, x: Sequence[Number] = (), output: int = 0) -> arb:
        """The value of a vector's function in balls, at the current precision.

        Args:
            v: a number, or a function.
            x: the inputs; a number needs none.
            output: the component, for a function with values in R^q.
        """
        values: dict[int, arb] = {}

        def find(v: Vector) -> arb:
            total = arb(0)
            for m, c in v.items():
                term = arb(fmpq(c.numerator, c.denominator))
                for symbol in m:
                    if symbol not in values:
                        values[symbol] = look_up(self._symbols[symbol])
                    term *= values[symbol]
                total += term
            return total

        def look_up(symbol: _Symbol) -> arb:
            if symbol.kind == "coordinate":
                return arb(x[symbol.index])
            if symbol.kind == "output":
                return arb(int(symbol.index == output))
            assert symbol.z is not None
            return activation(symbol.activation)[symbol.kind == "slope"](find(symbol.z))

        return find(v)

    def _named(self, kind: Literal["coordinate", "output"], index: int) -> Monomial:
        if (kind, index) not in self._ids:
            self._ids[kind, index] = self._add(_Symbol(kind, index))
        return (self._ids[kind, index],)

    def _add(self, symbol: _Symbol, number: bool = False) -> int:
        if number:
            self._numbers -= 1
            new = self._numbers
        else:
            self._functions += 1
            new = self._functions
        self._symbols[new] = symbol
        return new

    def _new_pair(self, act: str, z: Vector) -> tuple[int, int]:
        constant = self.is_constant(z)
        # A number gets a symbol of a number only if it is certainly not 0, so that division is allowed.
        value, slope = (
            self._add(symbol, constant and self._is_nonzero(symbol))
            for symbol in (
                _Symbol("value", activation=act, z=z),
                _Symbol("slope", activation=act, z=z),
            )
        )
        if act == "relu":
            self._idempotent.add(slope)
        return value, slope

    def _is_nonzero(self, symbol: _Symbol) -> bool:
        assert symbol.z is not None
        function = activation(symbol.activation)[symbol.kind == "slope"]
        for bits in _BITS:
            with precision(bits):
                if not function(self.value(symbol.z)).contains(0):
                    return True
        return False

    def _reflected(self, act: str, z: Vector, value: int, slope: int) -> Neuron:
        """s(z) and s'(z) from the symbols of s(-z) and s'(-z)."""
        minus, plus = Fraction(-1), Fraction(1)
        v: Vector = {(value,): plus}
        s: Vector = {(slope,): plus}
        if PARITY[act] == "odd+const":
            return Neuron(combined([(plus, ONE), (minus, v)]), s)
        if PARITY[act] == "hinge":
            return Neuron(combined([(plus, v), (plus, z)]), combined([(plus, ONE), (minus, s)]))
        return Neuron(combined([(minus, v)]), s)  # odd, and sine

    def _is_affine(self, z: Vector) -> bool:
        """Whether z is an affine function, for which it is certain that it is 0 at most on a null set.

        If z is 0 the slopes of both orientations of a ReLU are 0, and their sum is not 1.
        """
        return all(len(m) <= 1 for m in z) and self.is_polynomial(z)

    def _horner(self, coefficients: Sequence[Fraction], z: Vector) -> Vector:
        total: Vector = {}
        for c in reversed(coefficients):
            total = combined([(Fraction(1), self.product(total, z)), (c, ONE)])
        return total

    def _times(self, m: Monomial, n: Monomial) -> Monomial:
        if not m or not n:
            return m or n
        both = sorted(m + n)
        if self._idempotent:
            both = [
                s
                for i, s in enumerate(both)
                if not i or s != both[i - 1] or s not in self._idempotent
            ]
        return tuple(both)

    def _relu_slope(self, symbol: int) -> int | None:
        """The slope's symbol, if this is the value of a ReLU neuron."""
        found = self._symbols[symbol]
        return symbol + 1 if (found.kind, found.activation) == ("value", "relu") else None

    def _expansion(self, symbol: int) -> Vector:
        slope = self._relu_slope(symbol)
        if slope is None:
            return {(symbol,): Fraction(1)}
        if symbol not in self._expansions:
            z = cast(Vector, self._symbols[symbol].z)
            self._expansions[symbol] = self.product(self.expanded(z), {(slope,): Fraction(1)})
        return self._expansions[symbol]

    def _expanded_size(self, symbol: int) -> int:
        if self._relu_slope(symbol) is None:
            return 1
        if symbol not in self._sizes:
            self._sizes[symbol] = self.expanded_size(cast(Vector, self._symbols[symbol].z))
        return self._sizes[symbol]


def _rational(c: Fraction) -> Vector:
    return {(): c} if c else {}
