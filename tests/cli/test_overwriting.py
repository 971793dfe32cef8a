"""No command overwrites a file that it reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from llr.cli import main as cli
from llr.cli.files import _CODE, _OUTPUTS
from llr.cli.main import COMMANDS

OWN = """
import torch
class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x):
        return torch.tanh(self.layer(x))
"""
SPEC = 'd = 1\nk = 1\nwidth = 1\nn = 4\nseed = 0\nstrategy = "lm"\n[options]\nstarts = 8\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with every kind of file that commands read."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((30, 3))
    np.save("x.npy", x)
    np.savetxt("d.csv", x, delimiter=",")
    np.savetxt("t.csv", x[:, :1], delimiter=",")
    Path("m.py").write_text(OWN)
    Path("package").mkdir()
    Path("package/__init__.py").write_text(OWN)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    safetensors.torch.save_file(
        {k: v.double() for k, v in net.state_dict().items()}, "w.safetensors"
    )
    os.symlink("d.csv", "link.csv")
    os.symlink(tmp_path, "folder")
    os.link("x.npy", "hard.npy")
    Path("s.toml").write_text(SPEC)
    Path("proof.json").write_text("{}")
    Path("results.csv").write_text("a store of results may have any name")
    Path("results.png").write_text("a store of results may have any name")
    return tmp_path


def refused(*arguments: str) -> str:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return result.stderr


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("recover d.csv --max-width 2 --json d.csv", "DATA"),
        ("recover link.csv --max-width 2 --json d.csv", "DATA"),
        ("recover d.csv --max-width 2 --json link.csv", "DATA"),
        ("recover d.csv --max-width 2 --json ./folder/d.csv", "DATA"),
        ("recover w.safetensors --key 0.weight --max-width 2 --out w.safetensors", "DATA"),
        ("rank mlp:3-2-1 --inputs x.npy --json x.npy", "--inputs"),
        ("rank mlp:3-2-1 --inputs hard.npy --json x.npy", "--inputs"),
        ("rank mlp:3-2-1 --inputs x.npy --weights w.safetensors --json w.safetensors", "--weights"),
        ("rank ./m.py:Own --inputs x.npy --json m.py", "MODEL"),
        ("rank m:Own --inputs x.npy --json m.py", "MODEL"),
        ("rank package:Own --inputs x.npy --json package/__init__.py", "MODEL"),
        ("model-rank mlp:3-2-1 --inputs x.npy --json x.npy", "--inputs"),
        ("embed mlp:3-2-1 --to 3-4-1 --weights w.safetensors --out w.safetensors", "--weights"),
        ("embed mlp:3-2-1 --to 3-4-1 --check --targets t.csv --json t.csv", "--targets"),
        ("reduce mlp:3-2-1 --weights w.safetensors --out w.safetensors", "--weights"),
        ("theory model m.py:Own --json m.py", "MODEL"),
        ("certify mlp:3-2-1 --inputs x.npy --out x.npy", "--inputs"),
        ("verify proof.json mlp:3-2-1 --inputs x.npy --json proof.json", "CERTIFICATE"),
        ("sweep run s.toml --out s.toml", "SPEC"),
        ("sweep run s.toml --runner m.py:cell --out m.py", "--runner"),
        ("sweep export results.csv results.csv", "FILE"),
        ("sweep plot results.png results.png", "FILE"),
    ],
)
def test_an_input_is_not_overwritten(command: str, read: str) -> None:
    assert f"would overwrite {read}, which the command reads" in refused(*command.split())


def test_a_spec_that_is_named_like_its_results() -> None:
    os.rename("s.toml", "s.sqlite")
    assert "would overwrite SPEC" in refused("sweep", "run", "s.sqlite")


def test_standard_input_is_a_file() -> None:
    before = Path("d.csv").read_bytes()
    with open("d.csv") as data:
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "llr.cli",
                *["recover", "-", "--max-width", "2", "--json", "d.csv"],
            ],
            stdin=data,
            capture_output=True,
            text=True,
        )
    assert result.returncode == 2
    assert "would overwrite DATA" in result.stderr
    assert Path("d.csv").read_bytes() == before


def test_other_files_are_written() -> None:
    for _ in range(2):  # the second time over its own output
        result = CliRunner().invoke(
            cli.main,
            ["rank", "m.py:Own", "--inputs", "x.npy", "--json", "out.json"],
            catch_exceptions=False,
        )
        assert result.exit_code == 0, result.output
    assert Path("m.py").read_text() == OWN


def test_every_parameter_that_names_a_file_or_code_is_known() -> None:
    """A new option is an output by its name, or an input by its type."""
    context, files = click.Context(cli.main), set()

    def look(command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                look(command.get_command(context, name))
        for parameter in command.params:
            if isinstance(parameter.type, click.Path) or parameter.metavar in (
                "FILE",
                "MODULE:CALLABLE",
            ):
                files.add(parameter.name)

    for name in COMMANDS:
        look(cli.main.get_command(context, name))
    reads = {"data", "inputs", "weights", "targets", "certificate", "spec", "file"}
    assert files == {*_OUTPUTS, "runner"} | reads
    assert "runner" in _CODE
