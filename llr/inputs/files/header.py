"""Decides whether the first line of a table holds names, and which columns are selected."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from llr.inputs.files.layout import Layout

# Text that means a missing value, a truth value or infinity in some files, and is never the name of a column.
_NO_NAMES = {
    *(
        "na",
        "n/a",
        "#n/a",
        "#na",
        "<na>",
        "n.a.",
        "n.a",
        "n/d",
        "n.d.",
        "nan",
        "-nan",
        "nat",
        "null",
        "none",
    ),
    *(
        "nil",
        "missing",
        "undefined",
        "inf",
        "-inf",
        "+inf",
        "infinity",
        "-infinity",
        "true",
        "false",
    ),
}
# Text that may be either: a column may be called error, but a row with nothing else is a sample.
_HARDLY_NAMES = {
    *(
        "yes",
        "no",
        "on",
        "off",
        "unknown",
        "unavailable",
        "empty",
        "blank",
        "void",
        "error",
        "err",
        "nd",
        "nr",
    ),
    *("lod", "bdl", "male", "female", "low", "high"),
}
_NUMBER_LIKE = re.compile(r"[+-]?(\d+([.,]\d*)*|[.,]\d+)([eE][+-]?\d+)?")
_ODD = re.compile(r"[-+<>=.,*?!~]|#[A-Z/0]+[!?]?$")  # <0.5, and errors of spreadsheets: #DIV/0!
_RANGE = re.compile(r"([1-9]\d*)(-([1-9]\d*)?)?")


def is_header(
    first: tuple[int, list[str]], second: Sequence[str] | None, layout: Layout, sep: str
) -> bool:
    """Whether the first row certainly holds names, or the options say so.

    Raises:
        ValueError: it could be a sample with missing values, or the names do not match the columns below.
    """
    line, cells = first
    if layout.header is not None:
        named = layout.header
    elif any(_NUMBER_LIKE.fullmatch(cell) for cell in cells):
        return False  # text in this row is refused later, with its place
    else:
        _check_names(line, cells, layout)
        named = True
    if named and layout.columns is None and second is not None and len(second) != len(cells):
        raise ValueError(_other_length(line, cells, second, sep))
    return named


def _check_names(line: int, cells: Sequence[str], layout: Layout) -> None:
    choice = "--header if it holds the names of columns, --no-header if it is a sample"
    if len(cells) > 1 and not cells[0]:
        if layout.columns is None:
            raise ValueError(
                "the first column has no name, like the row numbers that pandas writes; save with "
                "index=False, or give --columns 2-"
            )
        cells = cells[1:]
    # Na is sodium.
    odd = [cell for cell in cells if cell.lower() in _NO_NAMES and cell != "Na"]
    odd += [cell for cell in cells if not re.search(r"[^\W\d]", cell)]
    odd += [cell for cell in cells if _ODD.match(cell)]
    truths = {cell.lower() for cell in cells} in ({"t", "f"}, {"y", "n"})
    if truths or all(cell.lower() in _HARDLY_NAMES or cell[:1].isdigit() for cell in cells):
        odd += cells
    odd += [cell for cell in cells if cells.count(cell) > 1]
    if odd:
        raise ValueError(
            f"line {line} has {odd[0]!r}, which is no number and probably not a name: give {choice}"
        )


def _other_length(line: int, cells: Sequence[str], second: Sequence[str], sep: str) -> str:
    text = f"line {line} has {len(cells)} names, and the row below {len(second)} cells"
    if len(second) == len(cells) + 1:
        text += "; if these begin with row names, as R writes them, give --columns 2-"
    if sep == ",":
        text += "; if commas are decimal marks, give --decimal ,"
    return text


def check_first_row(
    x: Tensor, all_integers: bool, integers_later: Sequence[bool], quoted: bool, line: int
) -> None:
    """Refuse a first row of numbers that may be column names, as pandas writes unnamed columns.

    Args:
        x: all rows.
        all_integers: whether all numbers of the first row are written as integers.
        integers_later: whether a column has an integer below the first row.
        quoted: whether the first row, and no other row, is quoted.
        line: the first row's number.

    Raises:
        ValueError: the row counts from 0, or it alone increases in equal steps, or it has integers where all
            numbers below are fractions, or it is quoted.
    """
    first, width = x[0], x.shape[1]
    counts = all_integers and torch.equal(first, torch.arange(width, dtype=first.dtype))
    steps = x.diff(dim=1)
    rising = (steps[:, :1] > 0).all(dim=1) & (
        (steps - steps[:, :1]).abs() <= 1e-9 * steps.abs()
    ).all(dim=1)
    even = width > 2 and bool(rising[0]) and not bool(rising[1:].any())
    unlike = all_integers and len(x) > 1 and not any(integers_later)
    if counts or even or unlike or quoted:
        why = "are quoted" if quoted else "may be names of columns"
        raise ValueError(
            f"the numbers in line {line} {why}: --header leaves them out, --no-header reads them as a sample"
        )


def check_first_column(x: Tensor, bodies: Sequence[str], fractions: Sequence[bool]) -> None:
    """Refuse a first column that may number the rows, in a table without names.

    Args:
        x: all rows.
        bodies: their lines.
        fractions: whether a column has a number that is not written as an integer.

    Raises:
        ValueError: only the first column is quoted, as R writes row names; or the first column counts from 0
            or 1, and two or more columns of fractions follow.
    """
    n, width = x.shape
    only_first = width > 1 and all(t.startswith('"') and t.count('"') == 2 for t in bodies)
    count = torch.arange(n, dtype=x.dtype)
    counts = n > 2 and any(torch.equal(x[:, 0], count + start) for start in (0, 1))
    if only_first or (counts and width > 2 and not fractions[0] and all(fractions[1:])):
        raise ValueError(
            "the first column may number the rows: --columns 2- leaves it out, --columns 1- reads it"
        )


def column_positions(
    layout: Layout, names: Sequence[str] | None, row: tuple[int, list[str]]
) -> list[int] | None:
    """The positions, counted from 0, that ``--columns`` selects; None for all.

    Args:
        layout: has the option.
        names: the header, if there is one. If it has one name less than a row has cells, the first column
            has row names.
        row: a row of numbers, and its line.

    Raises:
        ValueError: no such column, or one that exists twice.
    """
    if layout.columns is None:
        return None
    width = len(row[1])
    parts = [part.strip() for part in layout.columns.split(",")]
    ranges = [_RANGE.fullmatch(part) for part in parts]
    if not all(ranges):
        return [_named(part, names, width) for part in parts]
    found: list[int] = []
    for part in filter(None, ranges):
        low = int(part[1])
        high = low if part[2] is None else int(part[3] or width)
        if high > width or low > high:
            raise ValueError(f"--columns has {part[0]}; expected columns from 1 to {width}")
        found += range(low - 1, high)
    if len(set(found)) < len(found):
        raise ValueError(f"--columns {layout.columns} names a column twice")
    return found


def _named(part: str, names: Sequence[str] | None, width: int) -> int:
    if names is None:
        raise ValueError(
            f"--columns has {part!r}, but the first line is no header; expected positions such as 1-3"
        )
    if names.count(part) != 1:
        there = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(
            f"--columns has {part!r}; expected one of the names {there}, each there once"
        )
    return names.index(part) + max(0, width - len(names))
