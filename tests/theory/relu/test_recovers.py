"""Whether a network is recovered: conditions, margins, solutions of the programs and theorems agree."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from helpers.relu_cases import (
    CASES,
    LAWS,
    PROGRAM,
    Array,
    double,
    groups,
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
from llr.models import NormalizedTwoLayer, SkipTwoLayer
from llr.theory.relu.arguments import network_of
from llr.theory.relu.margins import exact_margin, searched_margin
from llr.theory.relu.planted import plant

recovers, min_norm, isometry = llr.relu.recovers, llr.relu.min_norm, llr.relu.isometry
module = sys.modules[recovers.__module__]


def distance(x: Array, found: llr.relu.Solution, target: nn.Module) -> float:
    """The relative distance of weights, cell by cell; of outputs where neurons are normalized."""
    parts: dict[object, Array] = {}
    size = 0.0
    for sign, solution in ((1, found), (-1, llr.relu.solution_from(double(x), target))):
        if solution.skip is not None:
            parts["skip"] = parts.get("skip", 0) + sign * solution.skip.numpy()
        for cell, v in zip(solution.cells.numpy(), solution.vectors.numpy(), strict=True):
            value = cell * (x @ v) if solution.kind == "normalized" else v
            parts[cell.tobytes()] = parts.get(cell.tobytes(), 0) + sign * value
            size += (value**2).sum() if sign < 0 else 0
        size += (solution.skip.numpy() ** 2).sum() if sign < 0 and solution.skip is not None else 0
    return float(np.sqrt(sum((p**2).sum() for p in parts.values()) / size))


def check(kind: str, x: Array, target: nn.Module, cones: bool) -> str:
    found = recovers(double(x), target, cones=cones)
    solved = min_norm(double(x), outputs(target, x), kind=PROGRAM.get(kind, "plain"), cones=cones)
    assert solved.status == "optimal", solved
    far = distance(x, solved.solution, target)
    if found.margin < 1 - 1e-6:
        assert found.status == "recovered"
        # The closer to 1, the less a gap of 1e-9 says about weights.
        if found.margin < 1 - 1e-4:
            assert far < 1e-3, found
    if found.margin > 1 + 1e-6:
        assert found.status == "not recovered"
        if math.isfinite(found.margin) and found.margin > 1 + 1e-3:
            assert far > 1e-4, found
            own = plant(network_of(target, x), x)
            assert solved.norm < own.coefficients.sum() * (1 + 1e-9)
    return found.status


def test_gated() -> None:
    generator, seen = np.random.default_rng(11), []
    for i in range(CASES):
        kind, x, target = random_case(i, generator)
        seen.append(check(kind, x, target, cones=False))
        condition = isometry(double(x), target)
        if condition.value < 1 - 1e-9 or (
            condition.value < 1 + 1e-9 and condition.essential < 1 - 1e-9
        ):
            assert seen[-1] == "recovered" or condition.margin > 1 - 1e-6
    assert {"recovered", "not recovered"} <= set(seen)


def test_exact_and_what_the_relaxation_says_of_it() -> None:
    pytest.importorskip("clarabel")
    generator, seen = np.random.default_rng(12), []
    for i in range(CASES // 2):
        kind, x, target = random_case(i, generator)
        status = check(kind, x, target, cones=True)
        gated, exact = recovers(double(x), target, cones=False), recovers(double(x), target)
        assert exact.margin <= gated.margin + 1e-6
        if gated.status == "recovered":
            assert status == "recovered"
        seen.append((gated.status, status))
    assert ("not recovered", "recovered") in seen  # the converse is false


def test_exact_margin_of_a_skip_connection_is_at_least_a_half() -> None:
    """Lemma 7; and 0.5 at (14, 3)."""
    pytest.importorskip("clarabel")
    generator = np.random.default_rng(13)
    for _ in range(4):
        x = samples("gaussian", 14, 3, generator)
        found = recovers(double(x), planted("skip", x, generator))
        assert found.margin == pytest.approx(0.5, abs=1e-6)
        assert found.accuracy < 1e-7


def test_exact_margin_bounds_random_neurons() -> None:
    """At the margin's lam no unit neuron outside the planted cells is above the margin; some come close."""
    pytest.importorskip("clarabel")
    generator = np.random.default_rng(14)
    for i in range(12):
        _, x, target = random_case(i, generator)
        own = plant(network_of(target, x), x)
        found = exact_margin(own, llr.relu.patterns(double(x)).mask.numpy())
        if found is None or own.same_cell:
            continue
        margin, complete = found
        assert complete
        assert own.A.T @ margin.lam == pytest.approx(own.b, abs=1e-7)
        u = generator.standard_normal((20_000, x.shape[1]))
        features = np.maximum(u @ x.T, 0)
        scale = features if own.network.kind == "normalized" else u
        size = np.linalg.norm(scale, axis=1)
        masks = u @ x.T > 0
        outside = np.ones(len(u), dtype=bool)
        for row in own.active:
            outside &= ~(masks == row).all(axis=1)
        values = np.abs(features @ margin.lam)[outside & (size > 0)] / size[outside & (size > 0)]
        assert values.max() <= margin.upper * (1 + 1e-7)
        if x.shape[1] == 2:
            assert values.max() > margin.lower * (1 - 1e-2)


