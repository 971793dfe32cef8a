"""recover() of functions that it may call, and of data in any units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llr.recovery import recover

pytestmark = pytest.mark.filterwarnings(
    "ignore:llr runs without its native library:RuntimeWarning", "ignore:neurons .* differ by"
)

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def asked_function(points: Tensor) -> Tensor:
    w = torch.tensor([[1.0], [2.0]], dtype=points.dtype)
    return 1.5 * torch.tanh(points @ w + 0.5)


class TestFunctions:
    def test_that_write_into_their_argument(self) -> None:
        """Functions get copies: neither the samples nor the fresh points change."""
        x = normal(0, 30, 2)
        before = x.clone()

        def function(points: Tensor) -> Tensor:
            values = asked_function(points)
            points.mul_(2.0)
            return values

        found = recover(x, function, max_width=2)
        assert torch.equal(x, before)
        assert found.status == "recovered"
        with torch.no_grad():
            assert torch.allclose(found.model(x), asked_function(x), atol=1e-12)

    @pytest.mark.parametrize(
        "given",
        [
            lambda y: y[:, 0],
            lambda y: y.numpy(),
            lambda y: y[:, 0].numpy(),
            lambda y: y.tolist(),
        ],
    )
    def test_that_give_what_y_may_be(self, given: Callable[[Tensor], Tensor]) -> None:
        found = recover(normal(0, 30, 2), lambda x: given(asked_function(x)), max_width=2)
        assert (found.status, found.width) == ("recovered", 1)

    def test_of_another_dtype(self) -> None:
        """The message says what to do, and is not torch's."""
        model = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
        for function, words in [
            (model, "y computes in torch.float32, and x is torch.float64"),
            (lambda x: model(x), "y computes in another dtype, and x is torch.float64"),
        ]:
            with pytest.raises(TypeError, match=words) as caught:
                recover(normal(0, 30, 2), function, max_width=2)
            assert "model.double()" in str(caught.value)
            assert "mat1" not in str(caught.value)
        with pytest.raises(ValueError, match="y cannot be evaluated on samples of shape"):
            recover(normal(0, 30, 2), lambda x: x @ torch.ones(3, dtype=F64), max_width=2)

    def test_of_one_input(self) -> None:
        """x may have shape (n,), like y; so may the result of a sampler."""
        x = normal(0, 20, 1)[:, 0]
        for found in (
            recover(x, torch.tanh(2 * x + 1), max_width=2),
            recover(
                x, lambda t: torch.tanh(2 * t + 1), max_width=2, sampler=lambda m: normal(5, m)
            ),
        ):
            assert (found.status, found.width) == ("recovered", 1)


class TestUnits:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("unit", [1e-310, 1e-200, 1e-155, 1e160, 1e300])
    def test_too_far_from_one(self, unit: float) -> None:
        x = normal(0, 20, 2)
        for name, given in [
            ("x", (x * unit, asked_function(x))),
            ("y", (x, asked_function(x) * unit)),
        ]:
            with pytest.raises(ValueError, match=rf"{name} has numbers of size .* another unit"):
                recover(*given, max_width=2)
        with pytest.raises(ValueError, match="y has numbers of size"):
            recover(x, lambda points: asked_function(points) * unit, max_width=2)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("x_unit", [1e-119, 1.0, 1e119])
    @pytest.mark.parametrize("y_unit", [1e-119, 1e119])
    def test_that_work(self, x_unit: float, y_unit: float) -> None:
        """The same claims and the same relative numbers, even where squares over- or underflow."""
        x = normal(0, 20, 2)
        y = asked_function(x)
        plain = recover(x, y, max_width=2, budget=200)
        far = recover(x * x_unit, y * y_unit, max_width=2, budget=200)
        assert (far.status, far.width) == (plain.status, plain.width) == ("recovered", 1)
        assert far.evidence is not None
        assert plain.evidence is not None
        assert far.evidence.eps == pytest.approx(plain.evidence.eps, rel=0.5)
        noisy = y + 1e-3 * normal(4, 20, 1)
        for std in (None, 1e-3):
            results = [
                recover(
                    x * a,
                    noisy * b,
                    max_width=1,
                    budget=100,
                    noise_std=None if std is None else std * b,
                )
                for a, b in ((1.0, 1.0), (x_unit, y_unit))
            ]
            assert results[0].status == results[1].status
            assert results[1].train_error == pytest.approx(results[0].train_error, rel=1e-6)
