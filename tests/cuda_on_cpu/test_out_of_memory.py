"""State of the operators' arguments after memory for a result or for scratch could not be allocated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.oracles import Net, draw

F64 = torch.float64
WIDE = Net((40, 150, 2), 20)  # in pieces: its signals take 20 x 640 doubles


@pytest.fixture
def short(emulated: Any) -> Iterator[Any]:
    """Operators on a device that cannot allocate tensors above 64 KiB."""
    emulated.limit_memory(64 << 10)
    yield emulated
    emulated.limit_memory(2**63 - 1)


def test_out_is_untouched(short):
    tensors = draw(WIDE)
    out = torch.full((20, 2, WIDE.parameters), 12345.0, dtype=F64)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory: 102416 bytes"):
        short.mlp_jacobian.out(*tensors, "tanh", out=out)
    assert short.statistics()[2] == 0
    assert (out == 12345.0).all()
    # For a strided `out`, a separate result is allocated, and this fails.
    memory = torch.full((20, 2, 2 * WIDE.parameters), 12345.0, dtype=F64)
    with pytest.raises(torch.OutOfMemoryError):
        short.mlp_jacobian.out(*tensors, "tanh", out=memory[..., ::2])
    assert (memory == 12345.0).all()
    short.limit_memory(2**63 - 1)
    short.mlp_jacobian.out(*tensors, "tanh", out=out)
    assert not (out == 12345.0).any()


def test_nothing_is_launched(short):
    tensors = draw(WIDE)
    for call in (
        lambda: short.mlp_jacobian(*tensors, "tanh"),
        lambda: short.mlp_gram(*tensors, "tanh"),
        lambda: short.svdvals(torch.ones(9000, 3, 40, dtype=F64)),
    ):
        with pytest.raises(torch.OutOfMemoryError):
            call()
        assert short.statistics()[2] == 0
