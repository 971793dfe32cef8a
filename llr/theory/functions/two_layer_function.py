"""Model ranks of functions of two-layer networks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from llr.theory.functions.hinge_function import hinge_rank
from llr.theory.functions.neuron_sum import NeuronSum, check_irrational, neuron_sum
from llr.theory.functions.polynomial_function import polynomial_rank
from llr.theory.functions.prices import (
    Rank,
    constant_neuron_price,
    not_in_width,
    of_neurons,
    require_constant_neuron,
)
from llr.theory.functions.sine_function import sine_rank
from llr.theory.functions.subset_sums import reachable
from llr.theory.result import Dimension, Term
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import TwoLayerNet
from llr.theory.tangents.two_layer import two_layer_tangent


def two_layer_model_rank(target: TwoLayerNet, architecture: TwoLayerNet) -> Dimension:
    """The smallest dim T with which a two-layer architecture represents a function.

    Args:
        target: a network with the function.
        architecture: only its size, biases and activation are used, not its parameters.

    Returns:
        "model rank". It is exact for odd activations, sigmoid and sine, and for softplus, GELU, SiLU and ReLU
        unless the function has several outputs and an affine part that needs several more neurons. For
        polynomials, which have no shortest form, it has bounds.

    Raises:
        ValueError: the architecture cannot represent the function, or llr cannot tell whether it can.

    Source: docs/theory.md, Theorems 2.3 to 2.6.

    Example:
        >>> from llr.models import TwoLayer
        >>> from llr.theory import read_structure
        >>> target, wide = read_structure(TwoLayer(3, 2)), read_structure(TwoLayer(3, 9))
        >>> print(two_layer_model_rank(target, wide))
        model rank = 10 of 45 parameters (Theorem 2.3)
            +10  2 neurons in the function: 2 (1 + 3 + 1)
    """
    _check_same_kind(target, architecture)
    parity = PARITY[architecture.activation]
    if parity == "polynomial":
        return polynomial_rank(target, architecture)
    if parity == "sin":
        lower, terms = sine_rank(target, architecture)
        return _model_rank(architecture, lower, terms, "Theorem 2.5")
    f = neuron_sum(target)
    _check_fits(f, architecture)
    if architecture.c is None:
        check_irrational(f)
    if parity == "odd":
        lower, terms = _odd_rank(f, architecture)
        return _model_rank(architecture, lower, terms, "Theorem 2.3")
    padded = in_architecture(target, architecture)
    known = None if padded is None else two_layer_tangent(padded).upper
    rank_in = _sigmoid_rank if parity == "odd+const" else hinge_rank
    lower, terms = rank_in(f, architecture, known)
    return _model_rank(architecture, lower, terms, "Theorem 2.4")


def _model_rank(net: TwoLayerNet, lower: int, terms: list[Term], statement: str) -> Dimension:
    return Dimension.between("model rank", lower, terms, statement, net.n_params)


def in_architecture(target: TwoLayerNet, net: TwoLayerNet) -> TwoLayerNet | None:
    """The target's own neurons as parameters of the architecture, or None if they do not fit.

    Spare neurons are omitted: as copies without outgoing weights they would add nothing to T.
    """
    b, c = target.b, target.c
    if target.m > net.m or (net.b is None and any(b or ())) or (net.c is None and any(c or ())):
        return None
    zeros = (Fraction(0),) * target.m
    return replace(
        target,
        b=None if net.b is None else (b or zeros),
        c=None if net.c is None else (c or (Fraction(0),) * net.q),
    )


def _check_same_kind(target: TwoLayerNet, architecture: TwoLayerNet) -> None:
    for name in ("activation", "coefficients", "d", "q"):
        ours, theirs = getattr(architecture, name), getattr(target, name)
        if ours != theirs:
            words = {"d": "inputs", "q": "outputs"}.get(name, name)
            show = [
                [str(v) for v in value] if name == "coefficients" else value
                for value in (theirs, ours)
            ]
            raise ValueError(
                f"{words} of the target: {show[0]}, of the architecture: {show[1]}; expected the same"
            )


def _check_fits(f: NeuronSum, net: TwoLayerNet) -> None:
    if net.b is None and any(f.b):
        raise ValueError(
            "the target has neurons with biases, and the architecture has no hidden biases (bias=True)"
        )
    if f.k > net.m:
        raise not_in_width(net, f"{f.k} neurons")


def _odd_rank(f: NeuronSum, net: TwoLayerNet) -> Rank:
    terms = of_neurons(f, net)
    if net.c is None and f.constant:
        require_constant_neuron(f, net)
        terms.append(constant_neuron_price(net))
    return sum(t.dimension for t in terms), terms


def _sigmoid_rank(f: NeuronSum, net: TwoLayerNet, known: int | None) -> Rank:
    """A lower and an upper bound; `known` is a dimension that certainly represents f, or None."""
    terms, spare = of_neurons(f, net), net.m - f.k
    base = sum(t.dimension for t in terms)
    if net.c is not None:
        return base, terms
    if f.k == 0 and not f.constant:
        return net.q, [Term(net.q, "constants, the value of any neuron")]
    goal = tuple(-v for v in f.affine)
    flips = reachable(goal, f.further, f.planes, 0) if f.k else False
    if flips or (flips is None and not spare and known is not None):
        return base, terms
    if flips is None and not spare:
        raise ValueError(
            f"whether reflections of {f.k} neurons make the constant part of the target would take too many "
            "sums to find out; give the architecture a neuron more, or an output bias"
        )
    require_constant_neuron(f, net)
    twins = reachable(goal, f.further, f.planes, spare) if f.k else False
    lower = base + (0 if flips is None else net.q)
    if twins:
        return lower, [*terms, Term(net.q, "constants, from neurons in both orientations")]
    terms.append(constant_neuron_price(net))
    return (lower if twins is None else base + terms[-1].dimension), terms
