"""The parts that judge a fit: rounding, polish in 256 bits, isolation, evidence, aliases, fresh points."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from flint import arb
from scipy.stats import beta, binom
from torch import Tensor

from llr.balls import precision
from llr.jacobian import jacobian
from llr.models import TwoLayer
from llr.recovery import Target, isolation
from llr.recovery.alias import aliases
from llr.recovery.domain import Domain, errors
from llr.recovery.evidence import evidence
from llr.recovery.judge import Data64, examined, judged
from llr.recovery.net import Net
from llr.recovery.oracle import largest_share
from llr.recovery.polish import Polished
from llr.recovery.precise import BITS, Form, Inputs, floats
from llr.recovery.rounding import Rounding

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64
ANALYTIC = ["tanh", "sigmoid", "gelu", "silu", "softplus", "erf", "sin"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def data_of(x: Tensor, y: Tensor, activation: str = "tanh", **options: object) -> Data64:
    rounding = Rounding.of(
        x, y.double(), (x.dtype, y.dtype), options.get("y_error"), options.get("x_error")
    )  # type: ignore[arg-type]
    return Data64(x, y.double(), rounding, Domain.of(x, options.get("domain")), activation, None)


def planted(
    seed: int, d: int, k: int, activation: str = "tanh", extra: int = 1, **options: bool
) -> tuple[Target, Data64, Net]:
    architecture = TwoLayer(d, k, activation=activation, **options)  # type: ignore[arg-type]
    target = Target.separated(architecture, seed=seed)
    n = sum(p.numel() for p in architecture.parameters()) + extra
    x, y = target.sample(n, seed=seed + 40)
    return target, data_of(x, y, activation), Net.of(target.model, activation)  # type: ignore[arg-type]


class TestRounding:
    @pytest.mark.parametrize(
        ("y", "words"),
        [
            (normal(0, 20, 1), "y computed in float64"),
            (normal(0, 20, 1).float(), "y computed in float32"),
            (normal(0, 20, 1).float().double(), "y computed in float32"),
            (torch.tensor(np.round(normal(0, 20, 1).numpy(), 6)), "y rounded to 6 decimals"),
            (
                torch.tensor(np.round(normal(0, 20, 1).numpy(), 6)).float(),
                "y rounded to 6 decimals",
            ),
            (
                1e5 * torch.tensor(np.round(normal(0, 20, 1).numpy(), 2)),
                "y rounded to 3 significant digits",
            ),
            ((normal(0, 20, 1) > 0).double(), "y rounded to integers"),
            (normal(0, 20, 1).half(), "y computed in float16"),
        ],
    )
    def test_what_values_look_like(self, y: Tensor, words: str) -> None:
        assert data_of(normal(1, 20, 2), y).rounding.words.startswith(words)

    def test_significant_digits(self) -> None:
        v = normal(2, 30, 1) * torch.exp(3 * normal(3, 30, 1))
        y = torch.tensor([[float(f"{t:.5g}")] for t in v[:, 0].tolist()], dtype=F64)
        rounding = data_of(normal(1, 30, 2), y).rounding
        assert "5 significant digits" in rounding.words
        assert bool(((v - y).abs() <= rounding.y * (1 + 1e-9)).all())

    def test_float32_written_as_text(self) -> None:
        y = torch.tensor(
            [[float(str(v))] for v in normal(4, 30).numpy().astype(np.float32)], dtype=F64
        )
        assert not torch.equal(y, y.float().double())
        assert data_of(normal(1, 30, 2), y).rounding.words.startswith("y computed in float32")

    def test_ordinary_numbers_are_never_taken_for_rounded(self) -> None:
        for seed in range(200):
            y = normal(seed, 4, 1) * 10.0 ** (seed % 40 - 20)
            assert data_of(normal(1, 4, 1), y).rounding.words == "y computed in float64"

    @pytest.mark.parametrize("activation", [*ANALYTIC, "relu"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_delta_bounds_what_a_forward_pass_is_off_by(
        self, activation: str, dtype: torch.dtype
    ) -> None:
        """Against mpmath with 50 digits."""
        for seed in range(4):
            target = Target.generic(
                TwoLayer(3, 4, 2, activation=activation, output_bias=True), seed=seed
            )
            model = target.model.to(dtype)
            x = normal(seed, 12, 3).to(dtype)
            with torch.no_grad():
                y = model(x)
            net = Net.of(model.double(), activation)  # type: ignore[arg-type]
            data = data_of(x.double(), y, activation)
            delta = data.rounding.delta(net, x.double(), y.double())
            exact = fifty_digits(net, x.double())
            off = torch.tensor(
                [
                    [float(abs(mpmath.mpf(a) - b)) for a, b in zip(r, s, strict=True)]
                    for r, s in zip(y.double().tolist(), exact, strict=True)
                ]
            )
            assert bool((off <= delta).all())
            assert float((delta / y.double().abs()).median()) < 1e3 * data.rounding.unit

    def test_inputs_of_a_rounded_table(self) -> None:
        x, y = normal(5, 30, 2), normal(6, 30, 1)
        both = data_of((x * 1e5).round() / 1e5, (y * 1e4).round() / 1e4).rounding
        assert both.x is not None
        assert both.x.unique().tolist() == pytest.approx([5e-6])
        assert "x to 5 decimals" in both.words
        grid = (
            torch.linspace(0, 1, 30, dtype=F64)[:, None].mul(29).round() / 10
        )  # chosen, not rounded
        assert data_of(grid, (y * 1e4).round() / 1e4).rounding.x is None
        assert data_of((x * 1e5).round() / 1e5, y).rounding.x is None
        assert (
            data_of((x * 1e5).round() / 1e5, (y * 1e4).round() / 1e4, x_error=0).rounding.x is None
        )

    def test_what_the_caller_says(self) -> None:
        x, y = normal(5, 9, 2), normal(6, 9, 1)
        assert data_of(x, y, y_error="float32").rounding.unit == 2.0**-24
        assert float(data_of(x, y, y_error=1e-3).rounding.y.max()) == 1e-3
        per_sample = data_of(x, y, y_error=torch.arange(9.0), x_error=torch.tensor([2.0**-20, 0.0]))
        assert per_sample.rounding.y[:, 0].tolist() == list(range(9))
        assert per_sample.rounding.x is not None
        assert per_sample.rounding.x[3].tolist() == [2.0**-20, 0.0]


def fifty_digits(net: Net, x: Tensor) -> list[list[mpmath.mpf]]:
    functions = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
        "gelu": lambda z: z * mpmath.ncdf(z),
        "silu": lambda z: z / (1 + mpmath.exp(-z)),
        "softplus": lambda z: mpmath.log1p(mpmath.exp(z)) if z <= 20 else z,
        "erf": mpmath.erf,
        "sin": mpmath.sin,
        "relu": lambda z: max(z, mpmath.mpf(0)),
    }
    with mpmath.workdps(50):
        s, rows = functions[net.activation], []
        for row in x.tolist():
            h = []
            for j, w in enumerate(net.w.tolist()):
                z = sum((mpmath.mpf(a) * b for a, b in zip(w, row, strict=True)), mpmath.mpf(0))
                h.append(s(z + (0 if net.b is None else mpmath.mpf(float(net.b[j])))))
            rows.append(
                [
                    sum((mpmath.mpf(a) * b for a, b in zip(outer, h, strict=True)), mpmath.mpf(0))
                    + (0 if net.c is None else mpmath.mpf(float(net.c[o])))
                    for o, outer in enumerate(net.a.tolist())
                ]
            )
        return rows


class TestPrecise:
    @pytest.mark.parametrize("activation", ANALYTIC)
    def test_values_and_jacobian(self, activation: str) -> None:
        model = Target.generic(
            TwoLayer(2, 3, 2, activation=activation, output_bias=True), seed=1
        ).model
        net, x = Net.of(model, activation), normal(3, 6, 2)  # type: ignore[arg-type]
        with precision(BITS):
            point = Inputs(x, Form.of(net)).at(Form.of(net).parameters(net))
            values = torch.tensor([float(v) for v in point.values()], dtype=F64).reshape(6, 2)
            J = floats(point.jacobian())
        assert torch.allclose(values, net(x), rtol=1e-13, atol=1e-14)
        assert torch.allclose(J, jacobian(model, x).flatten(0, 1).double(), rtol=1e-12, atol=1e-13)

    def test_polish_finds_the_planted_parameters(self) -> None:
        """From a point 1e-6 away; a condition number of 1e9 costs float64 nine digits, and 256 bits none."""
        target, data, net = planted(3, 1, 2, bias=False)
        moved = Net(net.w * (1 + 1e-6), net.b, net.a * (1 - 1e-6), net.c, "tanh")
        fit = examined(moved, data)
        assert fit.consistent
        assert target.error(fit.net) < 1e-26  # type: ignore[arg-type]

    def test_nearly_linear_neurons(self) -> None:
        """Outer weights are solved for: a valley along which plain steps are a millionth of what is left."""
        w, a = torch.tensor([[0.002], [0.3]], dtype=F64), torch.tensor([[-0.28, 2.1]], dtype=F64)
        net, x = Net(w, None, a, None, "tanh"), normal(8, 6, 1)
        moved = Net(
            w * torch.tensor([[0.5], [1.0]]), None, a * torch.tensor([[2.0, 1.0]]), None, "tanh"
        )
        fit = examined(moved, data_of(x, net(x)))
        assert fit.consistent
        assert fit.net.w[0, 0] == pytest.approx(0.002, rel=1e-2)

    def test_noise_of_ten_roundings_is_not_consistent(self) -> None:
        for seed in range(5):
            _, data, net = planted(seed, 2, 2, extra=6)
            assert examined(net, data).consistent
            delta = data.rounding.delta(net, data.x, data.y)
            noisy = data_of(data.x, data.y + 10 * delta * normal(seed, *data.y.shape).sign())
            assert not examined(net, noisy).consistent

    def test_large_sets(self) -> None:
        """Only some of the samples are polished; one wrong value among the others shows."""
        _, data, net = planted(2, 2, 2, extra=3000)
        fit = examined(net, data)
        assert fit.rows is not None
        assert len(fit.rows) == 400
        assert fit.consistent
        assert not judged(fit, data, 8).reasons
        left = next(i for i in range(len(data.x)) if i not in set(fit.rows.tolist()))
        y = data.y.clone()
        y[left] += 1e-12
        assert not examined(net, data_of(data.x, y)).consistent


class TestIsolation:
    @pytest.mark.parametrize("activation", ANALYTIC)
    def test_networks_that_fit_are_as_close_as_proved(self, activation: str) -> None:
        """Fits of targets moved by up to their rounding, in 50 digits, stay in the box and within eps."""
        for seed in range(3):
            _, data, net = planted(seed, 2, 2, activation, extra=4)
            fit = examined(net, data)
            with precision(BITS):
                found = isolation.isolation(fit, data.domain.corner, data.size)
            if not found.isolated:
                continue
            low, high = data.domain.low, data.domain.high
            fresh = low + (high - low) * torch.rand(
                200, 2, generator=torch.Generator().manual_seed(seed), dtype=F64
            )
            worst = 0.0
            for trial in range(4):
                share = 0.9 * (
                    2
                    * torch.rand(
                        data.y.shape, generator=torch.Generator().manual_seed(trial), dtype=F64
                    )
                    - 1
                )
                other = least_squares_in_fifty_digits(fit, data.x, share)
                far = max(
                    abs(float(a - mpmath.mpf(str(b.mid().str(60, radius=False)))))
                    for a, b in zip(other, fit.theta, strict=True)
                )
                size = min(abs(float(t)) for t in fit.theta)
                assert far / size < found.radius
                moved = fit.form.network([arb(float(t)) for t in other])
                worst = max(worst, float((moved(fresh) - fit.net(fresh)).abs().max()) / data.size)
            assert worst <= found.eps + 1e-14

    def test_kappa_in_exact_arithmetic(self) -> None:
        """The bound of E is above that at random corners of the box, computed with 50 digits."""
        _, data, net = planted(1, 1, 2, extra=2)
        fit = examined(net, data)
        with precision(BITS):
            found = isolation.isolation(fit, data.domain.corner, data.size)
            C = found.inverse
            assert found.isolated
            assert C is not None
            rho = [
                sum((abs(C[i, j]) * (1 + abs(r)) for j, r in enumerate(fit.residuals)), arb(0))
                for i in range(C.nrows())
            ]
            rng = np.random.default_rng(0)
            for _ in range(20):
                signs = rng.choice([-4, 4], len(rho))
                theta = [t + int(s) * r for t, s, r in zip(fit.theta, signs, rho, strict=True)]
                E = C * fit.inputs.at(theta).jacobian(fit.weights)
                for i in range(len(rho)):
                    row = [abs(E[i, j] - int(i == j)) * rho[j] for j in range(len(rho))]
                    assert float(sum(row, arb(0)) / rho[i]) <= found.kappa

    def test_a_rank_below_the_parameters_is_not_isolated(self) -> None:
        net = Net(
            torch.tensor([[1.0, 1.0]], dtype=F64), None, torch.ones(1, 1, dtype=F64), None, "tanh"
        )
        x = normal(0, 10, 1) * torch.tensor([[1.0, -0.5]], dtype=F64)
        fit = examined(net, data_of(x, net(x)))
        with precision(BITS):
            found = isolation.isolation(fit, x.abs().amax(0), 1.0)
        assert not found.isolated
        assert (found.radius, found.eps) == (0.0, math.inf)

    def test_softplus_must_not_meet_its_switch(self) -> None:
        """torch's softplus jumps by 2e-9 at 20: no mean value theorem across it."""
        w, b = torch.tensor([[1.0]], dtype=F64), torch.tensor([0.5], dtype=F64)
        net = Net(w, b, torch.ones(1, 1, dtype=F64), None, "softplus")
        x = torch.linspace(-3, 3, 9, dtype=F64)[:, None]
        away = examined(net, data_of(x, net(x), "softplus"))
        x_at = torch.cat((x, torch.tensor([[19.5]], dtype=F64)))
        at = examined(net, data_of(x_at, net(x_at), "softplus"))
        with precision(BITS):
            assert isolation.isolation(away, torch.ones(1, dtype=F64), 1.0).isolated
            assert not isolation.isolation(at, torch.ones(1, dtype=F64), 1.0).isolated

    def test_relu_is_never_isolated(self) -> None:
        net = Net(
            torch.tensor([[1.0]], dtype=F64),
            torch.tensor([3.0], dtype=F64),
            torch.ones(1, 1, dtype=F64),
            None,
            "relu",
        )
        x = normal(0, 9, 1)
        fit = examined(net, data_of(x, net(x), "relu"))
        with precision(BITS):
            assert not isolation.isolation(fit, torch.ones(1, dtype=F64), 1.0).isolated


