"""Many starts of Levenberg-Marquardt, in rounds of growing size, until one of them fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.accept import takes_fields
from llr.inputs.roles import real
from llr.recovery.damping import Damping
from llr.recovery.lm import Fits, levenberg_marquardt
from llr.recovery.starts import initial
from llr.results.progress import step

FITTED = 1e-20
"""A fit is accepted if its mean squared residual, relative to the targets' mean square, is below this."""

EXACT = 1e-22
"""A polished fit is exact if its error is below this. Rounding alone causes much smaller errors."""

NEAR = 1e-6
"""A fit is polished only if its error is below this."""

DEFAULT_STARTS = 100_000
_FIRST_ROUND, _LARGEST_ROUND = 8, 2048
# Standard deviations of the first parameters, used in turns. For each there are targets that it hardly ever
# finds, and that another one finds from one start in ten.
_SCALES = (0.1, 0.3, 1.0)
_POLISHED = 1e-32  # an error below rounding: polishing goes on until no step improves the fit
_CANDIDATES = 8
# If neurons nearly cancel, solutions lie in narrow curved valleys. Steps along a valley are short, and
# thousands are needed; a damping that changes only little from step to step follows it best.
_SLOW = Damping(1e-6, 0.9, 1.5, stall=100, iterations=20_000, progress=0.0)

Report = Callable[[int, float], object]
"""Called with the starts so far, and the smallest squared residuals so far, relative to the targets.

The search ends if it returns True.
"""


@takes_fields(seconds=real)
@dataclass(frozen=True)
class Budget:
    """When a search gives up: at the first limit reached. Only a limit of starts is deterministic.

    Example:
        >>> from llr.recovery import Budget
        >>> Budget(starts=500)
        Budget(starts=500, seconds=None)
    """

    starts: int | None = DEFAULT_STARTS
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.starts is not None and (type(self.starts) is not int or self.starts < 1):
            raise ValueError(f"starts of the budget is {self.starts!r}; expected an integer >= 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds of the budget is {self.seconds!r}; expected a number > 0")
        if self.starts is None and self.seconds is None:
            raise ValueError("the budget has no limit; expected starts, seconds, or both")

    @classmethod
    def of(cls, budget: Budget | int | None) -> Budget:
        """The budget for an argument; a number is a number of starts, None the default."""
        if budget is None:
            return cls()
        if isinstance(budget, Budget):
            return budget
        if type(budget) is not int or budget < 1:
            raise ValueError(
                f"budget is {budget!r}; expected a number of starts, an integer >= 1, or "
                "Budget(starts=, seconds=)"
            )
        return cls(starts=budget)


