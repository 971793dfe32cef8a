"""Rows and columns multiplied by powers of two: exact, and results do not depend on units."""

from __future__ import annotations

import math
import random

import pytest
import torch
from flint import arb, ctx
from torch import Tensor, nn

import llr
from llr.exact.network import read_network
from llr.linalg.equilibrate import power_of_two, scaled, scaled_error, scales, times_power
from llr.linalg.error_bound import layer_errors

F64 = torch.float64

pytestmark = pytest.mark.filterwarnings(
    "ignore:llr runs without its native library:RuntimeWarning",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def units(count: int, seed: int, most: int = 150) -> Tensor:
    choice = random.Random(seed)
    return torch.tensor([10.0 ** choice.randint(-most, most) for _ in range(count)], dtype=F64)


class TestScaling:
    def test_powers_are_exact(self) -> None:
        exponents = torch.arange(-1022, 1024)
        assert power_of_two(exponents).tolist() == [2.0**e for e in range(-1022, 1024)]
        values = torch.tensor([3e-310, 1.5, 1e300], dtype=F64)
        assert times_power(values, torch.tensor([1100, -60, -2000])).tolist() == [
            3e-310 * 2.0**600 * 2.0**500,
            1.5 * 2.0**-60,
            1e300 * 2.0**-1000 * 2.0**-1000,
        ]

    @pytest.mark.parametrize("seed", range(10))
    def test_units_of_rows_and_columns_are_found(self, seed: int) -> None:
        A = normal(9, 6, seed=seed)
        if seed % 2:  # with zeros
            A = A * (normal(9, 6, seed=seed + 100) > -0.5)
        B = units(9, seed)[:, None] * A * units(6, seed + 50)
        C = scaled(B, *scales(B))
        sizes = C[C != 0].abs()
        assert sizes.max() < 2
        assert sizes.median() > 2.0**-12
        assert ((B == 0) == (C == 0)).all()

    def test_columns_in_units_where_some_samples_are_zero(self) -> None:
        # Scaling rows first is wrong for one side, columns first for the other.
        A = normal(20, 4)
        A[::2, 0] = 0
        B = A * torch.tensor([1e120, 1.0, 1e-90, 1.0], dtype=F64) * units(20, 3)[:, None]
        C = scaled(B, *scales(B))
        assert torch.linalg.cond(C) < 1e3

    def test_batches(self) -> None:
        A = torch.stack([units(5, s)[:, None] * normal(5, 4, seed=s) for s in range(3)])
        rows, columns = scales(A)
        for i in range(3):
            assert torch.equal(rows[i], scales(A[i])[0])
            assert torch.equal(columns[i], scales(A[i])[1])

    def test_zeros_and_small_shapes(self) -> None:
        for shape in ((2, 3), (1, 1)):
            assert [s.tolist() for s in scales(torch.zeros(shape))] == [
                [0] * shape[0],
                [0] * shape[1],
            ]


class TestScaledError:
    @pytest.mark.parametrize("seed", range(6))
    def test_against_balls(self, seed: int) -> None:
        choice = random.Random(seed)
        torch.manual_seed(seed)
        bias, last = choice.random() < 0.5, choice.random() < 0.5
        act = choice.choice([nn.Tanh, nn.Sigmoid, nn.SiLU])
        model = nn.Sequential(
            nn.Linear(2, 3, bias=bias), act(), nn.Linear(3, 2), act(), nn.Linear(2, 2, bias=last)
        ).double()
        x = normal(4, 2, seed=seed)
        J = llr.jacobian(model, x).detach().flatten(0, 1)
        rows, columns = scales(J)
        rows, columns = (
            rows + torch.randint(-40, 40, rows.shape),
            columns + torch.randint(-40, 40, columns.shape),
        )
        linears = [m for m in model if isinstance(m, nn.Linear)]
        layers = layer_errors(
            x,
            [m.weight for m in linears],
            [m.bias for m in linears],
            {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}[act],
        )
        places, start = [], 0
        for m in linears:
            places.append((start, start + m.weight.numel() if m.bias is not None else None))
            start += m.weight.numel() + (0 if m.bias is None else m.bias.numel())
        found = scaled_error(layers, places, rows[None], columns[None]).item()
        before, ctx.prec = ctx.prec, 300
        try:
            exact = read_network(model, x).jacobian(300)
            total = arb(0)
            for i, row in enumerate(J.tolist()):
                for j, v in enumerate(row):
                    total += ((exact[i, j] - arb(v)) * arb((1, int(rows[i] + columns[j])))) ** 2
            error = total.sqrt()
            assert error.upper() <= arb(found)
            assert float(error.mid()) > 1e-4 * found
        finally:
            ctx.prec = before


class TestUnitsDoNotDecide:
    @pytest.mark.parametrize("seed", range(12))
    def test_of_a_matrix(self, seed: int) -> None:
        A = normal(8, 5, seed=seed)
        if seed % 3 == 0:
            A[:, 4] = A[:, 3]
        plain = llr.numerical_rank(A)
        assert plain.exact
        other = llr.numerical_rank(units(8, seed)[:, None] * A * units(5, seed + 9))
        # In other units, and rounded, the equal columns are no longer multiples of each other.
        assert (other.exact, other.rank) == (seed % 3 != 0, plain.rank)
        assert other.clear
        assert other.equilibrated is not None
        assert math.isfinite(other.gap)

    def test_what_is_far_below_is_not_flushed(self) -> None:
        result = llr.numerical_rank(torch.diag(torch.tensor([1.0, 1e-200, 1e-290], dtype=F64)))
        assert (result.rank, result.exact) == (3, True)
        assert math.isfinite(result.gap)

    @pytest.mark.parametrize("method", ["svd", "tsqr", "gram"])
    def test_a_straight_line_in_si_units(self, method: str) -> None:
        x = torch.tensor([101_325.0, 1e-9]) * (1 + 0.1 * normal(20, 2))
        model = nn.Linear(2, 1).double()
        result = llr.rank(model, x, method=method)
        assert (result.rank, result.exact) == (3, True)

    @pytest.mark.parametrize("method", ["svd", "tsqr", "gram"])
    @pytest.mark.parametrize("seed", range(4))
    def test_of_a_network(self, method: str, seed: int) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x = normal(40, 3, seed=seed)
        plain = llr.rank(model, x, method=method)
        assert plain.exact
        inputs, outputs = units(3, seed), units(2, seed + 5)
        with torch.no_grad():
            model[0].weight.div_(inputs)
            model[2].weight.mul_(outputs[:, None])
            model[2].bias.mul_(outputs)
        other = llr.rank(model, x * inputs, method=method)
        assert (other.rank, other.exact) == (plain.rank, True)

    def test_rows_of_a_network_too_large_for_columns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llr.ranks.counting._WORTH_MAKING", 0)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 30), nn.Tanh(), nn.Linear(30, 2)).double()
        with torch.no_grad():
            model[2].weight[0] *= 1e40
        x = normal(20, 3)
        for method in ("tsqr", "gram"):
            result = llr.rank(model, x, method=method)
            assert (result.rank, result.exact) == (40, True)
            assert result.equilibrated is not None

    def test_stacked_points(self) -> None:
        torch.manual_seed(0)
        models = [
            nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in range(3)
        ]
        with torch.no_grad():
            models[1][0].weight[:, 0] *= 1e-60
            models[2][2].weight.zero_()
        stacked = torch.func.stack_module_state(models)[0]
        x = normal(40, 2)
        result = llr.rank(models[0], x, params=stacked)
        one = [llr.rank(m, x, resolve=False) for m in models]
        assert result.rank.tolist() == [int(r.rank) for r in one]
        assert result.rank.tolist()[0] == 13
        assert not result.exact

    def test_noise_is_not_scaled_up_where_errors_are_not_known(self) -> None:
        # A softmax does not depend on a constant added to all keys: these gradients are rounding, not rank.
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x, x, x, need_weights=False)[0]

        torch.manual_seed(0)
        result = llr.rank(Attention().eval(), normal(12, 5, 4))
        J = llr.jacobian(Attention().eval().double(), normal(12, 5, 4)).flatten(0, 1)
        assert result.lower_from == "estimate"
        assert result.equilibrated is None
        assert result.rank <= min(J.shape) - 4
