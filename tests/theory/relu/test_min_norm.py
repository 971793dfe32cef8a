"""Minimum-norm networks against programs written out for clarabel; networks from solutions and back."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from helpers.relu_cases import (
    CASES,
    LAWS,
    PROGRAM,
    Array,
    clarabel_least_norm,
    double,
    groups,
    orthonormal,
    outputs,
    planted,
    random_case,
    relu_net,
    samples,
    weights,
)

import llr
from llr.models import NormalizedTwoLayer, SkipTwoLayer
from llr.theory.relu import Patterns, clarabel_program
from llr.theory.relu.gated import solve
from llr.theory.relu.groups import Gates

min_norm, patterns = llr.relu.min_norm, llr.relu.patterns
module = sys.modules[min_norm.__module__]
PROGRAMS = ("plain", "skip", "normalized")


def problem(i: int, seed: int = 0) -> tuple[str, Array, Array]:
    """Values of a planted network, or random ones."""
    generator = np.random.default_rng([seed, i])
    # Random values at samples of very different sizes have norms in the hundreds, and as many digits less.
    _, x, target = random_case(i, generator, LAWS if i % 2 else ("gaussian", "haar"))
    y = outputs(target, x).numpy() if i % 2 else generator.standard_normal(len(x))
    return PROGRAMS[i % 3], x, y


def written_out(kind: str, x: Array, y: Array, cones: bool) -> float:
    """The program with every group as a matrix."""
    masks = patterns(double(x)).mask.numpy()
    masks = masks[masks.any(axis=1)]
    A = groups("normalized" if kind == "normalized" else "skip", x, masks)
    signs = [(2.0 * m - 1)[:, None] * x for m in masks]
    if kind == "normalized":
        back = []
        for m, C in zip(masks, signs, strict=True):
            _, s, vt = np.linalg.svd(m[:, None] * x, full_matrices=False)
            rank = int((s > 1e-12 * s[0]).sum())
            back.append(C @ vt[:rank].T / s[:rank])
        signs = back
    if cones:
        A, signs = [*A, *(-block for block in A)], signs * 2
    if kind == "skip":
        A, signs = [x, *A], [np.zeros((1, x.shape[1])), *signs]
    return clarabel_least_norm(A, y, signs if cones else None)


@pytest.mark.parametrize("i", range(max(6, CASES // 6)))
def test_gated(i: int) -> None:
    pytest.importorskip("clarabel")
    kind, x, y = problem(i)
    found = min_norm(double(x), double(y), kind=kind, cones=False)
    if found.status == "infeasible":
        assert written_out(kind, x, y, False) == float("inf")
        assert found.residual > 1e-9
        assert found.solution is None
        return
    assert found.status == "optimal"
    assert found.norm == pytest.approx(written_out(kind, x, y, False), rel=1e-7)
    assert found.solution.values().numpy() == pytest.approx(y, abs=1e-8 * np.linalg.norm(y))
    assert found.solution.norm() == pytest.approx(found.norm)
    lam = found.dual.numpy()
    masks = patterns(double(x)).mask.numpy()
    blocks = groups("normalized" if kind == "normalized" else "skip", x, masks[masks.any(axis=1)])
    assert max(np.linalg.norm(A.T @ lam) for A in blocks) <= 1 + 1e-9
    assert found.norm - lam @ y == pytest.approx(found.gap * found.norm, abs=1e-10)
    if found.model is not None:
        assert outputs(found.model, x).numpy() == pytest.approx(y, abs=1e-5)


@pytest.mark.parametrize("i", range(max(6, CASES // 6)))
def test_exact(i: int) -> None:
    pytest.importorskip("clarabel")
    kind, x, y = problem(i, seed=1)
    if kind == "normalized" and any(
        orthonormal(m[:, None] * x).shape[1] < x.shape[1]
        for m in patterns(double(x)).mask.numpy()
        if m.any()
    ):
        y = np.abs(y)  # cones of rank-deficient cells are projected, which is not written out here
        x = x[:, :1]
    found = min_norm(double(x), double(y), kind=kind)
    expected = written_out(kind, x, y, True)
    if expected == float("inf"):
        assert found.status == "infeasible"
        assert found.model is None
        return
    assert found.status == "optimal", found
    assert found.norm == pytest.approx(expected, rel=1e-6)
    assert outputs(found.model, x).numpy() == pytest.approx(y, abs=1e-6 * np.linalg.norm(y))
    # No network of random neurons with the same values is cheaper than the dual bound.
    features = np.maximum(np.random.default_rng(i).standard_normal((5000, x.shape[1])) @ x.T, 0)
    gates = np.random.default_rng(i).standard_normal((5000, x.shape[1]))
    size = np.linalg.norm(features if kind == "normalized" else gates, axis=1)
    seen = size > 0
    assert np.abs(features[seen] @ found.dual.numpy() / size[seen]).max() <= 1 + 1e-7


def test_cost_of_the_network_is_the_norm() -> None:
    pytest.importorskip("clarabel")
    for i in range(6):
        kind, x, y = problem(2 * i + 1, seed=2)
        found = min_norm(double(x), double(y), kind=kind)
        if found.model is None:
            continue
        model = found.model
        if kind == "normalized":
            cost = model.neurons[2].weight.abs().sum()
            f = (double(x) @ model.neurons[0].weight.T).relu()
            assert f.norm(dim=0).detach().numpy() == pytest.approx(model.scale.numpy())
        else:
            neurons = model.neurons if kind == "skip" else model
            cost = torch.zeros(())
            if neurons is not None:
                cost = (neurons[0].weight.norm(dim=1) * neurons[2].weight[0].abs()).sum()
                balanced = neurons[0].weight.norm(dim=1) - neurons[2].weight[0].abs()
                assert balanced.abs().max() < 1e-9
            if kind == "skip":
                cost = cost + model.skip.weight.norm()
        assert float(cost.detach()) == pytest.approx(found.norm, rel=1e-6)


def test_cutting_planes_are_the_whole_program(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("clarabel")
    cones = sys.modules["llr.theory.relu.cones"]
    for i in (1, 3, 5):
        kind, x, y = problem(i, seed=3)
        whole = min_norm(double(x), double(y), kind=kind)
        monkeypatch.setattr(cones, "_ALL_AT_ONCE", 0)
        cut = min_norm(double(x), double(y), kind=kind)
        monkeypatch.setattr(module, "_MOST_CELLS", 0)
        searched = min_norm(double(x), double(y), kind=kind)
        monkeypatch.undo()
        assert cut.status == whole.status == "optimal"
        assert cut.norm == pytest.approx(whole.norm, rel=1e-6)
        assert searched.status == "no violated gate found"
        assert searched.norm >= whole.norm * (1 - 1e-6)


def test_gated_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_CELLS", 0)
    kind, x, y = problem(1, seed=4)
    found = min_norm(double(x), double(y), kind=kind, cones=False)
    monkeypatch.undo()
    whole = min_norm(double(x), double(y), kind=kind, cones=False)
    assert found.status == "no violated gate found"
    assert found.norm >= whole.norm * (1 - 1e-8)


def test_given_patterns() -> None:
    kind, x, y = problem(4, seed=5)
    own = patterns(double(x))
    sampled = Patterns(own.mask[::2], False, own.witness[::2])
    found = min_norm(double(x), double(y), kind=kind, cones=False, patterns=sampled)
    whole = min_norm(double(x), double(y), kind=kind, cones=False)
    assert found.status == "optimal for these patterns"
    assert found.norm >= whole.norm * (1 - 1e-8)
    none = Patterns(own.mask[:1], False, own.witness[:1])
    found = min_norm(double(x), double(y), kind="plain", cones=False, patterns=none)
    assert found.status == "infeasible"
    assert found.residual > 0.1
    assert found.model is None


def test_the_penalized_program() -> None:
    """Optimal: with lam = (y - sum A_j u_j) / penalty, A_j' lam is u_j / norm(u_j), or shorter than 1."""
    generator = np.random.default_rng(6)
    x = double(samples("gaussian", 30, 6, generator))
    mask = patterns(x, method="sample", generator=torch.Generator().manual_seed(0)).mask
    y = double(generator.standard_normal(30))
    groups_ = Gates(x, mask)
    penalty = 1e-2 * float(groups_.pull(y).norm(dim=1).max())
    found = solve(groups_, y, tolerance=1e-11, penalty=penalty)
    off = y - (mask * (found.u @ x.T)).sum(0)
    z = groups_.pull(off / penalty)
    norms = found.u.norm(dim=1)
    active = norms > 1e-6
    assert active.any()
    assert not active.all()
    assert z[active].numpy() == pytest.approx((found.u / norms[:, None])[active].numpy(), abs=1e-4)
    assert z.norm(dim=1).max() < 1 + 1e-5
    assert abs(found.gap) < 1e-10


