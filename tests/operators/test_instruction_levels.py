"""The operators' numbers with every level of vector instructions that this processor has.

The level is chosen when the library is loaded, so each level has a separate process. The level of this
process is tested by the test files themselves.
"""

from __future__ import annotations

import os

import pytest
import torch
from helpers.oracles import TESTS, run_python

from llr.operators import _ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON),
]

# Higher levels first: a processor that has a level has all lower ones.
LEVELS = {"AVX512": ("baseline", "avx2", "avx512"), "AVX2": ("baseline", "avx2")}

# An expression for -k: tests of numbers, without those that do not reach the kernels.
CHOSEN = {
    "operators/test_activation.py": "",
    "linalg/test_error_bound.py": "random_networks or norms or kinks or infinite",
    "operators/test_jacobian.py": "every or biases or points or any_shape or large or layouts or columns_",
    "operators/test_gram.py": "not threads and not bad and not opcheck",
    "operators/test_gram_factor.py": "not without and not opcheck",
    "operators/test_lm.py": "not threads",
    "operators/test_out.py": "out_writes",
    "operators/test_svdvals.py": "not (threads or first_of_all or bad_ or opcheck or without)",
}

RUN = f"""
import sys, pytest
from llr.operators import _ops
assert _ops.build_info()["simd_running"] == sys.argv[1], _ops.build_info()
for file, chosen in {CHOSEN}.items():
    code = pytest.main([
        f"{TESTS}/{{file}}", "-k", chosen, "-m", "not slow and not cuda and not emulated",
        "-q", "-p", "no:cacheprovider", "--capture=sys", *sys.argv[2:],
    ])
    if code:
        sys.exit(code)
"""


@pytest.mark.parametrize("level", LEVELS["AVX512"])
def test_every_instruction_level(level: str) -> None:
    info = _ops.build_info()
    assert info is not None
    if level not in info["simd_compiled"].split():
        pytest.skip(f"this build has no {level}")
    if level not in LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        pytest.skip(f"this processor has no {level}")
    if level == info["simd_running"]:
        pytest.skip("the level of this very run")
    cases = os.environ.get("LLR_RANDOM_CASES", "8")
    run = run_python(
        f"import sys; sys.argv[1:] = [{level!r}]{RUN}", LLR_SIMD=level, LLR_RANDOM_CASES=cases
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
