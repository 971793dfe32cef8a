"""Settings of torch that the caller may have changed, and that need fixed values during a computation.

Most settings belong to a thread: inference mode, autocast, a default device. The default dtype, the precision
of float32 products and the warnings filters belong to the process, and other threads may run. The default
dtype is therefore never changed. The others, and whether ``vmap`` warns, are changed by the first user and
restored by the last one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from llr.inputs.evaluation.precision import Precision

_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_inference_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function with torch's default settings, independently of the caller's.

    That is, outside ``torch.inference_mode``, in which nothing can be differentiated, and ``torch.autocast``;
    with tensors on the CPU if no device is given, and in float32 if no dtype is given.
    """

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if _is_neutral():
            return function(*args, **kwargs)
        with neutral():
            return function(*args, **kwargs)

    return wrapper


def _is_neutral() -> bool:
    return not (
        torch.is_inference_mode_enabled()
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_function_stack()
        or torch.get_default_dtype() != torch.float32
    )


@contextlib.contextmanager
def neutral() -> Iterator[None]:
    """The context in which :func:`outside_inference_mode` runs a function."""
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch._C._is_any_autocast_enabled():
            for kind in _AUTOCAST:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
        if torch._C._len_torch_function_stack():
            stack.enter_context(_OnCpu())
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(Precision(torch.float32, raised=False))
        yield


_AUTOCAST = ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "ipu", "maia", "mtia", "privateuseone")


class _OnCpu(TorchFunctionMode):
    """Puts tensors made without a device on the CPU, as if there were no default device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs) if kwargs else {}
        if func in _device_constructors() and named.get("device") is None:
            named["device"] = torch.device("cpu")
        return func(*args, **named)


def ordinary(t: Tensor) -> Tensor:
    """The tensor, or a copy that can be differentiated if it was made in inference mode."""
    return t.clone() if t.is_inference() else t


class _Shared:
    """A change to the whole process, made at the first entry and undone at the last exit."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        """Take the function that makes the change and returns a function to undo it."""
        self._change, self._undo = change, list[Callable[[], None]]()
        self._lock, self._inside = threading.Lock(), 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        entered = False
        try:
            with self._lock:
                if not self._inside:
                    self._undo.append(self._change())
                self._inside += 1
                entered = True
            yield
        finally:
            if entered:
                with self._lock:
                    self._inside -= 1
                    if not self._inside:
                        self._undo.pop()()


def _ieee() -> Callable[[], None]:
    cpu: Any = torch.backends.mkldnn
    cudnn: Any = torch.backends.cudnn
    backends = [cpu.matmul, cpu.conv, cpu.rnn, torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [backend.fp32_precision for backend in backends]
    changed = [pair for pair in zip(backends, before, strict=True) if pair[1] != "ieee"]
    for backend, _ in changed:
        backend.fp32_precision = "ieee"

    def undo() -> None:
        for backend, precision in changed:
            if backend.fp32_precision == "ieee":  # no other code has set it since
                backend.fp32_precision = precision

    return undo


_full_precision = _Shared(_ieee)


def full_precision() -> contextlib.AbstractContextManager[None]:
    """Compute float32 products in float32: rounding to TF32 or bfloat16 would be counted as rank."""
    return _full_precision()


def _without_errors() -> Callable[[], None]:
    # In place, since catch_warnings in any thread replaces the list of filters.
    filters: Any = warnings.filters
    changed = [(f, ("default", *f[1:])) for f in filters if f[0] == "error"]
    for strict, mild in changed:
        filters[filters.index(strict)] = mild
    _filters_have_changed()

    def undo() -> None:
        for strict, mild in changed:
            for index, f in enumerate(filters):
                if f is mild:
                    filters[index] = strict
        _filters_have_changed()

    return undo


def _filters_have_changed() -> None:
    """Tell :mod:`warnings`, which caches the warnings it has shown."""
    with warnings.catch_warnings():
        pass


_mild_warnings = _Shared(_without_errors)


def _silent_vmap() -> Callable[[], None]:
    # torch has no function to read this switch, so it ends up on even if the user had switched it off.
    switch: Any = torch._C._functorch
    switch._set_vmap_fallback_warning_enabled(False)
    return functools.partial(switch._set_vmap_fallback_warning_enabled, True)


_silent = _Shared(_silent_vmap)


def silent_vmap() -> contextlib.AbstractContextManager[None]:
    """Suppress warnings that an operation has no batching rule: llr's caller did not ask for ``vmap``."""
    return _silent()


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """The context of every evaluation of a user's model: full precision, and warnings that are not errors.

    A warning raised as an error would look as if ``vmap`` could not take the model. The seed is restored if
    the model sets it.
    """
    strict = any(f[0] == "error" for f in warnings.filters)
    mild = _mild_warnings() if strict else contextlib.nullcontext()
    with full_precision(), mild, silent_vmap(), random_state(_CPU, lambda: False):
        yield


_CPU = torch.device("cpu")


@contextlib.contextmanager
def random_state(device: torch.device, drew: Callable[[], bool]) -> Iterator[None]:
    """Restore the global random state if the block used it.

    Other threads may draw meanwhile, so a state that only differs is kept. The state is restored if the block
    drew random numbers, or if it is the state of a new seed, since then forward has called
    ``torch.manual_seed``.
    """
    seed, before = torch.initial_seed(), _global_state()
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        if drew() or torch.initial_seed() != seed or _is_seeded(before):
            with _GENERATOR:
                torch.set_rng_state(before)
            if of_device is not None:
                torch.cuda.set_rng_state(of_device, device)


# torch.get_rng_state makes a Python object while it holds the generator's lock. If garbage collection runs at
# this moment, Python may switch to another thread. If that thread requests the same state, it waits for the
# lock without releasing the GIL: a deadlock. So llr's threads request the state one at a time.
_GENERATOR = threading.RLock()


def _global_state() -> Tensor:
    with _GENERATOR:
        return torch.get_rng_state()


def _is_seeded(before: Tensor) -> bool:
    now = _global_state()
    if torch.equal(now, before):
        return False
    return torch.equal(now, torch.Generator().manual_seed(torch.initial_seed()).get_state())


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Set the number of threads, which determines how sums are split and so how they round."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
