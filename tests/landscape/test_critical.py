"""Gradients of losses and their scale, compared with normal equations and Jacobians."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr
from llr.landscape import criticality
from llr.models import MatrixFactorization, mlp

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def flat_error(outputs: Tensor, y: Tensor, loss: str) -> Tensor:
    """The derivative of the loss with respect to the outputs, by an explicit formula."""
    if loss == "mse":
        return ((outputs - y) / len(y)).flatten()
    return ((outputs.softmax(-1) - F.one_hot(y, outputs.shape[-1])) / len(y)).flatten()


class TestNumbers:
    """Loss, gradient and scale have the right values."""

    @pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
    def test_against_the_jacobian(self, loss: str) -> None:
        model, x = mlp([2, 3, 4]).double(), randn(7, 2)
        y = randn(7, 4, seed=1) if loss == "mse" else torch.arange(7) % 4
        found = criticality(model, x, y, loss)
        J = llr.jacobian(model, x).reshape(28, -1)
        outputs = model(x).detach()
        error = flat_error(outputs, y, loss)
        value = ((outputs - y) ** 2).sum() / 14 if loss == "mse" else F.cross_entropy(outputs, y)
        assert found.loss == pytest.approx(float(value), rel=1e-12)
        assert found.gradient_norm == pytest.approx(float((J.T @ error).norm()), rel=1e-10)
        assert found.residual == pytest.approx(float(error.norm()), rel=1e-10)
        sigma = float(llr.svdvals(J)[0])
        assert 0.95 * sigma < found.sigma < (1 + 1e-12) * sigma
        assert found.relative == pytest.approx(found.gradient_norm / (found.sigma * found.residual))
        assert not found

    def test_a_function_as_the_loss(self) -> None:
        model, x, y = mlp([2, 3, 2]).double(), randn(5, 2), randn(5, 2, seed=1)
        named = criticality(model, x, y)
        written = criticality(model, x, y, lambda f, y: (f - y).square().sum() / 10)
        assert written.to_dict() == pytest.approx(named.to_dict())

    def test_targets_of_one_output_may_be_flat(self) -> None:
        model, x = mlp([2, 3, 1]).double(), randn(5, 2)
        y = randn(5, seed=1)
        assert criticality(model, x, y).to_dict() == criticality(model, x, y[:, None]).to_dict()

    def test_integer_samples_and_callables(self) -> None:
        model = MatrixFactorization(3, 2, 4).double()
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        product = (model.A @ model.B).detach().reshape(12, 1)
        assert criticality(model, pairs, product)

        def f(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return x @ params["w"]

        x = randn(6, 2)
        w = randn(2, 1, seed=1)
        assert criticality(f, x, x @ w, params={"w": w})
        assert not criticality(f, x, x @ w + 1, params={"w": w})

    def test_selected_parameters(self) -> None:
        # The last layer is optimal for its inputs: critical if it alone may move.
        model, x, y = mlp([1, 3, 1]).double(), randn(12, 1), randn(12, 1, seed=1)
        hidden = torch.cat((model[:2](x).detach(), torch.ones(12, 1, dtype=F64)), 1)
        best = torch.linalg.lstsq(hidden, y).solution[:, 0]
        with torch.no_grad():
            model[2].weight.copy_(best[None, :3])
            model[2].bias.copy_(best[3:])
        assert criticality(model, x, y, params="2.*")
        assert not criticality(model, x, y)


class TestRounding:
    """Critical means that rounding alone explains the gradient."""

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_least_squares(self, dtype: torch.dtype) -> None:
        # The exact critical point: the solution of the normal equations, in the precision of the model.
        x, y = randn(30, 4), randn(30, 2, seed=1)
        best = torch.linalg.lstsq(x, y).solution.T
        model = nn.Linear(4, 2, bias=False, dtype=dtype)
        with torch.no_grad():
            model.weight.copy_(best)
        found = criticality(model, x.to(dtype).double(), y)
        if dtype == F64:
            assert found
            assert found.relative < 1e-14
        else:
            assert found  # float32 weights cannot be closer
            assert found.relative > 1e-10
            double = nn.Linear(4, 2, bias=False, dtype=F64)
            double.load_state_dict(model.state_dict())
            assert not criticality(double, x, y)  # float64 weights can
        with torch.no_grad():
            model.weight[0, 0] += 1e-3
        assert not criticality(model, x, y)

    def test_zero_loss_needs_no_zero_residual(self) -> None:
        model, x = mlp([2, 5, 3]).double(), randn(20, 2)
        y = model(x).detach()
        rounded = y * (1 + (randn(20, 3, seed=1)).sign() * 2.0**-52)
        found = criticality(model, x, rounded)
        assert found.residual > 0
        assert found.relative > 1e-3  # what is left of the gradient is noise, in a random direction
        assert found
        assert not criticality(model, x, y + 1e-9)

    def test_tolerance_of_ones_own(self) -> None:
        x, y = randn(30, 4), randn(30, 1, seed=1)
        model = nn.Linear(4, 1, bias=False, dtype=F64)
        with torch.no_grad():
            model.weight.copy_(torch.linalg.lstsq(x, y).solution.T * (1 + 1e-6))
        found = criticality(model, x, y)
        assert not found
        assert criticality(model, x, y, rtol=2 * found.relative)
        assert not criticality(model, x, y, rtol=found.relative / 2)

    def test_splitting_keeps_it_critical(self) -> None:
        x, y = randn(9, 1), randn(9, 1, seed=3)
        narrow = minimised(mlp([1, 2, 1], output_bias=False).double(), x, y)
        assert criticality(narrow, x, y, rtol=1e-12)
        wide = mlp([1, 3, 1], output_bias=False).double()
        with torch.no_grad():
            for name in ("weight", "bias"):
                old = getattr(narrow[0], name)
                getattr(wide[0], name).copy_(torch.cat((old, old[:1])))
            a = narrow[2].weight[0]
            wide[2].weight.copy_(torch.stack((a[0] * 0.75, a[1], a[0] * 0.25))[None])
        assert criticality(wide, x, y, rtol=1e-12)
        with torch.no_grad():
            wide[2].weight[0, 2] += 0.5
            wide[2].weight[0, 1] -= 0.5
        assert not criticality(wide, x, y, rtol=1e-3)


def minimised(model: nn.Sequential, x: Tensor, y: Tensor, steps: int = 200) -> nn.Sequential:
    """A critical point near the model, by damped Newton steps on the squared gradient."""
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes.values()])
        values = {n: v.view(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}
        return ((torch.func.functional_call(model, values, (x,)) - y) ** 2).sum() / (2 * len(x))

    damping = 1e-3
    for _ in range(steps):
        g, H = torch.func.grad(loss)(theta), torch.func.jacrev(torch.func.grad(loss))(theta)
        step = torch.linalg.solve(H @ H + damping * torch.eye(len(g), dtype=F64), H @ g)
        if torch.func.grad(loss)(theta - step).norm() < g.norm():
            theta, damping = theta - step, damping / 10
        else:
            damping *= 10
        if g.norm() < 1e-15 or damping > 1e6:
            break
    with torch.no_grad():
        for p, v in zip(
            model.parameters(), theta.split([s.numel() for s in shapes.values()]), strict=True
        ):
            p.copy_(v.view(p.shape))
    return model


class TestReport:
    """The report of a result."""

    def test_text_and_json(self) -> None:
        model, x = mlp([1, 2, 1]).double(), randn(5, 1)
        found = criticality(model, x, model(x).detach())
        assert str(found).startswith("critical: loss 0, gradient 0 (relative 0; ")
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["critical"] is True
        assert str(criticality(model, x, x)).startswith("not critical: loss ")

    def test_the_model_stays_as_it_is(self) -> None:
        model, x = mlp([1, 2, 1]).double(), randn(5, 1)
        before = [p.detach().clone() for p in model.parameters()]
        criticality(model, x, x)
        with torch.inference_mode():
            criticality(model, x, x)
        for p, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, old)
            assert p.grad is None


class TestBadInput:
    """Refused before any work; messages name what was expected."""

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": "samples"}, TypeError, "x is str; expected a tensor"),
            ({"y": "y"}, TypeError, "y is str; expected a tensor"),
            ({"x": randn(0, 2)}, ValueError, "x has no samples"),
            ({"x": randn(4, 3)}, ValueError, r"x has shape \(4, 3\)"),
            ({"y": randn(4, 1)}, ValueError, r"y has shape \(4, 1\); expected \(4, 2\)"),
            ({"y": randn(4)}, ValueError, r"y has shape \(4,\); expected \(4, 2\)"),
            ({"y": randn(4, 2) / 0}, ValueError, r"y is -?inf at index \(0, 0\)"),
            ({"x": randn(4, 2) / 0}, ValueError, "x is -?inf"),
            (
                {"loss": "huber"},
                ValueError,
                "loss is 'huber'; expected one of 'mse', 'cross_entropy'",
            ),
            ({"loss": lambda f, _: f}, ValueError, r"loss returned \(4, 2\)"),
            ({"loss": lambda f, _: float(f.sum())}, ValueError, "loss returned float"),
            ({"rtol": -1.0}, ValueError, "rtol is -1.0"),
            ({"loss": "cross_entropy", "y": torch.arange(4)}, ValueError, "classes from 0 to 1"),
            ({"loss": "cross_entropy", "y": randn(4)}, ValueError, "expected classes as integers"),
            ({"params": "nothing"}, ValueError, "matches no parameter"),
        ],
    )
    def test_refusals(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments: dict[str, Any] = {"x": randn(4, 2), "y": randn(4, 2, seed=1), **change}
        with pytest.raises(error, match=message):
            criticality(
                mlp([2, 3, 2]).double(), arguments.pop("x"), arguments.pop("y"), **arguments
            )

    def test_models(self) -> None:
        x = randn(4, 2)
        noisy = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1)).double()
        with pytest.raises(ValueError, match="Dropout"):
            criticality(noisy, x, x[:, :1])
        random: Callable[..., Tensor] = lambda p, x: x @ p["w"] + torch.randn(1)  # noqa: E731
        with pytest.raises(ValueError, match="random"):
            criticality(random, x, x[:, :1], params={"w": randn(2, 1)})
        pair: Callable[..., Any] = lambda p, x: (x @ p["w"], x)  # noqa: E731
        with pytest.raises(TypeError, match="output is tuple; expected one tensor"):
            criticality(pair, x, x[:, :1], params={"w": randn(2, 1)})
        model = mlp([2, 3, 1]).double()
        batch = {n: torch.stack([p.detach()] * 3) for n, p in model.named_parameters()}
        with pytest.raises(ValueError, match="3 parameter points"):
            criticality(model, x, x[:, :1], params=batch)
