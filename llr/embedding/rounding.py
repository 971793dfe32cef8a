"""Effects of rounding: how far outputs may differ, and what a bias was before it was rounded."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
from flint import arb
from torch import Tensor, nn

from llr.embedding.network import Network
from llr.inputs.activations import Polynomial
from llr.linalg.balls import precision
from llr.models import Conv1dTwoLayer
from llr.theory.spans.formal import Formal, formal
from llr.theory.spans.symbols import Vector, combined

# Outputs may differ by so many times the effect of rounding.
_MARGIN = 8.0
# A bias that has absorbed constants may differ from their exact sum by so many rounding errors.
_ROUNDINGS = 8
_BITS = 128
# No slope of the activations in the table is larger (GELU's is up to 1.13).
_STEEPEST = 1.2


def rounding_of(x: Tensor, *networks: Network) -> float:
    """How far outputs of networks of one function may differ because their weights were rounded.

    Args:
        x: (n, d) float64.
        networks: the networks that are compared.
    """
    return max(
        _MARGIN * len(net.weights) * torch.finfo(net.dtype).eps * _reach(net, x) for net in networks
    )


def _reach(network: Network, x: Tensor) -> float:
    """The largest output if all terms of all sums had the same sign: rounding is relative to this."""
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
    """An upper bound of |s(t)| and |t s'(t)| for all |t| <= z."""
    if isinstance(network.layer, Polynomial):
        terms = enumerate(cast(Sequence[float], network.layer.coefficients))
        return sum(((n + 1) * abs(c) * z**n for n, c in terms), torch.zeros_like(z))
    return _STEEPEST * z + 1


def before_rounding(narrow: nn.Module, network: Network, above: Formal) -> Formal:
    """The narrow network in symbols, with the biases that it would have if none had been rounded.

    If neurons of the wide network are constants such as tanh(1), which the narrow network has in its biases,
    no floating-point numbers make the functions equal. The narrow biases are then replaced by the exact
    values of the wide network, if they agree up to rounding.

    Args:
        narrow: the narrow model.
        network: the same model as layers of neurons.
        above: the wide network in symbols, with as many layers.
    """
    symbols = above.symbols
    eps = torch.finfo(network.dtype).eps

    def adjust(layer: int, z: Vector) -> Vector:
        if network.biases[layer] is None:
            return z
        for wide in above.preactivations[layer]:
            for sign in (1, -1):
                other = combined([(Fraction(sign), wide)])
                gap = combined([(Fraction(1), z), (Fraction(-1), other)])
                if gap and symbols.is_constant(gap) and is_rounding(gap, z, other):
                    return other
        return z

    def is_rounding(gap: Vector, z: Vector, other: Vector) -> bool:
        numbers = [(m, c) for v in (z, other) for m, c in v.items() if symbols.is_constant({m: c})]
        with precision(_BITS):
            size = sum((abs(symbols.value({m: c})) for m, c in numbers), arb(0))
            return bool(abs(symbols.value(gap)) <= size * (_ROUNDINGS * eps))

    return formal(narrow, symbols, adjust)
