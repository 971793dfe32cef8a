"""How a table is written as text: its encoding, its lines, and the separator of its cells.

Ambiguous text is refused; the options of :class:`Layout` resolve the ambiguity.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", r"\t": "\t", "bar": "|", "space": " "}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT = 100  # lines, to find the separator: one that occurs only later makes a cell no number
_QUOTED = re.compile(r'"[^"]*"')
_GROUPS_BY_SPACES = re.compile(r"\s*[+-]?[1-9]\d{0,2}([ \t]+\d{3})+\s*")
_TWO_INTEGERS = re.compile(r"\s*[+-]?\d+,\d+\s*")
_INNER_SPACE = re.compile(r"[^\s,][ \t]+[^\s,]")


@dataclass(frozen=True)
class Layout:
    """The options for reading a table; None for an option to be determined from the file.

    Args:
        sep: the separator of cells: ``,`` ``;`` ``|``, tab or space, as a character or a word. Space means
            any number of spaces and tabs.
        decimal: ``.`` or ``,``.
        header: whether the first line holds names.
        columns: the columns to read, in this order: positions from 1 such as ``1-3,5`` and ``2-``, or names
            such as ``age,dose``. Only these columns must be numbers.
    """

    sep: str | None = None
    decimal: str | None = None
    header: bool | None = None
    columns: str | None = None

    def checked(self) -> Layout:
        """The same options with the separator as a character.

        Raises:
            ValueError: another separator or decimal mark.
        """
        sep = _SEPARATORS.get(self.sep or "", self.sep)
        if sep is not None and sep not in _SEPARATORS.values():
            raise ValueError(
                f"--sep is {sep!r}; expected one of , ; | tab space (or comma, semicolon, bar)"
            )
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"--decimal is {self.decimal!r}; expected '.' or ','")
        return replace(self, sep=sep)

    @property
    def given(self) -> list[str]:
        """The options that were given, as written on the command line."""
        header = {True: "--header", False: "--no-header", None: None}[self.header]
        options = (self.sep and "--sep", self.decimal and "--decimal", header)
        return [o for o in (*options, self.columns and "--columns") if o]


@dataclass(frozen=True)
class Line:
    """A line of the file that is neither blank nor a comment, and its number."""

    number: int
    text: str


def decoded(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with a byte order mark.

    Raises:
        ValueError: anything else.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as err:
        line = data[: err.start].count(b"\n") + 1
        raise ValueError(
            f"not {encoding.removesuffix('-sig').upper()} text (line {line} has byte "
            f"0x{data[err.start]:02x}); save it as UTF-8"
        ) from err
    if "\0" in text:
        raise ValueError("not a text file, or UTF-16 without a byte order mark; save it as UTF-8")
    return text


def lines_of(text: str) -> list[Line]:
    """The lines with content. Comments begin with ``#`` and a space; empty lines may only be at the end.

    A ``#`` before anything else is part of a cell: spreadsheets write ``#N/A`` where a value is missing.

    Raises:
        ValueError: an empty line before the last row, which may be a missing value.
    """
    found: list[Line] = []
    blank = 0
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip(" "):
            blank = blank or number
        elif line.startswith("#") and (line.strip("#") == "" or line.lstrip("#")[0] in " \t"):
            continue
        elif blank:
            raise ValueError(f"line {blank} is empty; expected a row, or nothing below")
        else:
            found.append(Line(number, line))
    return found


def separator(lines: Sequence[Line], layout: Layout, suffix: str) -> str:
    """The separator of the cells of a table.

    The first line is used only if it is the only line, since names may contain anything.

    Raises:
        ValueError: there are several possibilities; names the option that decides.
    """
    if layout.sep is not None:
        return layout.sep
    if suffix == ".tsv":
        return "\t"
    rows = [_QUOTED.sub("", line.text) for line in (lines[1:] or lines)[:_LOOKED_AT]]
    present = [mark for mark in ";\t|" if any(mark in row.strip(" ") for row in rows)]
    if len(present) > 1:
        names = " and ".join(repr(mark) for mark in present)
        raise ValueError(
            f"{_which(lines)} has {names} between numbers; --sep says what separates them"
        )
    if present:
        return present[0]
    spaced = any(map(_INNER_SPACE.search, rows))
    if not any("," in row for row in rows):
        return _space(lines, rows, suffix, layout) if spaced else ","
    if spaced:
        raise ValueError(
            f"{_which(lines)} has both commas and spaces between digits; --sep and --decimal say what "
            "they mean"
        )
    if layout.decimal == ",":
        # One column, unless numbers with decimal commas are quoted.
        return "," if any('"' in line.text for line in lines[1:]) else ";"
    return _comma(lines, layout)


def _space(lines: Sequence[Line], rows: Sequence[str], suffix: str, layout: Layout) -> str:
    if suffix == ".csv":
        raise ValueError(
            f"{_which(lines)} has spaces between digits and no comma; --sep space reads them as columns"
        )
    if layout.decimal is None and all(map(_GROUPS_BY_SPACES.fullmatch, rows)):
        raise ValueError(
            f"{_which(lines)} may hold columns, or digits in groups of three; --sep space reads columns"
        )
    return " "


def _comma(lines: Sequence[Line], layout: Layout) -> str:
    """The separator if there are only commas: between columns, or decimal marks of a single column."""
    first = _QUOTED.sub("", lines[0].text)
    several = first.count(",") > 0 and not _TWO_INTEGERS.fullmatch(first)
    body = lines[1:] or lines
    alike = all(_TWO_INTEGERS.fullmatch(line.text) for line in body)
    if layout.decimal is None and alike and not several:
        raise ValueError(
            f"line {body[0].number} is {body[0].text.strip()!r}, and all rows are alike: two integers, or "
            "one number with a decimal comma; --sep , reads two columns, --decimal , reads one"
        )
    return ","


def _which(lines: Sequence[Line]) -> str:
    return f"line {(lines[1] if len(lines) > 1 else lines[0]).number}"
