"""Ensembles against torch's own optimisers, autograd and integrators, one member at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import llr
from llr.landscape import flow as stiff_flow
from llr.landscape import hessian_spectrum
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.problem import read_problem
from llr.recovery import Damping, levenberg_marquardt
from llr.recovery.train import GD, LM, Adam, Flow, Training, initial, run, train
from llr.recovery.train.data import Data
from llr.recovery.train.machines import (
    Ensemble,
    Factors,
    General,
    Kernels,
    Layers,
    Machine,
    machine_for,
)

F64 = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def some(model: nn.Module, count: int, scale: float = 0.5, seed: int = 0) -> Tensor:
    return initial(model, count, scale=scale, generator=torch.Generator().manual_seed(seed))


def placed(model: nn.Module, theta: Tensor) -> nn.Module:
    """The model in float64 with these parameters."""
    model = model.double()
    nn.utils.vector_to_parameters(theta, model.parameters())
    return model


def half_mean_square(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).reshape(y.shape) - y).square().sum() / (2 * len(x))


class Own(nn.Module):
    """An MLP that is read off its trace, whose last layer comes first among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)))


class Tied(nn.Module):
    """One matrix in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w) @ self.w


def frozen_bias() -> nn.Module:
    model = mlp([3, 4, 2])
    model[0].bias.requires_grad_(False)
    return model


def other_activation() -> nn.Module:
    model = Conv1dTwoLayer(5, 3, 2)
    model.act = nn.Softplus()
    return model


def vectors(*shape: int) -> Callable[[], Tensor]:
    return lambda: randn(*shape, seed=3)


def index_pairs() -> Tensor:
    return torch.tensor(
        [[0, 0], [1, 3], [2, 1], [1, 3], [0, 2], [2, 2], [1, 0]]
    )  # one of them twice


CASES: dict[str, tuple[Callable[[], nn.Module], type, Callable[[], Tensor], int]] = {
    **{
        name: (lambda name=name: mlp([3, 4, 5, 2], name), Layers, vectors(7, 3), 2)
        for name in ("tanh", "sigmoid", "relu", "softplus", "gelu", "silu", "erf", "sin")
    },
    "no biases": (lambda: TwoLayer(3, 4, bias=False), Layers, vectors(7, 3), 1),
    "deep linear": (lambda: DeepLinear([3, 4, 2]), Layers, vectors(7, 3), 2),
    "linear": (lambda: nn.Linear(3, 2), Layers, vectors(7, 3), 2),
    "traced": (Own, Layers, vectors(7, 3), 2),
    "flattened": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)),
        Layers,
        vectors(7, 2, 3),
        1,
    ),
    "shared kernels": (lambda: Conv1dTwoLayer(5, 3, 2), Kernels, vectors(7, 5), 1),
    "own kernels": (
        lambda: Conv1dTwoLayer(5, 3, 2, shared=False, activation="sin"),
        Kernels,
        vectors(7, 5),
        1,
    ),
    "factorization": (lambda: MatrixFactorization(3, 2, 4), Factors, index_pairs, 1),
    "another activation than its name": (other_activation, General, vectors(7, 5), 1),
    "tied": (Tied, General, vectors(7, 3), 3),
    "frozen": (frozen_bias, General, vectors(7, 3), 2),
    "convolution": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1)),
        General,
        vectors(7, 1, 5),
        1,
    ),
}


class TestMachines:
    """Gradients written out by hand against autograd's."""

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("shared", [True, False])
    def test_against_autograd(self, name: str, shared: bool) -> None:
        build, kind, samples, q = CASES[name]
        model, x, S = build(), samples(), 3
        starts, y = some(model, S), randn(len(x), q, seed=1)
        if not shared:
            x, y = torch.stack([x, x.flip(0), x.roll(1, 0)]), randn(S, len(x), q, seed=1)
        data = Data.of(starts, x, y)
        machine: Machine = machine_for(model, data, starts)
        assert type(machine) is kind
        sets, targets, weights = data.gather(slice(0, S))
        gradient = torch.empty_like(starts)
        ensemble = Ensemble(machine, machine.prepare(sets), targets, weights)
        losses = ensemble.loss(ensemble.gradient(starts, gradient))
        for s in range(S):
            one = model.double()
            trainable = [p for p in one.parameters() if p.requires_grad]
            nn.utils.vector_to_parameters(starts[s], trainable)
            loss = half_mean_square(one, sets[s % len(sets)], targets[s % len(sets)])
            torch.testing.assert_close(losses[s], loss.detach(), rtol=1e-12, atol=1e-12)
            expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainable)])
            torch.testing.assert_close(gradient[s], expected, rtol=1e-12, atol=1e-12)

    def test_general_machine_agrees(self) -> None:
        model, x, y = mlp([3, 4, 2]), randn(7, 3), randn(7, 2, seed=1)
        starts = some(model, 5)
        data = Data.of(starts, x, y)
        found = []
        for machine in (
            machine_for(model, data, starts),
            General(model, read_problem(model, x, None, F64)),
        ):
            gradient = torch.empty_like(starts)
            samples, targets, weights = data.gather(slice(0, 5))
            Ensemble(machine, machine.prepare(samples), targets, weights).gradient(starts, gradient)
            found.append(gradient)
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)

    def test_hooks_run(self) -> None:
        # What only the module itself would run is not written out.
        model = Conv1dTwoLayer(5, 3, 2)
        model.register_forward_hook(lambda _, __, out: 2 * out)
        starts = some(model, 2)
        data = Data.of(starts, randn(7, 5), randn(7, 1))
        assert type(machine_for(model, data, starts)) is General


