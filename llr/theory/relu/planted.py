"""A planted network as groups of the gated program, and its dual certificates.

lam can only be dual optimal if A_S' lam = b_S, where S are the planted groups and b_s their directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llr.theory.relu.arguments import Network, patterns_of
from llr.theory.relu.groups import Gates, NormalizedGates

Array = np.ndarray[Any, np.dtype[Any]]
_CONSISTENT = 1e-9  # relative residual of A_S' lam = b_S, above which there is no lam


@dataclass(frozen=True)
class Planted:
    """The planted groups.

    Attributes:
        network: what was planted.
        x: (n, d).
        active: patterns of the neurons, (m, n), bool.
        y: the network's values, (n).
        features: A_s b_s, a column for each planted group, the skip connection first; (n, k).
        coefficients: the norms of the planted u_s, (k).
        A: the A_s side by side, (n, sum of their widths).
        b: the b_s one after the other.
    """

    network: Network
    x: Array
    active: Array
    y: Array
    features: Array
    coefficients: Array
    A: Array
    b: Array

    @property
    def with_skip(self) -> bool:
        """Whether the skip connection is one of the planted groups."""
        return self.network.skip is not None and bool(self.network.skip.any())

    @property
    def same_cell(self) -> tuple[int, int] | None:
        """Two neurons in one cell, if there are any."""
        for j, row in enumerate(self.active):
            for i in range(j):
                if np.array_equal(row, self.active[i]):
                    return i, j
        return None

    @property
    def unseen(self) -> int | None:
        """A neuron that is 0 on all samples, if there is one."""
        nowhere = ~self.active.any(axis=1)
        return int(nowhere.argmax()) if nowhere.any() else None

    @property
    def independent(self) -> bool:
        """Whether the features are linearly independent, up to rounding."""
        return int(np.linalg.matrix_rank(self.features)) == self.features.shape[1]

    def particular(self) -> Array | None:
        """The least lam with A_S' lam = b_S, (n); None if there is none."""
        lam: Array = np.linalg.lstsq(self.A.T, self.b, rcond=None)[0]
        off = float(np.linalg.norm(self.A.T @ lam - self.b))
        return lam if off <= _CONSISTENT * float(np.linalg.norm(self.b)) else None

    def others(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The groups of the gated program that are not planted.

        Args:
            mask: patterns, (p, n).

        Returns:
            Their diagonals (q, n); and whether each is a skip connection, (q).
        """
        planted = torch.from_numpy(self.active)
        keep = torch.ones(len(mask), dtype=torch.bool)
        for row in planted:
            keep &= ~(mask == row).all(1)
        rest = mask[keep]
        is_skip = torch.zeros(len(rest), dtype=torch.bool)
        if self.network.skip is not None and not self.with_skip:
            rest = torch.cat(
                (torch.ones_like(rest[:1]) if len(rest) else mask.new_ones(1, mask.shape[1]), rest)
            )
            is_skip = torch.cat((torch.ones(1, dtype=torch.bool), is_skip))
        return rest, is_skip

    def groups(self, mask: Tensor) -> Gates | NormalizedGates:
        """Groups of the network's kind with these patterns."""
        x = torch.from_numpy(self.x)
        return NormalizedGates(x, mask) if self.network.kind == "normalized" else Gates(x, mask)


def plant(network: Network, x: Array) -> Planted:
    """The groups of a network on samples.

    Raises:
        OnHyperplane: a sample is on the hyperplane of a neuron.
        ValueError: a normalized neuron that is 0 on all samples.
    """
    active = patterns_of(network.w, x)
    unseen = ~active.any(axis=1)
    if network.kind == "normalized" and unseen.any():
        raise ValueError(
            f"neuron {int(unseen.argmax())} of the target is 0 on all {len(x)} samples, where it cannot be "
            "normalized; expected x_i.w > 0 for some sample"
        )
    features: list[Array] = []
    coefficients: list[float] = []
    blocks: list[Array] = []
    directions: list[Array] = []
    if network.skip is not None and network.skip.any():
        size = float(np.linalg.norm(network.skip))
        blocks.append(x)
        directions.append(network.skip / size)
        coefficients.append(size)
    for w, a, pattern in zip(network.w, network.a, active, strict=True):
        block = pattern[:, None] * x
        if network.kind == "normalized":
            U, s, _ = np.linalg.svd(block, full_matrices=False)
            block = U[:, s > s[0] * max(x.shape) * np.finfo(float).eps]
            f = np.maximum(x @ w, 0)
            size = float(np.linalg.norm(f))
            direction = block.T @ (f / size)
        else:
            size = float(np.linalg.norm(w))
            direction = w / size
        blocks.append(block)
        directions.append(np.sign(a) * direction)
        coefficients.append(abs(a) * size)
    features = [A @ b for A, b in zip(blocks, directions, strict=True)]
    columns = np.stack(features, axis=1)
    sizes = np.array(coefficients)
    return Planted(
        network,
        x,
        active,
        columns @ sizes,
        columns,
        sizes,
        np.concatenate(blocks, axis=1),
        np.concatenate(directions),
    )
