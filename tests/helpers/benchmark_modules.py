"""Imports files of benchmarks/, which is not a package, and reads the tables that they write."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def imported(names: Sequence[str]) -> Iterator[SimpleNamespace]:
    """Import these modules; they are removed from ``sys.modules`` afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in names:  # some folders of tests have the same names
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Each Markdown table as a list of rows, column -> cell."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            head, _, *rows = [
                [cell.strip() for cell in line.strip("|").split(" | ")]
                for line in block.splitlines()
            ]
            assert all(len(row) == len(head) for row in rows)
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found
