"""The native Jacobian operator in plain torch operations, and the table of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _gauss_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def _gauss_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _sech_squared(z: Tensor) -> Tensor:
    e = torch.exp(-2 * z.abs())
    return 4 * e / (1 + e) ** 2


def _logistic_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "identity": (lambda z: z, torch.ones_like),
    "tanh": (torch.tanh, _sech_squared),
    "sigmoid": (torch.sigmoid, _logistic_slope),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    # As torch.nn.Softplus is by default: the identity beyond 20.
    "softplus": (F.softplus, lambda z: torch.where(z > 20, 1.0, torch.sigmoid(z))),
    "gelu": (lambda z: z * _gauss_cdf(z), lambda z: _gauss_cdf(z) + z * _gauss_density(z)),
    "silu": (
        lambda z: z * torch.sigmoid(z),
        lambda z: torch.sigmoid(z) + z * _logistic_slope(z),
    ),
    "erf": (torch.erf, lambda z: torch.exp(-z * z) * (2 / math.sqrt(math.pi))),
    "sin": (torch.sin, torch.cos),
}
"""name -> (sigma, sigma'), the same as the native table."""


def mlp_jacobian(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
) -> Tensor:
    """``torch.ops.llr.mlp_jacobian`` in plain torch operations; any device, differentiable.

    Args:
        x: (n, d), or (B, n, d).
        weights: per layer (out, in), or (B, out, in).
        biases: per layer (out) or (B, out), or None.
        activation: a name in :data:`ACTIVATIONS`, applied after every layer but the last.
        columns: first column of each layer's weight and bias (weight 0, bias 0, weight 1, ...), -1 to leave
            a tensor out; by default all of them in this order.

    Returns:
        (n, q, P), or (B, n, q, P).

    Example:
        >>> import torch
        >>> from llr.operators import formula
        >>> formula.mlp_jacobian(torch.tensor([[2.0]]), [torch.tensor([[5.0]])], [None], "tanh")
        tensor([[[2.]]])
    """
    sigma, slope = ACTIVATIONS[activation]
    inputs, slopes = [x], []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = inputs[-1] @ w.mT
        if b is not None:
            z = z + b.unsqueeze(-2)
        inputs.append(sigma(z))
        slopes.append(slope(z))
    outputs = weights[-1].shape[-2]
    batch = torch.broadcast_shapes(x.shape[:-2], weights[0].shape[:-2])
    rows = (*batch, x.shape[-2], outputs)
    delta = torch.eye(outputs, dtype=x.dtype, device=x.device).expand(*rows, outputs)
    blocks: list[Tensor] = []
    for layer in reversed(range(len(weights))):
        bias = biases[layer]
        if bias is not None:
            blocks.append(delta)
        outer = delta.unsqueeze(-1) * inputs[layer].unsqueeze(-2).unsqueeze(-2)
        blocks.append(outer.flatten(-2))
        if layer > 0:
            delta = (delta @ weights[layer].unsqueeze(-3)) * slopes[layer - 1].unsqueeze(-2)
    blocks.reverse()
    if columns is not None:
        present = [c for layer, b in enumerate(biases) for c in _places(columns, layer, b)]
        placed = sorted((c, i) for i, c in enumerate(present) if c >= 0)
        blocks = [blocks[i] for _, i in placed]
    return torch.cat([block.expand(*rows, block.shape[-1]) for block in blocks], dim=-1)


def _places(columns: Sequence[int], layer: int, bias: Tensor | None) -> list[int]:
    weight = columns[2 * layer]
    return [weight] if bias is None else [weight, columns[2 * layer + 1]]
