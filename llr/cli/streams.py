"""Standard output and standard error: a reader that has gone, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

CLOSED_PIPE = 141
"""The exit code of a program that SIGPIPE ends, in a shell."""

# What writes to standard output and standard error for llr.
_WRITERS = ("click", "rich", __name__)


class PlainConsole(Console):
    """A console that raises BrokenPipeError, where rich ends the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error."""
        raise


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """End the program where standard output or standard error cannot be written.

    With exit code 141 and without a word if their reader has gone, as in ``llr verify ... | head -1``; with
    exit code 2 and a message if anything else keeps them from being written. Errors of other files pass.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as err:
        if not is_of_streams(err):
            raise
        if not isinstance(err, BrokenPipeError):
            with contextlib.suppress(OSError):  # where it is standard error that cannot be written
                sys.stderr.write(
                    f"error: standard output cannot be written ({err.strerror or err}); make room there, or "
                    "send it elsewhere\n"
                )
                sys.stderr.flush()
        # Python writes what is left once more when it ends, and would complain.
        for stream in (sys.stdout, sys.stderr):
            _discard(stream)
        sys.exit(2 if not isinstance(err, BrokenPipeError) else CLOSED_PIPE)


def is_of_streams(err: OSError) -> bool:
    """Whether an error is one of standard output or standard error: raised by what writes them for llr."""
    frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__)]
    name = str(frames[-1].f_globals.get("__name__"))
    return err.filename is None and name.startswith(_WRITERS)


def _discard(stream: TextIO | None) -> None:
    if stream is None:
        return
    # ValueError: what stands in for a stream, in tests and notebooks, may be no file of the system.
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
