"""Levenberg-Marquardt ends where scipy's least squares end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

import llr
from llr.recovery import Damping, levenberg_marquardt

from .lm_cases import (
    CASES,
    normal,
    placed,
    problem,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native:RuntimeWarning")


def by_scipy(model: nn.Module, start: Tensor, x: Tensor, y: Tensor, method: str = "trf") -> Any:
    """scipy's least squares from the same start, with autograd's Jacobian."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs = placed(model, torch.as_tensor(theta))(x)
        return (outputs.reshape(y.shape) - y).flatten().numpy()

    def jacobian(theta: np.ndarray) -> np.ndarray:
        return llr.jacobian(placed(model, torch.as_tensor(theta)), x).flatten(0, 1).numpy()

    tolerances = {"xtol": 1e-12, "ftol": 1e-14, "gtol": 1e-13, "max_nfev": 300}
    return least_squares(residuals, start.numpy(), jacobian, method=method, **tolerances)


PATIENT = Damping(0.01, 0.3, 2.0, stall=60, iterations=2000, progress=0.0)


# Not in flat valleys, where scipy has not converged after hundreds of evaluations.
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("deep", "traced")])
def test_where_scipy_ends(case):
    """From starts near a minimum all methods find it."""
    model, theta, x, y = problem(case, starts=1, sets=1)
    y = placed(model, theta[0])(x[0]).detach().reshape(y[0].shape) + 0.003 * y[0]
    starts = theta[0] + 0.01 * normal(3, theta.shape[1], seed=9)
    fits = levenberg_marquardt(model, starts, x[0], y, damping=PATIENT, tol=1e-26)
    scale, arrived = float(y.square().mean()), 0
    for start, loss in zip(starts, fits.loss.tolist(), strict=True):
        expected = by_scipy(model, start, x[0], y)
        error = loss - 2 * expected.cost / y.numel()
        assert error <= 1e-9 * scale
        assert not expected.success or abs(error) <= 1e-7 * scale
        arrived += expected.success
    assert arrived >= 2


def test_the_method_of_minpack_ends_there_too():
    model, theta, x, _ = problem("no bias", sets=1)
    y = placed(model, theta[0])(x[0]).detach() + 0.003 * normal(30, 1, seed=2)
    fits = levenberg_marquardt(model, theta[:1] + 0.01, x[0], y, damping=PATIENT)
    expected = by_scipy(model, theta[0] + 0.01, x[0], y, "lm")
    assert float(fits.loss[0]) == pytest.approx(2 * expected.cost / 30, rel=1e-9)
    assert np.abs(fits.theta[0].numpy() - expected.x).max() <= 1e-5
