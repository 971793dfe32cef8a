"""Checks that a module computes what its class defines, for all code that reads modules by their class.

A ``nn.Linear`` is read as ``W x + b`` without running it. This is right only if a call runs the class's own
forward and nothing else: no subclass or patch changes ``__call__`` or what forward uses, there are no hooks,
no attribute hides a parameter, and no tensor class changes the computation. Every call of llr checks all of
this. A function counts as the original if its code comes from the file of the module that it belongs to. So
patches made before llr was imported are found, too, and so are patches with the original's name.

:mod:`llr.inputs.agreement` and :mod:`llr.exact.enclosure` compare numbers as well.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from operator import attrgetter
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_TENSORS = (nn.Parameter, Tensor)
# The methods that a call of a module uses; `forward` is checked separately.
_CALL = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "__getattribute__")
# Operators that forwards of torch and llr apply to tensors, besides the methods that they call by name.
_OPERATORS = ("__add__", "__mul__", "__matmul__", "__getitem__")
# The depth to which functions called by a forward are followed.
_DEPTH = 2
_NOT_FOLLOWED = ("handle_torch_function",)  # for other classes of tensors, already refused
_SPACES = (torch, F)
_OURS = ("torch", "llr")
_DYNAMO = os.path.join(os.path.dirname(torch.__file__), "_dynamo", "")

_machinery = attrgetter(*_CALL[1:4], *(f"{name}.__code__" for name in _CALL[:4]))

_registered: dict[type[nn.Module], CodeType | None] = {}


def departure(module: nn.Module, seen: set[type] | None = None, *, hooks: bool = False) -> str:
    """Why a module may compute something other than its class's own forward; empty if it does not.

    Its children are not checked.

    Args:
        module: of any class. A forward that is neither torch's nor llr's, nor registered, is a departure.
        seen: classes that were checked before in the same reading; the module's class is added.
        hooks: accept hooks, for callers that see the input and the output of forward.
    """
    kind = type(module)
    if seen is None and not hooks and (found := process_departure()):
        return found
    own = module.__dict__
    if seen is None or kind not in seen:
        if found := _look(_kinds, kind).why:
            return found
        if seen is not None:
            seen.add(kind)
    methods = _kinds[kind].methods
    if methods and not own.keys().isdisjoint(methods):
        name = min(own.keys() & methods)
        return f"a {name} of its own, which was put on the instance"
    return _instance_departure(own, module, hooks=hooks)


def class_departure(kind: type[nn.Module]) -> str:
    """What has changed in a class that was checked before; empty if nothing has."""
    return _look(_kinds, kind).why


def call_departure(module: nn.Module) -> str:
    """Why calling a module may do something other than run its forward; empty if it does not."""
    return (
        process_departure()
        or _look(_calls, type(module)).why
        or _instance_departure(module.__dict__, module)
    )


def _instance_departure(own: dict[str, Any], module: nn.Module, *, hooks: bool = False) -> str:
    try:
        forward = own["_forward_hooks"] or own["_forward_pre_hooks"]
        backward = own["_backward_hooks"] or own["_backward_pre_hooks"]
        parameters, modules = own["_parameters"], own["_modules"]
    except KeyError:  # a scripted module, or one that was not initialised
        return "its parts elsewhere than an nn.Module has them"
    if forward and not hooks:
        return "hooks, which only the module itself runs"
    if backward and not hooks:
        return "hooks of its gradients"
    if "forward" in own or "_call_impl" in own:
        return "a forward or _call_impl of its own, which was put on the instance"
    if "_compiled_call_impl" in own and not compiled_by_torch(own["_compiled_call_impl"], module):
        return "a _compiled_call_impl that torch.compile did not make"
    names = own.keys()
    if not (names.isdisjoint(parameters) and names.isdisjoint(modules)):
        name = min(names & {*parameters, *modules})
        return f"an attribute {name!r} that hides its parameter or part of this name"
    return ""


def process_departure() -> str:
    """What currently changes the calls of all modules or functions; empty if nothing does."""
    if _has_any_global_hook():
        return "there are hooks on all modules"
    if why := _machinery_departure():
        return why
    if not (torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()):
        return ""
    modes: list[Any] = []
    if torch._C._len_torch_function_stack():
        modes += torch.overrides._get_current_function_mode_stack()
    if torch._C._len_torch_dispatch_stack():
        modes += torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    for mode in modes:
        if type(mode).__module__.split(".")[0] not in _OURS:
            return (
                f"the mode {type(mode).__name__} is active, which may change what functions compute"
            )
    return ""


def tensor_departure(tensor: object) -> str:
    """Why operations on a tensor may not be those on its numbers; empty if they are."""
    if type(tensor) in _TENSORS:
        return ""
    return f"a {type(tensor).__name__} in the place of a tensor"


def computes_otherwise(tensor: Tensor) -> bool:
    """Whether a tensor's class, which is not torch's, changes what functions do with it."""
    kind: Any = type(tensor)
    if kind in _TENSORS or kind.__module__.split(".")[0] in _OURS:
        return False
    rule = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    plain: Any = Tensor
    usual = (plain.__torch_function__.__func__, torch._C._disabled_torch_function_impl)
    return rule not in usual or (
        kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    )


def parts_departure(model: nn.Module) -> str:
    """The first departure of a module, its descendants or its parameters, and where it is."""
    why = process_departure()
    if why:
        return why
    seen: set[type] = set()
    for path, module in model.named_modules():
        place = f" in {path!r}" if path else ""
        why = departure(module, seen)
        for tensor in module._parameters.values():
            why = why or ("" if tensor is None else tensor_departure(tensor))
        if why:
            return f"{why}{place}"
    return ""


def is_original(function: Any, name: str) -> bool:
    """Whether a function is torch's or llr's own, under this name."""
    if not isinstance(function, FunctionType):
        found = getattr(function, "__name__", "")
        return not hasattr(function, "__code__") and found.strip("_") == name.strip("_")
    if not _is_ours(function):
        return function.__module__ in ("typing", "math", "warnings")
    # A function made inside another function keeps its name from there.
    inner = "<locals>" in function.__qualname__
    code = function.__code__.co_name
    return _comes_from(function, function.__module__, code if inner else name) or (
        code == f"_{name}" and _comes_from(function, function.__module__, code)
    )


def trust(kind: type[nn.Module]) -> None:
    """Accept the current forward of a class as its own."""
    _registered[kind] = getattr(kind.forward, "__code__", None)
    _kinds.pop(kind, None)


# --- classes -----------------------------------------------------------------------------------------

_Same = dict[int, tuple[Any, list[str]]]
"""id of an object -> the object, and those of its attributes that must not change."""


class _Kind:
    """The result of checking a class, and whether it is still valid."""

    def __init__(self, why: str, same: _Same, mro: tuple[type, ...], methods: set[str]) -> None:
        self.why = why
        self.methods = frozenset(methods)
        """The methods that forward calls on the module itself: an instance must not define its own."""
        self._sizes = [(c, len(c.__dict__)) for c in mro]
        groups = [(owner, attrgetter(*paths, "__class__")) for owner, paths in same.values()]
        self._same = [(owner, get, get(owner)) for owner, get in groups]

    def holds(self) -> bool:
        """Whether everything that was checked is unchanged, and nothing was added to the classes."""
        for c, size in self._sizes:
            if len(c.__dict__) != size:
                return False
        try:
            for owner, get, found in self._same:
                if get(owner) != found:
                    return False
        except AttributeError:  # a function was replaced by something without code
            return False
        return True


_kinds: dict[type[nn.Module], _Kind] = {}
_calls: dict[type[nn.Module], _Kind] = {}


_trusted: list[object] = [None]


def _machinery_departure() -> str:
    """What is not the original in nn.Module's code between a call and forward; empty if all is."""
    try:
        found = _machinery(nn.Module)
    except AttributeError:  # a function was replaced by something that is not one
        found = None
    if found is not None and found == _trusted[0]:
        return ""
    for name in _CALL:
        if why := _not_own(nn.Module, name):
            return f"nn.Module has {why}"
    _trusted[0] = found
    return ""