def torch_steps(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    steps: int,
    before: Callable[[torch.optim.Optimizer, int], None],
) -> Tensor:
    for step in range(steps):
        before(optimiser, step)
        optimiser.zero_grad()
        half_mean_square(model, x, y).backward()
        optimiser.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class TestDescent:
    """Steps against torch.optim."""

    steps = 50

    def compare(
        self,
        method: Any,
        make: Callable[[Any], torch.optim.Optimizer],
        before: Callable[[torch.optim.Optimizer, int], None] = lambda _, __: None,
    ) -> None:
        model, x, y = mlp([3, 4, 4, 2]), randn(7, 3), randn(7, 2, seed=1)
        starts = some(model, 3)
        found = train(model, starts, x, y, method=method, steps=self.steps)
        assert found.steps.tolist() == [self.steps] * 3
        for s in range(3):
            one = placed(model, starts[s])
            optimiser = make(one.parameters())
            expected = torch_steps(one, optimiser, x, y, self.steps, before)
            torch.testing.assert_close(found.theta[s], expected, rtol=1e-12, atol=1e-12)
            loss = half_mean_square(one, x, y).detach()
            torch.testing.assert_close(found.loss[s], loss, rtol=1e-11, atol=0)
            torch.testing.assert_close(
                found.relative[s], 2 * 7 * loss / y.square().sum(), rtol=1e-11, atol=0
            )

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_gradient_descent(self, momentum: float) -> None:
        self.compare(
            GD(lr=0.05, momentum=momentum),
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=momentum),
        )

    def test_adam(self) -> None:
        self.compare(
            Adam(lr=0.02, betas=(0.8, 0.95)), lambda p: torch.optim.Adam(p, 0.02, (0.8, 0.95))
        )

    @pytest.mark.parametrize("decoupled", [True, False])
    @pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "own"])
    def test_annealed_decay(self, decoupled: bool, schedule: str) -> None:
        factors: dict[str, Callable[[float], float]] = {
            "constant": lambda _: 1.0,
            "linear": lambda part: 1 - part,
            "cosine": lambda part: 0.5 + 0.5 * math.cos(math.pi * part),
            "own": lambda part: (1 - part) ** 3,
        }
        factor = factors[schedule]

        def anneal(optimiser: torch.optim.Optimizer, step: int) -> None:
            optimiser.param_groups[0]["weight_decay"] = 0.3 * factor(step / self.steps)

        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        self.compare(
            Adam(
                lr=0.02,
                weight_decay=0.3,
                decoupled=decoupled,
                decay_schedule=factor if schedule == "own" else schedule,
            ),
            lambda p: kind(p, lr=0.02, weight_decay=0.3),
            anneal,
        )

    def test_annealed_rate(self) -> None:
        def anneal(optimiser: torch.optim.Optimizer, step: int) -> None:
            optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / self.steps)

        self.compare(
            Adam(lr=0.02, weight_decay=0.1, lr_schedule="linear"),
            lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
            anneal,
        )

    def test_rates_of_members(self) -> None:
        model, x, y = mlp([3, 4, 2]), randn(7, 3), randn(7, 2, seed=1)
        starts, rates = some(model, 3), torch.tensor([0.01, 0.02, 0.1], dtype=F64)
        found = train(model, starts, x, y, method=GD(rates), steps=40)
        for s in range(3):
            alone = train(model, starts[s : s + 1], x, y, method=GD(float(rates[s])), steps=40)
            torch.testing.assert_close(found.theta[s], alone.theta[0], rtol=1e-13, atol=1e-13)

    def test_default_rate(self) -> None:
        # At a minimum the tangent kernel is the Hessian.
        model = placed(mlp([2, 4, 1]), some(mlp([2, 4, 1]), 1)[0])
        x = randn(9, 2)
        y = model(x).detach()
        largest = float(hessian_spectrum(model, x, y).eigenvalues.max())
        theta = nn.utils.parameters_to_vector(model.parameters()).detach()[None] + 1e-3
        given = train(model, theta, x, y, method=GD(1 / largest), steps=10)
        chosen = train(model, theta, x, y, method=GD(), steps=10)
        moved = (given.theta - theta).norm()
        assert float((chosen.theta - given.theta).norm() / moved) < 0.02
        # Twice the largest stable step, planted: it would not descend.
        assert bool(chosen.loss < train(model, theta, x, y, method=GD(4 / largest), steps=40).loss)

    @pytest.mark.parametrize("scale", [1e-10, 1e-3, 1.0])
    def test_default_rate_of_small_starts(self, scale: float) -> None:
        model, x = TwoLayer(3, 20, bias=False), randn(12, 3)
        y = 2 * torch.tanh(x[:, :1])
        found = train(model, some(model, 4, scale), x, y, method=GD(momentum=0.9), steps=600)
        assert not bool(found.diverged.any())
        assert bool((found.relative < 1e-2).all())


