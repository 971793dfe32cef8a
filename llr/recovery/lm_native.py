"""Which models the native operator fits, and the call; see :func:`llr.recovery.levenberg_marquardt`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.problem import Problem
from llr.models import Conv1dTwoLayer, MatrixFactorization
from llr.models.parts import departure_from
from llr.operators import _ops
from llr.recovery.damping import CONVERGED, SKIPPED, Damping
from llr.recovery.lm_reference import Solution
from llr.results.progress import step

_MOST_LANES = 8  # lanes of a vector register; each has a start
_BLOCK_FLOPS = 1e11


@dataclass(frozen=True)
class Known:
    """A model in the form that the native operator takes."""

    kind: str
    sizes: list[int]
    activation: str
    biases: list[bool]
    outputs: int
    order: Tensor
    """(P), for each parameter of the operator its column."""


def read(problem: Problem) -> Known | None:
    """The model in the form that the native operator takes; None if the operator does not support it."""
    model, slices = problem.model, problem.columns.slices()
    biases: list[bool] = []
    if problem.mlp is not None:
        mlp = problem.mlp
        names = [name for name, tensor in problem.chain() if tensor is not None]
        kind, sizes, activation = "mlp", list(mlp.widths), mlp.activation
        biases = [b is not None for b in mlp.biases]
    elif isinstance(model, Conv1dTwoLayer) and departure_from(model, Conv1dTwoLayer) is None:
        names = ["weight", "out"]
        kind = "conv1d" if model.shared else "local1d"
        sizes, activation = [model.d, model.kernel_size, model.channels], model.activation
    elif (
        isinstance(model, MatrixFactorization)
        and departure_from(model, MatrixFactorization) is None
    ):
        names = ["A", "B"]
        kind, activation = "factorization", "identity"
        sizes = [len(model.A), len(model.B), model.B.shape[1]]
    else:
        return None
    if set(names) != set(slices):
        return None  # frozen parameters
    order = [torch.arange(slices[name].start, slices[name].stop) for name in names if name]
    outputs = sizes[-1] if kind == "mlp" else 1
    return Known(kind, sizes, activation, biases, outputs, torch.cat(order))


def bytes_of_start(rows: int, parameters: int) -> int:
    """The approximate memory of a start: its Jacobian, its normal matrix and the factor of this matrix."""
    return 8 * (rows * parameters + 3 * min(rows, parameters) ** 2)


def why_not(problem: Problem, known: Known | None, starts: Tensor, rows: int) -> str:
    """Why the native library cannot fit this model; empty if it can."""
    if known is None:
        name = type(problem.model).__name__
        return f"{name} is none of the models that the native library fits"
    if not _ops.NATIVE:
        return _ops.REASON
    if not starts.is_cpu:
        return f"the native library fits on the CPU only, not on {starts.device}"
    at_once = _MOST_LANES * min(len(starts), torch.get_num_threads())
    nbytes = at_once * bytes_of_start(rows, starts.shape[1])
    if not fits(nbytes, starts.device):
        return (
            f"{at_once} simultaneous starts take {format_bytes(nbytes)}, more than the memory budget of "
            f"{format_bytes(memory_budget(starts.device))}"
        )
    return ""


def solve(
    known: Known,
    starts: Tensor,
    x: Tensor,
    y: Tensor,
    which: Tensor,
    damping: Damping,
    tol: float,
    first: bool,
) -> Solution:
    """The same as :func:`llr.recovery.lm_reference.solve`, by the native operator.

    Many starts are solved in blocks, with their progress between them. Results do not depend on the blocks.
    """

    def solved(starts: Tensor, which: Tensor) -> Solution:
        theta, loss, iterations, status = _ops.lm_solve(
            starts[:, known.order],
            x.double(),
            y,
            which,
            known.kind,
            known.sizes,
            known.activation,
            known.biases,
            damping=damping.start,
            down=damping.down,
            up=damping.up,
            progress=damping.progress,
            stall=damping.stall,
            iterations=damping.iterations,
            tol=tol,
            first=first,
        )
        back = torch.empty_like(theta)
        back[:, known.order] = theta
        return Solution(back, loss, iterations, status)

    count, size = len(starts), _block(y[0].numel(), starts.shape[1], damping)
    if count <= size:
        return solved(starts, which)
    found = Solution(
        starts.clone(),
        starts.new_full((count,), torch.inf),
        torch.zeros(count, dtype=torch.int64),
        torch.full((count,), SKIPPED),
    )
    # Data sets of which the other starts are skipped.
    fitted = torch.zeros(len(x), dtype=torch.bool)
    for begin in range(0, count, size):
        step("Levenberg-Marquardt: starts", begin, count)
        rows = torch.arange(begin, min(begin + size, count))
        rows = rows[~fitted[which[rows]]]
        if not len(rows):
            continue
        part = solved(starts[rows], which[rows])
        for whole, some in zip(found, part, strict=True):
            whole[rows] = some
        if first:
            fitted[which[rows[part.status == CONVERGED]]] = True
    step("Levenberg-Marquardt: starts", count, count)
    return found


def _block(rows: int, P: int, damping: Damping) -> int:
    """How many starts take about a second: as many as `_BLOCK_FLOPS` allow, at least a few per thread."""
    side = min(rows, P)
    flops = max(1, damping.iterations) * (2.0 * rows * P * side + side**3)
    least = 4 * _MOST_LANES * torch.get_num_threads()
    return max(least, int(_BLOCK_FLOPS / flops))
