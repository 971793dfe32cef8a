"""What llr.relu refuses, each with a message of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import llr
from llr.models import NormalizedTwoLayer, SkipTwoLayer, TwoLayer, mlp

X = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 2)))
Y = X[:, 0].clone()
W = torch.tensor([[1.0, 2.0]]).double()
GOOD = TwoLayer.of(W, None, torch.ones(1, 1).double(), activation="relu")


def at(value: float) -> torch.Tensor:
    x = X.clone()
    x[2, 1] = value
    return x


def with_weights(value: float) -> TwoLayer:
    return TwoLayer.of(W * value, None, torch.ones(1, 1).double(), activation="relu")


def equal() -> torch.Tensor:
    x = X.clone()
    x[4] = x[1]
    return x


def zero() -> torch.Tensor:
    x = X.clone()
    x[3] = 0
    return x


TARGETS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "biases": (
        lambda: TwoLayer(2, 1, activation="relu"),
        ValueError,
        "target has biases; expected none",
    ),
    "output bias": (
        lambda: TwoLayer(2, 1, activation="relu", bias=False, output_bias=True),
        ValueError,
        "append a column of ones",
    ),
    "tanh": (lambda: TwoLayer(2, 1, bias=False), ValueError, "activation 'tanh'; expected 'relu'"),
    "outputs": (
        lambda: TwoLayer(2, 1, 3, activation="relu", bias=False),
        ValueError,
        "3 outputs; expected 1",
    ),
    "inputs": (
        lambda: TwoLayer(3, 1, activation="relu", bias=False),
        ValueError,
        "takes 3 inputs, but x has 2 columns",
    ),
    "skip of other inputs": (lambda: SkipTwoLayer(4), ValueError, "takes 4 inputs"),
    "depth": (
        lambda: mlp([2, 2, 2, 1], "relu", False, False),
        TypeError,
        "expected one hidden layer",
    ),
    "no MLP": (lambda: nn.Conv1d(1, 1, 1), TypeError, "no two-layer network"),
    "no module": (lambda: torch.ones(2), TypeError, "expected an nn.Module"),
    "NaN": (lambda: with_weights(float("nan")), ValueError, "is nan; expected finite numbers"),
    "zero function": (lambda: with_weights(0.0), ValueError, "target is the zero function"),
    "zero skip": (
        lambda: SkipTwoLayer.of(torch.zeros(2)),
        ValueError,
        "target is the zero function",
    ),
    "scale": (
        lambda: NormalizedTwoLayer(GOOD, torch.tensor([float("inf")])),
        ValueError,
        "target's scale.* is inf",
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name: str) -> None:
    make, kind, why = TARGETS[name]
    for call in (
        lambda target: llr.relu.isometry(X, target),
        lambda target: llr.relu.recovers(X, target, cones=False),
    ):
        with pytest.raises(kind, match=why):
            call(make())


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (at(float("nan")), r"x\[2, 1\] is nan; expected finite numbers"),
        (at(float("inf")), r"x\[2, 1\] is inf; expected finite numbers"),
        (X[0], r"x has shape \(2,\); expected samples \(n, d\)"),
        (X[:0], r"x has shape \(0, 2\)"),
        (0 * X, "all samples are zero"),
    ],
)
def test_samples(x: torch.Tensor, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        llr.relu.patterns(x)
    with pytest.raises(ValueError, match=why):
        llr.relu.isometry(x, TwoLayer.of(W, None, torch.ones(1, 1).double(), activation="relu"))
    if "all samples" not in why:
        with pytest.raises(ValueError, match=why):
            llr.relu.min_norm(x, Y, cones=False)


def test_complex_samples() -> None:
    with pytest.raises(TypeError, match=r"x is torch\.complex128; expected"):
        llr.relu.patterns(X.to(torch.complex128))


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (X, Y[:5], r"y has shape \(5,\); expected \(6,\) or \(6, 1\)"),
        (X, X, r"y has shape \(6, 2\)"),
        (X, Y[None], r"y has shape \(1, 6\)"),
        (X, Y.clone().index_fill_(0, torch.tensor(3), float("nan")), r"y\[3\] is nan"),
        (zero(), Y, r"sample 3 is zero and y\[3\] is .*append a column of ones"),
        (equal(), Y, "samples 1 and 4 are equal, but y is .* no function has both"),
    ],
)
def test_values(x: torch.Tensor, y: torch.Tensor, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        llr.relu.min_norm(x, y, cones=False)


def test_what_is_taken() -> None:
    x, y = equal(), Y.clone()
    y[4] = y[1]
    y[3] = 0
    x[3] = 0
    assert llr.relu.min_norm(x, y[:, None], cones=False).status == "optimal"
    assert llr.relu.min_norm(x.float().tolist(), y.float().tolist(), cones=False).norm > 0
    assert llr.relu.isometry(x, GOOD.float()).complete


def test_a_normalized_neuron_that_sees_nothing() -> None:
    model = NormalizedTwoLayer.on(X.abs(), W, torch.ones(1).double())
    for call in (llr.relu.isometry, llr.relu.recovers):
        with pytest.raises(ValueError, match="neuron 0 of the target is 0 on all 6 samples"):
            call(-X.abs(), model)


def test_hyperplane() -> None:
    x = torch.tensor([[2.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(
        ValueError, match=r"sample 0 lies on the hyperplane of neuron 0 .*do not decide"
    ):
        llr.relu.isometry(x, GOOD)
    assert llr.relu.recovers(x, GOOD, cones=False).status == "undecided"


@pytest.mark.parametrize(
    ("call", "kind", "why"),
    [
        (
            lambda: llr.relu.patterns(X, method="fast"),
            ValueError,
            "'fast'; expected one of 'auto', 'exact'",
        ),
        (
            lambda: llr.relu.patterns(X, max_cells=0),
            ValueError,
            "max_cells is 0; expected an integer >= 1",
        ),
        (
            lambda: llr.relu.patterns(X, max_cells=11),
            ValueError,
            r"max_cells = 11 cells \(up to 12;",
        ),
        (lambda: llr.relu.patterns(X, method="sample", gates=0), ValueError, "gates is 0"),
        (lambda: llr.relu.patterns(X, generator=3), TypeError, "expected a torch.Generator"),
        (
            lambda: llr.relu.min_norm(X, Y, kind="gated"),
            ValueError,
            "'gated'; expected one of 'plain'",
        ),
        (
            lambda: llr.relu.min_norm(X, Y, cones="no"),
            TypeError,
            "cones is 'no'; expected True or False",
        ),
        (lambda: llr.relu.min_norm(X, Y, cones=False, patterns=3), TypeError, "patterns are int"),
        (lambda: llr.relu.all_ones_probability(0, 2), ValueError, "n is 0"),
        (lambda: llr.relu.gated_skip_probability(3, 0), ValueError, "d is 0"),
        (
            lambda: llr.relu.normalized_neuron_probability(2.5, 1),
            TypeError,
            "n is 2.5; expected an integer",
        ),
        (
            lambda: llr.relu.normalized_neuron_recovers(X, GOOD),
            ValueError,
            "NormalizedTwoLayer of one neuron",
        ),
        (
            lambda: llr.relu.neighbour_bounds(X, SkipTwoLayer(2)),
            ValueError,
            "TwoLayer of one ReLU neuron",
        ),
        (
            lambda: llr.relu.whitened_skip_recovers(X, SkipTwoLayer(2)),
            ValueError,
            "expected whitened samples",
        ),
        (
            lambda: llr.relu.whitened_skip_recovers(torch.linalg.qr(X)[0], SkipTwoLayer(2, 1)),
            ValueError,
            "expected a SkipTwoLayer without",
        ),
    ],
)
def test_options(call: Callable[[], object], kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        call()
