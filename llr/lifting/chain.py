"""MLPs as the matrices of their layers, and MLPs from such matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llr.inputs.assembly import layers_of
from llr.inputs.mlp import NotAnMLP, read_mlp
from llr.theory.structures.structure import read_structure


@dataclass(frozen=True, eq=False)
class Chain:
    """The layers of an MLP in float64, which holds parameters of lower precision exactly."""

    activation: str
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    columns: tuple[slice, ...]
    """The positions of the tensors (weight 0, bias 0, weight 1, ...) in the model's parameter vector."""

    @property
    def hidden(self) -> int:
        """The number of hidden layers."""
        return len(self.weights) - 1

    @property
    def tensors(self) -> list[Tensor]:
        """Weight 0, bias 0, weight 1, ...; missing biases are left out."""
        return tensors(self.weights, self.biases)

    @property
    def n_params(self) -> int:
        """P."""
        return sum(t.numel() for t in self.tensors)

    def module(self) -> nn.Sequential:
        """The MLP as a new module in float64."""
        return nn.Sequential(*layers_of(self.weights, self.biases, self.activation))


def tensors(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Weight 0, bias 0, weight 1, ...; missing biases are left out."""
    return [t for pair in zip(weights, biases, strict=True) for t in pair if t is not None]


def chain_of(activation: str, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Chain:
    """A chain whose parameters are in the order of its layers."""
    columns, start = [], 0
    for t in tensors(weights, biases):
        columns.append(slice(start, start + t.numel()))
        start += t.numel()
    return Chain(activation, tuple(weights), tuple(biases), tuple(columns))


def read_chain(model: nn.Module, hidden: int, why: str) -> Chain:
    """Read the layers of an MLP with an activation.

    Args:
        model: the MLP.
        hidden: the least number of hidden layers.
        why: the reason why so many are needed, for the message.

    Raises:
        TypeError: a model that is no module.
        ValueError: a model that is not an MLP with so many hidden layers and an activation; parameters that
            are frozen or not finite.
    """
    read_structure(model)
    try:
        mlp = read_mlp(model)
    except NotAnMLP as departure:
        raise ValueError(
            f"narrow is a {type(model).__name__}; expected an MLP, with one activation of "
            f"llr.models.ACTIVATIONS after each hidden layer ({departure})"
        ) from departure
    found = len(mlp.weights) - 1
    if found < hidden or mlp.activation == "identity":
        raise ValueError(
            f"narrow is a {mlp}; expected an MLP with an activation and at least {hidden} hidden "
            f"layer{'s' if hidden > 1 else ''}: {why}"
        )
    columns, start = {}, 0
    for p in model.parameters():
        columns[id(p)] = slice(start, start + p.numel())
        start += p.numel()
    return Chain(
        mlp.activation,
        tuple(W.detach().double().cpu() for W in mlp.weights),
        tuple(None if b is None else b.detach().double().cpu() for b in mlp.biases),
        tuple(columns[id(t)] for t in tensors(mlp.weights, mlp.biases)),
    )


def check_index(name: str, value: object, size: int, of: str) -> None:
    """Refuse a value that is not an index of a list of this size."""
    if type(value) is not int or not 0 <= value < size:
        raise ValueError(
            f"{name} is {value!r}; expected one of the {size} {of}, from 0 to {size - 1}"
        )
