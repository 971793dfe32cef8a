"""Finding the narrow network in wide networks, with known neurons and after training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llr.models import ACTIVATIONS, TwoLayer, mlp
from llr.recovery import Target
from llr.recovery.train import Adam, initial, narrow, train

F64 = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def row(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def planted(activation: str, q: int, bias: bool) -> TwoLayer:
    model = TwoLayer(3, 2, q, activation=activation, bias=bias, output_bias=bias, dtype=F64)
    nn.utils.vector_to_parameters(
        randn(sum(p.numel() for p in model.parameters())), model.parameters()
    )
    return model


def loosened(target: TwoLayer, copies: int, by: float, seed: int = 1) -> TwoLayer:
    """Each neuron in several copies with slightly different parameters."""
    w, a = (t.detach().repeat_interleave(copies, 0) for t in (target[0].weight, target[2].weight.T))
    b = None if target[0].bias is None else target[0].bias.detach().repeat_interleave(copies)
    wide = TwoLayer.of(w, b, a / copies, target[2].bias, activation=target[1])
    with torch.no_grad():
        for k, p in enumerate(wide.parameters()):
            p += by * randn(*p.shape, seed=seed + k)
    return wide


def difference(found: nn.Module, target: nn.Module) -> float:
    x = randn(500, 3, seed=99)
    with torch.no_grad():
        return float((found(x) - target(x)).norm() / target(x).norm())


class TestPlanted:
    """The neurons are present as slightly different copies."""

    @pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
    @pytest.mark.parametrize(("q", "bias"), [(1, False), (2, True)])
    def test_is_found(self, activation: str, q: int, bias: bool) -> None:
        target = planted(activation, q, bias)
        wide, x = loosened(target, 3, 0.02), randn(40, 3, seed=5)
        y = target(x).detach()
        found = narrow(wide, row(wide), x, y)
        assert found.converged
        assert found.width == 2
        assert found.relative <= 1e-20
        assert difference(wide, target) > 1e-3
        assert difference(found.model, target) < 1e-8

    def test_any_angle_and_any_member(self) -> None:
        target = planted("tanh", 1, False)
        x = randn(9, 3, seed=5)
        y = target(x).detach()
        good, bad = loosened(target, 3, 0.05), loosened(planted("tanh", 1, False), 3, 10.0)
        points = torch.stack([row(bad), row(good)])
        assert difference(narrow(good, points, x, y).model, target) < 1e-8
        # Copies further apart than every angle stay separate, and two neurons are not enough.
        few = narrow(good, row(good), x, y, angles=[1e-6], widest=1)
        assert (few.width, few.converged) == (1, False)
        assert difference(few.model, target) > 1e-3

    def test_float32(self) -> None:
        target = planted("tanh", 1, False)
        wide, x = loosened(target, 3, 0.02).float(), randn(20, 3, seed=5)
        found = narrow(wide, row(wide), x, target(x).detach())
        assert found.converged
        assert found.model[0].weight.dtype == F64


class TestHonesty:
    """Neurons that are not present are not found."""

    def test_noise(self) -> None:
        wide, x, y = (
            loosened(planted("tanh", 1, False), 3, 0.02),
            randn(60, 3),
            randn(60, 1, seed=7),
        )
        found = narrow(wide, row(wide), x, y, angles=[1e-9])
        assert not found.converged
        assert 0.1 < found.relative < 1
        with torch.no_grad():
            residual = float((found.model(x) - y).square().sum() / y.square().sum())
        assert residual == pytest.approx(found.relative, rel=1e-9)
        # More neurons fit noise better, but no number of them fits it.
        assert found.width > 2
        assert narrow(wide, row(wide), x, y, angles=[1e-9], widest=2).relative > found.relative

    def test_no_more_parameters_than_data(self) -> None:
        wide, x = loosened(planted("tanh", 1, False), 3, 0.02), randn(8, 3)
        y = randn(8, 1, seed=7)
        assert narrow(wide, row(wide), x, y, angles=[1e-9]).width == 1
        assert narrow(wide, row(wide), x, y, angles=[1e-9], widest=6).converged

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"angles": []}, ValueError, "1 parameter points and 0 angles"),
            ({"angles": [0.0]}, ValueError, "angle is 0.0"),
            ({"widest": 0}, ValueError, "widest is 0"),
            ({"theta": torch.zeros(0, 9, dtype=F64)}, ValueError, "0 parameter points"),
            ({"theta": "0"}, TypeError, "theta is str"),
            ({"theta": torch.full((9,), math.nan)}, ValueError, "theta has 9 NaN"),
            ({"x": randn(5, 4)}, ValueError, "4"),
            ({"y": randn(6, 1)}, ValueError, "as many samples"),
            ({"y": "y"}, TypeError, "y is str"),
            ({"damping": "quick"}, ValueError, "damping is 'quick'"),
            ({"tol": -1.0}, ValueError, "tol is -1.0"),
            ({"model": mlp([2, 2, 2, 1])}, ValueError, "theta has shape"),
        ],
    )
    def test_bad_input(self, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        given: dict[str, Any] = {"model": TwoLayer(2, 3, bias=False), "theta": randn(9)}
        given |= {"x": randn(5, 2), "y": randn(5, 1), **changes}
        required = [given.pop(name) for name in ("model", "theta", "x", "y")]
        with pytest.raises(error, match=message):
            narrow(*required, **given)


def test_trained_networks() -> None:
    # The wide network itself is far from the target at twice the optimistic sample size.
    targets = [Target.separated(TwoLayer(2, 2, bias=False), seed=s) for s in range(10)]
    samples = [target.sample(12, seed=s) for s, target in enumerate(targets)]
    x, y = (torch.stack(t) for t in zip(*samples, strict=True))
    wide = TwoLayer(2, 20, bias=False)
    starts = initial(wide, 10, scale=1e-3, generator=torch.Generator().manual_seed(0))
    annealed = Adam(0.01, weight_decay=0.01, decay_schedule="linear")
    theta = train(wide, starts, x, y, method=annealed, steps=3000).theta
    recovered = 0
    for s, target in enumerate(targets):
        network = TwoLayer(2, 20, bias=False).double()
        nn.utils.vector_to_parameters(theta[s], network.parameters())
        found = narrow(wide, theta[s], x[s], y[s])
        assert target.error(network) > 1e-8
        assert target.error(found.model) < 1e-8 or not found.converged
        recovered += target.error(found.model) < 1e-8
    assert recovered >= 8
