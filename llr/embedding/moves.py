"""Moves that add a neuron and keep the function: splits, null neurons, and random compositions of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor, nn

from llr.embedding.network import Network, Spread, embed, read, spread_columns, spread_rows
from llr.embedding.record import Embedding
from llr.inputs.accept import a_module, numbers_or_one, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_generator, sizes
from llr.inputs.tensors import refuse_complex
from llr.models import Conv1dTwoLayer
from llr.results.phrases import counted

Numbers = Sequence[float] | Tensor
Choice = TypeVar("Choice")

_ZERO = torch.zeros((), dtype=torch.float64)
# Both t and 1 - t are powers of two, up to sign: products with these shares are exact.
PLAIN_SHARES = (0.5, -1.0, 2.0)
# No two biases are opposite: of s(b) and s(-b) = 1 - s(b), symbolic arithmetic can divide by one only.
_NULL_BIASES = (0.0, 0.5, -0.75, 1.0, -1.25)


@takes(model=a_module, share=numbers_or_one)
@outside_inference_mode
def split(
    model: nn.Module, layer: int, neuron: int, share: float | Numbers = 0.5, sign: int = 1
) -> tuple[nn.Module, Embedding]:
    """Add a copy of a neuron and divide the outgoing weights between both.

    Outgoing weights v become (1 - t) v at the neuron and t v at the copy, which is the last neuron of the
    wide layer. With one share t for all of v the tangent space stays the same, at any parameters, depth and
    activation. Different shares for the downstream neurons enlarge it, by n_in + 1 for generic narrow
    networks with at least two downstream neurons. This is about exact numbers: products with the share that
    need more digits than the dtype has are rounded, differently for each downstream neuron, and the record
    says so. Products with the shares 0, 1/2, 1, -1 and 2 are exact for all weights.

    Args:
        model: an MLP as `llr.jacobian` recognises it, or a ``Conv1dTwoLayer``, whose neurons are channels and
            whose downstream neurons are positions.
        layer: hidden layer, from 0 on.
        neuron: which neuron, or channel, from 0 on.
        share: t, any real number; or one for each downstream neuron.
        sign: -1 reflects the copy: incoming parameters and outgoing weights change sign; for odd activations.

    Returns:
        The wide model, of the same kind, dtype and device, and the `Embedding` that leads to it.

    Raises:
        TypeError: a model that is no module.
        ValueError: a model that is no MLP and no convolution, or has frozen or non-finite parameters; a layer
            or neuron that does not exist; shares that are not finite, or too few or too many; a sign other
            than 1 and -1, or -1 for an activation that is not odd; products out of the range of the dtype.

    Source: docs/theory.md, Propositions 10.1 and 10.2.

    Example:
        >>> import torch
        >>> from llr.embedding import split
        >>> from llr.models import TwoLayer
        >>> narrow = TwoLayer.of(torch.tensor([[3.0]]), None, torch.tensor([[2.0]]))
        >>> wide, _ = split(narrow, 0, 0, share=0.25, sign=-1)
        >>> wide[0].weight.flatten().tolist(), wide[2].weight.flatten().tolist()
        ([3.0, -3.0], [1.5, -0.5])
    """
    network, _ = read(model)
    network.check_neuron(layer, neuron)
    _check_sign(network, sign)
    downstream = len(network.weights[layer + 1])
    if isinstance(share, int | float):
        if not math.isfinite(share):
            raise ValueError(f"share is {share!r}; expected a finite number")
        shares = torch.full((downstream,), float(share), dtype=torch.float64)
    else:
        what = f"downstream neurons of layer {layer}"
        shares = vector_of("share", share, downstream, what)
    wide, embedding = _split(network, layer, neuron, shares, sign)
    return wide.model(), embedding


@takes(model=a_module, incoming=numbers_or_one, outgoing=numbers_or_one)
@outside_inference_mode
def null(
    model: nn.Module,
    layer: int,
    *,
    incoming: Numbers | None = None,
    bias: float = 0.0,
    outgoing: Numbers | None = None,
) -> tuple[nn.Module, Embedding]:
    """Add a neuron that does not change the function.

    By default incoming and outgoing weights and the bias are 0. Then the tangent space stays the same, if the
    next layer has biases or s(0) = 0. It also stays the same with any bias, if the next layer has biases. It
    grows (the numbers are those of generic narrow networks) by

    * n_out, if the constant s(bias) != 0 enters a layer without biases: a new signal;
    * n_out, if the neuron has new incoming weights and no outgoing ones: a new signal;
    * n_in, if it is constant and has outgoing weights, and ``outgoing * s(bias)`` is subtracted from the
      biases of the next layer: its incoming weights become new directions.

    Args:
        model: as for :func:`split`.
        layer: hidden layer, from 0 on.
        incoming: n_in weights; default: zeros.
        bias: its bias; 0 in a layer without biases.
        outgoing: n_out weights; default: zeros. If they are not zero, `incoming` must be zero, so that the
            neuron is constant.

    Returns:
        The wide model and the `Embedding`; the new neuron is the last one of its layer.

    Raises:
        TypeError: a model that is no module.
        ValueError: a model that :func:`split` refuses; numbers that are not finite, or too few or too many; a
            bias in a layer without biases; incoming and outgoing weights that are both not 0; a constant
            before a layer without biases to absorb it.

    Source: docs/theory.md, Proposition 10.3.

    Example:
        >>> from llr.embedding import null
        >>> from llr.models import mlp
        >>> wide, embedding = null(mlp([1, 2, 1]), 0, bias=0.5)
        >>> print(embedding)
        1-2-1 in 1-3-1: 7 of 10 parameters
          layer 0: null neuron 2, bias 0.5
    """
    network, _ = read(model)
    network.check_layer(layer)
    n_in, n_out = network.weights[layer].shape[1], len(network.weights[layer + 1])
    row = _vector_or_zeros("incoming", incoming, n_in, "inputs of the neuron")
    column = _vector_or_zeros("outgoing", outgoing, n_out, "downstream neurons")
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
        raise ValueError(f"bias is {bias!r}; expected a finite number")
    if bias and network.biases[layer] is None:
        raise ValueError(f"bias is {bias!r}, but layer {layer} has no biases; expected 0")
    row, column = network.rounded(row), network.rounded(column)
    bias = float(network.rounded(torch.tensor(float(bias), dtype=torch.float64)))
    if bool(column.any()):
        if bool(row.any()):
            raise ValueError(
                "incoming and outgoing weights are both not 0: the neuron would change the function; leave "
                "out one of them"
            )
        if network.at(bias) and network.biases[layer + 1] is None:
            raise ValueError(
                f"the neuron sends the constant {network.at(bias):.6g}, and layer {layer + 1} has no biases "
                "that could absorb it; leave outgoing out"
            )
    wide, embedding = _null(network, layer, row, bias, column)
    return wide.model(), embedding


@takes(model=a_module, widths=sizes, generator=a_generator)
@outside_inference_mode
def widen(
    model: nn.Module, widths: Sequence[int] | int, generator: torch.Generator | None = None
) -> tuple[nn.Module, Embedding]:
    """A wide network of the same function and the same tangent space, otherwise random.

    Neurons are added one at a time, to layers in random order. Either a random neuron is split with a random
    share, and the copy is reflected with probability 1/2 if the activation is odd; or, if this keeps the
    tangent space, a null neuron is added. With the shares used all products are exact, so that the functions
    are equal as functions of real numbers, and not to rounding only.

    Args:
        model: as for :func:`split`.
        widths: inputs, hidden widths, outputs, as for ``llr.models.mlp``; for a convolution the number of
            channels.
        generator: the generator of the random choices, on the CPU; default: that of torch.

    Returns:
        The wide model and the `Embedding`, whose steps list the moves.

    Raises:
        TypeError: a model that is no module; widths that are no integers.
        ValueError: a model that :func:`split` refuses; another number of layers, inputs or outputs; a width
            smaller than the model's.

    Source: docs/theory.md, Propositions 10.2 and 10.3.

    Example:
        >>> import torch
        >>> from llr.embedding import reduce, widen
        >>> from llr.models import mlp
        >>> wide, _ = widen(mlp([1, 2, 2, 1]), [1, 4, 4, 1], torch.Generator().manual_seed(0))
        >>> reduce(wide).widths
        (1, 2, 2, 1)
    """
    network, _ = read(model)
    wanted = wanted_hidden(network, widths)
    layers = [layer for layer, n in enumerate(wanted) for _ in range(n - network.hidden[layer])]
    order = torch.randperm(len(layers), generator=generator).tolist()
    wide, embedding = embed(network, {})
    for at in order:
        wide, step = _random_step(wide, layers[at], generator)
        embedding = embedding.then(step)
    return wide.model(), embedding


def _random_step(
    network: Network, layer: int, generator: torch.Generator | None
) -> tuple[Network, Embedding]:
    absorbs = network.biases[layer + 1] is not None
    if (absorbs or network.at(0.0) == 0) and pick((True, False, False, False), generator):
        free = absorbs and network.biases[layer] is not None
        bias = pick(_NULL_BIASES, generator) if free else 0.0
        row, column = (torch.zeros(n, dtype=torch.float64) for n in _sides(network, layer))
        return _null(network, layer, row, bias, column)
    neuron = int(torch.randint(network.hidden[layer], (), generator=generator))
    eighths = int(torch.randint(-12, 21, (), generator=generator))
    share = eighths / 8
    column = network.weights[layer + 1][:, neuron]
    if not _exact(network, column, torch.full_like(column, share)):
        share = pick(PLAIN_SHARES, generator)
    # Near the ends of the dtype's range, products with these shares may be inexact, too.
    if not _exact(network, column, torch.full_like(column, share)):
        share = 0.0
    sign = pick((1, -1), generator) if network.odd else 1
    return _split(network, layer, neuron, torch.full_like(column, share), sign)


def _exact(network: Network, column: Tensor, shares: Tensor) -> bool:
    """Whether the dtype holds both parts of the outgoing weights exactly."""
    for t in (shares, 1 - shares):
        parts = network.rounded(column * t).tolist()
        for part, v, share in zip(parts, column.tolist(), t.tolist(), strict=True):
            if not math.isfinite(part) or Fraction(part) != Fraction(v) * Fraction(share):
                return False
    return True


def pick(choices: Sequence[Choice], generator: torch.Generator | None) -> Choice:
    """One of these at random."""
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _sides(network: Network, layer: int) -> tuple[int, int]:
    """The numbers of incoming and of outgoing weights of a neuron of the layer."""
    return network.weights[layer].shape[1], len(network.weights[layer + 1])


def _split(
    network: Network, layer: int, neuron: int, shares: Tensor, sign: int
) -> tuple[Network, Embedding]:
    n, (n_in, n_out) = network.hidden[layer], _sides(network, layer)
    origins = torch.tensor([*range(n), neuron])
    factor = torch.ones(n + 1, dtype=torch.float64)
    factor[-1] = sign
    spreads = {("weight", layer): spread_rows(origins, n_in, factor[:, None], _ZERO)}
    if network.biases[layer] is not None:
        spreads["bias", layer] = Spread((origins,), factor, torch.zeros_like(factor))
    parts = torch.ones(n_out, n + 1, dtype=torch.float64)
    parts[:, neuron], parts[:, -1] = 1 - shares, sign * shares
    spreads["weight", layer + 1] = spread_columns(origins, n_out, parts, _ZERO)
    common = bool((shares == shares[0]).all())
    told = (
        f"share {shares[0]:.6g}" if common else f"shares {[round(t, 6) for t in shares.tolist()]}"
    )
    reflected = ", reflected" if sign < 0 else ""
    exact = _exact(network, network.weights[layer + 1][:, neuron], shares)
    step = f"layer {layer}: neuron {neuron} split, copy {n}{reflected}, {told}"
    step += "" if exact else ", outgoing weights rounded"
    return embed(network, spreads, step)


def _null(
    network: Network, layer: int, incoming: Tensor, bias: float, outgoing: Tensor
) -> tuple[Network, Embedding]:
    n, (n_in, n_out) = network.hidden[layer], _sides(network, layer)
    origins = torch.tensor([*range(n), 0])
    kept = torch.ones(n + 1, dtype=torch.float64)
    kept[-1] = 0
    shift = torch.zeros(n + 1, n_in, dtype=torch.float64)
    shift[-1] = incoming
    spreads = {("weight", layer): spread_rows(origins, n_in, kept[:, None], shift)}
    if network.biases[layer] is not None:
        spreads["bias", layer] = Spread((origins,), kept, bias * (1 - kept))
    sent = torch.zeros(n_out, n + 1, dtype=torch.float64)
    sent[:, -1] = outgoing
    spreads["weight", layer + 1] = spread_columns(origins, n_out, kept, sent)
    absorbed = outgoing * network.at(bias)
    if bool(absorbed.any()):
        every = torch.arange(n_out)
        spreads["bias", layer + 1] = Spread((every,), torch.ones_like(absorbed), -absorbed)
    told = [f"layer {layer}: null neuron {n}"]
    told += [f"bias {bias:.6g}"] if bias else []
    told += ["new incoming weights"] if bool(incoming.any()) else []
    told += ["constant, absorbed by the next biases"] if bool(outgoing.any()) else []
    return embed(network, spreads, ", ".join(told))


def wanted_hidden(network: Network, widths: Sequence[int] | int) -> tuple[int, ...]:
    """The hidden widths that the caller wants, checked.

    Raises:
        TypeError: widths that are no integers.
        ValueError: widths that do not fit the network, or that are smaller than its own.
    """
    have = network.widths
    conv = isinstance(network.like, Conv1dTwoLayer)
    if conv and type(widths) is int:
        widths = (have[0], widths, have[-1])
    if not isinstance(widths, Sequence) or any(type(w) is not int for w in widths):
        expected = "the number of channels" if conv else f"widths such as {list(have)}"
        raise TypeError(f"widths is {widths!r}; expected {expected}")
    if len(widths) != len(have) or (widths[0], widths[-1]) != (have[0], have[-1]):
        raise ValueError(
            f"widths are {list(widths)}; expected {len(have)} numbers, inputs and outputs being those of the "
            f"model, {list(have)}"
        )
    for layer, (wide, n) in enumerate(zip(widths[1:-1], network.hidden, strict=True)):
        if wide < n:
            raise ValueError(
                f"widths has {counted(wide, 'neuron')} in layer {layer}, but the model has {n}; expected at "
                "least as many. llr.embedding.reduce makes a network narrower if its function allows it"
            )
    return tuple(widths[1:-1])


def vector_of(name: str, values: Numbers, size: int, what: str) -> Tensor:
    """Numbers as a float64 vector, checked."""
    refuse_complex(name, values)
    try:
        vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is {values!r}; expected numbers") from error
    if tuple(vector.shape) != (size,):
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; expected {size} numbers, one for each of the {what}"
        )
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} is {vector.tolist()}; expected finite numbers")
    return vector


def _vector_or_zeros(name: str, values: Numbers | None, size: int, what: str) -> Tensor:
    if values is None:
        return torch.zeros(size, dtype=torch.float64)
    return vector_of(name, values, size, what)


def _check_sign(network: Network, sign: int) -> None:
    if sign not in (1, -1):
        raise ValueError(f"sign is {sign!r}; expected 1 or -1")
    if sign == -1 and not network.odd:
        raise ValueError(
            f"sign is -1, but {network.activation} is not odd: a reflected copy would change the function; "
            "expected 1"
        )
