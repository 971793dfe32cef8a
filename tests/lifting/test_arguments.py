"""Arguments that `lift_status` refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from llr.lifting import lift_status
from llr.models import MatrixFactorization

from .cases import (
    dyadic,
    normal,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def frozen(net: nn.Sequential) -> nn.Sequential:
    net[0].weight.requires_grad_(False)
    return net


def broken(net: nn.Sequential) -> nn.Sequential:
    net[2].weight.data[0, 1] = torch.nan
    return net


def kinked() -> nn.Sequential:
    net = dyadic(1, 2, 1, activation="relu")
    net[0].weight.data[0], net[0].bias.data[0] = 2.0, 1.0
    return net


def saturated() -> nn.Sequential:
    net = dyadic(1, 2, 1, activation="softplus")
    net[0].bias.data[1] = 25
    return net


NET = dyadic(1, 2, 2, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lift_status(torch.tanh, NET), TypeError, "narrow is builtin_function_or_method"),
        (lambda: lift_status(NET, None), TypeError, "wide is NoneType; expected an nn.Module"),
        (
            lambda: lift_status(NET, dyadic(2, 2, 2, 1)),
            ValueError,
            "has 1 inputs and 1 outputs, the wide one 2 and 1",
        ),
        (lambda: lift_status(NET, dyadic(1, 2, 2, 2)), ValueError, "the wide one 1 and 2"),
        (
            lambda: lift_status(NET, dyadic(1, 2, 2, 1, seed=1)),
            ValueError,
            "the outputs of the networks differ by up to [0-9.]+ on",
        ),
        (
            lambda: lift_status(MatrixFactorization(2, 2, 2), MatrixFactorization(2, 3, 2)),
            ValueError,
            "narrow is a matrix factorization.*llr.model_rank",
        ),
        (
            lambda: lift_status(
                NET, nn.Sequential(nn.Linear(1, 2), nn.LayerNorm(2), nn.Linear(2, 1))
            ),
            ValueError,
            "llr.model_rank",
        ),
        (lambda: lift_status(frozen(dyadic(1, 2, 1)), NET), ValueError, "'0.weight' is frozen"),
        (
            lambda: lift_status(NET, broken(dyadic(1, 2, 1))),
            ValueError,
            r"is nan at index \(0, 1\)",
        ),
        (lambda: lift_status(NET, NET, bits=1), ValueError, "bits is 1; expected an integer"),
        (lambda: lift_status(NET, NET, max_bits=32), ValueError, "max_bits is 32"),
        (lambda: lift_status(NET, NET, normal(5, 2)), ValueError, r"expected \(n, 1\)"),
        (lambda: lift_status(NET, NET, torch.zeros(0, 1).double()), ValueError, "no samples"),
        (
            lambda: lift_status(*[kinked()] * 2, torch.tensor([[-0.5], [1.0]]).double()),
            ValueError,
            "on sample 0 neuron 0 of a layer of the narrow network has z = 0, the kink",
        ),
        (
            lambda: lift_status(saturated(), saturated()),
            ValueError,
            r"neuron 1 of a layer of the narrow network has z = 2[0-9.]+; torch's softplus",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
