"""Networks as layers of neurons, on which moves act; conversion from models and to models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from llr.embedding.record import Embedding
from llr.inputs.activations import Polynomial, activation_layer
from llr.inputs.assembly import layers_of
from llr.inputs.mlp import NotAnMLP, read_mlp
from llr.models import Conv1dTwoLayer, DeepLinear, TwoLayer
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import ConvNet, Factorization, Structure, read_structure


@dataclass(frozen=True)
class Network:
    """A model as layers of neurons, in float64 numbers that the model's dtype can hold.

    The hidden neurons of a convolution are its channels: the incoming weights are the kernels, and there is
    an outgoing weight for each position.
    """

    weights: tuple[Tensor, ...]
    """(n_l, n_(l-1)) each; for a convolution (channels, kernel numbers) and (positions, channels)."""
    biases: tuple[Tensor | None, ...]
    activation: str
    """A name of :data:`llr.operators.formula.ACTIVATIONS`, or "polynomial"."""
    layer: nn.Module
    """The activation as a layer."""
    places: tuple[Tensor, ...]
    """The positions of the entries of :attr:`tensors` in the parameter vector of the model."""
    like: nn.Module
    """The model it was read from, or one with the same kind of layers."""
    flattens: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Weights and biases, layer by layer."""
        pairs = zip(self.weights, self.biases, strict=True)
        return tuple(t for pair in pairs for t in pair if t is not None)

    @property
    def hidden(self) -> tuple[int, ...]:
        """The widths of the hidden layers."""
        return tuple(len(W) for W in self.weights[:-1])

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden widths, outputs."""
        if isinstance(self.like, Conv1dTwoLayer):
            return (self.like.d, *self.hidden, 1)
        return (self.weights[0].shape[1], *self.hidden, len(self.weights[-1]))

    @property
    def n_params(self) -> int:
        """P."""
        return sum(t.numel() for t in self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return next(self.like.parameters()).dtype

    @property
    def odd(self) -> bool:
        """Whether s(-z) = -s(z)."""
        if isinstance(self.layer, Polynomial):
            return not any(self.layer.coefficients[::2])
        return self.activation in ("identity", "sin") or PARITY[self.activation] == "odd"

    def at(self, z: float) -> float:
        """s(z)."""
        return float(self.layer(torch.tensor(z, dtype=torch.float64)))

    def rounded(self, t: Tensor) -> Tensor:
        """The numbers, rounded to the model's dtype."""
        return t.to(self.dtype).double()

    def check_layer(self, layer: int) -> None:
        """Refuse an index that is not one of a hidden layer."""
        if type(layer) is not int or not 0 <= layer < len(self.hidden):
            found = (
                f"layers 0 to {len(self.hidden) - 1} (hidden layers are counted from 0)"
                if self.hidden
                else "no hidden layer"
            )
            raise ValueError(f"layer is {layer!r}, but the model has {found}")

    def check_neuron(self, layer: int, neuron: int) -> None:
        """Refuse an index that is not one of a neuron of this hidden layer."""
        self.check_layer(layer)
        if type(neuron) is not int or not 0 <= neuron < self.hidden[layer]:
            raise ValueError(
                f"neuron is {neuron!r}; expected 0 to {self.hidden[layer] - 1}, the neurons of layer {layer}"
            )

    def model(self) -> nn.Module:
        """A new model with these parameters, with the device and dtype of the original model."""
        device = next(self.like.parameters()).device
        weights = [W.to(device, self.dtype) for W in self.weights]
        biases = [None if b is None else b.to(device, self.dtype) for b in self.biases]
        if isinstance(self.like, Conv1dTwoLayer):
            kernels = weights[0].view(len(weights[0]), *self.like.weight.shape[1:])
            return Conv1dTwoLayer.of(
                kernels, weights[1].T, d=self.like.d, activation=self.activation
            ).train(self.like.training)
        if type(self.like) is TwoLayer:
            (w, a), (b, c) = weights, biases
            model: nn.Module = TwoLayer.of(w, b, a.T, c, activation=self.layer)
        elif type(self.like) is DeepLinear:
            model = DeepLinear.of(*weights)
        else:
            between = None if self.activation == "identity" else self.layer
            start = [nn.Flatten()] if self.flattens else []
            model = nn.Sequential(*start, *layers_of(weights, biases, between))
        return model.train(self.like.training)


