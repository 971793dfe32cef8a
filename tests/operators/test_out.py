"""mlp_jacobian with out=: writes the whole result and nothing else. Needs torch, numpy and pytest only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.oracles import Net, draw, name, run_python
from torch import Tensor

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64, F32 = torch.float64, torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])

GUARD = 64


def guarded(
    shape: Sequence[int], misalignment: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """A view of this shape, `misalignment` numbers after an aligned address, and the memory around it."""
    count = torch.Size(shape).numel()
    memory = torch.full((count + 2 * GUARD + 16,), 12345.0, dtype=dtype, device=device)
    aligned = -(memory.data_ptr() // memory.element_size()) % 16
    start = aligned + GUARD + misalignment
    return memory[start : start + count].view(*shape), memory


OUT_NETS = [
    Net((3, 6, 2), 5),
    Net((5, 64, 1), 3000),
    Net((2, 7, 3), 7000, biases=False),
    Net((2100, 3, 2), 90),
    Net((33, 190, 3), 70, biases=(True, False)),
    Net((2, 20, 1), 900, points=13),
]


@both_dtypes
@pytest.mark.parametrize("misalignment", range(9))
@pytest.mark.parametrize("net", OUT_NETS, ids=name)
def test_out_writes_its_memory_and_no_other(net, misalignment, dtype, target):
    tensors = draw(target.sized(net), dtype, target.device)
    expected = target.op.mlp_jacobian(*tensors, "tanh")
    view, memory = guarded(expected.shape, misalignment, dtype, target.device)
    assert target.op.mlp_jacobian.out(*tensors, "tanh", out=view) is None
    assert torch.equal(view, expected)
    view.fill_(12345.0)
    assert (memory == 12345.0).all()


@both_dtypes
@pytest.mark.parametrize("net", [Net((3, 6, 2), 5), Net((5, 64, 1), 1500)], ids=name)
def test_out_that_is_not_contiguous(net, dtype, target):
    tensors = draw(net, dtype, target.device)
    expected = target.op.mlp_jacobian(*tensors, "tanh")
    n, q, count = expected.shape
    memory = torch.full((n, q + 2, 2 * count + 1), 12345.0, dtype=dtype, device=target.device)
    view = memory[:, 1:-1, 1::2]
    target.op.mlp_jacobian.out(*tensors, "tanh", out=view)
    assert torch.equal(view, expected)
    view.fill_(12345.0)
    assert (memory == 12345.0).all()


def test_out_between_two_numbers():
    # Memory from a file or another library may not be aligned to 8 bytes.
    run = run_python(
        """
import torch
from llr.operators import _ops
from helpers.oracles import Net, draw
tensors = draw(Net((3, 64, 1), 3000))
expected = torch.ops.llr.mlp_jacobian(*tensors, "tanh")
memory = bytearray(expected.numel() * 8 + 64)
for offset in (1, 4, 7):
    out = torch.frombuffer(memory, dtype=torch.float64, count=expected.numel(), offset=offset)
    try:
        torch.ops.llr.mlp_jacobian.out(*tensors, "tanh", out=out.view(expected.shape))
    except RuntimeError as error:
        assert "mlp_jacobian" in str(error), error
    else:
        assert torch.equal(out, expected.flatten()), offset
"""
    )
    assert run.returncode == 0, run.stderr


def test_out_lazily_negated():
    run = run_python(
        """
import torch
from llr.operators import _ops
from helpers.oracles import Net, draw
tensors = draw(Net((3, 4, 1)))
expected = torch.ops.llr.mlp_jacobian(*tensors, "tanh")
out = torch.zeros(expected.shape, dtype=torch.complex128).conj().imag
for _ in range(3):
    try:
        torch.ops.llr.mlp_jacobian.out(*tensors, "tanh", out=out)
    except RuntimeError:
        continue
    assert torch.equal(out, expected)
"""
    )
    assert run.returncode == 0, run.stderr


def test_out_tells_autograd_that_it_changed(target):
    tensors = draw(Net((3, 4, 1)), F64, target.device)
    out = torch.ones(5, 1, 21, dtype=F64, device=target.device)
    scale = torch.ones((), dtype=F64, device=target.device, requires_grad=True)
    product = out * scale
    target.op.mlp_jacobian.out(*tensors, "tanh", out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
