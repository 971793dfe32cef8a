"""Checks that a module computes the steps that it was read as: balls must contain its float64 results.

The steps are evaluated in balls. After each operation the balls are widened by a bound of the rounding errors
of float64, for any order of summation. The module's own outputs, and one combination of its gradients by
autograd, must then lie in the balls.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1, for the sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flint import arb, arb_mat
from torch import Tensor

from llr.inputs.agreement import probes
from llr.inputs.evaluation.surroundings import closed, full_precision
from llr.inputs.evaluation.watch import keeping_random_state
from llr.linalg.arithmetic import Arithmetic, each
from llr.linalg.balls import Number, precision

if TYPE_CHECKING:
    from llr.exact.network import Network

_BITS = 128
# The rounding unit of float64, and the unit taken for library functions, which are accurate to a few units.
_UNIT = arb((1, -53))
_ROUNDING = 16 * _UNIT
_SMALLEST = arb((1, -1020))  # below it float64 has fewer digits, or none


class _Float64(Arithmetic):
    """Balls that contain the results that float64 may compute."""

    def product(self, A: Any, B: Any) -> Any:
        """A B, widened by Higham's bound (3.5), which holds for any order of summation."""
        exact = super().product(A, B)
        sizes = [arb_mat(len(M), M.shape[1], [x.abs_upper() for x in M.ravel()]) for M in (A, B)]
        off = np.array((sizes[0] * sizes[1]).entries(), dtype=object).reshape(exact.shape)
        return _widened(exact, off * ((A.shape[1] + 3) * _ROUNDING))

    def apply(self, function: Any, x: Any) -> Any:
        """A function of the table, widened by some roundings of its value and of its argument."""
        value = each(function, x)
        return _widened(value, (each(abs, value) + each(_at_most_one, x)) * _ROUNDING)

    def times(self, a: Any, b: Any) -> Any:
        """a b, entry by entry."""
        exact = super().times(a, b)
        return _widened(exact, each(abs, exact) * _ROUNDING)

    def plus(self, a: Any, b: Any) -> Any:
        """a + b, entry by entry."""
        return _widened(a + b, (each(abs, a) + each(abs, b)) * _ROUNDING)


def _at_most_one(z: Number) -> Number:
    size = abs(z).upper()
    return size if size < 1 else arb(1)


def _widened(exact: Any, off: Any) -> Any:
    def widen(x: Number, r: Number) -> Number:
        return x + arb(0, (r + _SMALLEST).upper())

    return np.frompyfunc(widen, 2, 1)(exact, off).reshape(exact.shape)


def network_departure(network: Network, *, discrete: bool) -> str:
    """How the module's outputs or gradients differ from those of the steps that it was read as.

    Args:
        network: the network that was read, with its samples.
        discrete: whether only the given samples may be used, and no others.

    Returns:
        Why the module is another function; empty if no difference is found.
    """
    x, inputs = network.problem.x[:4], network.inputs[:4]
    own = None
    if not discrete:
        x = inputs = probes(network.problem.x)
        own = _evaluated(network, x)
        if isinstance(own, str):  # not every function accepts every number
            x = inputs = network.problem.x[:4]
            own = None
    own = _evaluated(network, x) if own is None else own
    if isinstance(own, str):
        return own
    outputs, gradients, mix = own
    if outputs.shape[1] != network.outputs:
        return f"it returns {outputs.shape[1]} numbers for a sample, not {network.outputs}"
    probe = replace(network, inputs=inputs)
    with precision(_BITS):
        over = _Float64(arb_mat, lambda v: arb(float(v)))
        tape, out = probe._run(over, np.arange(len(inputs)))
        for ball, value in zip(out.ravel(), outputs.flatten().tolist(), strict=True):
            if not _contains(ball, value):
                return f"it returns {value} where its layers give {ball.str(8)}"
        J = probe._pulled_back(over, tape, over.array(mix), np.arange(len(inputs)))
        sizes = each(abs, J).sum(axis=0) * ((len(J) + 4) * _ROUNDING)
        for ball, value in zip(_widened(J.sum(axis=0), sizes), gradients.tolist(), strict=True):
            if not _contains(ball, value):
                return f"autograd finds a derivative of {value} where its layers give {ball.str(8)}"
    return ""


def _contains(ball: Number, value: float) -> bool:
    """Whether float64 may have computed the value; True for an overflow, of which nothing can be said."""
    if not ball.is_finite() or not abs(ball).upper() < arb((1, 1000)):
        return True
    return bool(np.isfinite(value)) and bool(ball.contains(arb(value)))


def _evaluated(network: Network, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | str:
    """The outputs (n, q) by the module itself, the gradient (P) of a combination, and its weights (n, q)."""
    problem = network.problem
    leaves = {n: v.detach().clone().requires_grad_() for n, v in problem.columns.values.items()}
    with torch.enable_grad(), full_precision(), keeping_random_state(x.device):
        try:
            out = run(problem, leaves, x.clone())
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            return f"evaluating it raises {type(error).__name__} ({first})"
        if not isinstance(out, Tensor) or len(out) != len(x):
            return "its output is not one tensor with a row for each sample"
        if out.dtype != torch.float64:
            return f"its output is {out.dtype}, although parameters and samples are float64"
        out = out.reshape(len(x), -1)
        mix = (
            torch.linspace(1, 2, out.numel(), dtype=out.dtype, device=out.device).cos().view_as(out)
        )
        flat = torch.zeros(problem.columns.count, dtype=torch.float64)
        if out.requires_grad:
            found = torch.autograd.grad((mix * out).sum(), [*leaves.values()], allow_unused=True)
            for g, columns in zip(found, problem.columns.slices().values(), strict=True):
                if g is not None:
                    flat[columns] = g.flatten().cpu()
    return out.detach().cpu(), flat, mix.cpu()


def run(problem: Any, values: Mapping[str, Tensor], x: Tensor) -> object:
    """Run a copy of the user's module at these values."""
    with closed():
        return problem.call(values, x)
