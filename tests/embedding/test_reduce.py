"""Reductions of networks: of random wide networks, and of degenerate networks of every kind."""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from helpers.embedding_cases import (
    ACTIVATIONS,
    F64,
    certified,
    convolution,
    narrow_mlp,
    network,
    normal,
    normal_samples,
    not_reduced,
    two_layer,
    wider,
    widths_of,
)
from helpers.theory_cases import random_cases, random_two_layer
from torch import nn

from llr.embedding import null, random_compatible, reduce, split, widen
from llr.models import (
    Conv1dTwoLayer,
    DeepLinear,
    Polynomial,
    TwoLayer,
    mlp,
)
from llr.theory import read_structure
from llr.theory.functions.reduction import reduce_network

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: nn.Module, other: nn.Module, d: int, tolerance: float = 1e-12) -> bool:
    x = 2 * normal_samples(50, d, 7)
    with torch.no_grad():
        return torch.allclose(one(x), other(x), rtol=tolerance, atol=tolerance)


class TestBack:
    """A wide network is reduced to the narrow one."""

    def test_widened(self) -> None:
        wrong = []
        for seed in range(random_cases(80)):
            narrow = narrow_mlp(seed)
            wide, embedding = widen(narrow, wider(narrow, seed), generator(seed))
            if found := not_reduced(narrow, wide):
                wrong.append((seed, found, str(embedding)))
        assert not wrong

    def test_one_of_the_moves_that_enlarge(self) -> None:
        for seed in range(40):
            narrow = narrow_mlp(seed)
            widths, layer = widths_of(narrow), seed % (len(widths_of(narrow)) - 2)
            n_in, n_out = widths[layer], widths[layer + 2]
            shares = [0.5, -1.0, 2.0, 0.0][:n_out]
            assert not_reduced(narrow, split(narrow, layer, 0, shares)[0]) == ""
            assert not_reduced(narrow, null(narrow, layer, incoming=[0.5] * n_in)[0]) == ""

    def test_absorbed_constants(self) -> None:
        # tanh(b) is not a float64 number, so the reduction is rounded.
        narrow = network(2, 2, 3, 1)
        wide, _ = null(narrow, 0, bias=0.7, outgoing=[1.0, 2.0, 3.0])
        found = reduce(wide)
        assert found.widths == (2, 2, 3, 1)
        assert not found.proved
        assert found.max_difference < 1e-15
        assert "is constant 0.604368: absorbed into the biases of layer 1" in found.steps[0]
        torch.testing.assert_close(found.model[2].bias, narrow[2].bias, rtol=0, atol=1e-15)

    def test_compatible_copies(self) -> None:
        # Copies have different rows, and are equal only after the layer below has been reduced.
        for seed in range(20):
            narrow = network(2, 2, 3, 1, seed=seed)
            wide, embedding = random_compatible(narrow, [2, 5, 6, 1], generator(seed))
            assert not_reduced(narrow, wide) == "", str(embedding)

    def test_narrow_networks_stay(self) -> None:
        for seed in range(20):
            narrow = narrow_mlp(seed)
            found = reduce(narrow)
            assert found.steps == ()
            assert found.proved
            for p, q in zip(narrow.parameters(), found.model.parameters(), strict=True):
                assert torch.equal(p, q)
                assert p is not q

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_channels(self, activation: str, shared: bool) -> None:
        for seed in range(random_cases(6)):
            narrow = convolution(5, 3, 2, seed=seed, shared=shared, activation=activation)
            wide, _ = widen(narrow, 5, generator(seed))
            found = reduce(wide)
            assert (found.before, found.widths) == ((5, 5, 1), (5, 2, 1))
            assert found.proved
            assert same(narrow, found.model, 5)
            assert isinstance(found.model, Conv1dTwoLayer)
            assert found.model.shared is shared