def test_many_cells() -> None:
    """19,840 cells of (40, 4)."""
    pytest.importorskip("clarabel")
    generator = np.random.default_rng(7)
    x = samples("gaussian", 40, 4, generator)
    target = planted("skip", x, generator)
    found = min_norm(double(x), outputs(target, x), kind="skip", cones=False)
    assert found.status == "optimal"
    assert len(found.solution.vectors) == 0
    assert found.solution.skip.numpy() == pytest.approx(
        target.skip.weight.detach().numpy()[0], abs=1e-6
    )


def test_zero_values() -> None:
    x = double(np.random.default_rng(0).standard_normal((6, 2)))
    for kind in PROGRAMS:
        found = min_norm(x, torch.zeros(6), kind=kind, cones=False)
        assert (found.norm, found.residual, found.status) == (0.0, 0.0, "optimal")
        assert found.model is None if kind == "normalized" else not found.model(x).any()


def test_without_clarabel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clarabel_program, "clarabel", None)
    x = double(np.random.default_rng(0).standard_normal((6, 2)))
    with pytest.raises(ImportError, match=r"pip install 'llr\[relu\]'.*cones=False"):
        min_norm(x, x[:, 0])
    with pytest.raises(ImportError, match=r"pip install 'llr\[relu\]'"):
        llr.relu.recovers(x, relu_net([[1.0, 1.0]], [1.0]))
    assert min_norm(x, x[:, 0], cones=False).status == "optimal"


