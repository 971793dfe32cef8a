"""MLPs in exact numbers, from which neurons are removed without changing the function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from flint import arb

from llr.linalg.balls import precision
from llr.theory.spans.span import in_words
from llr.theory.spans.symbols import Symbols, Vector, combined
from llr.theory.structures.structure import Row

ZERO, UNIT = Fraction(0), Fraction(1)
# Numbers such as tanh(1) are rounded to this many bits if a fraction is needed.
BITS = 256


class ExactLayers(ABC):
    """The layers of an MLP, and the steps of reductions.

    A subclass decides in :meth:`simplify` which neurons are removed. Biases are symbolic numbers, so the
    value of a constant neuron, such as tanh(1), stays exact when it is added to a bias.

    Args:
        activation: a name of ``llr.operators.formula.ACTIVATIONS``, or "polynomial".
        weights: rows of the weight matrices.
        biases: per layer; None for layers without biases.
        coefficients: of a polynomial activation.

    Attributes:
        steps: the steps as text, one line each. Layers and neurons have the numbers that they had at the
            beginning.
        signals: the input functions of the current layer, while :meth:`reduce` runs.
    """

    def __init__(
        self,
        activation: str,
        weights: Iterable[Iterable[Row]],
        biases: Iterable[Row | None],
        coefficients: Row = (),
    ) -> None:
        self.activation, self.coefficients = activation, coefficients
        self.symbols = Symbols()
        self.weights = [[list(row) for row in W] for W in weights]
        self.biases: list[list[Vector] | None] = [
            None if b is None else [as_vector(v) for v in b] for b in biases
        ]
        self.names = [list(range(len(W))) for W in self.weights[:-1]]
        self.steps: list[str] = []
        self.signals: list[Vector] = []

    @property
    def exact(self) -> bool:
        """Whether all biases are rational."""
        return all(set(v) <= {()} for b in self.biases for v in b or ())

    def fractions(self) -> list[Row | None]:
        """The biases, rounded to 256 bits if they are not rational."""
        return [None if b is None else tuple(map(self.number, b)) for b in self.biases]

    def reduce(self) -> None:
        """Simplify the layers from the first to the last, until nothing changes.

        Merging neurons may make neurons of later layers equal; deletions may leave neurons of earlier layers
        without outgoing weights.
        """
        changed = True
        while changed:
            changed = False
            inputs = range(len(self.weights[0][0]))
            self.signals = [{self.symbols.coordinate(c): UNIT} for c in inputs]
            for layer in range(len(self.names)):
                while not self.is_null(layer) and self.simplify(layer):
                    changed = True
                self.signals = self.values(layer)

    @abstractmethod
    def simplify(self, layer: int) -> bool:
        """Remove neurons of one kind; return whether there were any."""

    def delete_idle(self, layer: int) -> bool:
        """Delete neurons without outgoing weights."""
        idle = [i for i in range(len(self.names[layer])) if not any(self.column(layer, i))]
        return self.remove(layer, dict.fromkeys(idle, "has no outgoing weights: deleted"))

    def absorb(self, layer: int, constants: Iterable[int], values: Sequence[Vector]) -> bool:
        """Add constant neurons to the next layer's biases, if it has any; delete neurons that are 0."""
        gone: dict[int, str] = {}
        for i in constants:
            if not values[i]:
                gone[i] = "is constant 0: deleted"
            elif self.biases[layer + 1] is not None:
                self.add_to_biases(layer + 1, self.column(layer, i), values[i])
                number = f"{float(self.number(values[i])):.6g}"
                gone[i] = f"is constant {number}: absorbed into the biases of layer {layer + 1}"
        return self.remove(layer, gone)

    def merge(self, layer: int, i: int, others: Mapping[int, Fraction], constant: Vector) -> str:
        """Replace a neuron by a combination of others and a constant; return the text of this step.

        The constant is added to the next layer's biases, which must exist unless it is 0.
        """
        column = self.column(layer, i)
        for k, c in others.items():
            self.add_column(layer, k, c, i)
        if constant:
            self.add_to_biases(layer + 1, column, constant)
        named: dict[int | None, Fraction] = {self.names[layer][k]: c for k, c in others.items()}
        if constant:
            named[None] = self.number(constant)
        return f"= {in_words(named)}: merged"

    def remove(self, layer: int, gone: Mapping[int, str]) -> bool:
        """Remove neurons without effect, except one if all are removed; return whether there were any."""
        if not gone:
            return False
        names, biases = self.names[layer], self.biases[layer]
        self.steps += [f"layer {layer}: neuron {names[i]} {text}" for i, text in gone.items()]
        kept = [i for i in range(len(names)) if i not in gone]
        if not kept:
            kept = [0]
            self.steps.append(
                f"layer {layer}: neuron {names[0]} stays without weights, as the only one"
            )
            self.weights[layer][0] = [ZERO] * len(self.weights[layer][0])
            for row in self.weights[layer + 1]:
                row[0] = ZERO
            if biases is not None:
                biases[0] = {}
        self.weights[layer] = [self.weights[layer][i] for i in kept]
        self.weights[layer + 1] = [[row[i] for i in kept] for row in self.weights[layer + 1]]
        self.biases[layer] = None if biases is None else [biases[i] for i in kept]
        self.names[layer] = [names[i] for i in kept]
        return True

    def is_null(self, layer: int) -> bool:
        """Whether the layer is a single neuron without weights and bias."""
        return (
            len(self.names[layer]) == 1
            and not any(self.weights[layer][0])
            and not any(self.column(layer, 0))
            and not self.bias(layer, 0)
        )

    def bias(self, layer: int, i: int) -> Vector:
        """The bias of a neuron; 0 if there is none."""
        biases = self.biases[layer]
        return {} if biases is None else biases[i]

    def column(self, layer: int, i: int) -> list[Fraction]:
        """The outgoing weights of a neuron."""
        return [row[i] for row in self.weights[layer + 1]]

    def add_column(self, layer: int, to: int, factor: Fraction, i: int) -> None:
        """Add a multiple of the outgoing weights of neuron `i` to those of another one."""
        for row in self.weights[layer + 1]:
            row[to] += factor * row[i]

    def add_to_biases(self, layer: int, column: Sequence[Fraction], value: Vector) -> None:
        """Add multiples of a number to the biases of a layer that has them."""
        biases = self.biases[layer]
        assert biases is not None
        self.biases[layer] = [
            combined([(UNIT, b), (c, value)]) for b, c in zip(biases, column, strict=True)
        ]

    def preactivations(self, layer: int) -> list[Vector]:
        """The arguments of the activations of the current layer."""
        return [
            combined([*zip(row, self.signals, strict=True), (UNIT, self.bias(layer, i))])
            for i, row in enumerate(self.weights[layer])
        ]

    def values(self, layer: int) -> list[Vector]:
        """The neurons of the current layer as functions."""
        return [
            self.symbols.neuron(self.activation, z, self.coefficients).value
            for z in self.preactivations(layer)
        ]

    def number(self, v: Vector) -> Fraction:
        """The value of a constant vector, rounded to 256 bits unless it is rational."""
        if set(v) <= {()}:
            return v.get((), ZERO)
        with precision(BITS):
            return rounded(self.symbols.value(v))


def as_vector(c: Fraction) -> Vector:
    """A rational number as a vector."""
    return {(): c} if c else {}


def rounded(ball: arb) -> Fraction:
    """The midpoint of a ball."""
    man, exp = ball.mid().man_exp()
    return Fraction(int(man)) * Fraction(2) ** int(exp)
