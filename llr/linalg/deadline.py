"""A time limit for exact arithmetic, whose time grows with the number of digits without another bound.

python-flint computes in C, where neither signals nor time limits are checked. Work is therefore cut into
pieces, with :func:`poll` between them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_end: ContextVar[float] = ContextVar("end", default=math.inf)
_listener: ContextVar[Callable[[], object] | None] = ContextVar("listener", default=None)


class TimeLimit(Exception):
    """The time is up."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Let :func:`poll` raise `TimeLimit` in the block after this time; None adds no limit to an outer one."""
    end = math.inf if seconds is None else time.monotonic() + seconds
    token = _end.set(min(end, _end.get()))
    try:
        yield
    finally:
        _end.reset(token)


@contextlib.contextmanager
def polls_call(listener: Callable[[], object]) -> Iterator[None]:
    """Let every :func:`poll` in the block call a function, too."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def poll() -> None:
    """Raise `TimeLimit` if the time is up. The call also lets Python handle signals."""
    if time.monotonic() > _end.get():
        raise TimeLimit
    listener = _listener.get()
    if listener is not None:
        listener()


def check_timeout(timeout: object) -> None:
    """Raise ValueError unless `timeout` is a positive number of seconds or None."""
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
        raise ValueError(f"timeout is {timeout!r}; expected a positive number of seconds, or None")
