"""Per-sample Jacobians of a model's outputs with respect to its parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from llr.inputs.accept import a_model, a_tensor, as_given, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.examination import Probe
from llr.inputs.layer_modes import count_on_meta
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.parameters import Selection
from llr.inputs.probe import probe
from llr.inputs.problem import Model, Problem, read_problem
from llr.inputs.roles import a_progress, word
from llr.inputs.warned import warn_of_no_kernel
from llr.jacobians.paths import NAMES, WORKING_BYTES, Plan, native_arguments, run
from llr.operators import _ops
from llr.results.progress import following

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)``."""
BACKENDS = ("auto", "native", "torch", "loop")


@takes(model=a_model, x=as_given, out=a_tensor, backend=word, progress=a_progress)
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
    progress: Progress | bool | None = None,
) -> Tensor:
    """The derivatives of every output of every sample with respect to every parameter.

    J[i, j, k] = d f_j(x_i) / d theta_k. Its row space has the directions in parameter space that change the
    outputs to first order, and its rank is the dimension of this space (:func:`llr.rank`).

    An MLP is recognised and computed by the native operator, about as fast as the result can be written.
    Every other model is computed by ``torch.func`` in chunks of samples, or by a loop over samples if
    ``vmap`` cannot take it (RNNs). :func:`plan` tells which of them; the ``llr`` logger reports a change.

    Args:
        model: a module, evaluated in its current mode; or a callable f(params, x) on a batch of samples.
            Wrapped, compiled, scripted and exported modules are accepted, too (docs/jacobian.md has a table).
        x: (n, ...) samples; float32 or float64 as the parameters, or integers for a model that takes them.
            Sparse tensors, arrays and nested lists are converted.
        params: for a module, which parameters are columns: None for all trainable ones, or names or globs
            of trainable parameters (``"0.*"``); or a mapping of names to values at which to evaluate,
            optionally with a leading batch of B parameter points as made by
            ``torch.func.stack_module_state``. For a callable, the mapping that is passed to it.
        out: a tensor for the result, so that repeated calls do not allocate it again.
        chunk_size: samples at a time on the torch.func path; default: what fits :func:`llr.memory_budget`.
        backend: "auto"; or "native", "torch" or "loop" to require this method.
        create_graph: make the result differentiable with respect to the parameters and x.
        progress: False for none; or a function, called as ``progress(done, total)`` with samples before each
            chunk of the torch.func path. Default: after two seconds a line on a terminal or in a notebook.

    Returns:
        (n, q, P), or (B, n, q, P); P columns in ``named_parameters()`` order, each tensor row-major (see
        :func:`llr.layout`). Outputs of other shapes are flattened row-major to q numbers per sample; the
        tensors of nested tuples, lists and mappings follow one another in their order.

    Raises:
        TypeError: dtypes that do not match, an output that is not a floating-point tensor.
        ValueError: NaN or infinity in x or the parameters, shapes that do not fit, a model without
            trainable parameters, with interacting samples, random or stateful; an operation of torch that
            fails in the model or in its derivatives; a result larger than the memory budget.
        NotImplementedError: ``backend="torch"`` for a model of TorchScript.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        >>> llr.jacobian(model, torch.randn(5, 10)).shape
        torch.Size([5, 1, 769])
    """
    problem = read_problem(model, x, params)
    prepared = _plan(problem, chunk_size, backend, create_graph, out)
    with following(progress, tell=True):
        return run(problem, prepared, out, create_graph)[0]


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
    """:func:`jacobian`, and the name of the method.

    With ``dtype`` the parameters, buffers and floating x are promoted to it first. Their values do not
    change, only the arithmetic is more precise.
    """
    problem = read_problem(model, x, params, dtype)
    return execute(problem, prepare(problem, chunk_size, backend))


def prepare(problem: Problem, chunk_size: int | None = None, backend: str = "auto") -> Plan:
    """The plan for :func:`execute`; the memory budget is not checked."""
    return _plan(problem, chunk_size, backend, False, None, enforce=False)


def execute(problem: Problem, prepared: Plan) -> tuple[Tensor, str]:
    """The Jacobian, and the name of the method; refused if it does not fit the memory budget."""
    _check_budget(prepared.nbytes, prepared.shape, problem.x.device)
    result, path = run(problem, prepared)
    return result, NAMES[path]


def execute_with_error(problem: Problem, prepared: Plan) -> tuple[Tensor, str, Tensor | None]:
    """:func:`execute`, and the errors of the rows (..., n, q) if the native operator bounds them."""
    if prepared.backend != "native" or not problem.x.is_cpu:
        return (*execute(problem, prepared), None)
    _check_budget(prepared.nbytes, prepared.shape, problem.x.device)
    with torch.no_grad():
        J, error = _ops.mlp_jacobian_with_error(*native_arguments(problem))
    return J, NAMES["native"], error


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
    """What :func:`jacobian` would compute, by which method and in how many bytes, without computing it.

    Args and errors as for :func:`jacobian`, except that a result larger than the memory budget is no error
    here. Whether ``vmap`` can take the model is tested with one sample.

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
        raise ValueError("out= and create_graph=True exclude each other; omit out=")
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
        # jacrev needs the memory of a chunk's result, and about the same again while it computes it.
        per_sample = 3 * max(1, q * problem.columns.count) * itemsize
        chunk_size = max(1, n) if chosen == "native" else max(1, WORKING_BYTES // per_sample)
    at_once = max(1, min(chunk_size, n))
    insisted = backend != "auto"
    return Plan(chosen, reason, shape, problem.dtype, nbytes, at_once, insisted, found)


def _choose(problem: Problem, backend: str) -> tuple[str, str]:
    """The backend, and the reason for it."""
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
        warn_of_no_kernel(problem.x.device, obstacle)
    return "torch", obstacle


def _count_on_meta(problem: Problem) -> int:
    x = problem.x if len(problem.x) else problem.x.new_zeros(1, *problem.x.shape[1:])
    return count_on_meta(functools.partial(problem.call, problem.point()), x[:1])


def _probed(problem: Problem) -> Probe:
    """Probe the model on a few samples; refuse models without a per-sample Jacobian."""
    found = probe(problem)
    for leaf in found.leaves:
        if leaf.dtype != problem.dtype:
            raise TypeError(
                f"the model's output is {leaf.dtype} but its parameters are {problem.dtype}; expected one"
            )
    return found


def _check_out(out: Tensor, shape: tuple[int, ...], problem: Problem) -> None:
    if out.is_nested or out.is_quantized or out.layout is not torch.strided:
        kind = "nested" if out.is_nested else "quantized" if out.is_quantized else str(out.layout)
        raise TypeError(
            f"out is a {type(out).__name__} ({kind}); expected a dense torch.Tensor to write into"
        )
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
    """The addresses between which a tensor's numbers are."""
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
