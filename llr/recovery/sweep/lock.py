"""One writer at a time: a lock that the operating system releases when its owner ends in any way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock ``PATH.lock`` during a block, and delete it afterwards.

    Raises:
        BlockingIOError: another process holds it; the message says which.
        OSError: the directory cannot be written to, or its file system has no locks.
    """
    lock = path.with_name(path.name + ".lock")
    descriptor = _acquire(lock)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        # Delete the file before the lock is released: afterwards another process may hold it.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, lock):
                return descriptor
        except BlockingIOError as err:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise BlockingIOError(err.errno, f"{owner} is writing to it") from err
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner deleted the file after it was opened here


def _is_at(descriptor: int, lock: Path) -> bool:
    try:
        there = os.stat(lock)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
