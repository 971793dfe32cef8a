"""The arguments and results of training methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from llr.recovery.train.data import Data
from llr.recovery.train.machines import Ensemble
from llr.results.phrases import counted
from llr.results.record import Record as Base

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Progress = Callable[[int, int], None]
"""Called as ``progress(step, members still in training)``."""
Record = None | int | Sequence[float]
"""The number of points of the trajectory to keep, or a list of points."""


@dataclass(frozen=True)
class Plan:
    """Arguments of all methods.

    Attributes:
        steps: the largest number of steps.
        tol: a member is done if its relative training error is at most this; None to take all steps.
        record: which points of the trajectory to keep.
        progress: a function to call now and then.
    """

    steps: int
    tol: float | None
    record: Record
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class Task:
    """A model to be trained from some members' starts on their data.

    Attributes:
        model: the template.
        data: the data of all members.
        rows: the members of this task.
        ensemble: the machine with the samples of these members.
    """

    model: nn.Module
    data: Data
    rows: slice
    ensemble: Ensemble


@runtime_checkable
class Method(Protocol):
    """A training method, as :func:`llr.recovery.train.train` takes it as ``method=``."""

    def run(self, task: Task, theta: Tensor, plan: Plan) -> Training:
        """Train these members from ``theta`` (S, P), which the method may overwrite."""


@dataclass(frozen=True, eq=False, repr=False)
class History(Base):
    """Points of the trajectories. Members that are done keep their last point.

    Attributes:
        at: (T,) the steps of the points, or for gradient flow their times; from 0 on.
        theta: (T, S, P).
        loss: (T, S).
        relative: (T, S).
    """

    at: Tensor
    theta: Tensor
    loss: Tensor
    relative: Tensor

    _long = ("theta", "loss", "relative")

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield bool((self.at.diff() >= 0).all()), "ascending at"
        for name in ("loss", "relative"):
            value = getattr(self, name)
            fits = not value.numel() or value.shape == self.theta.shape[:2]
            yield fits, f"one number in {name} for each point and member"

    def _check(self, content: Mapping[str, Any]) -> None:
        points = len(self.at) if self.at.dim() == 1 else 0
        if not points or self.theta.dim() != 3 or len(self.theta) != points:
            raise ValueError(
                "'at' and 'theta' of History: expected the same number of points, not 0"
            )
        super()._check(content)

    def __str__(self) -> str:
        """One line: the numbers of points and of members."""
        return f"{len(self.at)} points of {self.theta.shape[1]} trajectories, to {float(self.at[-1]):g}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the relative error of every member during training; return the axes.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).

        Raises:
            ValueError: the errors were not kept.
        """
        self._require("relative")
        from llr.recovery import curves  # noqa: PLC0415 - matplotlib is optional

        return curves.training(self, ax=ax)


@dataclass(frozen=True, eq=False, repr=False)
class Training(Base):
    """The result of training an ensemble.

    Attributes:
        theta: (S, P) parameters; for diverged members the last checked ones with a finite loss.
        loss: (S,) 1/(2n) times the sum of squared residuals at `theta`.
        relative: (S,) sum of squared residuals divided by the sum of squares of the targets; by their number
            n q if all targets are 0.
        steps: (S,) int64, how many steps each member took.
        converged: (S,) bool, whether `relative` is at most the tolerance.
        diverged: (S,) bool, whether the loss diverged; a smaller step size would help.
        stalled: (S,) bool, whether the member ended because its steps made no progress; only for `LM`.
        history: points of the trajectories, if ``record`` was given.
    """

    theta: Tensor
    loss: Tensor
    relative: Tensor
    steps: Tensor
    converged: Tensor
    diverged: Tensor
    stalled: Tensor
    history: History | None = None

    _order = ("0 <= steps",)
    _long = ("theta",)
    _also = ("status",)

    @property
    def status(self) -> tuple[str, ...]:
        """For every member "converged", "diverged", "stalled" or "steps" (the limit of steps or time)."""
        ends = {"converged": self.converged, "diverged": self.diverged, "stalled": self.stalled}
        flags = torch.stack([*ends.values(), torch.ones_like(self.converged)]).long()
        return tuple((*ends, "steps")[i] for i in flags.argmax(0).tolist())

    def __str__(self) -> str:
        """One line: how many members ended in each way, and the errors."""
        status, middle = self.status, float(self.relative.median())
        counts = {end: status.count(end) for end in ("converged", "diverged", "stalled")}
        counts = {end: n for end, n in counts.items() if n or end != "stalled"}
        return (
            f"{counted(len(status), 'member')}: {', '.join(f'{n} {end}' for end, n in counts.items())}, "
            f"{status.count('steps')} out of steps after "
            f"{int(self.steps.max())}; relative squared error {middle:.3g} (median), "
            f"{float(self.relative.min()):.3g} (least)"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the relative error of every member during training; return the axes.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).

        Raises:
            ValueError: there is no history, which ``train(..., record=)`` asks for, or it was not kept.
        """
        if self.history is None:
            raise ValueError(
                "this Training has no history to draw; train(..., record=100) keeps 100 points of it"
            )
        return self.history.plot(ax)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        members = len(self.relative)
        yield len(self.theta) == len(self.loss) == members, "as many members in every field"
        ends = self.converged.int() + self.diverged.int() + self.stalled.int()
        yield bool((ends <= 1).all()), "at most one end of every member"

    def _check(self, content: Mapping[str, Any]) -> None:
        members = self.relative.shape
        flags = ("converged", "diverged", "stalled")
        kinds = {"steps": torch.int64, **dict.fromkeys(flags, torch.bool)}
        for name, kind in kinds.items():
            value: Tensor = getattr(self, name)
            if value.dtype != kind or value.shape != members or value.dim() != 1:
                raise ValueError(f"{name!r} of Training: expected {kind}, one for each member")
        super()._check(content)

    def _facts(self) -> dict[str, object]:
        ends = {end: self.status.count(end) for end in dict.fromkeys(self.status)}
        least = float(self.relative.min()) if len(self.relative) else math.nan
        return {"members": len(self.relative), **ends, "least relative error": least}


def joined(parts: Sequence[Training]) -> Training:
    """The members of several trainings by the same method and plan, one after the other."""
    if len(parts) == 1:
        return parts[0]
    histories = [part.history for part in parts if part.history is not None]

    def along(things: Sequence[object], name: str, dim: int) -> Tensor:
        return torch.cat([getattr(thing, name) for thing in things], dim)

    history = None
    if histories:
        history = History(
            at=histories[0].at,
            theta=along(histories, "theta", 1),
            loss=along(histories, "loss", 1),
            relative=along(histories, "relative", 1),
        )
    return Training(
        theta=along(parts, "theta", 0),
        loss=along(parts, "loss", 0),
        relative=along(parts, "relative", 0),
        steps=along(parts, "steps", 0),
        converged=along(parts, "converged", 0),
        diverged=along(parts, "diverged", 0),
        stalled=along(parts, "stalled", 0),
        history=history,
    )
