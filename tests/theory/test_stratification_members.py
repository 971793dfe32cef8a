"""Ranks in the table of functions: enumeration of all that occur, certified ranks of members of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations_with_replacement, pairwise, product
from typing import Any

import pytest
import torch
from flint import fmpz_mat
from helpers.theory_cases import (
    ANALYTIC,
    activation_of,
    build,
    random_cases,
    random_two_layer,
    structure,
)
from torch import Tensor, nn

import llr
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.theory import model_rank_of_function

from . import function_search
from .function_search import Setting
from .test_stratification import by_text, ranks

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64
HINGE = ("softplus", "gelu", "silu", "relu")
FLAT = ("gelu", "silu", "sin")


PLANES = {
    (1, True): ((1, 1), (2, 1), (3, -1)),
    (2, True): ((1, 0, 1), (0, 1, 2), (1, 2, -1)),
    (1, False): ((1, 0), (2, 0), (3, 0)),
    (2, False): ((1, 0, 0), (0, 1, 0), (1, 2, 0)),
}
Parts = tuple[tuple[Fraction, ...], ...]


def functions(setting: Setting, weights: Sequence[int]) -> dict[Parts, int]:
    """All functions with outgoing weights on a grid, and the smallest dim T of each."""
    found: dict[Parts, int] = {}
    vectors = [[Fraction(v) for v in a] for a in product(weights, repeat=setting.q)]
    for shapes in combinations_with_replacement(function_search._shapes(setting), setting.m):
        values = [function_search._value(setting, shape) for shape in shapes]
        for a in product(vectors, repeat=setting.m):
            f = tuple(
                tuple(
                    sum((v[i] * row[j] for v, row in zip(values, a, strict=True)), Fraction(0))
                    for i in range(len(values[0]) - setting.output_bias)
                )
                for j in range(setting.q)
            )
            size = function_search.dimension(setting, shapes, a)
            found[f] = min(found.get(f, size), size)
    return found


def as_target(setting: Setting, f: Parts) -> Setting:
    """The setting for this function, with the function's planes first."""
    count = len(setting.planes)
    used = [g for g in range(count) if any(row[g] for row in f)]
    order = used + [g for g in range(count) if g not in used]
    zero = (Fraction(0),) * setting.output_bias
    return replace(
        setting,
        planes=tuple(setting.planes[g] for g in order),
        alpha=tuple(tuple(row[g] for row in f) for g in used),
        affine=tuple(row[count:] + zero for row in f),
    )


class TestEnumeration:
    """Every function that a small architecture has on a grid of parameters, ranked without a closed form."""

    # (d, q, m, biases, output biases)
    SMALL = (
        (1, 1, 2, True, False),
        (1, 1, 2, False, False),
        (1, 1, 2, True, True),
        (2, 1, 2, True, False),
        (2, 1, 2, False, False),
        (1, 2, 2, True, False),
    )

    @pytest.mark.parametrize("setting", SMALL)
    @pytest.mark.parametrize("act", ["tanh", "sigmoid", "softplus", "gelu", "relu"])
    def test_two_layers(self, act: str, setting: tuple[int, int, int, bool, bool]) -> None:
        d, q, m, bias, out = setting
        table = set(ranks(TwoLayer(d, m, q, activation=act, bias=bias, output_bias=out)))
        planes = PLANES[d, bias][: 1 if act == "relu" and (d, bias) == (1, False) else m]
        zero = ((Fraction(0),) * (d + 1),) * q
        grid = Setting(act, planes, (), zero, m, bias, out)
        found = functions(grid, (-1, 0, 1, 2) if q == 1 else (-1, 0, 1))
        assert table <= set(found.values())
        for f, size in found.items():
            if size not in table:  # the grid lacks the weights of the cheapest representation
                size = function_search.smallest(as_target(grid, f))[0]
            assert size in table, f

    def test_factorizations(self) -> None:
        # dim T depends only on the ranks of the factors, and small integers give all combinations of ranks.
        for m, p, n in ((2, 2, 2), (2, 1, 2), (1, 2, 3), (2, 3, 1)):
            least: dict[int, int] = {}
            for entries in product((0, 1), repeat=(m + n) * p):
                A, B = fmpz_mat(m, p, entries[: m * p]), fmpz_mat(p, n, entries[m * p :])
                r = int((A * B).rank())
                size = _product_dimension([B, A])
                least[r] = min(least.get(r, size), size)
            assert [least[r] for r in sorted(least)] == ranks(MatrixFactorization(m, p, n))

    @pytest.mark.parametrize("widths", [(2, 2, 2), (2, 1, 2, 2), (1, 2, 2, 2), (2, 2, 1, 1)])
    def test_linear_networks(self, widths: tuple[int, ...]) -> None:
        least: dict[int, int] = {}
        shapes = [(o, i) for i, o in pairwise(widths)]
        choices = [
            [fmpz_mat(o, i, entries) for entries in product((0, 1), repeat=o * i)]
            for o, i in shapes
        ]
        for weights in product(*choices):
            whole = weights[0]
            for W in weights[1:]:
                whole = W * whole
            size = _product_dimension(weights)
            r = int(whole.rank())
            least[r] = min(least.get(r, size), size)
        assert [least[r] for r in sorted(least)] == ranks(DeepLinear(widths))

    @pytest.mark.parametrize("act", ANALYTIC)
    def test_random_functions(self, act: str) -> None:
        # For hinges with several outputs, the table leaves out some affine parts, and says so.
        listed = 0
        for seed in range(count := random_cases(40)):
            model = random_two_layer(act, seed)
            found = model_rank_of_function(model)
            if found.exact and (act not in HINGE or structure(model).q == 1):
                assert int(found) in ranks(model), seed
                listed += 1
        assert listed > count // 5


