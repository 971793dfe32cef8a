"""Which modules exact arithmetic can read, and the messages for others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llr
from llr.exact import network as exact
from llr.exact.chain import RULES, Entrywise, dense, register, steps_of

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(torch.sin(self.layer(x)))


class TestModules:
    def test_a_registered_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llr.exact.chain.RULES", dict(RULES))
        register(
            Twice,
            lambda m, s: ([*steps_of(m.layer, s)[0], Entrywise("sin"), Entrywise("sin")], (2,)),
        )
        model = nn.Sequential(nn.Sequential(Twice()), nn.Tanh())
        found = exact.read_network(model, torch.randn(2, 3)).structure
        assert found == "Linear(3, 2), sin, sin, tanh"

    def test_a_model_with_parameters_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kernels = nn.Conv1d(1, 2, 3, bias=False)
                self.read = nn.Parameter(torch.randn(2, 3))

            def forward(self, x: Tensor) -> Tensor:
                return (torch.tanh(self.kernels(x[:, None])) * self.read).sum((1, 2))

        def rule(module: Shared, shape: tuple[int, ...]) -> Any:
            steps, out = steps_of(module.kernels, (1, *shape))
            assert out == (2, 3)
            return [*steps, Entrywise("tanh"), dense("read", module.read, shape=(1, 6))], (1,)

        monkeypatch.setattr("llr.exact.chain.RULES", dict(RULES))
        register(Shared, rule)
        model, x = Shared().double(), torch.randn(4, 5, dtype=torch.float64)
        expected = llr.jacobian(model, x).flatten()
        floats = [float(v) for v in exact.jacobian(model, x, bits=96).entries()]
        torch.testing.assert_close(torch.tensor(floats).double(), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("model", "shape", "message"),
        [
            (
                nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
                (2,),
                r"no rule for LayerNorm '1'; it",
            ),
            (nn.Sequential(nn.Softplus(beta=2.0), nn.Linear(2, 1)), (2,), r"'0' has beta=2.0; exp"),
            (nn.Sequential(nn.GELU("tanh"), nn.Linear(2, 1)), (2,), r"approximate='tanh'"),
            (
                nn.Sequential(nn.Conv1d(1, 1, 2, padding=1, padding_mode="circular")),
                (1, 4),
                "zeros",
            ),
            (nn.Sequential(nn.Conv1d(1, 1, 3)), (1, 2), r"kernel of span 3"),
            (nn.Sequential(nn.Conv1d(2, 1, 3)), (1, 4), r"takes samples of shape \(2, L\)"),
            (nn.Sequential(nn.Tanh(), nn.Linear(3, 1)), (2,), r"takes samples of shape \(..., 3\)"),
            (
                nn.Sequential(nn.Flatten(0), nn.Tanh(), nn.Linear(4, 1)),
                (2,),
                "dimension of the samp",
            ),
        ],
    )
    def test_refusals_name_the_module(
        self, model: nn.Module, shape: tuple[int, ...], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            exact.jacobian(model, torch.zeros(2, *shape), bits=64)

    def test_samples_that_do_not_fit_are_refused(self) -> None:
        model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten())
        with pytest.raises(
            ValueError, match=r"Unflatten '0' cannot take what comes in, of shape \(5,\)"
        ):
            exact.read_network(model, torch.randn(4, 5))

    def test_refusal_says_what_else_to_do(self) -> None:
        with pytest.raises(ValueError, match=r'llr.exact.chain.register, or take method="svd"'):
            exact.jacobian(nn.LayerNorm(2), torch.zeros(2, 2), bits=64)
        with pytest.raises(ValueError, match=r'function, .* method="svd"'):
            exact.jacobian(lambda p, x: x @ p["w"], torch.zeros(2, 2), bits=64)

    def test_hooks_are_refused(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        model[1].register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="Tanh '1' has hooks"):
            exact.jacobian(model, torch.zeros(2, 2), bits=64)

    def test_active_dropout_is_refused(self) -> None:
        model = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
        with pytest.raises(ValueError, match="eval"):
            exact.jacobian(model, torch.zeros(2, 2), bits=64)
