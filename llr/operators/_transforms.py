"""What torch's transforms need to know of the native operators: shapes, derivatives, vmap rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llr.operators import _arguments, _ops, formula


def result_shape(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    columns: Sequence[int] | None,
) -> list[Any]:
    batch = weights[0].shape[:-2] if weights[0].dim() == 3 else x.shape[:-2]
    count: Any = 0
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if columns is None or columns[2 * layer] >= 0:
            count = count + w.shape[-2] * w.shape[-1]
        if b is not None and (columns is None or columns[2 * layer + 1] >= 0):
            count = count + w.shape[-2]
    return [*batch, x.shape[-2], weights[-1].shape[-2], count]


def _checked_shape(
    op: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
) -> list[Any]:
    _arguments.check_mlp(op, x, weights, biases, activation, columns)
    return result_shape(x, weights, biases, columns)


def _empty_jacobian(op: str, x: Tensor, *network: Any) -> tuple[Tensor, Tensor]:
    """J, and the errors of its rows."""
    shape = _checked_shape(op, x, *network)
    _arguments.check_bytes(op, shape, x.element_size())
    return x.new_empty(shape), x.new_empty(shape[:-1], dtype=torch.float64)


def _fake_jacobian(*network: Any) -> Tensor:
    return _empty_jacobian("mlp_jacobian", *network)[0]


def _fake_jacobian_with_error(*network: Any) -> tuple[Tensor, Tensor]:
    return _empty_jacobian("mlp_jacobian_with_error", *network)


def _fake_jacobian_out(x: Tensor, *network: Any, out: Tensor) -> None:
    _arguments.check_out(out, x, _checked_shape("mlp_jacobian", x, *network))


def _empty_gram(
    op: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
    double_double: bool = False,
) -> tuple[Tensor, Tensor]:
    """J J', and the errors of the rows of J."""
    *rows, _ = _checked_shape(op, x, weights, biases, activation, columns)
    shape = [*([2] if double_double else []), *rows, *rows[-2:]]
    _arguments.check_bytes(op, shape, 8)
    return x.new_empty(shape, dtype=torch.float64), x.new_empty(rows, dtype=torch.float64)


def _fake_gram(*arguments: Any) -> Tensor:
    return _empty_gram("mlp_gram", *arguments)[0]


def _fake_gram_with_error(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _empty_gram("mlp_gram_with_error", *arguments)


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
) -> tuple[Tensor, int]:
    """Make one call for the whole batch: vmapped parameter points become the operator's own batch."""
    size = info.batch_size
    _arguments.check_lists("mlp_jacobian", weights, biases)
    x_dim, weight_dims, bias_dims, *_ = in_dims
    weight_dims = weight_dims or [None] * len(weights)
    bias_dims = bias_dims or [None] * len(biases)

    def front(t: Tensor, dim: int | None) -> Tensor:
        return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)

    for name, tensors in (("x", [x]), ("weights", weights), ("biases", biases)):
        for t in tensors:
            if t is not None:
                _arguments.check_plain("mlp_jacobian", name, t)
    only_x = all(d is None for d in weight_dims) and all(d is None for d in bias_dims)
    for name, t, dim in (("x", x, x_dim), ("weights[0]", weights[0], weight_dims[0])):
        logical = t.dim() - (dim is not None)
        if logical not in (2, 3):
            raise RuntimeError(
                f"mlp_jacobian: under vmap {name} has {logical} dimensions; expected (n, d) and (out, in), "
                "or (B, n, d) and (B, out, in) with a batch of parameter points"
            )
    points = weights[0].dim() - (weight_dims[0] is not None) == 3 or (
        x.dim() - (x_dim is not None) == 3
    )
    if only_x and not points:
        return _ops.mlp_jacobian(front(x, x_dim), weights, biases, activation, columns), 0
    moved_w = [front(w, d) for w, d in zip(weights, weight_dims, strict=True)]
    moved_b = [None if b is None else front(b, d) for b, d in zip(biases, bias_dims, strict=True)]
    if not points:
        moved_x = x if x_dim is None else front(x, x_dim)
        return _ops.mlp_jacobian(moved_x, moved_w, moved_b, activation, columns), 0
    # There already is a batch of parameter points: merge the two.
    moved_x = front(x, x_dim)
    inner = moved_x.shape[1] if moved_x.dim() == 4 else moved_w[0].shape[1]

    def merged(t: Tensor, dims: int) -> Tensor:
        if t.dim() == dims + 1:  # no batch of its own
            t = t.unsqueeze(1).expand(size, inner, *t.shape[1:])
        return t.flatten(0, 1)

    result = _ops.mlp_jacobian(
        merged(moved_x, 2),
        [merged(w, 2) for w in moved_w],
        [None if b is None else merged(b, 1) for b in moved_b],
        activation,
        columns,
    )
    return result.unflatten(0, (size, inner)), 0