def _product_dimension(weights: Sequence[Any]) -> int:
    """The dimension of the span of all W_L ... X ... W_1, where any matrix X replaces one of the factors."""
    rows = []
    for layer, W in enumerate(weights):
        for place in range(W.nrows() * W.ncols()):
            unit = [int(place == i) for i in range(W.nrows() * W.ncols())]
            moved = [*weights[:layer], fmpz_mat(W.nrows(), W.ncols(), unit), *weights[layer + 1 :]]
            whole = moved[0]
            for factor in moved[1:]:
                whole = factor * whole
            rows.append([int(v) for row in whole.tolist() for v in row])
    return int(fmpz_mat(rows).rank())


def certified(model: nn.Module, d: int, *, far: bool = False) -> int:
    """The certified rank on random points; with `far`, on more points, also far out, to reach all regions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300 if far else 60, d, generator=generator, dtype=F64)
    if far:
        x[::3] *= 16
    return int(llr.rank(model, x, method="certified").rank)


Neuron = tuple[list[float], float, list[float]]
W = ([0.75, -1.25], [1.0, 0.5], [-0.25, 0.875])
B = (0.5, -0.25, 0.125)


class TestMembers:
    """A function of each row, at parameters of the whole architecture with the row's rank."""

    def members(self, act: str) -> dict[str, list[Neuron]]:
        """Width 3, 2 inputs, 1 output, biases; unneeded neurons are copies with zero outgoing weights."""
        neurons = [([*W[i]], B[i], [1.0 + i]) for i in range(3)]
        mirrored: list[Neuron] = [
            ([-v for v in w], -b, [1.5 * v for v in a]) for w, b, a in neurons
        ]
        opposite: list[Neuron] = [([-v for v in w], -b, [-v for v in a]) for w, b, a in neurons]
        constant: Neuron = ([0.0, 0.0], 1.0, [1.0])
        words = ["1 neuron", "2 neurons", "3 neurons"]
        if act == "sin":
            words = [f"{k} direction{'s' * (k > 1)} at one phase" for k in (1, 2, 3)]
        found: dict[str, list[Neuron]] = {"zero": []}
        found |= {text: neurons[:k] for k, text in enumerate(words, 1)}
        if act == "sigmoid":  # a reflected neuron is cheaper than a constant neuron
            found["a constant"] = [constant]
            found["1 neuron and a constant"] = [neurons[0], mirrored[0]]
            found["2 neurons and a constant"] = [*neurons[:2], mirrored[1]]
        elif act not in FLAT:
            found["a constant"] = [constant]
            found["1 neuron and a constant"] = [neurons[0], constant]
            found["2 neurons and a constant"] = [*neurons[:2], constant]
        if act in HINGE:
            multiple = "a multiple of the preactivation of one"
            found[f"1 neuron and {multiple}"] = [neurons[0], mirrored[0]]
            found[f"2 neurons and {multiple}"] = [*neurons[:2], mirrored[1]]
            found["a linear function"] = [neurons[0], opposite[0]]
            found["1 neuron and a linear function"] = [neurons[1], neurons[0], opposite[0]]
        return found

    @pytest.mark.parametrize("act", ANALYTIC)
    def test_two_layers(self, act: str) -> None:
        table = by_text(TwoLayer(2, 3, activation=act))
        found = self.members(act)
        # Constants are cheapest where the slope is zero, but it is not zero at any floating-point number.
        assert {t for t in table if act not in FLAT or not t.endswith("a constant")} == set(found)
        for text, neurons in found.items():
            spare = [(w, b, [0.0]) for w, b, _ in neurons[:1]] or [([0.0, 0.0], 0.0, [0.0])]
            model = build(act, [*neurons, *spare * (3 - len(neurons))])
            expected = table[text]
            assert int(model_rank_of_function(model)) == expected, text
            assert certified(model, 2, far=act == "relu") == expected, text

    @pytest.mark.parametrize("act", HINGE)
    def test_several_preactivations(self, act: str) -> None:
        # One output: once there is an affine function from one neuron, those from others are free.
        neurons = [([*W[i]], B[i], [1.0 + i]) for i in range(2)]
        turned = [([-v for v in w], -b, [1.5]) for w, b, _ in neurons]
        model = build(act, [*neurons, *turned])
        expected = by_text(model)["2 neurons and multiples of the preactivations of up to 2"]
        assert expected == 2 * (3 if act == "relu" else 4) + 3
        assert int(model_rank_of_function(model)) == expected
        assert certified(model, 2, far=act == "relu") == expected

    @pytest.mark.parametrize("name", ["z^2", "z + z^3"])
    def test_polynomials(self, name: str) -> None:
        table = by_text(TwoLayer(2, 3, activation=activation_of(name)))
        neurons = [([*W[i]], B[i], [1.0 + i]) for i in range(3)]
        for k, text in enumerate(table):
            model = build(name, [*neurons[:k], *[([0.0, 0.0], 0.0, [0.0])] * (3 - k)])
            if 0 < k < 3:  # a copy with zero weights; other neurons would add constants
                model = build(name, [*neurons[:k], *[(W[0], B[0], [0.0])] * (3 - k)])
            assert certified(model, 2) == table[text], text

    @pytest.mark.parametrize("shared", [True, False])
    def test_convolutions(self, shared: bool) -> None:
        table = list(by_text(Conv1dTwoLayer(4, 3, 2, shared=shared)).values())
        kernels = torch.tensor([[0.75, -0.5, 1.25], [1.0, 0.5, -0.25]], dtype=F64)
        for k, expected in enumerate(table):
            if shared:
                weight = kernels[[0, 1 if k == 2 else 0]] * (k > 0)
                out = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=F64)
                out[k:] = 0
            else:
                # Active positions first; the others copy the first one.
                out = torch.tensor([1.0, 2.0, 0.5, -1.0], dtype=F64)
                out[k:] = 0
                places = torch.stack([kernels[0], kernels[0], kernels[1], kernels[1]])
                places[k:] = 0  # no effect, as tanh(0) = 0
                weight, out = places.view(2, 2, 3), out.view(2, 2)
            model = Conv1dTwoLayer.of(weight, out, d=4)
            assert int(model_rank_of_function(model)) == expected
            assert certified(model, 4) == expected

    def test_zero_convolutions(self) -> None:
        for act in ("tanh", "sigmoid", "softplus", "relu", "gelu"):
            weight, out = torch.zeros(2, 2, dtype=F64), torch.zeros(2, 3, dtype=F64)
            model = Conv1dTwoLayer.of(weight, out, d=4, activation=act)
            assert certified(model, 4) == ranks(model)[0], act

    def test_factorizations(self) -> None:
        for r, expected in enumerate(ranks(MatrixFactorization(3, 3, 4))):
            A, X = padded(3, 3, r), padded(3, 4, r)
            model = MatrixFactorization.of(A, X)
            entries = torch.cartesian_prod(torch.arange(3), torch.arange(4))
            assert llr.rank(model, entries, method="certified").rank == expected

    @pytest.mark.parametrize("widths", [(3, 2, 2), (2, 3, 2, 3)])
    def test_linear_networks(self, widths: tuple[int, ...]) -> None:
        for r, expected in enumerate(ranks(DeepLinear(widths))):
            weights = [padded(o, i, r) for i, o in pairwise(widths)]
            assert certified(DeepLinear.of(*weights), widths[0]) == expected

    def test_deep_networks(self) -> None:
        architecture = mlp([1, 2, 2, 1], dtype=F64)
        table = by_text(architecture)
        for hidden in product((1, 2), repeat=2):
            model = mlp([1, 2, 2, 1], dtype=F64)
            generator = torch.Generator().manual_seed(1)
            used = (1, *hidden, 1)
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
                for layer, (i, o) in zip(
                    (model[0], model[2], model[4]), pairwise(used), strict=True
                ):
                    layer.weight[o:] = 0
                    layer.weight[:, i:] = 0
                    layer.bias[o:] = 0
            text = "functions of " + "-".join(map(str, used))
            assert certified(model, 1) == table[text], text
        with torch.no_grad():
            model[4].weight.zero_()
            for layer in (model[0], model[2]):
                layer.weight.zero_()
                layer.bias.zero_()
        assert certified(model, 1) == table["a constant"] == 1


def padded(rows: int, columns: int, r: int) -> Tensor:
    """A matrix of rank r, zero outside its first r rows and columns."""
    M = torch.zeros(rows, columns, dtype=F64)
    for i in range(r):
        M[i, i] = i + 1.0
    return M
