"""A loss on given samples as a function of all parameters in one vector, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from llr.inputs.evaluation.forward_errors import derivatives, explained
from llr.inputs.evaluation.surroundings import silent_vmap
from llr.inputs.parameters import Columns, Selection
from llr.inputs.probe import refuse_interactions
from llr.inputs.problem import Model, Problem, read_problem
from llr.inputs.tensors import refuse_complex
from llr.results.progress import step

_COLUMNS_AT_ONCE = 64  # columns of a Hessian

Loss = str | Callable[[Tensor, Tensor], Tensor]
"""A name of :data:`LOSSES`, or a function of the outputs (n, ...) and the targets to a single number."""


def _half_mean_square(outputs: Tensor, y: Tensor) -> Tensor:
    return ((outputs - y) ** 2).sum() / (2 * len(outputs))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _half_mean_square,
    "cross_entropy": F.cross_entropy,
}
"""Losses by name. "mse" is 1/(2n) times the sum of squares over samples and outputs."""


@dataclass(frozen=True, eq=False)
class Surface:
    """The loss of a model on samples, as a function of the parameters in one vector (P,)."""

    problem: Problem
    y: Tensor
    loss: Loss
    theta: Tensor
    """(P,) float64: the parameters of the model."""
    eps: float
    """The rounding unit of the parameters as the model stores them."""

    @classmethod
    def of(
        cls, model: Model, x: Tensor, y: Tensor, loss: Loss = "mse", params: Selection = None
    ) -> Surface:
        """Read and check a model, its samples and their targets.

        Raises:
            TypeError: x or y is no tensor, dtypes that do not fit, an output that is not one tensor.
            ValueError: no samples, targets that do not fit the outputs, an unknown loss, several parameter
                points, NaN or infinity; models that :func:`llr.jacobian` refuses.
        """
        problem = read_problem(model, x, params, torch.float64)
        if problem.columns.points is not None:
            raise ValueError(
                f"params has {problem.columns.points} parameter points; expected one (no leading batch)"
            )
        if len(problem.x) == 0:
            raise ValueError("x has no samples; expected at least one")
        values = {name: v.detach() for name, v in problem.columns.values.items()}
        fixed = {name: v.detach() for name, v in problem.columns.fixed.items()}
        problem = replace(problem, columns=Columns(values, fixed))
        refuse_interactions(problem)
        given = (
            params
            if isinstance(params, Mapping)
            else dict(cast(nn.Module, model).named_parameters())
        )
        eps = max(torch.finfo(given[name].dtype).eps for name in values)
        theta = torch.cat([v.reshape(-1) for v in values.values()])
        with torch.no_grad():
            outputs = cls(problem, y, loss, theta, eps).evaluated(theta)
            surface = cls(problem, _targets(y, outputs, loss), loss, theta, eps)
            with explained(outputs, "loss", "outputs"):
                value = surface._function(outputs, surface.y)
        if outputs.numel() == 0 or len(theta) == 0:
            raise ValueError(
                f"the model's outputs have shape {tuple(outputs.shape)} at {len(theta)} parameters; expected "
                "at least one of each"
            )
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss returned {shape}; expected a tensor with the one number to be minimised"
            )
        return surface

    def outputs(self, theta: Tensor) -> Tensor:
        """(n, ...): the model at these parameters."""
        values = {
            name: theta[s].view(self.problem.columns.values[name].shape)
            for name, s in self.problem.columns.slices().items()
        }
        x = self.problem.x.clone()  # a forward may change its input in place
        outputs = self.problem.call(values, x)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the model's output is {type(outputs).__name__}; expected one tensor (n, ...)"
            )
        if len(x) == 1 and outputs.shape[:1] != (1,):  # the model squeezes a batch of one
            return outputs[None]
        return outputs

    def evaluated(self, theta: Tensor) -> Tensor:
        """The outputs, detached; the model runs with parameters that require gradients, as in training."""
        with torch.enable_grad():
            return self.outputs(theta.detach().requires_grad_()).detach()

    def __call__(self, theta: Tensor) -> Tensor:
        """The loss at these parameters."""
        return self.of_outputs(self.outputs(theta))

    def of_outputs(self, outputs: Tensor) -> Tensor:
        """The loss of these outputs."""
        return self._function(outputs, self.y).reshape(())

    def linearized(self) -> Linearization:
        """The outputs to first order, at the model's parameters."""
        outputs, pull = pullback(self.outputs, self.theta)
        _, push = pullback(pull, torch.zeros_like(outputs))
        return Linearization(outputs, push, pull)

    @property
    def _function(self) -> Callable[[Tensor, Tensor], Tensor]:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss


