"""Random arguments for the public functions; most of them fit the other arguments of the call."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from llr import certify, embedding, landscape, models, recovery

from .fuzz_models import MODELS, USUAL, plain

Draw = Callable[[random.Random, dict[str, Any]], Any]


def tame(r: random.Random, context: dict[str, Any]) -> bool:
    """Whether to draw an argument that fits the others: in half of the calls, most arguments fit."""
    return r.random() < context.setdefault("tame", r.choice([0.4, 0.93]))


def model(r: random.Random, context: dict[str, Any]) -> Any:
    kind = r.choice(USUAL if tame(r, context) else list(MODELS))
    torch.manual_seed(r.randrange(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = MODELS[kind]()
    if isinstance(value, nn.Module) and context["double"] and kind in USUAL:
        value = value.double()
    context.setdefault("model", value)
    return value


def wider(r: random.Random, context: dict[str, Any]) -> Any:
    """A wider network with the same function as the network drawn before, if possible."""
    narrow = context.get("model")
    if not (isinstance(narrow, nn.Module) and tame(r, context)):
        return model(r, context)
    try:
        wide, context["embedding"] = embedding.split(narrow, 0, 0)
    except (TypeError, ValueError):
        return model(r, context)
    return wide


def model_or_matrix(r: random.Random, context: dict[str, Any]) -> Any:
    return model(r, context) if r.random() < 0.7 else tensor(r, context)


# --- tensors ---------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "as it is": lambda t: t,
    "numpy": lambda t: t.numpy(),
    "reversed": lambda t: np.flip(t.numpy()),
    "big-endian": lambda t: t.double().numpy().astype(">f8"),
    "read-only": lambda t: np.broadcast_to(t.numpy(), t.shape),
    "list": lambda t: t.tolist(),
    "tuple": lambda t: (t, t),
    "list of tensors": lambda t: [t, t],
    "dict": lambda t: {"x": t},
    "coo": lambda t: t.to_sparse() if t.dim() else t,
    "csr": lambda t: t.to_sparse_csr() if t.dim() == 2 else t,
    "meta": lambda t: t.to("meta"),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "integers": lambda t: t.clamp(-100, 100).long(),
    "tokens": lambda t: (t.abs() * 2).long().clamp(max=6),
    "bytes": lambda t: t.abs().to(torch.uint8),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "conjugate": lambda t: t.to(torch.complex64).conj(),
    "negative bit": lambda t: t.to(torch.complex64).conj().imag,
    "requires grad": lambda t: t.clone().requires_grad_(),
    "parameter": nn.Parameter,
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda _: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "masked": lambda t: torch.masked.masked_tensor(t, t > 0),
    "masked array": lambda t: np.ma.masked_greater(t.numpy(), 1.0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.T.contiguous().T if t.dim() == 2 else t,
    "expanded": lambda t: t[:1].expand(7, *t.shape[1:]) if t.dim() and len(t) else t,
    "strings": lambda _: np.array(["a", "b"]),
    "objects": lambda _: np.array([[1, None]], dtype=object),
    "long double": lambda t: t.numpy().astype(np.longdouble),
    "ragged": lambda _: [[1.0, 2.0], [3.0]],
    "nan": lambda t: t * float("nan"),
    "infinite": lambda t: t * float("inf"),
    "tiny": lambda t: t * 1e-40,
    "huge": lambda t: t * 1e37,
    "none": lambda _: None,
    "string": lambda _: "x.npy",
    "number": lambda _: 2.5,
    "module": lambda _: nn.Linear(3, 2),
}
SHAPES = [(5, 3), (9, 3), (1, 3), (0, 3), (5,), (), (5, 2), (5, 0), (4, 2, 3), (5, 1), (3, 3)]


def tensor(r: random.Random, context: dict[str, Any]) -> Any:
    fits = tame(r, context)
    shape = (context["n"], 3) if fits else r.choice(SHAPES)
    torch.manual_seed(r.randrange(2**31))
    value = torch.randn(shape)
    m = context.get("model")
    if context["double"] and not isinstance(m, nn.Module):
        value = value.double()
    if isinstance(m, nn.Module):
        first = next(iter(m.parameters()), None)
        if first is not None and first.dtype == torch.float64:
            value = value.double()
    return KINDS["as it is" if fits else r.choice(list(KINDS))](value)


def targets(r: random.Random, context: dict[str, Any]) -> Any:
    n, m = context["n"], context.get("model")
    value = torch.randn(r.choice([(5, 1), (9, 1), (5,), (9,), (5, 2), (9, 2), (3,)]))
    if not tame(r, context):
        return KINDS[r.choice(list(KINDS))](value)
    last = []
    if isinstance(m, nn.Module):
        last = [p for p in m.parameters() if type(p) is nn.Parameter and p.dim() == 2][-1:]
    value = torch.randn(n, len(last[0]) if last else 1)
    return value.double() if context["double"] else value


# --- everything else -------------------------------------------------------------------------------------


def one_of(*values: Any) -> Draw:
    """Draws one of these values; one of the first two if the argument should fit."""
    return lambda r, context: r.choice(values[:2] if tame(r, context) else values)


integer = one_of(3, np.int64(2), 0, 1, np.int32(3), np.uint8(1), -1, True, 2.5, "3", None, [1])
index = one_of(0, np.int64(0), 1, 7, -1, True, 0.0, "0", None)
fraction = one_of(0.5, np.float64(0.25), 0, 1, 2, -1.0, float("nan"), "x", None, np.float32(0.1))
real = one_of(
    1e-3, np.float64(1e-9), None, 0.0, 1, np.float32(0.1), -1.0, float("nan"), float("inf"), "x"
)
word = one_of(
    "auto", "svd", "gram", "tsqr", "certified", "native", "torch", "loop", "dense", "x", None, 3
)
flag = one_of(True, False, np.True_, "auto", None, 1, "yes")
seed = one_of(0, 1, np.int64(3), -1, 2**70, 1.5, None, "0")
dtype = one_of(
    torch.float32, torch.float64, "float32", "float64", "torch.float64", np.float32, np.dtype("f8"),
    "auto", None, "float31", torch.float16, torch.int64, 3, float,
)  # fmt: skip
sizes = one_of(
    [3, 6, 1], (np.int64(3), 5, 1), [3, 4, 1], (2, 2), 5, [np.int64(6)],
    np.array([3, 5, 1]), [5], 5, np.int64(6), [np.int64(3), 2], [], None, [2.5, 1],
    "3-4-1", [0, 1], [-1, 2], torch.tensor([3, 2]), {3: 4}, range(2, 4),
)  # fmt: skip
progress = one_of(None, lambda *_: None, 3, "x")
device = one_of("cpu", torch.device("cpu"), "cuda:99", "nowhere", 3, None, "meta")
loss = one_of(
    "mse", "cross_entropy", "x", None, 3, lambda a, b: ((a - b) ** 2).sum(), lambda a, _: a
)


def generator(r: random.Random, _: dict[str, Any]) -> Any:
    return r.choice([None, torch.Generator().manual_seed(1), 0, "x"])


def params(r: random.Random, context: dict[str, Any]) -> Any:
    if tame(r, context):
        return r.choice([None, "*"])
    m = context.get("model")
    choices: list[Any] = [
        None,
        "*",
        "0.*",
        "weight",
        ["*.bias"],
        ("*weight*",),
        "nothing",
        [],
        3,
        b"x",
        {},
    ]
    choices += [
        {"w": torch.randn(3, 2)},
        {"w": np.ones((3, 2))},
        {"w": [1.0]},
        {3: torch.ones(2)},
        "",
    ]
    if isinstance(m, nn.Module):
        state = m.state_dict()
        choices += [
            state,
            state,
            dict(m.named_parameters()),
            (name for name, _ in m.named_parameters()),
        ]
        choices += [
            {n: v.detach().numpy() for n, v in m.named_parameters() if v.device.type == "cpu"}
            if all(
                v.dtype != torch.bfloat16 and not isinstance(v, nn.parameter.UninitializedParameter)
                for v in m.parameters()
            )
            else None
        ]
        choices += [
            {
                n: v.to("meta")
                for n, v in state.items()
                if not isinstance(v, nn.parameter.UninitializedParameter)
            }
        ]
        try:
            choices.append(torch.func.stack_module_state([m, m]))
        except Exception:
            choices.append(None)
    return r.choice(choices)


def sampler(r: random.Random, context: dict[str, Any]) -> Any:
    choices = [
        "normal",
        "uniform",
        (-1.0, 1.0),
        (np.float32(0), np.ones(3)),
        (0, 1, 2),
        "x",
        None,
        3,
    ]
    choices += [lambda n, g: torch.randn(n, 3, generator=g), lambda *_: None, (np.zeros(3), "x")]
    return tensor(r, context) if r.random() < 0.3 else r.choice(choices)


def vector(r: random.Random, context: dict[str, Any]) -> Any:
    if tame(r, context):
        return r.choice([None, 0.5])
    return r.choice(
        [None, 0.5, [0.1, 0.2, 0.3], np.ones(3), torch.randn(3), torch.randn(1), "x", -1, [0.5]]
    )


def certificate(r: random.Random, _: dict[str, Any]) -> Any:
    made = certify(nn.Linear(3, 1), torch.eye(3))
    return r.choice([made, None, "x", {}])


def an_embedding(r: random.Random, context: dict[str, Any]) -> Any:
    if "embedding" in context and tame(r, context):
        return context["embedding"]
    _, found = embedding.split(plain(3, 4, 1), 0, 0)
    return r.choice([found, found, None, torch.eye(3), "x"])


def a_branch(r: random.Random, context: dict[str, Any]) -> Any:
    m = context.get("model")
    if isinstance(m, models.TwoLayer) and tame(r, context):
        try:
            return r.choice(landscape.branches(m, 5).rows)
        except ValueError:
            return None
    rows = landscape.branches(models.TwoLayer(3, 1, bias=False).double(), 2).rows
    return r.choice([rows[0], rows[-1], None, 3])


def starts(r: random.Random, context: dict[str, Any]) -> Any:
    m = context.get("model")
    try:
        usual = recovery.initial(m, 2) if isinstance(m, nn.Module) else None
    except (TypeError, ValueError):
        usual = None
    return usual if usual is not None and tame(r, context) else tensor(r, context)


def budget(r: random.Random, _: dict[str, Any]) -> Any:
    return r.choice([1, 20, recovery.Budget(starts=5), np.int64(7), 0, "x", 2.5])
