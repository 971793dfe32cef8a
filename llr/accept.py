"""What the public functions take: models, tensors and spellings as people have them.

:func:`takes` is put on every public function. It reads each argument by its role before the function sees it;
what is in order already costs a few hundred nanoseconds.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from llr.tensors import as_matrix, as_tensor, plain, refuse_meta, refuse_overlarge

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C")
Role = Callable[[str, Any], Any]


def takes(**roles: Role) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Read the arguments of a public function by their roles, given by name.

    An argument without a role may be a NumPy number wherever a Python one is expected. ``params`` is read for
    the model, with :func:`selection`.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        names = list(inspect.signature(function).parameters)
        in_order = [(name, roles.get(name, as_plain)) for name in names]
        role_of = dict(in_order)
        chooses = "params" in names and "params" not in roles

        @functools.wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            read: Any = [role(name, value) for (name, role), value in zip(in_order, args)]  # noqa: B905
            if len(read) < len(args):
                read += args[len(read) :]  # too many: the call below says so
            if not kwargs:
                return function(*read)  # type: ignore[call-arg] # as many as were given
            named: Any = {name: role_of.get(name, as_plain)(name, v) for name, v in kwargs.items()}
            if chooses and named.get("params") is not None:
                given = args[0] if args else kwargs.get(names[0])
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


def unwrapped(value: Any) -> tuple[Any, str]:
    """A module without the wrappers that compute the same, and the prefix that they put before names."""
    prefix = ""
    while True:
        kind = type(value)
        if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
            value, prefix = value.module, prefix + "module."
        elif kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo"):
            value, prefix = value._orig_mod, prefix + "_orig_mod."
        elif kind.__name__ == "ExportedProgram" and kind.__module__.startswith("torch.export"):
            value = value.module()
        elif callable(
            getattr(value, "_torchdynamo_orig_callable", None)
        ):  # torch.compile(function)
            value = value._torchdynamo_orig_callable
        else:
            return value, prefix


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
        TypeError: a class in the place of an instance, a sharded module, or neither module nor callable.
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
    """A module without wrappers that has numbers.

    Raises:
        TypeError: what :func:`a_model` and :func:`llr.tensors.plain` refuse; parameters on the meta device.
    """
    value = a_planned_module(name, value)
    for parameter, p in value.named_parameters():
        refuse_meta(f"parameter {parameter!r}", plain(f"parameter {parameter!r}", p))
    return value


def a_planned_module(name: str, value: Any) -> nn.Module:
    """A module without wrappers, perhaps on the meta device; errors as for :func:`a_model`."""
    value = a_model(name, value)
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} is {type(value).__name__}; expected an nn.Module")
    return value


def a_model_or_matrix(name: str, value: Any) -> Any:
    """A model as for :func:`a_model`, or a matrix as for :func:`llr.tensors.as_matrix`."""
    if isinstance(value, nn.Module) or (callable(value) and not isinstance(value, Tensor)):
        return a_model(name, value)
    arrays = isinstance(value, Tensor | list | tuple | int | float) or hasattr(value, "__array__")
    if arrays or hasattr(value, "toarray"):
        return as_matrix(name, value)
    return a_model(name, value)


# --- tensors -------------------------------------------------------------------------------------------


def samples(name: str, value: Any) -> Any:
    """A tensor from what :func:`llr.tensors.as_tensor` takes; None stays None."""
    return None if value is None else as_tensor(name, value)


def valued(name: str, value: Any) -> Any:
    """As :func:`samples`, but not without numbers, on the meta device."""
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
    """As :func:`valued`, or a function as it is."""
    function = callable(value) and not isinstance(value, Tensor | nn.Module)
    return value if function else valued(name, value)


def a_sampler(name: str, value: Any) -> Any:
    """``sampler=``: arrays of points, or ends of a box, as tensors; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(
            valued(name, v) if isinstance(v, np.ndarray) else as_plain(name, v) for v in value
        )
    return valued(name, value) if isinstance(value, Tensor | np.ndarray) else value


def numbers_or_one(name: str, value: Any) -> Any:
    """Several numbers as a tensor or a list, or one."""
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
    return needed(name, value)


def a_tensor(name: str, value: Any) -> Any:
    """A tensor as it is, to be written to, or None.

    Raises:
        TypeError: something else.
    """
    if value is None or isinstance(value, Tensor):
        return value
    raise TypeError(f"{name} is {type(value).__name__}; expected a tensor, or None")


def as_given(_: str, value: Any) -> Any:
    """Anything, read later."""
    return value


# --- numbers and names ---------------------------------------------------------------------------------


