"""llr.jacobian: every path, every kind of model and output, and what it refuses."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import MODULES, assert_matches, error, mlp
from torch import Tensor, nn

import llr
from llr import _ops
from llr.jacobian import evaluate

F64, F32 = torch.float64, torch.float32
BACKENDS = ["auto", "torch", "loop"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning"
)  # torch's own
native = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)


class Model(nn.Module):
    """Parts, and a forward that is a function of the module and x."""

    def __init__(self, forward: Callable[[Model, Tensor], object], **parts: nn.Module):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def outputs(forward: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    """A model whose output is this function of a layer's four outputs."""
    return lambda: Model(lambda m, x: forward(m.a(x).cos()), a=nn.Linear(3, 4))


def samples(n: int = 5, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, *(shape or (3,)), dtype=dtype)


# name -> (model, samples)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: mlp(3, 4, 2), samples),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
        samples,
    ),
    "mixed activations": (
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)
        ),
        samples,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)),
        lambda: samples(4, 2, 5),
    ),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)),
        lambda: samples(4, 1, 5, 4),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)),
        lambda: torch.randint(7, (5, 2)),
    ),
    "one token": (
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)),
        lambda: torch.arange(5),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        lambda: samples(3, 5, 4),
    ),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), samples),
    "samples of sequences": (lambda: mlp(3, 4, 2), lambda: samples(4, 6, 3)),
    "single numbers": (outputs(lambda y: y.sum(1)), samples),
    "matrices": (outputs(lambda y: y.reshape(-1, 2, 2)), samples),
    "transposed matrices": (outputs(lambda y: y.reshape(-1, 2, 2).mT), samples),
    "tuple": (outputs(lambda y: (y[:, 0], y[:, 1:])), samples),
    "nested": (
        outputs(lambda y: {"z": [y, None], "a": (y.reshape(-1, 2, 2), {"k": y[:, 0]})}),
        samples,
    ),
    "an output of no parameters": (outputs(lambda y: (y, torch.ones_like(y).detach())), samples),
}
LOOPED = {
    "lstm": (
        lambda: Model(
            lambda m, x: m.out(m.rnn(x)[0][:, -1]),
            rnn=nn.LSTM(2, 3, batch_first=True),
            out=nn.Linear(3, 2),
        ),
        lambda: samples(3, 4, 2),
    ),
    "gru": (
        lambda: Model(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(2, 3, batch_first=True)),
        lambda: samples(3, 4, 2),
    ),
}
EVERY = MODELS | LOOPED


def make(case: str) -> tuple[nn.Module, Tensor]:
    model, x = EVERY[case]
    return model().double(), x()


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(MODELS))
def test_every_model_on_every_path(case, backend):
    model, x = make(case)
    J = llr.jacobian(model, x, backend=backend)
    assert J.dtype == F64
    assert not J.requires_grad
    assert_matches(J, llr.reference.jacobian(model, x))


@pytest.mark.parametrize("case", list(LOOPED))
def test_what_vmap_cannot_take_is_looped_over(case, caplog):
    model, x = make(case)
    with caplog.at_level(logging.INFO, logger="llr"):
        J, path = evaluate(model, x)
    assert_matches(J, llr.reference.jacobian(model, x))
    assert path == "autograd loop"
    assert "vmap cannot take this model" in caplog.text
    assert "looping over samples" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(EVERY))
def test_float32(case, backend):
    if case in LOOPED and backend == "torch":
        pytest.skip("vmap cannot take it, and no other may take over from a backend asked for")
    model, x = make(case)
    expected = llr.reference.jacobian(
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
    assert_matches(J, llr.reference.jacobian(model, x))
    assert llr.plan(model, x, backend=backend).backend in ("native", backend)
    assert path in str(llr.plan(model, x, backend=backend))


@pytest.mark.parametrize("case", ["mlp", "layer norm", "embedding", "batch norm"])
def test_evaluate_in_another_dtype(case):
    model, x = make(case)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    J, _ = evaluate(model, x, dtype=F64)
    assert J.dtype == F64
    assert next(model.parameters()).dtype == F32
    exact = llr.reference.jacobian(model.double(), x.double() if x.is_floating_point() else x)
    assert_matches(J, exact)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "layer norm", "nested", "lstm"])
