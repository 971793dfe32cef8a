"""A model, its columns and its samples, read and checked before any work.

No check here evaluates the model; the checks that do are in :mod:`llr.inputs.probe`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from llr.inputs import agreement, gate
from llr.inputs.accept import a_model
from llr.inputs.evaluation import scripted
from llr.inputs.evaluation.forward_errors import explained
from llr.inputs.evaluation.precision import Precision
from llr.inputs.evaluation.private import Private
from llr.inputs.evaluation.sparse_gradients import dense_gradients, has_sparse_gradients
from llr.inputs.evaluation.surroundings import closed, ordinary
from llr.inputs.layer_modes import refuse_layers, refuse_quantized
from llr.inputs.mlp import MLP, NotAnMLP, read_mlp
from llr.inputs.parameters import Columns, Selection, columns_of_callable, columns_of_module
from llr.inputs.tensors import as_tensor, is_plain, refuse_meta, wider
from llr.operators import _ops

Model = nn.Module | Callable[[Mapping[str, Tensor], Tensor], object]


@dataclass
class Problem:
    """A model at its parameters and its samples, checked."""

    model: Model
    columns: Columns
    x: Tensor
    dtype: torch.dtype
    mlp: MLP | None = None
    why_not_mlp: str = ""
    names: dict[int, str] = field(default_factory=dict)
    """id of a parameter of the module -> its name."""
    promotion: torch.dtype | None = None
    """The dtype that values and buffers are promoted to, if one was asked for."""

    raised: bool = False
    """Whether lower precision inside the model is raised to the problem's dtype."""
    differentiable: bool = False
    """Whether results will be differentiated further, with respect to any parameter of the module."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What is already known about the model; shared with problems made from this one."""
    _links: list[tuple[str | None, Tensor | None]] | None = field(default=None, init=False)

    @property
    def private(self) -> Private:
        """The object that makes copies of the module."""
        if "private" not in self.kept:
            self.kept["private"] = Private(cast(nn.Module, self.model), self.promotion)
        return cast(Private, self.kept["private"])

    def copy(self, values: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the module with these values and the module's state."""
        given = {**self.columns.fixed, **values}
        if not self.differentiable:
            given = {name: self.private.own(value, name) for name, value in given.items()}
        return self.private.copy(given)

    def run(self, model: Callable[[Tensor], object], x: Tensor) -> object:
        """Evaluate a copy of the module, or a function that replaces it, on samples."""
        with explained(x), dense_gradients(self._sparse), self._precision():
            return model(x)

    def at(self, values: Mapping[str, Tensor]) -> Callable[[Tensor], object]:
        """The model at these values as a function of samples, to be called only once."""
        model = self.model
        if isinstance(model, nn.Module):
            return functools.partial(self.run, self.copy(values))
        return functools.partial(self.run, functools.partial(model, values))

    def call(self, values: Mapping[str, Tensor], x: Tensor) -> object:
        """Evaluate the model at these values; a module is copied first."""
        return self.at(values)(x)

    @functools.cached_property
    def _sparse(self) -> bool:
        return has_sparse_gradients(self.model)

    def _precision(self) -> Precision | nullcontext[None]:
        """The context in which a forward runs; a null context where it would change nothing."""
        if not self.raised and self.dtype == torch.get_default_dtype() == torch.float32:
            return nullcontext()
        return Precision(self.dtype, raised=self.raised)

    def point(self, index: int = 0) -> dict[str, Tensor]:
        """The values at one parameter point."""
        if self.columns.points is None:
            return self.columns.values
        return {name: v[index] for name, v in self.columns.values.items()}

    def chain(self) -> list[tuple[str | None, Tensor | None]]:
        """The MLP's tensors in order (weight 0, bias 0, weight 1, ...), by name and value.

        The name is None for a tensor that is not a parameter, the value is None for a missing bias. Columns
        have their values at all parameter points.
        """
        if self._links is not None:
            return self._links
        assert self.mlp is not None
        links: list[tuple[str | None, Tensor | None]] = []
        for layer in zip(self.mlp.weights, self.mlp.biases, strict=True):
            for tensor in layer:
                name = None if tensor is None else self.names.get(id(tensor))
                if tensor is None or name is None:
                    links.append((None, None if tensor is None else wider(tensor, self.promotion)))
                elif name in self.columns.values:
                    links.append((name, self.columns.values[name]))
                else:
                    links.append((name, self.columns.fixed[name]))
        self._links = links
        return links


def read_problem(
    model: Model,
    x: Tensor,
    params: Selection,
    dtype: torch.dtype | None = None,
    *,
    raised: bool | None = None,
    shapes_only: bool = False,
) -> Problem:
    """Read a model and its samples, with every check that needs no evaluation of the model.

    Args:
        model: a module, or a callable.
        x: samples.
        params: as for :func:`llr.jacobian`.
        dtype: the dtype to which values are promoted.
        raised: whether lower precision inside the model is raised to that of the problem; default: if `dtype`
            is given.
        shapes_only: accept a model on the meta device; samples are then moved there, too.
    """
    model = a_model("model", model)
    mlp, why_not, names = None, "a callable", {}
    if isinstance(model, nn.Module):
        try:
            mlp = read_mlp(model)
        except NotAnMLP as departure:
            why_not = str(departure)
        known = None if mlp is None else mlp.parameters
        every = dict(model.named_parameters()) if known is None else known
        if not every:
            refuse_quantized(model)
        columns = columns_of_module(type(model).__name__, every, params)
        names = {id(p): name for name, p in every.items()}
        if mlp is not None:
            why_not = _unused(mlp, columns, every)
            mlp = None if why_not else mlp
    else:
        columns = columns_of_callable(params)
    if not isinstance(x, Tensor) or not is_plain(x):
        x = as_tensor("x", x, dtype or next(iter(columns.values.values())).dtype)
    if x.dim() == 0:
        raise ValueError("x is a single number; expected samples along a first dimension")
    if columns.points == 0:
        raise ValueError("params has no parameter points (leading size 0); expected at least one")
    if dtype is not None:
        columns = Columns(
            {n: wider(v, dtype) for n, v in columns.values.items()},
            {n: wider(v, dtype) for n, v in columns.fixed.items()},
            columns.points,
        )
        x = wider(x, dtype)
    common, alike = x.dtype, _alike(columns, x)
    if not alike:
        if any(map(Tensor.is_inference, _tensors(columns, x))):
            columns = Columns(
                {n: ordinary(v) for n, v in columns.values.items()},
                {n: ordinary(v) for n, v in columns.fixed.items()},
                columns.points,
            )
            x = ordinary(x)
        _check_kinds(columns, x)
        common = _common_dtype(columns, x)
        if shapes_only and any(v.is_meta for v in columns.values.values()):
            x = x.to("meta")
        _check_devices(columns, x)
    if not shapes_only or not x.is_meta:
        _check_values(columns, x)
    if isinstance(model, torch.jit.ScriptModule):
        model = scripted.functional(model, columns, dtype)
    raised = dtype is not None if raised is None else raised
    problem = Problem(model, columns, x, common, mlp, why_not, names, dtype, raised)
    if mlp is not None:
        for name, tensor in problem.chain():
            if tensor is not None and tensor.dtype != common:
                raise TypeError(
                    f"parameter {name!r} is {tensor.dtype} but the others are {common}; expected one dtype "
                    f"(model.to({common}))"
                )
        problem.x, problem.why_not_mlp = _samples_for(mlp, x, common)
        if 0 in mlp.widths and not problem.why_not_mlp:
            problem.why_not_mlp = "a layer of width 0"
        if not problem.why_not_mlp:
            problem.why_not_mlp = _mistaken(problem, x)
        if problem.why_not_mlp:
            problem.x, problem.mlp = x, None
    if problem.mlp is None and isinstance(model, nn.Module):
        refuse_layers(model)
    return problem


def _unused(mlp: MLP, columns: Columns, every: Mapping[str, Tensor]) -> str:
    idle = [name for name in columns.values if id(every[name]) not in mlp.tensors]
    return f"{idle[0]!r} is no weight or bias of a layer" if idle else ""


_PLAIN = frozenset({Tensor, nn.Parameter})


def _alike(columns: Columns, x: Tensor) -> bool:
    """Whether samples and parameters are plain tensors of one dtype and device, none from inference mode.

    If not, the later checks say what differs.
    """
    dtype, device = x.dtype, x.device
    if dtype not in (torch.float32, torch.float64) or x.is_meta:
        return False
    for t in _tensors(columns, x):
        if t.dtype != dtype or type(t) not in _PLAIN or t.device != device or t.is_inference():
            return False
    return True


def _tensors(columns: Columns, x: Tensor) -> list[Tensor]:
    return [x, *columns.values.values(), *columns.fixed.values()]


def _common_dtype(columns: Columns, x: Tensor) -> torch.dtype:
    """The dtype of the differentiated parameters, which a floating-point x must have, too."""
    (first, value), *others = columns.values.items()
    if value.dtype not in (torch.float32, torch.float64):
        _refuse_complex(first, value)
        raise TypeError(
            f"parameter {first!r} is {value.dtype}; expected float32 or float64 (model.double())"
        )
    for name, other in others:
        if other.dtype != value.dtype:
            _refuse_complex(name, other)
            raise TypeError(
                f"parameters have mixed dtypes: {first!r} is {value.dtype}, {name!r} is {other.dtype}; "
                "expected one (model.double())"
            )
    if x.dtype == value.dtype:
        return x.dtype
    if (x.is_floating_point() or x.is_complex()) and x.dtype.to_real() != value.dtype:
        expected = value.dtype.to_complex() if x.is_complex() else value.dtype
        raise TypeError(
            f"x is {x.dtype} but the parameters are {value.dtype}; expected one dtype "
            f"(x.to({expected}), or model.to({x.dtype.to_real()}))"
        )
    return value.dtype


def _refuse_complex(name: str, value: Tensor) -> None:
    if value.is_complex():
        raise TypeError(
            f"parameter {name!r} is {value.dtype}; expected real parameters: make it a real tensor with a "
            "last dimension of 2 and take torch.view_as_complex of it in forward, so that real and "
            "imaginary parts are columns"
        )


def _check_kinds(columns: Columns, x: Tensor) -> None:
    """Refuse tensors of classes that change what functions do with them, which transforms would ignore."""
    if _PLAIN.issuperset(map(type, _tensors(columns, x))):
        return
    parameters = ((f"parameter {n!r}", v) for n, v in (columns.values | columns.fixed).items())
    for name, t in (("x", x), *parameters):
        if gate.computes_otherwise(t):
            raise TypeError(
                f"{name} is a {type(t).__name__}, a kind of tensor with rules of its own; expected a plain "
                "tensor (t.as_subclass(torch.Tensor))"
            )


def _check_devices(columns: Columns, x: Tensor) -> None:
    device = x.device
    for name, value in (*columns.values.items(), *columns.fixed.items()):
        if value.device != device:
            raise ValueError(
                f"parameter {name!r} is on {value.device} but x is on {x.device}; expected one device"
            )


def _check_values(columns: Columns, x: Tensor) -> None:
    tensors = _tensors(columns, x)
    if x.is_meta:
        refuse_meta("the model" if tensors[1].is_meta else "x", x)
    if transformed(tensors):
        return  # there are no numbers to check
    floating = [t for t in tensors if t.dtype in (torch.float32, torch.float64)]
    if len(floating) < len(tensors):
        tensors = [torch.view_as_real(t.detach()) if t.is_complex() else t for t in tensors]
        floating = [t for t in tensors if t.dtype in (torch.float32, torch.float64)]
    index = _ops.first_nonfinite(floating)
    if index < 0:
        return
    labels = ["x", *(f"parameter {name!r}" for name in (*columns.values, *columns.fixed))]
    label = next(n for n, t in zip(labels, tensors, strict=True) if t is floating[index])
    bad = floating[index].detach()
    where = tuple(int(i) for i in (~torch.isfinite(bad)).nonzero()[0])
    raise ValueError(
        f"{label} is {float(bad[where])} at index {where}; expected finite numbers (a Jacobian there would "
        "be NaN and its rank meaningless)"
    )


def as_leaves(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values, detached, as tensors that require a gradient, like parameters in training.

    A forward may retain gradients of intermediate results and register hooks on them, which torch refuses if
    no gradient is required. Inside a transform of the caller the values do not change.
    """
    detached = {name: v.detach() for name, v in values.items()}
    if not transformed(list(values.values())):
        for v in detached.values():
            v.requires_grad_()
    return detached


def transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether the call is inside a vmap, grad or jvp of the caller."""
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def _samples_for(mlp: MLP, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
    """x in the shape that the layers take, (n, d), and why the native operator cannot take x, if so."""
    if x.is_complex():
        raise TypeError(
            f"x is {x.dtype}; expected real numbers, as the parameters are (pass real and imaginary parts "
            "as separate inputs: torch.cat((x.real, x.imag), -1))"
        )
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; expected {dtype} as the parameters (x.to({dtype}))")
    samples = x.flatten(1) if mlp.flattens and x.dim() > 2 else x
    if samples.dim() < 2 or samples.shape[-1] != mlp.widths[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, {mlp.widths[0]}) for a {mlp}")
    if samples.dim() > 2:
        return x, f"samples of shape {tuple(x.shape[1:])}"
    return samples, ""


def _mistaken(problem: Problem, x: Tensor) -> str:
    """How the model differs from the chain that was read from it, compared on a few samples.

    A reading is compared once; a trace in every call, since a forward may depend on attributes that have
    changed.
    """
    mlp = cast(MLP, problem.mlp)
    where = (problem.dtype, x.device)
    if (
        where in mlp.confirmed or 0 in mlp.widths
    ):  # without inputs or neurons there is nothing to compare
        return ""
    point = problem.point()
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta or transformed([x, *point.values()]):
        # There are no numbers to compare.
        return "a traced module inside a transform of torch.func" if mlp.traced else ""
    links = [(name, point.get(name or "", tensor)) for name, tensor in problem.chain()]

    def call(values: Mapping[str, Tensor], x: Tensor) -> object:
        with closed():
            return problem.call(values, x)

    why = agreement.mlp_departure(mlp, links, call, agreement.probes(x))
    if not why and not mlp.traced:
        mlp.confirmed.add(where)
    return why
