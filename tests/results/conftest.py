"""The results that the tests look at, each made once."""

from __future__ import annotations

from typing import Any

import pytest

from .makers import ALL


class _Made(dict[str, Any]):
    """Results by name, each made once."""

    def __missing__(self, name: str) -> Any:
        self[name] = ALL[name]()
        return self[name]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return _Made()
