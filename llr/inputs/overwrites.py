"""Finds where a forward overwrites in place a tensor that its derivative needs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llr.inputs.evaluation.surroundings import closed
from llr.inputs.evaluation.watch import Observer, place
from llr.inputs.problem import Problem, as_leaves


class _Writes(Observer):
    """Records which memory is written to, and where in the user's code."""

    def __init__(self, path_of: Callable[[object], str | None]) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        """The address of a tensor's memory -> the place in the code."""
        self._path_of = path_of

    def operation(self, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run the operation and record what it writes to."""
        if func._schema.is_mutable:
            for index, argument in enumerate(func._schema.arguments):
                value = args[index] if index < len(args) else named.get(argument.name)
                written = argument.alias_info is not None and argument.alias_info.is_write
                if written and isinstance(value, Tensor):
                    where = place(sys._getframe(1), self._path_of)
                    self.found.append((_memory(value), where))
        return func(*args, **named)


def overwriting(problem: Problem) -> str:
    """Where a model's forward changes a tensor that autograd has saved; empty if no such place is found.

    The forward is run again on the first sample.
    """
    writes = _Writes(
        problem.private.path_of if isinstance(problem.model, nn.Module) else lambda _: None
    )
    saved: list[tuple[Tensor, int, int]] = []

    def note(t: Tensor) -> Tensor:
        saved.append((t, t._version, len(writes.found)))
        return t

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    values = as_leaves({name: v.clone() for name, v in problem.point().items()})
    with contextlib.suppress(Exception), closed(), torch.enable_grad():
        forward = problem.at(values)
        with hooks, writes:
            forward(problem.x[:1].detach().clone())
    for t, version, before in saved:
        if t._version != version:
            later = (where for memory, where in writes.found[before:] if memory == _memory(t))
            if where := next(later, ""):
                return where
    return ""


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
