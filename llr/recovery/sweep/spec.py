"""What a sweep computes: a grid of cells, written as TOML."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llr.inputs.files.arrays import read_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value = str | int | float | bool
"""The value of a coordinate: a type that TOML, JSON, CSV and Parquet all have."""

COORDINATES: Mapping[str, type] = MappingProxyType(
    {
        "architecture": str,
        "d": int,
        "q": int,
        "k": int,
        "width": int,
        "depth": int,
        "kernel": int,
        "channels": int,
        "rows": int,
        "columns": int,
        "rank": int,
        "bias": bool,
        "activation": str,
        "target": str,
        "strategy": str,
        "n": int,
        "seed": int,
    }
)
"""The coordinates with fixed names; further ones of a runner are under ``[options]``."""

REQUIRED = ("architecture", "target", "n", "strategy", "seed")
RESERVED = ("status", "error", "traceback", "worker", "seconds", "finished")
_FROM_ZERO = ("seed",)
_RANGE = ("from", "to", "step")
_MOST_CELLS = 1_000_000
_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Cell:
    """One point of a grid: its coordinates. The result of a cell may depend on nothing else.

    Args:
        values: coordinates by name, which are sorted and frozen; text, integers, booleans and finite numbers.

    Raises:
        ValueError: NaN, infinity, an integer beyond 64 bits, or a name that is a column of every table.
        TypeError: a value of another type.

    Example:
        >>> from llr.recovery.sweep import Cell
        >>> Cell({"n": 7, "architecture": "two-layer"}).json
        '{"architecture":"two-layer","n":7}'
    """

    values: Mapping[str, Value]

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            _check_scalar(name, value)
            if name in RESERVED:
                raise ValueError(
                    f"{name!r} is a column of every table; give the coordinate another name"
                )
        object.__setattr__(self, "values", MappingProxyType(dict(sorted(self.values.items()))))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        # The JSON is compared, not the values: 1 == 1.0 == True, but a runner may treat them differently.
        return isinstance(other, Cell) and self.json == other.json

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())

    @property
    def json(self) -> str:
        """The coordinates as canonical JSON, with sorted names, no spaces and the shortest numbers."""
        return json.dumps(dict(self.values), separators=(",", ":"), allow_nan=False)

    @property
    def key(self) -> str:
        """A hash of the coordinates, the same on every machine and in every process."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:32]


def _check_scalar(name: str, value: object) -> None:
    if type(value) not in _NAMES:
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}); expected text, a number, true or false"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; expected a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}; expected an integer of at most 64 bits")


@dataclass(frozen=True)
class Spec:
    """A grid: its cells in the order of the file, without duplicates."""

    cells: tuple[Cell, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Spec:
        """The grid that a TOML file describes; see :meth:`parse`.

        Raises:
            ValueError: no such file, not TOML, or not a grid; the message names the file and the key.
            TypeError: a value of the wrong type.
        """
        try:
            text = read_file(Path(path)).decode()
            document = tomllib.loads(text)
        except UnicodeDecodeError as err:
            raise ValueError(f"spec {path}: cannot be read (not UTF-8 text)") from err
        except (tomllib.TOMLDecodeError, RecursionError) as err:
            raise ValueError(f"spec {path}: not TOML ({err})") from err
        except ValueError as err:
            raise ValueError(f"spec {path}: cannot be read ({err})") from err
        return cls.parse(document, f"spec {path}")

    @classmethod
    def parse(cls, document: Mapping[str, Any], name: str = "spec") -> Spec:
        """The grid of a table of fixed values and lists: the product of the lists.

        Each value is a scalar, a list of scalars, or for integers ``{from, to, step}``, both ends
        included. Keys are those of :data:`COORDINATES`; further keys are in a table ``options`` and
        become coordinates, too. With blocks ``[[grid]]`` there is one product for each block, with the
        keys outside of the blocks added to each; a cell of several blocks counts once.

        Args:
            document: the table, as ``tomllib`` reads it.
            name: the name of the table, for messages.

        Raises:
            ValueError: an unknown or missing key, an empty or repeating list, a number out of range, no
                cells or more than a million.
            TypeError: a value of the wrong type.

        Example:
            >>> from llr.recovery.sweep import Spec
            >>> shared = {"architecture": "two-layer", "target": "generic", "strategy": "lm"}
            >>> grid = {"n": {"from": 4, "to": 8, "step": 2}, "seed": [0, 1]}
            >>> len(Spec.parse({**shared, **grid}).cells)
            6
        """
        blocks = document.get("grid", [{}])
        shared = {key: value for key, value in document.items() if key != "grid"}
        if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in blocks):
            raise TypeError(f"{name}: grid is {blocks!r}; expected blocks headed [[grid]]")
        if not blocks:
            raise ValueError(
                f"{name}: grid is empty; expected blocks headed [[grid]], or none at all"
            )
        common = _axes(shared, name)
        cells: dict[Cell, None] = {}
        for number, block in enumerate(blocks, start=1):
            where = name if "grid" not in document else f"{name}, grid {number}"
            axes = {**common, **_axes(block, where)}
            _check_product(axes, where)
            cells.update(dict.fromkeys(_product(axes)))
        return cls(tuple(cells))


