"""Checks that a module computes the MLP that it was read as: both in floating point, at a few samples.

:mod:`llr.inputs.gate` inspects the code between a module's call and its class's forward. Here numbers are
compared, since the inspection cannot find every difference. The allowed difference is a bound of the rounding
errors, which is computed layer by layer.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1, for the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llr.inputs.evaluation.surroundings import full_precision
from llr.inputs.mlp import MLP
from llr.operators import _ops, formula

Link = tuple[str | None, Tensor | None]
"""The name of a parameter, None for another tensor; and its value, None for a missing bias."""
Call = Callable[[Mapping[str, Tensor], Tensor], object]
"""(values of the parameters, samples) -> the module's output."""

# The native operator computes Jacobians with at most this many entries; the torch formula computes larger
# ones.
_MOST_NUMBERS = 1 << 18
_GIVEN, _OWN = 4, 2  # the number of given samples that are compared, and of random ones
_SIZED = 1000  # the number of samples that determine the scale of the random ones
# Roundings of an activation's value or slope, and the factor that widens all bounds, since they neglect
# second-order terms.
_ULPS, _WIDER = 16, 8
# Bounds of the first and second derivatives of all activations in the table (GELU's reach 1.13 and 1.6).
_STEEP, _CURVED = 1.2, 2.0
# Where these functions are small, their relative error is that of their argument.
_OF_ARGUMENT = ("gelu", "silu", "softplus", "sigmoid")


@dataclass
class _Layer:
    """A layer's signals (n, h), and bounds of their rounding errors."""

    a: Tensor
    """The layer's input."""
    off_a: Tensor
    slope: Tensor | None
    """sigma' of the previous layer; None for the first layer."""
    off_slope: Tensor | None


def probes(x: Tensor) -> Tensor:
    """A few of the samples (n, d), and a few random samples of the same scale."""
    generator = torch.Generator().manual_seed(0)
    some = x[:_SIZED].detach()
    scale = float(some.abs().amax()) if some.numel() else 1.0
    own = torch.randn(_OWN, *x.shape[1:], generator=generator, dtype=torch.float64)
    own = own.to(x) * (scale or 1.0)
    return torch.cat([x[:_GIVEN].detach(), own])


def mlp_departure(mlp: MLP, links: Sequence[Link], call: Call, x: Tensor) -> str:
    """How a module's outputs or gradients differ from those of the MLP that it was read as.

    Args:
        mlp: the MLP that was read.
        links: its tensors in order, at the current parameter point.
        call: evaluates the module, without changing it.
        x: (n, ...) samples, of the dtype of the tensors.

    Returns:
        Why the module is another function; empty if no difference is found.
    """
    values = {n: t.detach().requires_grad_() for n, t in links if n is not None and t is not None}
    tensors = [None if t is None else t.detach() for _, t in links]
    with torch.enable_grad(), full_precision():
        try:
            own = call(values, x.clone())
        except Exception as error:
            return f"evaluating it raises {type(error).__name__}"
        if not isinstance(own, Tensor) or own.numel() != len(x) * mlp.widths[-1]:
            return "its output is not that of its layers"
        own = own.reshape(len(x), -1)
        mix = torch.linspace(1, 2, own.numel(), dtype=own.dtype, device=own.device).cos()
        mix = mix.view_as(own)
        found = _gradients((own * mix).sum(), values)
    with torch.no_grad(), full_precision():
        samples = x.flatten(1) if mlp.flattens else x
        if samples.dim() != 2:
            return f"samples of shape {tuple(x.shape[1:])}"
        layers, out, off = _forward(mlp, tensors, samples)
        if _differ(own.detach(), out, off):
            return "its outputs are not those of its layers"
        there = [(name, t) for name, t in links if t is not None]
        read, allowed = zip(*_backward(layers, tensors, mix), strict=True)
        sizes = [t.numel() for _, t in there]
        if sum(sizes) * mix.numel() <= _MOST_NUMBERS:
            J = _jacobian(mlp, tensors, samples)
            read = torch.einsum("nq,nqp->p", mix, J).split(sizes)
        for (name, _), numbers, off in zip(there, read, allowed, strict=True):
            if name is not None and _differ(
                found[name].flatten(), numbers.flatten(), off.flatten()
            ):
                return "its gradients are not those of its layers (torch.no_grad, a hook, ...)"
    return ""


