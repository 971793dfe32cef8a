"""The commands of docs/shell.md run, in its order, with its files."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from cli.test_main import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "shell.md"

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(
        sys.modules, "models", raising=False
    )  # the tests have a module of that name
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    text = PAGE.read_text(encoding="utf-8")
    [setup] = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    exec(compile(setup, "shell.md", "exec"), {})
    commands = re.findall(r"^llr (.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        arguments = shlex.split(command)
        output = run(*arguments).output
        if arguments[0] == "rank":
            assert re.search(r"^rank \d+", output, flags=re.MULTILINE), command
        if "mlp:3-4-1" in arguments and "--weights" not in arguments:
            assert "RANDOM weights (seed 0)" in output
    monkeypatch.delitem(sys.modules, "models")
