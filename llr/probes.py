"""Refuses models that have no per-sample Jacobian: random ones, stateful ones, ones that mix samples.

Nothing of this is needed on the native path, which computes from the weights alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from llr.reference import output_leaves
from llr.tensors import wider

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
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise ValueError(
                f"{label} is lazy and has no shape yet; run the model once on a batch (model(x)) first"
            )
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(
                f"{label} has max_norm={module.max_norm}, so that its forward rewrites its weight; set it to "
                "None, with the weight normalised once"
            )
        if getattr(module, "scale_grad_by_freq", False):
            raise ValueError(
                f"{label} has scale_grad_by_freq=True, so that what torch gives for its gradient is no "
                "derivative; set it to False"
            )
        dropout = (
            getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        )
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            dropout = module.dropout
        if module.training and dropout > 0:
            raise ValueError(
                f"{label} is active (training mode, p={dropout:g}): its output is random; {_EVAL}"
            )


def refuse_quantized(model: nn.Module) -> None:
    """Refuse a module with quantized layers, whose integer weights are no parameters.

    Raises:
        ValueError: names the first such layer.
    """
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise ValueError(
                f"{type(module).__name__} {name!r} is quantized: its weights are integers, by which there "
                "are no derivatives; give the model that it was made from"
            )


@contextlib.contextmanager
def spared_buffers(
    model: nn.Module, dtype: torch.dtype | None = None
) -> Iterator[Callable[[], str | None]]:
    """Copies in place of a module's buffers while it runs, promoted to a dtype if one is given.

    Yields:
        A function that names the first buffer that was written to or replaced, None if there is none.
    """
    slots = [
        (module, name, f"{path}.{name}" if path else name, buffer, buffer.clone())
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    if dtype is not None:
        slots = [(*slot[:4], wider(slot[4], dtype)) for slot in slots]

    def changed() -> str | None:
        for module, name, path, _, copy in slots:
            if module._buffers.get(name) is not copy or copy._version != versions[id(copy)]:
                return path
        return None

    versions = {id(copy): copy._version for *_, copy in slots}
    for module, name, _, _, copy in slots:
        module._buffers[name] = copy
    try:
        yield changed
    finally:
        for module, name, _, buffer, _ in slots:
            module._buffers[name] = buffer


def refuse_behaviour(
    evaluate: Callable[[Tensor], object], watch: Callable[[], str | None], x: Tensor
) -> list[Tensor]:
    """Evaluate the model on two different samples, together and alone, and refuse what shows.

    The global random state is left as it was.

    Args:
        evaluate: the model at its parameters.
        watch: names a buffer that has changed, as :func:`spared_buffers` yields it.
        x: all samples, at least one.

    Returns:
        The tensors of the output for the first sample.

    Raises:
        ValueError: buffers change, two evaluations differ, a sample's output depends on the others, an
            output is NaN or infinite.
        TypeError: the output is not made of floating-point tensors.
    """
    few = _two_samples(x)
    devices = [few.device] if few.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        together = _run(evaluate, watch, few)
        again = _run(evaluate, watch, few)
        alone = [_run(evaluate, watch, few[i : i + 1]) for i in range(len(few))]
    for a, b in zip(together, again, strict=True):
        if not _close(a, b, 1e3):
            raise ValueError(
                "the model's forward is random: two evaluations at the same parameters and samples differ "
                f"by up to {_difference(a, b):.3g}. If it is dropout or another layer that is at rest in "
                f"evaluation mode, {_EVAL}; otherwise draw the randomness outside of forward"
            )
    for i, leaves in enumerate(alone):
        for a, b in zip(together, leaves, strict=True):
            if a.shape[0] != len(few) or b.shape[0] != 1:
                raise ValueError(
                    f"an output has shape {tuple(a.shape)} for {len(few)} samples and {tuple(b.shape)} for "
                    "one; expected the number of samples as its first size"
                )
            if not _close(a[i : i + 1], b, torch.finfo(a.dtype).eps ** -0.5):
                raise ValueError(
                    "the model's samples interact: the output for a sample changes by up to "
                    f"{_difference(a[i : i + 1], b):.3g} when it is evaluated alone, so there is no "
                    f"per-sample Jacobian. If batch statistics are the cause, {_EVAL}"
                )
    return alone[0]


def count_on_meta(evaluate: Callable[[Tensor], object], sample: Tensor) -> int:
    """The outputs of one sample, for a model on the meta device, of which nothing else can be seen.

    Raises:
        ValueError: an output does not have the sample as its first size.
    """
    leaves = output_leaves(evaluate(sample.clone()))
    for leaf in leaves:
        if leaf.dim() == 0 or len(leaf) != 1:
            raise ValueError(
                f"an output has shape {tuple(leaf.shape)} for one sample; expected (1, ...)"
            )
    return sum(leaf.numel() for leaf in leaves)


def _two_samples(x: Tensor) -> Tensor:
    """The first sample and one that differs from it: equal ones would hide how samples interact."""
    some = x[:1000]
    differs = (some != x[:1]).reshape(len(some), -1).any(1).nonzero()
    return torch.cat([x[:1], x[int(differs[0]) :][:1] if len(differs) else x[1:2]])


def _run(
    evaluate: Callable[[Tensor], object], watch: Callable[[], str | None], x: Tensor
) -> list[Tensor]:
    leaves = output_leaves(evaluate(x.clone()))  # a forward may work in place
    if not leaves:
        raise TypeError("the model's output holds no tensor; expected at least one")
    for leaf in leaves:
        if leaf.dim() == 0:
            raise ValueError(
                f"an output is a single number for {x.shape[0]} samples; expected the number of samples "
                "as its first size (a loss has no per-sample Jacobian: return the values before the mean)"
            )
        if not bool(torch.isfinite(leaf).all()):
            raise ValueError(
                "the model's output is NaN or infinite at the first samples; expected finite numbers (a "
                "Jacobian there would be NaN)"
            )
    name = watch()
    if name is not None:
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
