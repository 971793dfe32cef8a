"""Builds modules from given tensors, the reverse of reading a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from llr.inputs.activations import activation_layer

Module = TypeVar("Module", bound=nn.Module)


def set_tensors(module: Module, **values: Tensor | None) -> Module:
    """Replace parameters by copies of the tensors; None for a parameter that does not exist."""
    for name, value in values.items():
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach().clone().contiguous()))
    return module


def layers_of(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str | nn.Module | None,
) -> list[nn.Module]:
    """Linear layers with copies of these tensors, with the activation between them if there is one."""
    layers: list[nn.Module] = []
    for W, b in zip(weights, biases, strict=True):
        if layers and activation is not None:
            layers.append(activation_layer(activation))
        empty = nn.utils.skip_init(nn.Linear, *W.shape[::-1], bias=b is not None)
        layers.append(set_tensors(empty, weight=W, bias=b))
    return layers