class TestEnsemble:
    """Members know nothing of each other."""

    model = mlp([2, 5, 1])
    x, y = randn(4, 9, 2), randn(4, 9, 1, seed=1)

    @pytest.mark.parametrize(
        "method", [GD(0.05, 0.9), GD(momentum=0.5), Adam(0.01), Flow(3.0), LM("slow")]
    )
    def test_alone_and_among_others(self, method: Any) -> None:
        starts = some(self.model, 6)
        which = torch.tensor([2, 0, 3, 1, 1, 0])
        counts = torch.tensor([3, 9, 5, 1])
        options: dict[str, Any] = {"method": method, "steps": 200, "tol": 0.05}
        found = train(self.model, starts, self.x, self.y, which=which, counts=counts, **options)
        assert len(set(found.steps.tolist())) > 1  # some are done earlier
        for s, b in enumerate(which.tolist()):
            n = int(counts[b])
            alone = train(self.model, starts[s : s + 1], self.x[b, :n], self.y[b, :n], **options)
            assert int(alone.steps) == int(found.steps[s])
            torch.testing.assert_close(found.theta[s], alone.theta[0], rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(found.relative[s], alone.relative[0], rtol=1e-9, atol=0)

    def test_masks(self) -> None:
        starts, seen = some(self.model, 4), randn(4, 9, seed=5) > -0.3
        x, y = self.x.clone(), self.y.clone()
        x[~seen], y[~seen] = math.nan, math.inf  # what nobody sees
        found = train(self.model, starts, x, y, counts=seen, method=GD(0.05), steps=30)
        for s in range(4):
            alone = train(
                self.model,
                starts[s : s + 1],
                x[s, seen[s]],
                y[s, seen[s]],
                method=GD(0.05),
                steps=30,
            )
            torch.testing.assert_close(found.theta[s], alone.theta[0], rtol=1e-12, atol=1e-12)

    def test_groups(self, monkeypatch: pytest.MonkeyPatch) -> None:
        starts, which = some(self.model, 11), torch.arange(11) % 4
        calls: list[tuple[int, int]] = []
        options: dict[str, Any] = {"which": which, "steps": 40, "record": 4, "tol": 1e-2}
        whole = train(self.model, starts, self.x, self.y, **options)
        monkeypatch.setattr(run, "_CACHED_BYTES", 0)
        monkeypatch.setattr(run, "_LEAST_AT_ONCE", 3)
        parts = train(
            self.model, starts, self.x, self.y, progress=lambda *a: calls.append(a), **options
        )
        torch.testing.assert_close(whole.theta, parts.theta, rtol=1e-12, atol=1e-12)
        assert whole.history is not None
        assert parts.history is not None
        torch.testing.assert_close(whole.history.theta, parts.history.theta, rtol=1e-12, atol=1e-12)
        assert whole.status == parts.status
        assert calls[0] == (0, 11)
        assert calls[-1][1] <= 2

    def test_the_model_stays_as_it_is(self) -> None:
        before, starts = [p.detach().clone() for p in self.model.parameters()], some(self.model, 4)
        kept = starts.clone()
        train(self.model, starts, self.x, self.y, steps=3)
        assert torch.equal(starts, kept)
        assert all(torch.equal(p, b) for p, b in zip(self.model.parameters(), before, strict=True))

    def test_float32(self) -> None:
        starts = some(self.model, 4)
        fine = train(self.model, starts, self.x, self.y, method=GD(0.05), steps=40)
        coarse = train(
            self.model, starts.float(), self.x.float(), self.y.float(), method=GD(0.05), steps=40
        )
        assert coarse.theta.dtype == coarse.loss.dtype == torch.float32
        torch.testing.assert_close(coarse.theta.double(), fine.theta, rtol=1e-4, atol=1e-5)

    def test_inference_mode(self) -> None:
        with torch.inference_mode():
            starts = some(self.model, 4)
            found = train(self.model, starts, self.x, self.y, steps=3)
        assert bool(found.loss.isfinite().all())


class TestOutcome:
    """What is reported of every member."""

    def test_converged_diverged_and_out_of_steps(self) -> None:
        model, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1, dtype=F64)
        starts, rates = torch.zeros(3, 1, dtype=F64), torch.tensor([0.5, 1e-6, 2.5], dtype=F64)
        found = train(model, starts, x, 2 * x, method=GD(rates), steps=1000, tol=1e-20)
        assert found.status == ("converged", "steps", "diverged")
        # The error halves per step: 2^-34 is the first below 1e-10; looked at every 32 steps.
        assert found.steps[0] == 64
        assert found.steps[1] == 1000
        assert float(found.theta[0]) == pytest.approx(2, abs=1e-10)
        assert float(found.theta[1]) == pytest.approx(2 * (1 - (1 - 1e-6) ** 1000), rel=1e-9)
        # It is left where its loss was last seen within bounds: (-1.5)^k over 32 steps.
        assert float(found.theta[2] - 2) in (-2.0, pytest.approx(-2 * 1.5**32, rel=1e-9))
        assert bool(found.loss.isfinite().all())
        assert "1 converged, 1 diverged, 1 out of steps after 1000" in str(found)
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["status"] == ["converged", "steps", "diverged"]

    def test_overflow_is_divergence(self) -> None:
        model, x = mlp([1, 3, 1], "relu"), randn(5, 1)
        found = train(model, some(model, 2), x, x, method=GD(1e200), steps=5)
        assert found.status == ("diverged", "diverged")
        assert bool(found.theta.isfinite().all())

    def test_targets_of_zero(self) -> None:
        model, x = nn.Linear(1, 1, bias=False), torch.ones(4, 1, dtype=F64)
        found = train(model, torch.ones(1, 1, dtype=F64), x, 0 * x, method=GD(0.5), steps=2)
        assert float(found.relative) == pytest.approx(0.25**2)
        two = train(
            nn.Linear(1, 2, bias=False), torch.ones(1, 2, dtype=F64), x, torch.cat([0 * x] * 2, 1)
        )
        assert float(two.relative) == 2 * float(two.loss) / 2  # a mean over samples and outputs

    def test_history(self) -> None:
        model, x, y = mlp([2, 4, 1]), randn(6, 2), randn(6, 1, seed=1)
        starts = some(model, 3)
        found = train(model, starts, x, y, method=GD(0.05), steps=200, record=7)
        history = found.history
        assert history is not None
        at = history.at.tolist()
        assert (at[0], at[1], at[-1]) == (0, 1, 200)
        assert torch.equal(history.theta[0], starts)
        assert torch.equal(history.theta[-1], found.theta)
        assert torch.equal(history.relative[-1], found.relative)
        for k, step in enumerate(at[1:], 1):
            shorter = train(model, starts, x, y, method=GD(0.05), steps=step)
            torch.testing.assert_close(history.theta[k], shorter.theta, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(history.loss[k], shorter.loss, rtol=1e-12, atol=0)
        chosen = train(model, starts, x, y, method=GD(0.05), steps=200, record=[200, 0, 3]).history
        assert chosen is not None
        assert chosen.at.tolist() == [0, 3, 200]
        assert train(model, starts, x, y, steps=2).history is None

    def test_history_after_the_end(self) -> None:
        model, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1, dtype=F64)
        starts, rates = torch.zeros(2, 1, dtype=F64), torch.tensor([0.5, 0.1], dtype=F64)
        marks = [0, 10, 64, 100, 400, 1000]
        found = train(model, starts, x, x, method=GD(rates), steps=1000, tol=1e-12, record=marks)
        assert found.history is not None
        theta = found.history.theta[..., 0]
        assert theta.shape == (6, 2)
        assert bool((theta[3:, 0] == found.theta[0, 0]).all())
        assert torch.equal(theta[-1], found.theta[:, 0])
        assert float(theta[1, 1]) == pytest.approx(1 - 0.9**10)


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
    """Gradient flow against other integrators, and against closed forms."""

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
        # What grows from 1e-8 by e^(t |v|) is right in relative terms too.
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


