"""Per-sample Jacobians of a model's outputs with respect to its parameters."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from llr import _ops, reference
from llr.accept import a_model, a_tensor, as_given, takes
from llr.evaluation.compare import UNSUPPORTED, ragged, why_unsupported
from llr.evaluation.probe import Probe, probe
from llr.memory import fits, format_bytes, memory_budget
from llr.mlp import MLP
from llr.parameters import Columns, Selection
from llr.probes import count_on_meta
from llr.problem import Model, Problem, read_problem
from llr.roles import word
from llr.surroundings import closed, outside_inference_mode

log = logging.getLogger("llr")

BACKENDS = ("auto", "native", "torch", "loop")
_NAMES = {"native": "native mlp", "torch": "torch.func vmap", "loop": "autograd loop"}
_WORKING_BYTES = 256 << 20  # what torch.func may use at a time beyond the result


@takes(model=a_model, x=as_given, out=a_tensor, backend=word)
@outside_inference_mode
def jacobian(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    out: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
    create_graph: bool = False,
) -> Tensor:
    """The derivatives of every output of every sample with respect to every parameter.

    J[i, j, k] = d f_j(x_i) / d theta_k: its row span tells which directions in parameter space the samples
    see, its rank how many (:func:`llr.rank`).

    An MLP is recognised and computed by the native operator, at the speed of writing the result. Every
    other model goes through ``torch.func`` in chunks of samples, and one that ``vmap`` cannot take (RNNs)
    through a loop over samples; :func:`plan` tells which, and the ``llr`` logger when it changes.

    Args:
        model: a module, evaluated in the mode it is in; or a callable f(params, x) on a batch of samples.
            Wrapped, compiled, scripted and exported modules are taken, too (docs/jacobian.md has a table).
        x: (n, ...) samples; float32 or float64 as the parameters, or integers for a model that takes them.
            Sparse tensors, arrays and nested lists are converted.
        params: for a module, which parameters are columns: None for all trainable ones, or names or globs
            among them (``"0.*"``); or a mapping of names to values to evaluate at, with a leading batch of
            B parameter points as made by ``torch.func.stack_module_state``. For a callable, the mapping
            that it is called with.
        out: write the result here (repeated calls then allocate nothing).
        chunk_size: samples at a time on the torch.func path; default: what fits :func:`llr.memory_budget`.
        backend: "auto", or "native", "torch", "loop" to insist.
        create_graph: make the result differentiable with respect to the parameters and x.

    Returns:
        (n, q, P), or (B, n, q, P); P columns in ``named_parameters()`` order, each tensor row-major (see
        :func:`llr.layout`). Outputs of other shapes are flattened row-major to q numbers per sample, nested
        tuples, lists and mappings in their own order, one tensor after the other.

    Raises:
        TypeError: dtypes that do not go together, an output that is not a floating-point tensor.
        ValueError: NaN or infinity in x or the parameters, shapes that do not fit, a model without
            trainable parameters, with interacting samples, random or stateful; a result larger than the
            memory budget.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        >>> llr.jacobian(model, torch.randn(5, 10)).shape
        torch.Size([5, 1, 769])
    """
    problem = read_problem(model, x, params)
    prepared = _plan(problem, chunk_size, backend, create_graph, out)
    return _execute(problem, prepared, out, create_graph)[0]


@outside_inference_mode
def evaluate(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    chunk_size: int | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, str]:
    """:func:`jacobian`, and the name of what computed it.

    With ``dtype`` the parameters, buffers and floating x are promoted to it first: their values are then the
    exact starting point, and only the arithmetic is finer.
    """
    problem = read_problem(model, x, params, dtype)
    return execute(problem, prepare(problem, chunk_size, backend))


def prepare(problem: Problem, chunk_size: int | None = None, backend: str = "auto") -> Plan:
    """What :func:`execute` will do; the memory budget is not looked at."""
    return _plan(problem, chunk_size, backend, False, None, enforce=False)


def execute(problem: Problem, prepared: Plan) -> tuple[Tensor, str]:
    """The Jacobian, and the name of what computed it; refused if it does not fit the memory budget."""
    _check_budget(prepared.nbytes, prepared.shape, problem.x.device)
    result, path = _execute(problem, prepared, None, False)
    return result, _NAMES[path]


def execute_with_error(problem: Problem, prepared: Plan) -> tuple[Tensor, str, Tensor | None]:
    """:func:`execute`, and the errors of the rows (..., n, q) where the native operator bounds them."""
    if prepared.backend != "native" or not problem.x.is_cpu:
        return (*execute(problem, prepared), None)
    _check_budget(prepared.nbytes, prepared.shape, problem.x.device)
    with torch.no_grad():
        J, error = _ops.mlp_jacobian_with_error(*native_arguments(problem))
    return J, _NAMES["native"], error


@dataclass
class Plan:
    """What :func:`llr.jacobian` would do with a model and samples; see :func:`plan`."""

    backend: str
    """"native", "torch" or "loop"."""
    reason: str
    """Why this one."""
    shape: tuple[int, ...]
    """(n, q, P) or (B, n, q, P)."""
    dtype: torch.dtype
    nbytes: int
    """Bytes of the result."""
    chunk_size: int
    """Samples at a time."""
    insisted: bool = False
    """Whether the backend was asked for by name, so that no other may take over."""
    probe: Probe | None = None
    """What the model did on a few samples; None for one that is known by its layers."""

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"J {self.shape} {kind}, {format_bytes(self.nbytes)}: {_NAMES[self.backend]} ({self.reason}), "
            f"{self.chunk_size} samples at a time"
        )


@takes(model=a_model, x=as_given, backend=word)
@outside_inference_mode
def plan(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> Plan:
    """What :func:`jacobian` would compute, with what and in how many bytes, without computing it.

    Args and errors as for :func:`jacobian`, but for a result larger than the memory budget, which is no
    error here. Whether ``vmap`` can take the model is tried with one sample.

    Example:
        >>> import llr, torch
        >>> print(llr.plan(torch.nn.Linear(3, 2), torch.randn(5, 3), backend="torch"))
        J (5, 2, 8) float32, 320 bytes: torch.func vmap (asked for), 5 samples at a time
    """
    problem = read_problem(model, x, params, shapes_only=True)
    prepared = prepare(problem, chunk_size, backend)
    obstacle = "" if prepared.probe is None or backend != "auto" else prepared.probe.obstacle
    if obstacle:
        reason = f"{prepared.reason}; vmap cannot take it: {obstacle}"
        return replace(prepared, backend="loop", reason=reason)
    return replace(prepared, reason=prepared.reason or str(problem.mlp))


def _plan(
    problem: Problem,
    chunk_size: int | None,
    backend: str,
    create_graph: bool,
    out: Tensor | None,
    enforce: bool = True,
) -> Plan:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size is {chunk_size!r}; expected a positive number of samples")
    if out is not None and create_graph:
        raise ValueError("out= and create_graph=True exclude each other; leave out= away")
    chosen, reason = _choose(problem, backend)
    n = problem.x.shape[0]
    found = None
    if problem.mlp is not None:
        q = problem.mlp.widths[-1]
    elif problem.x.is_meta:
        q = _count_on_meta(problem)
    else:
        found = _probed(problem)
        q = found.outputs
    points = problem.columns.points
    shape = (*(() if points is None else (points,)), n, q, problem.columns.count)
    itemsize = problem.dtype.itemsize
    nbytes = math.prod(shape) * itemsize
    if out is not None:
        _check_out(out, shape, problem)
    elif enforce:
        _check_budget(nbytes, shape, problem.x.device)
    if chunk_size is None:
        # jacrev holds a chunk's result, and about as much again while it makes it.
        per_sample = 3 * max(1, q * problem.columns.count) * itemsize
        chunk_size = max(1, n) if chosen == "native" else max(1, _WORKING_BYTES // per_sample)
    at_once = max(1, min(chunk_size, n))
    insisted = backend != "auto"
    return Plan(chosen, reason, shape, problem.dtype, nbytes, at_once, insisted, found)


def _choose(problem: Problem, backend: str) -> tuple[str, str]:
    """The backend, and why."""
    if backend in ("torch", "loop"):
        return backend, "asked for"
    obstacle = problem.why_not_mlp or _ops.why_no_kernel(problem.x.device)
    if not obstacle:
        return "native", ""
    if backend == "native":
        raise ValueError(
            f"backend='native' cannot compute this model: {obstacle}; backend='auto' goes through torch.func"
        )
    if problem.mlp is not None:
        _ops.warn_of_no_kernel(problem.x.device, obstacle)
    return "torch", obstacle


def _count_on_meta(problem: Problem) -> int:
    x = problem.x if len(problem.x) else problem.x.new_zeros(1, *problem.x.shape[1:])
    return count_on_meta(functools.partial(problem.call, problem.point()), x[:1])


def _probed(problem: Problem) -> Probe:
    """A look at the model on a few samples; refuses models without a per-sample Jacobian."""
    found = probe(problem)
    for leaf in found.leaves:
        if leaf.dtype != problem.dtype:
            raise TypeError(
                f"the model's output is {leaf.dtype} but its parameters are {problem.dtype}; expected one"
            )
    return found


def _check_out(out: Tensor, shape: tuple[int, ...], problem: Problem) -> None:
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; expected {shape}")
    if out.dtype != problem.dtype or out.device != problem.x.device:
        raise TypeError(
            f"out is {out.dtype} on {out.device}; expected {problem.dtype} on {problem.x.device}"
        )
    if out.requires_grad:
        raise ValueError("out requires a gradient; expected a plain tensor (out.detach())")
    if out.numel() > 0 and any(
        step == 0 and size > 1 for step, size in zip(out.stride(), out.shape, strict=True)
    ):
        raise ValueError(
            "out overlaps itself (an expanded tensor); expected memory for every number"
        )
    columns = problem.columns
    others = {"x": problem.x} | {
        f"parameter {name!r}": value for name, value in (columns.values | columns.fixed).items()
    }
    first, last = _extent(out)
    for name, other in others.items():
        start, end = _extent(other)
        if start < last and first < end and out.device == other.device:
            raise ValueError(f"out overlaps {name} in memory; expected memory of its own")


def _extent(t: Tensor) -> tuple[int, int]:
    """The addresses that a tensor's numbers lie between."""
    if t.numel() == 0:
        return 0, 0
    span = sum(step * (size - 1) for step, size in zip(t.stride(), t.shape, strict=True))
    return t.data_ptr(), t.data_ptr() + (span + 1) * t.element_size()


