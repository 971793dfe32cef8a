"""The rank of a model on longer and longer prefixes of a sequence of samples, with or without proofs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from llr.exact.network import read_network
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model, read_problem
from llr.inputs.samplers import Source
from llr.jacobians.jacobian import prepare
from llr.ranks.rank import METHODS, rank
from llr.ranks.result import RankResult
from llr.results.progress import step
from llr.theory.tangents.upper import upper_bound

Certify = Literal["auto"] | bool
Progress = Callable[[int, int, int], None]

# A proof for an N x P Jacobian takes about N P (200 + min(N, P)) ball operations of 0.02 to 0.07 microseconds
# if the rank is less than both N and P, so this limit is a few seconds.
_WORK = 1e8


@dataclass(frozen=True)
class Question:
    """The model whose rank is sought, and the method."""

    model: Model
    params: Selection
    certify: Certify
    method: str

    def checked(self) -> Question:
        """The same question, with ``method="certified"`` replaced by ``certify=True``.

        Raises:
            ValueError: an unknown method or `certify`, or two that exclude each other.
        """
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.certify not in ("auto", True, False):
            raise ValueError(f"certify is {self.certify!r}; expected 'auto', True or False")
        if self.method != "certified":
            return self
        if self.certify is False:
            raise ValueError("method='certified' and certify=False exclude each other")
        return replace(self, method="auto", certify=True)


@dataclass(frozen=True)
class Look:
    """Computes the rank of one model on samples."""

    question: Question
    obstacle: str
    """Why nothing can be proved; empty if it can."""
    outputs: int
    n_params: int
    upper: int
    """An upper bound of the rank: P, a closed form, or the caller's claim."""
    upper_from: str
    """The source of `upper`: "parameters", "theory" or "caller"."""
    claim: str | None
    """The caller's name of this claim; None without one."""

    @classmethod
    def at(
        cls,
        question: Question,
        x: Tensor,
        *,
        upper: int | None,
        claim: str = "upper",
    ) -> Look:
        """Check the options and read the model's sizes, with one sample."""
        question = question.checked()
        model, params, certify = question.model, question.params, question.certify
        problem = read_problem(model, x, params, torch.float64)
        if problem.columns.points is not None:
            raise ValueError(
                f"params has {problem.columns.points} stacked parameter points; the rank of a model is taken "
                "at one point at a time"
            )
        _, q, P = prepare(problem).shape
        if q == 0 or P == 0:
            raise ValueError(
                f"the model has {q} outputs per sample and {P} parameters; expected at least one of each"
            )
        obstacle = ""
        if certify is not False:
            try:
                read_network(model, x, params)
            except ValueError as error:
                if certify is True:
                    raise
                obstacle = str(error)
        else:
            obstacle = "certify=False"
        bounds = [(P, "parameters")]
        closed = upper_bound(problem, params, everywhere=True)
        bounds += [(closed.upper, "theory")] if closed else []
        bounds += [(upper, "caller")] if upper is not None else []
        limit, limit_from = min(bounds, key=lambda bound: bound[0])
        named = None if upper is None else claim
        return cls(question, obstacle, q, P, limit, limit_from, named)

    def provable(self, n: int) -> bool:
        """Whether to prove the rank on n samples."""
        if self.obstacle or self.question.certify is True:
            return not self.obstacle
        N, P = n * self.outputs, self.n_params
        return N * P * (200 + min(N, P)) <= _WORK

    def rank(self, x: Tensor, *, prove: bool) -> RankResult:
        """The rank on these samples: a proved lower bound, or a count of singular values."""
        asked = self.question
        if prove:
            # Only if the claim is called "upper", since the error message would call it that.
            upper = self.upper if self.claim == "upper" else None
            return rank(asked.model, x, params=asked.params, method="certified", upper=upper)
        # This class decides what is proved, for all sizes together.
        return rank(asked.model, x, params=asked.params, method=asked.method, resolve=False)


@dataclass(frozen=True)
class Trial:
    """The rank on the first n points."""

    n: int
    rank: int
    result: RankResult


