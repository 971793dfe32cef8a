"""The cost in dimensions of the parts of a two-layer network's function, and what they need."""

from __future__ import annotations

from llr.theory.functions.neuron_sum import NeuronSum
from llr.theory.result import Term
from llr.theory.structures.structure import TwoLayerNet
from llr.theory.tangents.two_layer import kink

Rank = tuple[int, list[Term]]
"""A lower bound, and the summands of the upper bound."""


def of_neurons(f: NeuronSum, net: TwoLayerNet) -> list[Term]:
    """The cost of the neurons in the function, and of the output bias."""
    h = kink(net)
    terms = []
    if f.k:
        words = f"{net.q} + {net.d}" + " + 1" * net.beta + " - 1" * h
        neurons = "neurons" if f.k > 1 else "neuron"
        size = f.k * (net.q + net.d + net.beta - h)
        terms.append(Term(size, f"{f.k} {neurons} in the function: {f.k} ({words})"))
    if net.c is not None:
        terms.append(Term(net.q, "constants, from the output bias"))
    return terms


def constant_neuron_price(net: TwoLayerNet) -> Term:
    """The cost of a constant that neither an output bias nor reflections make."""
    return Term(net.q + net.d, f"a constant, from a neuron with w = 0: {net.q} + {net.d}")


def makes_constants(net: TwoLayerNet) -> bool:
    """Whether a neuron with w = 0 can have a value other than 0."""
    return net.b is not None or net.activation in ("sigmoid", "softplus")


def require_constant_neuron(f: NeuronSum, net: TwoLayerNet) -> None:
    """Refuse a constant if no neuron can make one."""
    if not makes_constants(net):
        raise ValueError(
            f"the function has a constant part, which {net.activation} makes with a bias only; the "
            "architecture has none (bias=True or output_bias=True)"
        )
    if net.m == f.k:
        raise not_in_width(net, f"{f.k + 1} neurons, one more for its constant part")


def not_in_width(net: TwoLayerNet, needs: str) -> ValueError:
    """The error for a function that needs more neurons than the architecture has."""
    return ValueError(f"the architecture has width {net.m}, but the target needs {needs}")
