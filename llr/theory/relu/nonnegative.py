"""Least squares with coefficients that are not negative."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import lsq_linear, nnls

Array = np.ndarray[Any, np.dtype[Any]]


def nonnegative_least_squares(A: Array, b: Array) -> tuple[Array, float]:
    """The x >= 0 with the least norm(A x - b), and that norm.

    Example:
        >>> import numpy as np
        >>> x, residual = nonnegative_least_squares(np.eye(2), np.array([1.0, -2.0]))
        >>> x.tolist(), residual
        ([1.0, 0.0], 2.0)
    """
    try:
        x, residual = nnls(A, b, maxiter=100 * A.shape[1])
    except (
        RuntimeError,
        np.linalg.LinAlgError,
    ):  # nnls cycles in scipy before 1.15, or meets singular sets
        found = lsq_linear(A, b, (0, np.inf), "bvls", tol=1e-15, max_iter=100 * A.shape[1])
        x = found.x.clip(0)
        residual = np.linalg.norm(A @ x - b)
    return x, float(residual)
