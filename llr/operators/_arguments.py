"""Checks of the native operators' arguments, for code that runs without kernels: fake kernels, derivatives.

The messages are those of csrc/common/mlp_arguments.cpp and the other *_arguments. Sizes may be symbolic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llr.operators.formula import ACTIVATIONS

FLOATS = (torch.float64, torch.float32)


def _check(op: str, condition: Any, message: str) -> None:
    """Raise RuntimeError unless the condition holds; torch records a condition that depends on symbols."""
    if condition is False:
        raise RuntimeError(f"{op}: {message}")
    if condition is not True:
        torch._check(condition, lambda: f"{op}: {message}")


def check_plain(op: str, name: str, t: Tensor) -> None:
    """Check for a strided tensor of numbers; torch accepts None where the schema says tensor."""
    _check(op, isinstance(t, Tensor), f"{name} is {type(t).__name__}; expected a tensor")
    what = "is nested" if t.is_nested else "is quantized" if t.is_quantized else ""
    if not what and t.layout is not torch.strided:
        what = f"has the layout {t.layout}"
    _check(op, not what, f"{name} {what}; expected a strided tensor of numbers")


def check_tensor(
    op: str, name: str, t: Tensor, dtypes: Sequence[torch.dtype], dims: Sequence[int], shape: str
) -> None:
    check_plain(op, name, t)
    expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    _check(op, t.dtype in dtypes, f"{name} is {t.dtype}; expected {expected}")
    _check(op, t.dim() in dims, f"{name} has shape {list(t.shape)}; expected {shape}")


def check_device(op: str, name: str, t: Tensor, other: str, device: torch.device) -> None:
    _check(
        op,
        t.device == device,
        f"{name} is on {t.device} but {other} is on {device}; expected one device",
    )


def check_lists(op: str, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    _check(op, len(weights) > 0, "no weights; expected one per layer")
    _check(
        op,
        len(weights) == len(biases),
        f"{len(weights)} weights and {len(biases)} biases; expected one bias, or None, per weight",
    )


def check_bytes(op: str, shape: Sequence[Any], item: int) -> None:
    if all(isinstance(size, int) for size in shape):
        _check(
            op,
            math.prod(shape) * item < 2**63,
            f"a result of shape {list(shape)} has more than 2^63 bytes",
        )


def check_mlp(
    op: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None,
) -> None:
    """Check the arguments of ``mlp_jacobian`` and ``mlp_gram``."""
    _check(
        op,
        activation in ACTIVATIONS,
        f"unknown activation {activation[:99]!r}; expected one of {', '.join(ACTIVATIONS)}",
    )
    check_tensor(
        op, "x", x, FLOATS, (2, 3), "(n, d), or (B, n, d) with a batch of parameter points"
    )
    _check(op, x.shape[-1] > 0, f"x has shape {list(x.shape)}; expected at least one input")
    check_lists(op, weights, biases)
    batch = weights[0].dim() - 2
    check_tensor(op, "weights[0]", weights[0], (x.dtype,), (2, 3), "(out, in), or (B, out, in)")
    points = [weights[0].shape[0]] if batch else []
    if batch and x.dim() == 3:
        _check(
            op,
            x.shape[0] == points[0],
            f"x has shape {list(x.shape)} but there are {points[0]} parameter points; expected the same "
            "leading size",
        )
    width = x.shape[-1]
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        _check_layer(op, i, w, b, x, points, width)
        width = w.shape[-2]
    if columns is not None:
        _check_columns(op, weights, biases, columns)


def _check_layer(
    op: str, i: int, w: Tensor, b: Tensor | None, x: Tensor, points: list[Any], width: Any
) -> None:
    name, batch = f"weights[{i}]", "B, " * len(points)
    check_tensor(op, name, w, (x.dtype,), (2 + len(points),), f"({batch}out, in) as weights[0]")
    check_device(op, name, w, "x", x.device)
    _check(
        op,
        w.shape[-1] == width,
        f"{name} has shape {list(w.shape)}; expected {width} columns, the width of what it is fed",
    )
    _check(op, w.shape[-2] > 0, f"{name} has shape {list(w.shape)}; expected at least one neuron")
    if b is not None:
        check_tensor(op, f"biases[{i}]", b, (x.dtype,), (1 + len(points),), f"({batch}out)")
        check_device(op, f"biases[{i}]", b, "x", x.device)
        _check(
            op,
            b.shape[-1] == w.shape[-2],
            f"biases[{i}] has shape {list(b.shape)}; expected ({batch}{w.shape[-2]}) to go with {name} of "
            f"shape {list(w.shape)}",
        )
    for kind, t in (("weights", w), ("biases", b)):
        if points and t is not None:
            _check(
                op,
                t.shape[0] == points[0],
                f"{kind}[{i}] has shape {list(t.shape)} but there are {points[0]} parameter points",
            )


def _check_columns(
    op: str,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    columns: Sequence[int],
) -> None:
    layers = len(weights)
    _check(
        op,
        len(columns) == 2 * layers,
        f"columns has {len(columns)} entries; expected {2 * layers} (first column of weight and bias of each "
        f"of {layers} layers, -1 to leave one out)",
    )
    spans = []
    for k, first in enumerate(columns):
        bias = biases[k // 2]
        _check(
            op,
            first >= -1,
            f"columns[{k}] is {first}; expected a column, or -1 to leave the tensor out",
        )
        _check(
            op,
            first == -1 or k % 2 == 0 or bias is not None,
            f"columns places the bias of layer {k // 2}, which has none; expected -1",
        )
        if first != -1:
            w = weights[k // 2]
            spans.append((first, w.shape[-2] * w.shape[-1] if k % 2 == 0 else w.shape[-2]))
    _check(op, bool(spans), "every tensor is left out; expected at least one column")
    following = 0
    for first, count in sorted(spans, key=lambda span: span[0]):
        _check(
            op,
            first == following,
            "columns must follow one another without gap or overlap; a tensor of "
            f"{count} numbers starts at {first}, expected {following}",
        )
        following = following + count


def check_out(out: Tensor, x: Tensor, shape: Sequence[Any]) -> None:
    """Check the argument ``out`` of ``mlp_jacobian.out``."""
    check_plain("mlp_jacobian", "out", out)
    _check(
        "mlp_jacobian",
        len(out.shape) == len(shape),
        f"out has shape {list(out.shape)}; expected {list(shape)}",
    )
    for found, expected in zip(out.shape, shape, strict=True):
        _check(
            "mlp_jacobian",
            found == expected,
            f"out has shape {list(out.shape)}; expected {list(shape)}",
        )
    _check(
        "mlp_jacobian",
        out.dtype == x.dtype and out.device == x.device,
        f"out is {out.dtype} on {out.device}; expected {x.dtype} on {x.device}",
    )


def check_gram_add(K: Tensor, delta: Tensor, a: Tensor) -> None:
    op, double = "gram_add_", (torch.float64,)
    check_tensor(op, "K", K, double, (2, 3), "(N, N), or (2, N, N) in double-double")
    halves = K.shape[0] == 2 if K.dim() == 3 else True
    for condition in (halves, K.shape[-1] == K.shape[-2]):
        _check(
            op,
            condition,
            f"K has shape {list(K.shape)}; expected (N, N), or (2, N, N) in double-double",
        )
    for name, t in (("delta", delta), ("a", a)):
        check_tensor(op, name, t, double, (3,), f"({K.shape[-1]}, T, width)")
        check_device(op, name, t, "K", K.device)
        for condition in (t.shape[0] == K.shape[-1], t.shape[1] == delta.shape[1]):
            _check(
                op,
                condition,
                f"{name} has shape {list(t.shape)}; expected ({K.shape[-1]}, T, width)",
            )


def check_gram_factor(K: Tensor) -> None:
    op, shape = "gram_factor", "(2, N, N) or (2, B, N, N), high and low parts"
    check_tensor(op, "K", K, (torch.float64,), (3, 4), shape)
    for condition in (K.shape[0] == 2, K.shape[-1] == K.shape[-2]):
        _check(op, condition, f"K has shape {list(K.shape)}; expected {shape}")


def check_svdvals(A: Tensor, sweeps: int) -> None:
    check_plain("svdvals", "A", A)
    _check("svdvals", A.dtype in FLOATS, f"A is {A.dtype}; expected float32 or float64")
    _check("svdvals", A.dim() >= 2, f"A has shape {list(A.shape)}; expected (..., m, n)")
    _check("svdvals", 0 <= sweeps <= 1000, f"sweeps is {sweeps}; expected 0 to 1000")


def check_lm(theta: Tensor, x: Tensor, y: Tensor, which: Tensor) -> None:
    """Check those arguments of ``lm_solve`` that determine the shapes of the results."""
    op, double = "lm_solve", (torch.float64,)
    check_tensor(op, "theta", theta, double, (2,), "(S, P)")
    check_tensor(op, "x", x, double, (3,), "(B, n, inputs)")
    check_tensor(op, "y", y, double, (3,), "(B, n, outputs)")
    check_tensor(op, "which", which, (torch.int64,), (1,), "(S)")
    for name, t in (("x", x), ("y", y), ("which", which)):
        check_device(op, name, t, "theta", theta.device)
    _check(
        op,
        which.shape[0] == theta.shape[0],
        f"which has shape {list(which.shape)}; expected ({theta.shape[0]}), a data set for each row of theta",
    )
