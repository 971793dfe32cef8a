"""Targets of the operators' tests: the CPU, a GPU, and the CUDA kernels emulated on the CPU."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from llr.operators import _ops, _transforms

from .oracles import Net

EMULATED_NUMBERS = 300_000
"""Size of a result that the emulation computes in a fraction of a second."""
EMULATED_OPERATIONS = 2_000_000
"""The same for a decomposition, as long side times short side squared."""


@dataclass(frozen=True)
class Target:
    """Operators, and the device that their tensors are on."""

    name: str
    op: Any
    device: str

    def sized(self, net: Net) -> Net:
        """The net, with fewer samples if the emulation would be slow."""
        if self.name != "emulated" or net.numbers <= EMULATED_NUMBERS:
            return net
        return replace(net, n=max(2, net.n * EMULATED_NUMBERS // net.numbers))

    def spare(self, operations: int) -> None:
        """Skip a test of singular values if the emulation would be slow."""
        if self.name == "emulated" and operations > EMULATED_OPERATIONS:
            pytest.skip(f"{operations} operations are slow with the emulation")


CPU = Target("cpu", torch.ops.llr, "cpu")


def target(name: str) -> Target:
    """The target of this name, or a skipped test with the reason."""
    if name == "emulated":
        return Target(name, emulated(), "cpu")
    if name == "cuda":
        require_gpus()
        return Target(name, torch.ops.llr, "cuda")
    return CPU


@functools.cache
def emulated() -> Any:
    """The CUDA operators on tensors of the CPU, compiled from the same files as for a GPU."""
    if sys.platform != "linux" or not shutil.which(os.environ.get("CXX", "c++").split()[0]):
        pytest.skip("the emulation of CUDA needs Linux and a C++ compiler")
    build = importlib.import_module("cuda_on_cpu.build").build
    torch.ops.load_library(str(build(os.environ.get("LLR_EMULATION", "plain"))))
    for name in ("mlp_jacobian", "mlp_jacobian.out", "mlp_gram", "gram_add_", "svdvals"):
        torch.library.register_fake(f"llr_emulated::{name}", _transforms.FAKES[name])
    return torch.ops.llr_emulated


def require_gpus(count: int = 1) -> None:
    """Skip the test if there are fewer GPUs."""
    if _ops.CUDA_REASON:
        pytest.skip(f"no CUDA kernels: {_ops.CUDA_REASON}")
    if torch.cuda.device_count() < count:
        pytest.skip("no GPU" if count == 1 else f"fewer than {count} GPUs")
    reason = _ops.why_no_kernel(torch.device("cuda", count - 1))
    if reason:
        pytest.skip(reason)
