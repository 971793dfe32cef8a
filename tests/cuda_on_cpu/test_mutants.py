"""Every barrier of the kernels is needed, and the emulation reports where one is missing.

An unneeded barrier would cost time, or guard against an error that these tests do not detect. So each
barrier is removed in turn, in a separate process. A wrong result is not enough: the race must be reported
for any order of the threads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cuda_on_cpu import build, mutant

BARRIER = re.compile(r"\b__sync(threads|warp)\w*\(")
CAUGHT = ("ThreadSanitizer: data race", "emulated CUDA: ")

pytestmark = pytest.mark.slow


def barriers() -> list[tuple[str, int]]:
    """All barriers, as file and line."""
    found = []
    for path in sorted(build.CSRC.glob("*/cuda/*.cu*")):
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found += [(path.name, line)] * len(BARRIER.findall(text.split("//")[0]))
    return found


BARRIERS = barriers()


def run(file: str, line: int) -> subprocess.CompletedProcess[str]:
    command = build.sanitized(
        "tsan", sys.executable, "-m", "cuda_on_cpu.mutant", file, str(line), preload=True
    )
    settings = {
        "PYTHONPATH": f"{build.ROOT}:{build.HERE.parent}",
        "LLR_EMULATION": "tsan",
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **settings}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=environment
    )


Outcome = Callable[[str, int], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    """The outcome of a run. All runs are queued at once, and two run at a time."""
    if not build.available("tsan"):
        pytest.skip("needs Linux and a C++ compiler with ThreadSanitizer")
    build.build("tsan")
    with ThreadPoolExecutor(2) as pool:
        whole = [(file, 0) for file in mutant.RUN]
        futures = {which: pool.submit(run, *which) for which in [*whole, *BARRIERS]}
        yield lambda file, line: futures[file, line].result()
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("file", mutant.RUN)
def test_with_all_barriers_results_are_right(file: str, outcome: Outcome) -> None:
    done = outcome(file, 0)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stdout + done.stderr


@pytest.mark.parametrize(("file", "line"), BARRIERS)
def test_a_missing_barrier_is_caught(file: str, line: int, outcome: Outcome) -> None:
    done = outcome(file, line)
    output = done.stdout + done.stderr
    assert done.returncode != 3, f"no case of mutant.py reaches {file}:{line}"
    assert done.returncode != 0, f"{file}:{line} is not missed: it is superfluous, or a case is"
    assert any(report in output for report in CAUGHT), output


def test_barriers_are_one_to_a_line() -> None:
    assert BARRIERS
    assert len(set(BARRIERS)) == len(BARRIERS)
