"""Writes whole files or none, and checks before the work that they can be written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], data: bytes | str, *, devices: bool = False) -> None:
    """Write a whole file or none: a crash or Ctrl-C leaves the old content, never half of the new.

    Text is written as UTF-8.

    Args:
        path: the name of the file, in a directory that exists.
        data: the content.
        devices: whether to write to devices and pipes, directly. Opening a pipe waits for its reader.

    Raises:
        FileNotFoundError: the directory does not exist.
        OSError: the system refuses, or `path` is a device or a pipe; names `path`.

    Example:
        >>> import tempfile, pathlib
        >>> from llr.inputs.files.writing import write_atomic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(pathlib.Path(folder, "r.json"), "{}")
        ...     pathlib.Path(folder, "r.json").read_text()
        '{}'
    """
    with _named(path):
        # Resolve links: os.replace would replace the link itself.
        target = Path(path).resolve()
        if _is_device(target):
            if not devices:
                told = "is a device or a pipe; expected the name of a regular file"
                raise OSError(errno.EINVAL, told)
            target.write_bytes(data.encode() if isinstance(data, str) else data)
            return
        if not target.parent.exists():
            told = f"there is no directory {str(target.parent)!r}; make it first"
            raise FileNotFoundError(errno.ENOENT, told)
        temporary = _beside(target)
        try:
            with temporary.open("xb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def require_writable(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a file that cannot be written, or whose directory does not exist, before the work starts.

    Args:
        path: its name.
        what: the option that gave it, for the message.

    Raises:
        ValueError: it is a directory, its directory does not exist, or the directory cannot be written to.
    """
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise ValueError(f"{what} {path}: is a directory; expected the name of a file")
        if _is_device(target):
            return
        if not target.parent.is_dir():
            raise ValueError(
                f"{what} {path}: there is no directory {str(Path(path).parent)!r}; make it first"
            )
        temporary = _beside(target)
        temporary.open("xb").close()
        temporary.unlink()
    except (OSError, RuntimeError) as err:  # RuntimeError: a cycle of links
        raise ValueError(f"{what} {path}: cannot be written ({_reason(err)})") from err


def require_directory(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a directory of results that cannot be made or written to, before the work starts.

    Raises:
        ValueError: says which.
    """
    folder = Path(path)
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ValueError(f"{what} {path}: {str(there)!r} is a file; expected a directory")
        temporary = _beside(there / "results")
        temporary.open("xb").close()
        temporary.unlink()
    except (OSError, RuntimeError) as err:
        raise ValueError(f"{what} {path}: cannot be written into ({_reason(err)})") from err


def _is_device(target: Path) -> bool:
    return target.exists() and not target.is_file() and not target.is_dir()


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")


def _reason(err: Exception) -> str:
    return (isinstance(err, OSError) and err.strerror) or str(err)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors name the requested file, not the temporary file beside it."""
    try:
        yield
    except OSError as err:
        if err.errno is None:
            raise
        raise type(err)(err.errno, err.strerror, os.fspath(path)) from err
