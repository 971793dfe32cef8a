"""How many points several outputs need: the bounds, and certified ranks on that many points and on fewer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from helpers.theory_cases import (
    ANALYTIC,
    F64,
    build,
    generic_samples,
    random_cases,
    random_two_layer,
)
from torch import Tensor, nn

from llr import certify
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.theory import Points, points_needed, tangent_dimension
from llr.theory.functions import points

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

GENERIC, PARALLEL = ([1.0, 2.0], [3.0, -1.0]), ([1.0, 2.0], [-2.0, -4.0])


def two_neurons(a: tuple[list[float], list[float]], activation: str = "tanh") -> TwoLayer:
    """One input, two outputs, biases."""
    return build(activation, [([0.9], 0.3, a[0]), ([-1.7], 0.4, a[1])])


def random_network(
    seed: int, *, d: int, k: int, q: int, rank: int, activation: str = "tanh"
) -> TwoLayer:
    """Outgoing weights of a given rank: after the first `rank` neurons, the directions repeat."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(-9, 10, (k, q), generator=g).double() / 4 + torch.eye(k, q) * 3
    for i in range(rank, k):
        a[i] = a[i % rank] * (-0.5) ** (i // rank)
    w, b = generic_samples(k, d, seed), generic_samples(k, 1, seed + 1)[:, 0]
    return TwoLayer.of(w, b, a, activation=activation)


def check(model: nn.Module, d: int, seed: int = 5) -> Points:
    """Assert: the certified rank is below dim T on fewer points than `lower`, and equals it on `upper`."""
    found, size = points_needed(model), tangent_dimension(model).upper
    for n in range(max(found.lower - 1, 1), found.upper + 1):
        rank = certify(model, generic_samples(n, d, seed)).rank
        assert rank < size or n >= found.lower
        assert rank == size or n < found.upper
    return found


class TestTwoOutputs:
    # `ranks` are those on 3, 4, 5, 6 points.
    @pytest.mark.parametrize(
        ("a", "needed", "ranks"),
        [(GENERIC, 4, (6, 8, 8, 8)), (PARALLEL, 6, (5, 6, 7, 8))],
    )
    @pytest.mark.parametrize("activation", ["tanh", "erf", "sigmoid", "softplus", "gelu", "silu"])
    def test_example(
        self,
        a: tuple[list[float], list[float]],
        needed: int,
        ranks: tuple[int, ...],
        activation: str,
    ) -> None:
        model = two_neurons(a, activation)
        found = points_needed(model)
        assert (int(found), found.lower, found.upper) == (needed,) * 3
        assert int(found.dimension) == 8
        for n, rank in enumerate(ranks, 3):
            assert certify(model, generic_samples(n, 1)).rank == rank

    def test_reasons(self) -> None:
        parallel, generic = (
            points_needed(two_neurons(PARALLEL)),
            points_needed(two_neurons(GENERIC)),
        )
        assert "values in 1 of 2 dimensions see 1 numbers a point" in parallel.reason
        assert "n times 2 observations" in generic.reason
        assert all("a determinant" in found.reason for found in (parallel, generic))
        assert str(parallel).startswith("6 points of 2 outputs each")
        assert parallel.to_dict()["dimension"]["upper"] == 8


@pytest.mark.parametrize("seed", range(random_cases(12)))
def test_random_networks(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    d, k, q = (
        int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 3), (1, 4), (2, 4))
    )
    rank = int(torch.randint(1, min(k, q) + 1, (), generator=g))
    model = random_network(seed, d=d, k=k, q=q, rank=rank)
    found = check(model, d)
    assert found.status == "exact"
    # The bound computed independently, over spans of directions: each line has its own neurons.
    size = k * (q + d + 1)
    lines = [sum(1 for i in range(k) if i % rank == g) for g in range(rank)]
    most = max(-(-size // q), max(k + (d + 1) * count for count in lines))
    for one, other in product(range(rank), repeat=2):
        if one < other and q > 2:
            most = max(most, -(-(2 * k + (d + 1) * (lines[one] + lines[other])) // 2))
    assert found.lower == most


@pytest.mark.parametrize("activation", ANALYTIC)
def test_degenerate_networks(activation: str) -> None:
    """The bounds hold for repeated, reflected and cancelling neurons, also if they differ."""
    looked_at = 0
    for seed in range(random_cases(14)):
        model = random_two_layer(activation, seed)
        found, size = points_needed(model), int(tangent_dimension(model))
        assert found.lower * found.outputs >= size
        assert found.lower <= found.upper
        if activation == "relu":  # this many samples may not reach all regions
            continue
        looked_at += 1
        d = model[0].in_features
        if found.lower > 1:
            assert certify(model, generic_samples(found.lower - 1, d, seed)).rank < size
        assert certify(model, generic_samples(max(found.upper, 1), d, seed)).rank == size
    assert looked_at or activation == "relu"


def test_one_output() -> None:
    model = random_network(0, d=2, k=3, q=1, rank=1)
    found = check(model, 2)
    assert (int(found), found.outputs) == (12, 1)
    assert "1 observations" in found.reason
    kernel = Conv1dTwoLayer(5, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert int(check(kernel, 5)) == 6
    assert int(points_needed(MatrixFactorization(3, 4, 2))) == 6


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((torch.ones(3, 4),), 4),
        ((torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0], [3.0]])), 3),
        ((torch.zeros(2, 3), torch.ones(2, 2)), 3),
        ((torch.zeros(2, 3), torch.zeros(2, 2)), 0),
        ((torch.ones(2, 3), torch.zeros(4, 2)), 1),
    ],
)
def test_linear_networks(weights: tuple[Tensor, ...], expected: int) -> None:
    model = DeepLinear.of(*(W.double() for W in weights))
    found = points_needed(model)
    assert (int(found), found.status) == (expected, "exact")
    if expected:
        check(model, weights[0].shape[1])


