"""Kinds of layers whose weight's derivative is a sum of outer products, and the inputs of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llr.inputs import gate


class Kind(NamedTuple):
    """A kind of module with a known derivative with respect to its weight."""

    sizes: Callable[[Any], tuple[int, int, int]]
    """The groups, h and w of a module of this kind."""
    read: Callable[[Any, Tensor], Tensor]
    """The factor that is multiplied by the weight, from the module's input."""
    first: bool
    """Whether the dimension of features follows that of samples, and positions come last."""
    vocabulary: bool = False


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """The input of the filter at each position: (samples, channels * kernel, positions)."""
    kernel = tuple(module.weight.shape[2:])
    planar = len(kernel) == 2
    stride, dilation = _sizes(module.stride, kernel), _sizes(module.dilation, kernel)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(module.padding, str):
        totals = spans if module.padding == "same" else [0] * len(spans)
        margins = [m for total in reversed(totals) for m in (total // 2, total - total // 2)]
    else:
        margins = [m for size in reversed(_sizes(module.padding, kernel)) for m in (size, size)]
    x = F.pad(x, margins) if any(margins) else x
    if planar:
        return F.unfold(x, kernel, dilation, 0, stride)
    return F.unfold(x.unsqueeze(-2), (1, *kernel), (1, *dilation), 0, (1, *stride))


def _sizes(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """A setting for each dimension of the kernel."""
    found = tuple(value) if isinstance(value, tuple | list) else (value,)
    return found * len(kernel) if len(found) == 1 else found


def _filter_sizes(module: nn.Conv1d | nn.Conv2d) -> tuple[int, int, int]:
    # torch uses the shape of the weight, not the sizes that the layer was made with.
    h, *rest = module.weight.shape
    return module.groups, h // module.groups, math.prod(rest)


def _matrix_sizes(module: nn.Linear) -> tuple[int, int, int]:
    h, w = module.weight.shape
    return 1, h, w


def _table_sizes(module: nn.Embedding) -> tuple[int, int, int]:
    rows, h = module.weight.shape
    return 1, h, rows


def _normalised(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, module.normalized_shape, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, None, None, module.eps)
    return F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def _scale_sizes(module: nn.Module) -> tuple[int, int, int]:
    return cast(Tensor, module.weight).numel(), 1, 1


_FILTER = Kind(_filter_sizes, _patches, first=True)
_CHANNELS = Kind(_scale_sizes, _normalised, first=True)
_TRAILING = Kind(_scale_sizes, _normalised, first=False)

_KINDS: dict[Any, Kind] = {
    nn.Linear.forward: Kind(_matrix_sizes, lambda _, x: x, first=False),
    nn.Conv1d.forward: _FILTER,
    nn.Conv2d.forward: _FILTER,
    nn.Embedding.forward: Kind(
        _table_sizes,
        lambda m, x: x.long() if m.padding_idx is None else x.masked_fill(x == m.padding_idx, -1),
        first=False,
        vocabulary=True,
    ),
    nn.LayerNorm.forward: _TRAILING,
    nn.RMSNorm.forward: _TRAILING,
    nn.GroupNorm.forward: _CHANNELS,
    nn.BatchNorm1d.forward: _CHANNELS,
}
"""The forward of a class -> its kind. A class that overrides forward is another kind."""
_DIMENSIONS: dict[Any, int] = {
    nn.Linear.forward: 2,
    nn.Conv1d.forward: 3,
    nn.Conv2d.forward: 4,
    nn.Embedding.forward: 2,
}
"""The number of dimensions of the weight."""


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module; None if it has none, or if it may not compute what its class defines."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    kind = _KINDS.get(type(module).forward)
    if kind is None or gate.departure(module, hooks=True):
        return None
    weight = module._parameters.get("weight")
    if weight is None or gate.tensor_departure(weight):
        return None
    if weight.dim() != _DIMENSIONS.get(type(module).forward, weight.dim()):
        return None  # the weight was replaced by one of another shape
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode != "zeros":
        return None
    return kind
