"""Finds functions that are linear combinations of earlier functions, with the combination as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from llr.theory.spans.symbols import ONE, Monomial, Symbols, Vector, combined


class Function(NamedTuple):
    """The function of a neuron."""

    value: Vector
    wave: Hashable = None
    """For a sine, the part that sines of different phases have in common."""


class Span:
    """The span of the functions of neurons, which are added one after the other.

    Args:
        symbols: the symbols of the functions.
        constant: whether the constant functions belong to the span from the start.

    Example:
        >>> from fractions import Fraction
        >>> from llr.theory.spans.span import Function, Span
        >>> from llr.theory.spans.symbols import Symbols
        >>> symbols = Symbols()
        >>> x, span = symbols.coordinate(0), Span(symbols, constant=True)
        >>> print(span.add(0, Function({x: Fraction(2)})))
        None
        >>> print(span.add(1, Function({x: Fraction(1), (): Fraction(3)})))
        = 1/2 neuron 0 + 3
    """

    def __init__(self, symbols: Symbols, constant: bool) -> None:
        self._symbols = symbols
        self._exact, self._varying = Echelon(), Echelon()
        self._constants = constant
        self._waves: defaultdict[Hashable, list[int]] = defaultdict(list)
        if constant:
            self._exact.add(None, ONE)

    def add(self, number: int, function: Function) -> str | None:
        """Add neuron `number`, or return text that says how it follows from earlier neurons.

        The first function that differs from a combination of earlier ones by a constant adds all constants to
        the span, since their values are not compared.
        """
        v, wave = function
        rest, combination = self._exact.reduce(v)
        if not rest:
            return f"= {in_words(combination)}"
        own = {m: c for m, c in v.items() if not self._symbols.is_constant({m: c})}
        varying, combination = self._varying.reduce(own)
        if not varying and self._constants:
            return f"= {in_words(combination)} + a constant" if combination else "is constant"
        others = self._waves[wave] if wave is not None else []
        if len(others) >= 2:
            i, j = others[:2]
            return f"is a combination of neurons {i} and {j}, which are ahead of it by phases"
        others.append(number)
        self._exact.add(number, v)
        if varying:
            self._varying.add(number, own)
        self._constants |= not varying
        return None


@dataclass
class Echelon:
    """Vectors in echelon form, each with its expression as a combination of the added neurons.

    Example:
        >>> from fractions import Fraction
        >>> from llr.theory.spans.span import Echelon
        >>> echelon = Echelon()
        >>> echelon.add(0, {(1,): Fraction(2)})
        >>> echelon.reduce({(1,): Fraction(1)})
        ({}, {0: Fraction(1, 2)})
    """

    rows: list[tuple[Monomial, Vector, dict[int | None, Fraction]]] = field(default_factory=list)

    def reduce(self, v: Vector) -> tuple[Vector, dict[int | None, Fraction]]:
        """The remainder of a vector, and the combination of neurons that was subtracted."""
        rest, taken = v, dict[int | None, Fraction]()
        for pivot, row, combination in self.rows:
            if factor := rest.get(pivot):
                rest = combined([(Fraction(1), rest), (-factor, row)])
                for number, c in combination.items():
                    taken[number] = taken.get(number, Fraction(0)) + factor * c
        return rest, {number: c for number, c in taken.items() if c}

    def add(self, number: int | None, v: Vector) -> None:
        """Add a vector that is not a combination of the others."""
        rest, taken = self.reduce(v)
        pivot = min(rest)
        scale = 1 / rest[pivot]
        combination = {other: -scale * c for other, c in taken.items()} | {number: scale}
        self.rows.append((pivot, combined([(scale, rest)]), combination))


def in_words(combination: Mapping[int | None, Fraction]) -> str:
    """A combination of neurons as text; the key None is the constant 1.

    Example:
        >>> from fractions import Fraction
        >>> from llr.theory.spans.span import in_words
        >>> in_words({2: Fraction(-1), None: Fraction(1, 2)})
        '-neuron 2 + 1/2'
    """
    text = ""
    for number, c in sorted(combination.items(), key=lambda item: (item[0] is None, item[0] or 0)):
        size = str(abs(c)) if c.denominator <= 1000 else f"{float(abs(c)):.6g}"
        name = size if number is None else f"neuron {number}"
        factor = "" if number is None or abs(c) == 1 else f"{size} "
        sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
        text += sign + factor + name
    return text or "0"
