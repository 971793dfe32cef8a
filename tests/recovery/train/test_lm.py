"""Levenberg-Marquardt as a method of `train`: the solver's results with the same interface."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llr.models import mlp
from llr.recovery import Damping, levenberg_marquardt
from llr.recovery.train import LM, train

from .cases import CASES, F64, Tied, half_mean_square, randn, some

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestLM:
    """Levenberg-Marquardt with the interface of the other methods; the solver's own tests check its steps."""

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
        seen[3] = seen[1].flip(0)  # the same number, but other samples
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
        # The first two reach the best fit, which is not good; the squares of the last one overflow.
        assert found.status == ("stalled", "stalled", "diverged")
        best = torch.linalg.lstsq(x, y).solution[:, 0]
        torch.testing.assert_close(found.theta[:2], best.expand(2, 3), rtol=1e-10, atol=1e-10)
        assert "0 converged, 1 diverged, 2 stalled, 0 out of steps" in str(found)
        # So do the squares for a model that the native library does not support.
        far = torch.full((1, 9), 1e200, dtype=F64)
        assert train(Tied(), far, x, randn(9, 3), method=method).status == ("diverged",)
        exact = train(nn.Linear(3, 1, bias=False), starts[:2], x, x @ best[:, None], method=method)
        assert not bool(exact.converged.any())  # no tol was given
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
