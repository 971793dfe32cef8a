"""Trains many members of one model at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes, valued
from llr.inputs.evaluation.surroundings import closed, outside_inference_mode
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.roles import a_progress, marks, real
from llr.recovery.train.data import Data
from llr.recovery.train.descent import GD
from llr.recovery.train.machines import Ensemble, Machine, machine_for
from llr.recovery.train.result import Method, Plan, Progress, Record, Task, Training, joined
from llr.results.progress import followed, step

# Members are trained in groups that fit the cache of a core, one group after the other. For smaller groups,
# the overhead of launches would exceed the time of the arithmetic.
_CACHED_BYTES = 2 << 20
_LEAST_AT_ONCE = 32


@takes(
    model=a_module,
    starts=valued,
    x=valued,
    y=valued,
    which=valued,
    counts=valued,
    tol=real,
    record=marks,
    progress=a_progress,
)
@outside_inference_mode
@followed
def train(
    model: nn.Module,
    starts: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    which: Tensor | None = None,
    counts: Tensor | None = None,
    method: Method | None = None,
    steps: int = 10_000,
    tol: float | None = None,
    record: Record = None,
    progress: Progress | bool | None = None,
) -> Training:
    """Train an ensemble: one model from many starts, on many data sets, with different sample sizes at once.

    The loss of a member is ``1/(2n) sum r^2`` over its n samples and all outputs; every step uses all
    samples. Members are independent: a member trained alone has the same result, up to rounding. A step of
    all members is a few batched matrix products for MLPs, `Conv1dTwoLayer` and `MatrixFactorization`; other
    models are evaluated by ``torch.func``.

    Args:
        model: the template, which is not changed; frozen parameters keep its values.
        starts: (S, P) parameters, columns as in :func:`llr.layout`, float64 or float32, which is the dtype of
            the computation. :func:`initial` draws them.
        x: (n, ...) samples, or (B, n, ...) for B data sets.
        y: (n, q) or (B, n, q) targets.
        which: (S,) int64, the data set of each member; default: the only one, or one for each member if
            S = B.
        counts: (B,) int64, the number of samples of each data set that are seen, from the first on; or (B, n)
            bool, which samples are seen.
        method: `GD`, `Adam`, `Flow` or `LM`; default: ``GD()``.
        steps: the largest number of steps; for `Flow`, Runge-Kutta steps; for `LM`, steps tried.
        tol: a member is done if ``sum r^2 / sum y^2`` is at most this (`GD` and `Adam` check every 32
            steps); default: all steps are taken.
        record: how many points of the trajectories to keep: the start, and further points evenly spaced on a
            logarithmic scale from step 1 on; or a list of steps. For `Flow`, times instead of steps.
        progress: False for none; or a function, called as ``progress(step, members in training)`` now and
            then. On a CPU, groups of members that fit its cache are trained one after the other, and steps
            are counted from 0 for each group. Default: after two seconds a line on a terminal or in a
            notebook.

    Returns:
        A `Training`, in the dtype of the starts and on their device.

    Raises:
        TypeError: arguments that are no tensors, dtypes that do not fit each other, `LM` in float32.
        ValueError: shapes that do not fit each other, NaN or infinity, sample sizes or data sets out of
            range, rates that are not positive, a history beyond the memory budget; a model that
            :func:`llr.jacobian` refuses.

    Source: docs/theory.md, section 9, the theory with which these runs are compared.

    Example:
        >>> import torch
        >>> from llr.models import mlp
        >>> from llr.recovery.train import GD, initial, train
        >>> model, x = mlp([1, 4, 1]), torch.linspace(-1, 1, 5).double()[:, None]
        >>> starts = initial(model, 100, generator=torch.Generator().manual_seed(0))
        >>> found = train(model, starts, x, x**2, method=GD(momentum=0.9), steps=4000)
        >>> found.relative.shape, int(found.diverged.sum()), bool(found.relative.median() < 1e-2)
        (torch.Size([100]), 0, True)
    """
    data = Data.of(starts, x, y, which, counts)
    method = GD() if method is None else method
    if not isinstance(method, Method):
        raise TypeError(f"method is {type(method).__name__}; expected one such as GD(), Adam()")
    _check(starts, steps, tol, record)
    machine = machine_for(model, data, starts)
    parts = []
    with closed(), torch.no_grad():
        for rows in _groups(machine, data, starts):
            later = len(starts) - rows.stop
            plan = Plan(steps, tol, record, _reporting(progress, later, steps))
            task = Task(model, data, rows, _ensemble(machine, data, rows))
            parts.append(method.run(task, starts[rows].detach().clone(), plan))
    return joined(parts)


def _ensemble(machine: Machine, data: Data, rows: slice) -> Ensemble:
    x, y, weights = data.gather(rows)
    return Ensemble(machine, machine.prepare(x), y, weights)


def _groups(machine: Machine, data: Data, starts: Tensor) -> list[slice]:
    """The groups of members that are trained together."""
    S, P = starts.shape
    at_once = S
    if starts.device.type == "cpu":
        each = _ensemble(machine, data, slice(0, 1)).working_bytes(P)
        at_once = max(_LEAST_AT_ONCE, _CACHED_BYTES // each)
    return [slice(first, min(first + at_once, S)) for first in range(0, S, at_once)]


def _reporting(progress: Progress | bool | None, later: int, steps: int) -> Progress:
    """Progress that counts the members in training and those of later groups."""

    def report(done: int, members: int) -> None:
        if callable(progress):
            progress(done, members + later)
        step(f"{members + later} members in training, steps", done, steps)

    return report


def _check(starts: Tensor, steps: int, tol: float | None, record: Record) -> None:
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected a positive integer")
    if tol is not None and not 0 <= tol < math.inf:
        raise ValueError(f"tol is {tol!r}; expected a number of at least 0, such as 1e-20, or None")
    if record is not None:
        points = record if isinstance(record, int) else len(record)
        if not fits(2 * points * starts.nbytes, starts.device):
            raise ValueError(
                f"a history of {points} points takes {format_bytes(2 * points * starts.nbytes)}, more than "
                f"the memory budget of {format_bytes(memory_budget(starts.device))}; record fewer points, or "
                "train fewer members at a time"
            )
