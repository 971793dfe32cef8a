"""Reduces a network by merging, absorbing and deleting neurons, in exact arithmetic."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from llr.theory.spans.layers import UNIT, ExactLayers
from llr.theory.spans.symbols import ONE, combined
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import DeepNet


@dataclass(frozen=True)
class Reduction:
    """A reduced network, and the steps that led to it.

    Attributes:
        net: a network with the same function. If all neurons of a hidden layer were removed, it keeps one
            neuron that is zero, and the function is constant.
        steps: the steps as text, one line each; neurons have their numbers in the given network.
        exact: whether the biases of `net` are exact; otherwise values such as tanh(1) in them are rounded to
            256 bits. The decisions to merge, absorb and delete neurons are always exact.
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

    The layers are processed from the inputs on, since merging neurons of a layer may make neurons of later
    layers equal. This is repeated while deletions leave neurons of earlier layers without outgoing weights.
    The tangent space of the reduced network is a subspace of the network's own.

    * Neurons are merged if their incoming weights and biases are equal, or equal up to the activation's
      symmetry: the sign for tanh, erf and sine; the sign for sigmoid, too, if the next layer has a bias for
      the constant in s(-z) = 1 - s(z); a positive factor for ReLU. Reflections of softplus, GELU, SiLU
      and ReLU add an affine function of the previous layer, which biases cannot represent.
    * A neuron without incoming weights is absorbed into the next layer's biases, if that layer has biases or
      the neuron's value is 0.
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
        ((1, 1, 2, 1), ('layer 0: neuron 1 = -neuron 0: merged',))
    """
    if net.activation not in PARITY:
        raise ValueError(
            f"activation is {net.activation!r}, whose reflection is not known; expected one of "
            + ", ".join(PARITY)
        )
    work = _Equal(net.activation, net.weights, net.biases)
    work.reduce()
    weights = tuple(tuple(tuple(row) for row in W) for W in work.weights)
    reduced = DeepNet(net.activation, weights, tuple(work.fractions()))
    return Reduction(reduced, tuple(work.steps), work.exact)


class _Form(NamedTuple):
    """A neuron as s(factor z), or s(-z) if it is reflected, with a z that equal neurons share."""

    key: Hashable
    reflected: bool
    factor: Fraction


class _Equal(ExactLayers):
    """A reduction by equal weights only, which keeps the tangent space within that of the network."""

    def simplify(self, layer: int) -> bool:
        """Remove neurons of one kind; return whether there were any."""
        return self.delete_idle(layer) or self._absorb_unfed(layer) or self._merge_equal(layer)

    def _absorb_unfed(self, layer: int) -> bool:
        unfed = [i for i, row in enumerate(self.weights[layer]) if not any(row)]
        return bool(unfed) and self.absorb(layer, unfed, self.values(layer))

    def _merge_equal(self, layer: int) -> bool:
        seen: dict[Hashable, tuple[int, _Form]] = {}
        gone: dict[int, str] = {}
        for j in range(len(self.weights[layer])):
            form = self._form(layer, j)
            i, first = seen.setdefault(form.key, (j, form))
            if i == j:
                continue
            reflected = form.reflected != first.reflected
            constant = ONE if reflected and PARITY[self.activation] == "odd+const" else {}
            if constant and self.biases[layer + 1] is None:
                continue
            factor = form.factor / first.factor * (-1 if reflected else 1)
            gone[j] = self.merge(layer, j, {i: factor}, constant)
        return self.remove(layer, gone)

    def _form(self, layer: int, i: int) -> _Form:
        row = self.weights[layer][i]
        leading = next((v for v in row if v), UNIT)
        factor, reflected = UNIT, False
        if self.activation == "relu":
            factor = abs(leading)
        elif PARITY[self.activation] != "hinge":
            reflected = leading < 0
        scale = (-1 if reflected else 1) / factor
        bias = combined([(scale, self.bias(layer, i))])
        return _Form((tuple(scale * v for v in row), frozenset(bias.items())), reflected, factor)
