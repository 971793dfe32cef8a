"""Keeps the precision of the problem inside a forward, independently of default and requested dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

_HALVES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_LOWER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.float32, *_HALVES),
    torch.float32: _HALVES,
}
_LOWER_COMPLEX: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.complex64, torch.complex32),
    torch.float32: (torch.complex32,),
}

_CASTS: set[Callable[..., Any]] = {Tensor.float, Tensor.half, Tensor.bfloat16}

# Functions that return floating-point numbers of the default dtype if no dtype is given: always, or depending
# on their arguments.
_FLOATING: set[Callable[..., Any]] = {
    *(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.eye),
    *(torch.linspace, torch.logspace, torch.empty_strided, torch.empty_permuted),
    *(torch.hann_window, torch.hamming_window, torch.bartlett_window, torch.blackman_window),
    *(torch.kaiser_window, torch.fft.fftfreq, torch.fft.rfftfreq),
}
_PERHAPS_FLOATING: set[Callable[..., Any]] = {
    *(torch.full, torch.arange, torch.range, torch.tensor, torch.as_tensor, torch.asarray),
    *(torch.scalar_tensor, torch.normal),
}
_FACTORIES = _FLOATING | _PERHAPS_FLOATING


def lower_than(dtype: torch.dtype) -> frozenset[torch.dtype]:
    """The floating-point and complex dtypes with fewer digits than `dtype`."""
    return frozenset((*_LOWER.get(dtype, ()), *_LOWER_COMPLEX.get(dtype, ())))


class Precision(TorchFunctionMode):
    """While a forward runs, gives the problem's dtype to numbers that it makes without a dtype.

    This does not depend on ``torch.set_default_dtype``. With ``raised``, operations that request a lower
    floating-point dtype (``.float()``, ``softmax(dtype=torch.float32)``) get the problem's dtype, too, and so
    do arrays that ``torch.tensor`` and ``torch.as_tensor`` copy. ``torch.from_numpy`` is not changed: torch
    does not pass it to function modes.
    """

    def __init__(self, dtype: torch.dtype, *, raised: bool) -> None:
        """Take the problem's dtype, float32 or float64."""
        super().__init__()
        self.dtype, self.raised = dtype, raised
        self._instead = _instead(dtype) if raised else {}
        self._lower = lower_than(dtype)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, with another dtype if needed."""
        named = dict(kwargs) if kwargs else {}
        if self._instead:
            if func in _CASTS:
                func, args = Tensor.to, (args[0], self.dtype)
            elif any(type(a) is torch.dtype for a in args):
                args = [self._instead.get(a, a) if type(a) is torch.dtype else a for a in args]
            for name, value in named.items():
                if type(value) is torch.dtype:
                    named[name] = self._instead.get(value, value)
        if func is Tensor.retain_grad and is_functorch_wrapped_tensor(args[0]):
            return None  # no code reads the gradient, and inside a transform torch refuses it
        if func in _FACTORIES and named.get("dtype") is None:
            return self._made(func, args, named)
        result = func(*args, **named)
        if type(result) is Tensor and result.dtype != self.dtype and _is_floating(result.dtype):
            return self._checked(result, func, args, named)
        return result

    def _made(self, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
        if any(type(a) is torch.dtype for a in args) or named.get("out") is not None:
            return func(*args, **named)
        if func in _FLOATING:
            return func(*args, **{**named, "dtype": self.dtype})
        source = named.get("data", named.get("obj", args[0] if args else None))
        result = func(*args, **named)
        if not _is_floating(result.dtype) or result.dtype == self.dtype:
            return result
        if isinstance(source, Tensor) or hasattr(source, "__array__"):  # it has a dtype of its own
            return result.to(self._instead.get(result.dtype, result.dtype))
        return func(*args, **{**named, "dtype": self.dtype})

    def _checked(
        self, result: Tensor, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]
    ) -> Tensor:
        """The result, computed again if it has another floating-point dtype only because of the default."""
        given = list(_tensors((*args, *named.values())))
        if (
            not given
            or any(t.is_floating_point() or t.is_complex() for t in given)
            or "dtype" in named
        ):
            return result
        if any(type(a) is torch.dtype for a in args) or named.get("out") is not None:
            return result
        try:  # division of integers, their square root, ...
            return func(*(self._cast(a) for a in args), **named)
        except (RuntimeError, TypeError):
            return result

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) else value


def _instead(dtype: torch.dtype) -> dict[torch.dtype, torch.dtype]:
    real = dict.fromkeys(_LOWER.get(dtype, ()), dtype)
    return real | dict.fromkeys(_LOWER_COMPLEX.get(dtype, ()), dtype.to_complex())


def _is_floating(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Tensors among values, and in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
