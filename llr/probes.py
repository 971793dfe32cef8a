"""Refuses models that have no per-sample Jacobian: random ones, stateful ones, ones that mix samples.

Nothing of this is needed on the native path, which computes from the weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from llr.reference import output_leaves

Evaluate = Callable[[Mapping[str, Tensor], Tensor], object]
"""f(buffers, x): the model at its parameters, with these buffers."""

_EVAL = "call model.eval() first"


def refuse_layers(model: nn.Module) -> None:
    """Refuse what can be told from the layers alone.

    Raises:
        ValueError: batch statistics in use, or active dropout; names the layer.
    """
    for name, module in model.named_modules():
        label = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training:
                raise ValueError(
                    f"{label} is in training mode, where samples interact and there is no per-sample "
                    f"Jacobian; {_EVAL}"
                )
            if module.running_mean is None:
                raise ValueError(
                    f"{label} has no running statistics, so that samples interact even in evaluation "
                    "mode and there is no per-sample Jacobian; build it with track_running_stats=True"
                )
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and (
            module.training and module.track_running_stats
        ):
            raise ValueError(f"{label} is in training mode, where its buffers change; {_EVAL}")
        dropout = (
            getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        )
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            dropout = module.dropout
        if module.training and dropout > 0:
            raise ValueError(
                f"{label} is active (training mode, p={dropout:g}): its output is random; {_EVAL}"
            )


def refuse_behaviour(evaluate: Evaluate, buffers: Mapping[str, Tensor], x: Tensor) -> None:
    """Evaluate the model three times on at most two samples and refuse what shows.

    The model's own buffers are never touched, and the global random state is left as it was.

    Raises:
        ValueError: buffers change, two evaluations differ, or a sample's output depends on the others.
        TypeError: the output is not made of floating-point tensors.
    """
    few = x[:2]
    devices = [few.device] if few.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        first = _run(evaluate, buffers, few)
        second = _run(evaluate, buffers, few)
        alone = _run(evaluate, buffers, few[:1])
    for a, b in zip(first, second, strict=True):
        if not _close(a, b, 1e3):
            raise ValueError(
                "the model's forward is random: two evaluations at the same parameters and samples differ "
                f"by up to {_difference(a, b):.3g}. If it is dropout or another layer that is at rest in "
                f"evaluation mode, {_EVAL}; otherwise draw the randomness outside of forward"
            )
    for a, b in zip(first, alone, strict=True):
        if a.shape[0] != len(few) or b.shape[0] != 1:
            raise ValueError(
                f"an output has shape {tuple(a.shape)} for {len(few)} samples and {tuple(b.shape)} for one; "
                "expected the number of samples as its first size"
            )
        if not _close(a[:1], b, torch.finfo(a.dtype).eps ** -0.5):
            raise ValueError(
                "the model's samples interact: the output for a sample changes by up to "
                f"{_difference(a[:1], b):.3g} when it is evaluated alone, so there is no per-sample "
                f"Jacobian. If batch statistics are the cause, {_EVAL}"
            )


def _run(evaluate: Evaluate, buffers: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    copies = {name: b.clone() for name, b in buffers.items()}
    versions = {name: b._version for name, b in copies.items()}
    leaves = output_leaves(evaluate(copies, x))
    if not leaves:
        raise TypeError("the model's output holds no tensor; expected at least one")
    for leaf in leaves:
        if leaf.dim() == 0:
            raise ValueError(
                f"an output is a single number for {x.shape[0]} samples; expected the number of samples "
                "as its first size (a loss has no per-sample Jacobian: return the values before the mean)"
            )
    for name, copy in copies.items():
        if copy._version != versions[name]:
            raise ValueError(
                f"the model's forward changes its buffer {name!r}, so that no two evaluations are of the "
                f"same function; {_EVAL}, or keep state out of forward"
            )
    return leaves


def _close(a: Tensor, b: Tensor, units: float) -> bool:
    """Equal but for `units` roundings of the largest entry."""
    if a.shape != b.shape:
        return False
    scale = float(a.abs().max()) if a.numel() else 0.0
    return _difference(a, b) <= units * torch.finfo(a.dtype).eps * max(scale, 1e-30)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0