def least_squares_in_fifty_digits(fit: Polished, x: Tensor, share: Tensor) -> list[mpmath.mpf]:
    """Gauss-Newton with mpmath: the network that fits y + share * rounding, weighted by the rounding."""
    form, net = fit.form, fit.net
    with mpmath.workdps(60):
        theta = mpmath.matrix([mpmath.mpf(str(t.mid().str(75, radius=False))) for t in fit.theta])
        weights = [mpmath.mpf(float(w)) for w in fit.weights]
        base = [mpmath.mpf(str(v.mid().str(75, radius=False))) for v in fit.point.values()]
        goals = [
            b + mpmath.mpf(s) / w
            for b, s, w in zip(base, share.flatten().tolist(), weights, strict=True)
        ]
        s, ds = FIFTY[net.activation]
        for _ in range(6):
            J, r = mpmath.matrix(len(goals), form.count), mpmath.matrix(len(goals), 1)
            for i, row in enumerate(x.tolist()):
                value = mpmath.mpf(0)
                for j in range(form.k):
                    z = theta[form.k * form.d + j] if form.bias else mpmath.mpf(0)
                    for m in range(form.d):
                        z += theta[j * form.d + m] * mpmath.mpf(row[m])
                    a = theta[form.k * (form.d + form.bias) + j]
                    value += a * s(z)
                    for m in range(form.d):
                        J[i, j * form.d + m] = weights[i] * a * ds(z) * mpmath.mpf(row[m])
                    if form.bias:
                        J[i, form.k * form.d + j] = weights[i] * a * ds(z)
                    J[i, form.k * (form.d + form.bias) + j] = weights[i] * s(z)
                r[i] = weights[i] * (goals[i] - value)
            theta += mpmath.lu_solve(J.T * J, J.T * r)
        return list(theta)


