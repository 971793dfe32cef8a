"""What the public functions accept: models, tensors and other arguments in all common forms.

The decorator :func:`takes` is on every public function. It converts each argument by its role before the
function is called. An argument that needs no conversion costs about a microsecond.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor, nn

from llr.inputs.roles import Role, as_plain
from llr.inputs.selection import selection, unwrapped
from llr.inputs.tensors import (
    as_matrix,
    as_tensor,
    plain,
    refuse_complex,
    refuse_meta,
    refuse_overlarge,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C")


def takes(**roles: Role) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Convert the arguments of a public function by their roles, given by name.

    An argument without a role may be a NumPy number wherever a Python number is expected. ``params`` is read
    together with the model by :func:`selection`.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        names = list(inspect.signature(function).parameters)
        in_order = [(name, roles.get(name, as_plain)) for name in names]
        role_of = dict(in_order)
        of_model = names.index("model") if {"model", "params"} <= set(names) else -1

        @functools.wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            read: Any = [role(name, value) for (name, role), value in zip(in_order, args)]  # noqa: B905
            if len(read) < len(args):
                read += args[len(read) :]  # if there are too many, the call below raises
            if not kwargs:
                return function(*read)  # type: ignore[call-arg] # as many as were given
            named: Any = {name: role_of.get(name, as_plain)(name, v) for name, v in kwargs.items()}
            if of_model >= 0 and named.get("params") is not None:
                given = args[of_model] if len(args) > of_model else kwargs.get("model")
                named["params"] = selection(given, named["params"])
            return function(*read, **named)

        return wrapper

    return decorate


def takes_fields(**roles: Role) -> Callable[[type[_C]], type[_C]]:
    """:func:`takes` for the fields of a dataclass."""

    def decorate(cls: type[_C]) -> type[_C]:
        setattr(cls, "__init__", takes(**roles)(cls.__init__))  # noqa: B010 - mypy
        return cls

    return decorate


# --- models --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def _may_wrap(kind: Any) -> bool:
    """Whether objects of this class may have to be unwrapped or refused."""
    own = kind.__module__
    return not (isinstance(kind, type) and issubclass(kind, nn.Module)) or (
        own.startswith("torch.") and not own.startswith("torch.nn.modules.")
    )


def a_model(name: str, value: Any) -> Any:
    """A module or a callable, without wrappers.

    Raises:
        TypeError: a class instead of an instance, a sharded module, or neither a module nor a callable.
    """
    if not _may_wrap(type(value)):  # type: ignore[arg-type] # classes are hashable
        return value
    value = unwrapped(value)[0]
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}; expected an instance of it")
    if not isinstance(value, nn.Module) and not callable(value):
        raise TypeError(
            f"{name} is {type(value).__name__}; expected an nn.Module or a callable f(params, x)"
        )
    if type(value).__name__ == "FullyShardedDataParallel":
        raise TypeError(
            f"{name} is sharded over processes (FullyShardedDataParallel); load its full state dict "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict) into a plain model"
        )
    return value


def a_module(name: str, value: Any) -> nn.Module:
    """A module without wrappers whose parameters have values.

    Raises:
        TypeError: what :func:`a_model` and :func:`llr.inputs.tensors.plain` refuse; parameters on the meta
            device.
    """
    value = a_planned_module(name, value)
    for parameter, p in value.named_parameters():
        refuse_meta(f"parameter {parameter!r}", plain(f"parameter {parameter!r}", p))
    return value


def a_planned_module(name: str, value: Any) -> nn.Module:
    """A module without wrappers, possibly on the meta device; errors as for :func:`a_model`."""
    if not (isinstance(value, nn.Module | type) or callable(value)):
        raise TypeError(f"{name} is {type(value).__name__}; expected an nn.Module")
    value = a_model(name, value)
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} is {type(value).__name__}; expected an nn.Module")
    return value


def a_model_or_matrix(name: str, value: Any) -> Any:
    """A model as for :func:`a_model`, or a matrix as for :func:`llr.inputs.tensors.as_matrix`."""
    if isinstance(value, nn.Module) or (callable(value) and not isinstance(value, Tensor)):
        return a_model(name, value)
    arrays = isinstance(value, Tensor | list | tuple | int | float) or hasattr(value, "__array__")
    if arrays or hasattr(value, "toarray"):
        return as_matrix("matrix", value)
    return a_model(name, value)


# --- tensors -------------------------------------------------------------------------------------------


def samples(name: str, value: Any) -> Any:
    """A tensor from what :func:`llr.inputs.tensors.as_tensor` takes; None stays None."""
    return None if value is None else as_tensor(name, value)


def valued(name: str, value: Any) -> Any:
    """As :func:`samples`, but not on the meta device, where tensors have no values."""
    if value is None:
        return None
    t = as_tensor(name, value)
    refuse_meta(name, t)
    refuse_overlarge(name, t)
    return t


def needed(name: str, value: Any) -> Any:
    """As :func:`valued`, but not None."""
    if value is None:
        raise TypeError(f"{name} is None; expected a tensor")
    return valued(name, value)


def valued_or_function(name: str, value: Any) -> Any:
    """As :func:`valued`; a function is returned unchanged."""
    function = callable(value) and not isinstance(value, Tensor)
    return value if function else valued(name, value)


def a_sampler(name: str, value: Any) -> Any:
    """``sampler=``: arrays of points, or the ends of a box, as tensors; anything else unchanged."""
    if isinstance(value, tuple):
        return tuple(
            valued(name, v) if isinstance(v, np.ndarray) else as_plain(name, v) for v in value
        )
    return valued(name, value) if isinstance(value, Tensor | np.ndarray) else value


def numbers_or_one(name: str, value: Any) -> Any:
    """Several numbers as a tensor or a list, or one number."""
    return valued(name, value) if isinstance(value, Tensor | np.ndarray) else as_plain(name, value)


def modules(name: str, value: Any) -> Any:
    """One module or a list of them, without wrappers."""
    if isinstance(value, list | tuple):
        return [unwrapped(v)[0] for v in value]
    return a_module(name, value)


def with_matrix(name: str, value: Any) -> Any:
    """A matrix, or a record that has one.

    Raises:
        TypeError: neither.
    """
    if isinstance(getattr(value, "matrix", None), Tensor):
        return value
    matrix = needed(name, value)
    refuse_complex(name, matrix)
    return matrix


def a_tensor(name: str, value: Any) -> Any:
    """A tensor to be written to, unchanged, or None.

    Raises:
        TypeError: something else.
    """
    if value is None or isinstance(value, Tensor):
        return value
    raise TypeError(f"{name} is {type(value).__name__}; expected a tensor, or None")


def as_given(_: str, value: Any) -> Any:
    """Any value, unchanged; the function reads it later."""
    return value
