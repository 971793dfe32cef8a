"""The calls of fuzz.py: correct calls of every operator, and ways to make them wrong."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llr.operators import _transforms

Call = tuple[list[Any], dict[str, Any]]


def normal(r: random.Random, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(r.getrandbits(32))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def size(r: random.Random, most: int = 7) -> int:
    return r.choice([0, 1, 1, 2, 3, 5, most]) if r.random() < 0.3 else r.randint(1, most)


# --- right calls -------------------------------------------------------------------------------------


def network(r: random.Random) -> Call:
    dtype = r.choice([torch.float64, torch.float64, torch.float32])
    widths = [r.randint(1, 6) for _ in range(r.randint(2, 4))]
    n, wide = size(r, 40), r.random() < 0.05
    if wide:
        widths[1], n = r.choice([100, 200]), min(n, 4)
    batch = [r.randint(1, 3)] if r.random() < 0.3 else []
    own_x = bool(batch) and r.random() < 0.5
    x = normal(r, *(batch if own_x else []), n, widths[0], dtype=dtype)
    pairs = list(itertools.pairwise(widths))
    weights = [normal(r, *batch, o, i, dtype=dtype) for i, o in pairs]
    biases = [normal(r, *batch, o, dtype=dtype) if r.random() < 0.7 else None for _, o in pairs]
    activation = r.choice(
        ["identity", "tanh", "sigmoid", "relu", "softplus", "gelu", "silu", "erf", "sin"]
    )
    arguments: list[Any] = [x, weights, biases, activation]
    if r.random() < 0.4:
        arguments.append(some_columns(r, weights, biases))
    return arguments, {}


def some_columns(
    r: random.Random, weights: list[Tensor], biases: list[Tensor | None]
) -> list[int] | None:
    columns = [-1] * (2 * len(weights))
    order = list(range(len(columns)))
    r.shuffle(order)
    at = 0
    for k in order:
        tensor = (weights, biases)[k % 2][k // 2]
        if tensor is None or r.random() < 0.2:
            continue
        columns[k] = at
        at += tensor.shape[-2] * tensor.shape[-1] if k % 2 == 0 else tensor.shape[-1]
    return columns if r.random() < 0.9 else None


def jacobian_out(r: random.Random) -> Call:
    arguments, _ = network(r)
    x, weights, biases, _, *columns = arguments
    shape = _transforms.result_shape(x, weights, biases, columns[0] if columns else None)
    return arguments, {"out": x.new_zeros(shape)}


def gram(r: random.Random) -> Call:
    arguments, _ = network(r)
    options = {"double_double": r.random() < 0.5}
    return arguments, options if r.random() < 0.8 else {}


def gram_add(r: random.Random) -> Call:
    rows, positions = size(r, 70), r.randint(0, 4)
    K = torch.zeros(*([2] if r.random() < 0.5 else []), rows, rows, dtype=torch.float64)
    delta, a = (normal(r, rows, positions, r.randint(0, 5)) for _ in range(2))
    return [K, delta, a, r.random() < 0.5, r.random() < 0.5], {}


def gram_factor(r: random.Random) -> Call:
    rows, batch = size(r, 12), [size(r, 3)] if r.random() < 0.4 else []
    J = normal(r, *batch, rows, r.randint(1, 8))
    high = J @ J.mT
    return [torch.stack([high, torch.zeros_like(high)])], {}


def svdvals(r: random.Random) -> Call:
    shape = [size(r, 4) for _ in range(r.choice([0, 0, 1, 2]))]
    shape += [size(r, r.choice([5, 40, 300])), size(r, r.choice([5, 40, 140]))]
    options = {"sweeps": r.choice([0, 1, 100, 1000])} if r.random() < 0.3 else {}
    return [normal(r, *shape, dtype=r.choice([torch.float64, torch.float32]))], options


def lm_solve(r: random.Random) -> Call:
    kind = r.choice(["mlp", "mlp", "conv1d", "local1d", "factorization"])
    starts, sets, n = size(r, 9), r.randint(1, 3), r.randint(1, 12)
    biases: list[bool] = []
    inputs, outputs, activation = 1, 1, r.choice(["tanh", "sigmoid", "gelu", "sin"])
    if kind == "mlp":
        sizes = [r.randint(1, 4) for _ in range(r.randint(2, 4))]
        biases = [r.random() < 0.6 for _ in sizes[1:]]
        pairs = zip(sizes[:-1], sizes[1:], biases, strict=True)
        parameters = sum(o * (i + b) for i, o, b in pairs)
        inputs, outputs = sizes[0], sizes[-1]
    elif kind == "factorization":
        sizes, activation = [r.randint(1, 5) for _ in range(3)], "identity"
        parameters, inputs = sizes[1] * (sizes[0] + sizes[2]), 2
    else:
        d, channels = r.randint(1, 6), r.randint(1, 3)
        sizes = [d, r.randint(1, d), channels]
        hidden = channels * (d + 1 - sizes[1])
        parameters = (channels if kind == "conv1d" else hidden) * sizes[1] + hidden
        inputs = d
    x = normal(r, sets, n, inputs)
    if kind == "factorization":
        x = x.abs().floor().minimum(torch.tensor([sizes[0] - 1, sizes[2] - 1]))
    which = torch.tensor([r.randrange(sets) for _ in range(starts)], dtype=torch.int64)
    options = {"first": r.random() < 0.3, "iterations": r.choice([0, 1, 30])}
    arguments = [normal(r, starts, parameters), x, normal(r, sets, n, outputs), which, kind, sizes]
    return [*arguments, activation, biases], options


def first_nonfinite(r: random.Random) -> Call:
    dtypes = [torch.float64, torch.float32]
    return [
        [normal(r, size(r), size(r), dtype=r.choice(dtypes)) for _ in range(r.randint(0, 4))]
    ], {}


OPERATORS: dict[str, tuple[Any, Callable[[random.Random], Call]]] = {
    "mlp_jacobian": (torch.ops.llr.mlp_jacobian.default, network),
    "mlp_jacobian.out": (torch.ops.llr.mlp_jacobian.out, jacobian_out),
    "_mlp_jacobian_formula": (torch.ops.llr._mlp_jacobian_formula.default, network),
    "mlp_jacobian_with_error": (torch.ops.llr.mlp_jacobian_with_error.default, network),
    "mlp_gram": (torch.ops.llr.mlp_gram.default, gram),
    "mlp_gram_with_error": (torch.ops.llr.mlp_gram_with_error.default, gram),
    "gram_add_": (torch.ops.llr.gram_add_.default, gram_add),
    "gram_factor": (torch.ops.llr.gram_factor.default, gram_factor),
    "svdvals": (torch.ops.llr.svdvals.default, svdvals),
    "lm_solve": (torch.ops.llr.lm_solve.default, lm_solve),
    "first_nonfinite": (torch.ops.llr.first_nonfinite.default, first_nonfinite),
}

# --- what can be wrong -------------------------------------------------------------------------------

DTYPES = [
    *(
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
    ),
    *(torch.int64, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.uint16),
]
SIZES = [0, 1, 2, 3, 17, 2**38, 2**40, 2**50, 2**62]
# fmt: off
INTEGERS = [-(2**63), -(2**31) - 1, -2, -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64]
FLOATS = [0.0, -0.0, -1.0, 0.5, 1.0, 2.0, 1e-320, 1e300, -1e300, float("nan"), float("inf"), -float("inf")]
STRINGS = ["", "tanh", "TANH", "relu", "mlp", "conv1d", "identity\0", "ä" * 9, "x" * 10_000, "%s%n{}"]
OTHERS: list[Any] = [None, 3, -1, 2.5, True, "tanh", b"tanh", [], [None], {}, (), object(), 1j]
# fmt: on


def other_tensor(r: random.Random, t: Tensor) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: t.to(r.choice(DTYPES)),
        lambda: t.unsqueeze(r.randint(0, t.dim())),
        lambda: t[0],
        lambda: t.narrow(d, 0, max(t.shape[d] - 1, 0)),
        lambda: t.narrow(d, 0, 0),
        lambda: torch.cat([t, t], d),
        lambda: t[(slice(None),) * d + (slice(0, 1),)].expand(
            replaced(t.shape, d, r.choice(SIZES))
        ),
        lambda: t.as_strided(replaced(t.shape, d, r.choice([2**38, 2**45])), [0] * t.dim()),
        lambda: t.as_strided(t.shape, [1] * t.dim()),
        lambda: torch.empty(0, dtype=t.dtype).expand(replaced([2**40] * t.dim(), d, 0)),
        lambda: t.mT,
        lambda: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda: torch.stack([t, t], -1)[..., 0],
        lambda: torch.zeros(t.shape, dtype=torch.complex128).imag,
        lambda: (torch.complex(t, -t) if t.is_floating_point() else t).conj().imag,
        lambda: unaligned(t),
        lambda: spoiled(r, t),
        lambda: t * r.choice([0.0, 1e-300, 1e150, 1e300, -1.0]),
        lambda: t.clone().requires_grad_(),
        lambda: torch.nn.Parameter(t.clone()),
        lambda: t.to("meta"),
        lambda: t.to_sparse(),
        lambda: t.to_sparse_csr() if t.numel() else t,
        lambda: t.to_mkldnn() if t.numel() else t,
        lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([t, t]),
        lambda: torch.tensor(1.0),
        lambda: torch.empty(0),
        lambda: t.numpy(),
        lambda: t[:3].tolist() if t.numel() < 10_000 else [1.0],
        lambda: r.choice(OTHERS),
    ]
    d = r.randrange(max(t.dim(), 1))
    return r.choice(kinds)() if t.numel() < 10**6 else t  # torch copies large ones slowly


def replaced(shape: Any, d: int, value: int) -> list[int]:
    return [*shape[:d], value, *shape[d + 1 :]]


def unaligned(t: Tensor) -> Tensor:
    t = t if t.dtype in (torch.float64, torch.float32) else t.double()  # torch fails for others
    memory = bytearray(t.numel() * t.element_size() + 8)
    view = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=3).view(t.shape)
    return view.copy_(t)


def spoiled(r: random.Random, t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[r.randrange(t.numel())] = r.choice(FLOATS)
    return t


def other_list(r: random.Random, values: list[Any]) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: values[:-1],
        lambda: values[1:],
        lambda: [*values, *values[-1:]],
        lambda: values[::-1],
        lambda: tuple(values),
        lambda: iter(values),
        list,
        lambda: values * (r.choice([2, 1000]) if len(values) < 9 else 2),
        lambda: replaced(values, r.randrange(len(values)), r.choice(OTHERS)),
        lambda: r.choice(OTHERS),
        lambda: replaced(values, k := r.randrange(len(values)), other(r, values[k])),
    ]
    return kinds[-1]() if values and r.random() < 0.5 else r.choice(kinds)()


def other(r: random.Random, value: Any) -> Any:
    if isinstance(value, Tensor):
        return other_tensor(r, value)
    if isinstance(value, list):
        return other_list(r, value)
    if isinstance(value, bool) or value is None:
        return r.choice(OTHERS)
    pools: dict[type, list[Any]] = {int: INTEGERS, float: FLOATS, str: STRINGS}
    return r.choice(pools.get(type(value), OTHERS) if r.random() < 0.8 else OTHERS)


def spoil(r: random.Random, call: Call) -> None:
    """Change the call in one way."""
    arguments, options = call
    kind = r.random()
    if kind < 0.03:
        del arguments[r.randrange(len(arguments))]
    elif kind < 0.05:
        options[r.choice(["out", "driver", "self", "x", "columns"])] = r.choice(OTHERS)
    elif kind < 0.2 and options:
        key = r.choice(sorted(options))
        options[key] = other(r, options[key])
    elif kind < 0.25:  # memory that two arguments share
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        if "out" in options and tensors:
            options["out"] = r.choice(tensors)
        elif len(tensors) > 1:
            arguments[0] = tensors[-1]
    else:
        k = r.randrange(len(arguments))
        arguments[k] = other(r, arguments[k])


LM_OPTIONS: dict[str, list[Any]] = {
    **{name: [*FLOATS, 1e-3, 0.9, 3.0] for name in ("damping", "down", "up", "progress", "tol")},
    "stall": INTEGERS,
    "iterations": [-1, 0, 1, 5, 160, 2**63, "3", None],
}


UNMADE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of torch if it cannot make such a tensor."""


def draw(r: random.Random, name: str, build: Callable[[random.Random], Call]) -> Call:
    call = build(r)
    if name == "lm_solve" and r.random() < 0.3:
        key = r.choice(sorted(LM_OPTIONS))
        call[1][key] = r.choice(LM_OPTIONS[key])
    for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
        with contextlib.suppress(*UNMADE):
            spoil(r, call)
    if isinstance(call[1].get("iterations"), int):  # more iterations would only take longer
        call[1]["iterations"] = min(call[1]["iterations"], 200)
    return call