@dataclass
class Spent:
    """The part of a budget that has been spent, and the best error so far."""

    budget: Budget
    report: Report | None = None
    starts: int = 0
    best: float = math.inf
    stopped: bool = False
    """Whether the report ended the search."""
    began: float = field(default_factory=time.monotonic)

    def left(self, wanted: int) -> int:
        """How many of the wanted starts the budget allows. The first round is allowed after any time."""
        if self.stopped:
            return 0
        late = self.budget.seconds is not None and self.seconds > self.budget.seconds
        if late and self.starts:
            return 0
        if self.budget.starts is None:
            return wanted
        return min(wanted, self.budget.starts - self.starts)

    def add(self, fits: Fits) -> None:
        """Count a round."""
        self.starts += len(fits.theta)
        self.best = min(self.best, float(fits.relative.nan_to_num(math.inf).min()))
        step(f"{self.starts:,} starts, relative error {self.best**0.5:.1e}")
        if self.report is not None:
            self.stopped = self.report(self.starts, self.best) is True

    @contextmanager
    def capped(self, share: float) -> Iterator[None]:
        """Limit the block to this share of the budget; the rest is kept for later."""
        whole = self.budget
        self.budget = Budget(
            None if whole.starts is None else max(1, math.ceil(share * whole.starts)),
            None if whole.seconds is None else share * whole.seconds,
        )
        try:
            yield
        finally:
            self.budget = whole

    @property
    def seconds(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.began


@dataclass(frozen=True, eq=False)
class Data:
    """Samples and their targets, in float64."""

    x: Tensor
    """(n, d), or index pairs (n, 2)"""
    y: Tensor
    """(n, q)"""


def round_of_starts(
    template: nn.Module, data: Data, number: int, spent: Spent, *, seed: int, tol: float = FITTED
) -> Fits | None:
    """A round: 8, 16, 32, ... starts, with fast and slow damping in turns; None if the budget is spent.

    The starts depend only on the seed, the number of parameters, and the round.
    """
    size = spent.left(min(_FIRST_ROUND << number, _LARGEST_ROUND))
    if size <= 0:
        return None
    theta = _starts(template, size, seed, number)
    damping = "slow" if number % 2 else "fast"
    fits = levenberg_marquardt(
        template, theta, data.x, data.y, damping=damping, tol=tol, first=True
    )
    spent.add(fits)
    return fits


def _starts(template: nn.Module, count: int, seed: int, number: int) -> Tensor:
    P = sum(p.numel() for p in template.parameters())
    state = np.random.SeedSequence((seed, P, number)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    theta = initial(template, count, generator=generator)
    scales = torch.tensor(_SCALES, dtype=theta.dtype)
    return theta * scales[torch.arange(count) % len(_SCALES), None]


def many_first(
    template: nn.Module, data: Data, sets: tuple[int, int], *, seed: int, tol: float
) -> Fits:
    """The first fits of many sets of starts, half of them with fast and half with slow damping.

    Args:
        template: the model; its parameters do not matter.
        data: what to fit.
        sets: the number of sets, which is even, and the number of starts of each.
        seed: the seed of the starts.
        tol: see :func:`levenberg_marquardt`.
    """
    count, size = sets
    half = count // 2
    which = torch.arange(half).repeat_interleave(size)
    x, y = (t.expand(half, *t.shape).contiguous() for t in (data.x, data.y))
    fits = [
        levenberg_marquardt(
            template,
            _starts(template, half * size, seed, number),
            x,
            y,
            which=which,
            damping=damping,
            tol=tol,
            first=True,
        )
        for number, damping in enumerate(("fast", "slow"))
    ]
    return replace(
        fits[0],
        theta=torch.cat([f.theta for f in fits]),
        loss=torch.cat([f.loss for f in fits]),
        relative=torch.cat([f.relative for f in fits]),
        iterations=torch.cat([f.iterations for f in fits]),
        codes=torch.cat([f.codes for f in fits]),
    )


def polished(template: nn.Module, data: Data, fits: Fits, *, near: float = NEAR) -> Fits:
    """The best few of the fits, iterated until rounding stops them; the best first.

    Only fits with a relative error below `near` are iterated and returned. If there are none, the best fits
    are returned unchanged.
    """
    best = _best_first(fits)[:_CANDIDATES]
    hopeful = best[fits.relative[best] < near]
    if not len(hopeful):
        return _chosen(fits, best)
    theta = fits.theta[hopeful]
    better = levenberg_marquardt(template, theta, data.x, data.y, damping=_SLOW, tol=_POLISHED)
    return _chosen(better, _best_first(better))


def _chosen(fits: Fits, rows: Tensor) -> Fits:
    return replace(
        fits,
        theta=fits.theta[rows],
        loss=fits.loss[rows],
        relative=fits.relative[rows],
        iterations=fits.iterations[rows],
        codes=fits.codes[rows],
    )


def _best_first(fits: Fits) -> Tensor:
    return fits.relative.nan_to_num(math.inf).argsort(stable=True)


def first_fit(
    template: nn.Module,
    data: Data,
    *,
    budget: Budget | int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[Fits, Spent]:
    """Fit a model from random starts until it fits the data.

    Args:
        template: the model; its parameters do not matter.
        data: what to fit.
        budget: the largest number of starts or seconds.
        seed: the seed of the starts.
        report: called after every round.

    Returns:
        The polished fits of the round that came closest, best first, and the part of the budget spent.
    """
    spent, number = Spent(Budget.of(budget), report), 0
    best: Fits | None = None
    while best is None or float(best.relative[0]) >= EXACT:
        fits = round_of_starts(template, data, number, spent, seed=seed)
        if fits is None:
            break
        found = polished(template, data, fits)
        if best is None or float(found.relative[0]) < float(best.relative[0]):
            best = found
        number += 1
    assert best is not None  # a budget allows at least one start
    return best, spent
