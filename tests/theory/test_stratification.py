"""The table of an architecture's functions: numbers, descriptions, and refusals."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch
from helpers.theory_cases import ANALYTIC, activation_of, certified
from torch import nn

from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, Polynomial, TwoLayer, mlp
from llr.theory import generic_rank, rank_stratification, tangent_dimension

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


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
    def test_upper_bounds_neurons(
        self, act: str, setting: tuple[int, int, bool, bool, int], expected: int, relu: int
    ) -> None:
        # For any width, k neurons have the same rank as in a network of width k.
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
            assert certified(model) == expected

    def test_relu_on_a_line(self) -> None:
        # All functions are combinations of relu(x) and relu(-x), so more neurons give no others.
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


class TestEveryTable:
    @pytest.mark.parametrize("act", [*ANALYTIC, "z^2", "z + z^3"])
    def test_the_largest_is_generic(self, act: str) -> None:
        # dim T is at most its generic value, which functions of all neurons have.
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
        with pytest.raises(TypeError, match=r"architecture is str; expected an nn\.Module$"):
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
