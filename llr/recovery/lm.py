"""Levenberg-Marquardt from many starts at once: ``llr.recovery.levenberg_marquardt``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes, valued
from llr.inputs.evaluation.surroundings import closed, ordinary, outside_inference_mode
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.parameters import layout
from llr.inputs.probe import refuse_interactions
from llr.inputs.problem import Problem, read_problem
from llr.inputs.roles import a_flag, a_progress
from llr.inputs.tensors import as_double
from llr.inputs.warned import warn_of_no_kernel
from llr.models import MatrixFactorization
from llr.operators import _ops
from llr.recovery import lm_native, lm_reference
from llr.recovery.damping import CONVERGED, STATUS, Damping
from llr.results import Shown
from llr.results.progress import following

_POOL_BYTES = 2**28  # memory of the torch path for Jacobians and normal matrices
_LARGEST_POOL = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Fits(Shown):
    """The end of each of S starts.

    It cannot be written to files, since its template may be any module. It can be pickled if the template
    can.
    """

    theta: Tensor
    """(S, P) parameters in float64; columns as in :func:`llr.layout`."""
    loss: Tensor
    """(S), mean squared residual over samples and outputs; infinite for failed and skipped starts."""
    relative: Tensor
    """(S), the loss divided by the mean square of the start's targets (by 1 if they are all zero)."""
    iterations: Tensor
    """(S), steps tried."""
    codes: Tensor
    """(S), the same as `status`: 0 converged, 1 stalled, 2 limit, 3 failed, 4 skipped."""
    template: nn.Module
    """The model that was fitted, with its own parameters unchanged."""
    method: str
    """"native", or "torch" with the reason."""

    @property
    def status(self) -> list[str]:
        """How each start ended, as "converged", "stalled", "limit", "failed" or "skipped"."""
        return [STATUS[code] for code in self.codes.tolist()]

    @property
    def converged(self) -> Tensor:
        """(S), bool."""
        return self.codes == CONVERGED

    def model(self, i: int) -> nn.Module:
        """A float64 copy of the template with the parameters of fit `i`."""
        fitted = copy.deepcopy(self.template).to(self.theta.device, torch.float64)
        values = dict(fitted.named_parameters())
        with torch.no_grad():
            for name, columns in layout(fitted).items():
                values[name].copy_(self.theta[i, columns].view_as(values[name]))
        return fitted

    def _facts(self) -> dict[str, object]:
        least = float(self.relative.min()) if len(self.relative) else math.nan
        counts = {status: n for status in STATUS if (n := self.status.count(status))}
        return {"starts": len(self.theta), **counts, "least relative error": least}

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {s}" for s in STATUS if (n := self.status.count(s)))
        return f"{len(self.theta)} starts: {counts}"


