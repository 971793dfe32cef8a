"""The narrowest network of the same function that can be reached by merging neurons."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from llr.embedding.kernels import Kernels
from llr.embedding.merging import Layers
from llr.embedding.network import Network, read
from llr.embedding.numbers import model_as_numbers, model_from_numbers
from llr.embedding.rounding import rounding_of
from llr.inputs.accept import a_module, takes
from llr.inputs.activations import Polynomial
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.models import Conv1dTwoLayer
from llr.results import Record
from llr.results.html import Table, Verdict
from llr.theory.spans.formal import formal
from llr.theory.spans.symbols import Symbols
from llr.theory.structures.structure import (
    ConvNet,
    Row,
    exact_matrix,
    exact_row,
    read_structure,
    warn_of_near_copies,
)

# The number of standard normal points at which outputs are compared.
_SAMPLES = 256
# The largest number of terms of polynomials that are written out; more would take too long.
_MOST_TERMS = 200_000


@dataclass(frozen=True, eq=False, repr=False)
class Reduction(Record):
    """The result of merging the neurons of a network.

    Attributes:
        model: the narrow network, of the same kind, dtype and device.
        widths: its inputs, hidden widths and outputs; for a convolution inputs, channels, 1.
        before: the widths of the original network.
        steps: what was merged, absorbed and deleted, as text. Neurons have their original numbers.
        max_difference: the largest difference of the outputs of both networks on random samples, in float64.
        scale: the largest output on these samples.
        proved: whether both are the same function of real numbers, for their exact parameters: no weight had
            to be rounded.
    """

    model: nn.Module
    widths: tuple[int, ...]
    before: tuple[int, ...]
    steps: tuple[str, ...]
    max_difference: float
    scale: float
    proved: bool

    _order = (
        "0 <= max_difference",
        "0 <= scale",
    )

    def __str__(self) -> str:
        """The widths, how the outputs compare, and a line for each step."""
        old, new = ("-".join(map(str, w)) for w in (self.before, self.widths))
        same = "proved to be the same function" if self.proved else "the same function to rounding"
        head = (
            f"{old} reduced to {new}: {same}, outputs differ by up to {self.max_difference:.2g} of "
            f"{self.scale:.3g}"
        )
        return "\n".join([head, *(f"  {step}" for step in self.steps)])

    def _rules(self) -> Iterator[tuple[bool, str]]:
        ends = self.widths[:1] + self.widths[-1:], self.before[:1] + self.before[-1:]
        yield ends[0] == ends[1], "the same inputs and outputs in widths and before"
        yield len(self.widths) <= len(self.before), "no more layers in widths than before"

    def _written(self, name: str, hint: Any, spectrum: bool) -> Any:
        return (
            model_as_numbers(self.model)
            if name == "model"
            else super()._written(name, hint, spectrum)
        )

    @classmethod
    def _read(cls, name: str, hint: Any, content: Mapping[str, Any], where: str) -> Any:
        if name == "model":
            return model_from_numbers(content[name], where)
        return super()._read(name, hint, content, where)

    def _verdict(self) -> Verdict:
        return ("proved", "good") if self.proved else ("to rounding", "doubt")

    def _table(self) -> Table | None:
        return (("steps",), [(step,) for step in self.steps]) if self.steps else None


@takes(model=a_module)
@outside_inference_mode
def reduce(model: nn.Module) -> Reduction:
    """The narrowest network of the same function that merging, absorbing and deleting neurons gives.

    From the first layer to the last, until nothing changes: neurons without outgoing weights are deleted;
    constant ones are absorbed into the next biases, or into one of them where there are none; a neuron that
    is a combination of others is merged into these: an equal or reflected one, for sigmoid also by
    s(-z) = 1 - s(z) and for ReLU up to positive factors; sines of one direction; polynomials and linear
    neurons that are dependent in any way. Equality is exact equality of the parameters, and sums are formed
    exactly and rounded once at the end.

    For tanh and erf with one hidden layer the result is the narrowest network of the function; with more
    hidden layers this holds for almost all parameters. A layer keeps one neuron, with all of its parameters
    0, if the function does not depend on it. In a convolution without sharing, kernels are merged position by
    position and moved into as few channels as possible.

    Args:
        model: as for :func:`llr.embedding.split`.

    Returns:
        A `Reduction`. Outputs of both networks are compared on random samples in float64.

    Raises:
        TypeError: a model that is no module.
        ValueError: a model that :func:`llr.embedding.split` refuses; weights whose sums leave the range of
            the dtype; polynomials of too many terms.

    Warns:
        UserWarning: two neurons that are nearly, not exactly, equal, and were not merged.

    Source: docs/theory.md, 10.5.

    Example:
        >>> import torch
        >>> from llr.embedding import reduce
        >>> from llr.models import TwoLayer
        >>> w, b, a = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([0.5, -0.5, 1.0]), torch.ones(3, 1)
        >>> print(reduce(TwoLayer.of(w, b, a, torch.zeros(1))))
        1-3-1 reduced to 1-1-1: the same function to rounding, outputs differ by up to ...
          layer 0: neuron 2 is constant 0.761594: absorbed into the biases of layer 1
          layer 0: neuron 1 = -neuron 0: merged
          layer 0: neuron 0 has no outgoing weights: deleted
          layer 0: neuron 0 stays without weights, as the only one
    """
    network, structure = read(model)
    if isinstance(structure, ConvNet):
        kernels = Kernels(structure)
        kernels.reduce()
        own = [channel[:1] if structure.shared else channel for channel in kernels.kernels]
        rows = [[w for kernel in channel for w in kernel] for channel in own]
        weights = [_floats(rows), _floats(kernels.out).T]
        biases: Sequence[Tensor | None] = (None, None)
        steps = kernels.steps
    else:
        layers = Layers(
            network.activation,
            map(exact_matrix, network.weights),
            (None if b is None else exact_row(b) for b in network.biases),
            _coefficients(network),
        )
        layers.reduce()
        weights = [_floats(W) for W in layers.weights]
        biases = [None if b is None else _floats([b])[0] for b in layers.fractions()]
        steps = layers.steps
    narrow = replace(
        network,
        weights=tuple(network.rounded(W) for W in weights),
        biases=tuple(None if b is None else network.rounded(b) for b in biases),
    )
    if not all(bool(torch.isfinite(t).all()) for t in narrow.tensors):
        raise ValueError(
            f"sums of weights leave the range of {network.dtype}; scale the network, or model.double()"
        )
    _warn(narrow)
    return _compared(network, narrow, model, steps)


def _coefficients(network: Network) -> Row:
    """The coefficients of a polynomial activation, if the network can be written out in the inputs."""
    if not isinstance(network.layer, Polynomial):
        return ()
    degree, d = len(network.layer.coefficients) - 1, network.widths[0]
    terms = network.hidden[0] * math.comb(d + degree, degree)
    if terms > _MOST_TERMS:
        raise ValueError(
            f"the neurons are polynomials of {terms} terms together; expected at most {_MOST_TERMS}: take "
            "fewer neurons or inputs, or a lower degree"
        )
    return tuple(map(Fraction, network.layer.coefficients))


def _floats(rows: Sequence[Sequence[Fraction]]) -> Tensor:
    try:
        return torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64)
    except OverflowError:  # the caller raises an error for infinity
        return torch.full((len(rows), len(rows[0])), torch.inf, dtype=torch.float64)


def _warn(network: Network) -> None:
    """Warn of neurons that are nearly equal, in any layer."""
    conv = isinstance(network.like, Conv1dTwoLayer)
    for layer, (W, b) in enumerate(zip(network.weights[:-1], network.biases[:-1], strict=True)):
        rows = [exact_row(row) for row in (W if b is None else torch.cat((W, b[:, None]), 1))]
        what = "channels" if conv else f"layer {layer}: neurons"
        warn_of_near_copies(rows, f"{what} of the reduced network,")


def _compared(wide: Network, narrow: Network, model: nn.Module, steps: Sequence[str]) -> Reduction:
    reduced = narrow.model()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SAMPLES, wide.widths[0], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        old, new = (
            copy.deepcopy(m).cpu().double()(x).reshape(_SAMPLES, -1) for m in (model, reduced)
        )
    difference = float((old - new).abs().max())
    if not difference <= rounding_of(x, wide, narrow):
        raise RuntimeError(
            f"the outputs of the reduced network differ by {difference:.3g}, more than rounding explains: "
            "this is a mistake in llr, please report it with the model"
        )
    symbols = Symbols()
    before, after = (formal(read_structure(m), symbols) for m in (model, reduced))
    return Reduction(
        model=reduced,
        widths=narrow.widths,
        before=wide.widths,
        steps=tuple(steps),
        max_difference=difference,
        scale=float(old.abs().max()),
        proved=before.outputs == after.outputs,
    )
