"""The three methods for a Jacobian: the native operator, ``vmap`` of ``jacrev``, and a loop over samples."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import jacrev

from llr.inputs.batched import Comparison, WrongDerivatives, batched_rows
from llr.inputs.evaluation.compare import UNSUPPORTED, flat, ragged, why_unsupported
from llr.inputs.evaluation.forward_errors import derivatives, from_torch
from llr.inputs.evaluation.outputs import dense, output_leaves
from llr.inputs.evaluation.surroundings import closed
from llr.inputs.examination import Probe
from llr.inputs.memory import format_bytes
from llr.inputs.mlp import MLP
from llr.inputs.overwrites import overwriting
from llr.inputs.parameters import Columns
from llr.inputs.probe import probe
from llr.inputs.problem import Problem, transformed
from llr.jacobians import reference
from llr.operators import _ops
from llr.results import Record
from llr.results.progress import step

log = logging.getLogger("llr")

NAMES = {"native": "native mlp", "torch": "torch.func vmap", "loop": "autograd loop"}
WORKING_BYTES = 256 << 20  # the memory that torch.func may use besides the result


@dataclass(repr=False)
class Plan(Record):
    """What :func:`llr.jacobian` would do with a model and samples; see :func:`llr.plan`.

    The probe of the model is not written, copied or pickled, since it holds the model.
    """

    backend: str
    """"native", "torch" or "loop"."""
    reason: str
    """Why this backend."""
    shape: tuple[int, ...]
    """(n, q, P) or (B, n, q, P)."""
    dtype: torch.dtype
    nbytes: int
    """Bytes of the result."""
    chunk_size: int
    """Samples at a time."""
    insisted: bool = False
    """Whether the backend was asked for by name, so that no other may take over."""
    probe: Probe | None = field(default=None, compare=False)
    """What the model did on a few samples; None if it was not run."""

    _unstored = ("probe",)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield len(self.shape) in (3, 4), "a shape (n, q, P) or (B, n, q, P)"
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        yield self.nbytes == nbytes, f"the {nbytes} bytes of shape and dtype"

    def _check(self, content: Mapping[str, Any]) -> None:
        if self.backend not in NAMES:
            raise ValueError(
                f"backend of Plan is {self.backend!r}; expected one of {', '.join(NAMES)}"
            )
        super()._check(content)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"probe": None}

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"J {self.shape} {kind}, {format_bytes(self.nbytes)}: {NAMES[self.backend]} ({self.reason}), "
            f"{self.chunk_size} samples at a time"
        )


def run(
    problem: Problem, prepared: Plan, out: Tensor | None = None, create_graph: bool = False
) -> tuple[Tensor, str]:
    """The Jacobian by the plan, written to `out` if given, and the backend that computed it.

    If ``vmap`` cannot take the model and was not required by name, the loop computes it.
    """
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
    # With gradients recorded: without, torch differentiates LU factors wrongly under vmap.
    place = functools.partial(overwriting, problem)
    with closed(), torch.enable_grad(), derivatives(problem.x, overwriting=place):
        if prepared.backend == "torch":
            try:
                return _fill(problem, prepared, out, create_graph, _torch_rows), "torch"
            except UNSUPPORTED as error:
                # The loop may compute what vmap cannot; other errors will be raised by the loop as well.
                own = prepared.probe is not None and prepared.probe.draws_own
                reason = why_unsupported(error, own)
                if isinstance(error, WrongDerivatives):
                    reason = str(error)
                    probe(problem).obstacle = reason
                elif prepared.insisted and not from_torch(error):
                    raise
                if prepared.insisted:
                    raise ValueError(
                        f"backend='torch' cannot compute this model: {reason}; backend='auto' loops over "
                        "samples where it has to"
                    ) from error
                log.info(
                    "torch.func.vmap cannot take this model (%s); looping over samples", reason
                )
        return _fill(problem, prepared, out, create_graph, _loop_rows), "loop"


def columns_of(problem: Problem, names: Sequence[str], x: Tensor, chunk_size: int | None) -> Tensor:
    """(m, q, columns): the derivatives with respect to these parameters, for a problem that was probed."""
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
    at_once = chunk_size or max(1, min(len(x), WORKING_BYTES // per_sample))
    nbytes = math.prod(shape) * problem.dtype.itemsize
    plan = Plan(backend, "", shape, problem.dtype, nbytes, at_once)
    return run(part, plan)[0]


def native_arguments(
    problem: Problem,
) -> tuple[Tensor, list[Tensor], list[Tensor | None], str, list[int] | None]:
    """The arguments of the native operators for an MLP: x, weights, biases, activation, columns."""
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


def is_native(problem: Problem) -> bool:
    """Whether a native operator computes this model: an MLP on a device with kernels."""
    return problem.mlp is not None and _ops.has_kernel(problem.x)


def _native(problem: Problem, out: Tensor | None) -> Tensor:
    return _ops.mlp_jacobian(*native_arguments(problem), out)


_Rows = Callable[[Problem, dict[str, Tensor], Tensor, int, bool], tuple[dict[str, Tensor], Tensor]]
"""For some samples with q outputs: name -> derivatives (samples, q, *parameter); and the outputs."""


def _fill(
    problem: Problem, prepared: Plan, out: Tensor | None, create_graph: bool, rows: _Rows
) -> Tensor:
    """Compute the whole result, one parameter point and one chunk of samples at a time."""
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
    compare = Comparison(problem)
    is_transformed = transformed([problem.x, *problem.columns.values.values()])
    for index in range(1 if points is None else points):
        values = problem.point(index)
        for first in range(0, n, prepared.chunk_size):
            step("Jacobian: samples", index * n + first, n * (points or 1))
            # Copy, since a forward may change its input in place.
            chunk = problem.x[first : first + prepared.chunk_size].clone()
            parts, outputs = rows(problem, values, chunk, q, create_graph)
            if prepared.probe is not None and index == 0:
                prepared.probe.compare(outputs, first)
            if not is_transformed:
                if index == 0 and rows is _torch_rows:
                    compare(values, problem.x[first : first + prepared.chunk_size], parts)
                _refuse_nonfinite(parts, first, None if points is None else index)
            columns_of_parts = {
                name: dense(d).reshape(chunk.shape[0], q, problem.columns.size(name))
                for name, d in parts.items()
            }
            if result is None:
                kept.append(torch.cat([columns_of_parts[name] for name in values], dim=-1))
                continue
            target = (result if points is None else result[index])[first : first + chunk.shape[0]]
            for name, columns in problem.columns.slices().items():
                target[:, :, columns] = columns_of_parts[name].detach()
    if result is not None:
        return result
    if not kept:
        return problem.x.new_empty(prepared.shape, dtype=problem.dtype)
    return torch.cat(kept).reshape(prepared.shape)


def _refuse_nonfinite(parts: Mapping[str, Tensor], first: int, point: int | None) -> None:
    """Refuse derivatives (samples, q, *parameter) that are NaN or infinite; `first` is the first sample."""
    index = _ops.first_nonfinite([dense(d.detach()) for d in parts.values()])
    if index < 0:
        return
    name, rows = list(parts.items())[index]
    rows = dense(rows.detach())
    where = tuple(int(i) for i in (~torch.isfinite(rows)).nonzero()[0])
    at = "" if point is None else f" at parameter point {point}"
    raise ValueError(
        f"the derivative of output {where[1]} of sample {first + where[0]} by parameter {name!r}, index "
        f"{where[2:]}{at}, is {float(rows[where])}; expected a finite number. There is no derivative (as of "
        "sqrt or a norm at 0, also in the branch that torch.where does not use), or it is too large for "
        f"{rows.dtype}: move the sample, or keep the argument away from that point in forward"
    )


def _torch_rows(
    problem: Problem, values: dict[str, Tensor], x: Tensor, q: int, create_graph: bool
) -> tuple[dict[str, Tensor], Tensor]:
    if not create_graph and not transformed([x, *values.values()]):
        basis = torch.eye(q, dtype=problem.dtype, device=x.device)
        return batched_rows(problem, values, x, basis)

    def outputs(values: dict[str, Tensor], sample: Tensor) -> tuple[Tensor, Tensor]:
        value = flat(problem.call(values, sample[None]))
        if len(value) != q:
            raise ValueError(ragged(len(value), q))
        return value, value

    # Without vmap: inside a transform the numbers cannot be compared, and torch differentiates its vmap rule
    # for layer_norm wrongly (the values are right, their derivatives wrong by tens of percent; 2.13 and
    # 2.14).
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
        parts = [leaf.detach().flatten() for leaf in output_leaves(outputs)]
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
