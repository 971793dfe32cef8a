"""Tensors in CPU memory that claim to be on a GPU, so that llr's Python code runs as on a GPU.

Operations that mix such tensors with CPU tensors fail, as with CUDA. torch computes on the CPU; so do the
operators of torch.ops.llr, or other operators that are given in place of the CUDA kernels.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from llr.inputs import gate, warned
from llr.operators import _ops

GPU = torch.device("cuda", 0)
NAME = "Stand-in GPU"
HOST = torch.device("cpu")

# Functions that make the CPU wait for the GPU.
_WAITS = {
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero),
    *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__),
}
_CROSSING = {Tensor.to, Tensor.cpu, Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__}


class OnGPU(Tensor):
    """A tensor that claims to be on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda _: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Calls(TorchFunctionMode):
    """Intercepts every call of torch, checks the devices, and gives results the right device."""

    def __init__(self, operators: Any) -> None:
        super().__init__()
        self.operators = operators
        self.operators_called: list[str] = []
        """Names of llr's operators that were called on the GPU."""
        self.waits = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        here = any(isinstance(t, OnGPU) for t in tensors)
        if here and func not in _CROSSING:
            _check_one_device(func, tensors)
        if here and getattr(func, "namespace", "") == "llr":
            self.operators_called.append(func._opname)
            func = getattr(getattr(self.operators, func._opname), func._overloadname)
        self.waits += here and func in _WAITS
        target = _target(func, args, leaves, here)
        result = func(*tree_map(_for_host, args), **tree_map(_for_host, kwargs))
        if target == HOST and func in (Tensor.to, Tensor.cpu):
            return result.as_subclass(Tensor)
        if target == HOST or func is Tensor.as_subclass:
            return result
        return tree_map(lambda v: v.as_subclass(OnGPU) if type(v) is Tensor else v, result)


def _check_one_device(func: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
    # Inside a transform, the wrapped tensor is hidden. Tensors without dimensions may be on any device.
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
        return
    if any(not isinstance(t, OnGPU) and t.dim() > 0 for t in tensors):
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found at least two devices, "
            "cuda:0 and cpu"
        )


def _target(
    func: Callable[..., Any], args: Sequence[Any], leaves: Sequence[Any], here: bool
) -> torch.device:
    """The device of the result."""
    if func in (Tensor.copy_, Tensor.__setitem__):
        return args[0].device
    if func is Tensor.cpu:
        return HOST
    asked = [leaf for leaf in leaves if _is_device(leaf)]
    if asked:
        return torch.device(asked[-1])
    return GPU if here else HOST


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")
    )


def _for_host(value: Any) -> Any:
    return HOST if _is_device(value) else value


def on_gpu(value: Any) -> Any:
    """Move a tensor, or a copy of a module, to the stand-in."""
    if isinstance(value, nn.Module):
        module = copy.deepcopy(value)
        for part in module.modules():
            for name, p in part._parameters.items():
                if p is not None:
                    moved = nn.Parameter(p.detach().as_subclass(OnGPU), p.requires_grad)
                    part._parameters[name] = moved
            for name, b in part._buffers.items():
                part._buffers[name] = None if b is None else b.as_subclass(OnGPU)
        return module
    return value.detach().clone().as_subclass(OnGPU)


@contextlib.contextmanager
def stand_in(
    monkeypatch: pytest.MonkeyPatch,
    *,
    operators: Any = None,
    archs: str = "8.0 9.0 12.0+PTX",
    capability: tuple[int, int] = (9, 0),
    cuda_reason: str = "",
) -> Iterator[Calls]:
    """Make llr see one GPU, and a library with CUDA kernels for these architectures.

    Args:
        operators: called in place of the CUDA kernels; default: torch.ops.llr.
        archs: architectures of the library.
        capability: capability of the GPU.
        cuda_reason: why the library has no CUDA kernels, if it has none.
    """
    build = {**(_ops.build_info() or {}), "cuda_archs": "" if cuda_reason else archs}
    state = torch.get_rng_state()
    for owner, name, value in [
        (_ops, "CUDA_REASON", cuda_reason),
        (_ops, "build_info", lambda: build if _ops.NATIVE else None),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "get_device_capability", lambda _=None: capability),
        (torch.cuda, "get_device_name", lambda _=None: NAME),
        (torch.cuda, "mem_get_info", lambda _=None: (psutil.virtual_memory().available, 2**60)),
        (torch.cuda, "get_rng_state", lambda _=None: state),
        (torch.cuda, "set_rng_state", lambda *_: None),
        # The tensors and the mode only simulate devices; torch computes the values.
        (gate, "_TENSORS", (*gate._TENSORS, OnGPU)),
        (gate, "_OURS", (*gate._OURS, __name__.split(".")[0])),
    ]:
        monkeypatch.setattr(owner, name, value)
    forget()
    try:
        with Calls(torch.ops.llr if operators is None else operators) as calls:
            yield calls
    finally:
        forget()


def forget() -> None:
    """Clear llr's caches about devices and given warnings."""
    _ops._why_not_on_gpu.cache_clear()
    warned._warn_once.cache_clear()