@dataclass
class Found:
    """The sizes that were tried, all with or all without proofs."""

    prove: bool
    trials: list[Trial] = field(default_factory=list)
    saturated: bool = False
    complete: bool = True
    """False if the search was stopped in favour of one with proofs."""
    reason: str = ""

    @property
    def best(self) -> int:
        """The largest rank found."""
        return max((trial.rank for trial in self.trials), default=0)

    @property
    def first(self) -> int:
        """The first size that had this rank with more observations than needed: the one before the last."""
        return self.trials[-2 if self.saturated and len(self.trials) > 1 else -1].n

    @property
    def proved(self) -> int:
        """The largest proved lower bound."""
        return max((proved(trial.result) for trial in self.trials), default=0)


@dataclass
class Search:
    """Computes the rank on longer and longer prefixes of a sequence of points."""

    look: Look
    source: Source
    most: int
    margin: int
    progress: Progress | None = None

    def measure(self, n: int, *, prove: bool) -> Trial:
        """The rank on the first n points; ValueError if it contradicts the caller's claim."""
        result = self.look.rank(self.source.first(n), prove=prove)
        found, upper = int(result.rank), self.look.upper
        certain = result.certificate is not None or result.lower_from == "error bound"
        if found > upper and (certain or result.clear):
            how = "which is certain" if result.certificate else "counting singular values"
            raise ValueError(
                f"{self.look.claim or 'the closed form'}={upper} is contradicted: on {n} samples the rank is "
                f"{found}, {how}, and the rank of the model at least that"
            )
        return Trial(n, min(found, upper), result)

    def grow(self, n: int, *, prove: bool, give_way: bool = False) -> Found:
        """Double the number of points from n until the rank has saturated.

        With `give_way`, a count of singular values ends if it is unclear and a proof is possible.
        """
        found, q = Found(prove), self.look.outputs
        most = min(self.most, self.source.limit or self.most)
        n = min(max(n, 1), most)
        while True:
            if prove and not self.look.provable(n):
                found.complete = False
                found.reason = f"a proof on {n} samples is long; certify=True takes the time"
                return found
            before = found.trials[-1] if found.trials else None
            best = found.best
            trial = self.measure(n, prove=prove)
            found.trials.append(trial)
            if self.progress is not None:
                self.progress(n, found.best, self.look.upper)
            step(f"rank {found.best} on {n} samples, of at most {self.look.upper}")
            if trial.rank >= self.look.upper:
                found.saturated, found.reason = True, "the upper bound is met"
            elif n == self.source.limit:
                found.saturated, found.reason = True, "these are all points of the domain"
            elif before is not None and n >= 2 * before.n and trial.rank <= best:
                observations = self.source.distinct(before.n) * q
                found.saturated = observations > best + self.margin
                found.reason = f"twice {before.n} samples did not raise the rank"
            if found.saturated:
                return found
            if give_way and unclear(trial.result) and self.look.provable(n):
                found.complete, found.reason = False, "singular values do not tell the rank"
                return found
            # Only in an infinite sequence; a finite one may have new points later.
            if (
                before is not None
                and self.source.limit is None
                and self.source.distinct(n) == self.source.distinct(before.n)
            ):
                found.reason = (
                    f"the sampler repeats {self.source.distinct(n)} points (if these are all there are, pass "
                    "them as a tensor)"
                )
                return found
            if n >= most:
                found.reason = f"{n} samples were not enough; raise max_samples"
                return found
            n = min(2 * n, most)

    def shortest(self, found: Found) -> tuple[int, RankResult]:
        """The length of the shortest prefix with the rank found, and the rank on it."""
        target = found.best
        high = next(trial for trial in found.trials if trial.rank >= target)
        # A point raises the rank by at most its number of outputs. This lower bound is almost always enough.
        low = max(1, math.ceil(target / self.look.outputs))
        n = low
        while low < high.n:
            trial = self.measure(n, prove=found.prove)
            if trial.rank >= target:
                high = trial
            else:
                low = n + 1
            n = (low + high.n) // 2
        return high.n, high.result


def unclear(result: RankResult) -> bool:
    """Whether the rank is neither exact nor clear."""
    return result.open and not result.clear


def proved(result: RankResult) -> int:
    """The lower bound of the rank that a certificate proves; 0 without a certificate."""
    return 0 if result.certificate is None else result.certificate.rank