def test_deep_networks() -> None:
    model = mlp([2, 3, 2, 2], dtype=F64, generator=torch.Generator().manual_seed(3))
    found = check(model, 2)
    assert (int(found), found.status) == (12, "exact")
    assert found.dimension.status == "almost everywhere"
    assert "shows that it is 23" in found.reason
    with (
        torch.no_grad()
    ):  # half of the second layer's neurons constant: fewer, if any number is known
        model[2].weight[1] = 0
    degenerate = points_needed(model)
    rank = certify(model, generic_samples(40, 2)).rank
    assert rank <= degenerate.dimension.upper < 23
    n = degenerate.upper
    assert certify(model, generic_samples(n, 2)).rank == rank
    if degenerate.lower > 1:
        assert certify(model, generic_samples(degenerate.lower - 1, 2)).rank < rank


def test_what_is_not_settled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model too large for a determinant: only bounds; random points attain the lower one."""
    monkeypatch.setattr(points, "_ENTRIES", 0)
    model = two_neurons(GENERIC)
    found = points_needed(model)
    assert (found.lower, found.upper, found.status) == (4, 7, "bounds")
    assert "observed, not proved" in found.reason
    assert str(found).startswith("4 to 7 points")
    with pytest.raises(ValueError, match="between 4 and 7"):
        int(found)


def with_infinity() -> nn.Module:
    model = TwoLayer(2, 2, 2)
    model[2].weight.data[1, 0] = float("inf")
    return model


def frozen() -> nn.Module:
    model = TwoLayer(2, 2, 2)
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: torch.ones(2), TypeError, "is Tensor; expected an nn.Module"),
        (lambda: nn.LSTM(2, 2), ValueError, r"llr\.model_rank\(model\)"),
        (with_infinity, ValueError, r"inf at index \(1, 0\)"),
        (frozen, ValueError, "is frozen"),
    ],
)
def test_refusals(model: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        points_needed(model())


def test_nearly_equal_neurons() -> None:
    model = build("tanh", [([0.5], 0.25, [1.0, 0.0]), ([0.5 + 1e-13], 0.25, [0.0, 1.0])])
    with pytest.warns(UserWarning, match="exact equality"):
        assert points_needed(model).dimension.upper == 8


def test_affine_functions_of_one_direction() -> None:
    """T is only a (x, 1): a point gives one condition on it, not two."""
    model = build("tanh", [([0.0], 0.0, [1.0, 2.0])])
    found = check(model, 1)
    assert (found.lower, found.upper, int(found.dimension)) == (2, 2, 2)


@pytest.mark.parametrize("activation", ["softplus", "gelu", "silu"])
def test_both_orientations(activation: str) -> None:
    """u s' - v (1 - s') has u + v before s', but v in its affine part: no values in the span of u + v."""
    outgoing = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    planes = (([0.75], 0.5), ([-0.75], -0.5), ([1.5], -0.25))
    model = build(activation, [(*plane, a) for plane, a in zip(planes, outgoing, strict=True)])
    assert check(model, 1).status == "exact"