class TestLM:
    """Levenberg-Marquardt behind the face of the others; its steps are tested with the solver itself."""

    @pytest.mark.parametrize("name", CASES)
    def test_is_the_solver(self, name: str) -> None:
        build, _, samples, q = CASES[name]
        model, x = build(), samples()
        starts, y = some(model, 4), randn(len(x), q, seed=1)
        found = train(model, starts, x, y, method=LM(), steps=30, tol=1e-3)
        fits = levenberg_marquardt(model, starts, x, y, damping=Damping(iterations=30), tol=1e-3)
        assert torch.equal(found.theta, fits.theta)
        assert torch.equal(found.steps, fits.iterations)
        assert found.status == tuple("steps" if s == "limit" else s for s in fits.status)
        for s in range(4):
            one = model.double()
            nn.utils.vector_to_parameters(
                found.theta[s], [p for p in one.parameters() if p.requires_grad]
            )
            loss = half_mean_square(one, x, y).detach()
            torch.testing.assert_close(found.loss[s], loss, rtol=1e-9, atol=1e-13)
            relative = 2 * len(x) * loss / y.square().sum()
            torch.testing.assert_close(found.relative[s], relative, rtol=1e-9, atol=1e-13)

    def test_masks_and_sample_sizes(self) -> None:
        model = mlp([2, 3, 1])
        starts, x, y = some(model, 6), randn(4, 9, 2), randn(4, 9, 1, seed=1)
        seen = randn(4, 9, seed=5) > -0.3
        seen[3] = seen[1].flip(0)  # as many, but others
        assert len(seen.sum(1).unique()) == 3
        which = torch.tensor([3, 1, 0, 2, 1, 3])
        found = train(
            model, starts, x, y, which=which, counts=seen, method=LM("slow"), steps=60, tol=1e-2
        )
        assert len(set(found.steps.tolist())) > 2
        for s, b in enumerate(which.tolist()):
            alone = levenberg_marquardt(
                model,
                starts[s : s + 1],
                x[b, seen[b]],
                y[b, seen[b]],
                damping=Damping(10.0, 0.7, 2.0, 40, 60),
                tol=1e-2,
            )
            assert torch.equal(found.theta[s], alone.theta[0])

    def test_ends(self) -> None:
        x, y = randn(9, 3), randn(9, 1, seed=1)
        starts = torch.cat([randn(2, 3), torch.full((1, 3), 1e200, dtype=F64)])
        method = LM(Damping(iterations=200, progress=0.0))
        found = train(nn.Linear(3, 1, bias=False), starts, x, y, method=method, tol=1e-20)
        # The best there is, and it is not good; the last one's squares overflow.
        assert found.status == ("stalled", "stalled", "diverged")
        best = torch.linalg.lstsq(x, y).solution[:, 0]
        torch.testing.assert_close(found.theta[:2], best.expand(2, 3), rtol=1e-10, atol=1e-10)
        assert "0 converged, 1 diverged, 2 stalled, 0 out of steps" in str(found)
        # So do those of a model that the native library does not know.
        far = torch.full((1, 9), 1e200, dtype=F64)
        assert train(Tied(), far, x, randn(9, 3), method=method).status == ("diverged",)
        exact = train(nn.Linear(3, 1, bias=False), starts[:2], x, x @ best[:, None], method=method)
        assert not bool(exact.converged.any())  # nobody asked
        assert bool((exact.relative < 1e-25).all())
        few = {"method": LM(Damping(iterations=7)), "steps": 20}
        assert train(mlp([3, 4, 1]), some(mlp([3, 4, 1]), 2), x, y, **few).steps.tolist() == [7, 7]

    def test_history(self) -> None:
        model, x, y = mlp([2, 4, 1]), randn(6, 2), randn(6, 1, seed=1)
        starts, options = some(model, 3), {"method": LM(), "tol": 1e-10}
        calls: list[tuple[int, int]] = []
        found = train(
            model,
            starts,
            x,
            y,
            steps=40,
            record=6,
            progress=lambda *call: calls.append(call),
            **options,
        )
        history = found.history
        assert history is not None
        assert torch.equal(history.theta[0], starts)
        assert torch.equal(history.theta[-1], found.theta)
        assert torch.equal(history.relative[-1], found.relative)
        assert bool((history.loss.diff(dim=0) <= 0).all())
        for k, step in enumerate(history.at.tolist()[1:], 1):
            shorter = train(model, starts, x, y, steps=step, **options)
            assert torch.equal(history.theta[k], shorter.theta)
        assert calls == [(0, 3), (int(found.steps.max()), 0)]

    def test_float32(self) -> None:
        with pytest.raises(TypeError, match=r"starts is torch.float32; LM computes in float64"):
            train(
                mlp([1, 2, 1]),
                some(mlp([1, 2, 1]), 1).float(),
                *[randn(3, 1).float()] * 2,
                method=LM(),
            )


