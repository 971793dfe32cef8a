"""Tangent functions of networks of any depth as formal vectors, and proofs from their ranks and spans.

Evaluation is a linear map from formal vectors to functions. So the rank of the formal tangent vectors is an
upper bound of dim T at any parameter, and a linear relation of formal vectors holds for the functions, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from torch import nn

from llr.inputs.mlp import NotAnMLP, read_mlp
from llr.theory.result import Dimension, Status, Term
from llr.theory.spans.formal_span import formal_rank
from llr.theory.spans.symbols import ONE, Monomial, Symbols, Vector, combined, primitive
from llr.theory.structures.groups import group_neurons, named
from llr.theory.structures.structure import (
    ConvNet,
    DeepNet,
    LinearNet,
    Matrix,
    Row,
    Structure,
    TwoLayerNet,
    read_structure,
)

# About a second's work. A network with more terms is too wide and deep to be expanded path by path.
_MOST_TERMS = 200_000


@dataclass(frozen=True)
class _Layers:
    """A network as layers; `coefficients` are those of a polynomial."""

    activation: str
    weights: tuple[Matrix, ...]
    biases: tuple[Row | None, ...]
    coefficients: Row = ()

    @classmethod
    def of(cls, net: Structure) -> _Layers:
        if isinstance(net, LinearNet):
            return cls("identity", net.weights, (None,) * len(net.weights))
        if isinstance(net, DeepNet):
            return cls(net.activation, net.weights, net.biases)
        if isinstance(net, TwoLayerNet):
            last = tuple(zip(*net.a, strict=True))
            return cls(net.activation, (net.w, last), (net.b, net.c), net.coefficients)
        if isinstance(net, ConvNet):
            none = (Fraction(0),) * (net.d - net.s)
            placed = tuple(
                none[:t] + kernel + none[t:]
                for channel in net.kernels
                for t, kernel in enumerate(channel)
            )
            last = (tuple(a for channel in net.a for a in channel),)
            return cls(net.activation, (placed, last), (None, None))
        raise ValueError(
            f"{type(net).__name__} is no network of neurons; its dimension has a closed form, "
            "tangent_dimension"
        )


@dataclass(frozen=True, eq=False)
class Formal:
    """A network as polynomials in symbols; see :func:`formal`.

    Attributes:
        net: its structure.
        symbols: the meaning of the symbols.
        preactivations: for each hidden layer, the arguments of the activation.
        neurons: for each hidden layer, the neurons as functions of the inputs. For convolutions, channel by
            channel, position by position.
        slopes: likewise their derivatives by the preactivations.
        outputs: the outputs as functions of the inputs.
    """

    net: Structure
    symbols: Symbols
    preactivations: tuple[tuple[Vector, ...], ...]
    neurons: tuple[tuple[Vector, ...], ...]
    slopes: tuple[tuple[Vector, ...], ...]
    outputs: tuple[Vector, ...]
    _layers: _Layers
    _blocks: tuple[int, ...] | None
    """The order of the tensors in the columns of the model, if it is not that of the layers."""

    @property
    def size(self) -> int:
        """An upper bound of the number of monomials of all tangent functions together."""
        total, above = 0, [1] * len(self.outputs)
        for layer in reversed(range(len(self._layers.weights))):
            W = self._layers.weights[layer]
            signals = sum(map(self.symbols.expanded_size, self._inputs(layer)))
            total += sum(above) * (signals + (self._layers.biases[layer] is not None))
            above = [
                sum(n for n, row in zip(above, W, strict=True) if row[i]) for i in range(len(W[0]))
            ]
            if layer:
                above = [n * len(s) for n, s in zip(above, self.slopes[layer - 1], strict=True)]
        return total

    @cached_property
    def tangents(self) -> tuple[Vector, ...]:
        """The derivatives by the parameters, in the order of ``llr.layout``.

        Raises:
            ValueError: the network is so wide and deep that they have too many terms; see `size`.
        """
        if self.size > _MOST_TERMS:
            raise ValueError(
                f"the tangent functions have up to {self.size} terms; expected at most {_MOST_TERMS}: a "
                "smaller network, or let llr.model_rank(model) find the rank numerically"
            )
        blocks: list[list[Vector]] = []
        deltas: list[Vector] = [
            {self.symbols.output(j): Fraction(1)} for j in range(len(self.outputs))
        ]
        for layer in reversed(range(len(self._layers.weights))):
            W, b = self._layers.weights[layer], self._layers.biases[layer]
            inputs = [self.symbols.expanded(a) for a in self._inputs(layer)]
            if b is not None:
                blocks.append(deltas)
            blocks.append([self.symbols.product(delta, a) for delta in deltas for a in inputs])
            if layer:
                back = [
                    combined([(w, d) for w, d in zip(c, deltas, strict=True)])
                    for c in zip(*W, strict=True)
                ]
                deltas = [
                    self.symbols.product(slope, delta)
                    for slope, delta in zip(self.slopes[layer - 1], back, strict=True)
                ]
        blocks.reverse()
        if isinstance(self.net, ConvNet):
            blocks[0] = _of_kernels(self.net, blocks[0])
        order = range(len(blocks)) if self._blocks is None else self._blocks
        return tuple(v for block in order for v in blocks[block])

    @cached_property
    def rank(self) -> int:
        """The rank of the tangent functions as formal vectors, an upper bound of dim T."""
        if self.generic and self._layers.activation != "relu":
            return self.net.n_params
        return formal_rank(self.tangents)

    @cached_property
    def generic(self) -> bool:
        """Whether only the symmetries of all parameters make tangent functions dependent.

        That is, no neuron is constant, equal to another of its layer up to reflection, or without outgoing
        weights. Each tangent function then has a monomial that no other has, except for ReLU.
        """
        if self._layers.activation in ("identity", "polynomial") or isinstance(self.net, ConvNet):
            return False
        seen = [m for layer in self.neurons for v in layer for m in v]
        single = all(
            len(v) == 1 and not self.symbols.is_constant(v) for layer in self.neurons for v in layer
        )
        read = all(any(column) for W in self._layers.weights[1:] for column in zip(*W, strict=True))
        return single and read and len(set(seen)) == len(seen)

    def _inputs(self, layer: int) -> Sequence[Vector]:
        """The inputs of a layer."""
        if layer:
            return self.neurons[layer - 1]
        return [
            {self.symbols.coordinate(c): Fraction(1)}
            for c in range(len(self._layers.weights[0][0]))
        ]


def formal(
    net: Structure | nn.Module,
    symbols: Symbols | None = None,
    adjust: Callable[[int, Vector], Vector] | None = None,
) -> Formal:
    """A network's neurons, outputs and tangent functions as polynomials in symbols, at its parameters.

    The symbols are the coordinates of x, and for each distinct neuron its value and its slope. Neurons are
    distinct unless their preactivations are equal up to the activation's reflection (and for ReLU up to
    positive factors). Coefficients are exact.

    Args:
        net: a structure of :func:`llr.theory.read_structure`, or a model that has one: an MLP of any depth,
            a convolution.
        symbols: the symbols of another network on the same inputs, to compare both; default: new symbols.
        adjust: a function that replaces a preactivation in a hidden layer, counted from 0; default: no
            change. For networks with biases that a model cannot represent.

    Raises:
        ValueError: a matrix factorization, which has no neurons; what
            :func:`llr.theory.read_structure` refuses.

    Source: docs/theory.md, Theorem 6.2.

    Example:
        >>> import torch
        >>> from llr.models import mlp
        >>> from llr.theory.spans.formal import formal
        >>> twins = mlp([1, 2, 1])
        >>> with torch.no_grad():
        ...     _ = twins[0].weight.copy_(torch.tensor([[1.0], [-1.0]])), twins[0].bias.zero_()
        >>> formal(twins).rank, sum(p.numel() for p in twins.parameters())
        (4, 7)
    """
    blocks = None
    if isinstance(net, nn.Module):
        blocks = _blocks(net)
        net = read_structure(net)
    layers = _Layers.of(net)
    symbols = Symbols() if symbols is None else symbols
    signals: Sequence[Vector] = [
        {symbols.coordinate(c): Fraction(1)} for c in range(len(layers.weights[0][0]))
    ]
    preactivations, neurons, slopes = [], [], []
    for number, (W, b) in enumerate(zip(layers.weights, layers.biases, strict=True), 1):
        z = [
            combined([*zip(row, signals, strict=True), (Fraction(0) if b is None else b[i], ONE)])
            for i, row in enumerate(W)
        ]
        if number == len(layers.weights):
            signals = z
            break
        if adjust is not None:
            z = [adjust(number - 1, v) for v in z]
        hidden = [symbols.neuron(layers.activation, v, layers.coefficients) for v in z]
        signals = [neuron.value for neuron in hidden]
        preactivations.append(tuple(z))
        neurons.append(tuple(signals))
        slopes.append(tuple(neuron.slope for neuron in hidden))
    return Formal(
        net=net,
        symbols=symbols,
        preactivations=tuple(preactivations),
        neurons=tuple(neurons),
        slopes=tuple(slopes),
        outputs=tuple(signals),
        _layers=layers,
        _blocks=blocks,
    )


def _blocks(model: nn.Module) -> tuple[int, ...] | None:
    """For each parameter of the model its index among the layers' tensors, with biases after weights."""
    try:
        mlp = read_mlp(model)
    except NotAnMLP:  # a convolution or a polynomial network: in the order of layers
        return None
    tensors = [
        t for pair in zip(mlp.weights, mlp.biases, strict=True) for t in pair if t is not None
    ]
    at = {id(t): i for i, t in enumerate(tensors)}
    return tuple(at[id(p)] for p in model.parameters())