def test_theorems_5_and_6() -> None:
    """Whitened: gated iff no gate opens for all; never otherwise, whatever the law."""
    generator, seen = np.random.default_rng(15), set()
    for i in range(CASES):
        law = LAWS[i % 4]
        d = int(generator.integers(2, 4))
        x = samples(law, int(generator.integers(d, 4 * d)), d, generator)
        target = planted("skip", x, generator)
        status = recovers(double(x), target, cones=False).status
        opens = llr.relu.opens_for_all(double(x))
        assert opens == bool(llr.relu.patterns(double(x)).mask.all(1).any())
        if opens:
            assert status == "not recovered"
        if law in ("haar", "whitened"):
            assert (status == "recovered") == (not opens)
            assert llr.relu.whitened_skip_recovers(double(x), target, cones=False) == (not opens)
        seen.add((law in ("haar", "whitened"), opens))
    assert len(seen) == 4


def test_theorem_6_exact() -> None:
    pytest.importorskip("clarabel")
    generator, seen = np.random.default_rng(16), set()
    for i in range(16):
        d = 2 + i % 2
        x = samples("haar", d + i % 3, d, generator)
        target = planted("skip", x, generator)
        both = llr.relu.whitened_skip_recovers(double(x), target)
        values = outputs(target, x)
        assert both == bool((values > 0).any() and (values < 0).any())
        assert (recovers(double(x), target).status == "recovered") == both
        seen.add(both)
    assert len(seen) == 2


@pytest.mark.parametrize("cones", [False, True])
def test_theorem_8(cones: bool) -> None:
    """One normalized neuron: the rank of the active rows decides, as all cells do."""
    if cones:
        pytest.importorskip("clarabel")
    generator, seen = np.random.default_rng(17), set()
    for i in range(20 if cones else CASES):
        d = int(generator.integers(2, 5))
        x = samples(LAWS[i % 4], int(generator.integers(d, 4 * d)), d, generator)
        if not (x @ np.ones(d) > 0).any():
            continue
        target = NormalizedTwoLayer.on(
            double(x), torch.ones(1, d).double(), torch.tensor([-2.0]).double()
        )
        full = llr.relu.normalized_neuron_recovers(double(x), target)
        assert full == (np.linalg.matrix_rank(x[x @ np.ones(d) > 0]) == d)
        found = recovers(double(x), target, cones=cones)
        assert (found.status == "recovered") == full
        assert found.margin <= 1 + 1e-9 if full else found.margin >= 1 - 1e-6
        seen.add(full)
    assert len(seen) == 2


class TestShortcuts:
    x = double(np.random.default_rng(3).standard_normal((12, 2)))

    def reason(self, target: nn.Module, x: torch.Tensor | None = None, cones: bool = False) -> str:
        found = recovers(self.x if x is None else x, target, cones=cones)
        assert found.status == "not recovered"
        assert found.complete
        return found.reason

    def test_two_neurons_in_one_cell(self) -> None:
        w = np.array([[1.0, 2.0], [1.0, 2.0 + 1e-9]])
        found = recovers(self.x, relu_net(w, [1.0, 1.0]), cones=False)
        assert found.margin == math.inf
        assert "in one cell" in found.reason
        assert "in one cell" in self.reason(relu_net(w, [1.0, -1.0]))

    def test_a_neuron_that_sees_nothing(self) -> None:
        x = self.x.abs()
        assert "neuron 0 is 0 on all 12 samples" in self.reason(relu_net([[-1.0, -1.0]], [1.0]), x)

    def test_a_neuron_like_the_skip_connection(self) -> None:
        model = SkipTwoLayer.of(
            torch.zeros(2).double(), torch.ones(1, 2).double(), torch.ones(1).double()
        )
        assert "active at all samples" in self.reason(model, self.x.abs())

    def test_one_sign(self) -> None:
        pytest.importorskip("clarabel")
        model = SkipTwoLayer.of(torch.ones(2).double())
        assert "values of one sign" in self.reason(model, self.x.abs(), cones=True)
        assert "Theorem 5" in self.reason(model, self.x.abs())

    def test_on_a_hyperplane(self) -> None:
        found = recovers(
            torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 3.0]]),
            relu_net([[1.0, -1.0]], [1.0]),
            cones=False,
        )
        assert found.status == "undecided"
        assert math.isnan(found.margin)
        assert "sample 0 lies on the hyperplane of neuron 0" in found.reason

    def test_not_quite_on_a_hyperplane(self) -> None:
        """A sample whose side is decided in exact arithmetic only."""
        x = torch.tensor([[0.1, 0.3], [1.0, -1.0], [-0.2, 1.0], [1.0, 0.0]]).double()
        found = recovers(x, relu_net([[3 + 2**-51, -1.0]], [1.0]), cones=False)
        assert found.status in ("recovered", "not recovered", "ambiguous")


