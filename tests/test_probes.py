"""Models without a per-sample Jacobian are refused, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models import F64, Model
from oracles import assert_matches
from torch import Tensor, nn

import llr

BACKENDS = ["auto", "torch", "loop"]


def doing(forward: Callable[[Model, Tensor], object], *parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Model(
        forward, linear=nn.Linear(3, 4), parts=nn.Sequential(*parts), count=torch.zeros(())
    )


def with_layer(*parts: nn.Module) -> Callable[[], nn.Module]:
    return doing(lambda m, x: m.parts(m.linear(x)), *parts)


def counting(m: Model, x: Tensor) -> Tensor:
    m.count += 1
    return m.linear(x).cos()


def replacing(m: Model, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return m.linear(x).cos() * m.count


# name -> (model, what the message must hold)
LAYERS = {
    "BatchNorm": (
        with_layer(nn.BatchNorm1d(4)),
        r"BatchNorm1d 'parts\.0' is in training mode, where samples interact.*call model\.eval\(\) first",
    ),
    "BatchNorm without statistics": (
        lambda: with_layer(nn.BatchNorm1d(4, track_running_stats=False))().eval(),
        r"BatchNorm1d 'parts\.0' has no running statistics.*track_running_stats=True",
    ),
    "InstanceNorm": (
        with_layer(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True)),
        r"InstanceNorm1d 'parts\.1' is in training mode, where its buffers change.*model\.eval\(\)",
    ),
    "Dropout": (
        with_layer(nn.Dropout(0.3)),
        r"Dropout 'parts\.0' is active \(training mode, p=0\.3\): its output is random; call model\.eval",
    ),
    "AlphaDropout": (with_layer(nn.AlphaDropout(0.3)), r"AlphaDropout 'parts\.0' is active"),
    "dropout in a recurrent layer": (
        with_layer(nn.Unflatten(1, (2, 2)), nn.GRU(2, 2, 2, dropout=0.1, batch_first=True)),
        r"GRU 'parts\.1' is active \(training mode, p=0\.1\)",
    ),
    "dropout in attention": (
        with_layer(nn.TransformerEncoderLayer(4, 2, 8, 0.2)),
        r"is active \(training mode, p=0\.2\)",
    ),
}
BEHAVIOUR = {
    "functional dropout": (
        doing(lambda m, x: F.dropout(m.linear(x))),
        ValueError,
        "forward is random",
    ),
    "noise": (
        doing(lambda m, x: m.linear(x + torch.randn_like(x))),
        ValueError,
        r"forward is random: two evaluations .* differ by up to \d.*call model\.eval\(\) first",
    ),
    "a weight drawn in forward": (
        doing(lambda m, x: F.linear(m.linear(x), torch.randn(2, 4, dtype=x.dtype))),
        ValueError,
        "forward is random",
    ),
    "random ReLU": (with_layer(nn.RReLU()), ValueError, "forward is random"),
    "a counter": (
        doing(counting),
        ValueError,
        r"forward changes its buffer 'count'.*keep state out",
    ),
    "a replaced counter": (doing(replacing), ValueError, "forward changes its buffer 'count'"),
    "centred samples": (
        doing(lambda m, x: m.linear(x - x.mean(0))),
        ValueError,
        r"samples interact: the output for a sample changes by up to \d",
    ),
    "softmax over samples": (
        doing(lambda m, x: m.linear(x).softmax(0)),
        ValueError,
        "samples interact",
    ),
    "running sum": (doing(lambda m, x: m.linear(x).cumsum(0)), ValueError, "samples interact"),
    "earlier samples": (
        doing(lambda m, x: m.linear(x + x.roll(1, 0) * torch.arange(len(x))[:, None].clamp(max=1))),
        ValueError,
        "samples interact",
    ),
    "a loss": (
        doing(lambda m, x: m.linear(x).pow(2).mean()),
        ValueError,
        r"an output is a single number for \d+ samples.*return the values before the mean",
    ),
    "samples summed away": (
        doing(lambda m, x: m.linear(x).sum(0)),
        ValueError,
        r"an output has shape \(4,\).*expected the number of samples as its first size",
    ),
    "samples in the second dimension": (
        doing(lambda m, x: m.linear(x).T),
        ValueError,
        r"an output has shape \(4, 2\) for 2 samples and \(4, 1\) for one",
    ),
    "integer output": (
        doing(lambda m, x: m.linear(x).argmax(1)),
        TypeError,
        r"the model's output is a tensor of torch\.int64; expected floating point",
    ),
    "complex output": (doing(lambda m, x: m.linear(x).to(torch.cdouble)), TypeError, "complex128"),
    "text": (doing(lambda m, x: {"y": m.linear(x), "note": "ok"}), TypeError, "output holds a str"),
    "a number": (doing(lambda m, x: m.linear(x).sum().item()), TypeError, "output holds a float"),
    "nothing": (doing(lambda _, __: None), TypeError, "holds no tensor; expected at least one"),
    "no tensor": (doing(lambda _, __: ()), TypeError, "holds no tensor; expected at least one"),
    "half output": (
        doing(lambda m, x: m.linear(x).half()),
        TypeError,
        r"the model's output is torch\.float16 but its parameters are torch\.float64; expected one",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(LAYERS))
def test_layers_are_refused(case, backend):
    make, message = LAYERS[case]
    with pytest.raises(ValueError, match=message):
        llr.jacobian(make().double(), torch.randn(5, 3, dtype=F64), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(BEHAVIOUR))
def test_behaviour_is_refused(case, backend):
    make, kind, message = BEHAVIOUR[case]
    model, x = make().double(), torch.randn(5, 3, dtype=F64)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        llr.jacobian(model, x, backend=backend)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        llr.plan(model, x, backend=backend)


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: (m.linear(x) - 100).log(), lambda m, x: (m.linear(x) * 0).pow(-1)],
    ids=["NaN", "infinity"],
)
def test_outputs_that_are_not_finite_are_called_so(forward):
    with pytest.raises(ValueError, match=r"(?i)\b(nan|inf|infinity|finite)\b") as refusal:
        llr.jacobian(doing(forward)().double(), torch.randn(5, 3, dtype=F64))
    assert not re.search("random|interact", str(refusal.value))


def test_interaction_shows_though_the_first_samples_are_equal():
    model = doing(lambda m, x: m.linear(x - x.mean(0)))().double()
    x = torch.randn(5, 3, dtype=F64)
    x[1] = x[0]
    with pytest.raises(ValueError, match="samples interact"):
        llr.jacobian(model, x)


def test_callables_are_probed_too():
    w = torch.randn(3, dtype=F64)
    with pytest.raises(ValueError, match="samples interact"):
        llr.jacobian(
            lambda p, x: (x - x.mean(0)) @ p["w"], torch.randn(5, 3, dtype=F64), params={"w": w}
        )
    with pytest.raises(ValueError, match="forward is random"):
        llr.jacobian(
            lambda p, x: F.dropout(x) @ p["w"], torch.randn(5, 3, dtype=F64), params={"w": w}
        )


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm at rest": lambda: with_layer(nn.BatchNorm1d(4), nn.Linear(4, 2))().eval(),
    "BatchNorm without affine": lambda: with_layer(nn.BatchNorm1d(4, affine=False))().eval(),
    "GroupNorm": with_layer(nn.GroupNorm(2, 4)),
    "InstanceNorm": with_layer(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2), nn.Flatten()),
    "LayerNorm": with_layer(nn.LayerNorm(4)),
    "dropout at rest": lambda: with_layer(nn.Dropout(0.5), nn.Linear(4, 2))().eval(),
    "dropout of nothing": with_layer(nn.Dropout(0.0), nn.LayerNorm(4)),
    "functional dropout at rest": lambda: doing(
        lambda m, x: F.dropout(m.linear(x), training=m.training)
    )().eval(),
    "a buffer that is read": doing(lambda m, x: m.linear(x) + m.count),
    "a tiny output": doing(lambda m, x: 1e-40 * m.linear(x)),
    "a huge output": doing(lambda m, x: 1e200 * m.linear(x)),
    "a constant output": doing(lambda m, x: (m.linear(x), x.detach())),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(ACCEPTED))
def test_accepted(case, backend):
    model, x = ACCEPTED[case]().double(), torch.randn(5, 3, dtype=F64)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(1)  # statistics other than the initial ones
    assert_matches(
        llr.jacobian(model, x, backend=backend), llr.reference.jacobian(model, x), tolerance=1e-12
    )


@pytest.mark.parametrize("n", [0, 1])
def test_few_samples_are_probed(n):
    model = doing(lambda m, x: F.dropout(m.linear(x)))()
    with pytest.raises(ValueError, match="forward is random"):
        llr.jacobian(model, torch.ones(n, 3))


def test_random_state_is_left_alone_by_a_refusal():
    model = doing(lambda m, x: F.dropout(m.linear(x)))()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="forward is random"):
        llr.jacobian(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)