class TestNetworks:
    """Solutions as networks, networks as solutions."""

    def test_back_and_forth(self) -> None:
        generator = np.random.default_rng(8)
        for i in range(24):
            kind, x, target = random_case(i, generator)
            solution = llr.relu.solution_from(double(x), target)
            again = llr.relu.network_from(solution)
            assert outputs(again, x).numpy() == pytest.approx(outputs(target, x).numpy(), abs=1e-10)
            assert type(again) is type(target)
            assert solution.leaves() == 0.0
            assert solution.kind == PROGRAM.get(kind, "plain")
            fresh = generator.standard_normal((5, x.shape[1]))
            assert outputs(again, fresh).numpy() == pytest.approx(
                outputs(target, fresh).numpy(), abs=1e-10
            )
            assert weights(again).shape == weights(target).shape

    def test_targets_of_recovery(self) -> None:
        x = double(np.random.default_rng(2).standard_normal((5, 2)))
        w = torch.ones(1, 2)
        for model in (
            SkipTwoLayer.of(w[0], w, w[0, :1]),
            NormalizedTwoLayer.on(x.float().abs(), w, w[0, :1]),
        ):
            target = llr.recovery.Target.given(model)
            points, values = target.sample(7, seed=1)
            assert outputs(target.model, points.numpy()).numpy() == pytest.approx(
                values[:, 0].numpy()
            )
            assert target.error(target.model) == 0.0

    def test_a_relaxed_solution_is_no_network(self) -> None:
        x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
        cells, vectors = torch.tensor([[True, True, True]]), torch.tensor([[1.0, -3.0]]).double()
        solution = llr.relu.Solution("plain", x, cells, vectors, None)
        assert solution.leaves() == pytest.approx(1 / np.sqrt(10))
        with pytest.raises(ValueError, match=r"outside of its cell by 0\.316"):
            llr.relu.network_from(solution)
        with pytest.raises(TypeError, match="solution is Tensor; expected a Solution"):
            llr.relu.network_from(x)

    def test_models(self) -> None:
        x = torch.tensor([[3.0, 0.0], [4.0, 0.0], [-1.0, 2.0]])
        model = SkipTwoLayer.of(
            torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0])
        )
        assert model(x).flatten().tolist() == [0.0, 0.0, 3.0]
        normal = NormalizedTwoLayer.on(x, torch.tensor([[1.0, 0.0]]), torch.tensor([5.0]))
        assert normal(x).flatten().tolist() == [3.0, 4.0, 0.0]
        assert list(dict(normal.named_parameters())) == ["neurons.0.weight", "neurons.2.weight"]
        assert llr.rank(normal.double(), x.double()).rank == 1
        assert SkipTwoLayer(4).neurons is None
        assert SkipTwoLayer(4, 3)(torch.ones(2, 4)).shape == (2, 1)

    @pytest.mark.parametrize(
        ("call", "why"),
        [
            (lambda: SkipTwoLayer(0), "d is 0"),
            (lambda: SkipTwoLayer(2, -1), "m is -1"),
            (
                lambda: SkipTwoLayer.of(torch.ones(2, 1)),
                r"skip has shape \(2, 1\); expected \(d,\)",
            ),
            (
                lambda: SkipTwoLayer.of(torch.ones(2), torch.ones(1, 2)),
                "a is missing; expected both w and a",
            ),
            (
                lambda: SkipTwoLayer.of(torch.ones(2), torch.ones(1, 3), torch.ones(1)),
                "w has shape",
            ),
            (
                lambda: NormalizedTwoLayer.on(torch.ones(3, 2), torch.ones(1, 2), torch.ones(2)),
                "a has shape",
            ),
            (
                lambda: NormalizedTwoLayer.on(torch.ones(3, 2), -torch.ones(1, 2), torch.ones(1)),
                "0 on all 3 samples",
            ),
        ],
    )
    def test_models_refuse(self, call: object, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            call()