def _of_kernels(net: ConvNet, placed: Sequence[Vector]) -> list[Vector]:
    """Derivatives by the kernels, from derivatives by the rows (channel, position) of the dense layer."""
    by_entry = []
    for channel in range(len(net.kernels)):
        windows = [
            [placed[(channel * net.p + t) * net.d + t + j] for j in range(net.s)]
            for t in range(net.p)
        ]
        if net.shared:
            windows = [
                [combined([(Fraction(1), v) for v in vs]) for vs in zip(*windows, strict=True)]
            ]
        by_entry += [v for window in windows for v in window]
    return by_entry


def formal_tangent(net: Structure | nn.Module) -> Dimension:
    """An upper bound of dim T for a network of any depth, equal to dim T if a theorem says so.

    Args:
        net: as for :func:`formal`.

    Returns:
        "dim T": exact for one hidden layer and for networks of polynomials or without activations; P almost
        everywhere for tanh networks with all biases that are not degenerate; bounds otherwise.

    Raises:
        ValueError: as for :func:`formal`.

    Source: docs/theory.md, 6.1 and Theorem 6.2. C. Fefferman, "Reconstructing a neural net from its output",
    Revista Matemática Iberoamericana 10 (1994).

    Example:
        >>> from llr.models import mlp
        >>> from llr.theory.spans.formal import formal_tangent
        >>> print(formal_tangent(mlp([1, 2, 2, 1])).status)
        almost everywhere
    """
    found = formal(net)
    layers, P = found._layers, found.net.n_params
    remarks = _degeneracies(found)
    if found.size > _MOST_TERMS and not (found.generic and layers.activation != "relu"):
        scalings = sum(map(len, found.neurons)) if layers.activation == "relu" else 0
        terms = [Term(P, "parameters")]
        if scalings:
            terms.append(Term(-scalings, "a positive factor moves through each ReLU neuron"))
        terms.append(
            Term(0, f"up to {found.size} terms, too many to look for further dependencies")
        )
        return _dimension(found, P - scalings, "bounds", [*terms, *remarks])
    upper, status = found.rank, _status(found)
    return _dimension(found, upper, status, [*_by_layer(found), *remarks])


