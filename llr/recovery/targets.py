"""Targets: functions for experiments on recovery, and samples of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from llr.inputs.accept import a_module, needed, takes, takes_fields
from llr.inputs.evaluation.forward_errors import explained
from llr.inputs.mlp import NotAnMLP, read_mlp
from llr.inputs.roles import a_seed, number, whole
from llr.models import Conv1dTwoLayer, MatrixFactorization, NormalizedTwoLayer, SkipTwoLayer
from llr.models.parts import check_sizes
from llr.theory import Dimension, model_rank_of_function

Kind = Literal["generic", "separated", "linear-like", "given"]

RECOVERED = 1e-8
"""A function is recovered if its squared error on fresh points, relative to its mean square, is below it."""

_FRESH = 1000  # fresh points
_FRESH_SEED = 2**62  # the seed of fresh points, which no sample has
_TRIES = 20_000
# Conditions of "separated" targets: least sizes of weights, and the least distance of neurons.
_LEAST_OUTGOING, _LEAST_INCOMING, _LEAST_APART = 0.3, 0.5, 0.7
_NEARLY_LINEAR = 0.1  # the norm of incoming weights


@takes_fields(model=a_module)
@dataclass(frozen=True, eq=False)
class Target:
    """A function to be recovered: a model at certain parameters, in float64.

    Attributes:
        model: the function.
        kind: how its parameters were drawn.

    Example:
        >>> from llr.models import TwoLayer
        >>> from llr.recovery import Target
        >>> target = Target.separated(TwoLayer(5, 3, bias=False), seed=1)
        >>> x, y = target.sample(19, seed=2)
        >>> tuple(x.shape), tuple(y.shape), int(target.size)
        ((19, 5), (19, 1), 18)
        >>> target.error(target.model)
        0.0
    """

    model: nn.Module
    kind: Kind

    @classmethod
    @takes(architecture=a_module, seed=a_seed)
    def generic(cls, architecture: nn.Module, *, seed: int) -> Target:
        """A model with standard normal parameters.

        Args:
            architecture: a model of the wanted size; its parameters do not matter.
            seed: the seed of the parameters.
        """
        model = _copy(architecture)
        _draw(model, torch.Generator().manual_seed(seed))
        return cls(model, "generic")

    @classmethod
    @takes(architecture=a_module, seed=a_seed)
    def separated(cls, architecture: nn.Module, *, seed: int) -> Target:
        """Well-conditioned neurons: standard normal parameters, drawn until the neurons are far apart.

        Every neuron (kernel) has incoming weights of norm above 0.5 and outgoing weights of norm above 0.3,
        and any two have incoming weights more than 0.7 apart, up to sign. Biases are a part of the incoming
        weights.

        Args:
            architecture: a two-layer network or a convolution with shared kernels.
            seed: the seed of the parameters.

        Raises:
            ValueError: another architecture, or one with so many neurons on so few inputs that random
                neurons are never so far apart.
        """
        model = _copy(architecture)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(_TRIES):
            _draw(model, generator)
            if _are_separated(*_neurons(model)):
                return cls(model, "separated")
        raise ValueError(
            f"{len(_neurons(model)[0])} random neurons were never more than {_LEAST_APART} apart in "
            f"{_TRIES:,} draws; expected fewer neurons or more inputs, or use Target.generic"
        )

    @classmethod
    @takes(architecture=a_module, seed=a_seed)
    def linear_like(cls, architecture: nn.Module, *, seed: int) -> Target:
        """Neurons in the nearly linear range of their activation: incoming weights of norm 0.1.

        The outgoing weights are ten times as large as those of a generic target.

        Args:
            architecture: a two-layer network or a convolution with shared kernels.
            seed: the seed of the parameters.

        Raises:
            ValueError: another architecture.
        """
        model = _copy(architecture)
        _draw(model, torch.Generator().manual_seed(seed))
        incoming, _, outgoing = _ends(model)
        with torch.no_grad():
            incoming.mul_(_NEARLY_LINEAR / incoming.norm(dim=-1, keepdim=True))
            outgoing.div_(_NEARLY_LINEAR)
        return cls(model, "linear-like")

    @classmethod
    @takes(model=a_module)
    def given(cls, model: nn.Module) -> Target:
        """The function of a model at its own parameters, in float64."""
        return cls(_copy(model), "given")

    @property
    def size(self) -> Dimension:
        """The optimistic sample size of the function in its own architecture."""
        return model_rank_of_function(self.model)

    @takes(n=whole, seed=a_seed)
    def inputs(self, n: int, *, seed: int) -> Tensor:
        """n random inputs: standard normal (n, d), or distinct entries (n, 2) of a matrix.

        Raises:
            ValueError: more entries than the matrix has.
        """
        check_sizes(n=n)
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.model, MatrixFactorization):
            pairs = self.model.pairs()
            if n > len(pairs):
                raise ValueError(f"n is {n}, but the matrix has {len(pairs)} entries")
            return pairs[torch.randperm(len(pairs), generator=generator)[:n]]
        return torch.randn(n, _d(self.model), generator=generator, dtype=torch.float64)

    @takes(n=whole, seed=a_seed, noise_std=number)
    def sample(self, n: int, *, seed: int, noise_std: float = 0.0) -> tuple[Tensor, Tensor]:
        """n random inputs and the function's values there, (n, d) and (n, q).

        Args:
            n: how many samples.
            seed: the seed of the inputs, and of the noise.
            noise_std: standard deviation of normal noise on the values.
        """
        x = self.inputs(n, seed=seed)
        y = self(x)
        if noise_std:
            generator = torch.Generator().manual_seed(~seed)
            y = y + noise_std * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        return x, y

    @takes(x=needed)
    def __call__(self, x: Tensor) -> Tensor:
        """The function's values, (n, q)."""
        with torch.no_grad(), explained(x, "the target"):
            return cast(Tensor, self.model(x))

    def error(self, found: Callable[[Tensor], Tensor]) -> float:
        """The squared error of a model on fresh points, relative to the mean square of the function.

        A model with an error below :data:`RECOVERED` counts as the same function. For a matrix, the error is
        over all entries.

        Args:
            found: a model in float64, or any function of (n, d) to (n, q).
        """
        found = a_module("found", found) if isinstance(found, nn.Module) else found
        if isinstance(self.model, MatrixFactorization):
            x = self.model.pairs()
        else:
            x = self.inputs(_FRESH, seed=_FRESH_SEED)
        y = self(x)
        with torch.no_grad(), explained(x, "found"):
            return float(((found(x) - y) ** 2).mean() / (y**2).mean())


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().requires_grad_(True)