def _look(known: dict[type[nn.Module], _Kind], kind: type[nn.Module]) -> _Kind:
    found = known.get(kind)
    if found is None or found.why or not found.holds():
        found = _examined(kind, forward=known is _kinds)
        home = sys.modules.get(kind.__module__)
        if known is _kinds or getattr(home, kind.__name__, None) is kind:
            known[kind] = (
                found  # do not keep classes alive that are made at run time, as parametrizations make them
            )
    return found


def _examined(kind: type[nn.Module], *, forward: bool) -> _Kind:
    same: _Same = {}
    methods: set[str] = set()
    if issubclass(kind, torch.jit.ScriptModule):
        return _Kind("code of TorchScript, which only the module itself runs", same, (), methods)
    why = next((found for name in _CALL if (found := _not_own(kind, name))), "")
    if forward and issubclass(kind, nn.Sequential):
        _note(same, nn.Sequential, "__iter__")
        why = why or _not_own(kind, "__iter__")
    if forward:
        _note(same, kind, "forward")
        why = why or _not_own(kind, "forward") or _called(kind, same, methods)
    return _Kind(why, same, kind.__mro__[:-1], methods)


def _called(kind: type[nn.Module], same: _Same, methods: set[str]) -> str:
    """Record what a class's forward calls; return why one of these is not the original, empty if all are."""
    waiting: list[tuple[Any, bool, int]] = [(kind.forward, True, 0)]
    done: set[Any] = set()
    while waiting:
        function, is_method, depth = waiting.pop()
        if function in done or not _is_ours(function) or function.__name__ in _NOT_FOLLOWED:
            continue
        done.add(function)
        names = [name for name in function.__code__.co_names if not name.startswith("__")]
        for name in names if is_method else ():
            value = getattr(kind, name, None)
            if isinstance(value, FunctionType):
                methods.add(name)
                _note(same, kind, name)
                if why := _not_own(kind, name):
                    return why
                waiting.append((value, True, depth))
            elif value is not None:
                return f"an attribute {name!r} of the class that its forward would take for its own"
        home = sys.modules[function.__module__]
        for name, expected in (("torch", torch), ("F", F)):
            if name in names and name in vars(home):
                _note(same, home, name)
                if vars(home)[name] is not expected:
                    return f"a forward in {home.__name__}, where {name} is not {expected.__name__}"
        spaces = [home, *(m for m in _SPACES if any(vars(home).get(n) is m for n in names))]
        spaces += [torch._C._nn] if "_nn" in names else []
        known: set[str] = set()
        for space in spaces:
            for name in names:
                value = vars(space).get(name)
                if isinstance(value, FunctionType | BuiltinFunctionType):
                    known.add(name)
                    _note(same, space, name)
                    if not is_original(value, name):
                        return f"a forward that calls {space.__name__}.{name}, which is not the original"
                    if isinstance(value, FunctionType) and depth < _DEPTH:
                        waiting.append((value, False, depth + 1))
        operators = _OPERATORS if function.__module__.startswith("llr.") else ()
        for name in (*names, *operators):
            value = None if name in known else getattr(Tensor, name, None)
            if value is None:
                continue
            _note(same, Tensor, name)
            if isinstance(value, FunctionType) and not _comes_from(value, "torch._tensor", name):
                return f"a forward that calls Tensor.{name}, which is not torch's own"
    return ""


