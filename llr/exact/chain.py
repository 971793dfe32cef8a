"""Modules described as chains of linear layers, which may share weights, and activations.

Exact arithmetic cannot run a module's forward; it uses this description. Each module class has a rule in
:data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llr.inputs import gate
from llr.inputs.activations import Erf, Polynomial, Sine
from llr.inputs.mlp import SETTINGS
from llr.linalg.balls import Array

Shape = tuple[int, ...]
OTHERWISE = 'or take method="svd", which works for any model'


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear layer that may share its weights over positions and groups.

    ``out[write[g, t, o]] = sum_i W[g, o, i] in[read[g, t, i]] + b[g, o]`` for groups g and positions t, on
    the flattened sample; -1 in `read` is a zero (padding). A dense layer has one group and one position.
    """

    label: str
    weight: Tensor
    """The module's own parameter; its entries in row-major order are W (G, h, w)."""
    bias: Tensor | None
    read: Array
    """(G, T, w)"""
    write: Array
    """(G, T, h), each output position exactly once."""


@dataclass(frozen=True)
class Entrywise:
    """An activation."""

    activation: str
    """A name that :func:`llr.linalg.balls.activation` knows."""


Step = Affine | Entrywise
Rule = Callable[[Any, Shape], tuple[Sequence[Step], Shape]]
"""(module, shape of one input sample) -> the module's steps, shape of one output."""
Encoding = Callable[[Any, Tensor], Tensor]
"""(module, samples) -> floating-point samples (n, ...) that the steps take instead."""


def dense(
    label: str,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    shape: tuple[int, int] | None = None,
    positions: int = 1,
) -> Affine:
    """The step of a matrix (h, w) that acts on the last dimension, at each position.

    Args:
        label: the layer's name in error messages and certificates.
        weight: the parameter.
        bias: (h), or None.
        shape: (h, w), if the parameter has another shape; its entries are read in row-major order.
        positions: the number of vectors of size w in a sample.
    """
    h, w = shape or weight.shape
    return Affine(
        label,
        weight,
        bias,
        np.arange(positions * w).reshape(1, positions, w),
        np.arange(positions * h).reshape(1, positions, h),
    )


def _linear(module: nn.Linear, shape: Shape) -> tuple[Sequence[Step], Shape]:
    _check_shapes(module, 2)
    h, w = module.weight.shape
    if not shape or shape[-1] != w:
        raise ValueError(f"takes samples of shape (..., {w}); what comes in has shape {shape}")
    positions = int(np.prod(shape[:-1]))
    step = dense(f"Linear({w}, {h})", module.weight, module.bias, positions=positions)
    return [step], (*shape[:-1], h)


def _check_shapes(module: Any, dimensions: int) -> None:
    """Raise ValueError if a weight or a bias was replaced by one of another shape."""
    weight, bias = module.weight, module.bias
    if not isinstance(weight, Tensor) or weight.dim() != dimensions:
        found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"has a weight {found}; expected {dimensions} dimensions")
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        found = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
        raise ValueError(f"has a bias {found}; expected ({len(weight)},)")


def _size(name: str, value: object, least: int) -> int:
    """A setting of a 1-d convolution, given as an integer or as a tuple of one integer."""
    found = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
    if type(found) is not int or found < least:
        raise ValueError(f"has {name}={value!r}; expected an integer of at least {least}")
    return found