def as_plain(_: str, value: Any) -> Any:
    """NumPy's numbers as Python's, also within lists and tuples; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([as_plain("", v) for v in value])
    return value


def sizes(name: str, value: Any) -> Any:
    """Integers: one, or several in a sequence or an array."""
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, range):
        return list(value)
    return as_plain(name, value)


def marks(name: str, value: Any) -> Any:
    """A number of points, or the points, as a tensor if there are several; or None.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if value is None or type(value) is int:
        return value
    if isinstance(value, Tensor | np.ndarray | list | tuple | range):
        return as_tensor(name, list(value) if isinstance(value, range) else value)
    raise TypeError(f"{name} is {value!r}; expected an integer, or a list of points")


def real(name: str, value: Any) -> Any:
    """A real number, or None.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        refuse_meta(name, value)
        return value.item()
    if value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{name} is {value!r}; expected a real number")


def number(name: str, value: Any) -> Any:
    """As :func:`real`, but not None."""
    if value is None:
        raise TypeError(f"{name} is None; expected a real number")
    return real(name, value)


def whole(name: str, value: Any) -> Any:
    """An integer; what range it has to be in is the function's to say.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if type(value) is int:
        return value
    raise TypeError(f"{name} is {value!r}; expected an integer")


def maybe(role: Role) -> Role:
    """The role, or None."""
    return lambda name, value: None if value is None else role(name, value)


def a_seed(name: str, value: Any) -> Any:
    """A seed of a random generator.

    Raises:
        ValueError: something else.
    """
    value = as_plain(name, value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}; expected an integer from 0 to 2^63 - 1")
    return value


def a_flag(name: str, value: Any) -> Any:
    """True or False.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return value


def a_sequence(name: str, value: Any) -> Any:
    """Several values, in sequences of any depth, with NumPy's arrays and numbers as lists and numbers.

    Raises:
        TypeError: one value, or text.
    """
    if isinstance(value, np.ndarray) and value.ndim:
        return value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple | range | Tensor):
        raise TypeError(f"{name} is {value!r}; expected a sequence")
    if isinstance(value, Tensor):
        return value
    return [v.tolist() if isinstance(v, np.ndarray) else as_plain(name, v) for v in value]


def an_instance(*kinds: type) -> Role:
    """A role for values of these classes alone.

    Raises:
        TypeError: something else.
    """

    def role(name: str, value: Any) -> Any:
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} is {type(value).__name__}; expected a {expected}")
        return value

    return role


def word(name: str, value: Any) -> Any:
    """A string.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; expected a string")
    return str(value)


def a_function(name: str, value: Any) -> Any:
    """A callable, or None.

    Raises:
        TypeError: something else.
    """
    if value is None or callable(value):
        return value
    raise TypeError(f"{name} is {type(value).__name__}; expected a function, or None")


def a_generator(name: str, value: Any) -> Any:
    """A random generator of torch's, or None.

    Raises:
        TypeError: something else.
    """
    if value is None or isinstance(value, torch.Generator):
        return value
    raise TypeError(
        f"{name} is {type(value).__name__}; expected a torch.Generator (torch.Generator().manual_seed(0))"
    )


