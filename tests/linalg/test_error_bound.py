"""Bounds of the errors of Jacobians, by the operators and by the formula in torch, compared with balls."""

from __future__ import annotations

import math
import os
import random
from itertools import pairwise

import pytest
import torch
from flint import arb, ctx
from torch import Tensor, nn
from torch.library import opcheck

from llr.exact.network import read_network
from llr.inputs.activations import ACTIVATIONS, activation_layer
from llr.inputs.problem import read_problem
from llr.jacobians.jacobian import evaluate
from llr.jacobians.paths import native_arguments
from llr.linalg.error_bound import estimated_error, layer_errors, row_errors, svd_error
from llr.operators import _ops

F64, F32 = torch.float64, torch.float32
CASES = int(os.environ.get("LLR_RANDOM_CASES", "20"))
native = pytest.mark.skipif(not _ops.NATIVE, reason="needs the native library")

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@pytest.fixture(autouse=True)
def bits():
    before = ctx.prec
    ctx.prec = 700
    with torch.no_grad():
        yield
    ctx.prec = before


def network(
    widths: list[int], activation: str, choice: random.Random, scale: float, dtype=F64
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out, bias=choice.random() < 0.7), activation_layer(activation)]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    for p in model.parameters():
        p.copy_(scale * torch.randn(p.shape, dtype=F64))
    return model


def arguments(model: nn.Module, x: Tensor, params=None):
    return native_arguments(read_problem(model, x, params))


def formula(model: nn.Module, x: Tensor, *, autograd: bool = False) -> Tensor:
    """The bound in torch operations."""
    x, weights, biases, activation, columns = arguments(model, x)
    return row_errors(
        layer_errors(x, weights, biases, activation, autograd=autograd),
        weights[-1].shape[-2],
        lambda layer, bias: columns is None or columns[2 * layer + bias] >= 0,
        [b is not None for b in biases],
        single=x.dtype == F32,
    )


def true_errors(model: nn.Module, x: Tensor, J: Tensor) -> list[arb]:
    """For each row, the norm of its difference from the exact Jacobian, computed in balls."""
    exact = read_network(model, x).jacobian(700)
    rows = []
    for i, row in enumerate(J.flatten(0, -2).double().tolist()):
        squares = [(exact[i, j] - arb(v)) ** 2 for j, v in enumerate(row)]
        rows.append(sum(squares, arb(0)).sqrt())
    return rows


def assert_bounds(bounds: Tensor, errors: list[arb], what: str) -> float:
    """Assert that no error is above its bound, and return the largest ratio of the two.

    Infinite balls (from the exponential of a number near 1e300) are skipped.
    """
    most = 0.0
    for bound, error in zip(bounds.flatten().tolist(), errors, strict=True):
        if bound == math.inf or not error.is_finite():
            continue
        assert error.upper() <= arb(bound), f"{what}: {error} above {bound}"
        most = max(most, float(error.mid()) / bound)
    return most


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_random_networks(activation: str) -> None:
    most = 0.0
    for case in range(CASES):
        choice = random.Random(f"{activation} {case}")
        torch.manual_seed(choice.randrange(2**31))
        depth = choice.randint(1, 6)
        widths = [choice.randint(1, 5) for _ in range(depth + 1)]
        model = network(widths, activation, choice, choice.choice((0.1, 1.0, 1.0, 3.0, 10.0)))
        if choice.random() < 0.4:
            linears = [m for m in model if isinstance(m, nn.Linear)]
            choice.choice(linears).weight.mul_(10.0 ** choice.randint(-150, 150))
        x = 10.0 ** choice.choice((0, 0, 0, -3, 3, -150, 150)) * torch.randn(
            3, widths[0], dtype=F64
        )
        J = evaluate(model, x)[0]
        if not torch.isfinite(J).all():
            continue
        errors = true_errors(model, x, J)
        most = max(most, assert_bounds(formula(model, x), errors, f"formula {case}"))
        if _ops.NATIVE:
            again, bounds = _ops.mlp_jacobian_with_error(*arguments(model, x))
            assert torch.equal(again, J)
            assert_bounds(bounds, errors, f"operator {case}")
            assert torch.equal(_ops.mlp_gram_with_error(*arguments(model, x))[1], bounds)
    assert most > 1e-4  # a bound that is always far too large would be useless


