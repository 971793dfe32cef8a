"""The optimistic sample size: the smallest dimension with which an architecture represents a function."""

from __future__ import annotations

from torch import nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.theory.functions.convolution_function import as_two_layer, convolution_model_rank
from llr.theory.functions.deep_function import deep_model_rank
from llr.theory.functions.linear_function import factorization_model_rank, linear_model_rank
from llr.theory.functions.two_layer_function import two_layer_model_rank
from llr.theory.result import Dimension, Term
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import (
    ConvNet,
    DeepNet,
    Factorization,
    LinearNet,
    Structure,
    TwoLayerNet,
    read_structure,
    warn_of_near_copies,
)
from llr.theory.tangents.tangent import dimension_of, incoming


@takes(model=a_module)
@outside_inference_mode
def model_rank_of_function(model: nn.Module) -> Dimension:
    """O(f): the number of samples that determine the model's function in the best case.

    It is the smallest dim T among all parameters of the model's architecture with this function; dim T at the
    model's own parameters may be larger. A function of k neurons has the cost of k neurons in a model of any
    width.

    Args:
        model: an MLP of any depth, or a model of :mod:`llr.models`. All its parameters are used, as exact
            numbers.

    Returns:
        "model rank", with its summands as terms. It is exact for one hidden layer, except for polynomials and
        some affine parts of several outputs, and for convolutions of tanh or erf, matrix factorization and
        linear networks. For deep networks it is an upper bound by reduction, which is exact almost everywhere
        for tanh with all biases.

    Raises:
        TypeError: `model` is not a module.
        ValueError: a model of no known structure, frozen parameters, parameters that are not finite.

    Warns:
        UserWarning: two neurons are nearly, but not exactly, equal.

    Source: docs/theory.md, Theorems 2.3 to 2.6, 3.2, 4.1, 5.1 and 6.3.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.theory import model_rank_of_function, tangent_dimension
        >>> w, b = torch.tensor([[0.9], [-0.9]]), torch.tensor([0.3, -0.3])
        >>> zero = TwoLayer.of(w, b, torch.ones(2, 1))  # the two neurons cancel each other
        >>> int(tangent_dimension(zero)), int(model_rank_of_function(zero))
        (3, 0)
    """
    structure = read_structure(model)
    warn_of_near_copies(incoming(structure))
    return rank_in(structure, structure)


@takes(architecture=a_module, target=a_module)
@outside_inference_mode
def optimistic_sample_size(architecture: nn.Module, target: nn.Module) -> Dimension:
    """O(f) of a target's function in another architecture: its model rank there.

    Args:
        architecture: the model that will be trained. Only its structure is used, not its parameters.
        target: a model with the function. It may have another width, and it may be a convolution while the
            architecture is fully connected, or the reverse.

    Returns:
        As for :func:`model_rank_of_function`.

    Raises:
        TypeError: an argument is not a module.
        ValueError: the architecture cannot represent the function, which the message explains, or is of a
            kind that llr does not compare with the target's; what :func:`model_rank_of_function` refuses.

    Warns:
        UserWarning: two neurons of the target are nearly, but not exactly, equal.

    Source: docs/theory.md, Theorems 2.3 to 2.6, 3.2, 4.1, 5.1 and 6.3.

    Example:
        >>> from llr.models import Conv1dTwoLayer, TwoLayer
        >>> from llr.theory import optimistic_sample_size
        >>> kernel = Conv1dTwoLayer(5, 3, 1)
        >>> for net in (
        ...     Conv1dTwoLayer(5, 3, 4),
        ...     Conv1dTwoLayer(5, 3, 4, shared=False),
        ...     TwoLayer(5, 12, bias=False),
        ... ):
        ...     print(int(optimistic_sample_size(net, kernel)))
        6
        12
        18
    """
    ours, theirs = read_structure(architecture), read_structure(target)
    warn_of_near_copies(incoming(theirs))
    return rank_in(ours, theirs)


def rank_in(architecture: Structure, target: Structure) -> Dimension:
    """:func:`optimistic_sample_size` of structures that were read before."""
    if isinstance(architecture, TwoLayerNet | ConvNet) and isinstance(
        target, TwoLayerNet | ConvNet
    ):
        if isinstance(architecture, ConvNet) and PARITY.get(architecture.activation) != "odd":
            return _own_bound(architecture, target)
        neurons = as_two_layer(target) if isinstance(target, ConvNet) else target
        if isinstance(architecture, ConvNet):
            return convolution_model_rank(neurons, architecture)
        return two_layer_model_rank(neurons, architecture)
    if isinstance(architecture, Factorization) and isinstance(target, Factorization):
        return factorization_model_rank(target, architecture)
    if isinstance(architecture, LinearNet | DeepNet) and isinstance(target, LinearNet | DeepNet):
        if _is_linear(architecture) and _is_linear(target):
            return linear_model_rank(target, architecture)
        if isinstance(architecture, DeepNet) and isinstance(target, DeepNet):
            return deep_model_rank(target, architecture)
    raise ValueError(
        f"the architecture is {_words(architecture)}, and the target {_words(target)}; expected targets of "
        "the same kind"
    )


def _own_bound(architecture: ConvNet, target: TwoLayerNet | ConvNet) -> Dimension:
    """For convolutions without a closed form: dim T at the target's own parameters."""
    if not isinstance(target, ConvNet) or (
        (target.activation, target.d, target.s, target.shared)
        != (architecture.activation, architecture.d, architecture.s, architecture.shared)
    ):
        raise ValueError(
            f"the architecture is {_words(architecture)}, which llr knows only for functions of "
            f"convolutions like it; the target is {_words(target)}"
        )
    if len(target.kernels) > len(architecture.kernels):
        raise ValueError(
            f"the architecture has {len(architecture.kernels)} kernels, but the target has "
            f"{len(target.kernels)}; llr does not look for narrower forms of a convolution of "
            f"{target.activation}"
        )
    term = Term(dimension_of(target).upper, "at most, from the target's own kernels")
    return Dimension.between("model rank", 0, [term], "Theorem 6.2", architecture.n_params)


def _is_linear(net: Structure) -> bool:
    return isinstance(net, LinearNet) or (isinstance(net, DeepNet) and net.activation == "identity")


def _words(net: Structure) -> str:
    if isinstance(net, TwoLayerNet):
        return f"a two-layer network of {net.activation}"
    if isinstance(net, ConvNet):
        return (
            f"a {'shared' if net.shared else 'locally connected'} convolution of {net.activation}"
        )
    if isinstance(net, Factorization):
        return "a matrix factorization"
    if _is_linear(net):
        return "a linear network"
    assert isinstance(net, DeepNet)
    return f"a network of {len(net.weights) - 1} hidden layers of {net.activation}"
