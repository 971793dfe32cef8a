"""Standard output and standard error: a reader that has gone, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console

CLOSED_PIPE = 141
"""The exit code of a program that SIGPIPE ends, in a shell."""


class PlainConsole(Console):
    """A console that raises BrokenPipeError, where rich ends the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error."""
        raise  # noqa: PLE0704 - the error that is being handled


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
        failed = [name for name in ("stdout", "stderr") if not _writable(name)]
        if not failed:
            raise
        for name in failed:
            _discard(name)
        if isinstance(err, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        if "stderr" not in failed:
            sys.stderr.write(
                f"error: standard output cannot be written ({err.strerror or err}); make room there, or send "
                "it elsewhere\n"
            )
        sys.exit(2)


def _writable(name: str) -> bool:
    # What could not be written is still in the buffer, so that this tells whose error it was.
    stream = getattr(sys, name)
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


def _discard(name: str) -> None:
    """Send what is left of a stream nowhere: Python writes it once more when it ends, and would complain."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), getattr(sys, name).fileno())