def _logistic(z: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-z))


FIFTY = {
    "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
    "sigmoid": (_logistic, lambda z: _logistic(z) * _logistic(-z)),
    "gelu": (lambda z: z * mpmath.ncdf(z), lambda z: mpmath.ncdf(z) + z * mpmath.npdf(z)),
    "silu": (lambda z: z * _logistic(z), lambda z: _logistic(z) * (1 + z * _logistic(-z))),
    "softplus": (lambda z: mpmath.log1p(mpmath.exp(z)), _logistic),
    "erf": (mpmath.erf, lambda z: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-z * z)),
    "sin": (mpmath.sin, mpmath.cos),
}


class TestConditioning:
    def test_eps_bounds_the_error_of_what_is_found(self) -> None:
        """Targets moved by up to their rounding move the fit by at most eps, at 500 points."""
        for seed in range(6):
            _, data, net = planted(seed, 2, 2, extra=1 + seed)
            delta = data.rounding.delta(net, data.x, data.y)
            moved = data_of(data.x, data.y + delta * 0.9 * normal(seed, *data.y.shape).sign())
            fit = examined(net, moved)
            with precision(BITS):
                inverse = isolation.isolation(fit, data.domain.corner, data.size).inverse
            assert inverse is not None
            points = data.domain.points(500, corners=4, seed=3)
            off = (fit.net(points) - net(points)).abs()
            assert bool((off <= errors(fit, inverse, points) + 1e-14).all())

    def test_domains(self) -> None:
        x = normal(0, 20, 2)
        own = Domain.of(x, None)
        assert torch.equal(own.low, x.amin(0))
        assert torch.allclose(own.doubled.high - own.doubled.low, 2 * (own.high - own.low))
        given = Domain.of(x, (-1, torch.tensor([1.0, 2.0])))
        assert given.doubled is given
        assert given.corner.tolist() == [1.0, 2.0]
        points = given.points(100, corners=10)
        assert bool(((points >= given.low) & (points <= given.high)).all())


