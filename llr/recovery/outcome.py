"""What a search for a two-layer network ends with, and what may be said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from llr.models import TwoLayer
from llr.theory import Dimension

Status = Literal["certified", "ambiguous", "not_found"]


@dataclass(frozen=True)
class NoiseTest:
    """Whether the residuals of a fit are what noise of the given size leaves.

    Attributes:
        width: of the network that was fitted.
        statistic: sum of squared residuals over noise_std^2.
        dof: degrees of freedom: observations minus parameters.
        p_value: how often noise alone leaves residuals at least as large (chi-squared, for samples that are
            many enough for the network to be nearly linear in its parameters within the noise).
    """

    width: int
    statistic: float
    dof: int
    p_value: float


@dataclass(frozen=True, eq=False)
class Recovery:
    """What was found, and what may be said of it.

    Attributes:
        status: "certified", "ambiguous" or "not_found"; see :func:`recover`.
        claim: what that means here, in words.
        model: the network found, of the least width that fits; None if none does.
        width: its hidden neurons.
        rank: of its Jacobian on the samples: as many observations as it takes to pin it down.
        size: O, the optimistic sample size of its function.
        train_error: its squared residuals, relative to the targets' mean square.
        interpolants: networks of different functions that fit as well, where the data do not decide; the
            narrowest first, `model` among them.
        tests: with noise, the test of every width that was looked at.
        starts: how many starts were made.
        seconds: how long it took.
        n: samples.
    """

    status: Status
    claim: str
    model: TwoLayer | None
    width: int | None
    rank: int | None
    size: Dimension | None
    train_error: float
    interpolants: tuple[TwoLayer, ...]
    tests: tuple[NoiseTest, ...]
    starts: int
    seconds: float
    n: int

    def __bool__(self) -> bool:
        return self.status == "certified"

    def __str__(self) -> str:
        """The verdict, and on a second line the numbers."""
        numbers = f"{self.n} samples, {self.starts} starts, {self.seconds:.2g} s"
        if self.model is not None:
            numbers = (
                f"width {self.width}, O = {'?' if self.size is None else self.size.upper}, rank {self.rank}, "
                f"relative training error {self.train_error:.1e}; {numbers}"
            )
        return f"{self.status}: {self.claim}\n  {numbers}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON; networks as lists of numbers."""
        return {
            "status": self.status,
            "claim": self.claim,
            "width": self.width,
            "rank": self.rank,
            "optimistic_sample_size": None if self.size is None else self.size.to_dict(),
            "train_error": self.train_error if math.isfinite(self.train_error) else None,
            "model": None if self.model is None else _numbers(self.model),
            "interpolants": [_numbers(net) for net in self.interpolants],
            "tests": [vars(test) for test in self.tests],
            "starts": self.starts,
            "seconds": self.seconds,
            "samples": self.n,
        }


def _numbers(net: nn.Module) -> dict[str, Any]:
    return {name: p.tolist() for name, p in net.state_dict().items()}
