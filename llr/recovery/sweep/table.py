"""A sweep as one table: for spreadsheets, pandas, and comparison."""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llr.inputs.files.writing import write_atomic
from llr.recovery.sweep.spec import ordered
from llr.recovery.sweep.store import Row, Store

_FORMATS = (".csv", ".parquet")
_TEXTS = ("status", "error", "worker", "finished")


def table(rows: Sequence[Row], *, provenance: bool = False) -> dict[str, list[Any]]:
    """Columns by name: coordinates, status, results, error; None if a cell has no such value.

    Two sweeps of the same grid have the same table, for any number of processes.

    Args:
        rows: the rows of the sweep, from ``store.rows()``.
        provenance: add columns that differ between sweeps: the process, duration and time of each cell.

    Example:
        >>> from llr.recovery.sweep import Cell, Row, Outcome, table
        >>> table([Row(Cell({"n": 7}), Outcome({"recovered": True}), None)])
        {'n': [7], 'status': ['done'], 'recovered': [True], 'error': [None]}
    """
    coordinates = ordered({name for row in rows for name in row.cell.values})
    outcomes = [row.outcome for row in rows]
    results = sorted({name for outcome in outcomes if outcome for name in outcome.values or ()})
    columns: dict[str, list[Any]] = {
        name: [row.cell.values.get(name) for row in rows] for name in coordinates
    }
    columns["status"] = [row.status for row in rows]
    for name in results:
        columns[name] = [((o and o.values) or {}).get(name) for o in outcomes]
    columns["error"] = [o and o.error for o in outcomes]
    if provenance:
        columns["worker"] = [o and o.worker for o in outcomes]
        columns["seconds"] = [o and o.seconds for o in outcomes]
        columns["finished"] = [row.finished for row in rows]
    return columns


def export(store: Store, path: str | os.PathLike[str], *, provenance: bool = False) -> int:
    """Write the table of a sweep as .csv or .parquet. A failure leaves no partial file.

    CSV has a header, numbers in their shortest exact form, and empty fields for missing values.

    Args:
        store: from :func:`~llr.recovery.sweep.read_store`.
        path: a name ending in .csv, or in .parquet (needs pyarrow: ``pip install 'llr[parquet]'``).
        provenance: see :func:`table`.

    Returns:
        The number of rows.

    Raises:
        ValueError: another suffix, or a column of several types, which Parquet does not support.
        ImportError: Parquet without pyarrow.
        StoreError: the sweep's file is damaged.
    """
    suffix = require_table_format(path)
    rows = store.rows()
    columns = table(rows, provenance=provenance)
    write_atomic(path, _csv(columns) if suffix == ".csv" else _parquet(columns))
    return len(rows)


def require_table_format(path: str | os.PathLike[str]) -> str:
    """The suffix of a table's file; ValueError for one that `export` cannot write."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"table {os.fspath(path)!r}: expected a name ending in {', '.join(_FORMATS)}"
        )
    return suffix


def _csv(columns: dict[str, list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as err:
        raise ImportError("Parquet needs pyarrow: pip install 'llr[parquet]'") from err
    arrays = {}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            raise ValueError(
                f"column {name!r} holds {', '.join(sorted(k.__name__ for k in kinds))}; Parquet has one type "
                "per column: export .csv"
            )
        numbers = [None if v is None else float(v) for v in values] if float in kinds else values
        # A text column even if it is empty, so that tables with and without failures have the same schema.
        arrays[name] = arrow.array(numbers, type=arrow.string() if name in _TEXTS else None)
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(arrays), buffer)
    return buffer.getvalue()