class TestDegenerate:
    """Networks whose neurons repeat, reflect and cancel each other."""

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_random_two_layer(self, activation: str) -> None:
        for seed in range(random_cases(40)):
            wide = random_two_layer(activation, seed)
            found = reduce(wide)
            d = found.widths[0]
            assert same(wide, found.model, d, 1e-10)
            assert reduce(found.model).widths == found.widths
            if activation in ("tanh", "erf"):
                assert found.widths[1] == effective_neurons(wide)

    def test_the_model_rank(self) -> None:
        # The narrowest network has the smallest possible tangent space: Theorem 2.3.
        checked = 0
        for seed in range(60):
            wide = random_two_layer("tanh", seed)
            d, q = wide[0].in_features, wide[2].out_features
            beta, bias = int(wide[0].bias is not None), wide[2].bias is not None
            k, constant = groups_of(wide)
            if k == 0:  # a null neuron has no tangent functions, a constant one q + d
                continue
            expected = k * (q + d + beta) + (q if bias else (q + d) * constant)
            assert certified(reduce(wide).model, d) == expected
            checked += 1
        assert checked > 30

    def test_in_fifty_digits(self) -> None:
        wide = two_layer(
            "sigmoid", [(1, 0.5, 2), (-1, -0.5, 3), (0, 1, 2), (1, 0.5, 1), (2, 1, 0)], 0.25
        )
        found = reduce(wide)
        assert found.widths == (1, 1, 1)

        def value(model: nn.Module, x: str) -> Any:
            with mpmath.workdps(50):
                w, b = (p.detach().flatten().tolist() for p in model[0].parameters())
                a, c = (p.detach().flatten().tolist() for p in model[2].parameters())
                terms = (
                    mpmath.mpf(a[i]) / (1 + mpmath.exp(-(w[i] * mpmath.mpf(x) + b[i])))
                    for i in range(len(w))
                )
                return sum(terms, mpmath.mpf(c[0]))

        for x in ("0.3", "-2.5", "7"):
            assert abs(value(wide, x) - value(found.model, x)) < 1e-15


def groups_of(model: TwoLayer) -> tuple[int, bool]:
    """The number of tanh neurons in the function, and whether it has a constant; computed independently."""
    w, a = model[0].weight.tolist(), model[2].weight.T.tolist()
    b = model[0].bias.tolist() if model[0].bias is not None else [0.0] * len(w)
    sums: dict[tuple[float, ...], list[Fraction]] = defaultdict(lambda: [Fraction(0)] * len(a[0]))
    constants: dict[float, list[Fraction]] = defaultdict(lambda: [Fraction(0)] * len(a[0]))
    for i, row in enumerate(w):
        key = (*row, b[i])
        sign = 1
        if key < tuple(-v for v in key):
            key, sign = tuple(-v + 0.0 for v in key), -1
        if any(row):
            sums[key] = [s + sign * Fraction(v) for s, v in zip(sums[key], a[i], strict=True)]
        elif b[i]:
            old = constants[abs(b[i])]
            up = 1 if b[i] > 0 else -1
            constants[abs(b[i])] = [s + up * Fraction(v) for s, v in zip(old, a[i], strict=True)]
    return sum(map(any, sums.values())), any(map(any, constants.values()))


def effective_neurons(model: TwoLayer) -> int:
    k, constant = groups_of(model)
    return max(1, k + (constant and model[2].bias is None))


