"""The groups A_j of gated programs, never formed: products with them, their transposes, Hessians."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 1 << 22  # entries of D_j X at a time


class Groups(Protocol):
    """Matrices A_1, ..., A_p of n rows each."""

    count: int
    rows: int
    width: int

    def pull(self, lam: Tensor) -> Tensor:
        """A_j' lam for all j, (p, width)."""

    def push(self, which: Tensor, u: Tensor) -> Tensor:
        """The sum of A_j u_j over the groups of these indices, (n)."""

    def curvature(self, which: Tensor, plain: Tensor, along: Tensor, e: Tensor) -> Tensor:
        """The sum of A_j (plain_j I + along_j e_j e_j') A_j' over the groups of these indices, (n, n)."""


class Gates:
    """A_j = D_j X.

    Args:
        x: (n, d).
        mask: the diagonals of D_j, (p, n). A row of ones is the group of a skip connection.
    """

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self.x = x
        self.mask = mask.to(x)
        self.count, self.rows = mask.shape
        self.width = x.shape[1]
        self._products = x @ x.T

    def pull(self, lam: Tensor) -> Tensor:
        """A_j' lam for all j, (p, width)."""
        return (self.mask * lam) @ self.x

    def push(self, which: Tensor, u: Tensor) -> Tensor:
        """The sum of A_j u_j over some groups, (n)."""
        return (self.mask[which] * (u @ self.x.T)).sum(0)

    def curvature(self, which: Tensor, plain: Tensor, along: Tensor, e: Tensor) -> Tensor:
        """The sum of A_j (plain_j I + along_j e_j e_j') A_j' over some groups, (n, n)."""
        mask = self.mask[which]
        features = mask * (e @ self.x.T)
        # D_j X X' D_j is X X' where both samples are active.
        H = self._products * ((mask * plain[:, None]).T @ mask)
        return H + (features * along[:, None]).T @ features


class NormalizedGates:
    """A_j = U_j, orthonormal columns that span the range of D_j X; zero columns where its rank is below d.

    Attributes:
        back: T_j with U_j = D_j X T_j, (p, d, d).
        scaled: S_j V_j', with D_j X = U_j S_j V_j', (p, d, d).
        ranks: of D_j X, (p).
    """

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self.x = x
        self.mask = mask.to(x)
        self.count, self.rows = mask.shape
        n, d = x.shape
        self.width = d
        self.back = x.new_zeros(self.count, d, d)
        self.scaled = x.new_zeros(self.count, d, d)
        self.ranks = torch.zeros(self.count, dtype=torch.int64)
        step = max(1, _CHUNK // (n * d))
        for start in range(0, self.count, step):
            part = slice(start, start + step)
            blocks = self.mask[part, :, None] * x
            if n < d:
                blocks = torch.cat((blocks, x.new_zeros(len(blocks), d - n, d)), 1)
            _, s, vt = torch.linalg.svd(blocks, full_matrices=False)
            kept = s > s[:, :1] * max(n, d) * torch.finfo(x.dtype).eps
            self.ranks[part] = kept.sum(1)
            self.scaled[part] = torch.where(kept, s, 0.0)[:, :, None] * vt
            self.back[part] = vt.mT * torch.where(kept, 1 / s, 0.0)[:, None, :]

    def pull(self, lam: Tensor) -> Tensor:
        """A_j' lam for all j, (p, width)."""
        return torch.einsum("pd,pdr->pr", (self.mask * lam) @ self.x, self.back)

    def push(self, which: Tensor, u: Tensor) -> Tensor:
        """The sum of A_j u_j over some groups, (n)."""
        return (self.mask[which] * (self.directions(which, u) @ self.x.T)).sum(0)

    def directions(self, which: Tensor, u: Tensor) -> Tensor:
        """The neurons T_j u_j whose outputs are U_j u_j, (k, d)."""
        return torch.einsum("pdr,pr->pd", self.back[which], u)

    def curvature(self, which: Tensor, plain: Tensor, along: Tensor, e: Tensor) -> Tensor:
        """The sum of A_j (plain_j I + along_j e_j e_j') A_j' over some groups, (n, n)."""
        H = self.x.new_zeros(self.rows, self.rows)
        step = max(1, _CHUNK // (self.rows * self.width))
        for start in range(0, len(which), step):
            part = slice(start, start + step)
            some = which[part]
            blocks = self.mask[some, :, None] * (self.x @ self.back[some])  # (k, n, d)
            features = torch.einsum("knr,kr->kn", blocks, e[part])
            flat = blocks * plain[part].sqrt()[:, None, None]
            flat = flat.transpose(0, 1).reshape(self.rows, -1)
            H += flat @ flat.T + (features * along[part, None]).T @ features
        return H


class Within:
    """The groups B' A_j: lam is restricted to the combinations of the columns of B, (n, m)."""

    def __init__(self, groups: Groups, basis: Tensor) -> None:
        inner = groups if isinstance(groups, Within) else None
        self.groups: Groups = groups if inner is None else inner.groups
        self.basis: Tensor = basis if inner is None else inner.basis @ basis
        self.count, self.width = groups.count, groups.width
        self.rows = basis.shape[1]

    def pull(self, lam: Tensor) -> Tensor:
        """A_j' lam for all j, (p, width)."""
        return self.groups.pull(self.basis @ lam)

    def push(self, which: Tensor, u: Tensor) -> Tensor:
        """The sum of A_j u_j over some groups, (n)."""
        return self.basis.T @ self.groups.push(which, u)

    def curvature(self, which: Tensor, plain: Tensor, along: Tensor, e: Tensor) -> Tensor:
        """The sum of A_j (plain_j I + along_j e_j e_j') A_j' over some groups, (m, m)."""
        return self.basis.T @ self.groups.curvature(which, plain, along, e) @ self.basis
