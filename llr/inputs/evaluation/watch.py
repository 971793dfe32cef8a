"""Observes every operation of a forward: which tensors it uses, its precision, its random numbers."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llr.inputs.evaluation.precision import lower_than
from llr.inputs.evaluation.surroundings import random_state

_TORCH = os.path.dirname(torch.__file__)
_OWN = os.path.dirname(os.path.dirname(__file__))
_WRITTEN_BY_USERS = (os.path.join(_OWN, "models"), os.path.join(_OWN, "activations.py"))

# Results that attention keeps for its backward pass, whose precision is fixed.
_STATISTICS = ("attention", "rng_state")


class Observer(TorchDispatchMode, ABC):
    """Receives every operation of a forward, and runs it."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass the operation on, with a dictionary of named arguments even if it is empty."""
        return self.operation(func, args, kwargs or {})

    @abstractmethod
    def operation(self, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run an operation, and record what is of interest."""


class Watch(Observer):
    """Records what a forward does while it runs; nothing is refused here."""

    def __init__(
        self,
        foreign: Mapping[int, tuple[str, Tensor]],
        stale: Mapping[int, str],
        dtype: torch.dtype | None,
        path_of: Callable[[object], str | None],
    ) -> None:
        """Set what to look for.

        Args:
            foreign: id -> name and tensor, for the user's tensors that the module's copy must not use.
            stale: id -> name, for tensors that were computed from others before.
            dtype: the lowest precision allowed; None for any.
            path_of: returns the name of a module of the model.
        """
        super().__init__()
        self.foreign = self.stale = self.lowered = self.draws = ""
        """The first of each, as text for a message; empty if there is none."""
        self.draws_own = False
        """Whether an operation drew random numbers from a generator passed to it."""
        self.without_gradient = self.in_inference = False
        self.nbytes = 0
        """The total size of the results of all operations."""
        self._foreign, self._stale, self._dtype, self._path_of = foreign, stale, dtype, path_of
        self._lower = lower_than(dtype) if dtype is not None else frozenset[torch.dtype]()

    def operation(self, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run the operation, and record what it used."""
        given = _tensors((*args, *named.values()) if named else args)
        for t in given:
            if id(t) in self._foreign and not self.foreign:
                self.foreign = f"{self._foreign[id(t)][0]!r} ({self._where()})"
            if id(t) in self._stale and not self.stale:
                self.stale = f"{self._stale[id(t)]!r} ({self._where()})"
        with torch._C.DisableTorchFunction():  # function modes must not change compiled code
            result = func(*args, **named)
        made = _tensors(result if isinstance(result, tuple | list) else (result,))
        for t in made:
            self.nbytes += t.numel() * t.itemsize
            if t.dtype in self._lower and not self.lowered:
                self._note_lower(func, given, t.dtype)
        self.without_gradient |= not torch.is_grad_enabled()
        self.in_inference |= torch.is_inference_mode_enabled()
        if _may_draw(func) and _draws(func, args, named):
            if any(isinstance(a, torch.Generator) for a in (*args, *named.values())):
                self.draws_own = True
            elif not self.draws:
                self.draws = f"{_name(func)} ({self._where()})"
        return result

    def _note_lower(self, func: Any, given: Sequence[Tensor], dtype: torch.dtype) -> None:
        name = _name(func)
        if any(t.dtype == self._dtype for t in given) and not any(w in name for w in _STATISTICS):
            self.lowered = f"{name} returns {dtype} ({place(sys._getframe(2), self._path_of)})"

    def _where(self) -> str:
        return place(sys._getframe(2), self._path_of)


class Origins(Observer):
    """Finds tensors of another dtype from outside the model, for a forward that fails with mixed dtypes."""

    def __init__(self, dtype: torch.dtype, path_of: Callable[[object], str | None]) -> None:
        """Take the dtype that all tensors should have, and a function that returns a module's name."""
        super().__init__()
        self.outside: list[tuple[Tensor, str]] = []
        """Tensors of other dtypes that no operation made, and where they were used."""
        self.mixed: set[torch.dtype] = set()
        """The floating-point dtypes in the operation that raised."""
        self._dtype, self._path_of = dtype, path_of
        self._made: dict[int, Tensor] = {}  # kept alive, so that ids stay unique

    def operation(self, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run the operation, and record tensors from outside."""
        given = _tensors((*args, *named.values()))
        real = {id(t): t.dtype.to_real() for t in given if t.is_floating_point() or t.is_complex()}
        for t in given:
            if real.get(id(t), self._dtype) != self._dtype and id(t) not in self._made:
                self.outside.append((t, place(sys._getframe(1), self._path_of)))
        try:
            result = func(*args, **named)
        except Exception:
            self.mixed = set(real.values())
            raise
        made = result if isinstance(result, tuple | list) else (result,)
        self._made |= {id(t): t for t in _tensors(made)}
        return result


@contextlib.contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """Restore the global random state if the block draws random numbers, but not if other threads do."""
    watch = Watch({}, {}, None, lambda _: None)
    with random_state(device, lambda: bool(watch.draws)), watch:
        yield


def _draws(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether an operation that may use random numbers does so; dropout with p = 0 does not."""
    for index, argument in enumerate(func._schema.arguments):
        value = named.get(argument.name, argument.default_value)
        value = args[index] if index < len(args) else value
        if argument.name in ("p", "dropout_p", "dropout") and value == 0:
            return False
        if argument.name in ("train", "training") and value is False:
            return False
    return True


@functools.cache
def _may_draw(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _name(func: Any) -> str:
    return str(func).removesuffix(".default")


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def place(frame: FrameType | None, path_of: Callable[[object], str | None]) -> str:
    """Where in the user's code a frame is: the innermost module, and the file and line."""
    line, module = "", ""
    while frame is not None:
        file = frame.f_code.co_filename
        own = file.startswith(_OWN) and not file.startswith(_WRITTEN_BY_USERS)
        if file.startswith(os.path.join(_OWN, "problem.py")):
            break
        if not module:
            subject = frame.f_locals.get("self")
            path = path_of(subject) if isinstance(subject, torch.nn.Module) else None
            if path is not None:
                kind = type(subject).__name__
                module = f"{kind} {path!r}" if path else kind
        if not line and not own and not file.startswith(_TORCH):
            line = f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ", ".join(part for part in (module, line) if part) or "in compiled code"
