"""Gradient flow of ensembles, compared with scipy's integrators, one member at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from llr.landscape import flow as stiff_flow
from llr.models import TwoLayer, mlp
from llr.recovery.train import GD, Flow, train

from .cases import F64, half_mean_square, placed, randn, some

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def integrated(model: nn.Module, theta: Tensor, x: Tensor, y: Tensor, times: Tensor) -> Tensor:
    """Gradient flow by scipy, with autograd's gradients: (T, P)."""

    def slope(_: float, at: np.ndarray) -> np.ndarray:
        one = placed(model, torch.from_numpy(at.copy()))
        gradients = torch.autograd.grad(half_mean_square(one, x, y), list(one.parameters()))
        return -torch.cat([g.flatten() for g in gradients]).numpy()

    solution = solve_ivp(
        slope,
        (0, float(times[-1])),
        theta.numpy(),
        "DOP853",
        t_eval=times.numpy(),
        rtol=1e-12,
        atol=1e-16,
    )
    return torch.from_numpy(solution.y.T.copy())


class TestFlow:
    """Gradient flow compared with other integrators, and with closed forms."""

    times = torch.tensor([0.0, 0.3, 2.0, 10.0], dtype=F64)

    def test_least_squares(self) -> None:
        x, y = randn(9, 3), randn(9, 1, seed=1)
        starts = randn(4, 3, seed=2)
        found = train(
            nn.Linear(3, 1, bias=False), starts, x, y, method=Flow(10.0), record=self.times.tolist()
        )
        assert found.history is not None
        assert torch.equal(found.history.at, self.times)
        best = torch.linalg.lstsq(x, y).solution[:, 0]
        for t, points in zip(self.times, found.history.theta, strict=True):
            expected = best + (starts - best) @ torch.linalg.matrix_exp(-t * (x.T @ x) / 9)
            torch.testing.assert_close(points, expected, atol=1e-7, rtol=1e-7)

    def test_against_other_integrators(self) -> None:
        model, x, y = mlp([2, 3, 1]), randn(6, 2), randn(6, 1, seed=1)
        starts = some(model, 3)
        found = train(
            model, starts, x, y, method=Flow(10.0, rtol=1e-10), record=self.times.tolist()
        )
        assert found.history is not None
        for s in range(3):
            expected = integrated(model, starts[s], x, y, self.times)
            torch.testing.assert_close(found.history.theta[:, s], expected, atol=1e-8, rtol=1e-8)
            theirs = stiff_flow(placed(model, starts[s]), x, y, self.times.tolist())
            torch.testing.assert_close(
                found.history.theta[:, s], theirs.parameters, atol=1e-7, rtol=1e-7
            )
            torch.testing.assert_close(
                found.history.loss[:, s], theirs.losses, atol=1e-8, rtol=1e-7
            )

    def test_small_initialisation(self) -> None:
        # Values that grow from 1e-8 like e^(t |v|) have small relative errors too.
        model, x = TwoLayer(2, 3, bias=False), randn(8, 2)
        y, starts = torch.tanh(x[:, :1]), some(model, 2, 1e-8)
        times = torch.tensor([0.0, 5.0, 40.0], dtype=F64)
        found = train(model, starts, x, y, method=Flow(40.0), record=times.tolist(), steps=3000)
        assert found.history is not None
        for s in range(2):
            expected = integrated(model, starts[s], x, y, times)
            for point, other in zip(found.history.theta[:, s], expected, strict=True):
                assert float((point - other).norm() / other.norm()) < 1e-5

    def test_gradient_descent_tends_to_it(self) -> None:
        model, x, y = mlp([2, 3, 1]), randn(6, 2), randn(6, 1, seed=1)
        starts = some(model, 3)
        exact = train(model, starts, x, y, method=Flow(2.0, rtol=1e-10))
        errors = [
            float(
                (train(model, starts, x, y, method=GD(2.0 / k), steps=k).theta - exact.theta).norm()
            )
            for k in (100, 200)
        ]
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)

    def test_ends(self) -> None:
        model, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1, dtype=F64)
        starts = torch.tensor([[0.0], [1 - 1e-3]], dtype=F64)
        early = train(model, starts, x, x, method=Flow(1e3), steps=5, record=4)
        assert early.status == ("steps", "steps")
        assert early.steps.tolist() == [5, 5]
        assert early.history is not None
        assert early.history.at.tolist() == pytest.approx([0, 0.1, 10, 1000])
        found = train(model, starts, x, x, method=Flow(30.0), tol=1e-8, record=3)
        assert found.status == ("converged", "converged")
        assert int(found.steps[1]) < int(found.steps[0])
        assert found.history is not None
        assert torch.equal(found.history.theta[-1], found.theta)
