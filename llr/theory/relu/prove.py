"""`prove_recovery`: whether the minimum-norm network is the planted one, as a theorem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, as_given, needed, takes
from llr.inputs.roles import a_flag
from llr.theory.relu.arguments import OnHyperplane, network_of, samples_of
from llr.theory.relu.clarabel_program import need_clarabel
from llr.theory.relu.margins import Margin, exact_margin, gated_margin
from llr.theory.relu.patterns import Patterns, checked
from llr.theory.relu.patterns import patterns as all_patterns
from llr.theory.relu.planted import Planted, plant
from llr.theory.relu.proof import BELOW_ONE, CHEAPER, Proof, proof_of
from llr.theory.relu.proofs import Claim, Features, cheaper, spare, unproved
from llr.theory.relu.theorems import by_theorem, claim_of, copied

Array = np.ndarray[Any, np.dtype[Any]]


@takes(x=needed, target=a_module, cones=a_flag, patterns=as_given)
def prove_recovery(
    x: Tensor, target: nn.Module, *, cones: bool = True, patterns: Patterns | None = None
) -> Proof:
    """Prove that the minimum-norm network is the planted one, or that it is not.

    Samples and parameters are taken as the binary numbers that they are, and the values are those of the
    planted network, never rounded. "unique" is a dual variable in balls that satisfies A_S' lam = b_S
    exactly and is below 1 in all other cells, of which none is missing. "not unique" is a theorem, or a
    direction in balls in which the network becomes cheaper. Solvers only suggest.

    Args:
        x: samples (n, d).
        target: as for :func:`isometry`. Several normalized neurons are decided only where a theorem does.
        cones: True for the exact program (needs clarabel), False for the gated one.
        patterns: of x, all of them; default: they are computed.

    Raises:
        ValueError: what :func:`isometry` refuses, except samples on a neuron's hyperplane, which are
            "undecided"; patterns that are not complete.
        TypeError: no two-layer network.
        ImportError: cones without clarabel.

    Example:
        >>> import torch
        >>> import llr
        >>> from llr.models import SkipTwoLayer
        >>> x = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> llr.relu.prove_recovery(x, SkipTwoLayer.of(torch.tensor([1.0, -2.0])), cones=False).status
        'unique'
    """
    samples = samples_of(x)
    network = network_of(target, samples)
    try:
        planted = plant(network, samples)
    except OnHyperplane as error:
        return proof_of(network, samples, cones, "undecided", str(error))
    if cones:
        need_clarabel()
    given = None if patterns is None else checked(patterns, samples)
    if given is not None and not given.complete:
        raise ValueError(
            "patterns are not complete; a proof needs all of them: llr.relu.patterns(x)"
        )
    if (known := by_theorem(planted, cones)) is not None:
        return proof_of(network, samples, cones, *known)
    given = all_patterns(x) if given is None else given
    if (known := copied(planted, cones, given)) is not None:
        return proof_of(network, samples, cones, *known)
    return _in_balls(planted, claim_of(planted, cones, given), given)


def _in_balls(planted: Planted, claim: Claim, given: Patterns) -> Proof:
    network, x, cones = planted.network, planted.x, claim.cones
    lam0 = planted.particular()
    used: dict[bytes, Array] = {}
    if lam0 is not None and unproved(claim, lam0, used, search=True) == []:
        return proof_of(network, x, cones, "unique", BELOW_ONE[0], lam=lam0, multipliers=used)
    if cones:
        exact = exact_margin(planted, given.mask.numpy())
        margin = None if exact is None else exact[0]
    else:
        margin = gated_margin(planted, planted.groups(torch.from_numpy(claim.others)))
    number = math.inf if margin is None else margin.upper
    used = {}
    if margin is not None and unproved(claim, margin.lam, used, search=True) == []:
        return proof_of(
            network,
            x,
            cones,
            "unique",
            BELOW_ONE[1],
            margin=number,
            lam=margin.lam,
            multipliers=used,
        )
    features, v = _direction(planted, margin, given.witness.numpy())
    if cheaper(claim, features, v):
        return proof_of(
            network, x, cones, "not unique", CHEAPER, margin=number, features=features, direction=v
        )
    why = f"the margin is {number:.9g}, and neither side was proved"
    return proof_of(network, x, cones, "undecided", why, margin=number)


def _direction(planted: Planted, margin: Margin | None, points: Array) -> tuple[Features, Array]:
    """What a margin above 1 suggests: features that come in, and how the planted weights move."""
    x, A = planted.x, planted.A
    n, d = x.shape
    masks, vectors = spare(x, points, np.random.default_rng(0))
    none = np.zeros(len(masks))
    if margin is None or margin.masks is None or margin.vectors is None or margin.signs is None:
        # No dual variable: some direction changes the norms, and no value.
        v = planted.b - A.T @ np.linalg.lstsq(A.T, planted.b, rcond=None)[0]
        return Features(masks, vectors, none), v
    own = margin.masks.reshape(-1, n), margin.vectors.reshape(-1, d)
    outputs = (own[0] * (own[1] @ x.T)).T @ margin.signs
    v = np.linalg.lstsq(A, outputs, rcond=None)[0]
    features = Features(
        np.concatenate((own[0], masks)),
        np.concatenate((own[1], vectors)),
        np.concatenate((margin.signs, none)),
    )
    return features, v
