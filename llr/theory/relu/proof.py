"""`Proof`: what is proved of a planted network, with what it takes to check it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llr.results import Record
from llr.theory.relu.arguments import Kind, Network
from llr.theory.relu.proofs import Features

Array = np.ndarray[Any, np.dtype[Any]]
Status = Literal["unique", "not unique", "undecided"]
BELOW_ONE = (
    "the least dual variable is below 1 in all other cells",
    "a dual variable is below 1 in all other cells",
)
CHEAPER = "a direction in which the network becomes cheaper"


@dataclass(frozen=True, eq=False, repr=False)
class Proof(Record):
    """What is proved of a planted network as the minimum-norm interpolant of its values, with the proof.

    Attributes:
        status: "unique", "not unique", or "undecided" where neither was proved.
        reason: the theorem, or what was evaluated in balls; what is missing if undecided.
        cones: whether that is of the exact program, or of its gated relaxation.
        kind: "plain", "skip" or "normalized".
        x: the samples, (n, d).
        w: the planted neurons, (m, d).
        a: their outgoing weights, (m); those of normalized neurons are divided by their norms on the samples.
        skip: the skip connection, (d); None for other kinds.
        margin: the margin in floating point, which only suggested what to prove; NaN if it was not needed.
        lam: near the dual variable that proves uniqueness, (n); empty if there is none.
        cells: patterns of cells where multipliers of their half-spaces are needed, (h, n).
        multipliers: for both signs, (h, 2, n).
        masks: patterns of the features that come in where the network becomes cheaper, (k, n).
        vectors: their vectors, (k, d).
        coefficients: about how much of each, (k).
        direction: about how the planted weights move, (the sum of their lengths).
    """

    status: Status
    reason: str
    cones: bool
    kind: Kind
    x: Tensor
    w: Tensor
    a: Tensor
    skip: Tensor | None
    margin: float
    lam: Tensor
    cells: Tensor
    multipliers: Tensor
    masks: Tensor
    vectors: Tensor
    coefficients: Tensor
    direction: Tensor

    def __bool__(self) -> bool:
        return self.status == "unique"

    def __str__(self) -> str:
        """The status, the program and the reason."""
        return f"{self.status} in the {'exact' if self.cones else 'gated'} program: {self.reason}"


def proof_of(
    network: Network,
    x: Array,
    cones: bool,
    status: Status,
    reason: str,
    *,
    margin: float = math.nan,
    lam: Array | None = None,
    multipliers: dict[bytes, Array] | None = None,
    features: Features | None = None,
    direction: Array | None = None,
) -> Proof:
    """A proof with these parts; what is not given is empty."""
    n, d = x.shape
    used = multipliers or {}
    cells = [np.frombuffer(cell, dtype=bool) for cell in used]

    def stacked(rows: Any, shape: tuple[int, ...], dtype: Any = float) -> Tensor:
        return torch.from_numpy(np.array(rows, dtype=dtype).reshape(shape))

    return Proof(
        status,
        reason,
        cones,
        network.kind,
        torch.from_numpy(x),
        torch.from_numpy(network.w),
        torch.from_numpy(network.a),
        None if network.skip is None else torch.from_numpy(network.skip),
        margin,
        stacked([] if lam is None else lam, (-1,)),
        stacked(cells, (len(cells), n), bool),
        stacked(list(used.values()), (len(cells), 2, n)),
        stacked([] if features is None else features.masks, (-1 if features else 0, n), bool),
        stacked([] if features is None else features.vectors, (-1 if features else 0, d)),
        stacked([] if features is None else features.coefficients, (-1,)),
        stacked([] if direction is None else direction, (-1,)),
    )
