"""Standard output is for results: what the code of models prints is sent to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


@contextlib.contextmanager
def printing_apart() -> Iterator[None]:
    """Send what Python and C code write to standard output to standard error.

    This holds for the whole process, until the block ends.

    Example:
        >>> from llr.cli.output import printing_apart
        >>> with printing_apart():
        ...     print("not here")
    """
    with _descriptor_apart(), contextlib.redirect_stdout(sys.stderr):
        yield


def apart(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, run under :func:`printing_apart`."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with printing_apart():
            return function(*args, **kwargs)

    return wrapper


@contextlib.contextmanager
def _descriptor_apart() -> Iterator[None]:
    _flush()
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed: nothing can be written there
        yield
        return
    try:
        try:
            os.dup2(2, 1)
        except OSError:  # no standard error
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, 1)
    finally:
        os.close(kept)


def _flush() -> None:
    """Flush Python and the C library, before descriptor 1 changes: buffered text is for the old one."""
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(AttributeError, ValueError):  # None, or closed
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such C library
        ctypes.CDLL(None).fflush(None)
