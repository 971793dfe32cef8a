"""Reads tables of numbers from text files; ambiguous text is refused with its line.

The csv module splits lines into cells, and nothing else is left to a library: readers such as pandas silently
take the first line for names, NA for a number and ``1,5`` for two numbers.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor

from llr.inputs.files.header import check_first_column, check_first_row, column_positions, is_header
from llr.inputs.files.layout import Layout, Line, decoded, lines_of, separator

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_FRACTION = r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?"
_FRACTIONS = re.compile(f"{_FRACTION}( {_FRACTION})*", re.ASCII)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)  # 1.234: a fraction, or thousands
_EXACT = 2**53  # integers up to here are exact in float64
_QUOTES = re.compile('"+')
_NOT_ZERO = re.compile(r"[+-]?[0.]*[1-9]")


def read_table(data: bytes, layout: Layout | None = None, suffix: str = ".csv") -> Tensor:
    r"""The numbers of a table, shape (rows, columns): int64 if all are written as integers, else float64.

    Args:
        data: the file. UTF-8, or UTF-16 and UTF-32 with a byte order mark; lines that begin with ``#`` and a
            space are comments.
        layout: the options that are known. Other options are determined from the file if they are certain.
        suffix: of the file's name. In .tsv tabs separate cells; in all but .csv spaces may.

    Raises:
        ValueError: a cell that is missing or no finite number, rows of different lengths, no rows, or
            ambiguous text; names the line, and the option that decides.

    Example:
        >>> from llr.inputs.files.tables import read_table
        >>> read_table(b"age;dose\n30;1,5\n41;2,25\n").tolist()
        [[30.0, 1.5], [41.0, 2.25]]
    """
    layout = (layout or Layout()).checked()
    lines = lines_of(decoded(data))
    if lines and (excel := re.fullmatch(r'"?sep=([,;|\t])"?', lines[0].text.rstrip(" "))):
        layout = Layout(layout.sep or excel[1], layout.decimal, layout.header, layout.columns)
        lines = lines[1:]
    if not lines:
        raise ValueError("no numbers; expected one line per sample")
    sep = separator(lines, layout, suffix)
    rows = _cells(lines, sep)
    first, second = next(rows), next(rows, None)
    named = is_header(first, None if second is None else second[1], layout, sep)
    positions = column_positions(
        layout, first[1] if named else None, first if second is None else second
    )
    numbers = _Numbers(layout, sep, positions)
    if not named:
        try:
            numbers.add(*first)
        except ValueError as err:
            hint = "; --header if it holds names" if layout.header is None else ""
            raise ValueError(f"{err}{hint}") from err
    if second is not None:
        numbers.add(*second)
    for row in rows:
        numbers.add(*row)
    if not numbers.rows:
        raise ValueError("no numbers; expected one line per sample")
    numbers.check()
    x = torch.from_numpy(np.frombuffer(numbers.values, dtype=np.float64).copy())
    x = x.view(numbers.rows, -1)
    if layout.header is None and layout.columns is None and not named:
        check_first_column(x, [line.text for line in lines], numbers.fractions)
    if layout.header is None and not named:
        below = lines[1:]
        quoted = bool(below) and '"' in lines[0].text and not any('"' in row.text for row in below)
        check_first_row(
            x, numbers.integers_in_first, numbers.integers_later, quoted, lines[0].number
        )
    return x.to(torch.int64) if numbers.all_integers else x


def _cells(lines: Sequence[Line], sep: str) -> Iterator[tuple[int, list[str]]]:
    """Each row's cells, with the number of the line on which it ends.

    If every line ends with a separator, the last column is empty and dropped.
    """
    spaces = sep == " "  # any number of spaces and tabs
    texts = [line.text.replace("\t", " ").strip(" ") if spaces else line.text for line in lines]
    trailing = all(text.rstrip(" ").endswith(sep) for text in texts)
    reader = csv.reader(texts, delimiter=sep, skipinitialspace=spaces, strict=True)
    while True:
        begin = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            raise ValueError(_about_quotes(lines[begin : reader.line_num], str(err))) from err
        if trailing and not cells[-1].strip(" \t"):
            del cells[-1]
        yield lines[reader.line_num - 1].number, [cell.strip(" \t") for cell in cells]


def _about_quotes(lines: Sequence[Line], error: str) -> str:
    """What is wrong with the quotes of a row that the csv module cannot read."""
    if "expected after" in error:
        return f"line {lines[-1].number}: there is text after a closing quote; expected a separator"
    opened, quoted = lines[0].number, False
    for line in lines:
        for quotes in _QUOTES.findall(line.text):
            if len(quotes) % 2:  # a doubled quote is a quote within a cell, or an empty cell
                opened, quoted = line.number, not quoted
    if quoted:
        return f"line {opened}: the quote that opens there is not closed; expected a second one"
    return f"line {opened}: a cell is too long ({error}); expected numbers"


@dataclass
class _Numbers:
    """The rows so far, and how numbers are written in them."""

    layout: Layout
    sep: str
    positions: list[int] | None  # None: all columns
    values: array[float] = field(default_factory=lambda: array("d"))
    rows: int = 0
    width: int = 0
    all_integers: bool = True
    integers_in_first: bool = False
    integers_later: list[bool] = field(default_factory=list)
    fractions: list[bool] = field(default_factory=list)
    mark: str | None = None
    mark_line: int = 0
    mark_is_certain: bool = False
    zero_led: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        # Between commas only a point can be a decimal mark, unless cells are quoted and the option says so.
        self.mark = self.layout.decimal or ("." if self.sep == "," else None)
        self.mark_is_certain = self.mark is not None

    def add(self, line: int, cells: list[str]) -> None:
        """Add a row."""
        if not self.rows:
            self.width = len(cells)
        elif len(cells) != self.width:
            raise ValueError(f"line {line} has {len(cells)} cells, the first row {self.width}")
        if not self._add_fractions(cells):
            self._add_each(cells, line)
        self.rows += 1

    def _add_fractions(self, cells: list[str]) -> bool:
        """Add a row if all cells are fractions without ambiguity, as are most rows of large files."""
        if not (self.rows and self.mark == "." and self.mark_is_certain and self.positions is None):
            return False
        if not _FRACTIONS.fullmatch(" ".join(cells)):
            return False
        found = list(map(float, cells))
        if float("inf") in map(abs, found) or (0.0 in found and any(map(_vanishes, cells, found))):
            return False
        self.values.extend(found)
        self.all_integers, self.fractions = False, [True] * len(cells)
        return True

    def _add_each(self, cells: list[str], line: int) -> None:
        whole = []
        for column in range(len(cells)) if self.positions is None else self.positions:
            cell = cells[column]
            whole.append(_INTEGER.fullmatch(cell) is not None)
            value = float(cell) if whole[-1] else self._fraction(cell, line, column + 1)
            if abs(value) >= _EXACT:
                if value in (float("inf"), float("-inf")):
                    raise _refused(cell, line, column + 1, "; it is too large for float64")
                if whole[-1] and (held := Decimal(value)) != Decimal(cell):
                    why = f" that float64 holds, which makes {held:f} of it"
                    raise _refused(cell, line, column + 1, why)
                whole[-1] = False
            elif value == 0 and _vanishes(cell, value):
                raise _refused(cell, line, column + 1, "; it is 0 in float64")
            if whole[-1] and len(cell.lstrip("+-")) > 1 and cell.lstrip("+-")[0] == "0":
                self.zero_led = self.zero_led or (line, cell)
            self.values.append(value)
        self.all_integers = self.all_integers and all(whole)
        if not self.rows:
            self.integers_in_first, self.integers_later = all(whole), [False] * len(whole)
            self.fractions = [False] * len(whole)
        elif self.integers_in_first:
            pairs = zip(self.integers_later, whole, strict=True)
            self.integers_later = [before or now for before, now in pairs]
        self.fractions = [f or not w for f, w in zip(self.fractions, whole, strict=True)]

    def _fraction(self, cell: str, line: int, column: int) -> float:
        mark = self.mark
        if mark is None and ("," in cell or "." in cell):
            self.mark, self.mark_line = ("," if "," in cell else "."), line
            mark = self.mark
        other = {",": ".", ".": ","}.get(mark or "")
        if other is not None and other in cell:
            raise _refused(cell, line, column, _about_marks(cell, self.layout, self.mark_line))
        if not self.mark_is_certain and mark is not None and mark in cell:
            self.mark_is_certain = not _GROUPED.fullmatch(cell)
        text = cell.replace(",", ".") if mark == "," else cell
        if not _NUMBER.fullmatch(text):
            raise _refused(cell, line, column, _about(cell))
        return float(text)

    def check(self) -> None:
        """Refuse a file whose decimal mark could separate thousands, or columns."""
        certain_point = self.mark == "." and self.sep != ";"
        if self.mark is not None and not self.mark_is_certain and not certain_point:
            raise ValueError(
                f"line {self.mark_line} and all others have {self.mark!r} before three digits only: a "
                f"decimal mark, or thousands; --decimal {self.mark} reads fractions"
            )
        if self.zero_led and self.sep == "," and self.layout.sep is None:
            raise ValueError(
                f"line {self.zero_led[0]} has {self.zero_led[1]!r}, which may be what follows a comma within "
                "a number; --sep , reads columns"
            )


def _vanishes(cell: str, value: float) -> bool:
    """Whether a number that is not 0 is 0 in float64."""
    return value == 0 and _NOT_ZERO.match(cell.replace(",", ".")) is not None


def _refused(cell: str, line: int, column: int, why: str = "") -> ValueError:
    if not cell:
        return ValueError(f"line {line}, column {column} is empty; expected a number")
    shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
    return ValueError(f"line {line}, column {column} is {shown!r}; expected a finite number{why}")


def _about_marks(cell: str, layout: Layout, before: int) -> str:
    if "," in cell and "." in cell:
        return " without separators of thousands"
    if layout.decimal is None and not before:
        return "; --sep and --decimal say what commas mean"
    where = f"line {before} has" if before else "--decimal says"
    return f", and {where} the other decimal mark"


def _about(cell: str) -> str:
    if cell.lower() in ("true", "false"):
        return "; write 1 and 0"
    if re.fullmatch(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*", cell):
        return ", and dates are none; --columns leaves columns out"
    if re.search(r"\d[ '_\u00a0\u202f]\d", cell):
        return " without separators of thousands; --sep says what separates columns"
    return "; --columns leaves columns out" if re.search(r"[^\W\d]", cell) else ""
