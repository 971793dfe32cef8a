"""A model, its columns and its samples, read and checked before any work.

Every check here needs no evaluation of the model; :mod:`llr.probes` has those that do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llr import _ops, agreement, gate
from llr.mlp import MLP, NotAnMLP, read_mlp
from llr.parameters import Columns, Selection, columns_of_callable, columns_of_module
from llr.probes import refuse_layers, spared_buffers
from llr.surroundings import ordinary

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

    def call(
        self, values: Mapping[str, Tensor], x: Tensor, buffers: Mapping[str, Tensor] | None = None
    ) -> object:
        """The model at these values, and its own buffers unless others are given."""
        if isinstance(self.model, nn.Module):
            buffers = self.buffers if buffers is None else buffers
            return functional_call(self.model, {**self.columns.fixed, **values, **buffers}, (x,))
        return self.model(values, x)

    @functools.cached_property
    def buffers(self) -> dict[str, Tensor]:
        """The module's buffers, in the dtype of the problem."""
        if not isinstance(self.model, nn.Module):
            return {}
        return {name: _promoted(b, self.promotion) for name, b in self.model.named_buffers()}

    def spared_buffers(self) -> AbstractContextManager[Callable[[], str | None]]:
        """Copies in place of the module's buffers; see :func:`llr.probes.spared_buffers`."""
        if not isinstance(self.model, nn.Module):
            return nullcontext(lambda: None)
        return spared_buffers(self.model, self.promotion)

    def point(self, index: int = 0) -> dict[str, Tensor]:
        """The values at one parameter point."""
        if self.columns.points is None:
            return self.columns.values
        return {name: v[index] for name, v in self.columns.values.items()}

    def chain(self) -> list[tuple[str | None, Tensor | None]]:
        """The MLP's tensors in order (weight 0, bias 0, weight 1, ...), by name and value.

        The name is None for a tensor that is no parameter, the value for a bias that is not there. Columns
        have their values at all parameter points.
        """
        assert self.mlp is not None
        links: list[tuple[str | None, Tensor | None]] = []
        for layer in zip(self.mlp.weights, self.mlp.biases, strict=True):
            for tensor in layer:
                name = None if tensor is None else self.names.get(id(tensor))
                if tensor is None or name is None:
                    links.append(
                        (None, None if tensor is None else _promoted(tensor, self.promotion))
                    )
                elif name in self.columns.values:
                    links.append((name, self.columns.values[name]))
                else:
                    links.append((name, self.columns.fixed[name]))
        return links