def _axes(table: Mapping[str, Any], where: str) -> dict[str, Sequence[Value]]:
    axes: dict[str, Sequence[Value]] = {}
    for name, entry in table.items():
        if name == "options":
            axes.update(_options(entry, where))
            continue
        if name not in COORDINATES:
            raise ValueError(
                f"{where}: unknown key {name!r}{_nearest(name)}; expected one of "
                f"{', '.join(COORDINATES)}, grid or options (a table for further keys of a runner)"
            )
        axes[name] = _checked(name, _listed(name, entry, where), where)
    return axes


def _options(table: object, where: str) -> dict[str, Sequence[Value]]:
    if not isinstance(table, Mapping):
        raise TypeError(f"{where}: options is {table!r}; expected a table, [options]")
    for name in table:
        if name in COORDINATES or name in RESERVED:
            raise ValueError(f"{where}: options.{name}: this name is in use; expected another one")
    return {name: _listed(f"options.{name}", entry, where) for name, entry in table.items()}


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, [*COORDINATES, "grid", "options"], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(name: str, entry: object, where: str) -> Sequence[Value]:
    """The values of one key, in any of the forms in which they may be written."""
    values: Any = entry if isinstance(entry, list) else [entry]
    if isinstance(entry, Mapping):
        values = _range(name, entry, where)
    for value in values:
        _check_scalar(f"{where}: {name}", value)
    if not values:
        raise ValueError(f"{where}: {name} has no values, so the grid has no cells; expected some")
    if len(set(values)) < len(values):
        repeated = next(value for i, value in enumerate(values) if value in values[:i])
        raise ValueError(f"{where}: {name} lists {repeated!r} twice; expected every value once")
    return values


def _range(name: str, table: Mapping[str, Any], where: str) -> range:
    bounds = {"step": 1, **table}
    if set(bounds) != set(_RANGE) or any(type(bound) is not int for bound in bounds.values()):
        raise ValueError(
            f"{where}: {name} is {dict(table)!r}; expected a value, a list, or integers "
            "{ from = 1, to = 9, step = 2 } with both ends included"
        )
    if bounds["step"] < 1:
        raise ValueError(f"{where}: {name}: step is {bounds['step']}; expected at least 1")
    values = range(bounds["from"], bounds["to"] + 1, bounds["step"])
    if len(values) > _MOST_CELLS:
        raise ValueError(
            f"{where}: {name} has {len(values)} values; expected at most {_MOST_CELLS}"
        )
    return values


def _checked(name: str, values: Sequence[Value], where: str) -> Sequence[Value]:
    kind = COORDINATES[name]
    lowest = 0 if name in _FROM_ZERO else 1
    for value in values:
        if type(value) is not kind:
            raise TypeError(
                f"{where}: {name} is {value!r} ({type(value).__name__}); expected {_NAMES[kind]}"
            )
        if kind is int and value < lowest:  # type: ignore[operator]
            raise ValueError(f"{where}: {name} is {value}; expected at least {lowest}")
    return values


def _check_product(axes: Mapping[str, Sequence[Value]], where: str) -> None:
    missing = [name for name in REQUIRED if name not in axes]
    if missing:
        kinds = ", ".join(f"{name} ({_NAMES[COORDINATES[name]]})" for name in missing)
        raise ValueError(f"{where}: missing {kinds}; expected a value or a list for each")
    size = math.prod(len(values) for values in axes.values())
    if size > _MOST_CELLS:
        raise ValueError(f"{where}: the grid has {size} cells; expected at most {_MOST_CELLS}")


def _product(axes: Mapping[str, Sequence[Value]]) -> Iterator[Cell]:
    for values in itertools.product(*axes.values()):
        yield Cell(dict(zip(axes, values, strict=True)))


def ordered(names: Iterable[str]) -> list[str]:
    """Names of coordinates in the order of tables: those of :data:`COORDINATES`, then options."""
    rank = {name: position for position, name in enumerate(COORDINATES)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def table_order(cell: Cell) -> tuple[Any, ...]:
    """The sort key of tables: the coordinates, independent of the order in which cells were added."""
    return tuple(
        (name, isinstance(value, str), value)
        for name, value in ((name, cell.values[name]) for name in ordered(cell.values))
    )