def test_chunks(case, backend, chunk_size):
    if (case, backend) == ("lstm", "torch"):
        backend = "loop"
    model, x = make(case)
    J = llr.jacobian(model, x, backend=backend, chunk_size=chunk_size)
    assert_matches(J, llr.reference.jacobian(model, x))


def test_no_more_samples_at_a_time_than_asked_for():
    params, x = affine_params(), samples(7)
    assert llr.plan(affine, x, params=params, chunk_size=2).chunk_size == 2
    assert llr.plan(affine, x, params=params).chunk_size == 7
    big = nn.Sequential(nn.Linear(3, 4000), nn.LayerNorm(4000), nn.Linear(4000, 100))
    assert 1 <= llr.plan(big, torch.ones(10**5, 3)).chunk_size < 300


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "conv2d", "nested", "embedding"])
def test_few_samples(case, backend, n):
    model, x = make(case)
    full = llr.reference.jacobian(model, x)
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


def affine(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ p["w"] + p["b"]) * p["scale"]


def affine_params(*batch: int) -> dict[str, Tensor]:
    shapes = {"w": (3, 2), "b": (2,), "scale": ()}
    return {name: torch.randn((*batch, *shape), dtype=F64) for name, shape in shapes.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_callables(backend):
    params, x = affine_params(), samples()
    expected = llr.reference.jacobian(affine, x, params)
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


# --- differentiating the result ----------------------------------------------------------------------


def functional(J: Tensor) -> Tensor:
    """A number that weighs all entries differently, and is not linear in them."""
    return (J.sin() * torch.arange(1, J.numel() + 1, dtype=J.dtype).view(J.shape)).sum()


def gradients(value: Tensor, leaves: dict[Any, Tensor]) -> list[Tensor]:
    """Of a number, with zeros for what it does not depend on (such as the last layer's bias)."""
    return list(
        torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case", ["mlp", "layer norm", "mixed activations", "conv1d", "nested", "lstm"]
)
def test_create_graph(case, backend):
    if (case, backend) == ("lstm", "torch"):
        backend = "auto"
    model, x = make(case)
    x.requires_grad_()
    J = llr.jacobian(model, x, create_graph=True, backend=backend)
    assert_matches(J, llr.reference.jacobian(model, x))
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
@pytest.mark.parametrize("case", ["mlp", "layer norm"])
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
@pytest.mark.parametrize("case", ["mlp", "layer norm"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes(mode, case, backend):
    model, x = make(case)
    expected = llr.reference.jacobian(model, x)
    with mode():
        assert_matches(llr.jacobian(model, x, backend=backend), expected)


@pytest.mark.parametrize("case", ["mlp", "layer norm"])
def test_default_dtype(case):
    model, x = make(case)
    model, x = model.float(), x.float()
    expected = llr.reference.jacobian(model, x)
    torch.set_default_dtype(F64)
    try:
        assert_matches(llr.jacobian(model, x), expected)
    finally:
        torch.set_default_dtype(F32)


def test_without_the_native_library(monkeypatch):
    from llr.jacobian import _warn_without_library  # noqa: PLC0415

    monkeypatch.setattr(_ops, "NATIVE", False)
    monkeypatch.setattr(_ops, "REASON", "it was left out")
    _warn_without_library.cache_clear()
    model, x = make("mlp")
    with pytest.warns(
        RuntimeWarning, match="without its native library.*it was left out"
    ) as warned:
        J, path = evaluate(model, x)
    assert path == "torch.func vmap"
    assert_matches(J, llr.reference.jacobian(model, x))
    assert warned[0].filename == __file__
    llr.jacobian(model, x)  # says so once
    assert llr.plan(model, x).reason == "it was left out"
    with pytest.raises(
        ValueError, match="backend='native' cannot compute this model: it was left out"
    ):
        llr.jacobian(model, x, backend="native")
    _warn_without_library.cache_clear()


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
    # The columns of the last layer are its inputs, whatever its weights are.
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


# --- bad input ---------------------------------------------------------------------------------------

GOOD = mlp(3, 4, 2)
MIXED = nn.Sequential(nn.Linear(3, 4).double(), nn.Tanh(), nn.Linear(4, 2))
FROZEN_MIXED = nn.Sequential(
    nn.Linear(3, 4).double(), nn.Tanh(), nn.Linear(4, 2).requires_grad_(False)
)
NORMED = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double()


def spoiled(index: tuple[int, ...], value: float) -> Tensor:
    x = torch.zeros(5, 3, dtype=F64)
    x[index] = value
    return x


def spoiled_model(name: str, frozen: bool) -> nn.Module:
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = float("inf")
    model.get_parameter(name).requires_grad_(not frozen)
    return model


X = torch.zeros(5, 3, dtype=F64)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "NaN in x": (
        lambda: llr.jacobian(GOOD, spoiled((3, 2), float("nan"))),
        ValueError,
        "x is nan at index (3, 2); expected finite numbers",
    ),
    "infinity in x": (
        lambda: llr.jacobian(NORMED, spoiled((0, 1), -float("inf"))),
        ValueError,
        "x is -inf at index (0, 1); expected finite numbers",
    ),
    "infinity in a parameter": (
        lambda: llr.jacobian(spoiled_model("2.weight", frozen=False), X),
        ValueError,
        "parameter '2.weight' is inf at index (0, 1); expected finite numbers",
    ),
    "infinity in a frozen parameter": (
        lambda: llr.jacobian(spoiled_model("0.bias", frozen=True), X),
        ValueError,
        "parameter '0.bias' is inf at index (1,); expected finite numbers",
    ),
    "trailing dimension": (
        lambda: llr.jacobian(GOOD, X[:, :2]),
        ValueError,
        "x has shape (5, 2); expected (n, 3) for a 3-4-2 tanh MLP",
    ),
    "one sample without its dimension": (
        lambda: llr.jacobian(GOOD, X[0]),
        ValueError,
        "x has shape (3,); expected (n, 3)",
    ),
    "a single number": (
        lambda: llr.jacobian(GOOD, X[0, 0]),
        ValueError,
        "x is a single number; expected samples along a first dimension",
    ),
    "dtype of x": (
        lambda: llr.jacobian(GOOD, X.float()),
        TypeError,
        "x is torch.float32 but the parameters are torch.float64; expected one dtype (x.to(torch.float64)",
    ),
    "complex x": (
        lambda: llr.jacobian(GOOD, X.cdouble()),
        TypeError,
        "x is torch.complex128 but the",
    ),
    "integer x": (
        lambda: llr.jacobian(GOOD, X.long()),
        TypeError,
        "x is torch.int64; expected torch.float64 as the parameters (x.to(torch.float64))",
    ),
    "dtypes of parameters": (
        lambda: llr.jacobian(MIXED, X),
        TypeError,
        "mixed dtypes: '0.weight' is torch.float64, '2.weight' is torch.float32; expected one",
    ),
    "dtype of a frozen parameter": (
        lambda: llr.jacobian(FROZEN_MIXED, X),
        TypeError,
        "'2.weight' is torch.float32",
    ),
    "half precision": (
        lambda: llr.jacobian(mlp(3, 2, dtype=torch.float16), X.half()),
        TypeError,
        "parameter '0.weight' is torch.float16; expected float32 or float64 (model.double())",
    ),
    "device of x": (
        lambda: llr.jacobian(GOOD, X.to("meta")),
        ValueError,
        "parameter '0.weight' is on cpu but x is on meta; expected one device",
    ),
    "device of a parameter": (
        lambda: llr.jacobian(
            nn.Sequential(GOOD[0], nn.Tanh(), nn.Linear(4, 2, device="meta", dtype=F64)), X
        ),
        ValueError,
        "parameter '2.weight' is on meta but x is on cpu; expected one device",
    ),
    "x is a list": (
        lambda: llr.jacobian(GOOD, [[1.0, 2, 3]]),
        TypeError,
        "x is list; expected a tensor",
    ),
    "x is an array": (
        lambda: llr.jacobian(GOOD, X.numpy()),
        TypeError,
        "x is ndarray; expected a tensor",
    ),
    "no model": (
        lambda: llr.jacobian("model.pt", X),
        TypeError,
        "model is str; expected an nn.Module or a callable f(params, x)",
    ),
    "callable without params": (
        lambda: llr.jacobian(affine, X),
        TypeError,
        "a callable model needs params= a mapping of names to tensors",
    ),
    "callable with names": (
        lambda: llr.jacobian(affine, X, params=["w"]),
        TypeError,
        "mapping of names to tensors, with which it is called as model(params, x); got list",
    ),
    "callable with no params": (
        lambda: llr.jacobian(affine, X, params={}),
        ValueError,
        "params is empty; expected at least one tensor",
    ),
    "backend": (
        lambda: llr.jacobian(GOOD, X, backend="cuda"),
        ValueError,
        "backend is 'cuda'; expected one of auto, native, torch, loop",
    ),
    "native backend": (
        lambda: llr.jacobian(NORMED, X, backend="native"),
        ValueError,
        "backend='native' cannot compute this model: LayerNorm is no linear layer; backend='auto' goes",
    ),
    "native backend for a callable": (
        lambda: llr.jacobian(affine, X, params=affine_params(), backend="native"),
        ValueError,
        "backend='native' cannot compute this model: a callable",
    ),
    **{
        f"chunk_size {value}": (
            lambda value=value: llr.jacobian(GOOD, X, chunk_size=value),
            ValueError,
            f"chunk_size is {value!r}; expected a positive number of samples",
        )
        for value in (0, -1, 1.5, "2")
    },
    "shape of out": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 26, dtype=F64)),
        ValueError,
        "out has shape (5, 26); expected (5, 2, 26)",
    ),
    "dtype of out": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26)),
        TypeError,
        "out is torch.float32 on cpu; expected torch.float64 on cpu",
    ),
    "device of out": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26, dtype=F64, device="meta")),
        TypeError,
        "out is torch.float64 on meta; expected torch.float64 on cpu",
    ),
    "out that needs a gradient": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26, dtype=F64, requires_grad=True)),
        ValueError,
        "out requires a gradient; expected a plain tensor (out.detach())",
    ),
    "out and a graph": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26, dtype=F64), create_graph=True),
        ValueError,
        "out= and create_graph=True exclude each other",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_that_overlaps(backend):
    model, x = mlp(3, 4, 2), samples()
    with pytest.raises((RuntimeError, ValueError), match=r"overlap|single memory location"):
        llr.jacobian(model, x, out=torch.zeros(1, dtype=F64).expand(5, 2, 26), backend=backend)
    memory = torch.randn(5 * 2 * 26, dtype=F64)
    with pytest.raises((RuntimeError, ValueError), match=r"overlap|single memory location"):
        llr.jacobian(model, memory[-15:].view(5, 3), out=memory.view(5, 2, 26), backend=backend)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_empty_layers():
    hollow = nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2)).double()
    with pytest.raises(
        (RuntimeError, ValueError), match=r"shape \[0, 3\]; expected at least one neuron"
    ):
        llr.jacobian(hollow, X)
    with pytest.raises(
        (RuntimeError, ValueError), match=r"shape \[5, 0\]; expected at least one input"
    ):
        llr.jacobian(nn.Linear(0, 2).double(), X[:, :0])


def test_a_backend_asked_for_is_not_replaced():
    model, x = make("lstm")
    with pytest.raises(RuntimeError):
        llr.jacobian(model, x, backend="torch")


def test_an_error_in_forward_is_passed_on():
    def broken(_: Model, __: Tensor) -> Tensor:
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        llr.jacobian(Model(broken, a=nn.Linear(3, 2)), samples(dtype=F32))


def test_plan_prints():
    model, x = mlp(10, 64, 1), samples(5, 10)
    plan = llr.plan(model, x, backend="loop")
    assert (
        str(plan)
        == "J (5, 1, 769) float64, 30.8 kB: autograd loop (asked for), 5 samples at a time"
    )
    assert (plan.shape, plan.nbytes, plan.dtype) == ((5, 1, 769), 5 * 769 * 8, F64)
