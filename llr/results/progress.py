"""Progress of long computations: a line on a terminal or in a notebook, removed when the computation ends.

:func:`following` is put around a public function. In the first two seconds it draws nothing, starts no thread
and imports nothing, so that fast calls stay fast. Outside of notebooks, nothing is ever drawn if standard
error is not a terminal. Inside a followed function, code at any depth reports the state of a loop by
:func:`step`. Only one function at a time draws: functions that it calls report to its line.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol, TypeVar, cast

DELAY = 2.0
"""Seconds of computation before anything is drawn."""
_BETWEEN = 0.1  # seconds between two drawings in a notebook

_P = ParamSpec("_P")
_R = TypeVar("_R")
clock = time.monotonic
"""The clock in seconds. Tests replace it."""


Sink = Callable[[str, int | None, int | None], Any]
"""A function that receives steps."""


class Screen(Protocol):
    """A device on which a line can be drawn."""

    def draw(self, text: str, done: int | None, total: int | None) -> None:
        """Draw a line in place of the previous one."""

    def close(self) -> None:
        """Remove the line."""


_sink: ContextVar[Sink | None] = ContextVar("llr_progress", default=None)
_drawing = threading.Lock()  # one line on the screen at a time


def nothing(*_: Any) -> None:
    """Ignore a report."""


class following:  # noqa: N801 - called like a function, and a generator takes microseconds more
    """Show the progress of a ``with`` block, as its caller's argument ``progress=`` says.

    Args:
        progress: False for no progress; None and True for a line; or a function of the caller, which
            replaces the line.
        tell: whether the steps are passed to the caller's function, as ``progress(done, total)``. If not, the
            block calls it itself.
        first: arguments in front of these, for a function that the block calls itself with more arguments;
            steps without a total are not passed then.
    """

    __slots__ = ("_first", "_line", "_progress", "_tell", "_token")

    def __init__(
        self,
        progress: Callable[..., Any] | bool | None,
        *,
        tell: bool = False,
        first: tuple[Any, ...] = (),
    ) -> None:
        self._progress, self._tell, self._first = progress, tell, first
        self._line: _Line | None = None

    def __enter__(self) -> None:
        outer, progress = _sink.get(), self._progress
        sink: Sink
        if progress is False:
            sink = nothing
        elif callable(progress) and self._tell:
            sink = _passing_to(progress, self._first)
        elif outer is not None:
            sink = outer
        elif callable(progress):
            sink = nothing
        else:
            sink = self._line = _Line()
        self._token = _sink.set(sink)

    def __exit__(self, *_: object) -> None:
        _sink.reset(self._token)
        if self._line is not None:
            self._line.close()


def followed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Show the progress of a function with a keyword argument ``progress``, see :func:`following`."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with following(cast(Any, kwargs.get("progress"))):
            return function(*args, **kwargs)

    return wrapper


def telling(*first: Any) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """As :func:`followed`; the caller's function gets ``progress(*first, done, total)`` from the steps."""

    def decorated(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with following(cast(Any, kwargs.get("progress")), tell=True, first=first):
                return function(*args, **kwargs)

        return wrapper

    return decorated


def step(text: str, done: int | None = None, total: int | None = None) -> None:
    """Report the state of a computation; without effect if its progress is not followed.

    Args:
        text: the current work.
        done: how much of it is done.
        total: how much there is in all; None if that is not known.
    """
    sink = _sink.get()
    if sink is not None:
        sink(text, done, total)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Show no progress of the block by default: it is a part of work whose progress is shown elsewhere."""
    token = _sink.set(nothing)
    try:
        yield
    finally:
        _sink.reset(token)


def duration(seconds: float) -> str:
    """Seconds as human-readable text, in the two largest units.

    Example:
        >>> from llr.results.progress import duration
        >>> duration(75), duration(7320)
        ('1 min 15 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _passing_to(progress: Callable[..., Any], first: tuple[Any, ...]) -> Sink:
    def sink(text: str, done: int | None, total: int | None) -> None:  # noqa: ARG001
        if total is not None or not first:
            progress(*first, done, total)

    return sink


class _Line:
    """The default: a line that is drawn after `DELAY` seconds, on a terminal or in a notebook."""

    def __init__(self) -> None:
        self._begun = clock()
        self._screen: Screen | None = None
        self._hidden = False

    def __call__(self, text: str, done: int | None, total: int | None) -> None:
        if self._hidden or clock() < self._begun + DELAY:
            return
        if self._screen is None:
            if not _drawing.acquire(blocking=False):
                return  # another thread draws
            self._screen = screen(self._begun)
            if self._screen is None:
                _drawing.release()
                self._hidden = True
                return
        self._screen.draw(text, done, total)

    def close(self) -> None:
        if self._screen is None:
            return
        try:
            self._screen.close()
        finally:
            self._screen = None
            _drawing.release()


def screen(begun: float) -> Screen | None:
    """The current notebook or terminal; None if there is neither, or the caller's code draws there already.

    Args:
        begun: the :data:`clock` at the start of the computation.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and hasattr(shell, "kernel"):
        return _Notebook()
    try:
        is_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # standard error is None, or closed
        return None
    return _Terminal(begun) if is_terminal and not _others_draw() else None


def _others_draw() -> bool:
    """Whether a live display of rich, or a bar of tqdm, is active. Two lines would overwrite each other.

    Neither library says so in public, so all marks that their versions leave are looked for. Nothing is
    imported: a library that is not loaded draws nothing.
    """
    rich, proxy = sys.modules.get("rich"), sys.modules.get("rich.file_proxy")
    console = getattr(rich, "_console", None)  # the one of all displays that name no other
    if getattr(console, "_live", None) or getattr(console, "_live_stack", None):
        return True
    redirected = getattr(proxy, "FileProxy", ())  # displays of all consoles redirect the streams
    if isinstance(sys.stdout, redirected) or isinstance(sys.stderr, redirected):
        return True
    bar = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return any(not one.disable for one in tuple(getattr(bar, "_instances", ())))


class _Terminal:
    """A line on standard error, drawn by rich."""

    def __init__(self, begun: float) -> None:
        # Imported here because the import takes longer than most calls.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._text = TextColumn("{task.description}", markup=False)
        self._bar = (BarColumn(bar_width=24), MofNCompleteColumn())
        self._begun = begun
        # Without redirection: what the caller's code prints stays in the stream that it prints to.
        self._progress = Progress(
            self._text,
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            get_time=clock,
        )
        self._task: Any = None

    def draw(self, text: str, done: int | None, total: int | None) -> None:
        columns = (self._text, *(self._bar if total is not None else ()))
        self._progress.columns = (*columns, self._progress.columns[-1])
        if self._task is not None:
            self._progress.update(self._task, description=text, completed=done or 0, total=total)
            return
        self._task = self._progress.add_task(text, completed=done or 0, total=total)
        self._progress.tasks[0].start_time = self._begun
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()


class _Notebook:
    """A line of text below the cell, without widgets."""

    def __init__(self) -> None:
        display = sys.modules["IPython"].display.display
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        self._due = 0.0

    def draw(self, text: str, done: int | None, total: int | None) -> None:
        if clock() < self._due:
            return
        self._due = clock() + _BETWEEN
        counted = "" if total is None else f"  {done or 0:,} of {total:,}"
        self._handle.update({"text/plain": f"{text}{counted}"}, raw=True)

    def close(self) -> None:
        self._handle.update({"text/plain": ""}, raw=True)
