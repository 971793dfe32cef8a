"""A time limit for exact arithmetic, which has no other bound than the digits that it is given.

python-flint computes in C, where neither signals nor clocks are looked at; so work is cut into pieces, with
:func:`poll` between them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

_end: ContextVar[float] = ContextVar("end", default=math.inf)


class TimeLimit(Exception):
    """The time is up."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Let :func:`poll` raise `TimeLimit` in the block after so many seconds; None for no limit of its own."""
    end = math.inf if seconds is None else time.monotonic() + seconds
    token = _end.set(min(end, _end.get()))
    try:
        yield
    finally:
        _end.reset(token)


def poll() -> None:
    """Raise `TimeLimit` if the time is up. Signals are looked at by Python on the way."""
    if time.monotonic() > _end.get():
        raise TimeLimit


def check_timeout(timeout: object) -> None:
    """Refuse what is no number of seconds, nor None."""
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
        raise ValueError(f"timeout is {timeout!r}; expected a positive number of seconds, or None")
