"""Model ranks of functions of convolutions, linear and deep networks, and refusals."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import combinations_with_replacement, pairwise, product
from typing import Any

import pytest
import torch
from helpers.theory_cases import (
    F64,
    build,
    generic_samples,
)
from torch import Tensor, nn

from llr import certify
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.theory import (
    Dimension,
    model_rank_of_function,
    optimistic_sample_size,
    read_structure,
    tangent_dimension,
)
from llr.theory.functions.convolution_function import as_two_layer, convolution_model_rank
from llr.theory.functions.linear_function import linear_model_rank
from llr.theory.structures.structure import ConvNet, DeepNet
from llr.theory.tangents.convolution import convolution_tangent

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

Entries = Sequence[Sequence[float]]


def convolution(kernels: Entries | Tensor, out: Entries | Tensor, d: int) -> Conv1dTwoLayer:
    w, a = (torch.as_tensor(v, dtype=F64) for v in (kernels, out))
    return Conv1dTwoLayer.of(w, a, d=d)


def random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Multiples of 1/64."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randint(-128, 129, p.shape, generator=g) / 64)
    return model


def three_architectures(target: Conv1dTwoLayer, spare: int = 2) -> list[int]:
    """Model ranks with sharing, without, and fully connected, all wider than the target."""
    d, s, k = target.d, target.kernel_size, target.channels
    nets = [Conv1dTwoLayer(d, s, k + spare, shared=shared) for shared in (True, False)]
    wide = TwoLayer(d, (k + spare) * target.positions, bias=False)
    return [int(optimistic_sample_size(net, target)) for net in (*nets, wide)]


class TestConvolutions:
    # d, s, k: with sharing, without, fully connected.
    TABLE = (
        ((3, 2, 1), (4, 6, 8)),
        ((4, 2, 1), (5, 9, 15)),
        ((5, 3, 1), (6, 12, 18)),
        ((5, 3, 2), (12, 24, 36)),
        ((6, 2, 2), (14, 30, 70)),
        ((6, 4, 2), (14, 30, 42)),
        ((4, 1, 2), (10, 16, 40)),
        ((4, 4, 2), (10, 10, 10)),
    )

    @pytest.mark.parametrize(("size", "expected"), TABLE)
    def test_table(self, size: tuple[int, int, int], expected: tuple[int, ...]) -> None:
        target = random_weights(Conv1dTwoLayer(*size))
        assert three_architectures(target) == list(expected)
        # Each is the certified rank of the narrowest such network with the function.
        d, s, k = size
        x = generic_samples(expected[2] + 2, d)
        apart = target.weight.detach()[:, None].expand(k, d + 1 - s, s)
        two_layer = as_two_layer(read_structure(target))
        dense = TwoLayer.of(
            torch.tensor([[float(v) for v in row] for row in two_layer.w], dtype=F64),
            None,
            torch.tensor([[float(v) for v in row] for row in two_layer.a], dtype=F64),
        )
        for model, rank in zip(
            (target, convolution(apart, target.out.detach(), d), dense), expected, strict=True
        ):
            assert certify(model, x).rank == rank

    @pytest.mark.parametrize(("c", "expected"), [(1, (6, 4, 6)), (2, (6, 8, 12)), (3, (6, 12, 18))])
    def test_few_positions(self, c: int, expected: tuple[int, ...]) -> None:
        out = [[float(t < c) for t in range(3)]]
        assert three_architectures(convolution([[1.0, 2.0, -1.0]], out, 5)) == list(expected)

    def test_kernels_with_zeros(self) -> None:
        """Shifts of one kernel share its parameters: at most dim T of section 4, less than k (d + 1)."""
        two = convolution([[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]], 4)
        assert int(tangent_dimension(two)) == 8
        assert optimistic_sample_size(Conv1dTwoLayer(4, 2, 4), two).upper <= 8
        shifted = [[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]]
        cancels = convolution(shifted, [[0.0, 1.0, 1.0], [-1.0, -1.0, 0.0]], 5)
        assert int(tangent_dimension(cancels)) == 8
        assert int(model_rank_of_function(cancels)) == 0

    @staticmethod
    def smallest_by_function(nets: Iterable[ConvNet]) -> list[tuple[ConvNet, int, bool]]:
        """For each function a representative, the smallest dim T, and whether the grid has its weights."""
        found: dict[object, tuple[ConvNet, int, bool]] = {}
        for net in nets:
            f: defaultdict[object, Fraction] = defaultdict(Fraction)
            neurons = as_two_layer(net)
            for w, (a,) in zip(neurons.w, neurons.a, strict=True):
                if any(w):
                    sign = 1 if next(v for v in w if v) > 0 else -1
                    f[tuple(sign * v for v in w)] += sign * a
            size = int(convolution_tangent(net))
            key = frozenset((w, a) for w, a in f.items() if a)
            if key not in found or size < found[key][1]:
                found[key] = net, size, all(abs(a) <= 1 for _, a in key)
        return list(found.values())

    @pytest.mark.parametrize("sharing", [True, False])
    def test_minimum_over_a_grid(self, sharing: bool) -> None:
        """d = 3 and s = 2: all pairs of kernels of -1, 0, 1, or, without sharing, all single ones."""
        grid = (Fraction(-1), Fraction(0), Fraction(1))
        rows = list(product(grid, repeat=2))
        nets: list[ConvNet] = []
        if sharing:
            half = [w for w in rows if next((v for v in w if v), 1) > 0]  # up to sign
            for pair in combinations_with_replacement(product(half, rows), 2):
                kernels, out = zip(*pair, strict=True)
                shared = tuple((w,) * 2 for w in kernels)
                nets.append(ConvNet("tanh", shared, tuple(out), 3, 2, shared=True))
        else:
            for first, second, a in product(rows, rows, rows):
                nets.append(ConvNet("tanh", ((first, second),), (a,), 3, 2, shared=False))
        functions = self.smallest_by_function(nets)
        assert sum(whole for *_, whole in functions) > 50
        for net, least, whole in functions:
            claimed = convolution_model_rank(as_two_layer(net), net)
            assert claimed.lower <= least
            if claimed.exact and whole:
                assert int(claimed) == least


class TestLinear:
    @pytest.mark.parametrize(
        ("m", "n", "p", "r", "expected"),
        [(4, 5, 5, 1, 8), (4, 5, 5, 2, 14), (5, 5, 8, 3, 21), (3, 3, 2, 0, 0)],
    )
    def test_factorization(self, m: int, n: int, p: int, r: int, expected: int) -> None:
        A, B = torch.zeros(m, p, dtype=F64), torch.zeros(p, n, dtype=F64)
        g = torch.Generator().manual_seed(0)
        A[:, :r] = torch.randint(-3, 4, (m, r), generator=g) + torch.eye(m, r) * 10
        B[:r] = torch.randint(-3, 4, (r, n), generator=g) + torch.eye(r, n) * 10
        model = MatrixFactorization.of(A, B)
        assert int(model_rank_of_function(model)) == expected
        assert certify(model, model.pairs()).rank == expected
        if r:  # the same product, with a full A and B padded with zeros
            full = A.clone()
            full[:, r:] = torch.randn(m, p - r, generator=g, dtype=F64)
            other = MatrixFactorization.of(full, B)
            padded = {(4, 1): 20, (4, 2): 20, (5, 3): 25}[m, r]
            assert int(tangent_dimension(other)) == padded
            assert int(model_rank_of_function(other)) == expected

    def test_factorization_minimum_over_a_grid(self) -> None:
        """Products of 2 x 2 matrices with entries 0, 1, -1, and all their factors with such entries."""
        matrices = [torch.tensor(v, dtype=F64).view(2, 2) for v in product((-1, 0, 1), repeat=4)]
        ranks = [int(torch.linalg.matrix_rank(M)) for M in matrices]
        least: dict[tuple[float, ...], int] = {}
        for (A, a), (B, b) in product(zip(matrices, ranks, strict=True), repeat=2):
            key = tuple((A @ B).flatten().tolist())
            least[key] = min(least.get(key, 9), 2 * a + 2 * b - a * b)
        for entries, size in least.items():
            M = torch.tensor(entries, dtype=F64).view(2, 2)
            target = MatrixFactorization.of(M, torch.eye(2, dtype=F64))
            claimed = int(optimistic_sample_size(MatrixFactorization(2, 6, 2), target))
            assert claimed <= size
            if max(map(abs, entries)) <= 1:  # M times 1, and its column and row, are in the grid
                assert claimed == size

    @pytest.mark.parametrize("widths", [[3, 4, 2], [4, 3, 5, 3], [2, 3, 3, 2]])
    def test_minimum_over_rank_patterns(self, widths: list[int]) -> None:
        """Diagonal layers of 0 and 1 have all rank patterns; dim T is ranked exactly, sample by sample."""
        least: dict[int, int] = {}
        steps = [min(i, o) for i, o in pairwise(widths)]
        for pattern in product(*(range(s + 1) for s in steps)):
            layers = []
            for (i, o), r in zip(pairwise(widths), pattern, strict=True):
                W = torch.zeros(o, i, dtype=F64)
                W[range(r), range(r)] = 1
                layers.append(W)
            r = min(pattern)
            size = certify(DeepLinear.of(*layers), generic_samples(widths[0], widths[0])).rank
            least[r] = min(least.get(r, 99), size)
        for r, size in least.items():
            assert size == r * (widths[0] + widths[-1] - r)
            W = torch.zeros(widths[-1], widths[0], dtype=F64)
            W[range(r), range(r)] = 1
            assert int(optimistic_sample_size(DeepLinear(widths), DeepLinear.of(W))) == size

    def test_a_single_layer(self) -> None:
        assert int(model_rank_of_function(DeepLinear.of(torch.zeros(2, 3)))) == 6

    @pytest.mark.parametrize(("bias", "out"), list(product((True, False), repeat=2)))
    def test_minimum_over_affine_maps(self, bias: bool, out: bool) -> None:
        """1-2-1 with biases: all parameters in {0, 1}, and their ranks on three samples."""
        grid = (Fraction(0), Fraction(1))
        least: dict[tuple[Fraction, Fraction], tuple[DeepNet, int]] = {}
        for v in product(grid, repeat=4 + 2 * bias + out):
            biases = (tuple(v[4:6]) if bias else None, (v[-1],) if out else None)
            W1, W2 = ((v[0],), (v[1],)), ((v[2], v[3]),)
            b1, b2 = biases[0] or (grid[0],) * 2, biases[1] or (grid[0],)
            slope = v[2] * v[0] + v[3] * v[1]
            key = slope, v[2] * b1[0] + v[3] * b1[1] + b2[0]
            points = []
            for x in (-1, 0, 2):  # two would do
                hidden = [v[0] * x + b1[0], v[1] * x + b1[1]]
                row = [v[2] * x, v[3] * x, *hidden]
                row += [v[2], v[3]] * bias + [Fraction(1)] * out
                points.append([float(u) for u in row])
            size = int(torch.linalg.matrix_rank(torch.tensor(points, dtype=F64)))
            net = DeepNet("identity", (W1, W2), biases)
            if key not in least or size < least[key][1]:
                least[key] = net, size
        for (_, constant), (net, size) in least.items():
            found = linear_model_rank(net, net)
            assert found.lower <= size
            if not out or constant <= 1:  # an output bias on the grid can give the constant
                assert size <= found.upper
                assert found.upper == size or not found.exact


def split(model: nn.Sequential, layer: int, i: int, t: float) -> nn.Sequential:
    """Split neuron i of a hidden layer, with shares 1 - t and t of its outgoing weights."""
    linears = [module for module in model if isinstance(module, nn.Linear)]
    W = [module.weight.detach().clone() for module in linears]
    b = [module.bias.detach().clone() for module in linears]
    W[layer] = torch.cat([W[layer], W[layer][i : i + 1]])
    b[layer] = torch.cat([b[layer], b[layer][i : i + 1]])
    column = W[layer + 1][:, i : i + 1].clone()
    W[layer + 1][:, i : i + 1] = (1 - t) * column
    W[layer + 1] = torch.cat([W[layer + 1], t * column], 1)
    wide = mlp([W[0].shape[1], *(len(bias) for bias in b)], "tanh").double()
    with torch.no_grad():
        for module, weight, bias in zip(wide[::2], W, b, strict=True):
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    return wide


class TestDeep:
    # Generic ranks of section 7.1 with biases everywhere, which are P.
    SIZES = (([2, 3, 3, 1], 25), ([1, 2, 2, 1], 13), ([1, 1, 1, 1], 6), ([2, 2, 2, 2], 18))

    @pytest.mark.parametrize(("widths", "size"), SIZES)
    def test_almost_every_function(self, widths: list[int], size: int) -> None:
        narrow = random_weights(mlp(widths), 1)
        wide = mlp([widths[0], 9, 8, widths[-1]])
        found = optimistic_sample_size(wide, narrow)
        assert (found.upper, found.status) == (size, "almost everywhere")
        assert found.lower <= size
        assert certify(narrow, generic_samples(size + 2, widths[0])).rank == size

    def test_splits(self) -> None:
        """From 1-2-2-1 to 1-4-4-1 by splits, and back: 13, and no certified rank is larger."""
        for seed in range(4):
            chance = random.Random(seed)
            model = random_weights(mlp([1, 2, 2, 1]), seed)
            for layer in (0, 1, 1, 0):
                i = chance.randrange(model[2 * layer].out_features)
                model = split(model, layer, i, chance.choice((0.25, -1.5, 1.0, 0.5)))
            assert sum(p.numel() for p in model.parameters()) == 33
            found = model_rank_of_function(model)
            assert (found.upper, found.status) == (13, "almost everywhere")
            assert certify(model, generic_samples(20, 1)).rank == 13

    def test_reductions_add_up(self) -> None:
        """Merging in layer 1 makes two neurons of layer 2 equal, and one of them cancels the other."""
        model = random_weights(mlp([1, 2, 2, 1]))
        with torch.no_grad():
            model[0].weight[1], model[0].bias[1] = -model[0].weight[0], -model[0].bias[0]
            model[2].weight.copy_(torch.tensor([[2.0, 1.0], [1.5, 0.5]]))  # 1 in sum, both
            model[2].bias.fill_(0.25)
            model[4].weight.copy_(torch.tensor([[1.0, 1.0]]))
        found = model_rank_of_function(model)
        assert (found.upper, found.status) == (6, "almost everywhere")
        narrow = random_weights(mlp([1, 1, 1, 1]))
        assert certify(narrow, generic_samples(8, 1)).rank == 6
        with torch.no_grad():
            model[4].weight.copy_(torch.tensor([[1.0, -1.0]]))
        constant = model_rank_of_function(model)
        assert (int(constant), constant.status) == (1, "exact")
        assert certify(model, generic_samples(8, 1)).rank > 1

    def test_bounds(self) -> None:
        """Without all biases, or for ReLU, reduction gives only a bound: it may not be the cheapest way."""
        for model in (mlp([1, 2, 2, 1], bias=False), mlp([1, 2, 2, 1], "relu")):
            random_weights(model)
            found = model_rank_of_function(model)
            assert found.status == "bounds"
            assert found.lower < found.upper
            assert certify(model, generic_samples(200, 1)).rank <= found.upper
            with pytest.raises(ValueError, match="no single number"):
                int(found)


def of_width_one(**options: Any) -> TwoLayer:
    return random_weights(TwoLayer(2, 1, **options))


class Odd(nn.Module):
    """A model without a known structure."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w)[:, None] ** 3


