"""Random calls of the public functions: each returns, or refuses in a line of llr's own.

``LLR_RANDOM_CASES=20000 pytest tests/test_fuzz_face.py`` draws more.
"""

from __future__ import annotations

import dis
import os
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llr
from llr import certify, embedding, exact, landscape, lifting, models, neurons, recovery, theory
from llr.recovery import train as training

CASES = int(os.environ.get("LLR_RANDOM_CASES", "120"))
FIRST = int(os.environ.get("LLR_RANDOM_SEED", "0"))
SECONDS = 60
"""After which a call counts as one that hangs; those here take milliseconds."""

Draw = Callable[[random.Random, dict[str, Any]], Any]
OURS = (TypeError, ValueError, NotImplementedError, MemoryError, RuntimeError)
_RAISES = {dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"]}


def complaint(error: BaseException) -> str | None:
    """What is wrong with an exception that a public function ended with; None if it is of llr's own."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    if not isinstance(error, OURS):
        return f"{type(error).__name__} is no refusal"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    if "/llr/" not in where.filename:
        return f"it comes from {where.filename}:{where.lineno}"
    raised = trace.tb_frame.f_code.co_code[trace.tb_lasti] in _RAISES
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return None if raised and "flow" in str(error) else "RuntimeError is no refusal"
    if not raised and not (isinstance(error, TypeError) and "argument" in str(error)):
        return f"nobody raised it at {where.filename}:{where.lineno}"
    text = str(error)
    if "\n" in text or len(text) > 900 or "Facebook" in text or "stateless" in text:
        return "its message is not one line of ours"
    return None


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"it took more than {seconds} s of the processor's time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- models ----------------------------------------------------------------------------------------------


class Complex(nn.Module):
    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("phase", torch.randn(2, dtype=torch.cfloat))
        self.factor = nn.Parameter(torch.randn(2, dtype=torch.cfloat), requires_grad=not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x) * self.phase
        return torch.view_as_real(z * self.factor)


class Hollow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[:, :0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x[:, None])[0][:, -1]


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def plain(*widths: int) -> nn.Module:
    return models.mlp(list(widths), "tanh")


@torch.no_grad()
def twins() -> nn.Module:
    model = models.TwoLayer(3, 3)
    model[0].weight[1] = model[0].weight[0]
    return model


def function(params: Any, x: Any) -> Any:
    return torch.tanh(x @ params["w"])


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))


MODELS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: plain(3, 4, 1),
    "mlp, two outputs": lambda: plain(3, 4, 2),
    "deep": lambda: plain(3, 2, 2, 1),
    "relu": lambda: models.mlp([3, 3, 1], "relu"),
    "float64": lambda: plain(3, 4, 1).double(),
    "twins": twins,
    "two layer": lambda: models.TwoLayer(3, 4, bias=False).double(),
    "norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "deep linear": lambda: models.DeepLinear([3, 2, 2]),
    "factorization": lambda: models.MatrixFactorization(3, 2, 3),
    "filter": lambda: models.Conv1dTwoLayer(3, 2, 2),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten()),
    "embedding": lambda: nn.Sequential(
        nn.Embedding(7, 2, sparse=True), nn.Flatten(), nn.Linear(6, 2)
    ),
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(7, 3, sparse=True), nn.Linear(3, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)),
    "batch norm at rest": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)),
    "recurrent": Recurrent,
    "tied": tied,
    "parallel": lambda: nn.DataParallel(plain(3, 4, 2)),
    "scripted": scripted,
    "traced": lambda: torch.jit.trace(plain(3, 4, 2), torch.randn(5, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2)),
    "meta": lambda: plain(3, 4, 2).to("meta"),
    "norm on meta": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to("meta"),
    "half": lambda: plain(3, 4, 2).half(),
    "bfloat16": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).bfloat16(),
    "mixed": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1).double()),
    "complex": lambda: Complex(False),
    "complex, frozen": lambda: Complex(True),
    "hollow": Hollow,
    "width 0": lambda: nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2)),
    "no outputs": lambda: nn.Linear(3, 0),
    "no parameters": lambda: nn.Sequential(nn.Tanh()),
    "frozen": lambda: plain(3, 4, 2).requires_grad_(False),
    "identity": nn.Identity,
    "function": lambda: function,
    "class": lambda: nn.Linear,
    "string": lambda: "mlp:3-4-1",
    "list": lambda: [plain(3, 4, 1)],
    "none": lambda: None,
    "number": lambda: 3,
    "tensor": lambda: torch.randn(4, 3),
}
USUAL = ["mlp", "mlp, two outputs", "deep", "float64", "twins", "two layer", "norm", "relu"]


def tame(r: random.Random, context: dict[str, Any]) -> bool:
    """Whether an argument is one that fits the others: in half of the calls most of them do."""
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
    """A network that computes what the one drawn before computes, if that is possible."""
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
    """One of these; of the first two where it is to fit."""
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
    made = certify.certify(nn.Linear(3, 1), torch.eye(3))
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


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Draw], dict[str, Draw]]] = {
    # name: the function, what it needs, what it may be given
    "jacobian": (
        llr.jacobian,
        {"model": model, "x": tensor},
        {"params": params, "out": tensor, "chunk_size": integer, "backend": word, "create_graph": flag},
    ),
    "plan": (
        llr.plan,
        {"model": model, "x": tensor},
        {"params": params, "chunk_size": integer, "backend": word},
    ),
    "gram": (
        llr.gram,
        {"model": model, "x": tensor},
        {"params": params, "chunk_size": integer, "backend": word,
         "precision": one_of("float64", "double-double", "x", None)},
    ),
    "rank": (
        llr.rank,
        {"model": model_or_matrix, "x": tensor},
        {"params": params, "method": word, "dtype": dtype, "rtol": real, "atol": real, "upper": integer,
         "max_bits": one_of(64, np.int64(256), 3, "x"), "chunk_size": integer, "backend": word,
         "progress": progress},
    ),
    "rank of a matrix": (llr.rank, {"model": tensor}, {"dtype": dtype, "rtol": real, "atol": real}),
    "numerical_rank": (llr.numerical_rank, {"A": tensor}, {"rtol": real, "atol": real}),
    "svdvals": (llr.svdvals, {"A": tensor}, {}),
    "tolerance": (
        llr.tolerance,
        {"spectrum": tensor, "short_side": integer},
        {"rtol": real, "atol": real},
    ),
    "model_rank": (
        llr.model_rank,
        {"model": model},
        {"sampler": sampler, "params": params, "upper": integer, "certify": flag, "margin": integer,
         "max_samples": integer, "seed": seed, "sample_shape": one_of((3,), [3], np.array([3]), 3, (), "x"),
         "method": word, "progress": progress},
    ),
    "has_llr_guarantee": (
        llr.has_llr_guarantee,
        {"model": model, "x": tensor},
        {"model_rank": integer, "params": params, "certify": flag, "method": word},
    ),
    "llr_sample_size": (llr.llr_sample_size, {"model": model, "x": tensor}, {"model_rank": integer}),
    "layout": (llr.layout, {"model": model}, {"params": params}),
    "memory_budget": (llr.memory_budget, {}, {"device": device}),
    "certify": (
        certify.certify,
        {"model": model, "x": tensor},
        {"params": params, "upper": integer, "bits": one_of(64, np.int64(64), 1, "x"),
         "max_bits": one_of(128, np.int64(64), 2.5), "progress": progress},
    ),
    "verify": (
        certify.verify,
        {"certificate": certificate, "model": model, "x": tensor},
        {"params": params},
    ),
    "exact.jacobian": (
        exact.jacobian,
        {"model": model, "x": tensor},
        {"bits": one_of(64, np.int64(64), "x", -3), "params": params, "rows": one_of(None, [0], [99], "x")},
    ),
    "exact.rational_jacobian": (exact.rational_jacobian, {"model": model, "x": tensor}, {}),
    "read_structure": (theory.read_structure, {"model": model}, {}),
    "tangent_dimension": (theory.tangent_dimension, {"model": model}, {}),
    "generic_rank": (theory.generic_rank, {"architecture": model}, {}),
    "model_rank_of_function": (theory.model_rank_of_function, {"model": model}, {}),
    "optimistic_sample_size": (
        theory.optimistic_sample_size,
        {"architecture": model, "target": model},
        {},
    ),
    "points_needed": (theory.points_needed, {"model": model}, {}),
    "rank_stratification": (theory.rank_stratification, {"architecture": model}, {}),
    "check": (
        embedding.check,
        {"narrow": model, "wide": wider, "x": tensor},
        {"y": targets, "seed": seed},
    ),
    "split": (
        embedding.split,
        {"model": model, "layer": index, "neuron": index},
        {"share": vector, "sign": one_of(1, -1, np.int64(1), 2, "x")},
    ),
    "null": (
        embedding.null,
        {"model": model, "layer": index},
        {"incoming": vector, "bias": real, "outgoing": vector},
    ),
    "widen": (embedding.widen, {"model": model, "widths": sizes}, {"generator": generator}),
    "random_compatible": (
        embedding.random_compatible,
        {"model": model, "widths": sizes},
        {"generator": generator},
    ),
    "compatible": (
        embedding.compatible,
        {"model": model,
         "origins": one_of([[0, 1, 2, 3, 0]], [np.array([0, 0, 1, 2, 3])], [[0]], None, 3, [], [[9]], "x"),
         "kappas": one_of([[0.5, 1, 1, 1, 0.5]], [np.ones(5)], [[1.0]], None, "x", [[1, 1, 1, 1, 1]])},
        {"signs": one_of(None, [[1, 1, 1, 1, -1]], 3)},
    ),
    "reduce": (embedding.reduce, {"model": model}, {}),
    "lift_status": (
        lifting.lift_status,
        {"narrow": model, "wide": wider},
        {"x": tensor, "bits": one_of(64, np.int64(64), 1, "x"), "seed": seed},
    ),
    "lifted_family": (
        lifting.lifted_family,
        {"narrow": model, "alpha": fraction, "lam": real},
        {"layer": index, "first": index, "second": index, "t": real, "s": real, "r": vector},
    ),
    "lifted_critical_points": (
        lifting.lifted_critical_points,
        {"narrow": model, "x": tensor, "y": targets},
        {"loss": loss, "layer": index, "starts": one_of(2, np.int64(1), 0, "x"), "scale": real,
         "rtol": real, "seed": seed},
    ),
    "branches": (landscape.branches, {"target": model, "width": integer}, {}),
    "criticality": (
        landscape.criticality,
        {"model": model, "x": tensor, "y": targets},
        {"loss": loss, "params": params, "rtol": real},
    ),
    "critical_targets": (
        landscape.critical_targets,
        {"model": model, "x": tensor},
        {"y": targets, "size": real, "generator": generator},
    ),
    "embedded_spectrum": (
        landscape.embedded_spectrum,
        {"narrow": model, "wide": wider, "embedding": an_embedding, "x": tensor, "y": targets},
        {"loss": loss, "rtol": real},
    ),
    "flow": (
        landscape.flow,
        {"model": model, "x": tensor, "y": targets, "times": one_of([0.0, 0.1], np.ones(1), 3, [-1], "x")},
        {"loss": loss, "rtol": one_of(1e-6, 0, "x", -1), "params": params},
    ),
    "rate": (landscape.rate, {"model": model, "x": tensor}, {"params": params, "rtol": real}),
    "random_point": (
        landscape.random_point,
        {"target": model, "branch": a_branch},
        {"generator": generator},
    ),
    "hessian_spectrum": (
        landscape.hessian_spectrum,
        {"model": model, "x": tensor, "y": targets},
        {"loss": loss, "kind": one_of("full", "gauss-newton", "x", 3), "k": integer,
         "method": one_of("auto", "dense", "lanczos", "x"), "rtol": real, "params": params},
    ),
    "recover": (
        recovery.recover,
        {"x": tensor, "y": targets, "max_width": integer, "budget": budget},
        {"activation": one_of("tanh", "relu", "sin", "x", None), "bias": flag, "output_bias": flag,
         "noise_std": real, "seed": seed, "progress": progress},
    ),
    "initial": (
        recovery.initial,
        {"model": model, "count": integer},
        {"kind": one_of("normal", "torch", "xavier", "x", 3), "scale": real, "generator": generator,
         "dtype": dtype, "device": device},
    ),
    "levenberg_marquardt": (
        recovery.levenberg_marquardt,
        {"model": model, "starts": starts, "x": tensor, "y": targets},
        {"which": one_of(None, torch.tensor([0, 0]), np.array([0, 0]), "x"), "tol": real, "first": flag,
         "damping": one_of("fast", "slow", "x", 3)},
    ),
    "reproduce": (recovery.reproduce, {"name": one_of("nothing", 3, None)}, {"jobs": integer}),
    "train": (
        training.train,
        {"model": model, "starts": starts, "x": tensor, "y": targets,
         "steps": one_of(3, np.int64(2), 0, "x", 2.5)},
        {"which": one_of(None, torch.tensor([0, 0]), "x"), "method": one_of(None, training.GD(), "x", 3),
         "tol": real, "record": one_of(None, 2, np.int64(1), "x", [1, 2], -1), "progress": progress},
    ),
    "condensation": (
        training.condensation,
        {"model": model},
        {"theta": starts, "layer": index, "angle": real, "share": real},
    ),
    "merge": (
        training.merge,
        {"model": model},
        {"theta": starts, "angle": real, "share": real, "width": integer},
    ),
    "narrow": (
        training.narrow,
        {"model": model, "theta": starts, "x": tensor, "y": targets},
        {"angles": one_of((0.1,), np.array([0.1]), "x", 0.1, []), "widest": integer, "tol": real},
    ),
    "tangent_rank": (
        training.tangent_rank,
        {"model": model, "theta": starts, "x": tensor},
        {"rtol": real},
    ),
    "independence": (
        neurons.independence,
        {"neurons": model},
        {"x": tensor, "layer": integer, "constant": flag, "bits": one_of(64, np.int64(64), 1, "x"),
         "seed": seed},
    ),
    "TwoLayer": (
        models.TwoLayer,
        {"d": integer, "m": integer},
        {"q": integer, "activation": one_of("tanh", "x", None, nn.Tanh()), "bias": flag, "dtype": dtype,
         "generator": generator},
    ),
    "Conv1dTwoLayer": (
        models.Conv1dTwoLayer,
        {"d": integer, "kernel_size": integer, "channels": integer},
        {"shared": flag, "activation": one_of("tanh", "x", 3), "dtype": dtype},
    ),
    "MatrixFactorization": (
        models.MatrixFactorization,
        {"m": integer, "p": integer, "n": integer},
        {"dtype": dtype, "generator": generator},
    ),
    "DeepLinear": (models.DeepLinear, {"widths": sizes}, {"dtype": dtype, "generator": generator}),
    "mlp": (
        models.mlp,
        {"widths": sizes},
        {"activation": one_of("tanh", "x", 3, nn.Tanh), "bias": flag, "dtype": dtype},
    ),
    "Polynomial": (models.Polynomial, {"coefficients": vector}, {}),
}  # fmt: skip


def draw(number: int) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """The call with this number: its name, the function and its arguments."""
    r = random.Random(number)
    torch.manual_seed(number)
    name = r.choice(list(FUNCTIONS))
    called, needed, optional = FUNCTIONS[name]
    context: dict[str, Any] = {"double": r.random() < 0.7, "n": r.choice([5, 9])}
    arguments = {key: value(r, context) for key, value in needed.items()}
    for key, value in optional.items():
        if r.random() < 0.15:
            arguments[key] = value(r, context)
    return name, called, arguments


def shown(arguments: dict[str, Any]) -> str:
    parts = []
    for key, value in arguments.items():
        if isinstance(value, nn.Module):
            text = type(value).__name__ + str([type(m).__name__ for m in value.children()])
        elif isinstance(value, torch.Tensor | np.ndarray):
            text = f"{type(value).__name__} {value.dtype}" + (
                ""
                if isinstance(value, torch.Tensor) and value.is_nested
                else f" {tuple(value.shape)}"
            )
        else:
            text = repr(value)[:80]
        parts.append(f"{key}={text}")
    return ", ".join(parts)


@pytest.mark.filterwarnings("ignore")
def test_random_calls_return_or_refuse() -> None:
    llr.jacobian(nn.LayerNorm(2), torch.ones(1, 2))  # torch imports its compiler at the first vmap
    bad = []
    for number in range(FIRST, FIRST + CASES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name, called, arguments = draw(number)
            try:
                with within(SECONDS):
                    called(**arguments)
            except Exception as error:
                wrong = complaint(error)
                if wrong is not None:
                    text = f"{type(error).__name__}: {str(error)[:200]}"
                    bad.append(f"{number}: {name}({shown(arguments)}): {wrong}: {text}")
    assert not bad, f"{len(bad)} of {CASES} calls:\n" + "\n".join(bad)
