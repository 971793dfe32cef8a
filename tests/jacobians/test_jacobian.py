"""llr.jacobian: every path, every kind of model and output, and refusals."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from helpers.models import (
    EVERY,
    F32,
    F64,
    LOOPED,
    MODELS,
    Model,
    affine,
    affine_params,
    make,
    samples,
)
from helpers.oracles import MODULES, assert_matches, error, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import llr
from llr.jacobians import reference
from llr.jacobians.jacobian import evaluate
from llr.operators import _ops

BACKENDS = ["auto", "torch", "loop"]
native = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(MODELS))
def test_every_model_on_every_path(case, backend):
    model, x = make(case)
    J = llr.jacobian(model, x, backend=backend)
    assert J.dtype == F64
    assert not J.requires_grad
    assert_matches(J, reference.jacobian(model, x))


@pytest.mark.parametrize("case", list(LOOPED))
def test_what_vmap_cannot_take_is_looped_over(case, caplog):
    model, x = make(case)
    with caplog.at_level(logging.INFO, logger="llr"):
        J, path = evaluate(model, x)
    assert_matches(J, reference.jacobian(model, x))
    assert path == "autograd loop"
    assert "vmap cannot take this model" in caplog.text
    assert "looping over samples" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(EVERY))
def test_float32(case, backend):
    if case in LOOPED and backend == "torch":
        pytest.skip("vmap cannot take it, and no other may take over from a backend asked for")
    model, x = make(case)
    expected = reference.jacobian(
        model.float().double(), x.float().double() if x.is_floating_point() else x
    )
    J = llr.jacobian(model.float(), x.float() if x.is_floating_point() else x, backend=backend)
    assert J.dtype == F32
    assert_matches(J, expected)


@native
@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ("auto", "native mlp"),
        ("native", "native mlp"),
        ("torch", "torch.func vmap"),
        ("loop", "autograd loop"),
    ],
)
def test_the_path_is_named(backend, path):
    model, x = make("mlp")
    J, taken = evaluate(model, x, backend=backend)
    assert taken == path
    assert_matches(J, reference.jacobian(model, x))
    assert llr.plan(model, x, backend=backend).backend in ("native", backend)
    assert path in str(llr.plan(model, x, backend=backend))


@pytest.mark.parametrize("case", ["mlp", "traced", "layer norm", "embedding", "batch norm"])
def test_evaluate_in_another_dtype(case):
    model, x = make(case)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    J, _ = evaluate(model, x, dtype=F64)
    assert J.dtype == F64
    assert next(model.parameters()).dtype == F32
    exact = reference.jacobian(model.double(), x.double() if x.is_floating_point() else x)
    assert_matches(J, exact)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "layer norm", "nested", "lstm"])
def test_chunks(case, backend, chunk_size):
    if (case, backend) == ("lstm", "torch"):
        backend = "loop"
    model, x = make(case)
    J = llr.jacobian(model, x, backend=backend, chunk_size=chunk_size)
    assert_matches(J, reference.jacobian(model, x))


def test_no_more_samples_at_a_time_than_asked_for():
    params, x = affine_params(), samples(7)
    assert llr.plan(affine, x, params=params, chunk_size=2).chunk_size == 2
    assert llr.plan(affine, x, params=params).chunk_size == 7
    big = nn.Sequential(nn.Linear(3, 4000), nn.LayerNorm(4000), nn.Linear(4000, 100))
    assert 1 <= llr.plan(big, torch.ones(10**5, 3)).chunk_size < 300


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "traced", "conv2d", "nested", "embedding"])
def test_few_samples(case, backend, n):
    model, x = make(case)
    full = reference.jacobian(model, x)
    J = llr.jacobian(model, x[:n], backend=backend)
    assert J.shape == full[:n].shape
    assert_matches(J, full[:n])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(EVERY))
def test_out(case, backend):
    if case in LOOPED and backend == "torch":
        backend = "auto"
    model, x = make(case)
    expected = llr.jacobian(model, x, backend="loop")
    out = torch.full(expected.shape, float("nan"), dtype=F64)
    assert llr.jacobian(model, x, out=out, backend=backend) is out
    assert_matches(out, expected)
    wide = torch.full((*expected.shape[:2], 2 * expected.shape[2]), float("nan"), dtype=F64)
    llr.jacobian(model, x, out=wide[..., ::2], backend=backend)
    assert_matches(wide[..., ::2], expected)
    assert wide[..., 1::2].isnan().all()


def doubling(m: Model, x: Tensor) -> Tensor:
    return m.a(x.mul_(2)).cos()


def blanking(m: Model, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return m.a(x).cos()


# A forward in place, and the same on a copy.
IN_PLACE = {
    "multiplied": (doubling, lambda m, x: m.a(2 * x).cos()),
    "written to": (blanking, lambda m, x: m.a(x * torch.tensor([0.0, 1, 1], dtype=F64)).cos()),
    "rectified": (
        lambda m, x: m.a(F.relu(x, inplace=True)).cos(),
        lambda m, x: m.a(F.relu(x)).cos(),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(IN_PLACE))
def test_samples_are_not_written_to(case, backend):
    in_place, on_a_copy = (Model(forward, a=nn.Linear(3, 4)).double() for forward in IN_PLACE[case])
    points = {name: torch.randn(2, *p.shape, dtype=F64) for name, p in in_place.named_parameters()}
    x = samples()
    before = x.clone()
    J = llr.jacobian(in_place, x, params=points, backend=backend)
    assert torch.equal(x, before)
    assert_matches(J, llr.jacobian(on_a_copy, x, params=points, backend="loop"))


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    n=st.integers(0, 6),
    activation=st.sampled_from(sorted(MODULES)),
    bias=st.booleans(),
)
def test_paths_agree(widths, n, activation, bias):
    model = mlp(*widths, activation=MODULES[activation], bias=bias)
    x = samples(n, widths[0])
    found = [llr.jacobian(model, x, backend=b) for b in ("native", "torch", "loop")]
    for J in found:
        assert J.shape == (n, widths[-1], sum(p.numel() for p in model.parameters()))
        assert error(J, found[-1]) <= 1e-13


# --- callables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_callables(backend):
    params, x = affine_params(), samples()
    expected = reference.jacobian(affine, x, params)
    assert_matches(llr.jacobian(affine, x, params=params, backend=backend), expected)
    grads = {name: v.clone().requires_grad_() for name, v in params.items()}
    J = llr.jacobian(affine, x.requires_grad_(), params=grads, backend=backend)
    assert_matches(J, expected)
    assert not J.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_callables_that_hold_parameters_of_their_own(backend):
    layer, params, x = nn.Linear(2, 2).double(), affine_params(), samples()
    J = llr.jacobian(lambda p, x: layer(affine(p, x)), x, params=params, backend=backend)
    assert J.shape == (5, 2, 9)
    assert not J.requires_grad


# --- properties --------------------------------------------------------------------------------------


def hidden_columns(model: nn.Sequential) -> Tensor:
    """The columns that belong to each hidden neuron of an MLP with one hidden layer: (h, per neuron)."""
    into, hidden, out = model[0].in_features, model[0].out_features, model[2].out_features
    index = torch.arange(sum(p.numel() for p in model.parameters()))
    w0, b0, w1, _ = index.split([into * hidden, hidden, hidden * out, out])
    return torch.cat([w0.view(hidden, into), b0[:, None], w1.view(out, hidden).T], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_neurons_permutes_columns(backend):
    model, x = mlp(3, 6, 2), samples()
    columns, order = hidden_columns(model), torch.randperm(6)
    J = llr.jacobian(model, x, backend=backend)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order].clone())
        model[0].bias.copy_(model[0].bias[order].clone())
        model[2].weight.copy_(model[2].weight[:, order].clone())
    permuted = llr.jacobian(model, x, backend=backend)
    assert_matches(permuted[..., columns], J[..., columns[order]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_flipping_a_neuron_flips_its_columns(backend):
    model, x = mlp(3, 6, 2), samples()
    J = llr.jacobian(model, x, backend=backend)
    with torch.no_grad():
        for t in (model[0].weight[2], model[0].bias[2], model[2].weight[:, 2]):
            t.neg_()
    signs = torch.ones(J.shape[-1], dtype=F64)
    signs[hidden_columns(model)[2]] = -1
    assert_matches(llr.jacobian(model, x, backend=backend), J * signs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_in_the_last_layer(backend):
    model, x = mlp(3, 6, 4, 2), samples()
    name = "4.weight"
    inner = [n for n in llr.layout(model) if not n.startswith("4.")]

    def at(value: Tensor) -> Tensor:
        points = {n: p.detach() for n, p in model.named_parameters()} | {name: value}
        layout = llr.layout(model)
        J = llr.jacobian(model, x, params=points, backend=backend)
        return torch.cat([J[..., layout[n]] for n in inner], -1)

    a, b = torch.randn(2, 2, 4, dtype=F64)
    assert_matches(at(2 * a - 3 * b), 2 * at(a) - 3 * at(b))
    J = llr.jacobian(model, x, backend=backend)
    # The columns of the last layer are its inputs, for any weights.
    hidden = model[:4](x).detach()
    expected = torch.einsum("ij,nk->nijk", torch.eye(2, dtype=F64), hidden).flatten(2)
    assert_matches(J[..., llr.layout(model)[name]], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_euler_identity_of_relu_networks(backend):
    # Without biases the output is homogeneous of degree one in each layer's weights.
    model, x = mlp(3, 7, 5, 2, activation=nn.ReLU, bias=False), samples()
    J, y = llr.jacobian(model, x, backend=backend), model(x).detach()
    for name, columns in llr.layout(model).items():
        theta = model.get_parameter(name).detach().flatten()
        assert_matches(J[..., columns] @ theta, y)
