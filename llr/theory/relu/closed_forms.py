"""Closed forms: probabilities and conditions of recovery that need no enumeration of cells."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from llr.inputs.accept import a_module, needed, takes
from llr.inputs.roles import a_flag, check_int, whole
from llr.linalg.integers import rank_of_floats
from llr.theory.relu.arguments import network_of, patterns_of, samples_of

Array = np.ndarray[Any, np.dtype[Any]]
_WHITE = 1e-9
_OPEN = 1e-9  # of x_i.u / norm(x_i) for u in the unit cube, below which rounding may have opened the gate


def has_all_ones_cell(x: Array) -> bool:
    """Whether x_i.u > 0 for all rows at some u: one linear program."""
    n, d = x.shape
    size = np.linalg.norm(x, axis=1, keepdims=True)
    rows = np.hstack((-x / size, np.ones((n, 1))))
    bounds = [(-1, 1)] * d + [(None, 1)]
    objective = np.zeros(d + 1)
    objective[-1] = -1
    found = linprog(objective, A_ub=rows, b_ub=np.zeros(n), bounds=bounds, method="highs")
    return bool(-found.fun > _OPEN)


def exact_rank(x: Array) -> int:
    """The rank of rows as they are; up to rounding where sizes differ too much for that."""
    if not len(x):
        return 0
    rank = rank_of_floats(x.tolist())
    return int(np.linalg.matrix_rank(x)) if rank is None else rank


@takes(n=whole, d=whole)
def all_ones_probability(n: int, d: int) -> float:
    """The probability that some gate opens for all of n samples in d dimensions: 2^(1-n) sum_{k<d} C(n-1, k).

    For rows with a distribution symmetric in sign, in general position (Wendel 1962).

    Args:
        n: samples.
        d: dimensions.

    Raises:
        ValueError: n or d is not positive.

    Example:
        >>> import llr
        >>> llr.relu.all_ones_probability(20, 10)
        0.5
    """
    _check_sizes(n, d)
    return _at_least(n - d, n - 1)  # sum_{k<d}, with k and n - 1 - k exchanged


@takes(n=whole, d=whole)
def gated_skip_probability(n: int, d: int) -> float:
    """P(Bin(n - 1, 1/2) >= d): how often a gated skip network can recover a linear target at most.

    One half at n = 2 d. It is the complement of :func:`all_ones_probability` (Theorem 5), and for whitened
    samples it is the probability of recovery itself (Theorem 6).

    Args:
        n: samples.
        d: dimensions.

    Raises:
        ValueError: n or d is not positive.

    Example:
        >>> import llr
        >>> llr.relu.gated_skip_probability(20, 10)
        0.5
    """
    _check_sizes(n, d)
    return _at_least(d, n - 1)


@takes(n=whole, d=whole)
def normalized_neuron_probability(n: int, d: int) -> float:
    """P(Bin(n, 1/2) >= d): how often one normalized neuron is recovered from n Gaussian samples (Theorem 8).

    Args:
        n: samples.
        d: dimensions.

    Raises:
        ValueError: n or d is not positive.

    Example:
        >>> import llr
        >>> llr.relu.normalized_neuron_probability(20, 10)
        0.5880985260009766
    """
    _check_sizes(n, d)
    return _at_least(d, n)


@takes(x=needed)
def opens_for_all(x: Tensor) -> bool:
    """Whether some gate opens for all samples, x_i.u > 0; zero samples are left out.

    If so, gated skip networks never recover a linear target: its cell copies the skip connection (Theorem 5).

    Args:
        x: samples (n, d).

    Raises:
        ValueError: another shape, or NaN or infinity.

    Example:
        >>> import torch
        >>> import llr
        >>> llr.relu.opens_for_all(torch.tensor([[1.0, 0.0], [1.0, 5.0]]))
        True
        >>> llr.relu.opens_for_all(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        False
    """
    samples = samples_of(x)
    return has_all_ones_cell(samples[samples.any(axis=1)])


@takes(x=needed, target=a_module, cones=a_flag)
def whitened_skip_recovers(x: Tensor, target: nn.Module, *, cones: bool = True) -> bool:
    """Whether a linear target is recovered from whitened samples, X'X = I (Theorem 6).

    Exact program: if and only if its values have both signs. Gated: if and only if no gate opens for all
    samples.

    Args:
        x: samples (n, d) with X'X = I up to 1e-9.
        target: a ``SkipTwoLayer`` without neurons, with generic weights.
        cones: True for the exact program, False for the gated one.

    Raises:
        ValueError: samples that are not whitened, or another target.
    """
    samples = samples_of(x)
    network = network_of(target, samples)
    off = float(np.abs(samples.T @ samples - np.eye(samples.shape[1])).max())
    if off > _WHITE:
        raise ValueError(
            f"X'X is off the identity by {off:.3g}; expected whitened samples, at most {_WHITE:g}"
        )
    if network.skip is None or len(network.a):
        raise ValueError("target has neurons; expected a SkipTwoLayer without")
    if not cones:
        return not has_all_ones_cell(samples[samples.any(axis=1)])
    values = samples @ network.skip
    return bool((values > 0).any() and (values < 0).any())


@takes(x=needed, target=a_module)
def normalized_neuron_recovers(x: Tensor, target: nn.Module) -> bool:
    """Whether one normalized neuron is recovered, by the gated and by the exact program alike (Theorem 8).

    If and only if the samples at which it is active have rank d. The rank is exact.

    Args:
        x: samples (n, d).
        target: a ``NormalizedTwoLayer`` of one neuron.

    Raises:
        ValueError: another target, or a sample on the neuron's hyperplane.
    """
    samples = samples_of(x)
    network = network_of(target, samples)
    if network.kind != "normalized" or len(network.a) != 1:
        raise ValueError("target is another network; expected a NormalizedTwoLayer of one neuron")
    return exact_rank(samples[patterns_of(network.w, samples)[0]]) == samples.shape[1]


@takes(x=needed, target=a_module)
def neighbour_bounds(x: Tensor, target: nn.Module) -> Tensor:
    """Where a certificate of one plain neuron has to be for the cells beside its own (Lemma 4).

    The cell across the hyperplane of sample i, if there is one, has norm(A_j' lam) < 1 if and only if lam_i,
    times the sign of a, is strictly between 0 and this bound, 2 abs(x_i.w) / (norm(w) norm(x_i)^2).

    Args:
        x: samples (n, d).
        target: a ``TwoLayer`` of one ReLU neuron.

    Returns:
        The bounds, (n); infinite for zero samples, where lam does not matter.

    Raises:
        ValueError: another target.
    """
    samples = samples_of(x)
    network = network_of(target, samples)
    if network.kind != "plain" or len(network.a) != 1:
        raise ValueError("target is another network; expected a TwoLayer of one ReLU neuron")
    heights = np.abs(samples @ network.w[0]) / np.linalg.norm(network.w[0])
    squares = (samples * samples).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.where(squares > 0, 2 * heights / squares, np.inf)
    return torch.from_numpy(bounds)


def _check_sizes(n: int, d: int) -> None:
    check_int("n", n, 1)
    check_int("d", d, 1)


def _at_least(least: int, trials: int) -> float:
    """P(Bin(trials, 1/2) >= least), correctly rounded."""
    ways = sum(math.comb(trials, k) for k in range(max(least, 0), trials + 1))
    return float(Fraction(ways, 2**trials))
