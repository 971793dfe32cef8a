"""Targets for which a network with given parameters is at a critical point of its squared error."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.problem import as_leaves, read_problem
from llr.inputs.roles import a_generator, number
from llr.jacobians.jacobian import execute, jacobian, prepare
from llr.linalg.spectrum import threshold

# A gradient counts as zero up to so many times the effect of rounding.
_MARGIN = 16.0


@takes(model=a_module, x=valued, y=valued, size=number, generator=a_generator)
@outside_inference_mode
def critical_targets(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    size: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Targets for which a model is at a critical point of its mean squared error on these samples.

    The gradient is J'e, so the targets are the outputs minus an error e with J'e = 0. They are the nearest
    ones to given targets, or random. With small errors and J of full column rank the point is a local
    minimum.

    Args:
        model: a module, with any parameters.
        x: (n, ...) samples, with more outputs in total than the rank of the Jacobian.
        y: targets to approximate, of the outputs' shape; default: none, the error is random.
        size: root of the mean square of a random error.
        generator: the generator of the random numbers; default: that of torch.

    Returns:
        (n, ...) of the outputs' shape, in float64.

    Raises:
        TypeError: x or y is no tensor, an output that is not one tensor.
        ValueError: samples on which only the zero error has J'e = 0; targets of another shape or not finite;
            a `size` that is no number > 0; models that :func:`llr.jacobian` refuses.

    Source: docs/theory.md, Theorem 7.1 (the gradient is J'e).

    Example:
        >>> import torch
        >>> from llr.landscape import critical_targets, criticality
        >>> from llr.models import mlp
        >>> model, x = mlp([1, 2, 1]).double(), torch.linspace(-2, 2, 20)[:, None].double()
        >>> bool(criticality(model, x, critical_targets(model, x, x.sin())))
        True
    """
    if not 0 < size < math.inf:
        raise ValueError(f"size is {size!r}; expected a finite number > 0")
    problem = read_problem(model, x, None, torch.float64)
    J = execute(problem, prepare(problem))[0].flatten(0, 1)
    with torch.enable_grad():
        outputs = problem.call(as_leaves(problem.columns.values), problem.x.detach().clone())
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model's output is {type(outputs).__name__}; expected one tensor (n, ...)"
        )
    outputs = outputs.detach()
    if y is None:
        normal = torch.randn(outputs.numel(), dtype=torch.float64, generator=generator).to(outputs)
        e, rank = critical_error(J, normal)
        e = e * (size * math.sqrt(len(e)) / e.norm())
    else:
        e, rank = critical_error(J, error_of(outputs, y))
    if rank >= len(J):
        raise ValueError(
            f"x has {len(x)} samples with {len(J)} outputs, on which the Jacobian has rank {rank}; "
            "expected more outputs than the rank, as otherwise only the zero error has gradient 0"
        )
    return outputs - e.view(outputs.shape)


def critical_error(J: Tensor, error: Tensor) -> tuple[Tensor, int]:
    """The part of an error (n q) in the kernel of J', for J (n q, P), and the rank of J."""
    U, values, _ = torch.linalg.svd(J, full_matrices=False)
    rank = int((values > threshold(values, min(J.shape))).sum())
    span = U[:, :rank]
    for _ in range(2):  # the second pass removes what rounding left in the first one
        error = error - span @ (span.mT @ error)
    return (error if rank < len(J) else torch.zeros_like(error)), rank


def error_of(outputs: Tensor, y: Tensor) -> Tensor:
    """Outputs minus targets, (n q); the targets are checked."""
    if not isinstance(y, Tensor) or not y.is_floating_point():
        found = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y is {found}; expected a floating-point tensor of targets")
    if y.numel() != outputs.numel() or not y.dim() or len(y) != len(outputs):
        raise ValueError(f"y has shape {tuple(y.shape)}; expected {tuple(outputs.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y has NaN or infinity; expected finite targets")
    return (outputs - y.detach().to(outputs).reshape(outputs.shape)).flatten()


def relative_gradients(
    narrow: nn.Module, wide: nn.Module, x: Tensor, error: Tensor
) -> tuple[float, float, bool | None]:
    """Relative gradients of both at targets critical for the narrow one; whether the wide one is critical."""
    matrices = [jacobian(model, x).flatten(0, 1) for model in (narrow, wide)]
    error, rank = critical_error(matrices[0], error)
    if rank >= len(error) or not bool(error.any()):
        return 0.0, 0.0, None
    size = float(error.norm())
    gradients = [
        float((J.mT @ error).norm()) / (max(float(torch.linalg.matrix_norm(J, 2)), 1e-300) * size)
        for J in matrices
    ]
    eps = torch.finfo(error.dtype).eps * max(matrices[0].shape)
    return gradients[0], gradients[1], gradients[1] <= _MARGIN * eps