class TestEvidence:
    @pytest.mark.parametrize(
        ("activation", "expected"), [("tanh", 6), ("erf", 6), ("sin", 6), ("gelu", 8), ("silu", 8)]
    )
    def test_mirrored_samples(self, activation: str, expected: int) -> None:
        """x and -x are one observation of an odd network; of gelu and silu, six pairs are 6 + 2."""
        target = Target.separated(TwoLayer(2, 2, activation=activation, bias=False), seed=1)
        half = normal(1, 6, 2)
        x = torch.cat((half, -half))
        data = data_of(x, target(x), activation)
        fit = examined(Net.of(target.model, activation), data)  # type: ignore[arg-type]
        with precision(BITS):
            assert evidence(fit, data.x, data.y, 8).n_effective == expected

    def test_with_biases_mirrored_samples_are_as_good_as_others(self) -> None:
        target = Target.separated(TwoLayer(2, 1), seed=1)
        half = normal(1, 4, 2)
        x = torch.cat((half, -half))
        data = data_of(x, target(x))
        with precision(BITS):
            found = evidence(examined(Net.of(target.model, "tanh"), data), x, data.y, 8)  # type: ignore[arg-type]
        assert found.n_effective == 8

    @pytest.mark.parametrize("apart", [1e-15, 1e-14, 1e-13])
    def test_samples_that_are_nearly_equal(self, apart: float) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=3)
        base = normal(2, 5, 2)
        x = base.repeat(2, 1) + apart * normal(3, 10, 2)
        data = data_of(x, target(x))
        with precision(BITS):
            found = evidence(examined(Net.of(target.model, "tanh"), data), x, data.y, 8)  # type: ignore[arg-type]
        assert found.n_effective <= 6 + 1
        assert found.decades < 4

    def test_more_samples_and_starts(self) -> None:
        decades = []
        for extra in (1, 3, 6):
            _, data, net = planted(4, 2, 2, extra=extra, bias=False)
            with precision(BITS):
                decades.append(evidence(examined(net, data), data.x, data.y, 1).decades)
        assert decades == sorted(decades)
        with precision(BITS):
            fewer = evidence(examined(net, data), data.x, data.y, 1000).decades
        assert fewer == pytest.approx(decades[-1] - 3)

    def test_several_outputs_count_alone(self) -> None:
        target = Target.separated(TwoLayer(3, 2, 2, bias=False), seed=0)
        x, y = target.sample(9, seed=1)
        with precision(BITS):
            found = evidence(examined(Net.of(target.model, "tanh"), data_of(x, y)), x, y, 8)  # type: ignore[arg-type]
        assert (found.n_effective, found.needed) == (9, 8)


