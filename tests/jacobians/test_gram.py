"""llr.gram and the triangular factor: every model and backend against J J', and against exact numbers."""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction

import flint
import mpmath
import pytest
import torch
from helpers.models import EVERY, F32, F64, Model, affine, affine_params, make, samples
from helpers.oracles import assert_matches, mlp
from torch import Tensor, nn

import llr
from llr.inputs.problem import read_problem
from llr.jacobians import reference
from llr.jacobians.gram import evaluate_gram, evaluate_triangle
from llr.linalg.balls import precision
from llr.operators import _ops

native = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
pytestmark = pytest.mark.filterwarnings(
    "ignore:llr runs without its native library:RuntimeWarning",
)
BACKENDS = ["auto", "layers", "dense"]
PRECISIONS = ["float64", "double-double"]


def products(J: Tensor) -> Tensor:
    return torch.einsum("...icp,...jdp->...icjd", J, J)


def whole(K: Tensor, precision: str) -> Tensor:
    return K[0] + K[1] if precision == "double-double" else K


def triangle(model, x: Tensor, params=None, **options) -> Tensor:
    return evaluate_triangle(read_problem(model, x, params, F64), **options)[0]


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(EVERY))
def test_every_model_on_every_path(case, backend, precision):
    model, x = make(case)
    K = llr.gram(model, x, backend=backend, precision=precision)
    assert K.dtype == F64
    assert not K.requires_grad
    expected = products(reference.jacobian(model, x))
    assert K.shape == ((2,) if precision == "double-double" else ()) + expected.shape
    assert_matches(whole(K, precision), expected)


@pytest.mark.parametrize("case", list(EVERY))
def test_the_triangle_has_the_singular_values(case):
    model, x = make(case)
    J = reference.jacobian(model, x).flatten(0, 1)
    R = triangle(model, x)
    assert R.shape == (min(J.shape), len(J))
    assert torch.equal(R, R.triu())
    assert_matches(torch.linalg.svdvals(R), torch.linalg.svdvals(J))
    assert_matches(R.mT @ R, J @ J.T)


@native
@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ("auto", "native mlp"),
        ("native", "native mlp"),
        ("layers", "layers"),
        ("dense", "blocks of columns"),
    ],
)
def test_the_path_is_named(backend, path):
    model, x = make("mlp")
    K, taken = evaluate_gram(
        read_problem(model, x, None, F64), backend=backend, precision="float64"
    )
    assert taken == path
    assert_matches(K, products(reference.jacobian(model, x)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["mlp", "embedding", "conv1d"])
def test_without_the_native_library(case, precision, monkeypatch):
    model, x = make(case)
    expected = products(reference.jacobian(model, x))
    monkeypatch.setattr(_ops, "NATIVE", False)
    monkeypatch.setattr(_ops, "REASON", f"no library for {case} in {precision}")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        K = llr.gram(model, x, precision=precision)
    assert_matches(whole(K, precision), expected)
    assert [_ops.REASON in str(w.message) for w in warned] == [True] * (case == "mlp")
    if case == "mlp":
        with pytest.raises(ValueError, match="backend='native' cannot compute this model"):
            llr.gram(model, x, backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "traced", "layer norm", "embedding", "batch norm", "lstm"])