def pullback(
    function: Callable[[Tensor], Tensor], at: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The function's value, and the product of its transposed derivative with a vector."""
    with derivatives(at, "parameters"):
        value, pull = cast(Any, vjp(function, at))

    def pulled(u: Tensor) -> Tensor:
        with derivatives(at, "parameters"):
            return cast(Tensor, pull(u)[0])

    return value, pulled


def hessian_of(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """(N, N), symmetric: the second derivatives of a function of a vector (N,)."""
    with torch.enable_grad():  # without it, torch differentiates LU factors wrongly under vmap
        _, times = pullback(grad(function), at)
        eye = torch.eye(len(at), dtype=at.dtype, device=at.device)
        parts: list[Tensor] = []
        with silent_vmap():
            for columns in eye.split(_COLUMNS_AT_ONCE):
                step("Hessian: columns", len(parts) * _COLUMNS_AT_ONCE, len(at))
                parts.append(vmap(times)(columns))
        H = torch.cat(parts)
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(len(at), generator=generator, dtype=at.dtype).to(at)
        off, size = mix @ H - times(mix), mix.norm() * torch.linalg.vector_norm(H, torch.inf)
        if not bool((off.abs() <= torch.finfo(at.dtype).eps ** 0.5 * size).all()):
            # Some vmap rules of torch are wrong (torch.cdist).
            parts = []
            for row in eye:
                step("Hessian: columns, one at a time", len(parts), len(at))
                parts.append(times(row))
            H = torch.stack(parts)
    H = H.detach()
    return (H + H.mT) / 2


@dataclass(frozen=True, eq=False)
class Linearization:
    """The linear map from small changes of the parameters to changes of the outputs."""

    outputs: Tensor
    push: Callable[[Tensor], Tensor]
    """(P,) -> (n, ...): J v."""
    pull: Callable[[Tensor], Tensor]
    """(n, ...) -> (P,): J' u."""


def _targets(y: Tensor, outputs: Tensor, loss: Loss) -> Tensor:
    """The targets in the form that the loss takes, checked."""
    if not isinstance(y, Tensor):
        raise TypeError(f"y is {type(y).__name__}; expected a tensor (torch.as_tensor(y))")
    if y.device != outputs.device:
        raise ValueError(f"y is on {y.device} but x is on {outputs.device}; expected one device")
    if y.is_floating_point():
        y = y.detach().double()
        if not bool(torch.isfinite(y).all()):
            where = tuple(int(i) for i in (~torch.isfinite(y)).nonzero()[0])
            raise ValueError(f"y is {float(y[where])} at index {where}; expected finite numbers")
    if callable(loss):
        return y
    refuse_complex("y", y)
    if loss not in LOSSES:
        raise ValueError(
            f"loss is {loss!r}; expected one of {', '.join(map(repr, LOSSES))}, or a function of the outputs "
            "and y"
        )
    n, shape = len(outputs), tuple(outputs.shape)
    if loss == "cross_entropy":
        _check_classes(y, outputs)
        return y
    # One number per sample may come as (n,) or (n, 1); anything else would be broadcast to (n, n).
    if tuple(y.shape) != shape and not (outputs.numel() == n and tuple(y.shape) in ((n,), (n, 1))):
        raise ValueError(f"y has shape {tuple(y.shape)}; expected {shape} as the model's outputs")
    return y.double().reshape(shape)


def _check_classes(y: Tensor, outputs: Tensor) -> None:
    n, shape = len(outputs), tuple(outputs.shape)
    if len(shape) != 2:
        raise ValueError(
            f"the model's outputs have shape {shape}; cross_entropy expects (n, classes)"
        )
    if y.is_floating_point():
        if tuple(y.shape) != shape:
            raise ValueError(
                f"y has shape {tuple(y.shape)}; expected classes as integers ({n},), or probabilities {shape}"
            )
        return
    if tuple(y.shape) != (n,) or bool(((y < 0) | (y >= shape[1])).any()):
        raise ValueError(
            f"y has shape {tuple(y.shape)} and values from {int(y.min())} to {int(y.max())}; expected ({n},) "
            f"classes from 0 to {shape[1] - 1}"
        )