def _check_budget(nbytes: int, shape: tuple[int, ...], device: torch.device) -> None:
    if not fits(nbytes, device):
        raise ValueError(
            f"the Jacobian of shape {shape} takes {format_bytes(nbytes)} ({nbytes} bytes), more than the "
            f"memory budget of {format_bytes(memory_budget(device))}; take fewer samples at a time, choose "
            "parameters with params=, or raise the budget with llr.set_memory_budget(bytes)"
        )


def _execute(
    problem: Problem, prepared: Plan, out: Tensor | None, create_graph: bool
) -> tuple[Tensor, str]:
    if prepared.backend == "native":
        if create_graph:
            return _native(problem, out), "native"
        with torch.no_grad():
            return _native(problem, out), "native"
    if create_graph:
        problem = replace(problem, differentiable=True)
    else:
        detached = {n: v.detach() for n, v in problem.columns.values.items()}
        problem = replace(
            problem, x=problem.x.detach(), columns=replace(problem.columns, values=detached)
        )
    with closed(), contextlib.nullcontext() if create_graph else torch.no_grad():
        if prepared.backend == "torch":
            try:
                return _fill(problem, prepared, out, create_graph, _torch_rows), "torch"
            except UNSUPPORTED as error:
                # What vmap cannot take, the loop may; what is really wrong, the loop will say itself.
                own = prepared.probe is not None and prepared.probe.draws_own
                reason = why_unsupported(error, own)
                if prepared.insisted:
                    raise
                log.info(
                    "torch.func.vmap cannot take this model (%s); looping over samples", reason
                )
        return _fill(problem, prepared, out, create_graph, _loop_rows), "loop"


