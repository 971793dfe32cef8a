"""Rates of gradient flow compared with closed forms, and the flow compared with its rate."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llr
from llr.landscape import branches, flow, random_point, rate
from llr.models import MatrixFactorization, TwoLayer, mlp

from .test_critical import F64, randn

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def perturbed(model: nn.Module, size: float = 1e-3) -> None:
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=g, dtype=F64)


class TestRate:
    """The smallest nonzero eigenvalue of the tangent kernel."""

    def test_least_squares(self) -> None:
        x = randn(7, 3)
        found = rate(nn.Linear(3, 1, bias=False, dtype=F64), x)
        values = torch.linalg.eigvalsh(x.T @ x / 7)
        assert found.rate == float(found) == pytest.approx(float(values[0]))
        assert found.fastest == pytest.approx(float(values[-1]))
        assert (found.rank, found.n_samples, found.n_observations, found.n_params) == (3, 7, 7, 3)
        assert not found.ambiguous

    def test_kernel(self) -> None:
        model, x = mlp([2, 4, 2]).double(), randn(5, 2)
        J = llr.jacobian(model, x).reshape(10, -1)
        values = torch.linalg.eigvalsh(J @ J.T / 5)
        found = rate(model, x)
        assert found.rate == pytest.approx(float(values[0]), rel=1e-8)
        assert (found.rank, found.n_observations) == (10, 10)

    def test_zeros_do_not_count(self) -> None:
        x = randn(6, 3)
        x[:, 2] = x[:, 0] + x[:, 1]
        found = rate(nn.Linear(3, 1, bias=False, dtype=F64), x)
        assert found.rank == 2
        assert found.rate == pytest.approx(float(torch.linalg.eigvalsh(x.T @ x / 6)[1]))
        assert rate(nn.Linear(3, 1, bias=False, dtype=F64), x, rtol=0.99).rank == 1

    def test_report(self) -> None:
        found = rate(mlp([1, 3, 1]).double(), randn(40, 1))
        assert found.ambiguous == ("AMBIGUOUS" in str(found))
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["n_params"] == 10

    def test_bad_input(self) -> None:
        model, x = mlp([1, 3, 1]).double(), randn(4, 1)
        with pytest.raises(ValueError, match="at least one sample"):
            rate(model, x[:0])
        with pytest.raises(ValueError, match="gradient flow changes nothing"):
            rate(nn.Linear(1, 1, bias=False, dtype=F64), 0 * x)
        batch = {n: torch.stack([p.detach()] * 3) for n, p in model.named_parameters()}
        with pytest.raises(ValueError, match="one parameter point"):
            rate(model, x, params=batch)


class TestFlow:
    """The flow itself."""

    def test_least_squares(self) -> None:
        x, y = randn(9, 3), randn(9, 1, seed=1)
        model = nn.Linear(3, 1, bias=False, dtype=F64)
        times = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=F64)
        found = flow(model, x, y, times)
        best = torch.linalg.lstsq(x, y).solution[:, 0]
        start = model.weight.detach()[0]
        torch.testing.assert_close(found.parameters[0], start)
        for t, theta in zip(times, found.parameters, strict=True):
            expected = best + torch.linalg.matrix_exp(-t * (x.T @ x) / 9) @ (start - best)
            torch.testing.assert_close(theta, expected, atol=1e-8, rtol=1e-8)
        losses = ((found.parameters @ x.T - y[:, 0]) ** 2).sum(1) / 18
        torch.testing.assert_close(found.losses, losses)

    def test_conserved_quantity(self) -> None:
        # In a factorization A'A - B B' does not change along the flow.
        model = MatrixFactorization(2, 2, 2).double()
        pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        found = flow(model, pairs, randn(4, 1, seed=2), [0.0, 1.0, 5.0, 20.0])
        A, B = found.parameters[:, :4].view(-1, 2, 2), found.parameters[:, 4:].view(-1, 2, 2)
        kept = A.mT @ A - B @ B.mT
        torch.testing.assert_close(kept, kept[:1].expand_as(kept), atol=1e-8, rtol=1e-8)
        assert bool((found.losses.diff() < 0).all())

    def test_cross_entropy_falls(self) -> None:
        model, x = mlp([2, 4, 3]).double(), randn(9, 2)
        found = flow(model, x, torch.arange(9) % 3, [0.0, 1.0, 10.0], "cross_entropy")
        assert bool((found.losses.diff() < 0).all())
        assert found.decay is None

    @pytest.mark.parametrize(
        ("widths", "n"),
        # Fewer observations than parameters; enough samples to determine the function; several outputs; deep.
        [([1, 5, 1], 3), ([2, 1, 1], 12), ([2, 3, 2], 4), ([2, 3, 3, 1], 6)],
    )
    def test_measured_rate(self, widths: list[int], n: int) -> None:
        model, x = mlp(widths).double(), 2 * randn(n, widths[0])
        nn.utils.vector_to_parameters(  # larger weights than usual: the flow is less stiff
            2 * nn.utils.parameters_to_vector(model.parameters()), model.parameters()
        )
        y, start = model(x).detach(), rate(model, x)
        perturbed(model)
        times = torch.linspace(0, 10 / start.rate, 40)
        found = flow(model, x, y, times, rtol=1e-9)
        nn.utils.vector_to_parameters(found.parameters[-1], model.parameters())
        assert found.decay == pytest.approx(rate(model, x).rate, rel=0.02)
        # The test would notice if the rate were that of the next eigenvalue.
        J = llr.jacobian(model, x).reshape(-1, start.n_params)
        next_slowest = float(llr.svdvals(J)[start.rank - 2]) ** 2 / n
        assert found.decay != pytest.approx(next_slowest, rel=0.02)

    def test_branches(self) -> None:
        # On linearly stable branches residuals decay at the rate. Near others the rank of J is larger,
        # and some residuals decay more slowly than all eigenvalues at the minimum, for any number of samples.
        target = TwoLayer(1, 1, activation="tanh").double()
        with torch.no_grad():
            for p, v in zip(target.parameters(), (1.5, 0.3, 1.0), strict=True):
                p.fill_(v)
        x = randn(12, 1)
        for branch in branches(target, 2):
            point = random_point(target, branch, torch.Generator().manual_seed(2))
            predicted = rate(point, x)
            assert predicted.rank == branch.tangent
            perturbed(point, 1e-3 if branch.linearly_stable else 3e-2)
            times = torch.linspace(0, 12 / predicted.rate, 40)
            found = flow(point, x, target(x).detach(), times, rtol=1e-10)
            assert found.decay is not None
            if branch.linearly_stable:
                assert found.decay == pytest.approx(predicted.rate, rel=0.03)
            else:
                assert found.decay < 0.8 * predicted.rate

    def test_the_model_stays_as_it_is(self) -> None:
        model, x = mlp([1, 3, 1]).double(), randn(4, 1)
        before = [p.detach().clone() for p in model.parameters()]
        flow(model, x, x, [0.0, 1.0])
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))

    def test_report(self) -> None:
        model, x = mlp([1, 3, 1]).double(), randn(3, 1)
        found = flow(model, x, x, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        assert str(found).startswith(f"loss {float(found.losses[0]):.4g} to ")
        assert "falling like exp(-" in str(found)
        plain = json.loads(json.dumps(found.to_dict(spectrum=True), allow_nan=False))
        assert [len(point) for point in plain["parameters"]] == [10] * 6
        # At the minimum the residuals are only noise.
        still = flow(model, x, model(x).detach(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        assert still.decay is None
        assert "falling" not in str(still)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"times": [1.0]}, "at least two increasing finite numbers"),
            ({"times": [0.0, 2.0, 1.0]}, "at least two increasing finite numbers"),
            ({"times": [-1.0, 1.0]}, "from 0 on"),
            ({"times": [0.0, math.nan]}, "increasing"),
            ({"rtol": 0.0}, "rtol is 0.0; expected a positive number"),
            ({"atol": math.inf}, "atol is inf"),
            ({"y": randn(3, 1)}, r"y has shape \(3, 1\)"),
        ],
    )
    def test_bad_input(self, change: dict[str, Any], message: str) -> None:
        y: Tensor = change.pop("y", randn(4, 1))
        times = change.pop("times", [0.0, 1.0])
        with pytest.raises(ValueError, match=message):
            flow(mlp([1, 2, 1]).double(), randn(4, 1), y, times, **change)

    def test_too_large_for_stiff_steps(self) -> None:
        model, x = mlp([1, 200, 1]).double(), randn(4, 1)
        with (
            llr.set_memory_budget("1 MB"),
            pytest.raises(ValueError, match="more than the memory budget of 1 MB"),
        ):
            flow(model, x, x, [0.0, 1.0])


def test_a_flow_without_end_gives_up() -> None:
    model = nn.Linear(2, 1).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="after max_evaluations=7 gradients"):
        flow(model, x, x[:, :1], [0.0, 50.0], max_evaluations=7)
    with pytest.raises(ValueError, match="max_evaluations is 0; expected an integer >= 1"):
        flow(model, x, x[:, :1], [0.0, 1.0], max_evaluations=0)