@dataclass(frozen=True)
class Completions:
    """Matrices of rank r, d x d, with n entries seen of each."""

    rank: int
    matrices: Tensor
    pairs: Tensor
    """(count, n, 2)"""

    d = 5

    @classmethod
    def of(cls, rank: int, n: int, count: int, draws: int, seed: int = 0) -> Completions:
        """Normal factors. Of the masks drawn, the one that sees the tangent space of the matrix best."""
        g, d = torch.Generator().manual_seed(1000 * rank + n + 10_000 * seed), cls.d
        best = min(n, rank * (2 * d - rank))
        matrices, chosen = list[Tensor](), list[Tensor]()
        while len(chosen) < count:
            A, B = (torch.randn(d, rank, dtype=F64, generator=g) for _ in range(2))
            model = MatrixFactorization.of(A, B.mT)
            pairs = model.pairs()
            J = llr.jacobian(model, pairs)[:, 0]
            masks = torch.stack([torch.randperm(d * d, generator=g)[:n] for _ in range(draws)])
            spectra = torch.linalg.svdvals(J[masks])
            condition = spectra[:, best - 1] / spectra[:, 0]
            if float(condition.max()) > 1e-10:  # else none has full rank
                matrices.append(A @ B.mT)
                chosen.append(pairs[masks[condition.argmax()]])
        return cls(rank, torch.stack(matrices), torch.stack(chosen))

    @property
    def entries(self) -> Tensor:
        return torch.stack(
            [M[i, j] for M, (i, j) in zip(self.matrices, self.pairs.mT, strict=True)]
        )[..., None]

    @property
    def rates(self) -> Tensor:
        """One over a bound on the curvature at the solution, from what is seen."""
        n = self.pairs.shape[1]
        return n / (2 * self.d * self.entries.square().mean((1, 2)).sqrt())

    def products(self, theta: Tensor, width: int) -> Tensor:
        A, B = theta.split(self.d * width, -1)
        return A.unflatten(-1, (self.d, width)) @ B.unflatten(-1, (width, self.d))

    def recovered(self, theta: Tensor, width: int, which: Tensor | slice = slice(None)) -> Tensor:
        """Which matrices are found, all entries of them, to 1e-8."""
        true = self.matrices[which]
        error = (self.products(theta, width) - true).square().sum((1, 2))
        return error < 1e-8 * true.square().sum((1, 2))

    def descended(self, scale: float, width: int) -> Tensor:
        """Which matrices gradient descent from small factors of this width finds."""
        model = MatrixFactorization(self.d, width, self.d)
        found = train(
            model,
            some(model, len(self.pairs), scale),
            self.pairs,
            self.entries,
            method=GD(self.rates, momentum=0.9),
            steps=5000,
            tol=1e-20,
        )
        return self.recovered(found.theta, width)


