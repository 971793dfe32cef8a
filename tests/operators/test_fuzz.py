"""Random calls of the operators: none ends the process, none hangs, every error is llr's.

LLR_RANDOM_CASES sets their number.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.oracles import TESTS

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

CASES = int(os.environ.get("LLR_RANDOM_CASES", "300"))
IN_A_PROCESS = 5000


def run(first: int, last: int) -> tuple[int, list[str]]:
    """The number of the first case that has not ended, and complaints."""
    command = [sys.executable, "-W", "ignore", "-m", "operators.fuzz", str(first), str(last)]
    # If memory is short, allocators must return an error, also under AddressSanitizer (sanitize.sh).
    sanitizer = f"allocator_may_return_null=1:{os.environ.get('ASAN_OPTIONS', '')}"
    settings = {"OMP_NUM_THREADS": "2", "ASAN_OPTIONS": sanitizer}
    ended = subprocess.run(
        command,
        cwd=TESTS,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in ended.stderr.splitlines() if line.startswith("complaint: ")]
    if ended.returncode == 0:
        return last, complaints
    begun = ended.stdout.split()
    assert begun, ended.stderr
    what = (
        f"complaint: {begun[-1]}: ended the process with {ended.returncode} (-14: it took too long)"
    )
    return int(begun[-1]) + 1, [*complaints, what, ended.stderr[-2000:]]


def test_random_calls():
    complaints, first = [], 0
    while first < CASES:
        first, more = run(first, min(CASES, first + IN_A_PROCESS))
        complaints += more
    assert not complaints, "\n".join(complaints)


def test_the_fuzzer_sees_a_call_that_ends_the_process(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); sys.argv = ['', '7', '9']\n"
        "import os\n"
        "from operators import fuzz\n"
        "fuzz.run_case = lambda number: os.abort() if number == 8 else None\n"
        "fuzz.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, str(planted)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -6
    assert ended.stdout.split() == ["7", "8"]
