"""Programs with second-order cones and half-spaces, handed to clarabel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from llr.linalg.deadline import poll

try:
    import clarabel
except ImportError:  # said where it is needed
    clarabel = None

Array = np.ndarray[Any, np.dtype[Any]]
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Block:
    """A group of the program: the term norm(R u), M u in the equations, and C u >= 0.

    Attributes:
        M: (m, d).
        R: (r, d).
        C: (k, d), perhaps without rows.
    """

    M: Array
    R: Array
    C: Array


@dataclass(frozen=True)
class Optimum:
    """What clarabel found.

    Attributes:
        u: one vector for each block.
        lam: the dual variable of the equations, (m).
        feasible: False if there is no solution; lam then proves it: lam.y > 0, and lam.(M u) <= 0 for all
            blocks and their u.
        status: clarabel's word.
    """

    u: list[Array]
    lam: Array
    feasible: bool
    status: str


def need_clarabel() -> None:
    """Refuse to go on without clarabel.

    Raises:
        ImportError: it is not installed.
    """
    if clarabel is None:
        raise ImportError(
            "the exact program (cones=True) needs clarabel: pip install 'llr[relu]'; its relaxation, "
            "cones=False, "
            "does not"
        )


def least_norms(blocks: list[Block], y: Array) -> Optimum:
    """The least sum of norm(R_k u_k) with sum_k M_k u_k = y and C_k u_k >= 0 for all k.

    Raises:
        ImportError: clarabel is not installed.
    """
    need_clarabel()
    poll()
    d, m, count = blocks[0].M.shape[1], len(y), len(blocks)
    size = float(np.linalg.norm(y))
    parts: list[Any] = [sp.hstack([sp.csc_matrix(np.hstack([b.M for b in blocks])),
                                   sp.csc_matrix((m, count))])]  # fmt: skip
    right = [y / size]
    cones: list[Any] = [clarabel.ZeroConeT(m)]
    halves = sp.block_diag([sp.csc_matrix(b.C) for b in blocks])
    if halves.shape[0]:
        parts.append(sp.hstack([-halves, sp.csc_matrix((halves.shape[0], count))]))
        right.append(np.zeros(halves.shape[0]))
        cones.append(clarabel.NonnegativeConeT(halves.shape[0]))
    lines: list[Any] = []
    for k, block in enumerate(blocks):
        r = len(block.R)
        lines.append((count * d + k, k * d, block.R))
        cones.append(clarabel.SecondOrderConeT(r + 1))
        right.append(np.zeros(r + 1))
    parts.append(_cone_rows(lines, count * (d + 1)))
    objective = np.concatenate((np.zeros(count * d), np.ones(count)))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = TOLERANCE
    solver = clarabel.DefaultSolver(
        sp.csc_matrix((len(objective), len(objective))),
        objective,
        sp.vstack(parts).tocsc(),
        np.concatenate(right),
        cones,
        settings,
    )
    found = solver.solve()
    status = str(found.status)
    u = np.array(found.x)[: count * d].reshape(count, d) * size
    lam = -np.array(found.z)[:m]
    return Optimum(list(u), lam, "PrimalInfeasible" not in status, status)


def _cone_rows(lines: list[tuple[int, int, Array]], width: int) -> Any:
    """The rows -t_k and -R_k u_k of the second-order cones."""
    rows: list[Array] = []
    columns: list[Array] = []
    values: list[Array] = []
    start = 0
    for t, first, R in lines:
        i, j = np.nonzero(R)
        rows += [np.array([start]), start + 1 + i]
        columns += [np.array([t]), first + j]
        values += [np.array([-1.0]), -R[i, j]]
        start += len(R) + 1
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sp.csc_matrix(entries, shape=(start, width))
