"""Models of the theory as plain exact numbers for JSON, and back."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from llr.inputs.roles import shown
from llr.models import Conv1dTwoLayer, DeepLinear, TwoLayer
from llr.results.networks import DTYPES, as_numbers, from_numbers, numbers

_KINDS = ("Sequential", "TwoLayer", "DeepLinear", "Conv1dTwoLayer")
_CONVOLUTION = {"d", "activation", "shared", "dtype", "training", "weight", "out"}


def model_as_numbers(model: nn.Module) -> dict[str, Any]:
    """A sequential model or a convolution as plain values for JSON.

    Raises:
        ValueError: another module.
    """
    if not isinstance(model, Conv1dTwoLayer):
        kind = type(model).__name__
        return {"kind": kind if kind in _KINDS else "Sequential", **as_numbers(model)}
    return {
        "kind": "Conv1dTwoLayer",
        "d": model.d,
        "activation": model.activation,
        "shared": model.shared,
        "dtype": str(model.weight.dtype).removeprefix("torch."),
        "training": model.training,
        "weight": model.weight.detach().tolist(),
        "out": model.out.detach().tolist(),
    }


def model_from_numbers(content: Any, where: str) -> nn.Module:
    """The model that :func:`model_as_numbers` wrote.

    Raises:
        ValueError: anything else; names the part.
    """
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in _KINDS:
        raise ValueError(
            f"{where} is {shown(content)}; expected a kind of {', '.join(_KINDS)} and its numbers"
        )
    rest = {name: value for name, value in content.items() if name != "kind"}
    if kind == "Conv1dTwoLayer":
        return _convolution(rest, where)
    row = from_numbers(rest, where)
    try:
        if kind == "TwoLayer":
            first, activation, last = row
            inner, outer = cast(nn.Linear, first), cast(nn.Linear, last)
            row = TwoLayer.of(
                inner.weight, inner.bias, outer.weight.T, outer.bias, activation=activation
            ).train(row.training)
        elif kind == "DeepLinear":
            weights = (cast(nn.Linear, layer).weight for layer in row)
            row = DeepLinear.of(*weights).train(row.training)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} has layers {shown(list(row))}, which are no {kind}") from error
    return row


def _convolution(content: dict[str, Any], where: str) -> nn.Module:
    if set(content) != _CONVOLUTION:
        raise ValueError(f"{where} has {shown(sorted(content))}; expected {sorted(_CONVOLUTION)}")
    name, shared, training = (content[key] for key in ("dtype", "shared", "training"))
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"{where}.dtype is {shown(name)}; expected float32 or float64")
    if type(shared) is not bool or type(training) is not bool:
        raise ValueError(f"{where}: shared and training are not both true or false")
    dtype: torch.dtype = DTYPES[name]
    weight = numbers(content, "weight", 2 if shared else 3, dtype, where)
    out = numbers(content, "out", 2, dtype, where)
    try:
        made = Conv1dTwoLayer.of(weight, out, d=content["d"], activation=content["activation"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    return made.train(training)