def with_nan() -> nn.Module:
    model = TwoLayer(2, 2)
    model[0].weight.data[0, 1] = float("nan")
    return model


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no module": (lambda: model_rank_of_function(torch.ones(2)), TypeError, "is Tensor; expected"),
    "no target": (lambda: optimistic_sample_size(TwoLayer(2, 2), None), TypeError, "NoneType"),
    "unknown": (lambda: model_rank_of_function(Odd()), ValueError, r"llr\.model_rank\(model\)"),
    "unknown target": (
        lambda: optimistic_sample_size(TwoLayer(2, 2), Odd()),
        ValueError,
        r"llr\.model_rank\(model\)",
    ),
    "nan": (lambda: model_rank_of_function(with_nan()), ValueError, r"nan at index \(0, 1\)"),
    "narrow": (
        lambda: optimistic_sample_size(TwoLayer(2, 2), random_weights(TwoLayer(2, 3))),
        ValueError,
        "has width 2, but the target needs 3",
    ),
    "narrow for a constant": (
        lambda: optimistic_sample_size(TwoLayer(2, 1), of_width_one(output_bias=True)),
        ValueError,
        "one more for its constant part",
    ),
    "no biases": (
        lambda: optimistic_sample_size(TwoLayer(2, 3, bias=False), of_width_one()),
        ValueError,
        "no hidden biases",
    ),
    "activation": (
        lambda: optimistic_sample_size(TwoLayer(2, 3, activation="erf"), of_width_one()),
        ValueError,
        "activation of the target: tanh, of the architecture: erf",
    ),
    "inputs": (
        lambda: optimistic_sample_size(TwoLayer(3, 3), of_width_one()),
        ValueError,
        "inputs of the target: 2, of the architecture: 3",
    ),
    "long kernel": (
        lambda: optimistic_sample_size(Conv1dTwoLayer(4, 2, 9), TwoLayer(4, 1, bias=False)),
        ValueError,
        "kernels of length 2 reach 2 neighbouring",
    ),
    "few kernels": (
        lambda: optimistic_sample_size(Conv1dTwoLayer(4, 2, 1), Conv1dTwoLayer(4, 2, 2)),
        ValueError,
        "1 shared kernels, but the target needs 2",
    ),
    "rank": (
        lambda: optimistic_sample_size(DeepLinear([3, 1, 3]), DeepLinear.of(torch.eye(3))),
        ValueError,
        "map of rank 3",
    ),
    "kinds": (
        lambda: optimistic_sample_size(DeepLinear([3, 2, 1]), TwoLayer(3, 2)),
        ValueError,
        "is a linear network, and the target a two-layer network of tanh",
    ),
    "deep": (
        lambda: optimistic_sample_size(mlp([1, 2, 2, 1]), mlp([1, 3, 2, 1])),
        ValueError,
        r"widths \[1, 2, 2, 1\], but the target needs \[1, 3, 2, 1\]",
    ),
    "depth": (
        lambda: optimistic_sample_size(mlp([1, 2, 2, 2, 1]), mlp([1, 2, 2, 1])),
        ValueError,
        "hidden layers of the target: 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_nearly_equal_neurons() -> None:
    w = [0.5, 1.0]
    model = build("tanh", [(w, 0.25, [1.0]), ([0.5, 1.0 + 1e-13], 0.25, [-1.0])])
    for call in (model_rank_of_function, lambda m: optimistic_sample_size(TwoLayer(2, 5), m)):
        with pytest.warns(UserWarning, match="differ by .* exact equality"):
            assert int(call(model)) == 8
    merged = build("tanh", [(w, 0.25, [1.0]), (w, 0.25, [-1.0])])
    assert int(model_rank_of_function(merged)) == 0


def test_printing() -> None:
    found: Dimension = model_rank_of_function(of_width_one())
    assert str(found).startswith("model rank = 4 of 4 parameters (Theorem 2.3)")
    assert sum(t.dimension for t in found.terms) == found.upper
    assert found.to_dict()["status"] == "exact"
