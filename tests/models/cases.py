"""Random numbers for the tests of models."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(*shape: int, seed: int = 0, most: int = 9) -> Tensor:
    """Random integers as floating-point numbers, for which exact arithmetic is fast."""
    return torch.randint(-most, most + 1, shape, generator=generator(seed)).double()