def a_dtype(name: str, value: Any) -> Any:
    """A dtype, or one by its name in torch or NumPy ("float32"); None and "auto" stay what they are.

    Raises:
        TypeError: neither a dtype nor its name.
        ValueError: a name that no dtype has.
    """
    if value is None or isinstance(value, torch.dtype) or (type(value) is str and value == "auto"):
        return value
    if isinstance(value, str):
        spelling = value.removeprefix("torch.")
    elif isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        spelling = np.dtype(value).name
    else:
        raise TypeError(
            f"{name} is {value!r}; expected a torch.dtype or its name, such as 'float32'"
        )
    found = getattr(torch, spelling, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(
            f"{name} is {value!r}; expected float32, float64 or another dtype of torch"
        )
    return found


def a_precision(name: str, value: Any) -> Any:
    """A dtype that is computed with: float32 or float64, by name or not; None and "auto" as well.

    Raises:
        TypeError: another dtype, or none.
        ValueError: a name that no dtype has.
    """
    dtype = a_dtype(name, value)
    if dtype in (None, "auto", torch.float32, torch.float64):
        return dtype
    raise TypeError(f"{name} is {dtype}; expected float32 or float64")


def a_float_dtype(name: str, value: Any) -> Any:
    """A floating-point dtype, by name or not, or None.

    Raises:
        TypeError: another dtype, or none.
        ValueError: a name that no dtype has.
    """
    dtype = a_dtype(name, value)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise TypeError(f"{name} is {dtype}; expected a floating-point dtype, such as torch.float64")


def a_device(name: str, value: Any) -> Any:
    """A device, or one by its name; None stays None.

    Raises:
        TypeError: neither a device nor its name.
        ValueError: a name that no device has.
    """
    if value is None:
        return value
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{name} is {value!r}; expected a torch.device or its name, such as 'cpu'")
    try:
        return torch.device(value)
    except RuntimeError:
        raise ValueError(
            f"{name} is {value!r}; expected a device, such as 'cpu' or 'cuda:0'"
        ) from None


def a_device_here(name: str, value: Any) -> Any:
    """A device of this machine; errors as for :func:`a_device`."""
    device = a_device(name, value)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(
            f"{name} is {value!r}; expected a device of this machine, such as 'cpu'"
        ) from None
    return device


# --- params= -------------------------------------------------------------------------------------------


def selection(model: Any, params: Any) -> Any:
    """``params=`` in one of the forms of :data:`llr.parameters.Selection`, for an unwrapped model.

    Args:
        model: as the caller gave it; the names of its wrappers (``module.``, ``_orig_mod.``) are dropped.
        params: names or globs, also from an iterator; a mapping of names to values, an ``nn.ParameterDict``,
            a state dict with buffers, or what ``torch.func.stack_module_state`` returns. A tied parameter may
            go by any of its names.

    Raises:
        TypeError: nothing of the kind.
        ValueError: buffers that differ from the model's, two values for one tied parameter.
    """
    model, prefix = unwrapped(model)
    module = model if isinstance(model, nn.Module) else None
    if isinstance(params, nn.ParameterDict):
        params = dict(params.items())
    stacked = isinstance(params, tuple | list) and len(params) == 2
    if stacked and all(isinstance(part, Mapping) for part in params):
        params = {**params[0], **params[1]}
    if isinstance(params, Mapping):
        values = {_stripped(name, prefix): value for name, value in params.items()}
        values = {
            name: value if type(value) in (Tensor, nn.Parameter) else _value(name, value)
            for name, value in values.items()
        }
        return values if module is None else _own_parameters(module, values)
    if isinstance(params, bytes | Tensor | np.ndarray) or not isinstance(params, Iterable):
        raise TypeError(
            f"params is {type(params).__name__}; expected a name or glob, several of them, or a mapping of "
            "names to tensors"
        )
    given = [params] if isinstance(params, str) else list(params)
    patterns = [_stripped(pattern, prefix) for pattern in given]
    if module is None:
        return patterns
    for alias, name in _aliases(module).items():
        if any(isinstance(p, str) and fnmatchcase(alias, p) for p in patterns):
            patterns = [p for p in patterns if p != alias] + [name]
    return patterns


def _value(name: object, value: Any) -> Any:
    """A value that is no ordinary tensor; what cannot be one is left for the reader of the names."""
    if isinstance(value, np.ndarray | Tensor):
        return as_tensor(f"params[{name!r}]", value)
    return value


def _stripped(name: Any, prefix: str) -> Any:
    return name.removeprefix(prefix) if isinstance(name, str) else name


def _aliases(module: nn.Module) -> dict[str, str]:
    """The further names of tied parameters -> the name that ``named_parameters()`` gives them."""
    firsts = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: firsts[id(p)] for name, p in every if firsts[id(p)] != name}


def _own_parameters(module: nn.Module, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Values by the parameters' first names, without buffers, which must be the module's own."""
    known = dict(module.named_parameters())
    if all(name in known for name in values):
        return dict(values)
    aliases, buffers = _aliases(module), dict(module.named_buffers())
    found: dict[Any, Any] = {
        n: v for n, v in values.items() if n not in aliases and n not in buffers
    }
    for alias, value in values.items():
        if (name := aliases.get(alias)) is None:
            continue
        other = found.setdefault(name, value)
        if other is not value and not _equal(other, value):
            raise ValueError(
                f"params has two values for one tied parameter, {name!r} and {alias!r}; leave one of "
                "them away"
            )
    for name, value in values.items():
        # What counts batches does not enter any output.
        if name in buffers and not name.endswith("num_batches_tracked"):
            _check_buffer(name, buffers[name], value)
    return found


def _check_buffer(name: str, own: Tensor, value: Any) -> None:
    if isinstance(value, Tensor) and not (value.is_meta or own.is_meta):
        stacked = value.dim() == own.dim() + 1 and value.shape[1:] == own.shape
        if all(_equal(own, v) for v in (value if stacked else [value])):
            return
    raise ValueError(
        f"params has the buffer {name!r} with values that the model's buffer has not; buffers are not "
        "parameters: load them first (model.load_state_dict), and take models whose buffers differ one at a "
        "time"
    )


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().to(torch.complex128) for t in (a, b))
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