def _fake_gram_add(K: Tensor, delta: Tensor, a: Tensor, bias: bool, weight: bool) -> None:
    _arguments.check_gram_add(K, delta, a)


def _fake_gram_factor(K: Tensor) -> Tensor:
    _arguments.check_gram_factor(K)
    try:
        rank = torch.library.get_ctx().new_dynamic_size()
    except RuntimeError as error:  # K is on meta, not a fake tensor with unknown sizes
        raise RuntimeError(
            "gram_factor: K is on meta; the rank of a matrix without numbers is not known"
        ) from error
    return K.new_empty((*K.shape[1:-1], rank))


def _fake_svdvals(A: Tensor, *, sweeps: int = 100) -> Tensor:
    _arguments.check_svdvals(A, sweeps)
    return A.new_empty((*A.shape[:-2], min(A.shape[-2:])))


def _vmap_svdvals(
    info: Any, in_dims: tuple[Any, ...], A: Tensor, *, sweeps: int = 100
) -> tuple[Tensor, int]:
    return _ops.svdvals(A.movedim(in_dims[0], 0), sweeps), 0


def _formula(x: Tensor, *network: Any) -> Tensor:
    """The operator in torch operations, without checks: the autograd kernel has checked the arguments."""
    try:
        return formula.mlp_jacobian(x, *network)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        shape = _checked_shape("mlp_jacobian", x, *network)
        _arguments.check_bytes("mlp_jacobian", shape, x.element_size())
        if "DefaultCPUAllocator" in str(error):
            raise RuntimeError(
                f"mlp_jacobian: not enough memory for a result of shape {shape}"
            ) from error
        raise


def _fake_lm_solve(
    theta: Tensor, x: Tensor, y: Tensor, which: Tensor, *model: Any, **options: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _arguments.check_lm(theta, x, y, which)
    integers = theta.new_empty(theta.shape[0], dtype=torch.int64)
    return (
        torch.empty_like(theta, memory_format=torch.contiguous_format),
        theta.new_empty(theta.shape[0]),
        integers,
        torch.empty_like(integers),
    )


FAKES: dict[str, Callable[..., Any]] = {
    "mlp_jacobian": _fake_jacobian,
    "mlp_jacobian.out": _fake_jacobian_out,
    "mlp_jacobian_with_error": _fake_jacobian_with_error,
    "mlp_gram": _fake_gram,
    "mlp_gram_with_error": _fake_gram_with_error,
    "gram_add_": _fake_gram_add,
    "gram_factor": _fake_gram_factor,
    "svdvals": _fake_svdvals,
    "lm_solve": _fake_lm_solve,
}
"""The fake kernel of each operator."""

if _ops.NATIVE:
    for name, fake in FAKES.items():
        torch.library.register_fake(f"llr::{name}", fake)
    torch.library.impl("llr::_mlp_jacobian_formula", "CompositeImplicitAutograd")(_formula)
    torch.library.register_vmap("llr::mlp_jacobian", _vmap)
    torch.library.register_vmap("llr::svdvals", _vmap_svdvals)