def read(model: nn.Module) -> tuple[Network, Structure]:
    """The model as layers of neurons, and as a structure of :mod:`llr.theory`.

    Raises:
        TypeError: a model that is no module.
        ValueError: a model of unknown structure, or without neurons; frozen or non-finite parameters.
    """
    structure = read_structure(model)
    if isinstance(structure, Factorization):
        raise ValueError(
            f"{type(model).__name__} has no neurons to embed or merge; expected an MLP or a "
            "Conv1dTwoLayer. llr.model_rank(model) finds the rank of any model numerically"
        )
    parameters, start = {}, 0
    for p in model.parameters():
        parameters[id(p)] = torch.arange(start, start + p.numel()).view(p.shape)
        start += p.numel()
    flattens = False
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    if isinstance(model, Conv1dTwoLayer):
        activation, layer = model.activation, activation_layer(model.activation)
        weights, biases = (model.weight, model.out), (None, None)
    else:
        activation, layer, flattens, weights, biases = _layers(model)
    own = [t for pair in zip(weights, biases, strict=True) for t in pair if t is not None]
    places = [parameters[id(t)] for t in own]
    exact = [t.detach().double().cpu() for t in weights]
    if isinstance(structure, ConvNet):
        exact, places = ([t[0].flatten(1), t[1].T] for t in (exact, places))
    return Network(
        weights=tuple(exact),
        biases=tuple(None if b is None else b.detach().double().cpu() for b in biases),
        activation=activation,
        layer=layer,
        places=tuple(places),
        like=model,
        flattens=flattens,
    ), structure


def _layers(
    model: nn.Module,
) -> tuple[str, nn.Module, bool, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    try:
        mlp = read_mlp(model)
    except (
        NotAnMLP
    ):  # read_structure accepts other activations only if they are polynomials between two layers
        first, act, last = cast(nn.Sequential, model)
        pair = cast(tuple[nn.Linear, nn.Linear], (first, last))
        return (
            "polynomial",
            activation_layer(act),
            False,
            tuple(layer.weight for layer in pair),
            tuple(cast(Tensor | None, layer.bias) for layer in pair),
        )
    return mlp.activation, activation_layer(mlp.activation), mlp.flattens, mlp.weights, mlp.biases


class Spread(NamedTuple):
    """How a tensor follows from a narrower one: ``factor * narrow[at] + shift``."""

    at: tuple[Tensor, ...]
    factor: Tensor
    shift: Tensor


def spread_rows(origins: Tensor, columns: int, factor: Tensor, shift: Tensor) -> Spread:
    """A weight matrix with a row for each neuron of `origins`; factors and shifts broadcast."""
    shape = (len(origins), columns)
    index = (origins[:, None], torch.arange(columns)[None])
    return Spread(index, factor.expand(shape), shift.expand(shape))


def spread_columns(origins: Tensor, rows: int, factor: Tensor, shift: Tensor) -> Spread:
    """A weight matrix with a column for each neuron of `origins`; factors and shifts broadcast."""
    shape = (rows, len(origins))
    index = (torch.arange(rows)[:, None], origins[None])
    return Spread(index, factor.expand(shape), shift.expand(shape))


def embed(
    network: Network, spreads: Mapping[tuple[str, int], Spread], *steps: str
) -> tuple[Network, Embedding]:
    """A wider network and the embedding that leads to it.

    Args:
        network: the narrow network.
        spreads: for ("weight", l) and ("bias", l), how the tensors that change follow from the narrow ones.
        steps: the move as text.
    """
    flat: list[tuple[Tensor, Tensor, Tensor]] = []  # source, factor, constant
    values: dict[str, list[Tensor | None]] = {"weight": [], "bias": []}
    places = iter(network.places)
    for layer, pair in enumerate(zip(network.weights, network.biases, strict=True)):
        for name, t in zip(("weight", "bias"), pair, strict=True):
            if t is None:
                values[name].append(None)
                continue
            place = next(places)
            if (name, layer) not in spreads:
                values[name].append(t)
                flat.append((place, torch.ones_like(t), torch.zeros_like(t)))
                continue
            index, factor, shift = spreads[name, layer]
            wide = network.rounded(factor * t[index] + shift)
            if not bool(torch.isfinite(wide).all()):
                raise ValueError(
                    f"the move takes a {name} of layer {layer} out of the range of {network.dtype}; take "
                    "smaller shares and weights, or model.double()"
                )
            values[name].append(wide)
            flat.append((place[index], factor, shift))
    weights, biases = cast(list[Tensor], values["weight"]), values["bias"]
    wider = replace(network, weights=tuple(weights), biases=tuple(biases), places=())
    wider = replace(wider, places=_places(wider))
    source, factor, constant = (
        _flat(wider.places, part, dtype)
        for part, dtype in zip(
            zip(*flat, strict=True), (torch.int64, torch.float64, torch.float64), strict=True
        )
    )
    embedding = Embedding(
        narrow=network.widths,
        wide=wider.widths,
        source=source,
        factor=factor,
        constant=constant,
        n_narrow=network.n_params,
        steps=steps,
    )
    return wider, embedding


def _places(network: Network) -> tuple[Tensor, ...]:
    """The positions of the entries in the parameter vector of ``network.model()``."""
    places, start = [], 0
    transposed = isinstance(network.like, Conv1dTwoLayer)
    for t in network.tensors:
        numbers = torch.arange(start, start + t.numel())
        if transposed and start:
            places.append(numbers.view(t.shape[1], t.shape[0]).T)
        else:
            places.append(numbers.view(t.shape))
        start += t.numel()
    return tuple(places)


def _flat(places: Sequence[Tensor], parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Entries of tensors in the order of the parameter vector."""
    vector = torch.empty(sum(p.numel() for p in places), dtype=dtype)
    for place, part in zip(places, parts, strict=True):
        vector[place.flatten()] = part.flatten()
    return vector