class TestMatrixCompletion:
    """Small initialisation prefers low rank: recovery begins at r (2d - r) entries."""

    @pytest.mark.parametrize("rank", [1, 2])
    def test_gradient_descent(self, rank: int) -> None:
        d = Completions.d
        least = rank * (2 * d - rank)
        below = Completions.of(rank, least - 1, count=20, draws=400)
        exact = Completions.of(rank, least, count=20, draws=400)
        assert not bool(below.descended(1e-30, d).any())
        assert int(exact.descended(1e-30, d).sum()) >= 18
        assert int(exact.descended(1e-30, rank).sum()) >= 18
        assert int(exact.descended(1e-3, d).sum()) <= 3  # not small enough: other ranks grow, too

    def test_gradient_flow(self) -> None:
        exact, d = Completions.of(1, 9, count=10, draws=400), Completions.d
        model = MatrixFactorization(d, d, d)
        entries = (
            exact.entries * exact.rates[:, None, None]
        )  # in units in which curvatures are alike
        found = train(
            model,
            some(model, 10, 1e-30),
            exact.pairs,
            entries,
            method=Flow(6000.0, rtol=1e-6),
        )
        units = replace(exact, matrices=exact.matrices * exact.rates[:, None, None])
        assert int(units.recovered(found.theta, d).sum()) >= 9

    @pytest.mark.parametrize("rank", [1, 2])
    def test_levenberg_marquardt(self, rank: int) -> None:
        # Of the right width, and from many starts, it asks nothing of the mask but the full rank.
        d, each = Completions.d, 16
        least = rank * (2 * d - rank)
        narrow, wide = (MatrixFactorization(d, width, d) for width in (rank, d))
        which = torch.arange(20).repeat_interleave(each)
        for n, expected in ((least - 1, 0.0), (least, 1.0)):
            case = Completions.of(rank, n, count=20, draws=1)
            data = {"x": case.pairs, "y": case.entries, "which": which}
            found = train(narrow, some(narrow, len(which), 0.1), method=LM(), tol=1e-20, **data)
            assert bool(found.converged.view(20, each).any(1).all())
            right = case.recovered(found.theta, rank, which)[found.converged].double().mean()
            # The entries of a spanning tree determine a matrix of rank 1; for rank 2 some masks leave
            # isolated others (26 of 400 do).
            lowest = 0.9 if (rank, n) == (2, least) else expected
            assert lowest <= float(right) <= expected
            free = train(wide, some(wide, len(which), 1e-3), method=LM(), tol=1e-20, **data)
            assert bool(free.converged.all())
            assert not bool(case.recovered(free.theta, d, which).any())


