"""``llr recover`` and the commands of sweeps, ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import llr.recovery
from llr.cli import sweep as sweep_cli

from .test_main import run

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no signals to a process on Windows"
)

FOREVER = ("--max-width", 3, "--starts", 10**9)


@pytest.fixture(autouse=True)
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that no network found fits."""
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", np.random.default_rng(0).standard_normal((60, 3)))


def ctrl_c(*seconds: float) -> None:
    for each in seconds:
        threading.Timer(each, os.kill, (os.getpid(), signal.SIGINT)).start()


class TestRecover:
    def test_the_best_fit_is_kept(self) -> None:
        ctrl_c(0.5)
        result = run(
            "recover",
            "data.npy",
            *FOREVER,
            "--out",
            "net.safetensors",
            "--json",
            "r.json",
            code=130,
        )
        assert result.stderr == "interrupted\n"
        assert result.stdout.startswith("not found")
        assert "was interrupted" in result.stdout
        assert "a larger budget" not in result.stdout
        written = json.loads(Path("r.json").read_text())
        assert 0 < written["starts"] < 10**9
        assert load_file("net.safetensors")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_second_one_ends_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: object, **__: object) -> None:
            ctrl_c(0.1, 0.3)
            threading.Event().wait(60)
            raise AssertionError

        monkeypatch.setattr("llr.recovery.recover", never)
        result = run("recover", "data.npy", *FOREVER, "--json", "r.json", code=130)
        assert (result.stdout, result.stderr) == ("", "interrupted\n")
        assert not Path("r.json").exists()


class TestProgress:
    def test_true_ends_the_search(self) -> None:
        table = torch.from_numpy(np.load("data.npy"))
        told: list[int] = []

        def report(starts: int, _: float) -> bool:
            told.append(starts)
            return len(told) == 3

        found = llr.recovery.recover(
            table[:, :2], table[:, 2:], max_width=3, budget=10**9, progress=report
        )
        assert found.starts == told[-1]
        assert len(told) == 3
        assert found.status == "not_found"
        assert "The search was interrupted" in found.claim

    @pytest.mark.parametrize("noise_std", [None, 0.1])
    def test_no_time_is_one_round(self, noise_std: float | None) -> None:
        table = torch.from_numpy(np.load("data.npy"))
        budget = llr.recovery.Budget(None, 1e-9)
        found = llr.recovery.recover(
            table[:, :2], table[:, 2:], max_width=3, budget=budget, noise_std=noise_std
        )
        assert found.status == "not_found"
        assert 0 < found.starts < 100

    def test_other_values_do_not(self) -> None:
        table = torch.from_numpy(np.load("data.npy"))
        found = llr.recovery.recover(
            table[:, :2], table[:, 2:], max_width=1, budget=200, progress=lambda *_: 1
        )
        assert found.starts == 200


@pytest.mark.parametrize("command", ["sweep", "reproduce"])
def test_a_sweep_says_that_it_goes_on(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    Path("spec.toml").write_text(sweep_cli.EXAMPLE)
    if command == "sweep":
        monkeypatch.setattr(sweep_cli, "run_sweep", interrupted)
        result = run("sweep", "spec.toml", code=130)
    else:
        monkeypatch.setattr("llr.recovery.reproduce", interrupted)
        result = run("reproduce", "linear", code=130)
    assert result.stderr == (
        "finished cells are kept; the same command continues from there\ninterrupted\n"
    )


def test_data_that_do_not_decide(tmp_path: Path) -> None:
    """With fewer samples than parameters, there is no definite answer: exit code 3."""
    x = np.linspace(-1, 1, 3)[:, None]
    np.save(tmp_path / "few.npy", np.hstack((x, np.tanh(2 * x + 1))))
    arguments = ("--max-width", 2, "--starts", 200, "--json", tmp_path / "r.json")
    run("recover", tmp_path / "few.npy", *arguments, code=3)
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "ambiguous"
