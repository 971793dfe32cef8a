"""Copies the attributes of a module: containers, functions, objects, references to modules."""

from __future__ import annotations

import copy
import enum
import functools
import re
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from llr.inputs import gate
from llr.inputs.evaluation import scripted

_LARGEST = 4096
"""The most objects to copy, besides modules, tensors and containers. If there are more, all are shared."""

_SHARED: set[type] = {
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, property),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
    *(types.BuiltinFunctionType, types.ModuleType, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, types.MethodWrapperType, types.GeneratorType),
    *(re.Pattern, fx.Graph, threading.Event, torch.utils.hooks.RemovableHandle),
}
"""Types whose objects all copies share."""

_HEAP_TYPE = 1 << 9  # CPython's flag of classes written in Python


class TooMany(Exception):
    """There are more than `_LARGEST` objects to copy."""


class Copier:
    """Makes one copy; `memo` is as in :func:`copy.deepcopy`."""

    def __init__(
        self,
        memo: dict[int, Any],
        clone: Callable[[Tensor, str], Tensor],
        *,
        shares_objects: bool,
    ) -> None:
        self.memo, self._clone, self.shares_objects = memo, clone, shares_objects
        self.objects = 0
        self.path = ""

    def shell(self, module: nn.Module) -> nn.Module:
        """A new module of the same class without attributes; for compiled code, with its tensors."""
        compiled = isinstance(module, torch.jit.ScriptModule)
        new = copy.deepcopy(module) if compiled else object.__new__(_uncached(module))
        self.memo[id(module)] = new
        return new

    def _fill_script(self, module: torch.jit.ScriptModule, path: str) -> None:
        for name, t in scripted.places(module):
            value = self.memo.get(id(t))
            if value is None:
                value = self._clone(t, f"{path}.{name}" if path else name)
            scripted.put(self.memo[id(module)], name, value)

    def fill(self, module: nn.Module, path: str) -> None:
        """Set the attributes of a module that :meth:`shell` made."""
        if isinstance(module, torch.jit.ScriptModule):
            self._fill_script(module, path)
            return
        attributes, outer = self.memo[id(module)].__dict__, self.path
        for name, value in tuple(module.__dict__.items()):
            kind = type(value)
            if kind in _SHARED:
                attributes[name] = value
            elif (kind is OrderedDict or kind is dict) and not value:  # most are hooks
                attributes[name] = self.memo[id(value)] = kind()
            else:
                self.path = f"{path}.{name}" if path else name
                attributes[name] = self.copied(value)
        self.path = outer
        if gate.compiled_by_torch(module.__dict__.get("_compiled_call_impl"), module):
            attributes["_compiled_call_impl"] = None  # compiled code refers to the user's module
        if type(module).__name__ == "OptimizedModule":
            attributes["forward"] = self.memo[id(module._modules["_orig_mod"])]

    def copied(self, value: Any) -> Any:
        """The object that replaces a value in the copy."""
        kind = type(value)
        if kind in _SHARED:
            return value
        known = self.memo.get(id(value), self)
        if known is not self:
            return known
        rule = _RULES.get(kind)
        if rule is None:
            rule = next((r for base, r in _BASES if isinstance(value, base)), Copier._object)
        return rule(self, value)

    # --- rules ---------------------------------------------------------------------------------------

    def _same(self, value: Any) -> Any:
        return value

    def _module(self, module: nn.Module) -> nn.Module:
        """A module that an attribute refers to without being registered."""
        new = self.shell(module)
        self.fill(module, self.path)
        return new

    def _tensor(self, t: Tensor) -> Tensor:
        new = self._clone(t, _label(self.path))
        self.memo[id(t)] = new
        return new

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        new: dict[Any, Any] = type(value)()
        self.memo[id(value)] = new
        if value:
            outer = self.path
            for key, item in tuple(value.items()):
                self.path = f"{outer}.{key}" if isinstance(key, str) else outer
                new[key if type(key) is str else self.copied(key)] = self.copied(item)
            self.path = outer
        return new

    def _defaultdict(self, value: defaultdict[Any, Any]) -> defaultdict[Any, Any]:
        new: defaultdict[Any, Any] = defaultdict(self.copied(value.default_factory))
        self.memo[id(value)] = new
        new.update({self.copied(k): self.copied(v) for k, v in value.items()})
        return new

    def _list(self, value: list[Any]) -> list[Any]:
        new: list[Any] = []
        self.memo[id(value)] = new
        new.extend(map(self.copied, value))
        return new

    def _deque(self, value: deque[Any]) -> deque[Any]:
        new: deque[Any] = deque(maxlen=value.maxlen)
        self.memo[id(value)] = new
        new.extend(map(self.copied, value))
        return new

    def _set(self, value: set[Any]) -> set[Any]:
        new = type(value)(map(self.copied, value))
        self.memo[id(value)] = new
        return new

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        items = [self.copied(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def _method(self, value: types.MethodType) -> types.MethodType:
        return types.MethodType(self.copied(value.__func__), self.copied(value.__self__))

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        original = value.__dict__.get("_torchdynamo_orig_callable")
        if original is not None:
            return cast(types.FunctionType, self.copied(original))
        if value.__closure__ is None and value.__defaults__ is None and not value.__kwdefaults__:
            return value
        cells = tuple(self._cell(cell) for cell in value.__closure__ or ())
        new = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self.memo[id(value)] = new  # a function may refer to itself
        new.__defaults__ = self.copied(value.__defaults__)
        new.__kwdefaults__ = self.copied(value.__kwdefaults__)
        new.__dict__.update(value.__dict__)
        new.__qualname__, new.__doc__, new.__module__ = (
            value.__qualname__,
            value.__doc__,
            value.__module__,
        )
        for cell, old in zip(cells, value.__closure__ or (), strict=True):
            if cell is not old and not _is_filled(cell) and _is_filled(old):
                cell.cell_contents = self.copied(old.cell_contents)
        return new

    def _cell(self, cell: types.CellType) -> types.CellType:
        if not _is_filled(cell) or type(cell.cell_contents) in _SHARED:
            # The cell of __class__, and variables that a function may set (nonlocal).
            return self._new_cell(cell, filled=_is_filled(cell))
        return self._new_cell(cell, filled=False)

    def _new_cell(self, cell: types.CellType, *, filled: bool) -> types.CellType:
        known = self.memo.get(id(cell))
        if known is None:
            known = types.CellType(cell.cell_contents) if filled else types.CellType()
            self.memo[id(cell)] = known
        return cast(types.CellType, known)

    def _partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        arguments = [self.copied(a) for a in value.args]
        named = {k: self.copied(v) for k, v in value.keywords.items()}
        return functools.partial(self.copied(value.func), *arguments, **named)

    def _reference(self, value: weakref.ref[Any]) -> weakref.ref[Any]:
        target = value()
        if not isinstance(target, nn.Module | Tensor):
            return value
        return weakref.ref(self.copied(target))

    def _array(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        new = value.copy()
        self.memo[id(value)] = new
        return new

    def _generator(self, value: torch.Generator) -> torch.Generator:
        new = value.clone_state()
        self.memo[id(value)] = new
        return new

    def _object(self, value: Any) -> Any:
        """Any other object: copied by its attributes or by its own copy method, shared if that fails."""
        self.objects += 1
        if self.shares_objects:
            return value
        if self.objects > _LARGEST:
            raise TooMany
        kind: Any = type(value)
        if _is_plain(kind):
            new = object.__new__(kind)
            self.memo[id(value)] = new
            outer = self.path
            for name, item in tuple(value.__dict__.items()):
                self.path = f"{outer}.{name}"
                new.__dict__[name] = self.copied(item)
            self.path = outer
            return new
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:  # locks, files and other objects that cannot be copied are shared
            self.memo[id(value)] = value
            return value


_RULES: dict[type, Any] = {
    dict: Copier._dict,
    OrderedDict: Copier._dict,
    defaultdict: Copier._defaultdict,
    list: Copier._list,
    deque: Copier._deque,
    set: Copier._set,
    frozenset: Copier._set,
    tuple: Copier._tuple,
    types.MethodType: Copier._method,
    types.FunctionType: Copier._function,
    functools.partial: Copier._partial,
    weakref.ref: Copier._reference,
    np.ndarray: Copier._array,
    torch.Generator: Copier._generator,
    Tensor: Copier._tensor,
    nn.Parameter: Copier._tensor,
}
_BASES: list[tuple[type, Any]] = [
    (nn.Module, Copier._module),
    (Tensor, Copier._tensor),
    (type, Copier._same),
    (enum.Enum, Copier._same),
    (np.generic, Copier._same),
    (tuple, Copier._tuple),
]


def _label(path: str) -> str:
    for part in ("_buffers.", "_parameters.", "_modules."):
        path = path.replace(part, "")
    return path


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


@functools.cache
def _is_plain(kind: Any) -> bool:
    """Whether objects of the class have no state besides their ``__dict__``."""
    if not kind.__flags__ & _HEAP_TYPE or kind.__dictoffset__ == 0:
        return False
    custom = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__")
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & _HEAP_TYPE or base.__dict__.get("__slots__"):
            return False
        if any(name in base.__dict__ for name in custom):
            return False
    return True


_uncached_classes: weakref.WeakKeyDictionary[type, dict[frozenset[str], type]] = (
    weakref.WeakKeyDictionary()
)


def _uncached(module: nn.Module) -> type:
    """The module's class; for a parametrized module one without ``torch.nn.utils.parametrize.cached()``.

    The cache is global and identifies modules by their ids. It would keep a weight of an evaluation without
    gradients and return it for a later copy that happens to have the same id.
    """
    kind = type(module)
    parametrized = module._modules.get("parametrizations") if module._modules else None
    if not isinstance(parametrized, nn.ModuleDict):
        return kind
    names = frozenset(n for n in parametrized if isinstance(getattr(kind, n, None), property))
    known = _uncached_classes.setdefault(kind, {})
    if names not in known:
        known[names] = type(kind.__name__, (kind,), {n: _computed(kind, n) for n in names})
    return known[names]


def _computed(kind: type, name: str) -> property:
    def get(self: nn.Module) -> Tensor:
        return cast(Any, self).parametrizations[name]()

    return property(get, getattr(kind, name).fset)
