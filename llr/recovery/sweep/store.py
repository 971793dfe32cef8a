"""The results of a sweep in an SQLite file: a transaction for each cell; the file is verified when opened.

The journal is a rollback journal, not WAL. WAL needs memory that all processes share, which network file
systems do not support, and creates two more files that must be copied with the first. With one writer it has
no advantage. Each commit is synced with its directory before the cell is reported as done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from llr import __version__
from llr.recovery.sweep.lock import only_writer
from llr.recovery.sweep.runner import DEFAULT_RUNNER, Outcome, Result
from llr.recovery.sweep.spec import Cell, Spec, Value, ordered, table_order

_APPLICATION = 0x6C6C7253  # "llrS", so that other databases are not mistaken for a sweep
_VERSION = 1
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cells (
    key TEXT PRIMARY KEY,
    position INTEGER NOT NULL UNIQUE,
    coordinates TEXT NOT NULL
);
CREATE TABLE results (
    key TEXT PRIMARY KEY REFERENCES cells (key),
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    "values" TEXT,
    error TEXT,
    traceback TEXT,
    worker TEXT NOT NULL,
    seconds REAL NOT NULL,
    finished TEXT NOT NULL,
    digest TEXT NOT NULL
);
"""


class StoreError(RuntimeError):
    """A file that cannot be read or written. The message gives the reason, and says which data are intact."""


@dataclass(frozen=True)
class Row:
    """A cell, and its outcome if there is one."""

    cell: Cell
    outcome: Outcome | None
    finished: str | None

    @property
    def status(self) -> str:
        """``done``, ``failed`` or ``missing``."""
        return "missing" if self.outcome is None else self.outcome.status


class Store:
    """An open file of results. Use :func:`open_store` or :func:`read_store` to open one."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        with _explained(path):
            about = dict(connection.execute("SELECT name, value FROM about"))
        if about.pop("digest", None) != _digest_of_all(about):
            raise _damaged(path, "the entries about its runner are not those that were written")
        self.runner = about["runner"]
        self.threads = int(about["threads"])

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they were added."""
        with _explained(self.path):
            found = self._connection.execute("SELECT coordinates FROM cells ORDER BY position")
            return [Cell(json.loads(text)) for (text,) in found]

    def pending(self, *, retry_failed: bool = False) -> list[Cell]:
        """The cells without an outcome; with `retry_failed` also the cells that failed."""
        settled = {row.cell for row in self.rows() if row.status in _settled(retry_failed)}
        return [cell for cell in self.cells() if cell not in settled]

    def rows(self) -> list[Row]:
        """All cells with their outcomes, sorted by their coordinates.

        Raises:
            StoreError: the file is damaged.
        """
        with _explained(self.path):
            found = self._connection.execute(
                "SELECT cells.key, coordinates, status, error, traceback, worker, seconds, finished, digest, "
                '"values", (SELECT count(*) FROM results) '
                "FROM cells LEFT JOIN results ON cells.key = results.key"
            ).fetchall()
        rows = [self._row(*entry) for *entry, _ in found]
        if found and found[0][-1] != sum(row.outcome is not None for row in rows):
            # A key was changed.
            raise _damaged(self.path, "it has results that belong to no cell")
        return sorted(rows, key=lambda row: table_order(row.cell))

    def _row(
        self,
        key: str,
        coordinates: str,
        status: str | None,
        error: str | None,
        traceback: str | None,
        worker: str,
        seconds: float,
        finished: str | None,
        digest: str,
        values: str | None,
    ) -> Row:
        try:
            cell = Cell(json.loads(coordinates))
            if cell.key != key:
                raise ValueError(f"the coordinates of cell {cell} are not those it was made with")
            if status is None:
                return Row(cell, None, None)
            entry = (key, status, values, error, traceback, worker, seconds, finished)
            if digest != _digest(*entry):
                raise ValueError(f"the result of cell {cell} is not the one that was written")
            result = None if values is None else json.loads(values)
        except (ValueError, TypeError, AttributeError) as err:
            raise _damaged(self.path, str(err)) from err
        return Row(cell, Outcome(result, error, traceback, seconds, worker), finished)

    def record(self, cell: Cell, outcome: Outcome) -> None:
        """Write an outcome; it is on disk when this returns. A previous outcome of the cell is replaced.

        Raises:
            StoreError: it cannot be written; earlier results are intact.
        """
        values = None if outcome.values is None else _json(outcome.values)
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = (
            cell.key,
            outcome.status,
            values,
            outcome.error,
            outcome.traceback,
            outcome.worker,
            float(outcome.seconds),  # as SQLite gives it back
            finished,
        )
        with _explained(self.path), _transaction(self._connection):
            self._connection.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*entry, _digest(*entry)),
            )


