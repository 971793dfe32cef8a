"""Aliases: frequencies that are invisible on the samples, as sines of different frequencies agree on a grid.

Source: A. K. Lenstra, H. W. Lenstra, L. Lovasz, "Factoring polynomials with rational coefficients",
Math. Annalen 261 (1982), as simultaneous Diophantine approximation.
"""

from __future__ import annotations

import math

import numpy as np
from flint import fmpz_mat
from torch import Tensor

_RESOLUTION = 10**9
_ROWS = 12
_PERIODS = 1e7  # most periods of a frequency between two samples
_WHOLE = 1e-8


def aliases(x: Tensor) -> Tensor | None:
    """(m, d) frequencies with omega . (x_i - x_0) a multiple of 2 pi for every i; None if none is found.

    With d independent differences B, omega = 2 pi B^-1 m for integers m, and R m is nearly integer for
    R = D B^-1, with D all differences. Frequencies of more than 1e7 periods are not searched for.

    Args:
        x: (n, d) samples.
    """
    X = x.numpy()
    D = np.unique(X - X[0], axis=0)
    D = D[np.abs(D).max(1) > 0]
    d = X.shape[1]
    if len(D) < d:
        return None
    scale = np.abs(D).max(0) + 1e-300
    scaled = D / scale
    basis = _independent(scaled)
    if basis is None:
        return None
    B = scaled[basis]
    others = [i for i in range(len(D)) if i not in basis]
    R = np.linalg.solve(B.T, scaled.T).T
    taken = np.random.default_rng(0).permutation(others)[:_ROWS].astype(int)
    N = len(taken)
    lattice = [[0] * (d + N) for _ in range(d + N)]
    for i in range(d):
        lattice[i][i] = 1
        for c, row in enumerate(taken):
            lattice[i][d + c] = round(float(R[row, i]) * _RESOLUTION)
    for c in range(N):
        lattice[d + c][d + c] = _RESOLUTION
    reduced = fmpz_mat(lattice).lll()
    found = []
    for i in range(d + N):
        m = np.array([int(reduced[i, j]) for j in range(d)], dtype=float)
        if not m.any() or np.abs(m).max() > _PERIODS:
            continue
        t = R @ m
        off = np.abs(t - np.round(t)).max()
        if off < _WHOLE + 1e-15 * np.abs(m).max() * np.abs(R).max():
            found.append(2 * math.pi * np.linalg.solve(B, m) / scale)
    if not found:
        return None
    order = np.argsort([np.linalg.norm(v) for v in found])
    return x.new_tensor(np.array(found)[order])


def _independent(D: np.ndarray) -> list[int] | None:
    """The indices of d independent rows; short rows are preferred."""
    d, chosen = D.shape[1], list[int]()
    for i in np.argsort(np.abs(D).max(1)):
        least = np.linalg.svd(D[[*chosen, i]], compute_uv=False)[-1]
        if least > 1e-3 * np.abs(D[i]).max():
            chosen.append(int(i))
        if len(chosen) == d:
            return chosen
    return None