@takes(
    model=a_module,
    starts=valued,
    x=valued,
    y=valued,
    which=valued,
    first=a_flag,
    progress=a_progress,
)
@outside_inference_mode
def levenberg_marquardt(
    model: nn.Module,
    starts: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    which: Tensor | None = None,
    damping: str | Damping = "fast",
    tol: float = 1e-20,
    first: bool = False,
    progress: Callable[[int, int], object] | bool | None = None,
) -> Fits:
    """Fit a model to data by least squares from many starts, thousands of small problems a second.

    The native library fits MLPs, :class:`llr.models.Conv1dTwoLayer` and
    :class:`llr.models.MatrixFactorization` on the CPU. There each start has its own lane of a vector
    register: its result is bitwise independent of the other starts, of their order and of the number of
    threads. Other models, frozen parameters and other devices take the same steps in batched torch
    operations, where other starts in the batch may change the rounding of a start.

    Args:
        model: the model to fit; its own parameters do not matter.
        starts: (S, P) float64, with the columns of :func:`llr.layout`; see :func:`llr.recovery.initial`.
            From small starts (scale=0.1) narrow networks find their directions more often.
        x: (n, ...) samples as the model takes them, or (B, n, ...) for B data sets.
        y: (n, q) targets in float64, or (B, n, q).
        which: (S) integers, the data set of each start. Default: the only one, or one for each start if
            B = S.
        damping: "fast", "slow" or a :class:`Damping`.
        tol: a start has converged if its sum of squared residuals is at most this fraction of the sum of
            squared targets (of n q, if the targets are all zero).
        first: for each data set, skip all starts after the first one, in the given order, that converges.
            The choice does not depend on time or threads.
        progress: False for none; or a function, called as ``progress(done, total)`` with starts; the native
            library reports only between blocks of many starts. Default: after two seconds a line on a
            terminal or in a notebook.

    Returns:
        A :class:`Fits`. A start is "converged"; "stalled" for too many iterations, or because its steps
            vanish; at the "limit" of iterations; "failed", because its first loss is not finite; or
            "skipped".

    Raises:
        ValueError: shapes that do not fit each other, NaN or infinity, targets whose squares are out of
            range, an index out of range, a Jacobian beyond the memory budget.
        TypeError: a model that is no module; arguments that are no tensors of the expected dtype.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery import initial, levenberg_marquardt
        >>> generator = torch.Generator().manual_seed(0)
        >>> target = TwoLayer(2, 1, bias=False, generator=generator).double()
        >>> x = torch.randn(6, 2, dtype=torch.float64, generator=generator)
        >>> starts = initial(target, 8, scale=0.1, generator=generator)
        >>> fits = levenberg_marquardt(target, starts, x, target(x).detach())
        >>> bool(fits.converged.any()), bool(fits.loss[fits.converged].max() < 1e-20)
        (True, True)
    """
    chosen = Damping.of(damping)
    if not (isinstance(tol, int | float) and math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol is {tol!r}; expected a finite number, 0 or more")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected an nn.Module")
    starts, x, y = _float64("starts", starts, 2, "(S, P)"), _samples(x), _targets(y)
    if y.dim() == 2:
        x, y = x[None], y[None]
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected as many samples in both, "
            "(n, ...) and (n, q), or (B, n, ...) and (B, n, q)"
        )
    if not x.shape[1] or not len(x) or not y.shape[2]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected at least one sample")
    which = _sets(which, len(starts), len(x), starts.device)
    _check_devices(starts, x, y, which)
    _check_finite(starts, "starts")
    _check_finite(y, "y")
    _check_squares(y)
    problem = read_problem(model, x.flatten(0, 1), None, torch.float64)
    if problem.columns.count != starts.shape[1]:
        raise ValueError(
            f"starts has shape {tuple(starts.shape)}; expected (S, {problem.columns.count}), a column for "
            "each trainable parameter (llr.layout(model))"
        )
    samples = problem.x.unflatten(0, x.shape[:2])
    known = lm_native.read(problem)
    if known is None:
        refuse_interactions(problem)
    if isinstance(model, MatrixFactorization):
        _check_pairs(model, problem.x)
    _check_outputs(problem, known, samples, y, starts)
    _check_memory(y[0].numel(), starts)
    obstacle = lm_native.why_not(problem, known, starts, y[0].numel())
    with following(progress, tell=True):
        if known is None or obstacle:
            if known is not None and not _ops.NATIVE:
                warn_of_no_kernel(starts.device, obstacle)
            solution = _in_torch(problem, known, starts, samples, y, which, chosen, tol, first)
        else:
            solution = lm_native.solve(known, starts, samples, y, which, chosen, tol, first)
    method = f"torch: {obstacle}" if obstacle else "native"
    squares = y.square().mean((1, 2))
    relative = solution.loss / torch.where(squares > 0, squares, 1.0)[which]
    return Fits(
        solution.theta, solution.loss, relative, solution.iterations, solution.status, model, method
    )


