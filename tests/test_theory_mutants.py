"""Wrong variants of the formulas for two-layer networks: random cases must tell each from the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
from theory_cases import certified, random_cases, random_two_layer, structure

from llr.theory import groups, periodic, polynomial, two_layer
from llr.theory.groups import Grouping, group_neurons
from llr.theory.structure import TwoLayerNet, rank
from llr.theory.two_layer import two_layer_tangent

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@cache
def cases(activation: str) -> list[tuple[TwoLayerNet, int]]:
    """Networks, and their ranks: certified ones, and of polynomials those of the formula as it is."""
    found = []
    for seed in range(random_cases(30)):
        model = random_two_layer(activation, seed)
        net = structure(model)
        true = int(two_layer_tangent(net)) if net.coefficients else certified(model, seed)
        found.append((net, true))
    return found


def with_ranks(rank_of: Callable[[TwoLayerNet, Any], int]) -> Callable[[TwoLayerNet], Grouping]:
    """Groups with another r_g."""

    def changed(net: TwoLayerNet) -> Grouping:
        found = group_neurons(net)
        return replace(found, groups=tuple(replace(g, rank=rank_of(net, g)) for g in found.groups))

    return changed


def without_signs(net: TwoLayerNet, i: int) -> Any:
    return (net.w[i], None if net.b is None else net.b[i]), 1, Fraction(1)


def without_scales(net: TwoLayerNet, i: int) -> Any:
    w = net.w[i]
    sign = 1 if next(v for v in w if v) > 0 else -1
    b = None if net.b is None else sign * net.b[i]
    return (tuple(sign * v for v in w), b), sign, Fraction(1)


def without_biases(net: TwoLayerNet, i: int) -> Any:
    (w, _), sign, scale = without_scales(net, i)
    return (w, None), sign, scale


def unsigned_phases(net: TwoLayerNet, group: Any) -> Any:
    return tuple(Fraction(0) if net.b is None else net.b[i] for i in group.members)


def only_outgoing(net: TwoLayerNet, i: int) -> Any:
    b = Fraction(0) if net.b is None else net.b[i]
    one = two_layer.unit_vectors(net.d + 1)[-1]
    value = [two_layer.outer(net.a[i], one)] if two_layer.has_value(net.activation, b) else []
    slopes = [two_layer.outer(net.a[i], x) for x in two_layer.linear_functions(net)]
    return value + (slopes if two_layer.has_slope(net.activation, b) else [])


# What is wrong: the piece that is replaced, by what, and activations whose cases must show it.
MUTANTS: dict[str, tuple[Any, str, Any, tuple[str, ...]]] = {
    "r_g is 0": (two_layer, "group_neurons", with_ranks(lambda *_: 0), ("tanh", "relu", "sin")),
    "r_g is 1": (two_layer, "group_neurons", with_ranks(lambda *_: 1), ("tanh", "erf", "gelu")),
    "r_g counts members": (
        two_layer,
        "group_neurons",
        with_ranks(lambda _, g: len(g.members)),
        ("tanh", "silu"),
    ),
    "net weight instead of span": (
        two_layer,
        "group_neurons",
        with_ranks(lambda _, g: int(any(g.weight))),
        ("tanh", "erf", "sigmoid"),
    ),
    "no sign grouping": (
        groups,
        "_hyperplane",
        without_signs,
        ("tanh", "erf", "sigmoid", "softplus", "gelu", "silu"),
    ),
    "tanh grouped by w only": (groups, "_hyperplane", without_biases, ("tanh", "softplus")),
    "ReLU without scales": (groups, "_hyperplane", without_scales, ("relu",)),
    "h ignored": (two_layer, "kink", lambda _: 0, ("relu",)),
    "h for all": (two_layer, "kink", lambda _: 1, ("tanh", "softplus")),
    "dim B as a sum": (
        two_layer,
        "affine_dimension",
        lambda affine: sum(rank(rows) for _, rows in affine),
        ("tanh", "sigmoid", "softplus", "gelu", "silu", "relu", "sin"),
    ),
    "no intersection": (two_layer, "intersection", lambda *_: [], ("softplus", "gelu", "relu")),
    "sum instead of intersection": (
        two_layer,
        "intersection",
        lambda one, other: [*one, *other],
        ("softplus", "silu", "relu"),
    ),
    "reflections add nothing": (
        two_layer,
        "reflections",
        lambda *_: [],
        ("sigmoid", "softplus", "gelu", "silu", "relu"),
    ),
    "reflections add constants only": (
        two_layer,
        "reflections",
        lambda net, g: two_layer.constants(net) if len(set(g.signs)) > 1 else [],
        ("tanh", "softplus", "relu"),
    ),
    "constant neurons ignored": (
        two_layer,
        "constant_neuron",
        lambda *_: [],
        ("tanh", "sigmoid", "softplus", "relu", "sin"),
    ),
    "constants along a_i only": (two_layer, "constant_neuron", only_outgoing, ("tanh", "gelu")),
    "constants always counted": (
        two_layer,
        "has_value",
        lambda *_: True,
        ("tanh", "erf", "gelu", "silu", "relu", "sin"),
    ),
    "slopes never zero": (two_layer, "has_slope", lambda *_: True, ("relu",)),
    "L without 1": (
        two_layer,
        "linear_functions",
        lambda net: two_layer.unit_vectors(net.d + 1)[: net.d],
        ("tanh", "erf"),
    ),
    "L always with 1": (
        two_layer,
        "linear_functions",
        lambda net: two_layer.unit_vectors(net.d + 1),
        ("tanh", "gelu"),
    ),
    "output biases ignored": (two_layer, "constants", lambda _: [], ("tanh", "sin")),
    "phases ignored": (
        periodic,
        "phases",
        lambda _, g: (Fraction(0),) * len(g.members),
        ("sin",),
    ),
    "phases without signs": (periodic, "phases", unsigned_phases, ("sin",)),
    "phases in groups of their own": (groups, "_hyperplane", without_scales, ("sin",)),
    "phases that do not turn": (
        periodic,
        "turned_rank",
        lambda a, _: (rank(a), rank(a)),
        ("sin",),
    ),
    "too few points": (
        polynomial,
        "lattice",
        lambda d, n, lattice=polynomial.lattice: lattice(d, n - 1),
        ("z^2", "z + z^3"),
    ),
}


def mistakes(activation: str) -> int:
    return sum(two_layer_tangent(net).upper != true for net, true in cases(activation))


ACTIVATIONS = sorted({name for *_, names in MUTANTS.values() for name in names})


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formulas_pass(activation: str) -> None:
    assert mistakes(activation) == 0


@pytest.mark.parametrize(
    ("mutant", "activation"), [(m, a) for m, (*_, names) in MUTANTS.items() for a in names]
)
def test_caught(mutant: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases(activation)  # before anything is wrong
    where, piece, wrong, _ = MUTANTS[mutant]
    monkeypatch.setattr(where, piece, wrong)
    assert mistakes(activation) > 0
