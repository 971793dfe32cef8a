"""Derivatives of many samples at a time by ``vmap``, and a check against autograd.

Some of torch's ``vmap`` rules give wrong numbers: the rule of ``torch.cdist``'s derivative for several
outputs, and the rules of LU factors if gradients are not recorded. So a few samples are differentiated a
second time, each alone and without ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import vjp, vmap

from llr.inputs.evaluation.compare import flat, ragged
from llr.inputs.evaluation.outputs import dense, output_leaves
from llr.inputs.problem import Problem

_SAMPLES = 2  # the number of samples that are differentiated a second time


class WrongDerivatives(RuntimeError):
    """The derivatives by ``vmap`` differ from those of autograd."""


def batched_rows(
    problem: Problem, values: Mapping[str, Tensor], x: Tensor, basis: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Derivatives of linear combinations of the outputs.

    Args:
        problem: its model is called on one sample at a time.
        values: the parameters to differentiate with respect to.
        x: (m, ...) samples.
        basis: (k, q) coefficients of the combinations; the identity for the outputs themselves.

    Returns:
        name -> (m, k, *parameter), and the outputs (m, q).

    Raises:
        ValueError: the number of outputs of a sample is not q.
    """

    def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        # Clone: a forward may change its input in place, which vjp allows only for tensors made inside it.
        found = flat(problem.call(values, sample[None].clone()))
        if len(found) != basis.shape[1]:
            raise ValueError(ragged(len(found), basis.shape[1]))
        return found

    def one(sample: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        value, pull = cast(Any, vjp(lambda values: outputs(values, sample), dict(values)))
        return vmap(pull)(basis)[0], value

    return vmap(one)(x)


class Comparison:
    """Compares derivatives with those of autograd, for the first few samples."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._compared: dict[tuple[str, ...], int] = problem.kept.setdefault("compared", {})

    def __call__(
        self,
        values: Mapping[str, Tensor],
        x: Tensor,
        rows: Mapping[str, Tensor],
        basis: Tensor | None = None,
    ) -> None:
        """Compare the rows (m, k, *parameter) of these samples (m, ...), unless this was done before.

        Raises:
            WrongDerivatives: they differ by more than rounding.
        """
        names = tuple(values)
        left = _SAMPLES - self._compared.get(names, 0) if basis is None else _SAMPLES
        if left <= 0:
            return
        some = list(dict.fromkeys((0, len(x) - 1)))[:left]
        self._compare(
            values,
            x[some],
            {n: dense(r.detach())[some].to(device=x.device) for n, r in rows.items()},
            basis,
        )
        if basis is None:
            self._compared[names] = self._compared.get(names, 0) + len(some)

    def _compare(
        self,
        values: Mapping[str, Tensor],
        x: Tensor,
        rows: Mapping[str, Tensor],
        basis: Tensor | None,
    ) -> None:
        """Compare one random combination of all rows, which differs if one row is wrong."""
        first = next(iter(rows.values()))
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(first.shape[:2], generator=generator, dtype=torch.float64)
        mix = mix.to(device=x.device, dtype=first.dtype)
        truth = _gradients(self._problem, values, x, mix if basis is None else mix @ basis)
        size, eps = float(mix.norm()), torch.finfo(first.dtype).eps
        mixed = {name: torch.tensordot(mix, r, 2) for name, r in rows.items()}
        largest = {name: _largest(r) for name, r in rows.items()}
        # Relative to the largest derivative of all, for parameters whose derivatives are only rounding
        # errors.
        least = eps**0.75 * max(largest.values(), default=0.0)
        for name, own in mixed.items():
            off = (own - truth[name]).abs()
            # Skip entries that are not finite for both.
            off = torch.where(own.isfinite() | truth[name].isfinite(), off, 0)
            allowed = size * max(eps**0.5 * largest[name], least)
            if off.numel() and not float(off.max()) <= allowed:
                raise WrongDerivatives(
                    f"torch's derivatives under vmap are not those of autograd (by {name!r} they differ by "
                    f"{float(off.max()):.3g})"
                )


def _largest(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, torch.inf)) if rows.numel() else 0.0


def _gradients(
    problem: Problem, values: Mapping[str, Tensor], x: Tensor, mix: Tensor
) -> dict[str, Tensor]:
    """The gradients of a combination (m, q) of the outputs of a few samples."""
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
    with torch.enable_grad():
        leaves_of_output = output_leaves(problem.call(leaves, x.detach().clone()))
        outputs = torch.cat([leaf.reshape(len(x), -1) for leaf in leaves_of_output], 1)
    found: list[Tensor | None] = [None] * len(leaves)
    if outputs.requires_grad:
        value = (outputs * mix).sum()
        found = list(torch.autograd.grad(value, list(leaves.values()), allow_unused=True))
    return {
        name: torch.zeros_like(leaf) if g is None else dense(g)
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }
