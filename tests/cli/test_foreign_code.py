"""Models whose code prints, exits or parses arguments do not change our standard output and exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import llr

from .test_main import refusal, run

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

NET = """
import argparse, atexit, ctypes, os, subprocess, sys
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 2))
        {built}

    def forward(self, x):
        {forward}
        return super().forward(x)

{imported}
"""
LOUD = (
    "print('said')",
    "sys.__stdout__.write('said')",
    "os.write(1, b'said')",
    "ctypes.CDLL(None).printf(b'said')",
    "subprocess.run(['echo', 'said'], check=True)",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 3)))
    return tmp_path


def write(name: str, imported: str = "", built: str = "pass", forward: str = "pass") -> str:
    Path(f"{name}.py").write_text(NET.format(imported=imported, built=built, forward=forward))
    return f"{name}:Net"


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
    command = [sys.executable, "-m", "llr.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_json_is_pure_whatever_is_printed() -> None:
    loud, evaluated = "; ".join(LOUD), "; ".join(LOUD[:-1])
    spec = write("loud", loud, loud, evaluated)
    done = process("rank", spec, "--inputs", "x.npy", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rank"] == 8
    # Imported and built once each, and evaluated at least once.
    assert done.stderr.count("said") >= 2 * len(LOUD) + len(LOUD[:-1])


@pytest.mark.parametrize("command", ["model-rank", "reduce", "theory model"])
def test_other_commands(command: str) -> None:
    spec = write(
        f"loud_{command.replace(' ', '_').replace('-', '_')}", "print('said')", "print('said')"
    )
    result = run(*command.split(), spec, "--json", "-")
    assert json.loads(result.stdout)["model"] == spec
    assert "said" in result.stderr


def test_certificates() -> None:
    spec = write("loud_proof", "print('said')", "print('said')", "print('said')")
    output = run("certify", spec, "--inputs", "x.npy", "--out", "proof.json").stdout
    assert "said" not in output
    verdict = run("verify", "proof.json", spec, "--inputs", "x.npy")
    assert "\nholds: " in verdict.stdout
    assert "said" not in verdict.stdout


@pytest.mark.parametrize(
    "ending", ["sys.exit()", "sys.exit(0)", "sys.exit('done')", "raise SystemExit", "quit()"]
)
@pytest.mark.parametrize("stage", ["imported", "built", "forward"])
def test_the_end_of_the_program_is_an_error(ending: str, stage: str) -> None:
    name = f"ending_{stage}_{abs(hash(ending))}"
    text = refusal("rank", write(name, **{stage: ending}), "--inputs", "x.npy")
    assert "ended the program" in text
    if stage != "forward":
        assert '`if __name__ == "__main__":`' in text
        assert f"({name}.py, line" in text


def test_arguments_are_not_llrs() -> None:
    parse = "p = argparse.ArgumentParser(); p.add_argument('--lr', default=1); p.parse_args()"
    assert run("rank", write("parses", parse), "--inputs", "x.npy").stdout.startswith(
        "model  parses:Net"
    )
    parse = "p = argparse.ArgumentParser(); p.add_argument('data'); p.parse_args()"
    result = run("rank", write("needs_arguments", parse), "--inputs", "x.npy", code=2)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(
        "error: model 'needs_arguments:Net': importing"
    )


def test_what_it_raises_has_its_place() -> None:
    text = refusal("rank", write("raises", "open('/nowhere/data')"), "--inputs", "x.npy")
    assert "importing it raised FileNotFoundError" in text
    assert "(raises.py, line 14)" in text
    text = refusal("rank", write("raises_built", built="{}['a']"), "--inputs", "x.npy")
    assert "calling it without arguments raised KeyError: 'a' (raises_built.py, line 8)" in text


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process on Windows")
def test_ctrl_c_while_the_command_is_imported() -> None:
    """The command spends its first seconds with imports."""
    environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
    code = "import sys, llr_command; print('here', flush=True); sys.exit(llr_command.main())"
    command = [sys.executable, "-c", code, "info"]
    for delay in (0.05, 0.3, 0.6):
        with subprocess.Popen(
            command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == "here\n"
            time.sleep(delay)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate()
        assert (running.returncode, errors) == (130, "interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes")
def test_a_reader_that_goes_away() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
    command = [sys.executable, "-m", "llr.cli", "rank", "mlp:3-2", "--inputs", "x.npy"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
