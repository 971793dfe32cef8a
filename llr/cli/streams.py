"""Errors of standard output and standard error: a reader that closed the pipe, a full disk."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

CLOSED_PIPE = 141
"""The exit code that a shell reports for a program ended by SIGPIPE."""

# The modules that write to standard output and standard error for llr.
_WRITERS = ("click", "rich", __name__)


class PlainConsole(Console):
    """A console that raises BrokenPipeError, where rich ends the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error."""
        raise


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """End the program if standard output or standard error cannot be written.

    The exit code is 141, without a message, if the reader has closed the pipe, as in
    ``llr verify ... | head -1``. It is 2, with a message, for any other error. Errors of other files pass.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as err:
        if not is_of_streams(err):
            raise
        if not isinstance(err, BrokenPipeError):
            with contextlib.suppress(OSError):  # it may be standard error that cannot be written
                sys.stderr.write(
                    f"error: standard output cannot be written ({err.strerror or err}); free some space "
                    "there, or redirect it elsewhere\n"
                )
                sys.stderr.flush()
        # At exit Python tries to flush the streams again, and would print an error.
        for stream in (sys.stdout, sys.stderr):
            _discard(stream)
        sys.exit(2 if not isinstance(err, BrokenPipeError) else CLOSED_PIPE)


def is_of_streams(err: OSError) -> bool:
    """Whether an error concerns standard output or standard error: whether `_WRITERS` raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__)]
    name = str(frames[-1].f_globals.get("__name__"))
    return err.filename is None and name.startswith(_WRITERS)


def _discard(stream: TextIO | None) -> None:
    if stream is None:
        return
    # ValueError: in tests and notebooks, a stream may be an object without a file descriptor.
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