def _conv1d(module: nn.Conv1d, shape: Shape) -> tuple[Sequence[Step], Shape]:
    _check_shapes(module, 3)
    # torch uses the shape of the weight, not the layer's attributes such as `out_channels`.
    h, width, kernel = module.weight.shape
    groups = _size("groups", module.groups, 1)
    stride, dilation = _size("stride", module.stride, 1), _size("dilation", module.dilation, 1)
    padding: Any = module.padding
    channels = width * groups
    if h % groups:
        raise ValueError(f"has {h} filters in {groups} groups; expected a multiple")
    if len(shape) != 2 or shape[0] != channels:
        raise ValueError(f"takes samples of shape ({channels}, L); what comes in has shape {shape}")
    if module.padding_mode != "zeros":
        raise ValueError(f"has padding_mode={module.padding_mode!r}; expected 'zeros'")
    if isinstance(padding, str) and (padding not in ("same", "valid") or stride != 1):
        raise ValueError(f"has padding={padding!r} and stride={stride}; expected numbers")
    span = dilation * (kernel - 1) + 1
    if isinstance(padding, str):
        before = (span - 1) // 2 if padding == "same" else 0
        after = span - 1 - before if padding == "same" else 0
    else:
        before = after = _size("padding", padding, 0)
    places = F.pad(torch.arange(channels * shape[1]).view(shape), (before, after), value=-1)
    if places.shape[1] < span:
        raise ValueError(f"has a kernel of span {span}; what comes in has shape {shape}")
    read = places.unfold(1, span, stride)[..., ::dilation]  # (channels, T, kernel)
    positions = read.shape[1]
    read = read.reshape(groups, width, positions, kernel).transpose(1, 2).flatten(2)
    write = torch.arange(h * positions).view(groups, h // groups, positions).transpose(1, 2)
    label = (
        f"Conv1d({channels}, {h}, {kernel}, stride={stride}, padding={before}+{after}, "
        f"dilation={dilation}, groups={groups})"
    )
    step = Affine(label, module.weight, module.bias, read.numpy(), write.numpy())
    return [step], (h, positions)


def _reshape(module: nn.Flatten | nn.Unflatten, shape: Shape) -> tuple[Sequence[Step], Shape]:
    try:
        out = module(torch.empty(2, *shape, device="meta")).shape
    except (RuntimeError, IndexError) as error:  # what torch raises for shapes that do not fit
        raise ValueError(f"cannot take what comes in, of shape {shape}") from error
    if out[0] != 2:
        raise ValueError("touches the dimension of the samples")
    return [], tuple(out[1:])


def _dropout(module: nn.modules.dropout._DropoutNd, shape: Shape) -> tuple[Sequence[Step], Shape]:
    if module.training and module.p > 0:
        raise ValueError("is active; call model.eval() first")
    return [], shape


def _activation(name: str) -> Rule:
    def rule(module: nn.Module, shape: Shape) -> tuple[Sequence[Step], Shape]:
        for setting, expected in SETTINGS.get(type(module), {}).items():
            found = getattr(module, setting)
            if isinstance(found, Tensor) or found != expected:
                raise ValueError(f"has {setting}={found!r}; expected {expected!r}")
        return [Entrywise(name)], shape

    return rule


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv1d,
    nn.Flatten: _reshape,
    nn.Unflatten: _reshape,
    nn.Identity: lambda _, shape: ([], shape),
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.AlphaDropout: _dropout,
    nn.Tanh: _activation("tanh"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.ReLU: _activation("relu"),
    nn.Softplus: _activation("softplus"),
    nn.GELU: _activation("gelu"),
    nn.SiLU: _activation("silu"),
    Erf: _activation("erf"),
    Sine: _activation("sin"),
    Polynomial: lambda module, shape: ([Entrywise(module.name)], shape),
}
"""The rules of all known module classes except ``nn.Sequential``; :func:`register` adds to them."""
ENCODINGS: dict[type[nn.Module], Encoding] = {}
"""How samples that are not real vectors are converted to real vectors, by model class."""


def register(kind: type[nn.Module], rule: Rule, encode: Encoding | None = None) -> None:
    """Let a module class take part in exact evaluation, and so in certificates.

    Args:
        kind: the class itself; its subclasses, which may have another forward, are not included.
        rule: a function of a module of the class and the shape of one input sample. It returns the steps
            (`Affine`, `Entrywise`, those of child modules by :func:`steps_of`) and the shape of one output.
            The current ``forward`` of the class must compute exactly this chain. Every model is evaluated at
            a few samples first, and refused if outputs or gradients differ.
        encode: for a class with discrete samples, such as indices: a function of a model of the class and
            samples (n, ...). It returns exact floating-point numbers (n, ...), such as one-hot vectors, as
            input of the first step.

    Example:
        >>> import torch
        >>> from llr.exact.chain import Entrywise, register
        >>> class Sine(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.sin(x)
        >>> register(Sine, lambda module, shape: ([Entrywise("sin")], shape))
    """
    gate.trust(kind)
    RULES[kind] = rule
    if encode is not None:
        ENCODINGS[kind] = encode


def steps_of(module: nn.Module, shape: Shape, name: str = "") -> tuple[list[Step], Shape]:
    """The steps that a module computes, and the shape of its output for one sample.

    Raises:
        ValueError: a module without a rule, or one that differs from its class's rule; the message names it.
    """
    kind = type(module)
    label = f"{kind.__name__} {name!r}" if name else kind.__name__
    chain = isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward
    if everywhere := gate.process_departure():
        raise ValueError(
            f"{label} cannot be read by its class: {everywhere}; undo that, {OTHERWISE}"
        )
    why = gate.departure(module) if chain or kind in RULES else gate.call_departure(module)
    for key, tensor in module._parameters.items():
        if not why and tensor is not None and (why := gate.tensor_departure(tensor)):
            why = f"{why} {key!r}"
    if why:
        raise ValueError(
            f"{label} has {why}, so it may not compute what its class does; undo that, {OTHERWISE}"
        )
    if chain and kind not in RULES:
        steps: list[Step] = []
        for key, child in module._modules.items():  # named_children leaves repetitions out
            assert child is not None
            inner, shape = steps_of(child, shape, f"{name}.{key}" if name else key)
            steps += inner
        return steps, shape
    if kind not in RULES:
        known = ", ".join(k.__name__ for k in RULES)
        raise ValueError(
            f"exact arithmetic has no rule for {label}; it knows MLPs and nn.Sequential of {known}; "
            f"register the class with llr.exact.chain.register, {OTHERWISE}"
        )
    try:
        found, shape = RULES[kind](module, shape)
    except ValueError as error:
        raise ValueError(f"{label} {error}") from error
    return list(found), shape
