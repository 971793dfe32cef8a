"""Sequential networks as exact numbers: their weights as lists, their activations by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llr.inputs.activations import ACTIVATIONS, Polynomial, activation_layer
from llr.inputs.roles import shown

DTYPES = {"float64": torch.float64, "float32": torch.float32}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def as_numbers(model: nn.Module) -> dict[str, Any]:
    """A sequence of linear layers, activations and ``nn.Flatten`` as plain values for JSON.

    Raises:
        ValueError: another module.

    Example:
        >>> import torch
        >>> from llr.results.networks import as_numbers, from_numbers
        >>> layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> torch.nn.init.constant_(layer.weight, 0.5)
        Parameter containing:
        tensor([[0.5000]], dtype=torch.float64, requires_grad=True)
        >>> as_numbers(torch.nn.Sequential(layer, torch.nn.Tanh()))["layers"]
        [{'weight': [[0.5]], 'bias': None}, 'tanh']
    """
    if not isinstance(model, nn.Sequential):
        raise ValueError(
            f"a {type(model).__name__} cannot be written as numbers; expected an nn.Sequential of linear "
            "layers and activations"
        )
    kinds = {p.dtype for p in model.parameters()}
    if len(kinds) != 1 or not kinds <= set(_NAMES):
        raise ValueError(f"parameters are {kinds}; expected float32 or float64, all the same")
    return {
        "dtype": _NAMES[kinds.pop()],
        "training": model.training,
        "layers": [_layer(layer) for layer in model],
    }


def from_numbers(content: Any, where: str) -> nn.Sequential:
    """The ``nn.Sequential`` that :func:`as_numbers` wrote.

    Raises:
        ValueError: anything else; names the part.
    """
    if not isinstance(content, dict) or set(content) != {"dtype", "training", "layers"}:
        raise ValueError(f"{where} is {shown(content)}; expected dtype, training and layers")
    dtype, training, layers = (content[name] for name in ("dtype", "training", "layers"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where}.dtype is {shown(dtype)}; expected float32 or float64")
    if type(training) is not bool:
        raise ValueError(f"{where}.training is {shown(training)}; expected true or false")
    if not isinstance(layers, list):
        raise ValueError(f"{where}.layers is {shown(layers)}; expected a list")
    built = [_built(layer, DTYPES[dtype], f"{where}.layers[{i}]") for i, layer in enumerate(layers)]
    if not any(isinstance(layer, nn.Linear) for layer in built):
        raise ValueError(f"{where}.layers has no weights; expected a linear layer at least")
    return nn.Sequential(*built).train(training)


def _layer(layer: nn.Module) -> Any:
    if type(layer) is nn.Linear:
        bias = None if layer.bias is None else layer.bias.detach().tolist()
        return {"weight": layer.weight.detach().tolist(), "bias": bias}
    if type(layer) is Polynomial:
        return {"polynomial": list(layer.coefficients)}
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return "flatten"
    for name in ACTIVATIONS:
        if repr(activation_layer(name)) == repr(layer):
            return name
    raise ValueError(
        f"a layer {layer} cannot be written as numbers; expected nn.Linear, nn.Flatten() or an activation "
        f"of {', '.join(ACTIVATIONS)}"
    )


def _built(layer: Any, dtype: torch.dtype, where: str) -> nn.Module:
    if layer == "flatten":
        return nn.Flatten()
    if isinstance(layer, str) and layer in ACTIVATIONS:
        return activation_layer(layer)
    if isinstance(layer, dict) and set(layer) == {"polynomial"}:
        numbers(layer, "polynomial", 1, dtype, where)
        return Polynomial(layer["polynomial"])
    if not isinstance(layer, dict) or set(layer) != {"weight", "bias"}:
        raise ValueError(
            f"{where} is {shown(layer)}; expected weight and bias, or an activation of "
            f"{', '.join(ACTIVATIONS)}"
        )
    weight = numbers(layer, "weight", 2, dtype, where)
    bias = None if layer["bias"] is None else numbers(layer, "bias", 1, dtype, where)
    if bias is not None and len(bias) != len(weight):
        raise ValueError(f"{where}.bias has {len(bias)} numbers; expected {len(weight)}")
    built = nn.utils.skip_init(nn.Linear, *weight.shape[::-1], bias=bias is not None, dtype=dtype)
    built.weight = nn.Parameter(weight)
    if bias is not None:
        built.bias = nn.Parameter(bias)
    return built


def numbers(
    content: Mapping[str, Any], name: str, dims: int, dtype: torch.dtype, where: str
) -> Tensor:
    """A non-empty tensor with `dims` dimensions, from nested lists of finite numbers.

    Raises:
        ValueError: anything else; names the part.
    """
    value = content[name]
    try:
        made = torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{where}.{name} is {shown(value)}; expected lists of numbers") from error
    if made.dim() != dims or not made.numel() or not bool(torch.isfinite(made).all()):
        raise ValueError(
            f"{where}.{name} has shape {tuple(made.shape)}; expected finite numbers in {dims} "
            f"dimension{'s' * (dims > 1)}"
        )
    return made
