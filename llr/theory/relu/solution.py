"""Solutions of the convex programs as networks, and networks as solutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, needed, takes
from llr.inputs.roles import an_instance
from llr.models import NormalizedTwoLayer, SkipTwoLayer, TwoLayer
from llr.results import Record
from llr.theory.relu.arguments import Kind, network_of, patterns_of, samples_of

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Record):
    """A point of a convex program: the function sum_j D_j X v_j (+ X v_0) on the samples.

    Attributes:
        kind: "plain", "skip" or "normalized".
        x: the samples, (n, d).
        cells: the diagonals of D_j, (k, n), bool. A cell may be there twice, with vectors of either sign.
        vectors: v_j, (k, d), none of them zero.
        skip: v_0, (d); None for other kinds than "skip".
    """

    kind: Kind
    x: Tensor
    cells: Tensor
    vectors: Tensor
    skip: Tensor | None

    def __str__(self) -> str:
        """How many vectors there are."""
        skip = "" if self.skip is None else " and a skip connection"
        return f"{self.kind} ReLU network of {len(self.vectors)} vectors in their cells{skip}"

    def norm(self) -> float:
        """The objective: the norms of v_j, or those of D_j X v_j if neurons are normalized, added up."""
        vectors = self.vectors
        if self.kind == "normalized":
            vectors = self.cells * (vectors @ self.x.T)
        total = float(vectors.norm(dim=1).sum())
        return total if self.skip is None else total + float(self.skip.norm())

    def values(self) -> Tensor:
        """What the function is on the samples, (n)."""
        values = (self.cells * (self.vectors @ self.x.T)).sum(0)
        return values if self.skip is None else values + self.x @ self.skip

    def leaves(self) -> float:
        """How far vectors are outside of their cells or the opposite ones, 0 in the exact program.

        The largest distance to a hyperplane on the wrong side, in units of the largest vector.
        """
        if not len(self.vectors):
            return 0.0
        signs = torch.where(self.cells, 1.0, -1.0)
        sizes = (self.x.norm(dim=1) * self.vectors.norm(dim=1).max()).clamp(min=1e-300)
        side = signs * (self.vectors @ self.x.T) / sizes
        outside = torch.minimum((-side).amax(1), side.amax(1))
        return max(0.0, float(outside.max()))


LEAVES = 1e-6
"""How far vectors may be outside of their cells, relative to the largest, to make a network."""


@takes(solution=an_instance(Solution))
def network_from(solution: Solution) -> nn.Module:
    """The ReLU network of a point of the exact program, balanced: v_j becomes one neuron.

    Args:
        solution: vectors in their cells K_j, or in -K_j for negative outgoing weights.

    Returns:
        A ``TwoLayer``, ``SkipTwoLayer`` or ``NormalizedTwoLayer`` in float64.

    Raises:
        ValueError: a vector outside of its cell and of the opposite one: no ReLU network has these outputs.

    Example:
        >>> import torch
        >>> import llr
        >>> from llr.models import TwoLayer
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> w, a = torch.tensor([[3.0, -1.0]]), torch.tensor([[2.0]])
        >>> solution = llr.relu.solution_from(x, TwoLayer.of(w, None, a, activation="relu"))
        >>> solution.vectors.tolist()
        [[6.0, -2.0]]
        >>> llr.relu.network_from(solution)(x).flatten().tolist()
        [6.0, 0.0]
    """
    samples, d = solution.x, solution.x.shape[1]
    if (outside := solution.leaves()) > LEAVES:
        raise ValueError(
            f"a vector is outside of its cell by {outside:.3g} of the largest vector; at most "
            f"{LEAVES:g} is expected: it is a solution of the gated relaxation, and no ReLU network has "
            "its outputs"
        )
    v = solution.vectors
    products = v @ samples.T
    inside = torch.where(solution.cells, products, -products).amin(1)
    opposite = torch.where(solution.cells, -products, products).amin(1)
    sign = torch.where(inside >= opposite, 1.0, -1.0).to(v)
    if solution.kind == "normalized":
        r = sign * (solution.cells * products).norm(dim=1)
        if not len(v):
            raise ValueError("the solution is zero, and no normalized network; expected a vector")
        return NormalizedTwoLayer.on(samples, sign[:, None] * v, r)
    root = v.norm(dim=1).sqrt()
    w, a = sign[:, None] * v / root[:, None], sign * root
    if solution.skip is not None:
        return SkipTwoLayer.of(solution.skip, *((w, a) if len(v) else ()))
    if not len(v):
        w, a = v.new_zeros(1, d), v.new_zeros(1)
    return TwoLayer.of(w, None, a[:, None], activation="relu")


@takes(x=needed, model=a_module)
def solution_from(x: Tensor, model: nn.Module) -> Solution:
    """A ReLU network as a point of the exact program: a_i w_i in the cell of w_i.

    Args:
        x: samples (n, d).
        model: a ``TwoLayer`` without biases, ``SkipTwoLayer`` or ``NormalizedTwoLayer``; neurons that
            contribute nothing are left out.

    Raises:
        ValueError: what :func:`isometry` refuses.
        TypeError: no two-layer network.
    """
    samples = samples_of(x)
    network = network_of(model, samples)
    skip = None if network.skip is None else torch.from_numpy(network.skip)
    return Solution(
        network.kind,
        torch.from_numpy(samples),
        torch.from_numpy(patterns_of(network.w, samples)),
        torch.from_numpy(network.a[:, None] * network.w),
        skip,
    )
