"""Explains errors of a model or its derivatives in one line that says where and for which samples."""

from __future__ import annotations

import contextlib
import dis
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

_TORCH = os.path.dirname(torch.__file__) + os.sep
_RAISES = {dis.opmap[name] for name in ("RAISE_VARARGS", "RERAISE")}
_OF_TENSORS = (RuntimeError, IndexError, TypeError, ValueError)
"""The exceptions that operations on tensors raise."""
_IN_PLACE = "modified by an inplace operation"
_OF_INDICES = re.compile(r"\b(index|indices|class values)\b", re.IGNORECASE)


@contextlib.contextmanager
def explained(
    x: Tensor,
    what: str = "the model",
    on: str = "samples",
    overwriting: Callable[[], str] | None = None,
) -> Iterator[None]:
    """Turn exceptions that torch raises while a model runs on `x` into a ValueError of one line.

    An exception that the model's own code raises is passed on unchanged. If a tensor that a derivative needs
    was changed in place, `overwriting` finds where.

    Raises:
        ValueError: an operation of torch failed. The message has the module, the samples and the first
            sentence of torch's message.
    """
    try:
        yield
    except Exception as error:
        if not from_torch(error):
            raise
        trace = error.__traceback__
        reason = _lookup(trace) or first_sentence(error) + _hint(x, error)
        shape = tuple(x.shape[1:] if on == "samples" else x.shape)
        place = overwriting() if overwriting is not None and _IN_PLACE in str(error) else ""
        where = f"in {place}: " if place else _where(trace)
        raise ValueError(
            f"{what} cannot be evaluated on {on} of shape {shape}, {x.dtype}: {where}{reason}"
        ) from error


def derivatives(
    x: Tensor, on: str = "samples", overwriting: Callable[[], str] | None = None
) -> AbstractContextManager[None]:
    """:func:`explained` for code that differentiates a model."""
    return explained(x, "derivatives of the model", on, overwriting)


def first_sentence(error: BaseException) -> str:
    """The start of an exception's message, without lists of backends and advice about torch itself."""
    if _IN_PLACE in str(error):
        return (
            "an operation changes in place a tensor whose numbers a derivative needs; expected one that "
            "makes a new tensor (h = h * 2 instead of h.mul_(2) or h *= 2, inplace=False)"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines and "TorchScript interpreter" in lines[0]:  # the cause follows the TorchScript trace
        marks = [i for i, line in enumerate(lines) if "<--- HERE" in line]
        lines = lines[marks[-1] + 1 :] if marks else lines[-1:]
        return " ".join(line.strip() for line in lines[:2])[:200]
    line = next(iter(lines), "").split(". ")[0].strip()
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


def _hint(x: Tensor, error: Exception) -> str:
    """A hint about the dtype that samples may need instead."""
    of_indices = isinstance(error, IndexError) or bool(_OF_INDICES.search(str(error)))
    if x.is_floating_point():
        return "; if x holds indices, give integers (x.long())" if of_indices else ""
    return (
        "" if of_indices or x.is_complex() else f"; x is {x.dtype}: if numbers are meant, x.float()"
    )


def _lookup(trace: TracebackType | None) -> str:
    """What is wrong with the indices of an embedding, if an embedding failed."""
    found: dict[str, Any] = {}
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(_TORCH) and code.co_name in ("embedding", "embedding_bag"):
            found = trace.tb_frame.f_locals
        trace = trace.tb_next
    indices, weight = (_unwrapped(found.get(name)) for name in ("input", "weight"))
    if not isinstance(indices, Tensor) or not isinstance(weight, Tensor):
        return ""
    rows = len(weight)
    expected = f"expected integers from 0 to {rows - 1}, the rows of its weight"
    if indices.dtype not in (torch.int32, torch.int64):
        way = "" if indices.is_complex() else " (x.long(), if x holds them)"
        return f"its indices are {indices.dtype}; {expected}{way}"
    outside = indices[(indices < 0) | (indices >= rows)] if not indices.is_meta else indices[:0]
    return f"index {int(outside[0])} is out of range; {expected}" if outside.numel() else ""


def _unwrapped(value: Any) -> Any:
    """A tensor without the wrappers of torch.func, with all samples of a vmap."""
    while isinstance(value, Tensor) and is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return value


def from_torch(error: Exception) -> bool:
    """Whether torch raised the exception: its Python code, or an operation that other code called.

    False if a GPU has run out of memory, since then nothing is wrong with the model.
    """
    trace = error.__traceback__
    if trace is None or isinstance(error, torch.OutOfMemoryError):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if code.co_filename.startswith(_TORCH) or code.co_filename.startswith("<eval_with_key>"):
        return True
    return isinstance(error, _OF_TENSORS) and code.co_code[trace.tb_lasti] not in _RAISES


def _where(trace: TracebackType | None) -> str:
    """The innermost module that was running, by its name in the outermost one."""
    running: list[nn.Module] = []
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and trace.tb_frame.f_code.co_name == "forward":
            running.append(owner)
        trace = trace.tb_next
    if not running:
        return ""
    kind = type(running[-1]).__name__
    names = (name for name, module in running[0].named_modules() if module is running[-1])
    return f"in {kind} {name!r}: " if (name := next(names, "")) else f"in {kind}: "
