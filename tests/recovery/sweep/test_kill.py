"""kill -9 at random moments: nothing is lost, nothing finished is repeated, the table is the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import sweep_cases
from helpers.sweep_cases import (
    ENVIRONMENT,
    TORCHRUN,
    columns,
    finished,
    grid,
    ranks,
    settled,
    start,
    toml,
    undisturbed,
)

from llr.recovery.sweep import Spec, read_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning"),
    pytest.mark.slow,
]

KILLS = min(10, int(os.environ.get("LLR_RANDOM_CASES", "4")))
"""With more kills, the cells would finish before the last one."""
LIMIT = 120.0


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.sqlite"


def write_spec(folder: Path, cells: int) -> Path:
    path = folder / "spec.toml"
    path.write_text(toml(cells))
    return path


def environment(folder: Path, sleep: float) -> dict[str, str]:
    return {**ENVIRONMENT, "CALLS": str(folder / "calls"), "SLEEP": str(sleep)}


def wait_for(condition: Any, process: Any = None) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "it ended before it was killed"
        time.sleep(0.03)


def computed_by(path: Path) -> set[str]:
    if not settled(path):
        return set()
    with read_store(path) as store:
        return {row.outcome.worker for row in store.rows() if row.outcome}


def begun(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_one_process(tmp_path: Path, out: Path) -> None:
    cells = 60
    spec = write_spec(tmp_path, cells)
    dice = random.Random(1)
    seen: list[int] = []
    before: set[str] = set()
    for number in range(KILLS):
        marks = len(begun(tmp_path))
        with start(
            "run",
            spec,
            "--out",
            out,
            "--runner",
            "helpers.sweep_cases:counted",
            env=environment(tmp_path, 0.02),
        ) as process:
            # From the moment when it may write, so that the first kills happen while the file is made.
            wait_for(lambda process=process: is_locked_by(process, out), process)
            if (
                number >= KILLS // 2
            ):  # on a busy machine the first cell may take longer than the sleep
                wait_for(lambda marks=marks: len(begun(tmp_path)) > marks + 1, process)
            time.sleep(dice.uniform(0, 0.02 + 0.02 * number))
            assert process.poll() is None
            process.kill()
        after = settled(out)
        assert before <= after
        again = [keys_of(line, spec) for line in begun(tmp_path)[marks:]]
        assert not before.intersection(again)
        seen.append(len(after))
        before = after
    assert 0 < seen[-1] < cells
    with start("run", spec, "--out", out, env=environment(tmp_path, 0.02)) as process:
        assert process.wait(LIMIT) == 0
    assert columns(out) == undisturbed(Spec.read(spec), tmp_path)
    repeated = sweep_cases.calls(tmp_path / "calls")
    assert len(repeated) == cells
    assert sum(repeated.values()) <= cells + KILLS  # plus the cell that ran at each kill


def is_locked_by(process: Any, out: Path) -> bool:
    lock = out.with_name(out.name + ".lock")
    return lock.exists() and lock.read_text().startswith(f"process {process.pid} ")


def keys_of(line: str, spec: Path) -> str:
    values = tuple(sweep_cases.json.loads(line)[1:])
    (key,) = [c.key for c in Spec.read(spec).cells if tuple(c.values.values()) == values]
    return key


def workers_of(process: Any) -> list[psutil.Process]:
    """The running processes that compute or write, without torchrun itself."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "llr.recovery.sweep" in child.cmdline():
                found.append(child)
    return found


def test_jobs(tmp_path: Path, out: Path) -> None:
    """Processes of `--jobs` are replaced when they die."""
    cells = 80
    spec = write_spec(tmp_path, cells)
    arguments = ("run", spec, "--out", out, "--runner", "helpers.sweep_cases:counted", "--jobs", 2)
    with start(*arguments, env=environment(tmp_path, 0.1)) as process:
        for _ in range(3):
            target = finished(out) + 2
            wait_for(lambda target=target: finished(out) >= target, process)
            victims = [w for w in workers_of(process) if "worker" in w.cmdline()]
            victims[0].kill()
        assert process.wait(LIMIT) == 0
    assert columns(out) == undisturbed(Spec.read(spec), tmp_path)
    assert sum(sweep_cases.calls(tmp_path / "calls").values()) <= cells + 3


