"""Model ranks of functions of two-layer networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from llr.theory.groups import PARITY
from llr.theory.hinge_function import hinge_rank
from llr.theory.neuron_sum import NeuronSum, check_irrational, neuron_sum
from llr.theory.polynomial import polynomial_tangent
from llr.theory.prices import (
    Rank,
    constant_neuron_price,
    not_in_width,
    of_neurons,
    require_constant_neuron,
)
from llr.theory.result import Dimension, Term
from llr.theory.sine_function import sine_rank
from llr.theory.structure import Row, TwoLayerNet
from llr.theory.subset_sums import reachable


def two_layer_model_rank(target: TwoLayerNet, architecture: TwoLayerNet) -> Dimension:
    """The smallest dim T with which a two-layer architecture represents a function.

    Args:
        target: a network with the function.
        architecture: its size, biases and activation count, its parameters do not.

    Returns:
        "model rank". Exact for odd activations, sigmoid and sine, and for softplus, GELU, SiLU and ReLU unless
        the function has several outputs and an affine part that takes several more neurons.

    Raises:
        ValueError: the architecture cannot represent the function.

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
        statement, (lower, terms) = "Theorem 2.6", _polynomial_rank(target, architecture)
    elif parity == "sin":
        statement, (lower, terms) = "Theorem 2.5", sine_rank(target, architecture)
    else:
        statement = "Theorem 2.3" if parity == "odd" else "Theorem 2.4"
        f = neuron_sum(target)
        _check_fits(f, architecture)
        if architecture.c is None:
            check_irrational(f)
        rank_in: dict[str, Callable[[NeuronSum, TwoLayerNet], Rank]] = {
            "odd": _odd_rank,
            "odd+const": _sigmoid_rank,
            "hinge": hinge_rank,
        }
        lower, terms = rank_in[parity](f, architecture)
    upper = sum(t.dimension for t in terms)
    return Dimension(
        what="model rank",
        lower=lower,
        upper=upper,
        status="exact" if lower == upper else "bounds",
        terms=tuple(terms),
        statement=statement,
        n_params=architecture.n_params,
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


def _sigmoid_rank(f: NeuronSum, net: TwoLayerNet) -> Rank:
    terms, spare = of_neurons(f, net), net.m - f.k
    base = sum(t.dimension for t in terms)
    if net.c is not None:
        return base, terms
    if f.k == 0 and not f.constant:
        return net.q, [Term(net.q, "constants, the value of any neuron")]
    goal = tuple(-v for v in f.affine)
    flips = reachable(goal, f.further, f.planes, 0)
    if f.k and (flips or (flips is None and not spare)):
        return base, terms
    require_constant_neuron(f, net)
    twins = reachable(goal, f.further, f.planes, spare) if f.k else False
    lower = base + (0 if flips is None else net.q)
    if twins:
        return lower, [*terms, Term(net.q, "constants, from neurons in both orientations")]
    terms.append(constant_neuron_price(net))
    return (lower if twins is None else base + terms[-1].dimension), terms


def _polynomial_rank(target: TwoLayerNet, net: TwoLayerNet) -> Rank:
    """Upper bound: dim T once equal neurons are merged and those without outgoing weights deleted."""
    merged: dict[tuple[Row, Fraction], Row] = {}
    for i, (w, a) in enumerate(zip(target.w, target.a, strict=True)):
        key = w, Fraction(0) if target.b is None else target.b[i]
        old = merged.get(key, (Fraction(0),) * net.q)
        merged[key] = tuple(x + y for x, y in zip(old, a, strict=True))
    kept = {key: a for key, a in merged.items() if any(a)}
    if net.b is None and any(b for _, b in kept):
        raise ValueError(
            "the target has neurons with biases, and the architecture has no hidden biases (bias=True)"
        )
    if net.c is None and target.c is not None and any(target.c):
        raise ValueError(
            "the target has an output bias, and the architecture has none (output_bias=True)"
        )
    if len(kept) > net.m:
        raise not_in_width(net, f"{len(kept)} neurons as it stands; llr looks for no others")
    spare = {((Fraction(0),) * net.d, Fraction(0)): (Fraction(0),) * net.q}  # w = b = a = 0
    neurons = kept or spare
    reduced = replace(
        net,
        w=tuple(w for w, _ in neurons),
        b=None if net.b is None else tuple(b for _, b in neurons),
        a=tuple(neurons.values()),
    )
    upper = polynomial_tangent(reduced).upper
    lower = 0 if net.c is None else net.q
    text = f"at most, from {len(kept)} different neurons; polynomials have no shortest form"
    return lower, [Term(upper, text)]