class TestRelations:
    """Relations between neurons, beside equality, for each activation."""

    @pytest.mark.parametrize("activation", ["sigmoid", "softplus", "gelu", "silu", "relu", "sin"])
    def test_equal_neurons(self, activation: str) -> None:
        wide = two_layer(activation, [(1, 0.5, 1), (2, 1, 1), (1, 0.5, 2)])
        expected = 1 if activation == "relu" else 2
        assert reduce(wide).widths[1] == expected

    def test_sigmoid_reflects_into_the_bias(self) -> None:
        pair = [(1.0, 0.5, 2.0), (-1.0, -0.5, 3.0)]
        found = reduce(two_layer("sigmoid", pair, 0.25))
        assert found.widths == (1, 1, 1)
        assert found.proved
        assert found.model[2].weight.item() == 2 - 3
        assert found.model[2].bias.item() == 3.25
        assert found.steps == ("layer 0: neuron 1 = -neuron 0 + 1: merged",)
        # Without output bias, the constant 1 = s(z) + s(-z) must be provided by other neurons.
        assert reduce(two_layer("sigmoid", pair)).widths == (1, 2, 1)
        constant = (0.0, 0.0, 1.0)
        found = reduce(two_layer("sigmoid", [*pair, constant]))
        assert found.widths == (1, 2, 1)
        assert found.proved  # s(0) = 1/2

    def test_constants_without_a_bias(self) -> None:
        found = reduce(two_layer("tanh", [(0, 1, 2), (1, 0, 1), (0, -1, 1), (0, 2, 1), (0, 0, 5)]))
        assert found.widths == (1, 2, 1)
        assert len(found.steps) == 3
        value = 2 * torch.tanh(torch.tensor(1.0).double()) - 0.7615941559557649 + 0.9640275800758169
        assert found.model(torch.zeros(1, 1).double()).item() == pytest.approx(
            value.item(), rel=1e-15
        )
        # tanh(-1) = -tanh(1) holds exactly, although tanh(1) is rounded.
        assert reduce(two_layer("tanh", [(0, 1, 2), (1, 0, 1), (0, -1, 1)])).proved

    def test_relu(self) -> None:
        found = reduce(
            two_layer("relu", [(1, 2, 3), (0.5, 1, 4), (-1, -2, 1), (0, -1, 9), (0, 2, 1)], 0.0)
        )
        assert found.widths == (1, 2, 1)  # (-1, -2) is not a positive multiple
        assert found.proved
        assert found.model[2].weight.flatten().tolist() == [5.0, 1.0]
        assert found.model[2].bias.item() == 2.0

    @pytest.mark.parametrize("activation", ["softplus", "gelu", "silu", "relu"])
    def test_hinges(self, activation: str) -> None:
        # s(z) - s(-z) = z: of four neurons at z and 2 z the last one follows from the others.
        four = [(1.0, 0.5, 1.0), (-1.0, -0.5, 2.0), (2.0, 1.0, 3.0), (-2.0, -1.0, 4.0)]
        found = reduce(two_layer(activation, four))
        assert found.widths[1] == (2 if activation == "relu" else 3)
        assert found.proved

    def test_sines_of_one_direction(self) -> None:
        wide = two_layer("sin", [(1, 0.5, 2), (-1, 1, 1), (1, 2, -1), (2, 0, 1)])
        found = reduce(wide)
        assert found.widths == (1, 2, 1)
        assert same(wide, found.model, 1, 1e-14)
        assert not found.proved
        # With two outputs there are two phases, and a third one is a combination of these.
        wide = normal(TwoLayer(1, 4, 2, activation="sin"), 0)
        with torch.no_grad():
            wide[0].weight.copy_(torch.tensor([[1.0], [1.0], [-1.0], [1.0]]))
        found = reduce(wide)
        assert found.widths == (1, 2, 2)
        assert same(wide, found.model, 1, 1e-13)

    def test_polynomials(self) -> None:
        # (w x + b)^2 in one input: three functions, 1, x and x^2, of which an output bias gives one.
        square = Polynomial([0, 0, 1])
        wide = normal(TwoLayer(1, 6, activation=square), 0)
        assert reduce(wide).widths == (1, 3, 1)
        assert same(wide, reduce(wide).model, 1, 1e-10)
        wide = normal(TwoLayer(1, 6, activation=square, output_bias=True), 0)
        assert reduce(wide).widths == (1, 2, 1)
        with pytest.raises(ValueError, match=r"polynomials of .* terms"):
            reduce(TwoLayer(40, 9, activation=Polynomial([0, 0, 0, 0, 1])))

    def test_linear_networks(self) -> None:
        # The rank of the product is the narrowest width.
        for seed, (widths, rank) in enumerate(
            [((3, 4, 2), 2), ((3, 3, 4, 1), 1), ((2, 5, 5, 5, 3), 2), ((3, 1, 4, 3), 1)]
        ):
            wide = normal(DeepLinear(widths), seed)
            found = reduce(wide)
            assert found.widths == (widths[0], *[rank] * (len(widths) - 2), widths[-1])
            assert same(wide, found.model, widths[0], 1e-9)
            assert type(found.model) is DeepLinear
        wide = normal(mlp([2, 4, 3, 2], "identity"), 0)
        assert reduce(wide).widths == (2, 2, 2, 2)
        assert same(wide, reduce(wide).model, 2, 1e-10)


def degenerate(activation: str, seed: int) -> nn.Sequential:
    """A deep network of small integers with repeated, reflected, cancelling and constant neurons."""
    chance = random.Random(seed)
    widths = [chance.randint(1, 2), *(chance.randint(2, 4) for _ in range(2)), chance.randint(1, 2)]
    model = mlp(widths, activation, chance.random() < 0.7, chance.random() < 0.7).double()
    with torch.no_grad():
        for p in model.parameters():
            numbers = [chance.choice((-1, 0, 0, 1, 1, 2)) / 2 for _ in range(p.numel())]
            p.copy_(torch.tensor(numbers).view(p.shape))
    return model


