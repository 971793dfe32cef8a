"""How far outputs may differ by rounding alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from llr.activations import Polynomial
from llr.embedding.network import Network
from llr.models import Conv1dTwoLayer

# How many times the effect of rounding outputs may differ by.
_MARGIN = 64.0
# No slope of the activations in the table is larger (GELU's is up to 1.13).
_STEEPEST = 1.2


def rounding_of(x: Tensor, *networks: Network) -> float:
    """How far outputs of networks of one function may differ, their weights being rounded to their dtypes.

    Args:
        x: (n, d) float64.
        networks: those that are compared.
    """
    return max(
        _MARGIN * len(net.weights) * torch.finfo(net.dtype).eps * _reach(net, x) for net in networks
    )


def _reach(network: Network, x: Tensor) -> float:
    """How large outputs could be if all terms of all sums had one sign: what rounding is relative to."""
    x = x.abs()
    if isinstance(network.like, Conv1dTwoLayer):
        s, p = network.like.kernel_size, network.like.positions
        kernels = network.weights[0].abs().view(len(network.weights[0]), -1, s)
        patches = x.unfold(1, s, 1)
        z = torch.einsum("nps,mps->nmp", patches, kernels.expand(-1, p, -1))
        top = torch.einsum("nmp,pm->n", _bound(network, z), network.weights[1].abs())
        return float(top.max())
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        z = x if not layer else _bound(network, x)
        x = z @ W.abs().T + (0 if b is None else b.abs())
    return float(x.max())


def _bound(network: Network, z: Tensor) -> Tensor:
    """At least |s(z)| and |z s'(z)|, for all arguments of this size and less."""
    if isinstance(network.layer, Polynomial):
        terms = enumerate(cast(Sequence[float], network.layer.coefficients))
        return sum(((n + 1) * abs(c) * z**n for n, c in terms), torch.zeros_like(z))
    return _STEEPEST * z + 1