def test_float32_models_are_computed_in_float64(case, backend):
    model, x = make(case)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    K = llr.gram(model, x, backend=backend)
    R = triangle(model, x)
    assert next(model.parameters()).dtype == F32
    J = reference.jacobian(model.double(), x.double() if x.is_floating_point() else x)
    assert_matches(K, products(J))
    assert_matches(R.mT @ R, K.reshape(R.shape[1], -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("params", ["*weight", ["0.weight", "2.bias"], "0.*", ["*.bias"]])
@pytest.mark.parametrize("norm", [False, True], ids=["mlp", "norm"])
def test_some_parameters(norm, params, backend):
    layers = [nn.Linear(3, 5), nn.LayerNorm(5) if norm else nn.Tanh(), nn.Linear(5, 2)]
    model, x = nn.Sequential(*layers).double(), samples()
    expected = products(llr.jacobian(model, x, params=params, backend="loop"))
    assert_matches(llr.gram(model, x, params=params, backend=backend), expected)
    R = triangle(model, x, params)
    assert_matches(R.mT @ R, expected.flatten(2).flatten(0, 1))
    # Frozen ones are left out in the same way.
    chosen = llr.layout(model, params=params)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    assert_matches(llr.gram(model, x, backend=backend), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "layer norm", "conv1d", "lstm"])
def test_parameter_points(case, backend, precision):
    model, x = make(case)
    points = {name: torch.randn(3, *p.shape, dtype=F64) for name, p in model.named_parameters()}
    expected = products(llr.jacobian(model, x, params=points, backend="loop"))
    K = llr.gram(model, x, params=points, backend=backend, precision=precision)
    assert_matches(whole(K, precision), expected)
    R = triangle(model, x, points)
    assert_matches(R.mT @ R, expected.flatten(3).flatten(1, 2))


@pytest.mark.parametrize("backend", ["auto", "dense"])
def test_callables(backend):
    params, x = affine_params(), samples()
    expected = products(reference.jacobian(affine, x, params))
    assert_matches(llr.gram(affine, x, params=params, backend=backend), expected)
    R = triangle(affine, x, params)
    assert_matches(R.mT @ R, expected.flatten(2).flatten(0, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "conv2d", "nested", "embedding", "lstm"])
def test_few_samples(case, backend):
    model, x = make(case)
    expected = products(reference.jacobian(model, x[:1]))
    assert_matches(llr.gram(model, x[:1], backend=backend), expected)
    q = expected.shape[1]
    assert llr.gram(model, x[:0], backend=backend).shape == (0, q, 0, q)
    assert llr.gram(model, x[:0], backend=backend, precision="double-double").shape[0] == 2
    assert triangle(model, x[:0]).shape == (0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "attention"])
def test_within_inference_mode(case, backend):
    model, x = make(case)
    expected = products(reference.jacobian(model, x))
    with torch.inference_mode():
        assert_matches(llr.gram(model, x, backend=backend), expected)
    with torch.no_grad():
        assert_matches(llr.gram(model, x, backend=backend), expected)


# --- digits ------------------------------------------------------------------------------------------


