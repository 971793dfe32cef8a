"""Proofs: decisions against margins and enumeration, files, and proofs that were tampered with."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.relu_cases import CASES, double, outputs, planted, random_case, relu_net, samples
from torch import Tensor

import llr
from llr.models import NormalizedTwoLayer, SkipTwoLayer
from llr.theory.relu import Proof

prove, check = llr.relu.prove_recovery, llr.relu.check_proof


def decided(cones: bool, count: int, seed: int) -> Counter[str]:
    """Every proof holds, and none contradicts a margin, a solution or the isometry condition."""
    generator, seen = np.random.default_rng(seed), Counter()
    for i in range(count):
        kind, x, target = random_case((0, 1, 3, 2)[i % 4], generator, ("gaussian", "cubic", "haar"))
        if x.shape[1] > 3:
            continue
        proof = prove(double(x), target, cones=cones)
        seen[proof.status] += 1
        margin = llr.relu.recovers(double(x), target, cones=cones).margin
        if proof.status == "undecided":
            assert abs(margin - 1) < 1e-8
            continue
        check(proof)
        assert bool(proof) == (proof.status == "unique")
        if abs(margin - 1) > 1e-8:
            assert proof.status == ("unique" if margin < 1 else "not unique"), proof
        if llr.relu.isometry(double(x), target).value < 1 - 1e-12:
            assert proof.status == "unique"
        if cones and prove(double(x), target, cones=False).status == "unique":
            assert proof.status == "unique"
        assert kind
    return seen


def test_gated() -> None:
    seen = decided(False, CASES, 41)
    assert seen["unique"]
    assert seen["not unique"]
    assert not seen["undecided"]


def test_exact() -> None:
    pytest.importorskip("clarabel")
    seen = decided(True, CASES, 42)
    assert seen["unique"]
    assert seen["not unique"]
    assert not seen["undecided"]


def test_many_cells() -> None:
    """25,902 cells of (25, 5), with the dual variable of the margin where the least one is above 1."""
    x = samples("gaussian", 25, 5, np.random.default_rng([1, 25, 5]))
    proof = prove(double(x), planted("skip", x, np.random.default_rng(0)), cones=False)
    assert proof.status == "unique"
    check(proof)


def test_theorem_8() -> None:
    generator, seen = np.random.default_rng(43), set()
    for i in range(20):
        d = 2 + i % 3
        x = samples("gaussian", d + i % 7, d, generator)
        w = generator.standard_normal((1, d))
        if not (x @ w.T > 0).any():
            continue
        target = NormalizedTwoLayer.on(double(x), double(w), torch.ones(1).double())
        proof = prove(double(x), target, cones=False)
        assert (proof.status == "unique") == llr.relu.normalized_neuron_recovers(double(x), target)
        check(proof)
        seen.add(proof.status)
    assert len(seen) == 2


def test_a_margin_just_above_one() -> None:
    """The optimum is lower by the square of the excess only; the direction sees the excess itself."""
    x = np.random.default_rng(4).standard_normal((14, 2))
    x[0] = [1.0, 1e-4]
    target = relu_net([[0.0, 1.0]], [1.0])
    margin = llr.relu.recovers(double(x), target, cones=False).margin
    proof = prove(double(x), target, cones=False)
    assert abs(margin - 1) < 1e-5
    assert proof.status == ("unique" if margin < 1 else "not unique")
    check(proof)


def test_what_is_not_decided() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 3.0]]).double()
    proof = prove(x, relu_net([[1.0, -1.0]], [1.0]), cones=False)
    assert proof.status == "undecided"
    assert "hyperplane" in proof.reason
    with pytest.raises(ValueError, match="does not hold: sample 0 lies on the hyperplane"):
        check(proof)
    generator = np.random.default_rng(1)
    x = double(generator.standard_normal((30, 2)))
    proof = prove(x, planted("two normalized", x.numpy(), generator), cones=False)
    assert proof.status == "undecided"
    with pytest.raises(ValueError, match="proves nothing"):
        check(proof)


def test_incomplete_patterns() -> None:
    x = double(np.random.default_rng(0).standard_normal((9, 2)))
    sampled = llr.relu.patterns(x, method="sample", generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="not complete; a proof needs all of them"):
        prove(x, SkipTwoLayer.of(torch.ones(2)), cones=False, patterns=sampled)


def skip_proof() -> Proof:
    x = samples("gaussian", 14, 2, np.random.default_rng(3))
    return prove(double(x), planted("skip", x, np.random.default_rng(0)), cones=False)


def exact_proof() -> Proof:
    """One whose cells need multipliers."""
    generator = np.random.default_rng(5)
    while True:
        x = samples("gaussian", 9, 2, generator)
        found = prove(double(x), planted("skip", x, generator))
        if found.status == "unique" and len(found.cells):
            return found


def cheaper_proof() -> Proof:
    generator = np.random.default_rng(6)
    while True:
        x = samples("gaussian", 9, 2, generator)
        found = prove(double(x), planted("one neuron", x, generator), cones=False)
        if found.status == "not unique" and len(found.masks):
            return found


def test_files(tmp_path: Path) -> None:
    for make in (skip_proof, cheaper_proof):
        proof = make()
        proof.save(tmp_path / "proof.json")
        again = Proof.load(tmp_path / "proof.json")
        check(again)
        for name in ("x", "w", "a", "lam", "masks", "vectors", "coefficients", "direction"):
            assert torch.equal(getattr(again, name), getattr(proof, name))


def one_changed(t: Tensor, by: float) -> Tensor:
    t = t.clone()
    t.view(-1)[0] += by
    return t


def refused(proof: Proof) -> None:
    with pytest.raises(ValueError, match="the proof does not hold"):
        check(proof)


def test_tampered_unique() -> None:
    proof = skip_proof()
    refused(replace(proof, status="not unique"))
    refused(replace(proof, reason="because"))
    refused(replace(proof, cones=True, status="not unique"))
    refused(replace(proof, kind="plain"))
    refused(replace(proof, skip=None))
    refused(replace(proof, skip=torch.zeros_like(proof.skip)))
    refused(replace(proof, x=proof.x[:4]))
    refused(replace(proof, x=proof.x.abs()))
    refused(replace(proof, lam=one_changed(proof.lam, 50.0)))
    refused(replace(proof, lam=proof.lam[1:]))
    refused(replace(proof, lam=one_changed(proof.lam, math.nan)))
    refused(replace(proof, a=torch.ones(1).double()))
    refused(replace(proof, w=proof.x[:1], a=torch.ones(1).double()))


def test_tampered_multipliers() -> None:
    pytest.importorskip("clarabel")
    proof = exact_proof()
    check(proof)
    refused(replace(proof, cones=False))
    refused(replace(proof, cells=proof.cells[1:], multipliers=proof.multipliers[1:]))
    refused(replace(proof, multipliers=proof.multipliers - 1))
    refused(replace(proof, multipliers=proof.multipliers + 100))
    refused(replace(proof, multipliers=0 * proof.multipliers))
    refused(replace(proof, multipliers=proof.multipliers[:, :1]))
    refused(replace(proof, cells=~proof.cells))


def test_tampered_direction() -> None:
    proof = cheaper_proof()
    check(proof)
    refused(replace(proof, status="unique"))
    refused(replace(proof, coefficients=proof.coefficients + 10))
    refused(replace(proof, direction=-proof.direction))
    refused(replace(proof, direction=proof.direction[1:]))
    refused(replace(proof, masks=~proof.masks))
    alternating = proof.masks.clone()
    alternating[0] = torch.arange(alternating.shape[1]) % 2 == 0
    refused(replace(proof, masks=alternating))
    refused(replace(proof, vectors=one_changed(proof.vectors, math.inf)))
    refused(
        replace(
            proof,
            masks=proof.masks[:0],
            vectors=proof.vectors[:0],
            coefficients=proof.coefficients[:0],
        )
    )


def test_str() -> None:
    assert str(skip_proof()).startswith("unique in the gated program: ")
    assert outputs(SkipTwoLayer(2).double(), np.ones((3, 2))).shape == (3,)
