"""Isometry conditions and margins against the printed formulas, wrong variants of them, and clarabel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.relu_cases import (
    CASES,
    KINDS,
    LAWS,
    PROGRAM,
    Array,
    clarabel_margin,
    double,
    groups,
    least_lam,
    orthonormal,
    outputs,
    planted,
    planted_groups,
    random_case,
    relu_net,
    samples,
    weights,
)
from torch import nn

import llr
from llr.models import SkipTwoLayer
from llr.theory.relu.arguments import network_of
from llr.theory.relu.planted import plant

isometry, patterns = llr.relu.isometry, llr.relu.patterns


def others(kind: str, x: Array, target: nn.Module) -> Array:
    masks = patterns(double(x)).mask.numpy()
    own = planted_groups(kind, x, target)[2]
    return np.array([m for m in masks if not any(np.array_equal(m, o) for o in own)])


def nic(A: list[Array], b: list[Array], rest: list[Array]) -> float:
    lam = least_lam(A, b)
    return math.inf if lam is None else max(float(np.linalg.norm(block.T @ lam)) for block in rest)


def cases(
    seed: int, count: int, laws: tuple[str, ...] = LAWS
) -> list[tuple[str, Array, nn.Module]]:
    generator = np.random.default_rng(seed)
    return [random_case(i, generator, laws) for i in range(count)]


def test_value_is_that_of_the_formula() -> None:
    finite = 0
    for kind, x, target in cases(1, CASES):
        A, b, own = planted_groups(kind, x, target)
        found = isometry(double(x), target)
        if len(own) == 2 and np.array_equal(*own):
            assert found.value == math.inf
            continue
        expected = nic(A, b, groups(kind, x, others(kind, x, target)))
        if expected == math.inf:
            continue  # the least-norm lam may be there without full column rank
        finite += 1
        assert found.value == pytest.approx(expected, rel=1e-7)
        assert found.complete
    assert finite > CASES // 3


def test_nic_l_and_nic_1_as_printed() -> None:
    """The closed forms of the first two rows, and their wrong variants."""
    generator, wrong = np.random.default_rng(2), []
    for _ in range(10):
        x = samples("gaussian", 11, 3, generator)
        w = generator.standard_normal(3)
        e = w / np.linalg.norm(w)
        masks = patterns(double(x)).mask.numpy()
        inverse = np.linalg.inv(x.T @ x)
        norms = [np.linalg.norm(x.T @ (m[:, None] * x) @ inverse @ e) for m in masks]
        found = isometry(double(x), SkipTwoLayer.of(double(w))).value
        assert found == pytest.approx(max(norms))
        wrong.append(found == pytest.approx(max(norms) * np.linalg.norm(w)))  # without norm(w_0)
        D = (x @ w > 0)[:, None] * x
        if np.linalg.matrix_rank(D) < 3:
            continue
        own = x @ w > 0
        rest = [m for m in masks if not np.array_equal(m, own)]
        inverse = np.linalg.inv(D.T @ D)
        right = max(np.linalg.norm(x.T @ ((m & own)[:, None] * x) @ inverse @ e) for m in rest)
        found = isometry(double(x), relu_net([w], [1.0])).value
        assert found == pytest.approx(right)
        mutant = max(
            np.linalg.norm(x.T @ (m[:, None] * x) @ inverse @ e) for m in rest
        )  # D_j for D_j D
        wrong.append(found == pytest.approx(mutant))
    assert sum(wrong) <= 1


def test_nic_of_normalized_neurons() -> None:
    """norm(U_j' f) for one neuron; with D_j X in the place of U_j it is another number."""
    generator, wrong = np.random.default_rng(3), []
    for _ in range(10):
        x = samples("cubic", 10, 3, generator)
        target = planted("normalized", x, generator)
        f = np.maximum(x @ weights(target)[0], 0)
        f /= np.linalg.norm(f)
        rest = others("normalized", x, target)
        right = max(np.linalg.norm(orthonormal(m[:, None] * x).T @ f) for m in rest if m.any())
        found = isometry(double(x), target).value
        assert found == pytest.approx(right)
        wrong.append(
            found == pytest.approx(max(np.linalg.norm((m[:, None] * x).T @ f) for m in rest))
        )
    assert not any(wrong)


def test_essential() -> None:
    """Cells that contain the one neuron's own have norms of exactly 1, and are left out."""
    equal = 0
    for _, x, target in [c for c in cases(4, 6 * 20) if c[0] == "one neuron"]:
        found = isometry(double(x), target)
        if found.value == math.inf:
            continue
        A, b, own = planted_groups("one neuron", x, target)
        lam, masks = least_lam(A, b), others("one neuron", x, target)
        if lam is None:
            continue
        contain = (masks | ~own[0]).all(axis=1)
        norms = np.linalg.norm((masks * lam) @ x, axis=1)
        assert norms[contain] == pytest.approx(1.0)
        assert found.essential == pytest.approx(norms[~contain].max(initial=0.0))
        equal += found.value == pytest.approx(1.0)
    assert equal


def test_neighbours() -> None:
    """Lemma 4: across the hyperplane of sample i the norm is below 1 iff 0 < lam_i < the bound."""
    decided = set()
    for _, x, target in [c for c in cases(5, 6 * 15) if c[0] == "one neuron"]:
        (A,), (b,), (own,) = planted_groups("one neuron", x, target)
        if np.linalg.matrix_rank(A) < x.shape[1]:
            continue
        sign = np.sign(target[2].weight.item())
        lam = least_lam([A], [b])
        free = np.eye(len(x)) - A @ np.linalg.pinv(A)
        lam = lam + free @ np.random.default_rng(0).standard_normal(len(x))
        assert A.T @ lam == pytest.approx(b)
        bounds = llr.relu.neighbour_bounds(double(x), target).numpy()
        for i in range(len(x)):
            mask = own.copy()
            mask[i] = ~mask[i]
            norm = np.linalg.norm((mask * lam) @ x)
            # Samples that are added lie on the other side, where w.x < 0.
            inside = 0 < sign * lam[i] < bounds[i]
            assert (norm < 1) == inside or norm == pytest.approx(1, abs=1e-9)
            decided.add((bool(own[i]), bool(inside)))
    assert len(decided) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_margin_is_that_of_clarabel(kind: str) -> None:
    pytest.importorskip("clarabel")
    generator, finite = np.random.default_rng([6, KINDS.index(kind)]), 0
    for _ in range(max(6, CASES // 6)):
        _, x, target = random_case(KINDS.index(kind), generator)
        A, b, own = planted_groups(kind, x, target)
        found = isometry(double(x), target)
        if len(own) == 2 and np.array_equal(*own):
            assert found.margin == math.inf
            continue
        rest = groups(kind, x, others(kind, x, target))
        expected = clarabel_margin(A, b, [block for block in rest if block.size and block.any()])
        assert found.margin == pytest.approx(expected, rel=1e-6)
        if expected < math.inf:
            finite += 1
            assert found.margin_lower <= found.margin <= found.margin_lower * (1 + 1e-7)
            lam = found.dual.numpy()
            assert np.hstack(A).T @ lam == pytest.approx(np.concatenate(b), abs=1e-8)
            assert max(np.linalg.norm(block.T @ lam) for block in rest) == pytest.approx(
                found.margin
            )
            assert found.value >= found.margin - 1e-9
    assert finite


def test_incomplete_patterns_say_so() -> None:
    _, x, target = cases(7, 1)[0]
    sampled = patterns(
        double(x), method="sample", generator=torch.Generator().manual_seed(1), gates=20
    )
    found, full = isometry(double(x), target, patterns=sampled), isometry(double(x), target)
    assert not found.complete
    assert found.value <= full.value + 1e-12
    assert found.margin <= full.margin + 1e-9
    assert "at least" in str(found)


def test_the_planted_values() -> None:
    for kind, x, target in cases(8, 24):
        own = plant(network_of(target, x), x)
        assert own.y == pytest.approx(outputs(target, x).numpy(), abs=1e-10)
        assert PROGRAM.get(kind, "plain") == own.network.kind
        assert own.features @ own.coefficients == pytest.approx(own.y, abs=1e-10)


def test_parallel_neurons_of_one_sign_are_one() -> None:
    _, x, _ = cases(9, 1)[0]
    w = np.arange(1.0, 1 + x.shape[1])
    one = isometry(double(x), relu_net([w], [5.0]))
    three = isometry(double(x), relu_net([w, 2 * w, w], [1.0, 1.5, 1.0]))
    assert three.value == pytest.approx(one.value)
    assert isometry(double(x), relu_net([w, w], [1.0, -0.5])).margin == math.inf
