"""The table of an architecture's functions: its ranks are those that occur, and members of rows have them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations_with_replacement, pairwise, product
from typing import Any

import function_search
import pytest
import torch
from flint import fmpz_mat
from function_search import Setting
from theory_cases import ANALYTIC, activation_of, build, random_cases, random_two_layer, structure
from torch import Tensor, nn

import llr
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, Polynomial, TwoLayer, mlp
from llr.theory import (
    generic_rank,
    model_rank_of_function,
    rank_stratification,
    tangent_dimension,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64
HINGE = ("softplus", "gelu", "silu", "relu")
FLAT = ("gelu", "silu", "sin")


def ranks(architecture: nn.Module) -> list[int]:
    return [row.rank for row in rank_stratification(architecture).rows]


def by_text(architecture: nn.Module) -> dict[str, int]:
    rows = rank_stratification(architecture).rows
    found = {row.text: row.rank for row in rows}
    assert len(found) == len(rows)
    return found


class TestTables:
    """The numbers of the tables."""

    @pytest.mark.parametrize(
        ("k", "m", "d", "q", "bias", "out", "constant", "expected"),
        [
            (1, 3, 1, 1, True, False, False, 3),
            (2, 4, 2, 1, True, False, False, 8),
            (2, 4, 1, 2, True, True, False, 10),
            (1, 4, 3, 2, False, False, False, 5),
            (0, 3, 2, 1, True, False, False, 0),
            (0, 3, 2, 2, True, True, False, 2),
            (2, 4, 2, 1, True, False, True, 11),
            (1, 3, 3, 2, True, False, True, 11),
            (1, 3, 2, 2, True, True, True, 7),
        ],
    )
    @pytest.mark.parametrize("act", ["tanh", "erf"])
    def test_odd(
        self,
        act: str,
        k: int,
        m: int,
        d: int,
        q: int,
        bias: bool,
        out: bool,
        constant: bool,
        expected: int,
    ) -> None:
        table = by_text(TwoLayer(d, m, q, activation=act, bias=bias, output_bias=out))
        parts = [f"{k} neuron{'s' * (k > 1)}"] if k else []
        parts += ["any constant"] * out or ["a constant"] * constant
        assert table[" and ".join(parts) or "zero"] == expected

    @pytest.mark.parametrize("act", ANALYTIC)
    @pytest.mark.parametrize(
        ("setting", "expected", "relu"),
        [
            ((3, 1, True, False, 3), 15, 12),
            ((3, 1, False, False, 3), 12, 9),
            ((2, 1, True, True, 4), 17, 13),
            ((2, 3, True, False, 3), 18, 15),
        ],
    )
    def test_different_neurons(
        self, act: str, setting: tuple[int, int, bool, bool, int], expected: int, relu: int
    ) -> None:
        # Whatever the width, k neurons cost what they cost in a network of width k.
        d, q, bias, out, k = setting
        words = f"{k} directions at one phase" if act == "sin" else f"{k} neurons"
        for width in (k, k + 2):
            table = by_text(TwoLayer(d, width, q, activation=act, bias=bias, output_bias=out))
            assert table[words + " and any constant" * out] == (relu if act == "relu" else expected)

    def test_sigmoid(self) -> None:
        assert by_text(TwoLayer(3, 3, activation="sigmoid")) == {
            "zero": 1,
            "a constant": 4,
            "1 neuron": 5,
            "1 neuron and a constant": 6,
            "2 neurons": 10,
            "2 neurons and a constant": 11,
            "3 neurons": 15,
        }

    def test_sine(self) -> None:
        assert by_text(TwoLayer(2, 3, 2, activation="sin")) == {
            "zero": 0,
            "a constant": 2,
            "1 direction at one phase": 5,
            "1 direction at one phase and a constant": 7,
            "1 direction at two phases": 8,
            "1 direction at two phases and a constant": 10,
            "2 directions at one phase": 10,
            "2 directions at one phase and a constant": 12,
            "1 direction at one phase and 1 direction at two phases": 13,
            "3 directions at one phase": 15,
        }
        w, b = torch.tensor([[0.75, -1.25], [0.75, -1.25], [1.0, 0.5]]), torch.tensor([0.5, 2, 1])
        a = torch.tensor([[1.0, 2.0], [-1.0, 1.0], [0.5, 3.0]])
        for k, expected in ((1, 5), (2, 8), (3, 13)):
            model = TwoLayer.of(w[:k].double(), b[:k].double(), a[:k].double(), activation="sin")
            assert certified(model, 2) == expected

    def test_relu_on_a_line(self) -> None:
        # Only relu(x) and relu(-x): more neurons are no other functions.
        for width in (2, 5):
            net = TwoLayer(1, width, activation="relu", bias=False)
            assert sorted(set(ranks(net))) == [0, 1, 2]
            assert ranks(TwoLayer(1, width, 2, activation="relu", bias=False))[-1] == 4
        assert ranks(TwoLayer(1, 5, activation="relu"))[-1] == 10

    @pytest.mark.parametrize(
        ("coefficients", "d", "bias", "q", "expected"),
        [
            ((0, 0, 1), 3, True, 1, [0, 4, 7, 9, 10]),
            ((0, 0, 0, 1), 2, True, 1, [0, 3, 6, 9, 10]),
            ((0, 1, 1), 2, True, 1, [0, 4, 6]),
            ((0, 1, 1), 4, True, 1, [0, 6, 10, 13, 15]),
            ((0, 1, 0, 1), 2, True, 1, [0, 4, 8, 10]),
            ((0, 1, 0, 1), 2, False, 1, [0, 3, 6]),
            ((1, 2, -1, 1, 3), 2, True, 1, [1, 4, 8, 12, 15]),
            # The fifth is at most 20; it is 19.
            ((0, 0, 0, 1), 2, True, 2, [0, 4, 8, 12, 16, 20]),
        ],
    )
    def test_polynomials(
        self, coefficients: tuple[int, ...], d: int, bias: bool, q: int, expected: list[int]
    ) -> None:
        model = TwoLayer(d, 9, q, activation=Polynomial(coefficients), bias=bias)
        rows = rank_stratification(model).rows
        assert [row.rank for row in rows] == expected
        assert {row.status for row in rows[1:]} <= {"almost everywhere", "bounds"}
        assert [row.text for row in rows[:2]] == ["zero", "1 neuron"]

    @pytest.mark.parametrize(
        ("d", "s", "k", "shared", "local"),
        [
            (3, 2, 1, 4, 6),
            (4, 2, 1, 5, 9),
            (5, 3, 1, 6, 12),
            (5, 3, 2, 12, 24),
            (6, 2, 2, 14, 30),
            (6, 4, 2, 14, 30),
            (4, 1, 2, 10, 16),
            (4, 4, 2, 10, 10),
        ],
    )
    def test_convolutions(self, d: int, s: int, k: int, shared: int, local: int) -> None:
        p = d + 1 - s
        table = by_text(Conv1dTwoLayer(d, s, 3))
        assert list(table.values()) == [j * (d + 1) for j in range(4)]
        assert table[f"{k} kernel{'s' * (k > 1)} of length {s}"] == shared
        places = by_text(Conv1dTwoLayer(d, s, 3, shared=False))
        assert list(places.values()) == [c * (s + 1) for c in range(3 * p + 1)]
        assert places[f"{k * p} kernel{'s' * (k * p > 1)} at one position each"] == local

    def test_convolutions_of_other_activations(self) -> None:
        for act, least in (("sigmoid", 1), ("softplus", 1), ("relu", 0), ("gelu", 0)):
            rows = rank_stratification(Conv1dTwoLayer(4, 2, 2, activation=act)).rows
            assert [(row.rank, row.status) for row in rows] == [
                (least, "exact"),
                (5, "bounds"),
                (10, "bounds"),
            ]
            model = Conv1dTwoLayer.of(
                torch.zeros(2, 2, dtype=F64), torch.zeros(2, 3, dtype=F64), d=4, activation=act
            )
            assert certified(model, 4) == least

    @pytest.mark.parametrize(
        ("m", "p", "n", "expected"),
        [(4, 5, 5, [0, 8, 14, 18, 20]), (5, 8, 5, [0, 9, 16, 21, 24, 25]), (3, 1, 4, [0, 6])],
    )
    def test_factorizations(self, m: int, p: int, n: int, expected: list[int]) -> None:
        assert ranks(MatrixFactorization(m, p, n)) == expected

    @pytest.mark.parametrize(
        ("widths", "expected"),
        [
            ((3, 4, 2), [0, 4, 6]),
            ((4, 2, 5, 3), [0, 6, 10]),
            ((3, 3, 3, 3), [0, 5, 8, 9]),
            ((2, 3, 3, 2), [0, 3, 4]),
            ((3, 2), [6]),
        ],
    )
    def test_linear_networks(self, widths: tuple[int, ...], expected: list[int]) -> None:
        assert ranks(DeepLinear(widths)) == expected
        affine = mlp(widths, activation="identity")
        assert ranks(affine) == [size + widths[-1] for size in expected]
        assert {row.status for row in rank_stratification(affine).rows} == {"exact"}

    @pytest.mark.parametrize(
        ("widths", "everywhere", "hidden", "none"),
        [
            ((2, 3, 3, 1), 25, 24, 18),
            ((1, 4, 4, 1), 33, 32, 24),
            ((3, 2, 4, 2), 30, 28, 22),
            ((1, 1, 1, 1), 6, 5, 3),
            ((1, 2, 2, 2, 1), 19, 18, 12),
            ((2, 3, 2, 3, 1), 30, 29, 21),
            ((1, 3, 1, 3, 1), 20, 19, 12),
            ((2, 2, 2, 2), 18, 16, 12),
            ((1, 1, 1, 1, 1, 1), 10, 9, 5),
        ],
    )
    def test_deep_networks(
        self, widths: tuple[int, ...], everywhere: int, hidden: int, none: int
    ) -> None:
        for bias, out, most in (
            (True, True, everywhere),
            (True, False, hidden),
            (False, False, none),
        ):
            table = rank_stratification(mlp(widths, bias=bias, output_bias=out))
            assert len(table.rows) == 1 + math.prod(widths[1:-1])
            assert table.rows[-1].rank == table.n_params == most
            assert table.rows[-1].text == "functions of " + "-".join(map(str, widths))
            assert table.rows[0].rank == out * widths[-1]
            status = "almost everywhere" if out else "bounds"
            assert {row.status for row in table.rows[1:]} == {status}

    def test_deep_relu(self) -> None:
        table = rank_stratification(mlp([2, 3, 3, 1], activation="relu"))
        assert (table.rows[-1].rank, table.rows[-1].status) == (19, "bounds")


PLANES = {
    (1, True): ((1, 1), (2, 1), (3, -1)),
    (2, True): ((1, 0, 1), (0, 1, 2), (1, 2, -1)),
    (1, False): ((1, 0), (2, 0), (3, 0)),
    (2, False): ((1, 0, 0), (0, 1, 0), (1, 2, 0)),
}
Parts = tuple[tuple[Fraction, ...], ...]


def functions(setting: Setting, weights: Sequence[int]) -> dict[Parts, int]:
    """All functions with outgoing weights of a grid, and the smallest dim T that was met with each."""
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
    """The setting with this function: its planes first."""
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
            if size not in table:  # the grid lacks the weights of the cheapest way
                size = function_search.smallest(as_target(grid, f))[0]
            assert size in table, f

    def test_factorizations(self) -> None:
        # dim T depends on the ranks of the factors alone, which small whole numbers have in every mixture.
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
        # Some affine parts of several outputs of hinges are left out of the table, and said to be.
        listed = 0
        for seed in range(count := random_cases(40)):
            model = random_two_layer(act, seed)
            found = model_rank_of_function(model)
            if found.exact and (act not in HINGE or structure(model).q == 1):
                assert int(found) in ranks(model), seed
                listed += 1
        assert listed > count // 5


def _product_dimension(weights: Sequence[Any]) -> int:
    """The dimension of the span of W_L ... X ... W_1, one factor after the other, any matrix in its place."""
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
    """The proved rank on random points; on more of them, far out too, where all cells have to be met."""
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
        """Width 3, 2 inputs, 1 output, biases; neurons that are not needed are copies that send nothing."""
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
        if act == "sigmoid":  # a twin is cheaper than a constant neuron
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
        # Constants cost least where the slope is zero, which it is at no floating-point number.
        assert {t for t in table if act not in FLAT or not t.endswith("a constant")} == set(found)
        for text, neurons in found.items():
            spare = [(w, b, [0.0]) for w, b, _ in neurons[:1]] or [([0.0, 0.0], 0.0, [0.0])]
            model = build(act, [*neurons, *spare * (3 - len(neurons))])
            expected = table[text]
            assert int(model_rank_of_function(model)) == expected, text
            assert certified(model, 2, far=act == "relu") == expected, text

    @pytest.mark.parametrize("name", ["z^2", "z + z^3"])
    def test_polynomials(self, name: str) -> None:
        table = by_text(TwoLayer(2, 3, activation=activation_of(name)))
        neurons = [([*W[i]], B[i], [1.0 + i]) for i in range(3)]
        for k, text in enumerate(table):
            model = build(name, [*neurons[:k], *[([0.0, 0.0], 0.0, [0.0])] * (3 - k)])
            if 0 < k < 3:  # a copy that sends nothing, or else the constants come along
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
                # Active places first; the others are parked on the first one.
                out = torch.tensor([1.0, 2.0, 0.5, -1.0], dtype=F64)
                out[k:] = 0
                places = torch.stack([kernels[0], kernels[0], kernels[1], kernels[1]])
                places[k:] = 0  # sends nothing, and tanh(0) = 0
                weight, out = places.view(2, 2, 3), out.view(2, 2)
            model = Conv1dTwoLayer.of(weight, out, d=4)
            assert int(model_rank_of_function(model)) == expected
            assert certified(model, 4) == expected

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


class TestEveryTable:
    @pytest.mark.parametrize("act", [*ANALYTIC, "z^2", "z + z^3"])
    def test_the_largest_is_generic(self, act: str) -> None:
        # dim T is at most its generic value, and functions of as many neurons as there are have it.
        for d, m, q, bias, out in product((1, 2), (1, 2, 4), (1, 2), (True, False), (True, False)):
            model = TwoLayer(d, m, q, activation=activation_of(act), bias=bias, output_bias=out)
            found = ranks(model)
            assert found == sorted(found)
            assert found[-1] == generic_rank(model).upper, (d, m, q, bias, out)

    def test_other_models(self) -> None:
        for model in (
            Conv1dTwoLayer(5, 3, 2),
            Conv1dTwoLayer(5, 3, 2, shared=False),
            MatrixFactorization(3, 2, 4),
            DeepLinear([3, 2, 4]),
            mlp([2, 3, 2, 1]),
            mlp([2, 3, 2], activation="identity"),
        ):
            assert ranks(model)[-1] == tangent_dimension(model.double()).upper

    def test_parameters_do_not_matter(self) -> None:
        model = TwoLayer(2, 3)
        before = rank_stratification(model)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert rank_stratification(model) == before


class TestWords:
    def test_table(self) -> None:
        assert str(rank_stratification(TwoLayer(1, 1, activation=Polynomial([1, 0, 1])))) == (
            "two-layer network of polynomial, 1 input, width 1, 1 output, 3 parameters\n"
            "  rank  functions\n"
            "     1  zero  (at most)\n"
            "     3  1 neuron  (almost all)"
        )
        assert str(rank_stratification(Conv1dTwoLayer(3, 2, 1, shared=False))).splitlines() == [
            "locally connected convolution of tanh, 3 inputs, 1 kernel of length 2, 6 parameters",
            "  rank  functions",
            "     0  zero",
            "     3  1 kernel at one position each",
            "     6  2 kernels at one position each",
        ]
        heads = {
            "matrix factorization (3 x 2) (2 x 4), 14 parameters": MatrixFactorization(3, 2, 4),
            "linear network 3-2, 6 parameters": DeepLinear([3, 2]),
            "linear network 3-2 with biases, 8 parameters": nn.Sequential(nn.Linear(3, 2)),
            "network 1-2-2-1 of gelu, 13 parameters": mlp([1, 2, 2, 1], activation="gelu"),
        }
        for head, model in heads.items():
            assert str(rank_stratification(model)).splitlines()[0] == head

    def test_json(self) -> None:
        table = rank_stratification(DeepLinear([2, 1, 2]))
        assert json.loads(json.dumps(table.to_dict())) == {
            "architecture": "linear network 2-1-2",
            "n_params": 4,
            "rows": [
                {"rank": 0, "text": "linear maps of rank 0", "status": "exact"},
                {"rank": 3, "text": "linear maps of rank 1", "status": "exact"},
            ],
        }


class TestRefusals:
    def test_no_module(self) -> None:
        with pytest.raises(TypeError, match=r"model is str; expected an nn\.Module"):
            rank_stratification("mlp")  # type: ignore[arg-type]

    def test_unknown_structures(self) -> None:
        model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        with pytest.raises(ValueError, match=r"no closed form .* llr\.model_rank\(model\)"):
            rank_stratification(model)

    def test_parameters(self) -> None:
        model = TwoLayer(2, 3)
        model[0].bias.requires_grad_(False)
        with pytest.raises(ValueError, match=r"'0\.bias' is frozen"):
            rank_stratification(model)
        model = TwoLayer(2, 3)
        with torch.no_grad():
            model[2].weight[0, 1] = float("inf")
        with pytest.raises(ValueError, match=r"'2\.weight' is inf at index \(0, 1\)"):
            rank_stratification(model)

    def test_too_many_rows(self) -> None:
        assert len(rank_stratification(mlp([1, 100, 100, 1])).rows) == 10_001
        with pytest.raises(
            ValueError,
            match=r"has 10100 narrower ones, .*\[1, 101, 100, 1\].*optimistic_sample_size",
        ):
            rank_stratification(mlp([1, 101, 100, 1]))