class TestAliases:
    @pytest.mark.parametrize("step", [1.0, 0.25, 1 / 3, 1e-3, 17.0])
    def test_grids(self, step: float) -> None:
        x = 0.2 + step * torch.tensor([[0.0], [3], [4], [9], [11], [20]], dtype=F64)
        found = aliases(x)
        assert found is not None
        assert float(found[0].abs()) == pytest.approx(2 * math.pi / step)

    def test_lattices_in_space(self) -> None:
        for seed in range(5):
            basis = normal(seed, 3, 3)
            integers = torch.randint(-4, 5, (14, 3), generator=torch.Generator().manual_seed(seed))
            x = integers.double() @ basis + 0.3
            found = aliases(x)
            assert found is not None
            turns = (x - x[0]) @ found.T / (2 * math.pi)
            assert float((turns - turns.round()).abs().max()) < 1e-6

    def test_a_stripe_of_the_plane(self) -> None:
        x = torch.stack((torch.arange(12.0, dtype=F64) * 0.5, normal(1, 12)), 1)
        found = aliases(x)
        assert found is not None
        assert found[0].abs().tolist() == pytest.approx([4 * math.pi, 0.0], abs=1e-6)

    def test_random_samples_have_none(self) -> None:
        for seed in range(20):
            assert aliases(normal(seed, 12, 1 + seed % 3)) is None


class TestShares:
    @pytest.mark.parametrize("points", [3, 45, 1000])
    @pytest.mark.parametrize("beyond", [0, 1, 2])
    def test_against_scipy(self, beyond: int, points: int) -> None:
        share = largest_share(beyond, points)
        assert share == pytest.approx(beta.ppf(0.95, beyond + 1, points - beyond))
        # With a larger share so few would be seen less often than one time in twenty.
        assert binom.cdf(beyond, points, share * (1 + 1e-9)) == pytest.approx(0.05, rel=1e-4)

    def test_ends(self) -> None:
        assert largest_share(5, 5) == 1.0
        assert largest_share(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
