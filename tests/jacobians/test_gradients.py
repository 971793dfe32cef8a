"""Differentiating a Jacobian, and computing it under other global settings of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.models import F32, F64, Model, make, samples
from helpers.oracles import assert_matches
from torch import Tensor, nn

import llr
from llr.inputs import warned as warnings_of_llr
from llr.jacobians import reference
from llr.jacobians.jacobian import evaluate
from llr.operators import _ops

BACKENDS = ["auto", "torch", "loop"]


def functional(J: Tensor) -> Tensor:
    """A nonlinear function of the entries, with a different weight for each."""
    return (J.sin() * torch.arange(1, J.numel() + 1, dtype=J.dtype).view(J.shape)).sum()


def gradients(value: Tensor, leaves: dict[Any, Tensor]) -> list[Tensor]:
    """Gradients of a number, zero for tensors that it does not depend on (such as the last layer's bias)."""
    return list(
        torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case", ["mlp", "traced", "layer norm", "mixed activations", "conv1d", "nested", "lstm"]
)
def test_create_graph(case, backend):
    if (case, backend) == ("lstm", "torch"):
        backend = "auto"
    model, x = make(case)
    x.requires_grad_()
    J = llr.jacobian(model, x, create_graph=True, backend=backend)
    assert_matches(J, reference.jacobian(model, x))
    leaves = [x, *model.parameters()]
    found = gradients(functional(J), dict(enumerate(leaves)))
    # Finite differences of the result without a graph.
    step = 1e-6
    for leaf, gradient in zip(leaves, found, strict=True):
        direction = torch.randn_like(leaf)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf += sign * step * direction
            values.append(functional(llr.jacobian(model, x)))
            with torch.no_grad():
                leaf -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(
            float(slope), rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_create_graph_with_parameter_points(backend):
    model, x = make("mlp")
    points = {
        n: torch.stack([p.detach(), -p.detach()]).requires_grad_()
        for n, p in model.named_parameters()
    }
    J = llr.jacobian(model, x, params=points, create_graph=True, backend=backend)
    found = gradients(functional(J), points)
    plain = torch.stack(
        [
            llr.jacobian(
                model,
                x,
                params={n: v[i] for n, v in points.items()},
                create_graph=True,
                backend="loop",
            )
            for i in (0, 1)
        ]
    )
    assert_matches(J, plain)
    for a, b in zip(found, gradients(functional(plain), points), strict=True):
        assert_matches(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "traced", "layer norm"])
def test_create_graph_inside_torch_func(case, backend):
    model, x = make(case)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def of(backend: str) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda p: functional(
            llr.jacobian(model, x, params=p, create_graph=True, backend=backend)
        )

    found = torch.func.grad(of(backend))(params)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    expected = gradients(of("loop")(leaves), leaves)
    for gradient, other in zip(found.values(), expected, strict=True):
        assert_matches(gradient, other)


def test_vmap_over_parameters_and_samples():
    model, x = make("mlp")
    points = {name: torch.randn(3, *p.shape, dtype=F64) for name, p in model.named_parameters()}
    expected = llr.jacobian(model, x, params=points, backend="loop")
    J = torch.vmap(lambda p: llr.jacobian(model, x, params=p))(points)
    assert_matches(J, expected)
    xs = torch.stack([x, 2 * x])
    J = torch.vmap(lambda s: llr.jacobian(model, s))(xs)
    assert_matches(J, torch.stack([llr.jacobian(model, s, backend="loop") for s in xs]))


@pytest.mark.parametrize("case", ["mlp", "layer norm"])
def test_no_graph_unless_asked_for(case):
    model, x = make(case)
    for backend in BACKENDS:
        assert not llr.jacobian(model, x.clone().requires_grad_(), backend=backend).requires_grad
    assert all(p.grad is None for p in model.parameters())


# --- global settings ---------------------------------------------------------------------------------


@contextlib.contextmanager
def precision(setting: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def wide_model(kind: str) -> tuple[nn.Module, Tensor]:
    if kind == "conv":
        model = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(64, 4, 3), nn.Flatten())
        return model, samples(4, 8, 8, 8, dtype=F32)
    layers = [
        nn.Linear(64, 256),
        nn.LayerNorm(256) if kind == "torch" else nn.Tanh(),
        nn.Linear(256, 3),
    ]
    return nn.Sequential(*layers), samples(64, 64, dtype=F32)


@pytest.mark.parametrize("setting", ["high", "medium"])
@pytest.mark.parametrize("kind", ["native", "torch"])
def test_coarse_products_stay_out(kind, setting):
    model, x = wide_model(kind)
    expected = llr.jacobian(model.double(), x.double())
    with precision(setting):
        assert_matches(llr.jacobian(model.float(), x), expected)
        assert torch.get_float32_matmul_precision() == setting
        assert_matches(llr.jacobian(model.float(), x, backend="loop"), expected)
        assert torch.get_float32_matmul_precision() == setting


@pytest.mark.parametrize("operation", ["matmul", "conv"])
def test_coarse_products_set_for_one_operation_stay_out(operation):
    model, x = wide_model("conv" if operation == "conv" else "torch")
    expected = llr.jacobian(model.double(), x.double())
    backend = getattr(torch.backends.mkldnn, operation)
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        assert_matches(llr.jacobian(model.float(), x), expected)
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before


def test_autocast_stays_out_or_is_refused():
    model, x = wide_model("torch")
    expected = llr.jacobian(model.double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        try:
            J = llr.jacobian(model.float(), x)
        except TypeError:
            return
    assert_matches(J, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "traced", "layer norm"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes(mode, case, backend):
    model, x = make(case)
    expected = reference.jacobian(model, x)
    with mode():
        assert_matches(llr.jacobian(model, x, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "traced", "layer norm"])
def test_samples_made_in_inference_mode(case, backend):
    model, x = make(case)
    with torch.inference_mode():
        same = x.clone()
    assert_matches(
        llr.jacobian(model, same, backend=backend),
        reference.jacobian(model, x),
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_part_without_gradient_shows_in_every_mode(mode):
    def forward(m: Model, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.tanh(m.a(x))
        return m.b(hidden)

    model, x = Model(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double(), samples()
    expected = reference.jacobian(model, x)
    with mode():
        assert_matches(llr.jacobian(model, x), expected)


@pytest.mark.parametrize("case", ["mlp", "layer norm"])
def test_default_dtype(case):
    model, x = make(case)
    model, x = model.float(), x.float()
    expected = reference.jacobian(model, x)
    torch.set_default_dtype(F64)
    try:
        assert_matches(llr.jacobian(model, x), expected)
    finally:
        torch.set_default_dtype(F32)


def test_without_the_native_library(monkeypatch):
    monkeypatch.setattr(_ops, "NATIVE", False)
    monkeypatch.setattr(_ops, "REASON", "it was left out")
    warnings_of_llr._warn_once.cache_clear()
    model, x = make("mlp")
    with pytest.warns(
        RuntimeWarning, match="without its native library.*it was left out"
    ) as warned:
        J, path = evaluate(model, x)
    assert path == "torch.func vmap"
    assert_matches(J, reference.jacobian(model, x))
    assert warned[0].filename == __file__
    llr.jacobian(model, x)  # says so once
    assert llr.plan(model, x).reason == "it was left out"
    with pytest.raises(
        ValueError, match="backend='native' cannot compute this model: it was left out"
    ):
        llr.jacobian(model, x, backend="native")
    warnings_of_llr._warn_once.cache_clear()