class TestDeep:
    """Reductions in one layer make reductions in another possible."""

    def test_bottom_up(self) -> None:
        # The neurons of the second layer are equal once those of the first are merged.
        wide = network(1, 2, 2, 1)
        with torch.no_grad():
            wide[0].weight[1], wide[0].bias[1] = -wide[0].weight[0], -wide[0].bias[0]
            wide[2].weight.copy_(torch.tensor([[1.0, 0.5], [2.0, 1.5]]))
            wide[2].bias.fill_(0.5)
        found = reduce(wide)
        assert found.widths == (1, 1, 1, 1)
        assert [step[:7] for step in found.steps] == ["layer 0", "layer 1"]
        assert found.proved

    def test_top_down(self) -> None:
        # Neurons without outgoing weights are deleted, then neurons that only those have read.
        wide = network(1, 3, 3, 1)
        with torch.no_grad():
            wide[4].weight[0, :2] = 0.0
            wide[2].weight[2, 1:] = 0.0
        assert reduce(wide).widths == (1, 1, 1, 1)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_degenerate(self, activation: str) -> None:
        # At least as narrow as the result of the theory's rules, which cover fewer relations.
        merged = 0
        for seed in range(random_cases(10)):
            wide = degenerate(activation, seed)
            found = reduce(wide)
            other = reduce_network(read_structure(wide)).net
            assert same(wide, found.model, found.widths[0], 1e-9), (activation, seed)
            assert all(n <= m for n, m in zip(found.widths, other.widths, strict=True))
            assert reduce(found.model).widths == found.widths
            merged += found.widths != found.before
        assert merged > 5

    @pytest.mark.parametrize("output_bias", [True, False])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_constant_functions(self, activation: str, output_bias: bool) -> None:
        wide = network(2, 3, 3, 2, activation=activation, output_bias=output_bias)
        with torch.no_grad():
            wide[2].weight.zero_()
        found = reduce(wide)
        assert found.widths == (2, 1, 1, 2)
        assert same(wide, found.model, 2)
        assert not any(p.any() for p in found.model[0].parameters())
        with torch.no_grad():
            wide[4].weight.zero_()
        found = reduce(wide)
        assert found.widths == (2, 1, 1, 2)
        assert found.proved
        assert "stays without weights" in found.steps[-1]
        assert reduce(found.model).steps == ()

    def test_float32_sums_are_rounded_once(self) -> None:
        wide = two_layer("tanh", [(1, 0, 1), (1, 0, 2**-30), (1, 0, -1), (2, 0, 1)]).float()
        found = reduce(wide)
        assert found.model[2].weight.flatten().tolist() == [2**-30, 1.0]
        assert found.model[0].weight.dtype == torch.float32
        assert found.proved

    def test_wide(self) -> None:
        narrow = network(3, 40, 30, 2, seed=2)
        wide, _ = widen(narrow, [3, 90, 80, 2], generator())
        assert not_reduced(narrow, wide) == ""


class TestKernels:
    """Channels whose neurons also occur in other channels."""

    def test_shifted_kernels(self) -> None:
        # (1, 0) at t + 1 is (0, 1) at t.
        kernels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
        out = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]], dtype=F64)
        found = reduce(Conv1dTwoLayer.of(kernels, out, d=4))
        assert found.widths == (4, 1, 1)
        assert found.model.out.tolist() == [[1.0, 6.0, 8.0]]
        assert found.proved
        out[1, 2] = 1.0  # only the second kernel reads x_3
        out[0, 0] = 1.0  # and only the first reads x_0
        assert reduce(Conv1dTwoLayer.of(kernels, out, d=4)).widths == (4, 2, 1)

    def test_without_sharing_positions_count(self) -> None:
        # One active kernel at each position, in different channels.
        narrow = convolution(5, 3, 3, shared=False)
        with torch.no_grad():
            narrow.out.copy_(torch.diag(narrow.out.diagonal()))
        found = reduce(narrow)
        assert found.widths == (5, 1, 1)
        assert found.proved
        assert certified(found.model, 5) == 12

    def test_nothing_left(self) -> None:
        for shared in (True, False):
            wide = convolution(4, 2, 3, shared=shared)
            with torch.no_grad():
                wide.out[0].zero_()
                wide.weight[1:].zero_()
            found = reduce(wide)
            assert found.widths == (4, 1, 1)
            assert not found.model.out.any()
            assert reduce(found.model).steps == ()
