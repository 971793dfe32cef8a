"""The data sets of claims.py: kinds by name; each kind makes a set from a seed.

A set consists of samples, targets, and the function that they come from. For each set, a claim of `recover`
would be false or may easily be false. The kinds are in claims_samples.py and claims_functions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llr.models import TwoLayer
from llr.recovery import Target

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Set:
    """A data set, and how `recover` is called with it."""

    x: Tensor
    truth: Function
    options: dict[str, Any]
    y: Tensor | None = None
    """Targets, if they are not exactly the function's values."""
    in_class: bool = True
    """Whether the function is a network of the class that `recover` searches."""

    @property
    def targets(self) -> Tensor:
        return self.truth(self.x) if self.y is None else self.y


@dataclass(frozen=True)
class Kind:
    make: Callable[[int, torch.Generator], Set]
    apart: bool = False
    """Whether no procedure can find the function from these samples; counted separately."""


KINDS: dict[str, Kind] = {}


Make = Callable[[int, torch.Generator], Set]


def kind(*, apart: bool = False) -> Callable[[Make], Make]:
    """Register a kind under the name of its function."""

    def register(make: Make) -> Make:
        KINDS[make.__name__.replace("_", " ")] = Kind(make, apart)
        return make

    return register


def data_set(name: str, seed: int) -> Set:
    """The set that a kind makes from a seed."""
    number = sum(ord(c) * 31**i for i, c in enumerate(name)) % 10**6
    return KINDS[name].make(seed, torch.Generator().manual_seed(number + 10**6 * (seed + 1)))


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=g, dtype=torch.float64) - 1


def planted(
    seed: int, d: int, k: int, activation: str = "tanh", draw: str = "separated", **options: Any
) -> Target:
    architecture = TwoLayer(d, k, activation=activation, **{"bias": False, **options})
    return getattr(Target, draw)(architecture, seed=seed)


def options(
    max_width: int,
    activation: str = "tanh",
    bias: bool = False,
    output_bias: bool = False,
    **more: Any,
) -> dict[str, Any]:
    return {
        "max_width": max_width,
        "activation": activation,
        "bias": bias,
        "output_bias": output_bias,
        **more,
    }
