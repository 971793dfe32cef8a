"""Linear independence of the functions that neurons compute.

A neuron of any layer is a function of the network's input. Functions of different neurons are linearly
independent unless there is a relation, such as equal incoming weights up to a symmetry of the activation.
Such relations are found in exact arithmetic and give an upper bound of the dimension of the span; values at
points, in balls, give a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from flint import arb, arb_mat
from torch import Tensor, nn

from llr.exact.chain import Affine, Entrywise
from llr.exact.kinks import off_analytic
from llr.exact.network import Network, read_network
from llr.inputs.accept import modules, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_flag, a_seed, check_int, maybe, whole
from llr.inputs.samplers import read_sampler, sample_shape
from llr.linalg.balls import LOWEST_BITS, coefficients
from llr.linalg.elimination import Scaled, find_pivots, prove
from llr.results import Record
from llr.results.html import Table, Verdict
from llr.results.phrases import counted
from llr.theory.spans.span import Function, Span
from llr.theory.spans.symbols import ONE, Symbols, Vector, combined
from llr.theory.structures.structure import exact_row

# More than the spans of some hundred analytic functions need; it takes seconds.
_MOST_BITS = 2048


@dataclass(frozen=True, repr=False)
class Independence(Record):
    """The number of neurons that are linearly independent as functions; true if all are proved to be.

    Attributes:
        n_neurons: the number of neurons.
        lower: this many neurons are proved to be independent, by their values.
        upper: at most this many are independent, by the relations.
        basis: `upper` neurons, of which all others are combinations.
        relations: for every other neuron, its expression by earlier neurons.
        constant: whether independence is modulo the constant functions.
        n_samples: the number of points at which the neurons were evaluated.
        bits: precision of these values.
    """

    n_neurons: int
    lower: int
    upper: int
    basis: tuple[int, ...]
    relations: tuple[str, ...]
    constant: bool
    n_samples: int
    bits: int

    _order = ("lower <= upper <= n_neurons",)
    _also = ("independent", "proved")

    @property
    def independent(self) -> bool:
        """Whether all neurons are proved to be linearly independent."""
        return self.lower == self.n_neurons

    @property
    def proved(self) -> bool:
        """Whether the bounds are equal, so that the number is certain."""
        return self.lower == self.upper

    def __bool__(self) -> bool:
        return self.independent

    def __str__(self) -> str:
        """The number, how it is known, and the relations, one per line."""
        found = str(self.upper) if self.proved else f"{self.lower} to {self.upper}"
        beside = ", beside constants" if self.constant else ""
        known = "proved" if self.proved else "proved bounds"
        head = (
            f"{found} of {counted(self.n_neurons, 'neuron')} "
            f"{'is' if self.n_neurons == 1 else 'are'} linearly independent{beside} ({known}, by values at "
            f"{counted(self.n_samples, 'point')})"
        )
        return "\n".join([head, *(f"  {relation}" for relation in self.relations)])

    def _rules(self) -> Iterator[tuple[bool, str]]:
        neurons = {i for i in self.basis if i < self.n_neurons}
        yield len(neurons) == len(self.basis) == self.upper, "upper different neurons in basis"
        yield (
            len(self.relations) == self.n_neurons - self.upper,
            "a relation for every other neuron",
        )

    def _verdict(self) -> Verdict:
        if not self.proved:
            return "bounds", "doubt"
        return ("independent", "good") if self.independent else ("dependent", "bad")

    def _table(self) -> Table | None:
        return (("relations",), [(text,) for text in self.relations]) if self.relations else None


@takes(neurons=modules, x=valued, layer=maybe(whole), constant=a_flag, seed=a_seed)
@outside_inference_mode
def independence(
    neurons: nn.Module | Sequence[nn.Module],
    x: Tensor | None = None,
    *,
    layer: int | None = None,
    constant: bool = False,
    bits: int = 64,
    seed: int = 0,
) -> Independence:
    """Whether neurons are linearly independent as functions of the network's input.

    The number of independent neurons is the number of directions in which the outgoing weights change the
    function. Equality is exact equality of the parameters. Softplus is taken as the analytic function, as
    torch computes it up to 20.

    Args:
        neurons: a network, whose neurons are those of one hidden layer; or several networks of any depth on
            the same inputs, whose outputs are the neurons. The models are those of :func:`llr.certify`.
        x: (n, ...) samples for the evaluation; default: standard normal samples, more than there are neurons.
        layer: the hidden layer of a single network, from 0 on; default: the last.
        constant: whether to test independence of the neurons together with the constant function 1.
        bits: the first precision; it doubles until the bounds are equal, up to 2048.
        seed: of the samples.

    Returns:
        `Independence`, true if all neurons are proved to be independent. A relation is found if it follows
        from symmetries of the activations, equal or constant inputs, or linear algebra, layer by layer.

    Raises:
        ValueError: a layer that does not exist, networks on different inputs, no networks, a precision out of
            range; a model that :func:`llr.certify` refuses.
        TypeError: `neurons` has something other than networks.

    Source: docs/theory.md, Proposition 8.1.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.neurons import independence
        >>> w = torch.tensor([[1.0, 2.0], [0.5, 0.0], [-1.0, -2.0]])
        >>> model = TwoLayer.of(w, torch.zeros(3), torch.ones(3, 1), activation="sigmoid")
        >>> print(independence(model))
        3 of 3 neurons are linearly independent (proved, by values at 22 points)
        >>> print(independence(model, constant=True))
        2 of 3 neurons are linearly independent, beside constants (proved, by values at 22 points)
          neuron 2 = -neuron 0 + 1
    """
    check_int("bits", bits, LOWEST_BITS, _MOST_BITS)
    networks = _networks(neurons, x, layer, seed)
    for network in networks:
        if "softplus" in network.structure and (where := off_analytic(network)):
            raise ValueError(f"{where}; take smaller samples x")
    symbols = Symbols()
    functions = [f for network in networks for f in _functions(network, symbols)]
    span, basis, relations = Span(symbols, constant), list[int](), list[str]()
    for number, function in enumerate(functions):
        relation = span.add(number, function)
        if relation is None:
            basis.append(number)
        else:
            relations.append(f"neuron {number} {relation}")
    found, bits = _proved_rank(networks, basis, constant, bits)
    return Independence(
        n_neurons=len(functions),
        lower=found - constant,
        upper=len(basis),
        basis=tuple(basis),
        relations=tuple(relations),
        constant=constant,
        n_samples=len(networks[0].inputs),
        bits=bits,
    )


def _networks(
    neurons: nn.Module | Sequence[nn.Module], x: Tensor | None, layer: int | None, seed: int
) -> list[Network]:
    """The networks whose outputs are the neurons, at the samples."""
    modules = [neurons] if isinstance(neurons, nn.Module) else list(neurons)
    if not modules:
        raise ValueError(
            "neurons is empty; expected a network, or networks whose outputs are neurons"
        )
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"neurons has a {type(module).__name__}; expected networks (nn.Module)")
    alone = isinstance(neurons, nn.Module)
    if not alone and layer is not None:
        raise ValueError(
            f"layer is {layer}, but neurons are the outputs of several networks; omit layer="
        )

    def read(at: Tensor) -> list[Network]:
        networks = [read_network(module, at) for module in modules]
        return [_hidden(networks[0], layer)] if alone else networks

    if x is not None:
        return read(x)
    try:
        shape, _ = sample_shape(modules[0], None)
    except ValueError:
        raise ValueError(
            f"what samples a {type(modules[0]).__name__} takes cannot be read off it; give x="
        ) from None
    source = read_sampler(
        "normal",
        modules[0],
        shape=shape,
        dtype=torch.float64,
        device=torch.device("cpu"),
        seed=seed,
    )
    n = sum(network.outputs for network in read(source.first(1)))
    return read(source.first(2 * n + 16))


def _hidden(network: Network, layer: int | None) -> Network:
    """The network up to the activations of a hidden layer."""
    ends = [k for k, step in enumerate(network.steps, 1) if isinstance(step, Entrywise)]
    if not ends or (layer is not None and not 0 <= layer < len(ends)):
        found = "no layer" if not ends else f"layers 0 to {len(ends) - 1}"
        raise ValueError(f"layer is {layer}, but {network.structure} has {found} of neurons")
    steps = network.steps[: ends[-1 if layer is None else layer]]
    width = network.inputs[0].numel()
    for step in steps:
        width = step.write.size if isinstance(step, Affine) else width
    return replace(network, steps=steps, outputs=width)


def _functions(network: Network, symbols: Symbols) -> list[Function]:
    """The outputs of a network as functions."""
    one = Fraction(1)
    signals = [Function({symbols.coordinate(i): one}) for i in range(network.inputs[0].numel())]
    for step in network.steps:
        vectors = [signal.value for signal in signals]
        if isinstance(step, Affine):
            signals = [Function(v) for v in _affine(step, vectors)]
        else:
            signals = [_activated(step.activation, z, symbols) for z in vectors]
    return signals


def _activated(activation: str, z: Vector, symbols: Symbols) -> Function:
    if terms := coefficients(activation):
        return Function(symbols.neuron("polynomial", z, terms).value)
    value = symbols.neuron(activation, z).value
    varying = [(m, c) for m, c in z.items() if not symbols.is_constant({m: c})]
    if activation != "sin" or not varying:
        return Function(value)
    return Function(value, frozenset((frozenset(varying), frozenset((m, -c) for m, c in varying))))


def _affine(step: Affine, signals: list[Vector]) -> list[Vector]:
    weights = exact_row(step.weight.flatten())
    biases = None if step.bias is None else exact_row(step.bias.flatten())
    groups, positions, h = step.write.shape
    w = step.read.shape[2]
    out = list[Vector]([{}]) * step.write.size
    for g in range(groups):
        for o in range(h):
            row = weights[(g * h + o) * w :][:w]
            bias = Fraction(0) if biases is None else biases[g * h + o]
            for t in range(positions):
                terms = [
                    (c, signals[i])
                    for c, i in zip(row, step.read[g, t].tolist(), strict=True)
                    if i >= 0  # padding
                ]
                out[step.write[g, t, o]] = combined([*terms, (bias, ONE)])
    return out


def _proved_rank(
    networks: Sequence[Network], basis: Sequence[int], constant: bool, bits: int
) -> tuple[int, int]:
    """The rank of the values of these neurons, and of 1 if `constant`, as proved at this precision."""
    goal = min(len(basis) + constant, len(networks[0].inputs))
    best = 0
    while best < goal:
        A = Scaled(_values(networks, basis, constant, bits), bits)
        best = max(best, prove(A, find_pivots(A))[0])
        if best == goal or bits >= _MOST_BITS:
            break
        bits = min(2 * bits, _MOST_BITS)
    return best, bits


def _values(
    networks: Sequence[Network], basis: Sequence[int], constant: bool, bits: int
) -> arb_mat:
    """A row for each sample: 1 if `constant`, and the neurons of the basis."""
    tables = [network.values(bits).tolist() for network in networks]
    rows = [[v for part in parts for v in part] for parts in zip(*tables, strict=True)]
    entries = [
        v for row in rows for v in [*([arb(1)] if constant else []), *(row[i] for i in basis)]
    ]
    return arb_mat(len(rows), len(basis) + constant, entries)
