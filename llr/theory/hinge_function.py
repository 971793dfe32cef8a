"""Model ranks of functions of softplus, GELU, SiLU and ReLU, whose reflections leave affine functions behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from llr.theory.groups import group_neurons
from llr.theory.neuron_sum import NeuronSum, without_constants
from llr.theory.prices import (
    Rank,
    constant_neuron_price,
    not_in_width,
    of_neurons,
    require_constant_neuron,
)
from llr.theory.result import Term
from llr.theory.structure import Matrix, Row, TwoLayerNet
from llr.theory.subset_sums import reachable
from llr.theory.two_layer import two_layer_tangent


def hinge_rank(f: NeuronSum, target: TwoLayerNet, net: TwoLayerNet) -> Rank:
    """The smallest dim T with the function in the architecture `net`, from below and from above.

    The affine part of f costs nothing if reflections of its neurons make it. Otherwise the cheapest of the
    following is found: a neuron with w = 0, neurons in both orientations (twins), and a pair of neurons that
    only leaves an affine function.

    Args:
        f: the function.
        target: a network with it, from which the upper bound comes where there is no better one.
        net: the architecture.

    Raises:
        ValueError: the function does not fit.

    Source: docs/theory.md, Theorem 2.4.
    """
    case = _Case.of(f, net)
    base = case.base
    terms = of_neurons(f, net)
    if f.k == 0 and not any(case.goal) and not case.further:
        if net.activation == "softplus" and net.c is None:
            terms.append(Term(net.q, "constants, the value of any neuron"))
        return sum(t.dimension for t in terms), terms
    flips = case.reached(0)
    if flips or (flips is None and not case.spare):
        return base, terms
    if net.c is None and case.modulo_constants().reached(0):
        require_constant_neuron(f, net)
        price = constant_neuron_price(net)
        if net.activation in ("gelu", "silu"):
            price = Term(net.q, "a constant, from a neuron with w = 0 where the slope is zero")
        return base + price.dimension, [*terms, price]
    lower, affine = case.affine_price(target) if net.q > 1 else case.single_output_price()
    if flips is None:
        lower = 0
    return base + lower, [*terms, *affine]
