"""Layers of neurons in exact numbers, from which what does not matter for the function is taken away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from flint import arb, fmpq

from llr.embedding.network import Network
from llr.linalg.balls import precision
from llr.theory.spans.span import Echelon, in_words
from llr.theory.spans.symbols import ONE, Monomial, Symbols, Vector, combined
from llr.theory.structures.structure import Row, exact_matrix, exact_row, rank

_ZERO, _UNIT = Fraction(0), Fraction(1)
# Numbers such as tanh(1) are found to so many bits before they are rounded to float64.
_BITS = 160


class Layers:
    """An MLP in exact numbers; each method makes a layer narrower without changing the function.

    Attributes:
        weights: rows of the weight matrices.
        biases: likewise; None for layers without.
        steps: what was done, in words. Neurons have the numbers that they had at the beginning.
    """

    def __init__(self, network: Network, coefficients: Row) -> None:
        self.weights = [[list(row) for row in exact_matrix(W)] for W in network.weights]
        self.biases = [None if b is None else list(exact_row(b)) for b in network.biases]
        self.steps: list[str] = []
        self._activation, self._coefficients = network.activation, coefficients
        self._symbols = Symbols()
        self._names = [list(range(n)) for n in network.hidden]

    def reduce(self) -> None:
        """Take away what one can, from the first layer to the last, until nothing changes."""
        changed = True
        while changed:
            changed = False
            signals: list[Vector] = [
                {self._symbols.coordinate(c): _UNIT} for c in range(len(self.weights[0][0]))
            ]
            for layer in range(len(self._names)):
                while self._simplify(layer, signals):
                    changed = True
                signals = self._values(layer, signals)

    def _simplify(self, layer: int, signals: Sequence[Vector]) -> bool:
        """Take away neurons of one kind; whether there were any."""
        if self._is_null(layer):
            return False
        return (
            self._delete_idle(layer)
            or self._absorb_constants(layer, signals)
            or self._merge_dependent(layer, signals)
            or (self._activation == "sin" and self._merge_phases(layer, signals))
            or (self._activation == "identity" and self._merge_read_alike(layer))
        )

    def _delete_idle(self, layer: int) -> bool:
        idle = [i for i in range(len(self._names[layer])) if not any(self._column(layer, i))]
        return self._remove(layer, dict.fromkeys(idle, "has no outgoing weights: deleted"))

    def _absorb_constants(self, layer: int, signals: Sequence[Vector]) -> bool:
        """Constant neurons go into the next biases, or without these into the first of them."""
        values = self._values(layer, signals)
        constants = [i for i, v in enumerate(values) if self._symbols.is_constant(v)]
        biases = self.biases[layer + 1]
        gone: dict[int, str] = {}
        first: int | None = None
        for i in constants:
            value = self._number(values[i])
            name = f"is constant {float(value):.6g}"
            if not value:
                gone[i] = "is constant 0: deleted"
            elif biases is not None:
                for j, v in enumerate(self._column(layer, i)):
                    biases[j] += v * value
                gone[i] = f"{name}: absorbed into the biases of layer {layer + 1}"
            elif first is None:
                first = i
            else:
                ratio = _exact_ratio(values[i], values[first])
                ratio = value / self._number(values[first]) if ratio is None else ratio
                self._add_column(layer, first, ratio, i)
                gone[i] = f"{name}: merged into neuron {self._names[layer][first]}, constant too"
        return self._remove(layer, gone)

    def _merge_dependent(self, layer: int, signals: Sequence[Vector]) -> bool:
        """Neurons that are combinations of others, and of constants where there are any, go into these."""
        values = self._values(layer, signals)
        biases = self.biases[layer + 1]
        carrier = next((i for i, v in enumerate(values) if self._symbols.is_constant(v)), None)
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
            for k, c in combination.items():
                if k is not None:
                    self._add_column(layer, k, c, i)
                elif biases is not None:
                    for j, w in enumerate(self._column(layer, i)):
                        biases[j] += c * w
                elif carrier is not None:
                    self._add_column(layer, carrier, c / self._number(values[carrier]), i)
            named = {
                None if k is None else self._names[layer][k]: c for k, c in combination.items()
            }
            gone[i] = f"= {in_words(named)}: merged"
        return self._remove(layer, gone)

    def _merge_phases(self, layer: int, signals: Sequence[Vector]) -> bool:
        """Sines of one direction are combinations of two of them, and of one if they are read alike."""
        biases = self.biases[layer]
        if biases is None:
            return False
        waves: dict[frozenset[tuple[Monomial, Fraction]], list[tuple[int, int, Fraction]]]
        waves = defaultdict(list)
        for i, z in enumerate(self._preactivations(layer, signals)):
            varying = {m: c for m, c in z.items() if m}
            if not varying:
                continue
            sign = 1 if varying[max(varying)] > 0 else -1
            key = frozenset((m, sign * c) for m, c in varying.items())
            waves[key].append((i, sign, sign * z.get((), _ZERO)))
        gone: dict[int, str] = {}
        for wave in waves.values():
            columns = [[sign * v for v in self._column(layer, i)] for i, sign, _ in wave]
            if len(wave) > 1 and rank(columns) == 1:
                gone |= self._merge_into_one(layer, wave, columns)
            elif len(wave) > 2:
                gone |= self._merge_into_two(layer, wave)
        return self._remove(layer, gone)

    def _merge_into_one(
        self,
        layer: int,
        wave: Sequence[tuple[int, int, Fraction]],
        columns: Sequence[Sequence[Fraction]],
    ) -> dict[int, str]:
        """sum_i r_i sin(z + phi_i) = A sin(z + phi), where r_i are the columns as multiples of the first."""
        first, sign, _ = wave[0]
        at = next(j for j, v in enumerate(columns[0]) if v)
        with precision(_BITS):
            re, im = arb(0), arb(0)
            for (_, _, phase), column in zip(wave, columns, strict=True):
                ratio, phi = _ball(column[at] / columns[0][at]), _ball(phase)
                re, im = re + ratio * phi.cos(), im + ratio * phi.sin()
            phase = _rounded(arb.atan2(im, re))
            amplitude = _rounded((re * re + im * im).sqrt())
        biases = self.biases[layer]
        assert biases is not None
        # The preactivation of the neuron may be minus that of the wave.
        biases[first] += sign * (phase - wave[0][2])
        for row, v in zip(self.weights[layer + 1], columns[0], strict=True):
            row[first] = sign * amplitude * v
        name = self._names[layer][first]
        return {i: f"and neuron {name} are one sine: merged" for i, _, _ in wave[1:]}

    def _merge_into_two(
        self, layer: int, wave: Sequence[tuple[int, int, Fraction]]
    ) -> dict[int, str]:
        """sin(z + c) is a combination of sin(z + a) and sin(z + b)."""
        first, s, a = wave[0]
        # The two that are farthest from being one.
        other = max(range(1, len(wave)), key=lambda k: abs(_sine(wave[k][2] - a)))
        second, t, b = wave[other]
        gone = {}
        for i, sign, c in wave:
            if i not in (first, second):
                self._add_column(layer, first, sign * s * _ratio(c - b, a - b), i)
                self._add_column(layer, second, sign * t * _ratio(c - a, b - a), i)
                names = (self._names[layer][k] for k in (first, second))
                gone[i] = "has the direction of neurons {} and {}: merged into both".format(*names)
        return gone

    def _merge_read_alike(self, layer: int) -> bool:
        """Without an activation, neurons that are read in combination add up before they are read."""
        echelon, gone = Echelon(), dict[int, str]()
        incoming, biases = self.weights[layer], self.biases[layer]
        for i in range(len(self._names[layer])):
            v: Vector = {(j + 1,): c for j, c in enumerate(self._column(layer, i)) if c}
            rest, combination = echelon.reduce(v)
            if rest:
                echelon.add(i, v)
                continue
            for k, c in combination.items():
                assert k is not None
                incoming[k] = [w + c * u for w, u in zip(incoming[k], incoming[i], strict=True)]
                if biases is not None:
                    biases[k] += c * biases[i]
            named: dict[int | None, Fraction] = {
                self._names[layer][k]: c for k, c in combination.items() if k is not None
            }
            gone[i] = f"is read as {in_words(named)}: added to what comes in there"
        return self._remove(layer, gone)

    def _remove(self, layer: int, gone: Mapping[int, str]) -> bool:
        """Remove neurons that do not matter any more, but for one if they are all."""
        if not gone:
            return False
        names, biases = self._names[layer], self.biases[layer]
        self.steps += [f"layer {layer}: neuron {names[i]} {text}" for i, text in gone.items()]
        kept = [i for i in range(len(names)) if i not in gone]
        if not kept:
            kept = [0]
            self.steps.append(
                f"layer {layer}: neuron {names[0]} stays without weights, as the only one"
            )
            self.weights[layer][0] = [_ZERO] * len(self.weights[layer][0])
            for row in self.weights[layer + 1]:
                row[0] = _ZERO
            if biases is not None:
                biases[0] = _ZERO
        self.weights[layer] = [self.weights[layer][i] for i in kept]
        self.weights[layer + 1] = [[row[i] for i in kept] for row in self.weights[layer + 1]]
        self.biases[layer] = None if biases is None else [biases[i] for i in kept]
        self._names[layer] = [names[i] for i in kept]
        return True

    def _is_null(self, layer: int) -> bool:
        """Whether the layer is one neuron without weights and bias."""
        biases = self.biases[layer]
        return (
            len(self._names[layer]) == 1
            and not any(self.weights[layer][0])
            and not any(self._column(layer, 0))
            and not (biases and biases[0])
        )

    def _column(self, layer: int, i: int) -> list[Fraction]:
        """The outgoing weights of a neuron."""
        return [row[i] for row in self.weights[layer + 1]]

    def _add_column(self, layer: int, to: int, factor: Fraction, i: int) -> None:
        for row in self.weights[layer + 1]:
            row[to] += factor * row[i]

    def _preactivations(self, layer: int, signals: Sequence[Vector]) -> list[Vector]:
        biases = self.biases[layer]
        return [
            combined([*zip(row, signals, strict=True), (biases[i] if biases else _ZERO, ONE)])
            for i, row in enumerate(self.weights[layer])
        ]

    def _values(self, layer: int, signals: Sequence[Vector]) -> list[Vector]:
        """The neurons as functions."""
        return [
            self._symbols.neuron(self._activation, z, self._coefficients).value
            for z in self._preactivations(layer, signals)
        ]

    def _number(self, v: Vector) -> Fraction:
        """The number that a constant vector is, rounded to float64 unless it is rational."""
        if set(v) <= {()}:
            return v.get((), _ZERO)
        with precision(_BITS):
            return _rounded(self._symbols.value(v))


def _exact_ratio(u: Vector, v: Vector) -> Fraction | None:
    """u / v if the one is a rational multiple of the other."""
    if set(u) != set(v):
        return None
    ratios = {u[m] / v[m] for m in v}
    return ratios.pop() if len(ratios) == 1 else None


def _ball(c: Fraction) -> arb:
    return arb(fmpq(c.numerator, c.denominator))


def _rounded(ball: arb) -> Fraction:
    return Fraction(float(ball.mid()))


def _sine(phase: Fraction) -> float:
    with precision(_BITS):
        return float(_ball(phase).sin().mid())


def _ratio(a: Fraction, b: Fraction) -> Fraction:
    """sin(a) / sin(b)."""
    with precision(_BITS):
        return _rounded(_ball(a).sin() / _ball(b).sin())
