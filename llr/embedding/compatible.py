"""Embeddings more general than splits: copies with different weights that keep signals and errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llr.embedding.moves import PLAIN_SHARES, Numbers, pick, vector_of, wanted_hidden
from llr.embedding.network import Network, Spread, embed, read
from llr.embedding.record import Embedding
from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_generator, a_sequence, maybe, sizes

# Sums of weights may differ from their value by so many rounding errors of their terms.
_ROUNDINGS = 8
# Sizes of random shifts relative to the weights. The first one that adds without rounding is taken.
_SIZES = (2.0, 1.0, 0.5, 0.25, 0.125)


class _Copies(NamedTuple):
    """The wide neurons of a layer, as copies of narrow ones."""

    origins: Tensor
    kappas: Tensor
    signs: Tensor

    @classmethod
    def single(cls, n: int) -> _Copies:
        """Every neuron once."""
        one = torch.ones(n, dtype=torch.float64)
        return cls(torch.arange(n), one, one)


@takes(
    model=a_module,
    origins=a_sequence,
    kappas=a_sequence,
    signs=maybe(a_sequence),
    weights=maybe(a_sequence),
)
@outside_inference_mode
def compatible(
    model: nn.Module,
    origins: Sequence[Sequence[int]],
    kappas: Sequence[Numbers],
    weights: Sequence[Tensor | None] | None = None,
    *,
    signs: Sequence[Sequence[int]] | None = None,
) -> tuple[nn.Module, Embedding]:
    """A wide network of copies that keep signals and errors, with given weights between hidden layers.

    Wide neuron j of a layer is a copy of narrow neuron pi(j) with a share kappa_j: it has the same signal,
    and kappa_j times the error (the derivative of the outputs by the neuron's input). This holds if

    1. the shares of the copies of every neuron sum to 1;
    2. *signals:* the weights of a wide neuron for the copies of a narrow neuron below sum to the narrow
       weight;
    3. *errors:* the weights for a wide neuron i of the copies j of a narrow neuron above, each multiplied by
       kappa_j, sum to kappa_i times the narrow weight.

    Then every wide tangent function is kappa_j times a narrow one. Since not all shares of a neuron are 0,
    the tangent spaces are equal at all narrow parameters, for every activation, and a critical point stays
    critical for all samples and losses. Splits have the weights kappa_i w; None means these weights. Networks
    in which the rows of copies differ are not compositions of splits and null neurons. For almost every
    narrow network condition 3 is also necessary. The conditions are checked to rounding; how exactly they
    hold depends on the numbers given.

    Args:
        model: as for :func:`llr.embedding.split`.
        origins: for each hidden layer pi, the narrow neuron that each wide neuron is a copy of.
        kappas: for each hidden layer the shares, any real numbers.
        weights: for each pair of consecutive hidden layers the wide matrix, (above, below), or None for
            ``kappa_i w``; default: None for all. Weights from the inputs and to the outputs follow from these
            choices.
        signs: for each hidden layer 1 or -1 for each wide neuron; -1 reflects it, for odd activations. In the
            sums of conditions 2 and 3, each weight is multiplied by the signs of both neurons.

    Returns:
        The wide model and the `Embedding`. The difference of `weights` and ``kappa_i w`` is the constant of
        the embedding, to rounding, so that it is an embedding at all narrow parameters.

    Raises:
        TypeError: a model that is no module; values that are no numbers.
        ValueError: a model that :func:`llr.embedding.split` refuses; lists of wrong lengths; a neuron
            without copies; a violated condition, which the message names.

    Source: docs/theory.md, Theorem 10.4.

    Example:
        >>> import torch
        >>> from llr.embedding import compatible
        >>> from llr.models import mlp
        >>> narrow = mlp([1, 1, 1, 1]).double()
        >>> u = narrow[2].weight.item()
        >>> between = torch.tensor([[u - 1, 1], [1, u - 1]], dtype=torch.float64)
        >>> wide, _ = compatible(narrow, [[0, 0], [0, 0]], [[0.5, 0.5], [0.5, 0.5]], [between])
        >>> x = torch.linspace(-1, 1, 9)[:, None].double()
        >>> bool(torch.allclose(wide(x), narrow(x)))
        True
    """
    network, _ = read(model)
    depth = len(network.hidden)
    weights = [None] * max(depth - 1, 0) if weights is None else weights
    for name, values, size in (
        ("origins", origins, depth),
        ("kappas", kappas, depth),
        ("signs", signs, depth),
        ("weights", weights, max(depth - 1, 0)),
    ):
        if values is not None and len(values) != size:
            raise ValueError(f"{name} has {len(values)} entries; expected {size}, one per layer")
    copies = [
        _checked(
            network, layer, origins[layer], kappas[layer], None if signs is None else signs[layer]
        )
        for layer in range(depth)
    ]
    shifts, own = [], {}
    for layer, block in enumerate(weights, 1):
        above, below = copies[layer], copies[layer - 1]
        shape = (len(above.origins), len(below.origins))
        if block is None:
            shifts.append(torch.zeros(shape, dtype=torch.float64))
            continue
        if not isinstance(block, Tensor) or tuple(block.shape) != shape:
            found = tuple(block.shape) if isinstance(block, Tensor) else type(block).__name__
            raise ValueError(
                f"weights between wide layers {layer - 1} and {layer} are {found}; expected a matrix {shape}"
            )
        if not bool(torch.isfinite(block).all()):
            raise ValueError(f"weights {layer - 1} have NaN or infinity; expected finite numbers")
        own[layer] = network.rounded(block.detach().double().cpu())
        _check_block(network, layer, own[layer], above, below)
        index, factor = _plain(above, below)
        shifts.append(own[layer] - factor * network.weights[layer][index])
    wide, embedding = _embed(network, copies, shifts)
    # Take the weights as given: the sum of kappa_i w and the shift may be rounded.
    exact = tuple(own.get(layer, W) for layer, W in enumerate(wide.weights))
    return replace(wide, weights=exact).model(), embedding


@takes(model=a_module, widths=sizes, generator=a_generator)
@outside_inference_mode
def random_compatible(
    model: nn.Module, widths: Sequence[int] | int, generator: torch.Generator | None = None
) -> tuple[nn.Module, Embedding]:
    """A random wide network of copies that keep signals and errors; see :func:`compatible`.

    Shares are products of 1/2, -1 and 2. Weights between the copies of two neurons in consecutive hidden
    layers are shifted at random, if both neurons have several copies and the shift is exact in the model's
    dtype. Such networks are not compositions of splits and null neurons.

    Args:
        model: as for :func:`llr.embedding.split`.
        widths: as for :func:`llr.embedding.widen`.
        generator: the generator of the random choices, on the CPU; default: that of torch.

    Returns:
        The wide model and the `Embedding`.

    Raises:
        TypeError: as for :func:`llr.embedding.widen`.
        ValueError: as for :func:`llr.embedding.widen`.

    Source: docs/theory.md, Theorem 10.4.

    Example:
        >>> import torch
        >>> from llr.embedding import random_compatible
        >>> from llr.models import mlp
        >>> wide, _ = random_compatible(mlp([1, 1, 1, 1]).double(), [1, 2, 2, 1])
        >>> bool((wide[2].weight[0] == wide[2].weight[1]).all())
        False
    """
    network, _ = read(model)
    wanted = wanted_hidden(network, widths)
    copies = [_random_copies(network, layer, n, generator) for layer, n in enumerate(wanted)]
    shifts = [
        _random_shift(network, layer, above, below, generator)
        for layer, (below, above) in enumerate(pairwise(copies), 1)
    ]
    wide, embedding = _embed(network, copies, shifts)
    return wide.model(), embedding


def _embed(
    network: Network, copies: Sequence[_Copies], shifts: Sequence[Tensor]
) -> tuple[Network, Embedding]:
    """The wide network of these copies, with these shifts of the weights between hidden layers."""
    inputs, outputs = network.weights[0].shape[1], len(network.weights[-1])
    layers = [_Copies.single(inputs), *copies, _Copies.single(outputs)]
    none = torch.zeros((), dtype=torch.float64)
    spreads = {}
    for layer, (below, above) in enumerate(pairwise(layers)):
        index, factor = _plain(above, below)
        between = 0 < layer <= len(shifts)
        shift = shifts[layer - 1] if between else none.expand(factor.shape)
        spreads["weight", layer] = Spread(index, factor, shift)
        if network.biases[layer] is not None:
            spreads["bias", layer] = Spread(
                (above.origins,), above.signs, torch.zeros_like(above.signs)
            )
    steps = [
        f"layer {layer}: copies of neurons {part.origins.tolist()}, shares "
        f"{[round(k, 6) for k in part.kappas.tolist()]}"
        + (
            f", signs {[int(s) for s in part.signs.tolist()]}"
            if bool((part.signs < 0).any())
            else ""
        )
        for layer, part in enumerate(copies)
    ]
    steps += [
        f"layer {layer}: incoming weights shifted by up to {float(shift.abs().max()):.6g}"
        for layer, shift in enumerate(shifts, 1)
        if bool(shift.any())
    ]
    return embed(network, spreads, *steps)


def _plain(above: _Copies, below: _Copies) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The narrow weight that every wide weight comes from, and the factor: kappa_i times the signs."""
    index = (above.origins[:, None], below.origins[None])
    return index, above.signs[:, None] * (below.signs * below.kappas)[None]


def _checked(
    network: Network,
    layer: int,
    origins: Sequence[int],
    kappas: Numbers,
    signs: Sequence[int] | None,
) -> _Copies:
    """The copies of a layer, after a check of origins, shares and signs."""
    n = network.hidden[layer]
    if any(type(i) is not int or not 0 <= i < n for i in origins):
        raise ValueError(
            f"origins of layer {layer} are {list(origins)}; expected neurons, 0 to {n - 1}"
        )
    missing = sorted(set(range(n)) - set(origins))
    if missing:
        raise ValueError(f"origins of layer {layer} leave out neuron {missing[0]}; expected a copy")
    what = f"wide neurons of layer {layer}"
    pi = torch.tensor(list(origins))
    k = vector_of("kappas", kappas, len(pi), what)
    sign = vector_of("signs", [1] * len(pi) if signs is None else signs, len(pi), what)
    if bool((sign.abs() != 1).any()) or (bool((sign < 0).any()) and not network.odd):
        expected = "1 or -1" if network.odd else f"1, since {network.activation} is not odd"
        raise ValueError(f"signs of layer {layer} are {sign.tolist()}; expected {expected}")
    zeros = torch.zeros(n, dtype=torch.float64)
    total, size = zeros.index_add(0, pi, k), zeros.index_add(0, pi, k.abs())
    off = (total - 1).abs() > _ROUNDINGS * torch.finfo(torch.float64).eps * (size + 1)
    if bool(off.any()):
        i = int(off.nonzero()[0])
        raise ValueError(
            f"shares: the kappas of the copies of neuron {i} in layer {layer} sum to {float(total[i])!r}; "
            "expected 1"
        )
    return _Copies(pi, k, sign)


def _check_block(
    network: Network, layer: int, block: Tensor, above: _Copies, below: _Copies
) -> None:
    """Refuse weights that do not keep signals and errors."""
    W = network.weights[layer]
    M = above.signs[:, None] * block * below.signs[None]
    eps = _ROUNDINGS * torch.finfo(network.dtype).eps

    def sums(M: Tensor) -> Tensor:
        return torch.zeros(len(M), W.shape[1], dtype=M.dtype).index_add(1, below.origins, M)

    def weighted(M: Tensor, kappas: Tensor) -> Tensor:
        zeros = torch.zeros(len(W), M.shape[1], dtype=M.dtype)
        return zeros.index_add(0, above.origins, kappas[:, None] * M)

    expected = W[above.origins]
    off = (sums(M) - expected).abs() > eps * (sums(M.abs()) + expected.abs())
    if bool(off.any()):
        j, i = (int(v) for v in off.nonzero()[0])
        raise ValueError(
            f"signals: the weights from the copies of neuron {i} in layer {layer - 1} to neuron {j} of wide "
            f"layer {layer} sum to {float(sums(M)[j, i])!r}; expected {float(expected[j, i])!r}, the weight "
            f"to neuron {int(above.origins[j])}"
        )
    found, expected = weighted(M, above.kappas), below.kappas * W[:, below.origins]
    off = (found - expected).abs() > eps * (weighted(M.abs(), above.kappas.abs()) + expected.abs())
    if bool(off.any()):
        c, i = (int(v) for v in off.nonzero()[0])
        raise ValueError(
            f"errors: the weights from neuron {i} of wide layer {layer - 1} to the copies of neuron {c} in "
            f"layer {layer}, times their kappas, sum to {float(found[c, i])!r}; expected "
            f"{float(expected[c, i])!r}, the weight from neuron {int(below.origins[i])} times kappa {i}"
        )


def _random_copies(
    network: Network, layer: int, width: int, generator: torch.Generator | None
) -> _Copies:
    n = network.hidden[layer]
    origins, kappas, signs = list(range(n)), [1.0] * n, [1] * n
    while len(origins) < width:
        j = pick(range(len(origins)), generator)
        t = pick(PLAIN_SHARES, generator)
        origins.append(origins[j])
        signs.append(pick((1, -1), generator) if network.odd else 1)
        kappas.append(t * kappas[j])
        kappas[j] *= 1 - t
    k, s = (torch.tensor(v, dtype=torch.float64) for v in (kappas, signs))
    return _Copies(torch.tensor(origins), k, s)


def _random_shift(
    network: Network,
    layer: int,
    above: _Copies,
    below: _Copies,
    generator: torch.Generator | None,
) -> Tensor:
    """A random matrix that can be added to kappa_i w without changing signals and errors."""
    W = network.weights[layer]
    total = torch.zeros(len(above.origins), len(below.origins), dtype=torch.float64)
    index, factor = _plain(above, below)
    plain = factor * W[index]
    for c in range(len(W)):
        for i in range(W.shape[1]):
            rows, columns = (above.origins == c).nonzero(), (below.origins == i).nonzero()
            if len(rows) < 2 or len(columns) < 2:
                continue
            j = rows[torch.randperm(len(rows), generator=generator)[:2], 0]
            k = columns[torch.randperm(len(columns), generator=generator)[:2], 0]
            a = above.kappas[j].flip(0) * torch.tensor([1.0, -1.0], dtype=torch.float64)
            a = above.signs[j] * a / a.abs().max()
            b = below.signs[k] * torch.tensor([1.0, -1.0], dtype=torch.float64)
            scale = 2.0 ** round(math.log2(abs(float(W[c, i])))) if W[c, i] else 1.0
            scale *= float(below.kappas[k].abs().min()) * pick((1.0, -1.0), generator)
            block = (j[:, None], k[None])
            for size in _SIZES:
                shift = size * scale * a[:, None] * b[None]
                if _adds_exactly(network, plain[block], shift):
                    total[block] = shift
                    break
    return total


def _adds_exactly(network: Network, M: Tensor, N: Tensor) -> bool:
    return all(
        Fraction(s) == Fraction(m) + Fraction(n)
        for s, m, n in zip(
            network.rounded(M + N).flatten().tolist(),
            M.flatten().tolist(),
            N.flatten().tolist(),
            strict=True,
        )
    )