def pairs_of(K: Tensor) -> list[Fraction]:
    return [
        Fraction(h) + Fraction(low)
        for h, low in zip(K[0].flatten().tolist(), K[1].flatten().tolist(), strict=True)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_double_is_exact_to_106_bits(backend):
    # J of a linear layer holds the samples themselves, so K is x_i . x_k + 1 without any rounding before.
    x = samples(6, 9) * torch.logspace(-8, 8, 9, dtype=F64)
    x[1::2] = x[::2] + 1e-12 * x[1::2]
    model = nn.Linear(9, 1).double()
    K = llr.gram(model, x, backend=backend, precision="double-double")
    rows = [[Fraction(v) for v in row] for row in x.tolist()]
    for found, (a, b) in zip(pairs_of(K), itertools.product(rows, rows), strict=True):
        terms = [p * r for p, r in zip(a, b, strict=True)]
        assert abs(found - sum(terms) - 1) <= 20 * Fraction(2) ** -104 * (sum(map(abs, terms)) + 1)
    coarse = llr.gram(model, x, backend=backend)
    assert_matches(coarse, K[0] + K[1], 1e-14)


@pytest.mark.parametrize("case", ["mlp", "layer norm", "conv1d", "attention"])
def test_double_double_against_flint(case):
    model, x = make(case)
    J = reference.jacobian(model, x).flatten(0, 1)
    with precision(300):
        balls = flint.arb_mat(J.tolist())
        exact = balls * balls.transpose()
        largest = max(abs(entry) for entry in exact.entries())
        K = llr.gram(model, x, backend="layers", precision="double-double")
        entries = zip(
            K[0].flatten().tolist(), K[1].flatten().tolist(), exact.entries(), strict=True
        )
        for high, low, entry in entries:
            assert abs(flint.arb(high) + flint.arb(low) - entry) <= 1e-13 * largest


def hard_net() -> tuple[nn.Module, Tensor]:
    """In one dimension, where the singular values fall by many orders of magnitude."""
    model = mlp(1, 8, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model, samples(30, 1)


def singular_values(A: Tensor) -> list[float]:
    with mpmath.workdps(60):
        values = mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False)
        return sorted((float(v) for v in values), reverse=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_singular_values_as_accurate_as_those_of_the_jacobian(backend):
    model, x = hard_net()
    J = llr.jacobian(model, x).flatten(0, 1)
    expected = singular_values(J.mT)
    allowed = 10 * len(J) * 2.0**-52 * expected[0]
    assert expected[-1] < 1e-12 * expected[0], "a spectrum that reaches the end of float64"
    K = llr.gram(model, x, backend=backend, precision="double-double")
    L = _ops.gram_factor(K.reshape(2, 30, 30))
    found = torch.linalg.svdvals(L).tolist() + [0.0] * len(expected)
    for value, true in zip(found, expected, strict=False):
        assert abs(value - true) <= allowed
    for value, true in zip(
        torch.linalg.svdvals(triangle(model, x)).tolist(), expected, strict=True
    ):
        assert abs(value - true) <= allowed
    # A float64 K has lost the lower half of the digits.
    eigenvalues = torch.linalg.eigvalsh(llr.gram(model, x, backend=backend).reshape(30, 30))
    coarse = eigenvalues.clamp(min=0).sqrt().flip(0)[: len(expected)]
    wrong = [abs(float(v) - t) > allowed for v, t in zip(coarse, expected, strict=True)]
    assert sum(wrong) >= 5


# --- properties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "conv2d", "embedding"])
def test_symmetric_and_permuted_with_the_samples(case, backend):
    model, x = make(case)
    K = llr.gram(model, x, backend=backend)
    assert_matches(K, K.permute(2, 3, 0, 1), 1e-15)
    order = torch.randperm(len(x))
    assert_matches(llr.gram(model, x[order], backend=backend), K[order][:, :, order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_the_parameters_add_up(backend):
    model, x = make("conv1d")
    parts = [llr.gram(model, x, params=name, backend=backend) for name in llr.layout(model)]
    assert_matches(torch.stack(parts).sum(0), llr.gram(model, x, backend=backend))


# --- memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["mlp", "layer norm", "conv1d", "lstm"])
def test_the_least_budget_gives_the_same(case, backend):
    model, x = make(case)
    expected = products(reference.jacobian(model, x))
    N = len(x) * expected.shape[1]
    with llr.set_memory_budget(8 * N * N + 8 * N * 64):
        assert_matches(llr.gram(model, x, backend=backend), expected)
        assert_matches(llr.gram(model, x, backend=backend, chunk_size=1), expected)
    with llr.set_memory_budget(3 * 8 * N * N + 8 * N * 64):
        R = triangle(model, x)
    assert_matches(R.mT @ R, expected.reshape(N, N))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_does_not_fit_is_refused(precision):
    model, x = mlp(3, 4, 2), samples(100)
    nbytes = 8 * 200**2 * (2 if precision == "double-double" else 1)
    with llr.set_memory_budget(nbytes), pytest.raises(ValueError, match="Gram matrix") as refusal:
        llr.gram(model, x, precision=precision)
    assert f"{nbytes} bytes" in str(refusal.value)
    assert "llr.set_memory_budget" in str(refusal.value)
    with llr.set_memory_budget(10**5), pytest.raises(ValueError, match="triangular factor of 200"):
        triangle(model, x)


def test_no_bytes_for_parameters():
    # 12 million of them and 40 samples: J would take 3.8 GB.
    model, x = mlp(10, 2000, 2000, 2000, 2000, 1, dtype=F32), samples(40, 10, dtype=F32)
    with llr.set_memory_budget("200 MB"):
        with pytest.raises(ValueError, match="more than the memory budget"):
            llr.jacobian(model.double(), x.double())
        K = llr.gram(model, x.double())
    assert_matches(K[:3, :, :3], products(llr.jacobian(model, x[:3].double())))


# --- arguments ---------------------------------------------------------------------------------------


def test_bad_arguments():
    model, x = make("mlp")
    with pytest.raises(
        ValueError, match=r"precision is 'quad'; expected one of float64, double-double"
    ):
        llr.gram(model, x, precision="quad")
    with pytest.raises(
        ValueError, match=r"backend is 'loop'; expected one of auto, native, layers, dense"
    ):
        llr.gram(model, x, backend="loop")
    for chunk_size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="chunk_size"):
            llr.gram(model, x, chunk_size=chunk_size)
    with pytest.raises(ValueError, match="backend='native' cannot compute this model: LayerNorm"):
        llr.gram(*make("layer norm"), backend="native")
    with pytest.raises(ValueError, match="backend='layers' reads the layers"):
        llr.gram(affine, x, params=affine_params(), backend="layers")
    with pytest.raises(ValueError, match="nan at index"):
        llr.gram(model, x * torch.nan)
    with pytest.raises(ValueError, match=r"model\.eval"):
        llr.gram(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double(), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interacting_samples_are_refused(backend):
    model = Model(lambda m, x: m.a(x) - m.a(x).mean(0), a=nn.Linear(3, 2)).double()
    with pytest.raises(ValueError, match="samples interact"):
        llr.gram(model, samples(), backend=backend)


def test_the_model_is_left_as_it_was():
    model, x = make("conv1d")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    llr.gram(model, x)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
