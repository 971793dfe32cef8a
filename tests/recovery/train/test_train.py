"""Ensembles compared with torch's optimisers and autograd, one member at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llr
from llr.inputs.problem import read_problem
from llr.landscape import hessian_spectrum
from llr.models import Conv1dTwoLayer, MatrixFactorization, TwoLayer, mlp
from llr.recovery.train import GD, LM, Adam, Flow, Training, run, train
from llr.recovery.train.data import Data
from llr.recovery.train.machines import (
    Ensemble,
    General,
    Machine,
    machine_for,
)

from .cases import (
    CASES,
    F64,
    half_mean_square,
    placed,
    randn,
    some,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestMachines:
    """Explicit gradients compared with autograd's."""

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
        # Models that only the module itself can run have no explicit gradients.
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
    """Steps compared with torch.optim."""

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
        # With twice the largest stable step, the loss would not decrease.
        assert bool(chosen.loss < train(model, theta, x, y, method=GD(4 / largest), steps=40).loss)

    @pytest.mark.parametrize("scale", [1e-10, 1e-3, 1.0])
    def test_default_rate_of_small_starts(self, scale: float) -> None:
        model, x = TwoLayer(3, 20, bias=False), randn(12, 3)
        y = 2 * torch.tanh(x[:, :1])
        found = train(model, some(model, 4, scale), x, y, method=GD(momentum=0.9), steps=600)
        assert not bool(found.diverged.any())
        assert bool((found.relative < 1e-2).all())


class TestEnsemble:
    """Members are independent of each other."""

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
        assert len(set(found.steps.tolist())) > 1  # some end earlier
        for s, b in enumerate(which.tolist()):
            n = int(counts[b])
            alone = train(self.model, starts[s : s + 1], self.x[b, :n], self.y[b, :n], **options)
            assert int(alone.steps) == int(found.steps[s])
            torch.testing.assert_close(found.theta[s], alone.theta[0], rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(found.relative[s], alone.relative[0], rtol=1e-9, atol=0)

    def test_masks(self) -> None:
        starts, seen = some(self.model, 4), randn(4, 9, seed=5) > -0.3
        x, y = self.x.clone(), self.y.clone()
        x[~seen], y[~seen] = math.nan, math.inf  # masked samples must not be read
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
    """The reported outcome of every member."""

    def test_converged_diverged_and_out_of_steps(self) -> None:
        model, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1, dtype=F64)
        starts, rates = torch.zeros(3, 1, dtype=F64), torch.tensor([0.5, 1e-6, 2.5], dtype=F64)
        found = train(model, starts, x, 2 * x, method=GD(rates), steps=1000, tol=1e-20)
        assert found.status == ("converged", "steps", "diverged")
        # The error halves in each step; 2^-34 is the first below 1e-10. The loss is checked every 32 steps.
        assert found.steps[0] == 64
        assert found.steps[1] == 1000
        assert float(found.theta[0]) == pytest.approx(2, abs=1e-10)
        assert float(found.theta[1]) == pytest.approx(2 * (1 - (1 - 1e-6) ** 1000), rel=1e-9)
        # It stays at the last check with a loss within bounds: (-1.5)^k over 32 steps.
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
            ({"starts": "x"}, TypeError, "starts is str"),
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
            ({"counts": "3"}, TypeError, "counts is str"),
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
