"""The files that a command writes: refused before the work if they cannot be written, or are read by it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llr.inputs.files.writing import require_directory, require_writable
from llr.inputs.widths import names_widths

# The parameters of commands that name output files, and their names on the command line.
_OUTPUTS = {
    "json_out": "--json",
    "plot_out": "--plot",
    "out": "--out",
    "table": "TABLE",
    "figure": "FIGURE",
}
_CODE = ("model", "runner")  # the parameters of commands that name code, as module:name


class OutputDirectory(click.Path):
    """The type of an option that names a directory of results, which is created if it is missing."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


class OutputText(click.Path):
    """The type of an option that names a text file, or standard output as ``-``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


def require_outputs(arguments: dict[str, Any]) -> None:
    """Refuse output files of the current command that cannot be written, or that are files it reads.

    Args:
        arguments: the arguments of the command, by the names of its parameters.

    Raises:
        ValueError: says which.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun only the first process writes
    context = click.get_current_context()
    kinds = {parameter.name: parameter.type for parameter in context.command.params}
    files: dict[Path, str] = {}
    for name, option in _OUTPUTS.items():
        path = arguments.get(name)
        if not isinstance(path, str | Path):
            continue
        if str(path) == "-":
            if name != "json_out" and not isinstance(kinds.get(name), OutputText):
                raise ValueError(
                    f"{option} is '-', standard output, which takes text only; expected the name of a file"
                )
            if sys.stdout is None:
                raise ValueError(f"{option} -: standard output is closed")
            continue
        if isinstance(kinds.get(name), OutputDirectory):
            require_directory(path, option)
            continue
        require_writable(path, option)
        other = files.setdefault(Path(path).resolve(), option)
        if other != option:
            raise ValueError(
                f"{option} and {other} are both {str(path)!r}; expected different files"
            )
        for read, place in _inputs(context):
            require_other(path, option, place, read)


def require_other(path: str | Path, option: str, place: str | Path, read: str) -> None:
    """Refuse an output that is the same file as an input, also through links and standard input.

    Args:
        path: the output.
        option: its name on the command line.
        place: the input; ``-`` is standard input.
        read: its name on the command line.
    """
    try:
        ours = os.stat(path)
        theirs = os.fstat(0) if str(place) == "-" else os.stat(place)
    except OSError:  # one of them does not exist
        return
    if stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, theirs):
        raise ValueError(
            f"{option} {path} would overwrite {read}, which the command reads; expected another file"
        )


def _inputs(context: click.Context) -> Iterator[tuple[str, str | Path]]:
    """The files that a command reads, each with its name on the command line."""
    for parameter in context.command.params:
        name, value = parameter.name, context.params.get(parameter.name or "")
        option = isinstance(parameter, click.Option)
        shown = parameter.opts[-1] if option else parameter.human_readable_name
        if isinstance(value, Path) and name not in _OUTPUTS:
            yield shown, value
        elif isinstance(value, str) and name in _CODE and not names_widths(value):
            for file in _code(value.rpartition(":")[0]):
                yield shown, file


def _code(module: str) -> Iterator[Path]:
    """The files that may hold a module. It is not imported: that would run code before all is checked."""
    if module.endswith(".py"):
        yield Path(module)
        return
    for folder in ["", *sys.path]:
        place = Path(folder, *module.split("."))
        yield from (place.with_name(f"{place.name}.py"), place / "__init__.py")
