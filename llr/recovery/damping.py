"""The damping of Levenberg-Marquardt, its limits, and how a start can end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llr.inputs.accept import takes_fields

STATUS = ("converged", "stalled", "limit", "failed", "skipped")
"""How a start can end, in the order of the native operator's codes."""
CONVERGED, STALLED, LIMIT, FAILED, SKIPPED = range(len(STATUS))


@takes_fields()
@dataclass(frozen=True)
class Damping:
    """The number lambda added to the diagonal of J'J, and the limits of a start.

    An iteration tries one step. If the step lowers the sum of squares, it is taken and lambda falls;
    otherwise lambda grows.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> from llr.recovery import Damping
        >>> Damping(start=0.1, iterations=50).up
        3.0
    """

    start: float = 1.0
    """The first lambda. It is added to a sum over the samples, not to a mean."""
    down: float = 0.2
    """The factor of lambda after a step that is taken, at most 1."""
    up: float = 3.0
    """The factor of lambda after a step that is rejected, above 1."""
    stall: int = 20
    """A start is given up after so many stalled iterations in a row."""
    iterations: int = 160
    """A start is given up after so many iterations in all."""
    progress: float = 0.01
    """An iteration is stalled unless it lowers the sum of squares by this fraction. With 0 only rejected
    steps are stalled; this takes twice the time, for slow starts that hardly ever converge."""

    @classmethod
    def of(cls, damping: str | Damping) -> Damping:
        """The damping for an argument, which is a `Damping`, "fast" or "slow".

        Raises:
            TypeError: neither a name nor a damping.
            ValueError: an unknown name.
        """
        expected = f"expected {', '.join(map(repr, DAMPING))} or a llr.recovery.Damping"
        if isinstance(damping, Damping):
            return damping
        if not isinstance(damping, str):
            raise TypeError(f"damping is {type(damping).__name__}; {expected}")
        if damping not in DAMPING:
            raise ValueError(f"damping is {damping!r}; {expected}")
        return DAMPING[damping]

    def __post_init__(self) -> None:
        for name in ("start", "down", "up"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; expected a positive number")
        if not self.down <= 1 < self.up:
            raise ValueError(
                f"down is {self.down!r} and up is {self.up!r}; expected down <= 1 < up"
            )
        if not 0 <= self.progress < 1:
            raise ValueError(f"progress is {self.progress!r}; expected 0 <= progress < 1")
        for name, least in (("stall", 1), ("iterations", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}; expected an integer, at least {least}")


DAMPING = {"fast": Damping(), "slow": Damping(10.0, 0.7, 2.0, 40, 250)}
"""With "fast", many starts take little time, and more distinct minima are found. With "slow", more of the
starts succeed."""

LEAST, MOST = 1e-100, 1e100
"""Bounds of lambda."""
LOST = 2.0**-52
"""A Cholesky pivot below this fraction of its diagonal entry has no correct digits: the step is not tried."""
VANISHING = 2.0**-52
"""A step this small, relative to the largest parameter, changes nothing."""