class TestInitial:
    """The distribution of starts."""

    def test_normal(self) -> None:
        theta = some(TwoLayer(3, 4), 2000, 1e-6)
        assert theta.shape == (2000, 20)
        assert theta.dtype == F64
        assert float(theta.std()) == pytest.approx(1e-6, rel=0.03)
        assert abs(float(theta.mean())) < 5e-8

    @pytest.mark.parametrize("kind", ["fan-in", "torch"])
    def test_layers(self, kind: str) -> None:
        model = mlp([3, 16, 2])
        theta = initial(model, 4000, kind=kind, scale=2.0, dtype=torch.float32)
        assert theta.dtype == torch.float32
        uniform = math.sqrt(3) if kind == "torch" else 1
        for name, columns in llr.layout(model).items():
            inputs = 3 if name.startswith("0") else 16
            expected = 2 / math.sqrt(inputs) / uniform
            assert float(theta[:, columns].std()) == pytest.approx(expected, rel=0.03)
            if kind == "torch":
                assert float(theta[:, columns].abs().max()) <= 2 / math.sqrt(inputs)

    def test_generator(self) -> None:
        model = mlp([1, 2, 1])
        assert torch.equal(some(model, 3, seed=4), some(model, 3, seed=4))
        assert not torch.equal(some(model, 3, seed=4), some(model, 3, seed=5))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"count": 0}, "count is 0"),
            ({"scale": 0.0}, "scale is 0.0"),
            ({"scale": math.nan}, "scale is nan"),
            ({"kind": "small"}, "kind is 'small'"),
            ({"model": Conv1dTwoLayer(3, 2, 1), "kind": "torch"}, "is for MLPs"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], message: str) -> None:
        options = {"model": mlp([1, 2, 1]), "count": 1, **options}
        with pytest.raises(ValueError, match=message):
            initial(options.pop("model"), options.pop("count"), **options)