def test_ambiguous() -> None:
    """A sample so close to the neuron's hyperplane that the margin is within 1e-6 of 1."""
    x = np.random.default_rng(4).standard_normal((14, 2))
    x[0] = [1.0, 1e-5]
    found = recovers(double(x), relu_net([[0.0, 1.0]], [1.0]), cones=False)
    assert abs(found.margin - 1) < 1e-6
    assert found.status == "ambiguous"
    assert found.tolerance == 1e-6


def test_a_search_is_labelled_as_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(19)
    x = samples("gaussian", 16, 4, generator)
    target = planted("skip", x, generator)
    full = recovers(double(x), target, cones=False)
    monkeypatch.setattr(module, "_MOST_CELLS", 10)
    found = recovers(double(x), target, cones=False)
    assert found.margin <= full.margin + 1e-9
    if found.status == "recovered":
        assert not found.complete
        assert "no violated gate found" in found.reason
        assert "evidence" in found.reason
    own = plant(network_of(target, x), x)
    assert searched_margin(own)[0].upper <= full.margin + 1e-9


def test_searched_exact_margins_are_mostly_those_of_all_cells() -> None:
    pytest.importorskip("clarabel")
    generator, same = np.random.default_rng(20), []
    for i in range(10):
        x = samples("gaussian", 12, 3, generator)
        target = planted(("skip", "one neuron", "opposite")[i % 3], x, generator)
        own = plant(network_of(target, x), x)
        found = exact_margin(own, None)
        if found is None:
            continue
        assert not found[1]
        full, _ = exact_margin(own, llr.relu.patterns(double(x)).mask.numpy())
        assert found[0].lower <= full.upper * (1 + 1e-7)  # a bound of fewer cells
        same.append(found[0].upper == pytest.approx(full.upper, rel=1e-6))
    assert sum(same) > len(same) // 2


def test_thresholds_of_theorem_5() -> None:
    """2000 draws at d = 10: within 4 binomial errors of the formula."""
    generator = np.random.default_rng(21)
    for n in (14, 20, 27):
        draws = 150
        opens = sum(
            llr.relu.opens_for_all(double(generator.standard_normal((n, 10)))) for _ in range(draws)
        )
        p = llr.relu.all_ones_probability(n, 10)
        assert abs(opens - draws * p) <= 4 * math.sqrt(draws * p * (1 - p)) + 1
        assert p + llr.relu.gated_skip_probability(n, 10) == pytest.approx(1)


def test_the_curve_of_theorem_8() -> None:
    generator = np.random.default_rng(22)
    for n in (15, 20, 26):
        draws, d = 200, 10
        x = generator.standard_normal((draws, n, d))
        ranks = [np.linalg.matrix_rank(part[part[:, 0] > 0]) for part in x]
        p = llr.relu.normalized_neuron_probability(n, d)
        assert abs(sum(r == d for r in ranks) - draws * p) <= 4 * math.sqrt(draws * p * (1 - p)) + 1


def test_the_formulas_by_counting() -> None:
    for n, d in ((1, 1), (4, 2), (7, 3), (9, 9), (3, 5)):
        heads = [bin(i).count("1") for i in range(2 ** (n - 1))]
        assert llr.relu.gated_skip_probability(n, d) == sum(h >= d for h in heads) / len(heads)
        heads = [bin(i).count("1") for i in range(2**n)]
        assert llr.relu.normalized_neuron_probability(n, d) == sum(h >= d for h in heads) / len(
            heads
        )


def test_groups_of_the_reference_are_ours() -> None:
    """The groups that are never formed, against the matrices."""
    generator = np.random.default_rng(23)
    for kind in ("skip", "normalized"):
        x = samples("cubic", 9, 3, generator)
        target = planted(kind, x, generator)
        own = plant(network_of(target, x), x)
        masks = llr.relu.patterns(double(x)).mask
        ours, theirs = own.groups(masks), groups(kind, x, masks.numpy())
        lam = generator.standard_normal(9)
        norms = ours.pull(double(lam)).norm(dim=1)
        assert norms.numpy() == pytest.approx([np.linalg.norm(A.T @ lam) for A in theirs])
        u = torch.randn(len(masks), 3).double()
        e = u / u.norm(dim=1, keepdim=True)
        which = torch.tensor([1, 5, 17, 40])
        unit = torch.eye(3).double()[:, None]
        columns = [[ours.push(which[k : k + 1], row).numpy() for row in unit] for k in range(4)]
        blocks = [np.stack(block, axis=1) for block in columns]
        for k, j in enumerate(which):
            assert blocks[k] @ blocks[k].T == pytest.approx(theirs[j] @ theirs[j].T, abs=1e-10)
        plain, along = torch.rand(4).double(), torch.rand(4).double()
        H = ours.curvature(which, plain, along, e[which])
        expected = sum(
            B @ (p * np.eye(3) + q * np.outer(v, v)) @ B.T
            for B, p, q, v in zip(
                blocks, plain.tolist(), along.tolist(), e[which].numpy(), strict=True
            )
        )
        assert H.numpy() == pytest.approx(expected)
    assert weights(target).shape == (1, 3)
    assert planted_groups("skip", x, SkipTwoLayer(3).double())[2].shape == (0, 9)