def read_problem(
    model: Model, x: Tensor, params: Selection, dtype: torch.dtype | None = None
) -> Problem:
    """Every check that needs no evaluation of the model."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {type(x).__name__}; expected a tensor (torch.as_tensor(x))")
    if x.dim() == 0:
        raise ValueError("x is a single number; expected samples along a first dimension")
    mlp, why_not, names = None, "a callable", {}
    if isinstance(model, nn.Module):
        every = dict(model.named_parameters())
        columns = columns_of_module(type(model).__name__, every, params)
        names = {id(p): name for name, p in every.items()}
        try:
            mlp = read_mlp(model)
            why_not = _unused(mlp, columns, names)
        except NotAnMLP as departure:
            why_not = str(departure)
        mlp = None if why_not else mlp
    elif callable(model):
        columns = columns_of_callable(params)
    else:
        raise TypeError(
            f"model is {type(model).__name__}; expected an nn.Module or a callable f(params, x)"
        )
    if columns.points == 0:
        raise ValueError("params has no parameter points (leading size 0); expected at least one")
    if dtype is not None:
        columns = Columns(
            {n: _promoted(v, dtype) for n, v in columns.values.items()},
            {n: _promoted(v, dtype) for n, v in columns.fixed.items()},
            columns.points,
        )
        x = _promoted(x, dtype)
    if any(t.is_inference() for t in (x, *columns.values.values(), *columns.fixed.values())):
        columns = Columns(
            {n: ordinary(v) for n, v in columns.values.items()},
            {n: ordinary(v) for n, v in columns.fixed.items()},
            columns.points,
        )
        x = ordinary(x)
    _check_kinds(columns, x)
    common = _common_dtype(columns, x)
    _check_devices(columns, x)
    _check_finite(columns, x)
    problem = Problem(model, columns, x, common, mlp, why_not, names, dtype)
    if mlp is not None:
        for name, tensor in problem.chain():
            if tensor is not None and tensor.dtype != common:
                raise TypeError(
                    f"parameter {name!r} is {tensor.dtype} but the others are {common}; expected one dtype "
                    f"(model.to({common}))"
                )
        problem.x, problem.why_not_mlp = _samples_for(mlp, x, common)
        if not problem.why_not_mlp:
            problem.why_not_mlp = _mistaken(problem, x)
        if problem.why_not_mlp:
            problem.x, problem.mlp = x, None
    if problem.mlp is None and isinstance(model, nn.Module):
        refuse_layers(model)
    return problem


def _promoted(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    return t.to(dtype) if dtype is not None and t.is_floating_point() else t


def _unused(mlp: MLP, columns: Columns, names: Mapping[int, str]) -> str:
    used = {names.get(id(t)) for t in (*mlp.weights, *mlp.biases) if t is not None}
    idle = [name for name in columns.values if name not in used]
    return f"{idle[0]!r} is no weight or bias of a layer" if idle else ""


def _common_dtype(columns: Columns, x: Tensor) -> torch.dtype:
    """The dtype of the differentiated parameters, which x shares if it is floating."""
    (first, value), *others = columns.values.items()
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"parameter {first!r} is {value.dtype}; expected float32 or float64 (model.double())"
        )
    for name, other in others:
        if other.dtype != value.dtype:
            raise TypeError(
                f"parameters have mixed dtypes: {first!r} is {value.dtype}, {name!r} is {other.dtype}; "
                "expected one (model.double())"
            )
    if (x.is_floating_point() or x.is_complex()) and x.dtype != value.dtype:
        raise TypeError(
            f"x is {x.dtype} but the parameters are {value.dtype}; expected one dtype "
            f"(x.to({value.dtype}), or model.to(x.dtype))"
        )
    return value.dtype


_PLAIN = frozenset({Tensor, nn.Parameter})


def _check_kinds(columns: Columns, x: Tensor) -> None:
    """Refuse tensors of classes that change what functions do with them: transforms would not see that."""
    if _PLAIN.issuperset(map(type, (x, *columns.values.values(), *columns.fixed.values()))):
        return
    parameters = ((f"parameter {n!r}", v) for n, v in (columns.values | columns.fixed).items())
    for name, t in (("x", x), *parameters):
        if gate.computes_otherwise(t):
            raise TypeError(
                f"{name} is a {type(t).__name__}, a kind of tensor with rules of its own; expected a plain "
                "tensor (t.as_subclass(torch.Tensor))"
            )


def _check_devices(columns: Columns, x: Tensor) -> None:
    for name, value in (*columns.values.items(), *columns.fixed.items()):
        if value.device != x.device:
            raise ValueError(
                f"parameter {name!r} is on {value.device} but x is on {x.device}; expected one device"
            )


def _check_finite(columns: Columns, x: Tensor) -> None:
    tensors = [x, *columns.values.values(), *columns.fixed.values()]
    if _transformed(tensors):
        return  # there are no numbers to look at
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


def _transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether this happens inside somebody's vmap, grad or jvp."""
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def _samples_for(mlp: MLP, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
    """x as the layers take it, (n, d); or why the native operator cannot take it."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; expected {dtype} as the parameters (x.to({dtype}))")
    samples = x.flatten(1) if mlp.flattens and x.dim() > 2 else x
    if samples.dim() < 2 or samples.shape[-1] != mlp.widths[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, {mlp.widths[0]}) for a {mlp}")
    if samples.dim() > 2:
        return x, f"samples of shape {tuple(x.shape[1:])}"
    return samples, ""


def _mistaken(problem: Problem, x: Tensor) -> str:
    """What reading a module did not show: the model and the chain read off it, compared on a few samples.

    Once for each reading, except of a trace: what a forward does may hang on attributes that have changed.
    """
    mlp = cast(MLP, problem.mlp)
    where = (problem.dtype, x.device)
    if where in mlp.confirmed or 0 in mlp.widths:  # without inputs or neurons there is nothing to say
        return ""
    point = problem.point()
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta or _transformed([x, *point.values()]):
        # There are no numbers to compare.
        return "a traced module inside a transform of torch.func" if mlp.traced else ""
    links = [(name, point.get(name or "", tensor)) for name, tensor in problem.chain()]

    def call(values: Mapping[str, Tensor], x: Tensor) -> object:
        with problem.spared_buffers():
            return problem.call(values, x, {})

    why = agreement.mlp_departure(mlp, links, call, agreement.probes(x))
    if not why and not mlp.traced:
        mlp.confirmed.add(where)
    return why
