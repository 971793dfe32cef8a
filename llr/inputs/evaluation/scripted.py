"""Modules of TorchScript as functions of their parameters.

``torch.func.functional_call`` and the transforms of ``torch.func`` refuse these modules; autograd accepts
them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llr.inputs.parameters import Columns
from llr.inputs.tensors import wider


def places(module: torch.jit.ScriptModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under all their names, since a tied tensor must be written at each of them."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def put(module: torch.jit.ScriptModule, name: str, value: Tensor) -> None:
    """Set a parameter or buffer of compiled code to a tensor of any class."""
    *path, last = name.split(".")
    owner: Any = module._c
    for part in path:
        owner = owner.getattr(part)
    owner.setattr(last, value)


def functional(
    module: torch.jit.ScriptModule, columns: Columns, dtype: torch.dtype | None
) -> Callable[[Mapping[str, Tensor], Tensor], object]:
    """The module as a callable f(params, x), on a copy of it.

    Args:
        module: scripted or traced.
        columns: its parameters. Fixed parameters keep their values in `columns`.
        dtype: the dtype to which buffers are promoted; None for their own.

    Returns:
        A function that autograd can differentiate. It raises NotImplementedError inside ``torch.func``
        transforms, and ValueError if a forward changes a buffer.
    """
    private = copy.deepcopy(module)
    first_names: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(first_names.setdefault(id(p), name), []).append(name)
    buffers = {
        name: wider(b.detach(), dtype) for name, b in module.named_buffers(remove_duplicate=False)
    }

    def call(values: Mapping[str, Tensor], x: Tensor) -> object:
        tensors = {**columns.fixed, **values}
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, (x, *tensors.values()))):
            raise NotImplementedError(
                "a model of torch.jit goes through autograd one gradient at a time, not through torch.func; "
                "omit backend=, or give the module that it was made from"
            )
        for name, value in tensors.items():
            for alias in aliases[name]:
                put(private, alias, value)
        copies = {name: b.clone() for name, b in buffers.items()}
        for name, value in copies.items():
            put(private, name, value)
        output = private(x)
        changed = [name for name, value in copies.items() if value._version]
        if changed:
            raise ValueError(
                f"the model's forward changes its buffer {changed[0]!r}, so that no two evaluations are of "
                "the same function; call model.eval() first, or keep state out of forward"
            )
        return output

    return call