def _draw(model: nn.Module, generator: torch.Generator) -> None:
    theta = parameters_to_vector(model.parameters())
    with torch.no_grad():
        drawn = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        vector_to_parameters(drawn, model.parameters())


def _d(model: nn.Module) -> int:
    if isinstance(model, SkipTwoLayer):
        return model.skip.in_features
    if isinstance(model, NormalizedTwoLayer):
        model = model.neurons
    return model.d if isinstance(model, Conv1dTwoLayer) else read_mlp(model).widths[0]


def _ends(model: nn.Module) -> tuple[Tensor, Tensor | None, Tensor]:
    """The model's own incoming weights, biases and outgoing weights, with a row for each neuron or kernel."""
    if isinstance(model, Conv1dTwoLayer) and model.shared:
        return model.weight.detach(), None, model.out.detach()
    try:
        mlp = read_mlp(model)
    except NotAnMLP:
        mlp = None
    if mlp is None or len(mlp.weights) != 2:
        raise ValueError(
            f"the architecture is a {type(model).__name__}; expected a two-layer network or a convolution "
            "with shared kernels. Target.generic takes any model"
        )
    bias = mlp.biases[0]
    return (
        mlp.weights[0].detach(),
        None if bias is None else bias.detach(),
        mlp.weights[1].detach().T,
    )


def _neurons(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Incoming parameters and outgoing weights of the neurons or kernels, with a row for each."""
    weight, bias, outgoing = _ends(model)
    return (weight if bias is None else torch.cat((weight, bias[:, None]), 1)), outgoing


def _are_separated(incoming: Tensor, outgoing: Tensor) -> bool:
    k = len(incoming)
    i, j = torch.triu_indices(k, k, offset=1)
    apart = torch.minimum(
        (incoming[i] - incoming[j]).norm(dim=-1), (incoming[i] + incoming[j]).norm(dim=-1)
    )
    return bool(
        (outgoing.norm(dim=-1) > _LEAST_OUTGOING).all()
        and (incoming.norm(dim=-1) > _LEAST_INCOMING).all()
        and (apart > _LEAST_APART).all()
    )