class TestBadInput:
    """Refused before any work."""

    model = mlp([2, 3, 1])

    def call(self, **changes: Any) -> Training:
        arguments: dict[str, Any] = {
            "model": self.model,
            "starts": some(self.model, 2),
            "x": randn(5, 2),
            "y": randn(5, 1),
            "steps": 3,
            **changes,
        }
        required = [arguments.pop(name) for name in ("model", "starts", "x", "y")]
        return train(*required, **arguments)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"starts": randn(13)}, ValueError, r"starts has shape \(13,\)"),
            ({"starts": randn(2, 12)}, ValueError, "12 columns; the model has 13"),
            ({"starts": randn(2, 13) / 0}, ValueError, "starts has 26 NaN or Inf"),
            ({"starts": torch.zeros(2, 13).long()}, TypeError, "starts is torch.int64"),
            ({"starts": [1.0]}, TypeError, "starts is list"),
            ({"x": randn(5, 3)}, ValueError, "3"),
            ({"x": randn(4, 2)}, ValueError, "as many targets as samples"),
            ({"x": randn(5, 2).float()}, TypeError, "x is torch.float32"),
            ({"x": randn(5, 2) * math.nan}, ValueError, "x has 10 NaN or Inf"),
            ({"y": randn(5)}, ValueError, r"one output as y\[:, None\]"),
            ({"y": randn(5, 2)}, ValueError, "y has 2 numbers for each of 5 samples"),
            ({"y": randn(5, 1) * math.inf}, ValueError, "y has 5 NaN or Inf"),
            ({"y": randn(3, 5, 1), "x": randn(3, 5, 2)}, ValueError, "3 data sets and 2 members"),
            ({"which": torch.tensor([0, 1])}, ValueError, "expected 0 to 0"),
            ({"which": torch.tensor([0])}, ValueError, r"expected int64 \(2,\)"),
            ({"counts": torch.tensor([6])}, ValueError, "counts has 6"),
            ({"counts": torch.tensor([0])}, ValueError, "data set 0 sees no sample"),
            ({"counts": torch.tensor([1.0])}, ValueError, "counts is torch.float32"),
            ({"counts": 3}, TypeError, "counts is int"),
            ({"steps": 0}, ValueError, "steps is 0"),
            ({"tol": -1.0}, ValueError, "tol is -1.0"),
            ({"record": 1}, ValueError, "record is 1"),
            ({"record": [4]}, ValueError, "expected steps from 0 to 3"),
            ({"record": [0.5]}, ValueError, "expected steps from 0 to 3"),
            ({"method": GD(0.0)}, ValueError, "lr is 0.0"),
            ({"method": GD(math.nan)}, ValueError, "lr is nan"),
            ({"method": GD(torch.ones(3))}, ValueError, r"lr has shape \(3,\)"),
            ({"method": GD(0.1, 1.0)}, ValueError, "momentum is 1.0"),
            ({"method": Adam(-1.0)}, ValueError, "lr is -1.0"),
            ({"method": Adam(betas=(0.9, 1.0))}, ValueError, r"betas\[1\] is 1.0"),
            ({"method": Adam(weight_decay=-1.0)}, ValueError, "weight_decay is -1.0"),
            ({"method": Adam(decay_schedule="steep")}, ValueError, "schedule is 'steep'"),
            ({"method": Flow(0.0)}, ValueError, "time is 0.0"),
            ({"method": Flow(1.0, rtol=0.0)}, ValueError, "rtol is 0.0"),
            ({"method": Flow(1.0), "record": [2.0]}, ValueError, "expected times from 0 to 1"),
            ({"method": LM("quick")}, ValueError, "damping is 'quick'; expected 'fast', 'slow'"),
            ({"method": LM(3)}, TypeError, "damping is int"),  # type: ignore[arg-type]
            ({"method": "adam"}, TypeError, "method is str"),
            ({"model": lambda x: x}, TypeError, "expected an nn.Module"),
            (
                {"model": nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1))},
                ValueError,
                "is active",
            ),
        ],
    )
    def test_refused(self, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            self.call(**changes)

    def test_pairs_outside(self) -> None:
        model = MatrixFactorization(2, 1, 2)
        with pytest.raises((ValueError, IndexError), match="index"):
            train(model, some(model, 1), torch.tensor([[0, 2]]), randn(1, 1), steps=1)

    def test_memory(self) -> None:
        with (
            llr.set_memory_budget("1 MB"),
            pytest.raises(ValueError, match="a history of 2000 points"),
        ):
            self.call(steps=5000, starts=some(self.model, 20), record=2000)
