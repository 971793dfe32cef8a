"""Models without their wrappers, and ``params=`` in all common forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.tensors import as_tensor


def unwrapped(value: Any) -> tuple[Any, str]:
    """A module without wrappers that compute the same, and the prefix that they add to names."""
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


def selection(model: Any, params: Any) -> Any:
    """``params=`` in one of the forms of :data:`llr.inputs.parameters.Selection`, for an unwrapped model.

    Args:
        model: as the caller gave it; the names of its wrappers (``module.``, ``_orig_mod.``) are dropped.
        params: names or globs, also from an iterator; a mapping of names to values, an ``nn.ParameterDict``,
            a state dict with buffers, or what ``torch.func.stack_module_state`` returns. A tied parameter may
            have any of its names.

    Raises:
        TypeError: none of these forms.
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
    """Convert a value to a tensor; a value that cannot be converted is refused later, with the names."""
    if isinstance(value, np.ndarray | Tensor):
        return as_tensor(f"params[{name!r}]", value)
    return value


def _stripped(name: Any, prefix: str) -> Any:
    return name.removeprefix(prefix) if isinstance(name, str) else name


def _aliases(module: nn.Module) -> dict[str, str]:
    """The other names of tied parameters -> the name that ``named_parameters()`` gives them."""
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
                f"params has two values for one tied parameter, {name!r} and {alias!r}; remove one of them"
            )
    for name, value in values.items():
        # The count of batches does not change any output.
        if name in buffers and not name.endswith("num_batches_tracked"):
            _check_buffer(name, buffers[name], value)
    return found


def _check_buffer(name: str, own: Tensor, value: Any) -> None:
    if isinstance(value, Tensor) and not (value.is_meta or own.is_meta):
        stacked = value.dim() == own.dim() + 1 and value.shape[1:] == own.shape
        if all(_equal(own, v) for v in (value if stacked else [value])):
            return
    raise ValueError(
        f"params has the buffer {name!r} with other values than the model's buffer; buffers are not "
        "parameters: load them first (model.load_state_dict), and take models whose buffers differ one at a "
        "time"
    )


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().to(torch.complex128) for t in (a, b))
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
