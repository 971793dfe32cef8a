"""Exact Jacobians against mpmath with 60 digits, fractions, and llr.jacobian in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import flint
import mpmath
import pytest
import torch
from flint import arb
from helpers.oracles import Net, draw, exact_rows, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from torch import Tensor, nn

import llr
from llr.exact import network as exact
from llr.inputs.activations import activation_layer
from llr.linalg.balls import ACTIVATIONS, precision

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

SIGMA: dict[str, Callable[[Any], Any]] = {
    "identity": lambda z: z,
    "tanh": mpmath.tanh,
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "relu": lambda z: max(z, mp.mpf(0)),
    "softplus": lambda z: z if z > 20 else mpmath.log(1 + mpmath.exp(z)),
    "gelu": lambda z: z * mpmath.ncdf(z),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "erf": mpmath.erf,
    "sin": mpmath.sin,
}


def network(activation: str, net: Net, scale: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    """An nn.Sequential with parameters from `draw`."""
    x, weights, biases = draw(net)
    layers: list[nn.Module] = []
    for w, b in zip(weights, biases, strict=True):
        if layers:
            layers.append(activation_layer(activation))
        layer = nn.Linear(w.shape[1], w.shape[0], bias=b is not None).double()
        with torch.no_grad():
            layer.weight.copy_(w * scale)
            if b is not None:
                layer.bias.copy_(b)
        layers.append(layer)
    return nn.Sequential(*layers), x


def mp_jacobian(model: nn.Sequential, x: Tensor, activation: str) -> list[list[Any]]:
    """Rows by the chain rule in mpmath, with slopes by numerical differentiation in high precision."""
    sigma = SIGMA[activation]
    exact_ = lambda t: [mp.mpf(v) for v in t.tolist()]  # noqa: E731
    layers = [m for m in model if isinstance(m, nn.Linear)]
    weights = [[exact_(row) for row in m.weight.detach()] for m in layers]
    biases = [None if m.bias is None else exact_(m.bias.detach()) for m in layers]
    return [
        row
        for sample in x
        for row in exact_rows(
            exact_(sample), weights, biases, sigma, lambda z: mpmath.diff(sigma, z)
        )
    ]


def assert_contains(J: flint.arb_mat, expected: list[list[Any]], digits: int) -> None:
    """Assert that every ball contains the expected number, which has 50 right digits, and is as accurate."""
    assert (J.nrows(), J.ncols()) == (len(expected), len(expected[0]))
    with precision(300):
        for ball, number in zip(J.entries(), (v for row in expected for v in row), strict=True):
            margin = arb(0, 1e-50)
            reference = arb(mpmath.nstr(mp.mpf(number), 60)) * (1 + margin) + margin
            assert ball.overlaps(reference), f"{ball} does not contain {reference}"
            assert ball.rad() <= abs(reference) * arb(10) ** -digits + arb(10) ** -digits


class TestBallsContainTheTruth:
    @pytest.mark.parametrize(
        "net",
        [
            Net((2, 3, 1), 3),
            Net((1, 2, 3, 2), 2),
            Net((2, 2, 2, 2, 1), 1),
            Net((3, 2, 1), 2, False),
        ],
        ids=["two layers", "q = 2", "deep", "no biases"],
    )
    @pytest.mark.parametrize("activation", SIGMA)
    def test_every_activation(self, activation: str, net: Net) -> None:
        model, x = network(activation, net)
        with mp.workdps(80):
            expected = mp_jacobian(model, x, activation)
            assert_contains(exact.jacobian(model, x, bits=128), expected, 30)

    def test_more_bits_are_more_digits(self) -> None:
        model, x = network("gelu", Net((2, 3, 1), 2))
        with mp.workdps(80):
            expected = mp_jacobian(model, x, "gelu")
            for bits, digits in ((64, 14), (170, 45)):
                assert_contains(exact.jacobian(model, x, bits=bits), expected, digits)

    @pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "gelu", "silu", "erf"])
    def test_saturated(self, activation: str) -> None:
        model, x = network(activation, Net((2, 4, 1), 4), scale=60.0)
        with mp.workdps(400):
            expected = mp_jacobian(model, x, activation)
            assert_contains(exact.jacobian(model, x, bits=128), expected, 25)

    def test_both_branches_of_softplus(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1), nn.Softplus(), nn.Linear(1, 1)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)
        x = torch.tensor([[18.5], [19.0], [19.5]]).double()  # z = 19.5, 20 (still the curve), 20.5
        J = exact.jacobian(model, x, bits=200).tolist()
        with mp.workdps(70):
            slopes = [mpmath.nstr(1 / (1 + mpmath.exp(-z)), 65) for z in (mp.mpf("19.5"), 20)]
            values = [mpmath.nstr(mpmath.log1p(mpmath.exp(z)), 65) for z in (mp.mpf("19.5"), 20)]
        with precision(250):
            for row, slope, value in zip(J[:2], slopes, values, strict=True):
                assert row[1].overlaps(arb(slope) * (1 + arb(0, 1e-60)))
                assert row[2].overlaps(arb(value) * (1 + arb(0, 1e-60)))
                assert not row[1].contains(1)
        assert [float(v) for v in J[2]] == [19.5, 1, 20.5, 1]
        assert all(v.is_exact() for v in J[2])

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(
        st.sampled_from(sorted(ACTIVATIONS)),
        st.floats(-30, 30),
        st.floats(0, 4),
        st.floats(-1, 1),
        st.booleans(),
    )
    def test_wide_balls(
        self, name: str, middle: float, radius: float, where: float, slope: bool
    ) -> None:
        function = ACTIVATIONS[name][slope]
        with precision(128):
            ball = arb(middle, radius)
            inside = arb(middle) + arb(radius) * arb(where)  # its own rounding is 2^-128
            inside = inside.mid() if ball.contains(inside) else arb(middle)
            assert function(ball).overlaps(function(inside))
            assert function(ball).is_finite()

    @pytest.mark.parametrize("z", [1e300, -1e300, 5e-324, 0.0])
    @pytest.mark.parametrize("name", sorted(ACTIVATIONS))
    def test_extreme_arguments(self, name: str, z: float) -> None:
        with precision(64):
            for function in ACTIVATIONS[name]:
                assert function(arb(z)).is_finite()

    def test_balls_over_a_kink(self) -> None:
        relu, slope = ACTIVATIONS["relu"]
        with precision(64):
            assert slope(arb(0, 0.5)).contains(0)
            assert slope(arb(0, 0.5)).contains(1)
            assert relu(arb(0, 0.5)).contains(arb(0.5))
            assert slope(arb(0)) == 0
            softplus, slope = ACTIVATIONS["softplus"]
            assert softplus(arb(20, 0.25)).contains(arb(20.25))
            assert softplus(arb(20, 0.25)).contains(arb(19.75).exp().log1p())
            assert slope(arb(20, 0.25)).contains(1)

    def test_strided_padded_grouped_convolution(self) -> None:
        model = nn.Sequential(
            nn.Unflatten(1, (2, 4)),
            nn.Conv1d(2, 4, 2, stride=2, padding=1, dilation=2, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 1),
        ).double()
        x = torch.randn(2, 8, dtype=torch.float64)
        values = [p.detach().flatten().tolist() for p in model.parameters()]

        def f(sample: list[float], w: list[Any], b: list[Any], v: list[Any], c: list[Any]) -> Any:
            total = c[0]
            for o in range(4):
                for t in range(2):
                    z = b[o]
                    for k in range(2):
                        at = 2 * t + 2 * k - 1
                        if 0 <= at < 4:
                            z += w[2 * o + k] * sample[4 * (o // 2) + at]
                    total += v[2 * o + t] * mpmath.tanh(z)
            return total

        expected = []
        with mp.workdps(60):
            for sample in x.tolist():
                row = []
                for which, tensor in enumerate(values):
                    for i in range(len(tensor)):

                        def along(value: Any, which: int = which, i: int = i) -> Any:
                            moved = [[mp.mpf(v) for v in t] for t in values]
                            moved[which][i] = value
                            return f(sample, *moved)  # noqa: B023

                        row.append(mpmath.diff(along, mp.mpf(tensor[i])))
                expected.append(row)
            assert_contains(exact.jacobian(model, x, bits=128), expected, 30)


class TestRationals:
    @pytest.mark.parametrize("widths", [(2, 3, 1), (2, 3, 3, 2), (3, 2)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_equal_fractions(self, widths: tuple[int, ...], bias: bool) -> None:
        model, x = network("relu", Net(widths, 4, bias))
        rational = lambda t: [Fraction(v) for v in t.tolist()]  # noqa: E731
        layers = [m for m in model if isinstance(m, nn.Linear)]
        expected = [
            row
            for sample in x
            for row in exact_rows(
                rational(sample),
                [[rational(row) for row in m.weight] for m in layers],
                [None if m.bias is None else rational(m.bias) for m in layers],
                lambda z: max(z, 0),
                lambda z: int(z > 0),
            )
        ]
        J = exact.rational_jacobian(model, x)
        found = [[Fraction(int(v.p), int(v.q)) for v in row] for row in J.tolist()]
        assert found == expected

    def test_slope_at_the_kink_is_zero(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)
        x = torch.tensor([[-1.0]])
        assert exact.rational_jacobian(model, x).entries() == [0, 0, 0, 1]
        assert llr.jacobian(model, x).flatten().tolist() == [0, 0, 0, 1]
        assert exact.jacobian(model, x, bits=64).entries() == [0, 0, 0, 1]

    def test_other_activations_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"tanh, .* no rational numbers"):
            exact.rational_jacobian(mlp(1, 2, 1), torch.zeros(1, 1).double())


class Trace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.erf(self.first(x)))


def tied() -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.GELU(), nn.Linear(3, 1))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (2, 6)),
        nn.Conv1d(2, 4, 3, padding=1, stride=2, groups=2),
        nn.GELU(),
        nn.Dropout(),
        nn.Linear(3, 2),
        nn.Softplus(),
        nn.Sequential(nn.Conv1d(4, 3, 3, padding="same", dilation=2, bias=False), nn.SiLU()),
        nn.Flatten(),
        nn.Linear(6, 2),
    ).eval()


def frozen() -> nn.Sequential:
    model = mlp(3, 4, 2, dtype=torch.float32)
    model[0].weight.requires_grad_(False)
    return model


class TestColumnsAndRows:
    @pytest.mark.parametrize(
        ("model", "shape", "params"),
        [
            (mlp(3, 4, 2), (3,), None),
            (mlp(3, 4, 2), (3,), ["2.*", "0.weight"]),
            (frozen(), (3,), None),
            (Trace(), (3,), None),
            (Trace(), (3,), "last.bias"),
            (nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (2, 3), None),
            (tied(), (3,), None),
            (convolutional(), (12,), None),
            (convolutional(), (12,), ["1.*", "8.bias"]),
            (
                nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)),
                (4, 3),
                None,
            ),
        ],
    )
    def test_as_llr_jacobian(
        self, model: nn.Module, shape: tuple[int, ...], params: str | list[str] | None
    ) -> None:
        x = torch.randn(5, *shape, dtype=next(model.parameters()).dtype)
        in_double = copy.deepcopy(model).double()
        expected = llr.jacobian(in_double, x.double(), params=params).flatten(0, 1)
        found = exact.jacobian(model, x, bits=96, params=params)
        assert (found.nrows(), found.ncols()) == tuple(expected.shape)
        floats = torch.tensor([float(v) for v in found.entries()], dtype=torch.float64)
        torch.testing.assert_close(floats.view(expected.shape), expected, rtol=1e-12, atol=1e-13)

    def test_values_by_mapping(self) -> None:
        model, x = mlp(2, 3, 1), torch.randn(4, 2, dtype=torch.float64)
        values = {"2.weight": torch.randn(1, 3).double(), "0.bias": torch.randn(3).double()}
        expected = llr.jacobian(model, x, params=values).flatten()
        found = exact.jacobian(model, x, bits=96, params=values).entries()
        floats = torch.tensor([float(v) for v in found], dtype=torch.float64)
        torch.testing.assert_close(floats, expected, rtol=1e-12, atol=1e-13)

    def test_some_rows(self) -> None:
        model, x = convolutional(), torch.randn(5, 12)
        every = exact.jacobian(model, x, bits=80).tolist()
        some = exact.jacobian(model, x, bits=80, rows=[7, 2, 3]).tolist()
        assert [[v.man_exp() for v in map(arb.mid, row)] for row in some] == [
            [v.man_exp() for v in map(arb.mid, every[i])] for i in (7, 2, 3)
        ]
        with pytest.raises(ValueError, match="rows has 0 to 10; expected 0 to 9"):
            exact.jacobian(model, x, bits=80, rows=[0, 10])

    def test_float32_is_taken_exactly(self) -> None:
        model = nn.Linear(1, 1, bias=False)
        x = torch.tensor([[0.1]])  # the float32 number, not a tenth
        assert exact.rational_jacobian(model, x).entries() == [flint.fmpq(13421773, 134217728)]


class TestInput:
    def test_stacked_points(self) -> None:
        with pytest.raises(ValueError, match=r"3 stacked parameter points; .* one point at a time"):
            exact.jacobian(
                nn.Linear(2, 1), torch.zeros(2, 2), bits=64, params={"weight": torch.zeros(3, 1, 2)}
            )

    def test_no_samples(self) -> None:
        with pytest.raises(ValueError, match=r"no samples \(shape \(0, 2\)\)"):
            exact.jacobian(nn.Linear(2, 1), torch.zeros(0, 2), bits=64)

    def test_nan(self) -> None:
        with pytest.raises(ValueError, match="x is nan"):
            exact.jacobian(nn.Linear(1, 1), torch.tensor([[float("nan")]]), bits=64)

    def test_budget(self) -> None:
        with (
            llr.set_memory_budget("1 kB"),
            pytest.raises(ValueError, match=r"the 50 x 3 Jacobian .* at 64 bits"),
        ):
            exact.jacobian(nn.Linear(2, 1), torch.zeros(50, 2), bits=64)

    def test_precision_is_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = flint.ctx.prec
        exact.jacobian(mlp(1, 2, 1), torch.zeros(1, 1).double(), bits=200)
        assert flint.ctx.prec == before

        def interrupted(_: arb) -> arb:
            assert flint.ctx.prec != before
            raise KeyboardInterrupt

        monkeypatch.setitem(ACTIVATIONS, "tanh", (interrupted, interrupted))
        with pytest.raises(KeyboardInterrupt):
            exact.jacobian(mlp(1, 2, 1), torch.zeros(1, 1).double(), bits=200)
        assert flint.ctx.prec == before
