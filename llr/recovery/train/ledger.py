"""Which members are still in training, and the results of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from llr.recovery.train.machines import Ensemble
from llr.recovery.train.result import History, Training

# A member has diverged if its loss exceeds both that of its start and that of the function 0 by this factor.
_LOST = 1e6


class Ledger:
    """Parameters, losses and steps of all members, during training.

    Args:
        ensemble: the samples of all members.
        theta: (S, P), their starts.
        tol: as in `Plan`.
        marks: how many points of the trajectory are kept.
    """

    def __init__(self, ensemble: Ensemble, theta: Tensor, tol: float | None, marks: int) -> None:
        S = len(theta)
        self.ensemble, self.tol = ensemble, tol
        self.theta = theta.clone()
        self.loss = ensemble.loss(ensemble.residual(theta))
        self.power = ensemble.power.expand(S)
        self.bound = _LOST * torch.maximum(self.loss, self.power)
        self.steps = torch.zeros(S, dtype=torch.int64, device=theta.device)
        self.active = torch.arange(S, device=theta.device)
        """Numbers of the members in training."""
        self.diverged = torch.zeros(S, dtype=torch.bool, device=theta.device)
        self.points = theta.new_empty(marks, *theta.shape)
        self.losses = theta.new_empty(marks, S)

    def relative(self, loss: Tensor) -> Tensor:
        """The relative errors of losses (..., S)."""
        return 2 * loss / self.power.where(self.power > 0, float(self.ensemble.y.shape[2]))

    def look(self, theta: Tensor, loss: Tensor, steps: int | Tensor) -> Tensor:
        """Record the current state of the members in training.

        Args:
            theta: their parameters.
            loss: their losses.
            steps: how many steps they have taken.

        Returns:
            The indices of those that stay in training; the others have converged or diverged.
        """
        lost = ~((loss <= self.bound[self.active]) & theta.isfinite().all(1))
        here, found = self.active[~lost], ~lost
        self.theta[here], self.loss[here] = theta[found], loss[found]
        self.steps[self.active] = steps
        self.diverged[self.active] = lost
        done = lost if self.tol is None else lost | self.converged()[self.active]
        stay = (~done).nonzero()[:, 0]
        self.active = self.active[stay]
        return stay

    def converged(self) -> Tensor:
        """(S,) bool: which members have converged."""
        if self.tol is None:
            return torch.zeros_like(self.diverged)
        return (self.relative(self.loss) <= self.tol) & ~self.diverged

    def record(self, mark: int) -> None:
        """Store a point of the trajectory: the last known state of every member."""
        self.points[mark], self.losses[mark] = self.theta, self.loss

    def close(self, at: Tensor | None) -> Training:
        """The result; `at` has the steps or times of the marks, None without a history."""
        history = None
        if at is not None:
            history = History(at, self.points, self.losses, self.relative(self.losses))
        return Training(
            theta=self.theta,
            loss=self.loss,
            relative=self.relative(self.loss),
            steps=self.steps,
            converged=self.converged(),
            diverged=self.diverged,
            stalled=torch.zeros_like(self.diverged),
            history=history,
        )
