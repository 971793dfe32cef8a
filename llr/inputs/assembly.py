"""Modules put together from given tensors: the way back from what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from llr.inputs.activations import activation_layer

Module = TypeVar("Module", bound=nn.Module)


def set_tensors(module: Module, **values: Tensor | None) -> Module:
    """Put copies of the tensors in the place of parameters, None where there is none."""
    for name, value in values.items():
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach().clone().contiguous()))
    return module


def layers_of(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str | nn.Module | None,
) -> list[nn.Module]:
    """Linear layers with copies of these tensors, and between them the activation, if there is one."""
    layers: list[nn.Module] = []
    for W, b in zip(weights, biases, strict=True):
        if layers and activation is not None:
            layers.append(activation_layer(activation))
        empty = nn.utils.skip_init(nn.Linear, *W.shape[::-1], bias=b is not None)
        layers.append(set_tensors(empty, weight=W, bias=b))
    return layers
