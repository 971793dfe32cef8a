"""What the README says that its examples print."""

from __future__ import annotations

import pytest
from project.test_docs import ROOT, snippets


def test_what_the_examples_print(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "snippet"}
    for code in snippets(ROOT / "README.md"):
        exec(code, namespace)
    out = capsys.readouterr().out
    assert out.startswith("model rank = 10 of 250 parameters (Theorem 2.3)\n")
    lines = out.splitlines()
    assert "[5, 10, 10]" in lines
    assert any(line.startswith("recovered: ") for line in lines)
    assert lines[-1].startswith("rank 60 of a 60 x 82 matrix, ")
