"""The CUDA operators on the CPU, as torch.ops.llr_emulated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import targets

ORDERS = {"forward": (0, 0), "reverse": (1, 0), "random": (2, 1)}
SHARED_LIMIT, MULTIPROCESSORS = 163 * 1024, 108  # as for sm_80

# Sanitizers report the same errors in every order, except for some races between blocks, which need random
# orders.
PLAIN = os.environ.get("LLR_EMULATION", "plain") == "plain"


@pytest.fixture(params=ORDERS if PLAIN else ["random"])
def emulated(request: pytest.FixtureRequest) -> Iterator[Any]:
    """torch.ops.llr_emulated, in every order of threads and blocks."""
    operators = targets.target("emulated").op
    operators.emulate(*ORDERS[request.param], SHARED_LIMIT, MULTIPROCESSORS)
    operators.reset_statistics()
    yield operators
    operators.emulate(*ORDERS["forward"], SHARED_LIMIT, MULTIPROCESSORS)
