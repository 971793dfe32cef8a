"""Wrong variants of the formulas for tangent dimensions: random cases must detect each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from helpers.theory_cases import certified, random_cases, random_two_layer, structure
from torch import nn

from llr import certify
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization
from llr.theory import tangent_dimension
from llr.theory.structures import groups
from llr.theory.structures.groups import Grouping, group_neurons
from llr.theory.structures.structure import ConvNet, LinearNet, Row, TwoLayerNet, rank
from llr.theory.tangents import convolution, linear, periodic, polynomial, two_layer
from llr.theory.tangents.two_layer import two_layer_tangent

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@cache
def cases(activation: str) -> list[tuple[TwoLayerNet, int]]:
    """Networks and their ranks: certified ranks, and for polynomials those of the correct formula."""
    found = []
    for seed in range(random_cases(30)):
        model = random_two_layer(activation, seed)
        net = structure(model)
        true = int(two_layer_tangent(net)) if net.coefficients else certified(model, seed)
        found.append((net, true))
    return found


def with_ranks(rank_of: Callable[[TwoLayerNet, Any], int]) -> Callable[[TwoLayerNet], Grouping]:
    """A function that gives groups another r_g."""

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


# Name: module and function that are replaced, the replacement, and activations whose cases must detect it.
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


@cache
def other_cases(kind: str) -> list[tuple[nn.Module, int]]:
    """Models of small integers, many of them 0, and their ranks, found without a closed form."""
    chance = random.Random(0)
    found: list[tuple[nn.Module, int]] = []
    for seed in range(random_cases(40)):
        if kind == "convolution":
            s = chance.randint(1, 3)
            model: nn.Module = Conv1dTwoLayer(s + chance.randint(0, 2), s, chance.randint(1, 3))
        elif kind == "factorization":
            model = MatrixFactorization(*(chance.randint(1, 4) for _ in range(3)))
        else:
            model = DeepLinear([chance.randint(1, 4) for _ in range(chance.randint(3, 5))])
        model = model.double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randint(-1, 2, p.shape, generator=generator))
        P = sum(p.numel() for p in model.parameters())
        if isinstance(model, Conv1dTwoLayer):
            x = torch.randn(P + 6, model.d, generator=generator).double()
        elif isinstance(model, MatrixFactorization):
            sizes = len(model.A), model.B.shape[1]
            x = torch.tensor(list(itertools.product(*map(range, sizes))))
        else:
            x = torch.eye(model[0].in_features).double()
        found.append((model, certify(model, x, params="*").rank))
    return found


TRUE_RANKS = linear.surrounding_ranks


def full_below(net: LinearNet) -> tuple[list[int], list[int]]:
    above, below = TRUE_RANKS(net)
    return above, below[:1] * len(below)


def full_above(net: LinearNet) -> tuple[list[int], list[int]]:
    above, below = TRUE_RANKS(net)
    return above[-1:] * len(above), below


def of_layers(net: LinearNet) -> tuple[list[int], list[int]]:
    ranks = [rank(W) for W in net.weights]
    return [*ranks[1:], net.widths[-1]], [net.widths[0], *ranks[:-1]]


def that_stay(net: ConvNet, kernel: Row, _: int) -> Row:
    return (*kernel, *(Fraction(0),) * (net.d - net.s))


# Name: the kind of model, the module and function that are replaced, and the replacement.
OTHER_MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "kernels without signs": ("convolution", convolution, "_up_to_sign", lambda v: v),
    "kernels of one sign": (
        "convolution",
        convolution,
        "_up_to_sign",
        lambda v: tuple(abs(x) for x in v),
    ),
    "kernels that do not move": (
        "convolution",
        convolution,
        "placed",
        that_stay,
    ),
    "derivatives one by one": (
        "convolution",
        convolution,
        "rank",
        lambda rows: sum(any(row) for row in rows),
    ),
    "no derivatives": ("convolution", convolution, "rank", lambda _: 0),
    "factors of full rank": ("factorization", linear, "rank", lambda M: min(len(M), len(M[0]))),
    "nonzero rows of factors": ("factorization", linear, "rank", lambda M: sum(map(any, M))),
    "products of full rank below": ("linear", linear, "surrounding_ranks", full_below),
    "products of full rank above": ("linear", linear, "surrounding_ranks", full_above),
    "ranks of layers, not of products": (
        "linear",
        linear,
        "surrounding_ranks",
        of_layers,
    ),
}


def other_mistakes(kind: str) -> int:
    return sum(tangent_dimension(model).upper != true for model, true in other_cases(kind))


@pytest.mark.parametrize("kind", ["convolution", "factorization", "linear"])
def test_the_other_formulas_pass(kind: str) -> None:
    assert other_mistakes(kind) == 0


@pytest.mark.parametrize("mutant", OTHER_MUTANTS)
def test_others_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, where, piece, wrong = OTHER_MUTANTS[mutant]
    other_cases(kind)  # before anything is wrong
    monkeypatch.setattr(where, piece, wrong)
    assert other_mistakes(kind) > 0


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("factorization", lambda terms: terms[0] + terms[1]),
        ("factorization", lambda terms: terms[0]),
        ("factorization", max),
        ("linear", max),
    ],
    ids=["no intersection", "one factor", "the larger factor", "one layer"],
)
def test_wrong_sums_are_caught(kind: str, wrong: Callable[[Sequence[int]], int]) -> None:
    found = [
        wrong([term.dimension for term in tangent_dimension(model).terms]) != true
        for model, true in other_cases(kind)
    ]
    assert any(found)