@pytest.mark.parametrize(
    "activation", ["tanh", "sigmoid", "gelu", "silu", "softplus", "erf", "sin"]
)
@pytest.mark.parametrize("backend", ["torch", "loop"])
def test_what_torch_computes(activation: str, backend: str) -> None:
    for case in range(max(4, CASES // 4)):
        choice = random.Random(f"{activation} {case}")
        torch.manual_seed(case)
        model = network([2, 4, 3, 1], activation, choice, choice.choice((0.3, 1.0, 4.0)))
        x = torch.randn(4, 2, dtype=F64)
        J = evaluate(model, x, backend=backend)[0]
        assert_bounds(formula(model, x, autograd=True), true_errors(model, x, J), f"case {case}")


@native
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("units", [False, True])
def test_large_layers_are_bounded_by_norms(activation: str, units: bool) -> None:
    choice = random.Random(0)
    torch.manual_seed(0)
    model = network([3, 70, 72, 2], activation, choice, 0.3)
    if units and activation == "relu":  # the same function with neurons in other units
        scale = 2.0 ** torch.randint(-60, 60, (70,)).double()
        model[0].weight.mul_(scale[:, None])
        if model[0].bias is not None:
            model[0].bias.mul_(scale)
        model[2].weight.div_(scale)
    x = torch.randn(2, 3, dtype=F64)
    bounds = _ops.mlp_jacobian_with_error(*arguments(model, x))[1]
    direct = formula(model, x)
    # A network of one sample and output, so that balls do not take long.
    small, x1 = nn.Sequential(*model[:-1], nn.Linear(72, 1, dtype=F64)), x[:1]
    J, one = _ops.mlp_jacobian_with_error(*arguments(small, x1))
    assert_bounds(one, true_errors(small, x1, J), activation)
    assert (direct <= 1.5 * bounds).all()
    assert (bounds <= 10 * direct).all()
    assert torch.equal(_ops.mlp_gram_with_error(*arguments(model, x))[1], bounds)


@native
def test_float32() -> None:
    for case in range(CASES):
        choice = random.Random(case)
        torch.manual_seed(case)
        activation = choice.choice(sorted(ACTIVATIONS))
        model = network([2, 3, 2], activation, choice, 1.0, F32)
        x = torch.randn(3, 2)
        J, bounds = _ops.mlp_jacobian_with_error(*arguments(model, x))
        assert J.dtype == F32
        assert bounds.dtype == F64
        errors = true_errors(model.double(), x.double(), J)
        assert_bounds(bounds, errors, activation)
        assert_bounds(formula(model.float(), x), errors, activation)
        size = J.double().flatten(0, 1).norm(dim=-1).view_as(bounds)
        assert (bounds <= 1e-6 * size + 1e-12).all()


@native
def test_columns_that_are_left_out() -> None:
    torch.manual_seed(0)
    model = network([2, 4, 3, 2], "tanh", random.Random(1), 1.0)
    for p in model.parameters():
        p.requires_grad_(True)
    x = torch.randn(5, 2, dtype=F64)
    whole = _ops.mlp_jacobian_with_error(*arguments(model, x))[1]
    total = torch.zeros_like(whole)
    for name, _ in model.named_parameters():
        problem = read_problem(model, x, name)
        J, bounds = _ops.mlp_jacobian_with_error(*native_arguments(problem))
        assert torch.equal(J, _ops.mlp_jacobian(*native_arguments(problem)))
        assert (bounds <= whole).all()
        total += bounds.square()
    torch.testing.assert_close(total.sqrt(), whole, rtol=1e-6, atol=0)


@native
def test_stacked_points_and_many_outputs() -> None:
    torch.manual_seed(0)
    models = [network([3, 5, 40], "silu", random.Random(2), 1.0) for _ in range(3)]
    x = torch.randn(150, 3, dtype=F64)
    stacked = torch.func.stack_module_state(models)[0]
    J, bounds = _ops.mlp_jacobian_with_error(*native_arguments(read_problem(models[0], x, stacked)))
    assert bounds.shape == J.shape[:-1]
    for one, row in zip(models, bounds, strict=True):
        torch.testing.assert_close(
            row, _ops.mlp_jacobian_with_error(*arguments(one, x))[1], rtol=1e-12, atol=0
        )


@native
def test_what_is_not_known_is_infinite() -> None:
    model = network([1, 2, 1], "softplus", random.Random(3), 1.0)
    model[0].weight.fill_(1e200)
    model[2].weight.fill_(1e200)
    bounds = _ops.mlp_jacobian_with_error(*arguments(model, torch.ones(1, 1, dtype=F64)))[1]
    assert not torch.isnan(bounds).any()
    assert bounds.item() == math.inf


@native
def test_kinks() -> None:
    # At x = 0 a sum of zeros is exactly zero, so its side of the kink is certain; near 0 it is uncertain.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    model[0].weight.copy_(torch.tensor([[1.0, 3.0], [1.0, 2.0]]))
    bounds = _ops.mlp_jacobian_with_error(
        *arguments(model, torch.tensor([[0.0, 0.0], [1.0, -1 / 3], [1.0, 1.0]], dtype=F64))
    )[1].flatten()
    assert bounds[0] < 1e-100
    assert bounds[1] > 0.1 * model[2].weight[0, 0].abs()
    assert bounds[2] < 1e-13


@native
def test_threads_do_not_matter() -> None:
    torch.manual_seed(0)
    model = network([4, 150, 130, 3], "tanh", random.Random(4), 0.3)
    x = torch.randn(300, 4, dtype=F64)
    one = _ops.mlp_jacobian_with_error(*arguments(model, x))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = _ops.mlp_jacobian_with_error(*arguments(model, x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], three[0])
    assert torch.equal(one[1], three[1])


@native
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_opcheck() -> None:
    for points in (None, 2):
        lead = () if points is None else (points,)
        x = torch.randn(3, 2, dtype=F64)
        weights = [torch.randn(*lead, 4, 2).double(), torch.randn(*lead, 1, 4).double()]
        args = (x, weights, [torch.randn(*lead, 4).double(), None], "tanh", None)
        opcheck(torch.ops.llr.mlp_jacobian_with_error.default, args)
        opcheck(torch.ops.llr.mlp_gram_with_error.default, (*args, True))


@native
def test_bad_arguments() -> None:
    x, w = torch.ones(2, 3), [torch.ones(1, 3)]
    for op in (torch.ops.llr.mlp_jacobian_with_error, torch.ops.llr.mlp_gram_with_error):
        name = op.default.name().removeprefix("llr::")
        with pytest.raises(RuntimeError, match=rf"{name}: unknown activation 'cube'"):
            op(x, w, [None], "cube")
        with pytest.raises(RuntimeError, match=rf"{name}: weights\[0\] has shape"):
            op(x, [torch.ones(1, 4)], [None], "tanh")


@pytest.mark.parametrize("dtype", [F64, F32])
def test_singular_values_of_known_matrices(dtype: torch.dtype) -> None:
    # For exactly rank-deficient matrices, the computed values of exact zeros are below their error bound.
    generator = torch.Generator().manual_seed(0)
    for case in range(CASES):
        m, n, r = 4 + case % 9, 3 + case % 13, 1 + case % 3
        left, right = (
            torch.randint(-3, 4, shape, generator=generator).to(dtype) for shape in ((m, r), (r, n))
        )
        values = torch.linalg.svdvals(left @ right)  # whole numbers: no rounding
        assert (values[r:] <= svd_error(values, min(m, n), dtype)).all()


def test_empty_spectra() -> None:
    nothing = torch.zeros(2, 0)
    assert svd_error(nothing, 0, F32).tolist() == [0.0, 0.0]
    assert estimated_error(nothing, 0, 0, F64).tolist() == [0.0, 0.0]
