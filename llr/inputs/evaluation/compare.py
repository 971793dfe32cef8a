"""Comparisons of a probe: outputs of samples together and alone, and operations hidden from autograd."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llr.inputs.evaluation.forward_errors import first_sentence
from llr.inputs.evaluation.outputs import output_leaves
from llr.inputs.evaluation.watch import place
from llr.inputs.memory import memory_budget

EVAL = "call model.eval() first"
_LITTLE = 4 << 20
"""Up to this many bytes of results in a forward, all samples are run together, whatever the cost."""
_SHARE = 0.06
"""Otherwise, this part of the samples times 1 + 2 q is run together. J takes at least 1 + 2 q forwards."""


UNSUPPORTED = (RuntimeError, NotImplementedError, ValueError, TypeError)
"""The exceptions that vmap raises for a model it cannot take. Errors in the model may raise them, too."""


def why_unsupported(error: Exception, draws_own: bool) -> str:
    """The first sentence of an error of vmap.

    Raises:
        ValueError: the error says that the model is random.
    """
    if "randomness" in next(iter(str(error).splitlines()), "") and not draws_own:
        raise ValueError(
            "the model's forward is random: it draws numbers that differ from sample to sample; "
            f"{EVAL}, or draw the randomness outside of forward"
        ) from error
    return first_sentence(error)


def ragged(outputs: int, first: int) -> str:
    """The message for a sample whose number of outputs is not that of the first sample."""
    return (
        f"a sample has {outputs} outputs alone, but the first one has {first}; expected the same number for "
        "every sample"
    )


def affordable(n: int, outputs: int, nbytes: int, device: torch.device) -> int:
    """How many of n samples may be run together, at `nbytes` bytes each."""
    if n * nbytes <= _LITTLE:
        return n
    most = max(8, _LITTLE // nbytes, min(n, int(_SHARE * (1 + 2 * outputs) * n)))
    most = min(most, max(8, memory_budget(device) // 8 // nbytes))
    return (
        n if most >= n else n // math.ceil(n / most)
    )  # n divided by an integer, for models that take samples in groups


class Escapes(TorchFunctionMode):
    """Records the first operation that autograd does not record."""

    def __init__(self, path_of: Callable[[object], str | None]) -> None:
        super().__init__()
        self.seen = ""
        self._path_of = path_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        how = _ESCAPES.get(getattr(func, "__name__", ""), "")
        if func == _DATA:
            how = "it takes .data"
        if how and not self.seen:
            self.seen = f"{how} ({place(sys._getframe(1), self._path_of)})"
        return func(*args, **(kwargs or {}))


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_ESCAPES = {
    "detach": "it detaches",
    "detach_": "it detaches",
    **dict.fromkeys(("numpy", "__array__", "tolist"), "it goes through numpy or lists"),
    **dict.fromkeys(("item", "__float__"), "it goes through numbers of Python"),
}


def compare_alone(
    model: object, together: Sequence[Tensor], alone: Sequence[Tensor], count: int
) -> None:
    """Refuse outputs of a sample alone that differ from its outputs as the last of `count` samples."""
    shapes = (
        f"{', '.join(str(tuple(t.shape)) for t in together)} for {count} samples and "
        f"{', '.join(str(tuple(t.shape)) for t in alone)}"
    )
    wrong = len(together) != len(alone)
    for a, b in zip(together, alone, strict=False):
        wrong |= a.dim() == 0 or a.shape[0] != count or not _is_one_of(a, b)
    if wrong:
        what = "an output has" if len(together) == len(alone) == 1 else "outputs have"
        raise ValueError(
            f"{what} shape {shapes} for one; expected the number of samples as its first size"
            f"{_sequences(model)}"
        )
    for a, b in zip(together, alone, strict=True):
        if not close(a[-1].flatten(), b.flatten(), loose(a)):
            raise ValueError(interacting(model, difference(a[-1].flatten(), b.flatten()), count))


def _is_one_of(several: Tensor, one: Tensor) -> bool:
    """Whether one sample's output has the shape of one entry of several, perhaps without sizes of 1."""
    expected = (1, *several.shape[1:])
    return one.shape in (expected, tuple(s for s in expected if s != 1))


def flat(output: object) -> Tensor:
    """All numbers of a model's output, as one vector."""
    return torch.cat([leaf.reshape(-1) for leaf in output_leaves(output)])


def interacting(model: object, difference: float, count: int) -> str:
    """The message for samples whose outputs depend on other samples."""
    hint = _sequences(model)
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        hint += f". If batch statistics are the cause, {EVAL}"
    return (
        f"the model's samples interact: the output for a sample changes by up to {difference:.3g} when it is "
        f"evaluated alone instead of among {count}, so there is no per-sample Jacobian"
        f"{hint or '; expected a forward that computes each sample from itself alone'}"
    )


def _sequences(model: object) -> str:
    """A hint about a layer whose first dimension is not that of the samples."""
    if not isinstance(model, nn.Module):
        return ""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first:
            label = f"{type(module).__name__} {name!r}" if name else type(module).__name__
            return (
                f". {label} has batch_first=False, where sequences go along the first dimension; samples "
                "must, so build it with batch_first=True unless forward transposes"
            )
    return ""


def loose(t: Tensor) -> float:
    """The `units` of :func:`close` for sums in a different order: half of the digits."""
    return torch.finfo(t.dtype).eps ** -0.5


def close(a: Tensor, b: Tensor, units: float) -> bool:
    """Whether entries are equal up to `units` roundings of the largest entry."""
    if a.shape != b.shape:
        return False
    scale = float(a.abs().max()) if a.numel() else 0.0
    return difference(a, b) <= units * torch.finfo(a.dtype).eps * max(scale, 1e-30)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of entries; NaN and infinity are equal to themselves."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0, a - b).abs().max()) if a.numel() else 0.0