def _dimension(found: Formal, upper: int, status: Status, terms: Sequence[Term]) -> Dimension:
    # The output biases alone give the constants.
    constants = 0 if found._layers.biases[-1] is None else len(found.outputs)
    return Dimension(
        what="dim T",
        lower=upper if status == "exact" else constants,
        upper=upper,
        status=status,
        terms=tuple(terms),
        statement="6.1" if status == "almost everywhere" else "Theorem 6.2",
        n_params=found.net.n_params,
    )


def _status(found: Formal) -> Status:
    layers = found._layers
    if layers.activation in ("identity", "polynomial"):
        return "exact"
    if len(layers.weights) == 2:
        unknown = (layers.activation == "sin" and _phases(found)) or _mixes_numbers(found)
        return "bounds" if unknown else "exact"
    if layers.activation == "tanh" and found.generic and all(b is not None for b in layers.biases):
        return "almost everywhere"
    return "bounds"


def _mixes_numbers(found: Formal) -> bool:
    """Whether numbers such as s(b) and 1 - s(b) occur, which are treated as independent, also of 1."""
    if found.generic:
        return False
    vectors = [primitive(v)[1] for v in found.tangents]
    return any(symbol < 0 for v in vectors for m in v for symbol in m)


def _phases(found: Formal) -> bool:
    """Whether sines of one direction differ in phase, a relation that the symbols do not include."""
    assert isinstance(found.net, TwoLayerNet)
    directions = [(group.w, len(group.members)) for group in group_neurons(found.net).groups]
    return any(size > 1 for _, size in directions)


def _by_layer(found: Formal) -> list[Term]:
    """The dimensions that the parameters of each layer add to those of later layers."""
    P = found.net.n_params
    if found.generic and found._layers.activation != "relu":
        return [
            Term(P, "parameters, no neuron being constant, repeated or without outgoing weights")
        ]
    return [
        Term(P, "parameters"),
        Term(found.rank - P, "dependencies between the functions that they move"),
    ]


def _degeneracies(found: Formal) -> list[Term]:
    """Remarks on what makes the rank less than P, layer by layer."""
    remarks = []
    for number, layer in enumerate(found.neurons):
        constant = [i for i, v in enumerate(layer) if found.symbols.is_constant(v)]
        if constant:
            remarks.append(f"layer {number}: {named(constant)} constant")
        groups: dict[frozenset[Monomial], list[int]] = defaultdict(list)
        for i, v in enumerate(layer):
            if i not in constant:
                groups[frozenset(v)].append(i)
        remarks += [
            f"layer {number}: {named(members)} are one function, up to its symmetries"
            for members in groups.values()
            if len(members) > 1
        ]
        if isinstance(found.net, ConvNet):
            continue
        weights = found._layers.weights[number + 1]
        idle = [i for i, column in enumerate(zip(*weights, strict=True)) if not any(column)]
        if idle:
            remarks.append(f"layer {number}: {named(idle)} without outgoing weights")
    return [Term(0, remark) for remark in remarks]
