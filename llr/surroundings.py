"""What the caller may have switched on around a computation, and what it has to be for the numbers' sake."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_inference_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function outside of ``torch.inference_mode``, in which nothing can be differentiated."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return wrapper


def ordinary(t: Tensor) -> Tensor:
    """The tensor, or a copy that can be differentiated if it was made in inference mode."""
    return t.clone() if t.is_inference() else t


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32: TF32 and bfloat16 would show up as rank."""
    cpu: Any = torch.backends.mkldnn
    cudnn: Any = torch.backends.cudnn
    backends = [cpu.matmul, cpu.conv, cpu.rnn, torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many threads: sums over threads round as they are cut up."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