def _settled(retry_failed: bool) -> tuple[str, ...]:
    return ("done",) if retry_failed else ("done", "failed")


def _json(values: Result) -> str:
    # A result may be infinite; Python's JSON supports this.
    return json.dumps(dict(values), separators=(",", ":"))


def _digest(*parts: str | float | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _digest_of_all(about: Mapping[str, str]) -> str:
    # repr: a damaged file may hold values of any type.
    return _digest(*map(repr, sorted(about.items(), key=repr)))


@contextlib.contextmanager
def open_store(
    path: str | os.PathLike[str],
    spec: Spec,
    *,
    runner: str | None = None,
    threads: int | None = None,
    extend: bool = False,
) -> Iterator[Store]:
    """Open the file of a sweep for writing, or create it. No other process can write at the same time.

    Args:
        path: the file.
        spec: the grid, whose cells must be those of the file.
        runner: what computes cells; None for that of the file, or the default for a new file.
        threads: the number of threads of each cell; None for that of the file, or one.
        extend: add cells that the file lacks, and keep those that the spec lacks.

    Raises:
        ValueError: the file is of another spec, runner or number of threads; the message says what differs.
        StoreError: the file is not one of a sweep, is damaged or in use, or cannot be written.
    """
    path = Path(path).absolute()
    with contextlib.ExitStack() as stack:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(path))
            connection = stack.enter_context(_connected(path, "rwc"))
            connection.execute("PRAGMA synchronous = EXTRA")
            with _transaction(connection):
                if _is_new(connection):
                    _create(connection, spec, runner or DEFAULT_RUNNER, threads or 1)
                _verify(connection, path)
                # This refuses a read-only file before anything is computed; BEGIN IMMEDIATE does not.
                connection.execute("DELETE FROM results WHERE false")
            store = Store(connection, path)
            store.rows()  # raises an error if a row is damaged
            _compare_about(store, runner, threads)
            _compare_cells(store, connection, spec, extend)
        yield store