def test_jobs_do_not_outlive_their_parent(tmp_path: Path, out: Path) -> None:
    spec = write_spec(tmp_path, 40)
    arguments = ("run", spec, "--out", out, "--runner", "helpers.sweep_cases:counted", "--jobs", 2)
    with start(*arguments, env=environment(tmp_path, 0.1)) as process:
        wait_for(lambda: finished(out) >= 2, process)
        children = workers_of(process)
        process.kill()
    assert children
    wait_for(lambda: not any(c.is_running() and c.status() != "zombie" for c in children))
    with start("run", spec, "--out", out, env=environment(tmp_path, 0.1)) as process:
        assert process.wait(LIMIT) == 0
    assert columns(out) == undisturbed(Spec.read(spec), tmp_path)


def kind_of(worker: psutil.Process) -> str:
    """The role of a process among the three of a group of two ranks."""
    return "own" if "worker" in worker.cmdline() else f"rank {worker.environ()['RANK']}"


def test_torchrun(tmp_path: Path, out: Path) -> None:
    """Kill each process in turn, at random moments; torchrun restarts the group when a rank dies."""
    cells = 100
    spec = write_spec(tmp_path, cells)
    dice = random.Random(2)
    launcher = (
        *TORCHRUN,
        "--max-restarts",
        str(KILLS),
        "--monitor-interval",
        "0.05",
        "--standalone",
    )
    arguments = ("run", spec, "--out", out, "--runner", "helpers.sweep_cases:counted", "--lease", 3)
    killed: list[str] = []
    with start(*arguments, launcher=launcher, env=environment(tmp_path, 0.1)) as process:
        while len(killed) < KILLS:
            target = len(begun(tmp_path)) + 1
            wait_for(lambda target=target: len(begun(tmp_path)) >= target, process)
            time.sleep(dice.uniform(0, 0.3))
            wanted = ("rank 1", "own", "rank 1", "rank 0")[len(killed) % 4]
            with contextlib.suppress(psutil.NoSuchProcess):  # the group may just be restarting
                for worker in workers_of(process):
                    if kind_of(worker) == wanted:
                        worker.kill()
                        killed.append(wanted)
        assert process.wait(LIMIT) == 0
    assert columns(out) == undisturbed(Spec.read(spec), tmp_path)
    # At a kill, two cells are running and up to two wait to be written.
    assert sum(sweep_cases.calls(tmp_path / "calls").values()) <= cells + 4 * KILLS


def test_torchrun_that_does_not_restart(tmp_path: Path, out: Path) -> None:
    """torchrun's default: the death of one rank ends all; the same command continues from the file."""
    cells = 40
    spec = write_spec(tmp_path, cells)
    arguments = ("run", spec, "--out", out, "--runner", "helpers.sweep_cases:counted", "--lease", 3)
    more: Any = {"launcher": (*TORCHRUN, "--standalone"), "env": environment(tmp_path, 0.1)}
    with start(*arguments, stderr=subprocess.DEVNULL, **more) as process:
        wait_for(lambda: finished(out) >= 4, process)
        (victim,) = [w for w in workers_of(process) if kind_of(w) == "rank 1"]
        victim.kill()
        assert process.wait(LIMIT) != 0
    before = settled(out)
    marks = len(begun(tmp_path))
    assert 4 <= len(before) < cells
    with start(*arguments, **more) as process:
        assert process.wait(LIMIT) == 0
    again = {keys_of(line, spec) for line in begun(tmp_path)[marks:]}
    assert again == {cell.key for cell in Spec.read(spec).cells} - before
    assert columns(out) == undisturbed(Spec.read(spec), tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_machine_that_vanishes(tmp_path: Path, out: Path, how: signal.Signals) -> None:
    """Without restarts; a machine that only stops responding also counts as dead."""
    cells = 60
    spec = write_spec(tmp_path, cells)
    arguments = ("run", spec, "--out", out, "--runner", "helpers.sweep_cases:counted", "--lease", 2)
    first, second = ranks(2, sleep=0.1)
    with (
        start(*arguments, env=first) as process,
        start(*arguments, env=second, stderr=subprocess.DEVNULL) as other,
    ):
        wait_for(lambda: any("rank 1" in worker for worker in computed_by(out)), process)
        other.send_signal(how)
        assert process.wait(LIMIT) == 0
        other.kill()
    assert columns(out) == undisturbed(Spec.read(spec), tmp_path)


def test_grid_is_that_of_the_file(tmp_path: Path) -> None:
    """The specs of these tests are the same as in the other test files."""
    spec = Spec.read(write_spec(tmp_path, 8))
    assert spec == grid(8)
