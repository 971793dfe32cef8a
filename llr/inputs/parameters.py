"""The parameters that are columns of the Jacobian, and their positions.

The columns are the trainable parameters in ``model.named_parameters()`` order, each flattened row-major.
A tied parameter is one tensor and counts once; a frozen one (``requires_grad=False``) does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from llr.inputs.accept import a_planned_module, takes
from llr.inputs.tensors import is_plain, is_special, plain, refuse_overlarge

Selection = None | str | Sequence[str] | Mapping[str, Tensor]


@dataclass
class Columns:
    """The differentiated parameters, in column order, and those that are held fixed."""

    values: dict[str, Tensor]
    """name -> value, with a leading batch when ``points`` is not None."""
    fixed: dict[str, Tensor]
    """name -> value of every other parameter."""
    points: int | None = None
    """Number of parameter points B, or None for a single point without a batch dimension."""

    @property
    def count(self) -> int:
        """P, the number of columns."""
        return sum([v.numel() for v in self.values.values()]) // (self.points or 1)

    def size(self, name: str) -> int:
        """The number of columns of the parameter."""
        return self.values[name].numel() // (self.points or 1)

    def starts(self) -> dict[str, int]:
        """name -> its first column."""
        starts, first = {}, 0
        for name in self.values:
            starts[name] = first
            first += self.size(name)
        return starts

    def slices(self) -> dict[str, slice]:
        """name -> its columns."""
        return {name: slice(at, at + self.size(name)) for name, at in self.starts().items()}


@takes(model=a_planned_module)
def layout(model: nn.Module, *, params: str | Sequence[str] | None = None) -> dict[str, slice]:
    """The columns of ``llr.jacobian(model, x, params=params)`` that belong to each parameter.

    Args:
        model: any module.
        params: a name or glob, or several, as for :func:`llr.jacobian`.

    Returns:
        Parameter name -> slice, in column order. ``J[..., s].unflatten(-1, p.shape)`` has the shape of the
        parameter.

    Raises:
        ValueError: no trainable parameter, or a pattern that matches none.

    Example:
        >>> import llr, torch
        >>> llr.layout(torch.nn.Linear(3, 2))
        {'weight': slice(0, 6, None), 'bias': slice(6, 8, None)}
    """
    return columns_of_module(type(model).__name__, dict(model.named_parameters()), params).slices()


def columns_of_module(kind: str, every: Mapping[str, Tensor], params: Selection) -> Columns:
    """Read ``params=`` for a module of class `kind` with these parameters; see :func:`llr.jacobian`."""
    if any(map(is_special, every.values())):
        every = {name: _plain(name, p) for name, p in every.items()}
    if isinstance(params, Mapping):
        return _columns_from_values(every, params)
    trainable = {name: p for name, p in every.items() if p.requires_grad}
    if not trainable:
        raise ValueError(
            f"{kind} has no trainable parameters "
            f"({len(every)} in all, none with requires_grad); there is nothing to differentiate"
        )
    if params is None:
        chosen = trainable
    else:
        patterns = [params] if isinstance(params, str) else list(params)
        for pattern in patterns:
            _check_pattern(pattern, trainable, every)
        chosen = {
            name: p
            for name, p in trainable.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        if not chosen:
            raise ValueError("params is empty; expected at least one name or glob")
    return Columns(values=dict(chosen), fixed={n: p for n, p in every.items() if n not in chosen})


def columns_of_callable(params: Selection) -> Columns:
    """Read ``params=`` for a callable f(params, x): the mapping with which it is called."""
    if not isinstance(params, Mapping):
        raise TypeError(
            "a callable model needs params= a mapping of names to tensors, with which it is called as "
            f"model(params, x); got {type(params).__name__}"
        )
    _check_tensors(params)
    return Columns(values=dict(params), fixed={})


def _plain(name: str, p: Tensor) -> Tensor:
    """A plain tensor for a parameter whose class does not change computations."""
    own = plain(f"parameter {name!r}", p)
    return own if own is p else nn.Parameter(own.detach(), p.requires_grad)


def _check_pattern(
    pattern: object, trainable: Mapping[str, Tensor], every: Mapping[str, Tensor]
) -> None:
    if not isinstance(pattern, str):
        raise TypeError(
            "params= takes a name or glob, several of them, or a mapping of names to tensors; got "
            f"an entry of type {type(pattern).__name__}"
        )
    if any(fnmatchcase(name, pattern) for name in trainable):
        return
    if any(fnmatchcase(name, pattern) for name in every):
        raise ValueError(
            f"params pattern {pattern!r} matches only frozen parameters; set requires_grad=True on them "
            "or pass their values as a mapping"
        )
    raise ValueError(
        f"params pattern {pattern!r} matches no parameter; expected one of {_listed(trainable)}"
    )


def _columns_from_values(every: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Columns:
    _check_tensors(params)
    for name in params:
        if name not in every:
            raise ValueError(
                f"params has {name!r}, which the model does not have; expected names among {_listed(every)}"
            )
    points: int | None = None
    for number, (name, value) in enumerate(params.items()):
        shape, expected = tuple(value.shape), tuple(every[name].shape)
        batched = len(shape) == len(expected) + 1 and shape[1:] == expected
        if shape != expected and not batched:
            raise ValueError(
                f"params[{name!r}] has shape {shape}; expected {expected}, or (B, *{expected}) "
                "with a leading batch of parameter points"
            )
        here = shape[0] if batched else None
        if number == 0:
            points = here
        elif here != points:
            raise ValueError(
                f"params[{name!r}] has shape {shape}, which makes {_points(here)}, but the others make "
                f"{_points(points)}; expected one leading size for all"
            )
    values = {name: params[name] for name in every if name in params}
    return Columns(
        values=values, fixed={n: p for n, p in every.items() if n not in params}, points=points
    )


def _check_tensors(params: Mapping[str, Tensor]) -> None:
    if not params:
        raise ValueError("params is empty; expected at least one tensor to differentiate")
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"params[{name!r}] is {type(value).__name__}; expected a mapping of names to tensors"
            )
        refuse_overlarge(f"params[{name!r}]", value if is_plain(value) else plain(name, value))


def _points(points: int | None) -> str:
    return "a single parameter point" if points is None else f"{points} parameter points"


def _listed(names: Mapping[str, object], limit: int = 12) -> str:
    listed = ", ".join(list(names)[:limit])
    return listed + (f", ... ({len(names)} in all)" if len(names) > limit else "")