def _note(same: _Same, owner: Any, name: str) -> None:
    paths = same.setdefault(id(owner), (owner, []))[1]
    if name not in paths:
        value = getattr(owner, name, None)
        paths += [name, f"{name}.__code__"] if isinstance(value, FunctionType) else [name]


def _not_own(kind: type[nn.Module], name: str) -> str:
    """Why a class's attribute of this name is not the one of torch, llr or a registration; empty if it is."""
    owner = next((c for c in kind.__mro__ if name in vars(c)), object)
    value = vars(owner).get(name)
    if owner is object and name == "__getattribute__":
        return ""
    if isinstance(value, FunctionType):
        if name == "forward" and owner in _registered and value.__code__ is _registered[owner]:
            return ""
        code = {"__call__": "_wrapped_call_impl"}.get(name, name)
        if owner.__module__.split(".")[0] in _OURS and _comes_from(value, owner.__module__, code):
            return ""
    label = "__call__" if name == "_wrapped_call_impl" else name
    return f"a {label} that is not the original of torch's or llr's class"


def _comes_from(function: FunctionType, module: str, name: str) -> bool:
    """Whether a function's code comes from a module's file and has this name there."""
    file = getattr(sys.modules.get(module), "__file__", None)
    code = function.__code__
    return file is not None and code.co_filename == file and code.co_name == name


def _is_ours(function: FunctionType) -> bool:
    return function.__module__.split(".")[0] in _OURS


def compiled_by_torch(call: Any, module: nn.Module) -> bool:
    """Whether this is the object by which torch.compile replaces a module's call.

    It is a function of torch that wraps the bound ``_call_impl``, perhaps with other wrappers in between.
    What each wrapper calls is read from its closure, since any code may set attributes that claim it.
    """
    while isinstance(call, FunctionType):
        if not call.__code__.co_filename.startswith(_DYNAMO):
            return False
        cells = dict(zip(call.__code__.co_freevars, call.__closure__ or (), strict=True))
        call = cells["fn"].cell_contents if "fn" in cells else None
    return getattr(call, "__self__", None) is module and (
        getattr(call, "__func__", None) is nn.Module._call_impl
    )


# --- confirmed by numbers ----------------------------------------------------------------------------

_confirmed: dict[int, tuple[weakref.ref[nn.Module], object]] = {}


def confirmed(model: nn.Module, check: Callable[[], str]) -> str:
    """The result of a comparison of numbers, which is made again only after the model's parts have changed.

    Args:
        model: a model whose parts have just passed :func:`parts_departure`.
        check: makes the comparison and returns why the model is something else, empty if it is not.
    """
    key = id(model)
    fingerprint = [
        (
            type(m),
            m.extra_repr(),
            m.training,
            [(id(p), p.shape) for p in m._parameters.values() if p is not None],
        )
        for m in model.modules()
    ]
    known = _confirmed.get(key)
    if known is not None and known[0]() is model and known[1] == fingerprint:
        return ""
    why = check()
    if not why:
        _confirmed[key] = weakref.ref(model, lambda _: _confirmed.pop(key, None)), fingerprint
    return why
