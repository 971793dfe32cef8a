"""`check_proof`: a proof from its samples and weights, anew and without any solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llr.inputs.accept import takes
from llr.inputs.roles import an_instance
from llr.theory.relu.arguments import Network, OnHyperplane, samples_of
from llr.theory.relu.patterns import Patterns
from llr.theory.relu.patterns import patterns as all_patterns
from llr.theory.relu.planted import plant
from llr.theory.relu.proof import BELOW_ONE, CHEAPER, Proof
from llr.theory.relu.proofs import Claim, Features, cheaper, unproved
from llr.theory.relu.theorems import by_theorem, claim_of, copied

Array = np.ndarray[Any, np.dtype[Any]]


@takes(proof=an_instance(Proof))
def check_proof(proof: Proof) -> None:
    """Check a proof from its samples and weights: cells, theorems and balls anew, without any solver.

    Raises:
        ValueError: it does not hold, or proves nothing; says which step fails.

    Example:
        >>> import torch
        >>> import llr
        >>> from llr.models import SkipTwoLayer
        >>> x = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> proof = llr.relu.prove_recovery(x, SkipTwoLayer.of(torch.tensor([1.0, -2.0])), cones=False)
        >>> llr.relu.check_proof(proof)
    """
    samples, network = _read(proof)
    try:
        planted = plant(network, samples)
    except OnHyperplane as error:
        raise _fails(str(error)) from error
    if proof.status == "undecided":
        raise _fails("its status is 'undecided', which proves nothing")
    known = by_theorem(planted, proof.cones)
    given = None
    if known is None:
        given = all_patterns(proof.x)
        known = copied(planted, proof.cones, given)
    if known is not None:
        if known != (proof.status, proof.reason):
            raise _fails(
                f"it says {proof.status!r} ({proof.reason}), but {known[0]!r} follows: {known[1]}"
            )
        return
    assert given is not None
    claim = claim_of(planted, proof.cones, given)
    if proof.status == "unique":
        _check_unique(proof, claim)
    else:
        _check_cheaper(proof, claim, given)


def _check_unique(proof: Proof, claim: Claim) -> None:
    if proof.reason not in BELOW_ONE:
        raise _fails(f"its reason {proof.reason!r} is none of a unique network")
    multipliers = {
        cell.numpy().tobytes(): mu.numpy()
        for cell, mu in zip(proof.cells, proof.multipliers, strict=True)
    }
    if len(proof.lam) != len(claim.x):
        raise _fails(f"lam has {len(proof.lam)} entries; expected {len(claim.x)}")
    left = unproved(claim, proof.lam.numpy(), multipliers, search=False)
    if left is None:
        raise _fails("the planted groups are not proved to be independent")
    if left:
        raise _fails(f"the dual variable is not below 1 in {len(left)} cells")


def _check_cheaper(proof: Proof, claim: Claim, given: Patterns) -> None:
    if proof.reason != CHEAPER:
        raise _fails(f"its reason {proof.reason!r} is none of a network that is not unique")
    cells = {row.tobytes() for row in given.mask.numpy()}
    open_ = np.ones(len(claim.x), dtype=bool).tobytes()
    for row in proof.masks.numpy():
        if (
            not claim.cones
            and row.tobytes() not in cells
            and not (claim.free and row.tobytes() == open_)
        ):
            raise _fails("a feature that comes in is of no cell")
    features = Features(proof.masks.numpy(), proof.vectors.numpy(), proof.coefficients.numpy())
    if len(proof.direction) != sum(_widths(claim)) or not cheaper(
        claim, features, proof.direction.numpy()
    ):
        raise _fails("the direction does not make the network cheaper")


def _widths(claim: Claim) -> list[int]:
    network, d = claim.network, claim.x.shape[1]
    skip = network.skip is not None and bool(network.skip.any())
    return [d] * (len(network.a) + skip)


def _read(proof: Proof) -> tuple[Array, Network]:
    """Samples and network of a proof, whose shapes fit each other."""
    samples = samples_of(proof.x)
    n, d = samples.shape
    m, h, k = len(proof.a), len(proof.cells), len(proof.masks)
    shapes = {
        "w": (m, d), "a": (m,), "skip": (d,), "cells": (h, n), "multipliers": (h, 2, n), "masks": (k, n),
        "vectors": (k, d), "coefficients": (k,),
    }  # fmt: skip
    for name, shape in shapes.items():
        value = getattr(proof, name)
        dtype = torch.bool if name in ("cells", "masks") else torch.float64
        if value is None and name == "skip" and proof.kind != "skip":
            continue
        if (
            value is None
            or value.dtype != dtype
            or ((value.numel() or 0 not in shape) and tuple(value.shape) != shape)
        ):
            found = None if value is None else (value.dtype, tuple(value.shape))
            raise _fails(f"{name} is {found}; expected {dtype} of shape {shape}")
        if not bool(torch.isfinite(value).all()):
            raise _fails(f"{name} is not finite")
    w, a = proof.w.numpy().reshape(m, d), proof.a.numpy()
    if proof.kind != "skip" and proof.skip is not None:
        raise _fails(f"there is a skip connection in a network of kind {proof.kind!r}")
    if not (w.any(axis=1) & (a != 0)).all() or (
        not m and not (proof.skip is not None and bool(proof.skip.any()))
    ):
        raise _fails("a neuron contributes nothing")
    return samples, Network(proof.kind, w, a, None if proof.skip is None else proof.skip.numpy())


def _fails(why: str) -> ValueError:
    return ValueError(f"the proof does not hold: {why}")
