"""Activations as layers, by name, including those for which torch has no layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llr.inputs.accept import takes
from llr.inputs.roles import a_sequence
from llr.operators import formula


class Erf(nn.Module):
    """The error function as a layer.

    Example:
        >>> import torch
        >>> from llr.models import Erf
        >>> Erf()(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.8427])
    """

    def forward(self, z: Tensor) -> Tensor:
        """Return erf of every entry."""
        return torch.erf(z)


class Sine(nn.Module):
    """The sine as a layer.

    Example:
        >>> import torch
        >>> from llr.models import Sine
        >>> Sine()(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.8415])
    """

    def forward(self, z: Tensor) -> Tensor:
        """Return the sine of every entry."""
        return torch.sin(z)


class Polynomial(nn.Module):
    """A polynomial as a layer, with rational derivatives at rational numbers.

    It computes ``c_0 + c_1 z + ... + c_n z^n``.

    Args:
        coefficients: c_0, c_1, ..., c_n, taken as exact binary numbers.

    Raises:
        ValueError: no coefficients, or one that is not exactly a finite float64.
        TypeError: a coefficient that is not a number.

    Example:
        >>> import torch
        >>> from llr.models import Polynomial
        >>> cubic = Polynomial([0, 1, 0, 2])
        >>> cubic(torch.tensor([1.0, 2.0])), cubic.name
        (tensor([ 3., 18.]), 'polynomial(0, 1, 0, 2)')
    """

    @takes(coefficients=a_sequence)
    def __init__(self, coefficients: Sequence[float]) -> None:
        super().__init__()
        for c in coefficients:
            if not isinstance(c, int | float):
                raise TypeError(f"coefficient {c!r} is {type(c).__name__}; expected a number")
            if not math.isfinite(c) or float(c) != c:
                raise ValueError(f"coefficient {c!r} is no finite float64; expected one, exactly")
        self.coefficients = tuple(float(c) + 0.0 for c in coefficients)  # no negative zeros
        if not self.coefficients:
            raise ValueError("coefficients is empty; expected c_0, c_1, ..., at least one")

    @property
    def name(self) -> str:
        """The name under which ball arithmetic finds it, with exact coefficients."""
        return f"polynomial({', '.join(repr(c).removesuffix('.0') for c in self.coefficients)})"

    def forward(self, z: Tensor) -> Tensor:
        """Return the polynomial of every entry."""
        value = torch.zeros_like(z)
        for c in reversed(self.coefficients):
            value = value * z + c
        return value

    def extra_repr(self) -> str:
        """The coefficients, for printing."""
        return self.name.removeprefix("polynomial(").removesuffix(")")


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "erf": Erf,
    "sin": Sine,
    "identity": nn.Identity,
}
"""name -> a function that returns a new layer."""
FUNCTIONS = formula.ACTIVATIONS
"""name -> (sigma, sigma') on tensors."""


def activation_layer(activation: str | nn.Module) -> nn.Module:
    """A new layer of the activation with this name, or a copy of the given one.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a module.

    Example:
        >>> from llr.inputs.activations import Polynomial, activation_layer
        >>> activation_layer("silu"), activation_layer(Polynomial([0, 0, 1]))
        (SiLU(), Polynomial(0, 0, 1))
    """
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation)
    if not isinstance(activation, str):
        raise TypeError(
            f"activation is {type(activation).__name__}; expected a name or a module, such as "
            "Polynomial([0, 0, 1])"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]()
