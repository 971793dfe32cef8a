"""Computations and proofs near a fit in 256 bits, compared with mpmath with fifty digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from flint import arb
from torch import Tensor

from llr.jacobians.jacobian import jacobian
from llr.linalg.balls import precision
from llr.models import TwoLayer
from llr.recovery import Target, isolation
from llr.recovery.domain import Domain, errors
from llr.recovery.judge import examined, judged
from llr.recovery.net import Net
from llr.recovery.polish import Polished
from llr.recovery.precise import BITS, Form, Inputs, floats

from .cases import ANALYTIC, F64, FIFTY, data_of, normal, planted

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


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
        """Outer weights are solved for: along this valley, plain steps cover a millionth of the way."""
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
        """Only some of the samples are polished; one wrong value among the others is detected."""
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
        """The bound of E is above the values at random corners of the box, computed with 50 digits."""
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
        """torch's softplus jumps by 2e-9 at 20, so the mean value theorem does not hold across the jump."""
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
