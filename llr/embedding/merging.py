"""Merges neurons that are combinations of others in the same layer, in exact numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from flint import arb, fmpq

from llr.linalg.balls import precision
from llr.theory.spans.layers import BITS, UNIT, ZERO, ExactLayers, as_vector, rounded
from llr.theory.spans.span import Echelon, in_words
from llr.theory.spans.symbols import ONE, Monomial, Vector, combined
from llr.theory.structures.structure import rank


class _Sine(NamedTuple):
    """A sine neuron: sign * sin(wave + phase). Neurons of one direction share the wave."""

    neuron: int
    sign: int
    phase: Vector
    number: Fraction
    """The phase, rounded to 256 bits unless it is rational."""


class Layers(ExactLayers):
    """A network from which constants and combinations of other neurons are removed by merging."""

    def simplify(self, layer: int) -> bool:
        """Remove neurons of one kind; return whether there were any."""
        return (
            self.delete_idle(layer)
            or self._absorb_constants(layer)
            or self._merge_dependent(layer)
            or (self.activation == "sin" and self._merge_phases(layer))
            or (self.activation == "identity" and self._merge_read_alike(layer))
        )

    def _absorb_constants(self, layer: int) -> bool:
        """Absorb constant neurons into the next biases; without biases, into the first constant neuron."""
        values = self.values(layer)
        constants = [i for i, v in enumerate(values) if self.symbols.is_constant(v)]
        if self.absorb(layer, constants, values):
            return True
        gone: dict[int, str] = {}
        for i in constants[1:]:
            first = constants[0]
            ratio = _exact_ratio(values[i], values[first])
            if ratio is None:
                ratio = self.number(values[i]) / self.number(values[first])
            self.add_column(layer, first, ratio, i)
            name = f"is constant {float(self.number(values[i])):.6g}"
            gone[i] = f"{name}: merged into neuron {self.names[layer][first]}, constant too"
        return self.remove(layer, gone)

    def _merge_dependent(self, layer: int) -> bool:
        """Merge neurons that are combinations of other neurons and constants into these."""
        values = self.values(layer)
        biases = self.biases[layer + 1]
        carrier = next((i for i, v in enumerate(values) if self.symbols.is_constant(v)), None)
        echelon = Echelon()
        if biases is not None or carrier is not None:
            echelon.add(None, ONE)
        gone: dict[int, str] = {}
        for i, v in enumerate(values):
            if i == carrier:
                continue
            rest, combination = echelon.reduce(v)
            if rest:
                echelon.add(i, v)
                continue
            constant = combination.pop(None, ZERO)
            others = {k: c for k, c in combination.items() if k is not None}
            if constant and biases is None and carrier is not None:
                others[carrier] = constant / self.number(values[carrier])
                constant = ZERO
            gone[i] = self.merge(layer, i, others, as_vector(constant))
        return self.remove(layer, gone)

    def _merge_phases(self, layer: int) -> bool:
        """Merge sines of one direction into two of them, or into one if outgoing weights are proportional."""
        biases = self.biases[layer]
        if biases is None:
            return False
        waves: dict[frozenset[tuple[Monomial, Fraction]], list[_Sine]] = defaultdict(list)
        for i, z in enumerate(self.preactivations(layer)):
            varying = {m: c for m, c in z.items() if not self.symbols.is_constant({m: c})}
            if not varying:
                continue
            sign = 1 if varying[max(varying)] > 0 else -1
            key = frozenset((m, sign * c) for m, c in varying.items())
            phase = combined([(Fraction(sign), {m: c for m, c in z.items() if m not in varying})])
            waves[key].append(_Sine(i, sign, phase, self.number(phase)))
        gone: dict[int, str] = {}
        for wave in waves.values():
            columns = [[s.sign * v for v in self.column(layer, s.neuron)] for s in wave]
            if len(wave) > 1 and rank(columns) == 1:
                gone |= self._merge_into_one(layer, wave, columns)
            elif len(wave) > 2:
                gone |= self._merge_into_two(layer, wave)
        return self.remove(layer, gone)

    def _merge_into_one(
        self, layer: int, wave: Sequence[_Sine], columns: Sequence[Sequence[Fraction]]
    ) -> dict[int, str]:
        """sum_i r_i sin(z + phi_i) = A sin(z + phi), where column i is r_i times the first column."""
        first, sign, phase, _ = wave[0]
        at = next(j for j, v in enumerate(columns[0]) if v)
        with precision(BITS):
            re, im = arb(0), arb(0)
            for s, column in zip(wave, columns, strict=True):
                ratio, phi = _ball(column[at] / columns[0][at]), _ball(s.number)
                re, im = re + ratio * phi.cos(), im + ratio * phi.sin()
            common = as_vector(rounded(arb.atan2(im, re)))
            amplitude = rounded((re * re + im * im).sqrt())
        biases = self.biases[layer]
        assert biases is not None
        # The preactivation of the neuron may be minus that of the wave.
        change = combined([(UNIT, common), (-UNIT, phase)])
        biases[first] = combined([(UNIT, biases[first]), (Fraction(sign), change)])
        for row, v in zip(self.weights[layer + 1], columns[0], strict=True):
            row[first] = sign * amplitude * v
        name = self.names[layer][first]
        return {s.neuron: f"and neuron {name} are one sine: merged" for s in wave[1:]}

    def _merge_into_two(self, layer: int, wave: Sequence[_Sine]) -> dict[int, str]:
        """sin(z + c) is a combination of sin(z + a) and sin(z + b)."""
        first, a = wave[0], wave[0].number
        # The first one, and the one whose phase is farthest from equal or opposite.
        second = max(wave[1:], key=lambda s: abs(_sine(s.number - a)))
        b = second.number
        gone = {}
        for s in wave:
            if s in (first, second):
                continue
            c = s.number
            for other, ratio in ((first, _ratio(c - b, a - b)), (second, _ratio(c - a, b - a))):
                self.add_column(layer, other.neuron, s.sign * other.sign * ratio, s.neuron)
            names = (self.names[layer][other.neuron] for other in (first, second))
            gone[s.neuron] = "has the direction of neurons {} and {}: merged into both".format(
                *names
            )
        return gone

    def _merge_read_alike(self, layer: int) -> bool:
        """Without an activation, merge neurons whose outgoing weights are combinations of those of others."""
        echelon, gone = Echelon(), dict[int, str]()
        incoming, biases = self.weights[layer], self.biases[layer]
        for i in range(len(self.names[layer])):
            v: Vector = {(j + 1,): c for j, c in enumerate(self.column(layer, i)) if c}
            rest, combination = echelon.reduce(v)
            if rest:
                echelon.add(i, v)
                continue
            for k, c in combination.items():
                assert k is not None
                incoming[k] = [w + c * u for w, u in zip(incoming[k], incoming[i], strict=True)]
                if biases is not None:
                    biases[k] = combined([(UNIT, biases[k]), (c, biases[i])])
            named: dict[int | None, Fraction] = {
                self.names[layer][k]: c for k, c in combination.items() if k is not None
            }
            told = in_words(named)
            gone[i] = f"has the outgoing weights of {told}: incoming weights added there"
        return self.remove(layer, gone)


def _exact_ratio(u: Vector, v: Vector) -> Fraction | None:
    """u / v if u is a rational multiple of v; None otherwise."""
    if set(u) != set(v):
        return None
    ratios = {u[m] / v[m] for m in v}
    return ratios.pop() if len(ratios) == 1 else None


def _ball(c: Fraction) -> arb:
    return arb(fmpq(c.numerator, c.denominator))


def _sine(phase: Fraction) -> float:
    with precision(BITS):
        return float(_ball(phase).sin().mid())


def _ratio(a: Fraction, b: Fraction) -> Fraction:
    """sin(a) / sin(b)."""
    with precision(BITS):
        return rounded(_ball(a).sin() / _ball(b).sin())
