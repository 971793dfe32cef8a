"""Records what a reading of a module depends on, so that the next call only checks that it has not changed.

A model is often read repeatedly without a change in between: this check costs less than reading it again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llr.inputs import gate

_LISTS = ("named_parameters", "named_modules", "_named_members")


class _Part(NamedTuple):
    """One module, in the order of ``named_modules``, without a reference that would keep it alive."""

    kind: type[nn.Module]
    attributes: frozenset[str]
    children: tuple[str, ...]
    parameters: tuple[tuple[str, Tensor | None, torch.Size | None], ...]
    settings: tuple[tuple[str, object], ...]


class Reading:
    """The parts of a module that passed :func:`llr.inputs.gate.departure`, and its parameters by name."""

    def __init__(self, model: nn.Module, settings: tuple[str, ...]) -> None:
        """Record the parts.

        Args:
            model: a module that calls its parts one after the other and does nothing else.
            settings: names of the attributes that determine what a part computes.
        """
        parts, waiting = [], [model]
        while waiting:
            part = waiting.pop()
            parts.append(part)
            waiting += reversed([p for p in part._modules.values() if p is not None])
        self.usual = all(map(_lists_as_torch, parts))
        """Whether all parts list their parameters as torch does; otherwise the reading cannot be used."""
        self._parts = [_noted(part, settings) for part in parts]
        self._kinds = {part.kind for part in self._parts}
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())

    def holds(self, model: nn.Module) -> bool:
        """Whether the module has the same parts, and none has changed since."""
        for kind in self._kinds:
            if gate.class_departure(kind):
                return False
        parts, waiting, at = self._parts, [model], 0
        while waiting:
            module = waiting.pop()
            if at == len(parts) or type(module) is not parts[at].kind:
                return False
            _, attributes, names, parameters, settings = parts[at]
            own, at = module.__dict__, at + 1
            if (
                own.keys() != attributes
                or own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
            ):
                return False
            children, tensors = own["_modules"], own["_parameters"]
            if len(tensors) != len(parameters):
                return False
            for name, tensor, shape in parameters:
                if tensors.get(name) is not tensor or (
                    tensor is not None and tensor.shape != shape
                ):
                    return False
            for name, value in settings:
                if own[name] is not value:
                    return False
            if children or names:
                if tuple(children) != names:
                    return False
                waiting += reversed(children.values())
        return at == len(parts)


def _lists_as_torch(module: nn.Module) -> bool:
    return None not in module._modules.values() and not any(
        name in module.__dict__ or getattr(type(module), name) is not getattr(nn.Module, name)
        for name in _LISTS
    )


def _noted(module: nn.Module, settings: tuple[str, ...]) -> _Part:
    own = module.__dict__
    return _Part(
        type(module),
        frozenset(own),
        tuple(own["_modules"]),
        tuple((n, t, None if t is None else t.shape) for n, t in own["_parameters"].items()),
        tuple((name, own[name]) for name in settings if name in own),
    )
