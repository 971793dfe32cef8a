"""Errors that come out of a model or its derivatives, in one line that says where and for which samples."""

from __future__ import annotations

import contextlib
import dis
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType

import torch
from torch import Tensor, nn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_RAISES = {dis.opmap[name] for name in ("RAISE_VARARGS", "RERAISE")}
_OF_TENSORS = (RuntimeError, IndexError, TypeError, ValueError)
"""What operations on tensors raise."""


@contextlib.contextmanager
def explained(x: Tensor, what: str = "the model", on: str = "samples") -> Iterator[None]:
    """Turn what torch raises while a model runs on `x` into a ValueError of one line.

    An exception that the model's own code raises is passed on as it is.

    Raises:
        ValueError: an operation of torch failed; names the module, the samples and the first sentence of
            torch's message.
    """
    try:
        yield
    except Exception as error:
        if not from_torch(error):
            raise
        hint = "" if x.is_floating_point() else f"; x is {x.dtype}: if numbers are meant, x.float()"
        shape = tuple(x.shape[1:] if on == "samples" else x.shape)
        raise ValueError(
            f"{what} cannot be evaluated on {on} of shape {shape}, {x.dtype}: "
            f"{_where(error.__traceback__)}{first_sentence(error)}{hint}"
        ) from error


def derivatives(x: Tensor, on: str = "samples") -> AbstractContextManager[None]:
    """:func:`explained` for code that differentiates a model."""
    return explained(x, "derivatives of the model", on)


def first_sentence(error: BaseException) -> str:
    """The start of an exception's message, without lists of backends and advice about torch itself."""
    line = sentence(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def sentence(error: BaseException) -> str:
    """:func:`first_sentence` without the name of the class."""
    return next(iter(str(error).splitlines()), "").split(". ")[0].strip()[:200]


def from_torch(error: Exception) -> bool:
    """Whether torch raised it: Python code of torch, or an operation that other code called.

    Not where a GPU's memory is full: nothing is wrong with the model.
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
