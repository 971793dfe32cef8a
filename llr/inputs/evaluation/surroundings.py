"""What the caller may have switched on around a computation, and what it has to be for the numbers' sake.

Most switches belong to a thread: inference mode, autocast, a default device. The default dtype, the precision
of float32 products and the warnings filters belong to the process, and other threads may be at work: the
default dtype is not touched at all; the others, and whether ``vmap`` warns, are changed by the first that
needs it and put back by the last.
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
    """Run a function in neutral surroundings, whatever the caller's are.

    Outside of ``torch.inference_mode``, in which nothing can be differentiated, and of ``torch.autocast``;
    with tensors on the CPU and in float32 where no device and no dtype are given.
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
    """What :func:`outside_inference_mode` gives a function."""
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
    """Tensors made without a device are on the CPU, as if there were no default device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs) if kwargs else {}
        if func in _device_constructors() and named.get("device") is None:
            named["device"] = torch.device("cpu")
        return func(*args, **named)


def ordinary(t: Tensor) -> Tensor:
    """The tensor, or a copy that can be differentiated if it was made in inference mode."""
    return t.clone() if t.is_inference() else t


class _Shared:
    """A change to the whole process, made by the first who enters and undone by the last who leaves."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        """Take what makes the change and returns what undoes it."""
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
            if backend.fp32_precision == "ieee":  # nobody has set it since
                backend.fp32_precision = precision

    return undo


_full_precision = _Shared(_ieee)


def full_precision() -> contextlib.AbstractContextManager[None]:
    """float32 products in float32: TF32 and bfloat16 would show up as rank."""
    return _full_precision()


def _without_errors() -> Callable[[], None]:
    # In place: lists of filters are swapped by whoever enters catch_warnings, in any thread.
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
    """Tell :mod:`warnings`, which remembers what it has shown."""
    with warnings.catch_warnings():
        pass


_mild_warnings = _Shared(_without_errors)


def _silent_vmap() -> Callable[[], None]:
    # torch does not tell whether it is on; who has switched it off gets the warnings back.
    switch: Any = torch._C._functorch
    switch._set_vmap_fallback_warning_enabled(False)
    return functools.partial(switch._set_vmap_fallback_warning_enabled, True)


_silent = _Shared(_silent_vmap)


def silent_vmap() -> contextlib.AbstractContextManager[None]:
    """No warnings that an operation has no batching rule: nobody who calls llr has asked for ``vmap``."""
    return _silent()


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Around every evaluation of a user's model: full precision, and warnings that are no errors.

    A warning that is raised would look as if ``vmap`` could not take the model. The seed is put back if the
    model sets it.
    """
    strict = any(f[0] == "error" for f in warnings.filters)
    mild = _mild_warnings() if strict else contextlib.nullcontext()
    with full_precision(), mild, silent_vmap(), random_state(_CPU, lambda: False):
        yield


_CPU = torch.device("cpu")


@contextlib.contextmanager
def random_state(device: torch.device, drew: Callable[[], bool]) -> Iterator[None]:
    """Puts the global random state back if it was used here.

    Other threads may draw meanwhile, so a state that merely differs stays. It is put back if random numbers
    were drawn, or if it is that of a seed: forward has called ``torch.manual_seed``.
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


# torch.get_rng_state makes a Python object while it holds the generator's lock. If Python collects garbage
# just then, the interpreter may be handed to another thread; one that asks for the same state would wait for
# the lock without giving the interpreter back, for ever. So llr's threads ask one after the other.
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
    """So many threads: sums over threads round as they are cut up."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
