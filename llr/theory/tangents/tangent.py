"""The tangent dimension of every model that the theory covers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.theory.result import Dimension
from llr.theory.spans.formal import formal_tangent
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import (
    ConvNet,
    DeepNet,
    Factorization,
    LinearNet,
    Row,
    Structure,
    TwoLayerNet,
    read_structure,
    warn_of_near_copies,
)
from llr.theory.tangents.convolution import convolution_tangent
from llr.theory.tangents.linear import factorization_tangent, linear_tangent
from llr.theory.tangents.two_layer import two_layer_tangent


@takes(model=a_module)
@outside_inference_mode
def tangent_dimension(model: nn.Module) -> Dimension:
    """dim T at a model's parameters, also degenerate ones: how many samples determine its function locally.

    The rank of the Jacobian on any samples is at most dim T, and it is equal to dim T on almost all samples
    with this many observations.

    Args:
        model: an MLP of any depth, or a model of :mod:`llr.models`. All its parameters are used, as exact
            numbers.

    Returns:
        "dim T", with its summands as terms. It is exact for one hidden layer, convolutions of tanh or erf,
        matrix factorization and linear networks. For deep networks it is an upper bound, which almost all
        parameters attain.

    Raises:
        TypeError: `model` is not a module.
        ValueError: a model of no known structure, frozen parameters, parameters that are not finite.

    Warns:
        UserWarning: two neurons are nearly, but not exactly, equal.

    Source: docs/theory.md, Theorems 2.2, 2.5, 2.6, 3.1, 4.1, 5.1 and 6.2.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.theory import tangent_dimension
        >>> model = TwoLayer(3, 2)
        >>> _ = torch.nn.init.zeros_(model[2].weight)
        >>> print(tangent_dimension(model))
        dim T = 2 of 10 parameters (Theorem 2.2)
             +1  neuron 0 has no outgoing weight: 1
             +1  neuron 1 has no outgoing weight: 1
    """
    structure = read_structure(model)
    warn_of_near_copies(incoming(structure))
    return dimension_of(structure)


def dimension_of(structure: Structure) -> Dimension:
    """:func:`tangent_dimension` of a structure that was read before."""
    if isinstance(structure, TwoLayerNet):
        return two_layer_tangent(structure)
    if isinstance(structure, Factorization):
        return factorization_tangent(structure)
    if isinstance(structure, LinearNet):
        return linear_tangent(structure)
    if isinstance(structure, ConvNet) and PARITY.get(structure.activation) == "odd":
        return convolution_tangent(structure)
    return formal_tangent(structure)


def incoming(structure: Structure) -> Sequence[Row]:
    """The incoming parameters of the neurons of the first layer, one row per neuron."""
    if isinstance(structure, TwoLayerNet):
        weights, biases = structure.w, structure.b
    elif isinstance(structure, DeepNet):
        weights, biases = structure.weights[0], structure.biases[0]
    elif isinstance(structure, ConvNet):
        channels = [k[:1] if structure.shared else k for k in structure.kernels]
        return [kernel for channel in channels for kernel in channel]
    else:
        return []
    if biases is None:
        return weights
    return [(*w, b) for w, b in zip(weights, biases, strict=True)]