def _in_torch(
    problem: Problem,
    known: lm_native.Known | None,
    starts: Tensor,
    x: Tensor,
    y: Tensor,
    which: Tensor,
    damping: Damping,
    tol: float,
    first: bool,
) -> lm_reference.Solution:
    rows, P = y[0].numel(), starts.shape[1]
    batch = max(1, min(_POOL_BYTES // lm_native.bytes_of_start(rows, P), _LARGEST_POOL))
    if known is not None and known.kind == "mlp":
        order = known.order.to(starts.device)
        functions = lm_reference.of_mlp(known.sizes, known.biases, known.activation)
        starts = starts[:, order]
    else:
        order = torch.arange(P, device=starts.device)
        functions = lm_reference.of_problem(problem)
    with closed(), torch.no_grad():
        found = lm_reference.solve(
            functions, starts, x, y, which, damping, tol, first=first, batch=batch
        )
    back = torch.empty_like(found.theta)
    back[:, order] = found.theta
    return found._replace(theta=back)


def _check_outputs(
    problem: Problem, known: lm_native.Known | None, x: Tensor, y: Tensor, starts: Tensor
) -> None:
    if known is not None:
        outputs = known.outputs
    else:
        with torch.no_grad(), closed():
            point = starts[:1] if len(starts) else starts.new_zeros(1, starts.shape[1])
            found = lm_reference.of_problem(problem).outputs(point, x[:1, :1])
        outputs = found.shape[2]
    if y.shape[2] != outputs:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; expected {outputs} numbers for each sample, as many as the "
            "model gives"
        )


def _check_memory(rows: int, starts: Tensor) -> None:
    nbytes = lm_native.bytes_of_start(rows, starts.shape[1])
    if not fits(nbytes, starts.device):
        raise ValueError(
            f"the Jacobian and the normal matrix of one start take {format_bytes(nbytes)}, more than the "
            f"memory budget of {format_bytes(memory_budget(starts.device))} (llr.set_memory_budget); "
            "expected fewer samples or parameters"
        )


def _check_pairs(model: MatrixFactorization, pairs: Tensor) -> None:
    if pairs.is_floating_point() or pairs.dim() != 2 or pairs.shape[1] != 2:
        return  # the model refuses x itself
    rows, columns = len(model.A), model.B.shape[1]
    outside = ((pairs < 0) | (pairs >= pairs.new_tensor([rows, columns]))).any(1)
    if bool(outside.any()):
        i, j = pairs[outside][0].tolist()
        raise ValueError(
            f"x has the index pair ({i}, {j}); expected rows from 0 to {rows - 1} and columns from 0 to "
            f"{columns - 1}"
        )


def _float64(name: str, t: Tensor, dims: int, shape: str) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is {type(t).__name__}; expected a tensor (torch.as_tensor)")
    if t.dtype != torch.float64:
        raise TypeError(f"{name} is {t.dtype}; expected float64{as_double(name, t)}")
    if t.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {shape}")
    return ordinary(t.detach())


def _targets(y: Tensor) -> Tensor:
    dims = y.dim() if isinstance(y, Tensor) and y.dim() in (2, 3) else 2
    return _float64("y", y, dims, "(n, q), or (B, n, q) for B data sets")


def _samples(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {type(x).__name__}; expected a tensor (torch.as_tensor)")
    return ordinary(x.detach())


def _sets(which: Tensor | None, count: int, sets: int, device: torch.device) -> Tensor:
    """The data set of each start, (S)."""
    if which is None:
        if sets not in (1, count):
            raise ValueError(
                f"there are {sets} data sets and {count} starts; expected which=, the data set of each start"
            )
        own = torch.arange(count, device=device)
        return own if sets == count else torch.zeros_like(own)
    if not isinstance(which, Tensor):
        raise TypeError(f"which is {type(which).__name__}; expected a tensor of integers")
    if which.is_floating_point() or which.is_complex() or which.dtype == torch.bool:
        raise TypeError(f"which is {which.dtype}; expected integers (which.long())")
    if tuple(which.shape) != (count,):
        raise ValueError(
            f"which has shape {tuple(which.shape)}; expected ({count},), a data set for each start"
        )
    outside = (which < 0) | (which >= sets)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"which[{at}] is {int(which[at])}; expected a data set from 0 to {sets - 1}"
        )
    return which.long()


def _check_devices(starts: Tensor, x: Tensor, y: Tensor, which: Tensor) -> None:
    for name, t in (("x", x), ("y", y), ("which", which)):
        if t.device != starts.device:
            raise ValueError(
                f"{name} is on {t.device} but starts is on {starts.device}; expected one device"
            )


def _check_squares(y: Tensor) -> None:
    """Refuse targets whose sum of squares, by which convergence is measured, is out of range."""
    squares, largest = y.square().sum((1, 2)), y.abs().amax((1, 2))
    wrong = squares.isinf() | ((squares == 0) & (largest > 0))
    if bool(wrong.any()):
        which = int(wrong.nonzero()[0])
        raise ValueError(
            f"y of data set {which} has a sum of squares of {float(squares[which])}; expected targets of a "
            f"size that can be squared, and the largest is {float(largest[which]):.3g}: scale them"
        )


def _check_finite(t: Tensor, name: str) -> None:
    if _ops.first_nonfinite([t]) < 0:
        return
    where = tuple((~torch.isfinite(t)).nonzero()[0].tolist())
    raise ValueError(f"{name} is {float(t[where])} at index {where}; expected finite numbers")
