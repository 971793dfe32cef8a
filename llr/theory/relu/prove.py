"""`prove_recovery`: whether the minimum-norm network is the planted one, as a theorem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from flint import fmpq, fmpq_mat
from torch import Tensor, nn

from llr.inputs.accept import a_module, as_given, needed, takes
from llr.inputs.roles import a_flag
from llr.results import Record
from llr.theory.relu.arguments import OnHyperplane, network_of, samples_of
from llr.theory.relu.clarabel_program import need_clarabel
from llr.theory.relu.closed_forms import exact_rank
from llr.theory.relu.margins import Margin, exact_margin, gated_margin
from llr.theory.relu.patterns import Patterns, checked
from llr.theory.relu.patterns import patterns as all_patterns
from llr.theory.relu.planted import Planted, plant
from llr.theory.relu.proofs import Claim, Features, cheaper, spare, unproved

Array = np.ndarray[Any, np.dtype[Any]]
Status = Literal["unique", "not unique", "undecided"]


@dataclass(frozen=True, repr=False)
class Proof(Record):
    """What is proved of a planted network as the minimum-norm interpolant of its values.

    Attributes:
        status: "unique", "not unique", or "undecided" where neither was proved.
        reason: the theorem, or what was evaluated in balls; what is missing if undecided.
        cones: whether that is of the exact program, or of its gated relaxation.
        margin: the margin in floating point, which only suggested what to prove; NaN if it was not needed.
        cells: how many cells were looked at; 0 if a theorem needs none.
    """

    status: Status
    reason: str
    cones: bool
    margin: float
    cells: int

    def __bool__(self) -> bool:
        return self.status == "unique"

    def __str__(self) -> str:
        """The status, the program and the reason."""
        return f"{self.status} in the {'exact' if self.cones else 'gated'} program: {self.reason}"


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
        return Proof("undecided", str(error), cones, math.nan, 0)
    if cones:
        need_clarabel()
    given = None if patterns is None else checked(patterns, samples)
    if given is not None and not given.complete:
        raise ValueError(
            "patterns are not complete; a proof needs all of them: llr.relu.patterns(x)"
        )
    if (known := _by_theorem(planted, cones)) is not None:
        return known
    given = all_patterns(x) if given is None else given
    if (
        planted.with_skip
        and not cones
        and bool(given.mask[:, torch.from_numpy(samples.any(axis=1))].all(1).any())
    ):
        why = "a cell is open for all samples, and copies the skip connection (Theorem 5)"
        return Proof("not unique", why, cones, math.nan, len(given))
    rest, _ = planted.others(given.mask)
    free = network.kind == "skip" and not planted.with_skip
    claim = Claim(network, samples, planted.active, rest.numpy(), free, cones)
    return _in_balls(planted, claim, given)


def _by_theorem(planted: Planted, cones: bool) -> Proof | None:
    """What needs no cells."""

    def found(status: Status, why: str) -> Proof:
        return Proof(status, why, cones, math.nan, 0)

    network, x = planted.network, planted.x
    if planted.unseen is not None:
        return found(
            "not unique", f"neuron {planted.unseen} is 0 on all samples: leaving it out is cheaper"
        )
    if (pair := planted.same_cell) is not None:
        why = f"neurons {pair[0]} and {pair[1]} are in one cell, where a single neuron or none is cheaper"
        return found("not unique", why)
    if network.kind == "normalized":
        ranks = [exact_rank(x[active]) for active in planted.active]
        if min(ranks) < x.shape[1]:
            j = ranks.index(min(ranks))
            why = f"the active samples of neuron {j} have rank {min(ranks)} < d = {x.shape[1]} (Theorem 8)"
            return found("not unique", why)
        if len(ranks) == 1:
            return found(
                "unique", "the active samples of the one normalized neuron have rank d (Theorem 8)"
            )
        return found("undecided", "several normalized neurons, whose active samples have full rank")
    if network.kind == "skip" and network.skip is not None:
        used = x[x.any(axis=1)]
        signs = {_sign(row, network.skip) for row in used}
        if planted.with_skip and cones and not {1, -1} <= signs:
            why = "the skip connection has values of one sign: a neuron does the same at the same norm"
            return found("not unique", why)
        if planted.active[:, x.any(axis=1)].all(axis=1).any():
            why = "a neuron is active at all samples: the skip connection does the same at the same norm"
            return found("not unique", why)
    if not planted.independent and _rank(planted) < len(planted.coefficients):
        return found("not unique", "the planted features are linearly dependent on these samples")
    return None


def _sign(row: Array, w: Array) -> int:
    """The sign of x_i.w, exactly."""
    pairs = zip(row.tolist(), w.tolist(), strict=True)
    value = sum((Fraction(p) * Fraction(q) for p, q in pairs), Fraction(0))
    return (value > 0) - (value < 0)


def _rank(planted: Planted) -> int:
    """The rank of the planted features, exactly."""

    def rationals(a: Array) -> fmpq_mat:
        entries = [fmpq(*float(v).as_integer_ratio()) for v in a.ravel()]
        return fmpq_mat(len(a), a.shape[1], entries)

    network, columns = planted.network, []
    vectors, masks = list(network.w), list(planted.active)
    if planted.with_skip and network.skip is not None:
        vectors, masks = [*vectors, network.skip], [*masks, np.ones(len(planted.x), dtype=bool)]
    for w, mask in zip(vectors, masks, strict=True):
        column = rationals(mask[:, None] * planted.x) * rationals(w[:, None])
        columns += [column[i, 0] for i in range(len(mask))]
    return int(fmpq_mat(len(vectors), len(planted.x), columns).rank())


def _in_balls(planted: Planted, claim: Claim, given: Patterns) -> Proof:
    cones, lam0 = claim.cones, planted.particular()

    def proof(status: Status, why: str, margin: float) -> Proof:
        return Proof(status, why, cones, margin, len(given))

    if lam0 is not None and unproved(claim, lam0) == []:
        return proof("unique", "the least dual variable is below 1 in all other cells", math.nan)
    if cones:
        exact = exact_margin(planted, given.mask.numpy())
        margin = None if exact is None else exact[0]
    else:
        margin = gated_margin(planted, planted.groups(torch.from_numpy(claim.others)))
    if margin is not None and unproved(claim, margin.lam) == []:
        return proof("unique", "a dual variable is below 1 in all other cells", margin.upper)
    number = math.inf if margin is None else margin.upper
    if cheaper(claim, *_direction(planted, margin, given.witness.numpy())):
        return proof("not unique", "a direction in which the network becomes cheaper", number)
    return proof("undecided", f"the margin is {number:.9g}, and neither side was proved", number)


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
