"""Targets that put a network at a critical point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llr.jacobian import execute, prepare
from llr.problem import read_problem
from llr.spectrum import tolerance
from llr.surroundings import outside_inference_mode


@outside_inference_mode
def critical_targets(
    model: nn.Module, x: Tensor, *, size: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Targets for which a model is at a critical point of its mean squared error on these samples.

    The gradient is J'e, so the targets are the outputs minus an error e with J'e = 0: random of this kind.
    With small errors and J of full column rank the point is a local minimum.

    Args:
        model: a module, anywhere.
        x: (n, ...) samples, more outputs of them than the rank of the Jacobian.
        size: root of the mean square of the errors.
        generator: of the random numbers; default: torch's own.

    Returns:
        (n, ...) of the outputs' shape, in float64.

    Raises:
        TypeError: x is no tensor, an output that is not one tensor.
        ValueError: samples on which only the zero error will do, a `size` that is no number > 0; what
            :func:`llr.jacobian` refuses.

    Source: docs/theory.md, Theorem 7.1 (the gradient is J'e).

    Example:
        >>> import torch
        >>> from llr.landscape import criticality
        >>> from llr.lifting import critical_targets
        >>> from llr.models import mlp
        >>> model, x = mlp([1, 2, 1]).double(), torch.randn(20, 1).double()
        >>> bool(criticality(model, x, critical_targets(model, x)))
        True
    """
    if not 0 < size < math.inf:
        raise ValueError(f"size is {size!r}; expected a finite number > 0")
    problem = read_problem(model, x, None, torch.float64)
    J = execute(problem, prepare(problem))[0]
    flat = J.reshape(-1, J.shape[-1])
    U, values, _ = torch.linalg.svd(flat)
    rank = int((values > tolerance(values, min(flat.shape))).sum())
    if rank >= len(flat):
        raise ValueError(
            f"x has {len(x)} samples with {len(flat)} outputs, on which the Jacobian has rank {rank}; "
            "expected more outputs than that, or every error has a gradient"
        )
    null = U[:, rank:]
    e = null @ torch.randn(null.shape[1], dtype=torch.float64, generator=generator).to(null)
    e *= size * math.sqrt(len(e)) / e.norm()
    with torch.no_grad():
        outputs = problem.call(problem.columns.values, problem.x)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model's output is {type(outputs).__name__}; expected one tensor (n, ...)"
        )
    return outputs.detach() - e.view(outputs.shape)