def columns_of(problem: Problem, names: Sequence[str], x: Tensor, chunk_size: int | None) -> Tensor:
    """(m, q, columns): the derivatives by these parameters alone, of a problem that has been probed."""
    columns = problem.columns
    values = {name: columns.values[name] for name in names}
    fixed = columns.fixed | {n: v for n, v in columns.values.items() if n not in values}
    part = replace(problem, x=x, columns=Columns(values, fixed), mlp=None)
    if not isinstance(problem.model, nn.Module):
        part.model = lambda some, x: problem.call({**columns.values, **some}, x)
    found = probe(problem)
    shape = (len(x), found.outputs, part.columns.count)
    backend = "loop" if found.is_looped else "torch"
    per_sample = 3 * max(1, math.prod(shape[1:])) * problem.dtype.itemsize
    at_once = chunk_size or max(1, min(len(x), _WORKING_BYTES // per_sample))
    nbytes = math.prod(shape) * problem.dtype.itemsize
    plan = Plan(backend, "", shape, problem.dtype, nbytes, at_once)
    return _execute(part, plan, None, False)[0]


def native_arguments(
    problem: Problem,
) -> tuple[Tensor, list[Tensor], list[Tensor | None], str, list[int] | None]:
    """What the native operators of an MLP are called with: x, weights, biases, activation, columns."""
    mlp, columns = cast(MLP, problem.mlp), problem.columns
    links = problem.chain()
    places = None
    if [name for name, tensor in links if tensor is not None] != list(columns.values):
        starts = columns.starts()
        places = [-1 if name is None else starts.get(name, -1) for name, _ in links]
    tensors = [
        tensor.expand(columns.points, *tensor.shape)
        if tensor is not None and columns.points is not None and name not in columns.values
        else tensor
        for name, tensor in links
    ]
    return problem.x, cast(list[Tensor], tensors[::2]), tensors[1::2], mlp.activation, places


def _native(problem: Problem, out: Tensor | None) -> Tensor:
    return _ops.mlp_jacobian(*native_arguments(problem), out)


_Rows = Callable[[Problem, dict[str, Tensor], Tensor, int, bool], tuple[dict[str, Tensor], Tensor]]
"""For a few samples with q outputs: name -> derivatives (samples, q, *parameter); and the outputs."""


def _fill(
    problem: Problem, prepared: Plan, out: Tensor | None, create_graph: bool, rows: _Rows
) -> Tensor:
    """The whole result, a parameter point and a chunk of samples at a time."""
    if out is not None and out.is_inference():
        ordinary = _fill(problem, prepared, None, create_graph, rows)
        with torch.inference_mode():
            return out.copy_(ordinary)
    points = problem.columns.points
    n, q = prepared.shape[-3:-1]
    if out is None and n * q == 0:
        return problem.x.new_empty(prepared.shape, dtype=problem.dtype)
    kept: list[Tensor] = []
    result = out
    if result is None and not create_graph:
        result = problem.x.new_empty(prepared.shape, dtype=problem.dtype)
    for index in range(1 if points is None else points):
        values = problem.point(index)
        for first in range(0, n, prepared.chunk_size):
            # A copy: a forward may work in place.
            chunk = problem.x[first : first + prepared.chunk_size].clone()
            parts, outputs = rows(problem, values, chunk, q, create_graph)
            if prepared.probe is not None and index == 0:
                prepared.probe.compare(outputs, first)
            flat = {
                name: reference.dense(d).reshape(chunk.shape[0], q, problem.columns.size(name))
                for name, d in parts.items()
            }
            if result is None:
                kept.append(torch.cat([flat[name] for name in values], dim=-1))
                continue
            target = (result if points is None else result[index])[first : first + chunk.shape[0]]
            for name, columns in problem.columns.slices().items():
                target[:, :, columns] = flat[name]
    if result is not None:
        return result
    if not kept:
        return problem.x.new_empty(prepared.shape, dtype=problem.dtype)
    return torch.cat(kept).reshape(prepared.shape)


def _torch_rows(
    problem: Problem, values: dict[str, Tensor], x: Tensor, q: int, create_graph: bool
) -> tuple[dict[str, Tensor], Tensor]:
    def outputs(values: dict[str, Tensor], sample: Tensor) -> tuple[Tensor, Tensor]:
        leaves = reference.output_leaves(problem.call(values, sample[None]))
        value = torch.cat([leaf.reshape(-1) for leaf in leaves])
        if len(value) != q:
            raise ValueError(ragged(len(value), q))
        return value, value

    if not create_graph:
        derivative = vmap(jacrev(outputs, has_aux=True), in_dims=(None, 0))
        return cast(tuple[dict[str, Tensor], Tensor], derivative(values, x))
    # Without vmap: torch differentiates its rule for layer_norm wrongly (the values are right, their
    # derivatives off by tens of percent; torch 2.13 and 2.14).
    each = jacrev(outputs, chunk_size=1, has_aux=True)
    samples = [cast(tuple[dict[str, Tensor], Tensor], each(values, sample)) for sample in x]
    rows = {name: torch.stack([rows[name] for rows, _ in samples]) for name in values}
    return rows, torch.stack([value for _, value in samples])


def _loop_rows(
    problem: Problem, values: dict[str, Tensor], x: Tensor, q: int, create_graph: bool
) -> tuple[dict[str, Tensor], Tensor]:
    leaves = values
    if not create_graph:
        leaves = {name: v.clone().requires_grad_() for name, v in values.items()}
    values_of: list[Tensor] = []

    def call(values: Mapping[str, Tensor], x: Tensor) -> Any:
        outputs = problem.call(values, x)
        parts = [leaf.detach().flatten() for leaf in reference.output_leaves(outputs)]
        values_of.append(torch.cat(parts))
        return outputs

    samples = []
    for sample in x:
        rows = list(reference.sample_rows(call, leaves, sample, create_graph=create_graph))
        if len(rows) != q:
            raise ValueError(ragged(len(rows), q))
        samples.append([torch.stack(column) for column in zip(*rows, strict=True)])
    stacked = [torch.stack(column) for column in zip(*samples, strict=True)]
    return dict(zip(leaves, stacked, strict=True)), torch.stack(values_of)
