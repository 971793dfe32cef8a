"""The command speaks of commands and options, in whole sentences; all commands that compute write JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import llr
from llr.cli import main as cli

ODD = """
import torch
class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x):
        return torch.tanh(self.layer(x)) * x.sum(1, keepdim=True)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.py").write_text(ODD)
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.standard_normal((20, 3)))
    np.savetxt("d.csv", rng.standard_normal((20, 3)), delimiter=",")


def run(command: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, command.split())
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("command", "code", "expected"),
    [
        ("embed mlp:1-4-1 --to 1-3-1", 2, "--to has 3 neurons in layer 0"),
        ("embed mlp:1-4-1 --to 1-3-1", 2, "`llr reduce` makes a network narrower"),
        ("embed mlp:1-4-1 --to foo", 2, "--to 'foo': expected at least two positive widths"),
        ("theory mlp 1-2-1 --target foo", 2, "--target 'foo': expected"),
        ("theory linear foo", 2, "WIDTHS 'foo': expected"),
        ("rank mlp:foo-1 --inputs x.npy", 2, "model 'mlp:foo-1': expected"),
        ("theory model odd.py:Odd", 2, "`llr model-rank` finds the rank"),
        ("reduce odd.py:Odd", 2, "`llr model-rank` finds the rank"),
        (
            "certify odd.py:Odd --inputs x.npy --out c.json",
            2,
            "take `llr rank --method svd`, which",
        ),
        ("rank odd.py:Odd --inputs x.npy --method certified", 2, "take --method svd, which"),
        ("recover d.csv --max-width 1 --starts 20", 1, "a larger --max-width"),
        ("recover d.csv --max-width 9 --starts 8", 1, "(widths tried: 1, 5, of 1 to 9)"),
        ("recover d.csv --max-width 9 --seconds 0.0001", 1, "(widths tried: 1, of 1 to 9)"),
        (
            "recover d.csv --max-width 1 --starts 20 --noise-std 0.001",
            1,
            "a value of --noise-std that is",
        ),
    ],
)
def test_messages_use_the_words_of_the_command(command: str, code: int, expected: str) -> None:
    output = run(command, code).output
    assert expected in output
    assert not re.search(
        r"llr\.(embedding|exact|model_rank|theory|recovery)|\w=|max_width|noise_std", output
    )


def test_constant_neurons_lead_to_the_option() -> None:
    x = np.random.default_rng(1).standard_normal((40, 1))
    np.savetxt(
        "b.csv", np.hstack([x, 0.7 * np.tanh(1.3 * x - 0.4) + 0.5]), delimiter=",", fmt="%.17g"
    )
    output = run("recover b.csv --max-width 3 --starts 5000", 3).output
    assert "try: --output-bias, since a neuron of the fit is constant" in output
    assert "recovered" in run("recover b.csv --max-width 3 --starts 5000 --output-bias").output


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("rnak", "rank"),
        ("recovr", "recover"),
        ("theory two-lyer", "two-layer"),
        ("sweep staus", "status"),
    ],
)
def test_a_command_that_was_meant(command: str, meant: str) -> None:
    name = command.split()[-1]
    assert f"No such command '{name}'; did you mean {meant}" in run(command, 2).stderr
    assert "did you mean" not in run("zzzzzz", 2).stderr


def test_json_of_verify_info_and_selftest() -> None:
    run("certify mlp:3-2-1 --inputs x.npy --out c.json")
    found = json.loads(run("verify c.json mlp:3-2-1 --inputs x.npy --json -").stdout)
    assert (found["valid"], found["checked"], found["certificate"]) == (True, True, "c.json")
    assert found["model"] == "mlp:3-2-1"
    run("verify c.json mlp:3-2-1 --inputs x.npy --seed 1 --json v.json", 1)
    assert json.loads(Path("v.json").read_text())["valid"] is False
    assert json.loads(run("info --json -").stdout)["llr"] == llr.__version__
    tested = json.loads(run("selftest --device cpu --json -").stdout)
    assert tested["ok"] is True
    assert tested["checks"]


def test_verify_prints_the_model_first() -> None:
    run("certify mlp:3-2-1 --inputs x.npy --out c.json")
    lines = run("verify c.json mlp:3-2-1 --inputs x.npy").stdout.splitlines()
    assert lines[0].startswith("model  mlp:3-2-1")
    assert lines[1].startswith("holds: ")


def test_one_output() -> None:
    assert "20 samples x 1 output x 11 parameters" in run("rank mlp:3-2-1 --inputs x.npy").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process on Windows")
@pytest.mark.parametrize(("when", "status"), [("during", 130), ("before", 0)])
def test_ctrl_c_while_python_ends(when: str, status: int) -> None:
    """What the command registers for the end can be interrupted; what comes later is not killed."""
    code = f"""
import atexit, sys, time, llr_command, llr.cli.main as module
def late():
    print("here", flush=True)
    time.sleep(1)
real = module.main
def command():
    if {when!r} == "during":
        atexit.register(late)
    real()
if {when!r} == "before":
    atexit.register(late)
module.main = command
sys.argv = ["llr", "--version"]
sys.exit(llr_command.main())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], text=True, env=environment, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()  # the version
        assert running.stdout.readline() == "here\n"
        running.send_signal(signal.SIGINT)
        running.communicate()
    assert running.returncode == status
