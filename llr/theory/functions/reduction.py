"""The narrowest network that merging, absorbing and deleting neurons leads to, in exact arithmetic."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from llr.linalg.balls import precision
from llr.theory.spans.symbols import ONE, Symbols, Vector, combined
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import DeepNet

# Numbers such as tanh(1) are rounded to so many bits in the network that is returned.
_BITS = 256


@dataclass(frozen=True)
class Reduction:
    """What is left of a network, and how it came about.

    Attributes:
        net: a network with the same function. A hidden layer whose neurons all went away keeps one that is
            zero, and the function is constant.
        steps: what was done, in words; neurons go by their numbers in the network that was given.
        exact: whether the biases of `net` are the numbers themselves; otherwise values such as tanh(1) in
            them are rounded to 256 bits. What was merged, absorbed and deleted was decided exactly.
    """

    net: DeepNet
    steps: tuple[str, ...]
    exact: bool

    @property
    def constant(self) -> bool:
        """Whether no input reaches the outputs."""
        return not all(any(any(row) for row in W) for W in self.net.weights)


def reduce_network(net: DeepNet) -> Reduction:
    """Merge equal neurons, absorb constant ones and delete idle ones, until nothing changes.

    Layer by layer from the inputs on, since what is merged below may make neurons equal above, and again
    while deletions above leave neurons below without outgoing weights. The tangent space of what is left lies
    within the network's own.

    * Neurons are merged if their incoming weights and biases are equal, or equal up to the activation's
      reflection: the sign for tanh, erf and sine; for sigmoid too, where the next layer has a bias to take
      the constant that s(-z) = 1 - s(z) leaves; a positive factor for ReLU. Reflected softplus, GELU, SiLU
      and ReLU leave an affine function of the layer before, which no bias takes.
    * A neuron without incoming weights is absorbed by the next layer's biases, if it has them or the neuron's
      value is 0.
    * A neuron without outgoing weights is deleted.

    Args:
        net: a network of an activation whose reflection is known.

    Raises:
        ValueError: another activation.

    Source: docs/theory.md, 1.2 and Theorem 6.3.

    Example:
        >>> import torch
        >>> from llr.models import mlp
        >>> from llr.theory import read_structure
        >>> wide = mlp([1, 2, 2, 1])
        >>> with torch.no_grad():
        ...     wide[0].weight[1], wide[0].bias[1] = -wide[0].weight[0], -wide[0].bias[0]
        >>> found = reduce_network(read_structure(wide))
        >>> found.net.widths, found.steps
        ((1, 1, 2, 1), ('layer 1: neuron 1 merged into neuron 0, reflected',))
    """
    if net.activation not in PARITY:
        raise ValueError(
            f"activation is {net.activation!r}, whose reflection is not known; expected one of "
            + ", ".join(PARITY)
        )
    work = _Work(net)
    steps: list[str] = []
    while True:
        before = len(steps)
        for layer in range(len(work.weights) - 1):
            while (step := work.step(layer)) is not None:
                steps.append(step)
        if len(steps) == before:
            break
    return Reduction(work.network(), tuple(steps), work.exact)


class _Form(NamedTuple):
    """A neuron as s(factor z), or s(-z) where it is reflected, of a z that equal neurons share."""

    key: Hashable
    reflected: bool
    factor: Fraction


class _Work:
    """A network that is being reduced; its biases are numbers in symbols."""

    def __init__(self, net: DeepNet) -> None:
        self.activation = net.activation
        self.symbols = Symbols()
        self.weights = [[list(row) for row in W] for W in net.weights]
        self.biases: list[list[Vector] | None] = [
            None if b is None else [_number(v) for v in b] for b in net.biases
        ]
        self.names = [list(range(len(W))) for W in net.weights]

    @property
    def exact(self) -> bool:
        """Whether all biases are rational."""
        return all(set(v) <= {()} for b in self.biases for v in b or ())

    def network(self) -> DeepNet:
        """The network as it is."""
        return DeepNet(
            self.activation,
            tuple(tuple(tuple(row) for row in W) for W in self.weights),
            tuple(None if b is None else tuple(map(self._rounded, b)) for b in self.biases),
        )

    def step(self, layer: int) -> str | None:
        """Make one change in a hidden layer, and say which; None if there is none to make."""
        found = self._delete(layer) or self._absorb(layer) or self._merge(layer)
        return None if found is None else f"layer {layer + 1}: {found}"

    def _delete(self, layer: int) -> str | None:
        for i in range(len(self.weights[layer])):
            if not any(self._outgoing(layer, i)) and not self._is_placeholder(layer, i):
                name = self._remove(layer, i)
                return f"neuron {name} deleted, no outgoing weights"
        return None

    def _absorb(self, layer: int) -> str | None:
        for i, row in enumerate(self.weights[layer]):
            if any(row) or self._is_placeholder(layer, i):
                continue
            value = self.symbols.neuron(self.activation, self._bias(layer, i)).value
            if value and self.biases[layer + 1] is None:
                continue
            self._add_to_biases(layer + 1, self._outgoing(layer, i), value)
            name = self._remove(layer, i)
            return f"neuron {name} absorbed, no incoming weights"
        return None

    def _merge(self, layer: int) -> str | None:
        seen: dict[Hashable, tuple[int, _Form]] = {}
        for j in range(len(self.weights[layer])):
            form = self._form(layer, j)
            if form.key not in seen:
                seen[form.key] = j, form
                continue
            i, first = seen[form.key]
            reflected = form.reflected != first.reflected
            sigmoid = PARITY[self.activation] == "odd+const"
            if reflected and sigmoid and self.biases[layer + 1] is None:
                continue
            column = self._outgoing(layer, j)
            if reflected and sigmoid:
                self._add_to_biases(layer + 1, column, ONE)
            factor = form.factor / first.factor * (-1 if reflected else 1)
            for row, v in zip(self.weights[layer + 1], column, strict=True):
                row[i] += factor * v
            name = self._remove(layer, j)
            words = f"neuron {name} merged into neuron {self.names[layer][i]}"
            return words + ", reflected" * reflected
        return None

    def _form(self, layer: int, i: int) -> _Form:
        row, bias = self.weights[layer][i], self._bias(layer, i)
        leading = next((v for v in row if v), Fraction(1))
        factor, reflected = Fraction(1), False
        if self.activation == "relu":
            factor = abs(leading)
        elif PARITY[self.activation] != "hinge":
            reflected = leading < 0
        scale = (-1 if reflected else 1) / factor
        key = tuple(scale * v for v in row), frozenset(combined([(scale, bias)]).items())
        return _Form(key, reflected, factor)

    def _bias(self, layer: int, i: int) -> Vector:
        biases = self.biases[layer]
        return {} if biases is None else biases[i]

    def _outgoing(self, layer: int, i: int) -> list[Fraction]:
        return [row[i] for row in self.weights[layer + 1]]

    def _add_to_biases(self, layer: int, column: list[Fraction], value: Vector) -> None:
        biases = self.biases[layer]
        if biases is not None:
            self.biases[layer] = [
                combined([(Fraction(1), b), (v, value)])
                for b, v in zip(biases, column, strict=True)
            ]

    def _is_placeholder(self, layer: int, i: int) -> bool:
        """Whether the neuron is all that is left of its layer, and zero."""
        alone = len(self.weights[layer]) == 1
        rest = (*self.weights[layer][i], *self._outgoing(layer, i))
        return alone and not any(rest) and not self._bias(layer, i)

    def _remove(self, layer: int, i: int) -> int:
        """Take the neuron out, or set it to zero if it is the last one."""
        name = self.names[layer][i]
        biases = self.biases[layer]
        if len(self.weights[layer]) == 1:
            self.weights[layer][i] = [Fraction(0)] * len(self.weights[layer][i])
            for row in self.weights[layer + 1]:
                row[i] = Fraction(0)
            if biases is not None:
                biases[i] = {}
            return name
        del self.weights[layer][i], self.names[layer][i]
        for row in self.weights[layer + 1]:
            del row[i]
        if biases is not None:
            del biases[i]
        return name

    def _rounded(self, v: Mapping[tuple[int, ...], Fraction]) -> Fraction:
        if set(v) <= {()}:
            return v.get((), Fraction(0))
        with precision(_BITS):
            man, exp = self.symbols.value(v).mid().man_exp()
        return Fraction(int(man)) * Fraction(2) ** int(exp)


def _number(v: Fraction) -> Vector:
    return {(): v} if v else {}
