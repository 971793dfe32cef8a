"""Samples of several laws, planted ReLU networks, and slow references that share no code with llr.relu."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llr.models import NormalizedTwoLayer, SkipTwoLayer, TwoLayer

Array = np.ndarray[Any, np.dtype[Any]]
CASES = int(os.environ.get("LLR_RANDOM_CASES", "30"))
LAWS = ("gaussian", "cubic", "haar", "whitened")
KINDS = ("skip", "one neuron", "two neurons", "opposite", "normalized", "two normalized")
PROGRAM = {"skip": "skip", "normalized": "normalized", "two normalized": "normalized"}


def samples(law: str, n: int, d: int, generator: np.random.Generator) -> Array:
    x = generator.standard_normal((n, d))
    if law == "gaussian":
        return x / np.sqrt(n)
    if law == "haar":
        return np.linalg.qr(x)[0]
    if law == "cubic":
        return x**3
    U, _, Vt = np.linalg.svd(x**3, full_matrices=False)
    return U @ Vt


def double(a: Any) -> Tensor:
    return torch.tensor(np.asarray(a, dtype=float))


def relu_net(w: Any, a: Any) -> TwoLayer:
    return TwoLayer.of(double(w), None, double(a)[:, None], activation="relu")


def planted(kind: str, x: Array, generator: np.random.Generator) -> nn.Module:
    w, a = generator.standard_normal((2, x.shape[1])), generator.standard_normal(2)
    if kind == "skip":
        return SkipTwoLayer.of(double(w[0]))
    if kind == "one neuron":
        return relu_net(w[:1], a[:1])
    if kind == "two neurons":
        return relu_net(w, a)
    if kind == "opposite":
        return relu_net([w[0], -w[0]], [1.0, 1.0])
    return NormalizedTwoLayer.on(double(x), double(w[: 1 if kind == "normalized" else 2]),
                                 double(a[: 1 if kind == "normalized" else 2]))  # fmt: skip


def random_case(
    i: int, generator: np.random.Generator, laws: tuple[str, ...] = LAWS
) -> tuple[str, Array, nn.Module]:
    """A kind, samples and a planted network that is seen by some sample in every neuron."""
    while True:
        d = int(generator.integers(2, 5))
        n = int(np.ceil(d * generator.uniform(1.5, 5)))
        x = samples(laws[int(generator.integers(len(laws)))], n, d, generator)
        kind = KINDS[i % len(KINDS)]
        try:
            target = planted(kind, x, generator)
        except ValueError:  # a normalized neuron that no sample sees
            continue
        w = weights(target)
        if len(w) == 0 or (x @ w.T > 0).any(axis=0).all():
            return kind, x, target


def weights(target: nn.Module) -> Array:
    neurons = target if isinstance(target, TwoLayer) else target.neurons
    return np.zeros((0, 1)) if neurons is None else neurons[0].weight.detach().numpy()


def outputs(target: nn.Module, x: Array) -> Tensor:
    with torch.no_grad():
        return target(double(x))[:, 0]


def by_random_signs(x: Array, draws: int, seed: int = 0) -> set[tuple[bool, ...]]:
    """The patterns of random gates."""
    gates = np.random.default_rng(seed).standard_normal((draws, x.shape[1]))
    return set(map(tuple, (gates @ x.T > 0).tolist()))


def groups(kind: str, x: Array, masks: Array) -> list[Array]:
    """The matrices A_j themselves, by numpy; for normalized networks U_j."""
    blocks = [mask[:, None] * x for mask in masks]
    if PROGRAM.get(kind) != "normalized":
        return blocks
    return [orthonormal(block) for block in blocks]


def orthonormal(block: Array) -> Array:
    U, s, _ = np.linalg.svd(block, full_matrices=False)
    return U[:, s > 1e-12 * max(s[0], 1e-300)]


def planted_groups(
    kind: str, x: Array, target: nn.Module
) -> tuple[list[Array], list[Array], Array]:
    """A_s, b_s, and the patterns of the planted neurons."""
    if kind == "skip":
        w0 = target.skip.weight.detach().numpy()[0]
        return [x], [w0 / np.linalg.norm(w0)], np.zeros((0, len(x)), bool)
    neurons = target if isinstance(target, TwoLayer) else target.neurons
    w, a = weights(target), neurons[2].weight.detach().numpy()[0]
    A, b = [], []
    for row, sign in zip(w, np.sign(a), strict=True):
        block = (x @ row > 0)[:, None] * x
        if PROGRAM.get(kind) == "normalized":
            U, f = orthonormal(block), np.maximum(x @ row, 0)
            A.append(U)
            b.append(sign * U.T @ f / np.linalg.norm(f))
        else:
            A.append(block)
            b.append(sign * row / np.linalg.norm(row))
    return A, b, x @ w.T > 0 if len(w) == 0 else (x @ w.T > 0).T


def least_lam(A: list[Array], b: list[Array]) -> Array | None:
    """A_S (A_S' A_S)^-1 b_S, as the page prints it; None without full column rank."""
    S, right = np.hstack(A), np.concatenate(b)
    if S.shape[1] > S.shape[0] or np.linalg.matrix_rank(S) < S.shape[1]:
        return None
    return S @ np.linalg.solve(S.T @ S, right)


def clarabel_margin(A: list[Array], b: list[Array], others: list[Array]) -> float:
    """The least t with A_S' lam = b_S and norm(A_j' lam) <= t, by clarabel as it stands."""
    import clarabel  # noqa: PLC0415 - an extra
    import scipy.sparse as sp  # noqa: PLC0415

    S, right = np.hstack(A), np.concatenate(b)
    n = len(S)
    rows = [np.hstack((S.T, np.zeros((S.shape[1], 1))))]
    rhs, cones = [right], [clarabel.ZeroConeT(S.shape[1])]
    for block in others:
        top = np.zeros((1, n + 1))
        top[0, -1] = -1
        rows += [top, np.hstack((-block.T, np.zeros((block.shape[1], 1))))]
        rhs.append(np.zeros(block.shape[1] + 1))
        cones.append(clarabel.SecondOrderConeT(block.shape[1] + 1))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    objective = np.append(np.zeros(n), 1.0)
    found = clarabel.DefaultSolver(
        sp.csc_matrix((n + 1, n + 1)), objective, sp.csc_matrix(np.vstack(rows)),
        np.concatenate(rhs), cones, settings,
    ).solve()  # fmt: skip
    value = float(found.obj_val)
    return float("inf") if "Infeasible" in str(found.status) or value > 1e12 else value


def clarabel_least_norm(A: list[Array], y: Array, cells: list[Array] | None = None) -> float:
    """The least sum of norm(u_j) with sum A_j u_j = y, and rows of C_j u_j >= 0 if there are any."""
    import clarabel  # noqa: PLC0415 - an extra
    import scipy.sparse as sp  # noqa: PLC0415

    widths = [block.shape[1] for block in A]
    total, p = sum(widths), len(A)
    parts = [sp.hstack([sp.csc_matrix(np.hstack(A)), sp.csc_matrix((len(y), p))])]
    rhs, cones = [y], [clarabel.ZeroConeT(len(y))]
    if cells is not None:
        halves = sp.block_diag(cells)
        parts.append(sp.hstack([-halves, sp.csc_matrix((halves.shape[0], p))]))
        rhs.append(np.zeros(halves.shape[0]))
        cones.append(clarabel.NonnegativeConeT(halves.shape[0]))
    start = 0
    for j, width in enumerate(widths):
        block = sp.lil_matrix((width + 1, total + p))
        block[0, total + j] = -1
        for i in range(width):
            block[i + 1, start + i] = -1
        start += width
        parts.append(block)
        rhs.append(np.zeros(width + 1))
        cones.append(clarabel.SecondOrderConeT(width + 1))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    objective = np.append(np.zeros(total), np.ones(p))
    found = clarabel.DefaultSolver(
        sp.csc_matrix((total + p, total + p)), objective, sp.vstack(parts).tocsc(),
        np.concatenate(rhs), cones, settings,
    ).solve()  # fmt: skip
    return float("inf") if "Infeasible" in str(found.status) else float(found.obj_val)
