"""Wrong variants of model ranks and points: searches and certified ranks must detect them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers.theory_cases import F64, generic_samples
from torch import nn

from llr import certify
from llr.models import Conv1dTwoLayer, TwoLayer, mlp
from llr.theory import (
    Dimension,
    model_rank_of_function,
    optimistic_sample_size,
    read_structure,
    tangent_dimension,
)
from llr.theory.functions import (
    convolution_function,
    deep_function,
    function,
    hinge_function,
    points,
    prices,
    two_layer_function,
)
from llr.theory.result import Term
from llr.theory.tangents.two_layer import two_layer_tangent

from .function_cases import optimum, random_setting
from .function_search import Setting, smallest

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@cache
def searched() -> list[tuple[Setting, int]]:
    """Functions, and the smallest dim T over all their representations; -1 if there is none."""
    return [(case, smallest(case)[0]) for case in map(random_setting, range(120))]


def two_layers() -> Iterator[bool]:
    """Whether the theory finds the minimum of the search, for every function."""
    for case, least in searched():
        found = optimum(case)
        yield found is not None and found.upper == least if least >= 0 else found is None


@cache
def kernels() -> list[tuple[nn.Module, nn.Module, int]]:
    """An architecture, a target in it, and the certified rank of the narrowest such network."""
    found: list[tuple[nn.Module, nn.Module, int]] = []
    for d, s, active in ((5, 3, 3), (5, 3, 1), (4, 2, 2)):
        g = torch.Generator().manual_seed(d + active)
        w = torch.randint(1, 9, (1, s), generator=g).double() / 4
        p = d + 1 - s
        out = (torch.arange(p) < active).double()[None]
        shared = Conv1dTwoLayer.of(w, out, d=d)
        places = torch.zeros(p, d, dtype=F64)
        for t in range(p):
            places[t, t : t + s] = w[0]
        dense = TwoLayer.of(places[:active], None, torch.ones(active, 1, dtype=F64))
        apart = Conv1dTwoLayer.of(w[:, None].expand(1, p, s).clone(), out, d=d)
        apart.weight.data[:, active:] = 0  # here, unused positions cost nothing
        x = generic_samples(40, d)
        found.append((Conv1dTwoLayer(d, s, 3), shared, certify(shared, x).rank))
        found.append((TwoLayer(d, 3 * p, bias=False), shared, certify(dense, x).rank))
        local = Conv1dTwoLayer(d, s, 3, shared=False)
        found.append((local, shared, certify(apart, x).rank))
    return found


def convolutions() -> Iterator[bool]:
    for net, target, rank in kernels():
        yield optimistic_sample_size(net, target).upper == rank


def random_weights(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randint(-128, 129, p.shape, generator=g) / 64)
    return model


@cache
def split_networks() -> list[tuple[nn.Module, int]]:
    """Networks with a neuron that occurs twice, and the certified ranks of the reduced networks."""
    found = []
    for widths in ([1, 2, 2, 1], [2, 1, 2, 1]):
        narrow = random_weights(mlp(widths))
        wide = mlp([widths[0], widths[1] + 1, *widths[2:]]).double()
        with torch.no_grad():
            for ours, theirs in zip(wide[2::2], narrow[2::2], strict=True):
                ours.bias.copy_(theirs.bias)
                if ours.weight.shape == theirs.weight.shape:
                    ours.weight.copy_(theirs.weight)
            first, second = narrow[0], narrow[2].weight
            wide[0].weight.copy_(torch.cat([first.weight, -first.weight[:1]]))
            wide[0].bias.copy_(torch.cat([first.bias, -first.bias[:1]]))
            # A different share for each neuron above: a larger T for the same function.
            share = torch.tensor([[0.25], [1.5]], dtype=F64)
            wide[2].weight.copy_(
                torch.cat([second[:, :1] * (1 - share), second[:, 1:], -share * second[:, :1]], 1)
            )
        found.append((wide, certify(narrow, generic_samples(30, widths[0])).rank))
    return found


def deep() -> Iterator[bool]:
    for model, rank in split_networks():
        yield model_rank_of_function(model).upper == rank


@cache
def sampled() -> list[tuple[TwoLayer, int]]:
    """Networks of several outputs, and the fewest points on which the certified rank is dim T."""
    found = []
    for a in ([[1.0, 2.0], [3.0, -1.0]], [[1.0, 2.0], [-2.0, -4.0]], [[1.0, 0.0], [2.0, 0.0]]):
        w, b = torch.tensor([[0.9], [-1.7]], dtype=F64), torch.tensor([0.3, 0.4], dtype=F64)
        for c in (None, torch.ones(2, dtype=F64)):
            model = TwoLayer.of(w, b, torch.tensor(a, dtype=F64), c)
            size = int(tangent_dimension(model))
            n = next(n for n in range(1, 20) if certify(model, generic_samples(n, 1)).rank == size)
            found.append((model, n))
    return found


def point_counts() -> Iterator[bool]:
    for model, n in sampled():
        found = points.points_needed(model)
        yield (found.lower, found.upper) == (n, n)


def dense(target: Any, net: Any) -> Dimension:
    """A convolution treated as fully connected."""
    f = convolution_function.neuron_sum(target)
    term = Term(f.k * (net.d + 1), "neurons with weights of their own")
    return Dimension.between("model rank", term.dimension, [term], "3.2", net.n_params)


def without_one(f: Any, net: Any) -> list[Term]:
    """q for the value and d for the slopes, none for the bias."""
    first, *others = prices.of_neurons(f, net) or [Term(0, "")]
    return [replace(first, dimension=first.dimension - f.k * net.beta), *others]


def without_output_bias(f: Any, net: Any) -> list[Term]:
    return prices.of_neurons(f, net)[: int(f.k > 0)]


Run = Callable[[], Iterator[bool]]

# Name: the module and function that are replaced, the replacement, and the cases that must detect it.
MUTANTS: dict[str, tuple[Any, str, Any, Run]] = {
    "constant part forgotten": (
        two_layer_function,
        "_odd_rank",
        lambda f, net: (0, prices.of_neurons(f, net)),
        two_layers,
    ),
    "constants cost q only": (
        two_layer_function,
        "constant_neuron_price",
        lambda net: Term(net.q, "a constant"),
        two_layers,
    ),
    "no hidden biases counted": (two_layer_function, "of_neurons", without_one, two_layers),
    "output bias forgotten": (two_layer_function, "of_neurons", without_output_bias, two_layers),
    "sigmoid never reflected": (
        two_layer_function,
        "reachable",
        lambda *_: False,
        two_layers,
    ),
    "sigmoid always reflected": (two_layer_function, "reachable", lambda *_: True, two_layers),
    "a kink is free": (prices, "kink", lambda _: 0, two_layers),
    "hinges never reflected": (
        hinge_function._Case,
        "is_reached",
        lambda *_: False,
        two_layers,
    ),
    "hinges always reflected": (
        hinge_function._Case,
        "is_reached",
        lambda *_: True,
        two_layers,
    ),
    "no pairs": (hinge_function._Case, "pairs", lambda _: None, two_layers),
    "affine parts are free": (hinge_function, "affine_size", lambda *_: 0, two_layers),
    "a width that is no limit": (
        two_layer_function,
        "require_constant_neuron",
        lambda *_: None,
        two_layers,
    ),
    "convolution as an MLP": (function, "convolution_model_rank", dense, convolutions),
    "sharing ignored": (
        function,
        "convolution_model_rank",
        lambda target, net: convolution_function.convolution_model_rank(
            target, replace(net, shared=False)
        ),
        convolutions,
    ),
    "own dimension of a deep network": (
        deep_function,
        "reduce_network",
        lambda target, reduce=deep_function.reduce_network: replace(
            reduce(target), net=target, steps=()
        ),
        deep,
    ),
    "observations instead of points": (points, "_outputs", lambda _: 1, point_counts),
    "only all outputs together": (points, "_subspaces", lambda _: iter(()), point_counts),
    "constants in every subspace": (
        points,
        "_modulo",
        lambda net, U, modulo=points._modulo: replace(modulo(net, U), c=None),
        point_counts,
    ),
}


@pytest.mark.parametrize("run", [two_layers, convolutions, deep, point_counts])
def test_the_theory_passes(run: Run) -> None:
    assert all(run())


@pytest.mark.parametrize("name", MUTANTS)
def test_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, piece, wrong, run = MUTANTS[name]
    assert all(run())  # the cases pass without a mutant
    monkeypatch.setattr(where, piece, wrong)
    assert not all(run())


def test_own_dimension_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """dim T at the given parameters, without a minimum, is too large for neurons that cancel each other."""
    w = torch.tensor([[0.9], [-0.9], [0.4]], dtype=F64)
    model = TwoLayer.of(w, None, torch.ones(3, 1, dtype=F64))
    narrow = TwoLayer.of(w[2:], None, torch.ones(1, 1, dtype=F64))
    true = certify(narrow, generic_samples(9, 1)).rank
    assert model_rank_of_function(model).upper == true
    own = two_layer_tangent(read_structure(model))
    monkeypatch.setattr(function, "two_layer_model_rank", lambda *_: own)
    assert model_rank_of_function(model).upper > true