def _forward(
    mlp: MLP, tensors: Sequence[Tensor | None], x: Tensor
) -> tuple[list[_Layer], Tensor, Tensor]:
    """The layers' signals; the outputs, and bounds of their rounding errors."""
    sigma, slope = formula.ACTIVATIONS[mlp.activation]
    u = torch.finfo(x.dtype).eps
    layers = [_Layer(x, torch.zeros_like(x), None, None)]
    for i, (W, b) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
        assert W is not None
        before = layers[-1]
        z = F.linear(before.a, W, b)
        size = F.linear(before.a.abs(), W.abs(), None if b is None else b.abs())
        off = F.linear(before.off_a, W.abs()) + (W.shape[1] + 2) * u * size
        if 2 * i + 2 == len(tensors):
            return layers, z, off
        a, s = sigma(z), slope(z)
        off_a = _STEEP * off + _ULPS * u * a.abs()
        if mlp.activation in _OF_ARGUMENT:
            off_a = off_a + _ULPS * u * z.abs().clamp(max=1.0)
        off_s = _CURVED * off + _ULPS * u
        if mlp.activation == "relu":
            off_s = (z.abs() <= _WIDER * off).to(z.dtype)
        elif mlp.activation == "softplus":  # its slope jumps where torch switches to the identity
            off_s = off_s + 1e-8 * ((z - 20).abs() <= _WIDER * off)
        layers.append(_Layer(a, off_a, s, off_s))
    raise AssertionError("an MLP has a layer")


def _backward(
    layers: Sequence[_Layer], tensors: Sequence[Tensor | None], mix: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Gradients for the existing tensors, in their order, and bounds of their rounding errors."""
    u = torch.finfo(mix.dtype).eps
    delta, off = mix, torch.zeros_like(mix)
    found: list[tuple[Tensor, Tensor]] = []
    for i in reversed(range(len(layers))):
        layer, W, b = layers[i], tensors[2 * i], tensors[2 * i + 1]
        assert W is not None
        size, n = delta.abs(), len(mix) + mix.shape[1] + 4
        if b is not None:
            found.append((delta.sum(0), off.sum(0) + n * u * size.sum(0)))
        steps = [
            (off, layer.a.abs() + layer.off_a),
            (size, layer.off_a),
            (n * u * size, layer.a.abs()),
        ]
        bound = sum((d.T @ a for d, a in steps), torch.zeros_like(W))
        found.append((delta.T @ layer.a, bound))
        if layer.slope is not None and layer.off_slope is not None:
            back, off = delta @ W, off @ W.abs() + (len(W) + 4) * u * (size @ W.abs())
            off = off * (layer.slope.abs() + layer.off_slope) + back.abs() * layer.off_slope
            delta = back * layer.slope
    return found[::-1]


def _jacobian(mlp: MLP, tensors: Sequence[Tensor | None], x: Tensor) -> Tensor:
    """The Jacobian with respect to all tensors, by the native operator where there is one."""
    weights, biases = [t for t in tensors[::2] if t is not None], tensors[1::2]
    compute = formula.mlp_jacobian if _ops.why_no_kernel(x.device) else _ops.mlp_jacobian
    return compute(x, weights, biases, mlp.activation)


def _differ(own: Tensor, read: Tensor, off: Tensor) -> bool:
    """Whether numbers differ by more than rounding; False if they overflow, since nothing can be said."""
    bound = _WIDER * off + torch.finfo(own.dtype).tiny
    close = (own - read).abs() <= bound
    return not bool((close | ~torch.isfinite(bound) | ~torch.isfinite(read)).all())


def _gradients(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = list(parameters.values())
    if not value.requires_grad:
        return {n: torch.zeros_like(p) for n, p in parameters.items()}
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(parameters.items(), found, strict=True)
    }
