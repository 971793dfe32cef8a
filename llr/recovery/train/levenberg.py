"""Levenberg-Marquardt as a method of training, with the interface of the other methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llr.inputs.accept import takes_fields
from llr.inputs.tensors import as_double
from llr.recovery.damping import CONVERGED, FAILED, STALLED, Damping
from llr.recovery.lm import levenberg_marquardt
from llr.recovery.train.descent import step_marks
from llr.recovery.train.result import History, Plan, Task, Training


@takes_fields()
@dataclass(frozen=True)
class LM:
    """Levenberg-Marquardt, by :func:`llr.recovery.levenberg_marquardt`: native on a CPU, if possible.

    It computes in float64 only. A member takes at most `steps` steps and no more than its damping allows;
    rejected steps count. Members that make no progress end earlier, as "stalled". To record a history, the
    run is repeated up to each of its points.

    Args:
        damping: "fast", "slow" or a :class:`llr.recovery.Damping`.

    Source: Levenberg, Quart. Appl. Math. 2 (1944); Marquardt, J. Soc. Indust. Appl. Math. 11 (1963).

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery.train import LM, initial, train
        >>> model, g = TwoLayer(2, 1, bias=False), torch.Generator().manual_seed(0)
        >>> x = torch.randn(4, 2, dtype=torch.float64, generator=g)
        >>> starts = initial(model, 50, scale=0.1, generator=g)
        >>> found = train(model, starts, x, torch.tanh(x[:, :1]), method=LM("slow"), tol=1e-20)
        >>> int(found.converged.sum()) > 25, int(found.steps.max()) <= 250
        (True, True)
    """

    damping: str | Damping = "fast"

    def run(self, task: Task, theta: Tensor, plan: Plan) -> Training:
        """See :class:`llr.recovery.train.result.Method`."""
        if theta.dtype != torch.float64:
            raise TypeError(
                f"starts is {theta.dtype}; LM computes in float64{as_double('starts', theta)}"
            )
        damping, at = Damping.of(self.damping), step_marks(plan.record, plan.steps)
        if plan.progress is not None:
            plan.progress(0, len(theta))
        found = _fitted(task, theta, plan, damping, plan.steps)
        if plan.progress is not None:
            plan.progress(int(found.steps.max()), 0)
        if at is None:
            return found
        points = [_fitted(task, theta, plan, damping, int(step)) for step in at]
        history = History(
            at=at.to(theta.device),
            theta=torch.stack([point.theta for point in points]),
            loss=torch.stack([point.loss for point in points]),
            relative=torch.stack([point.relative for point in points]),
        )
        return replace(found, history=history)


def _fitted(task: Task, theta: Tensor, plan: Plan, damping: Damping, steps: int) -> Training:
    """The state of all members after `steps` steps."""
    damping = replace(damping, iterations=min(steps, damping.iterations))
    ends, loss = theta.clone(), torch.empty_like(theta[:, 0])
    relative, taken = torch.empty_like(loss), torch.empty_like(loss, dtype=torch.int64)
    codes = torch.empty_like(taken)
    for members, which, x, y in _alike(task):
        fits = levenberg_marquardt(
            task.model,
            theta[members],
            x,
            y,
            which=which,
            damping=damping,
            tol=plan.tol or 0.0,
        )
        ends[members], relative[members] = fits.theta, fits.relative
        loss[members] = fits.loss * (y.shape[2] / 2)  # fits.loss is a mean over samples and outputs
        taken[members], codes[members] = fits.iterations, fits.codes
    return Training(
        theta=ends,
        loss=loss,
        relative=relative,
        steps=taken,
        converged=(codes == CONVERGED) & (plan.tol is not None),
        diverged=codes == FAILED,
        stalled=codes == STALLED,
    )


def _alike(task: Task) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each sample size: members, their data sets, and x (B, n, ...) and y (B, n, q) of these."""
    data, which = task.data, task.data.which[task.rows]
    seen = data.weights > 0
    sizes = seen.sum(1)
    for n in sizes[which].unique().tolist():
        members = (sizes[which] == n).nonzero()[:, 0]
        sets, places = which[members].unique(return_inverse=True)
        x, y = data.x[sets], data.y[sets]
        visible = seen[sets]
        yield (
            members,
            places,
            x[visible].unflatten(0, (len(sets), n)),
            y[visible].unflatten(0, (len(sets), n)),
        )