@contextlib.contextmanager
def read_store(path: str | os.PathLike[str]) -> Iterator[Store]:
    """Open the file of a sweep for reading, also while another process writes it.

    Raises:
        ValueError: there is no such file.
        StoreError: the file is not one of a sweep, is still empty, or is damaged.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; `run` creates the file of a sweep")
    # A killed writer may leave a transaction unfinished. SQLite undoes it for the next process that opens the
    # file with permission to write.
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    with contextlib.ExitStack() as stack:
        with _explained(path):
            connection = stack.enter_context(_connected(path, mode))
            if _is_new(connection):
                raise StoreError(
                    f"{path} is empty: its sweep has not begun; `run` begins or resumes it"
                )
            _verify(connection, path)
        yield Store(connection, path)


@contextlib.contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    # isolation_level None: transactions begin and end explicitly.
    with contextlib.closing(
        sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None)
    ) as connection:
        yield connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it after some errors, such as a full disk
            connection.execute("ROLLBACK")
        raise


def _is_new(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    return tables == 0 and application == 0


def _create(connection: sqlite3.Connection, spec: Spec, runner: str, threads: int) -> None:
    for statement in _SCHEMA.split(";"):  # executescript would commit first
        connection.execute(statement)
    about = {"runner": runner, "threads": str(threads), "llr": __version__}
    about["digest"] = _digest_of_all(about)
    connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    _add(connection, spec.cells)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {_VERSION}")


def _add(connection: sqlite3.Connection, cells: Sequence[Cell]) -> None:
    (last,) = connection.execute("SELECT coalesce(max(position), -1) FROM cells").fetchone()
    connection.executemany(
        "INSERT INTO cells VALUES (?, ?, ?)",
        [(cell.key, last + i, cell.json) for i, cell in enumerate(cells, start=1)],
    )


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION:
        raise StoreError(
            f"{path} is an SQLite file, but not one of a sweep; it was not changed: name another file"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        raise StoreError(
            f"{path} has format {version}, but this version of llr reads format {_VERSION}: use the version "
            "that wrote it"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(path, verdict)


def _damaged(path: Path, how: str) -> StoreError:
    return StoreError(
        f"{path} is damaged ({how}); nothing was written to it. Put back a copy, or keep this one "
        "(`sqlite3 FILE .recover` rescues what is readable) and start another file"
    )


def _compare_about(store: Store, runner: str | None, threads: int | None) -> None:
    asked = {"runner": runner, "threads": threads}
    stored = {"runner": store.runner, "threads": store.threads}
    for name, value in asked.items():
        if value is not None and value != stored[name]:
            raise ValueError(
                f"{store.path}: its results are of {name} {stored[name]}, not {value}, and a file holds "
                "results of one only; name another file"
            )


def _compare_cells(store: Store, connection: sqlite3.Connection, spec: Spec, extend: bool) -> None:
    stored = dict.fromkeys(store.cells())
    new = [cell for cell in spec.cells if cell not in stored]
    gone = stored.keys() - set(spec.cells)
    if extend:
        with _transaction(connection):
            _add(connection, new)
    elif new or gone:
        differences = _differences(spec.cells, list(stored))
        raise ValueError(
            f"{store.path} is of another spec: {len(new)} cells of this one are not in it, and {len(gone)} "
            f"of its own not in this one ({differences}); name another file, or add the new cells to it with "
            "--extend"
        )


def _differences(wanted: Sequence[Cell], stored: Sequence[Cell]) -> str:
    """The values of coordinates that are only in one of both, as text."""
    ours, theirs = _values(wanted), _values(stored)
    found = []
    for name in ordered(ours.keys() | theirs.keys()):
        only = [
            f"{', '.join(map(repr, values[:3]))}{', ...' if len(values) > 3 else ''} only in the {place}"
            for place, values in (
                ("spec", [v for v in ours.get(name, ()) if v not in theirs.get(name, ())]),
                ("file", [v for v in theirs.get(name, ()) if v not in ours.get(name, ())]),
            )
            if values
        ]
        found += [f"{name}: {' and '.join(only)}"] if only else []
    return "; ".join(found) or "the same values in other combinations"


def _values(cells: Sequence[Cell]) -> dict[str, dict[Value, None]]:
    values: dict[str, dict[Value, None]] = {}
    for cell in cells:
        for name, value in cell.values.items():
            values.setdefault(name, {})[value] = None
    return values


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the lock into a StoreError that says which data are intact."""
    try:
        yield
    except UnicodeDecodeError as err:  # in text of the file, or in a message of SQLite
        raise _damaged(path, str(err)) from err
    except sqlite3.Error as err:
        raise _explanation(path, str(err)) from err
    except BlockingIOError as err:
        raise StoreError(f"{path}: {err.strerror}; wait for it, or name another file") from err
    except OSError as err:
        raise StoreError(
            f"{path} cannot be written ({err}); nothing in it was changed. SQLite also creates files in its "
            "directory: allow that, or name another place"
        ) from err


def _explanation(path: Path, problem: str) -> StoreError:
    # The text of the error decides: Python reports SQLite's error codes since 3.11 only.
    if "not a database" in problem:
        return StoreError(f"{path} is not an SQLite file; it was not changed: name another file")
    if "malformed" in problem:
        return _damaged(path, problem)
    if "full" in problem or "disk I/O" in problem:
        advice = "free some disk space, and run the same command again"
    elif "readonly" in problem or "unable to open" in problem:
        advice = "allow writing to the file and its directory, or name another place"
    elif "locked" in problem:
        advice = "another program has locked it: end that program, and run the same command again"
    else:
        advice = "run the same command again when the problem is solved"
    return StoreError(f"{path}: {problem}; the results that were in it are intact: {advice}")
