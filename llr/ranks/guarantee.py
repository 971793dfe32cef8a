"""The LLR guarantee: whether given samples determine a model's function near its parameters.

Samples S have the guarantee at parameters theta if the rank of the Jacobian on S is dim T, the rank of the
model (:mod:`llr.model_rank`). Every first-order change of the function then changes the outputs on S, and
gradient descent from near theta recovers the function (Local Linear Recovery).

Source: Zhang et al., "Local Linear Recovery Guarantee of Deep Neural Networks at Overparameterization"
(2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llr.inputs.accept import a_model, a_sampler, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model, read_problem
from llr.inputs.roles import a_progress, sizes, word
from llr.inputs.samplers import Source, all_samples, checked_points, sample_shape
from llr.ranks.model_rank import ModelRank
from llr.ranks.model_rank import model_rank as find_model_rank
from llr.ranks.saturation import Certify, Found, Look, Progress, Question, Search
from llr.results import Record
from llr.results.html import Verdict
from llr.results.phrases import counted
from llr.results.progress import followed
from llr.theory.tangents.upper import upper_bound


@dataclass(frozen=True, repr=False)
class Guarantee(Record):
    """Whether samples have the LLR guarantee, usable as a truth value.

    Attributes:
        holds: whether the rank on the samples is that of the model.
        rank: the rank on the samples. A proof stops when it reaches the model's rank.
        model_rank: dim T as given or found.
        proved: whether the verdict is proved, assuming that a model rank from the caller is right.
        ambiguous: whether it is open: not proved, and the count on the samples, or the model rank, is
            ambiguous, or the model rank had not stopped growing.
        n_samples: the number of samples.
        reason: the verdict as text.
    """

    holds: bool
    rank: int
    model_rank: int
    proved: bool
    ambiguous: bool
    n_samples: int
    reason: str

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.holds == (self.rank >= self.model_rank),
            "holds to be whether rank reaches model_rank",
        )
        start = f"the rank on {self.n_samples} samples is "
        start += f"{'that' if self.holds else f'{self.rank}, that'} of the model"
        yield self.reason.startswith(start), f"a reason that begins with {start!r}"
        yield self.proved == (" (proved)" in self.reason), "a reason that says whether it is proved"

    def __bool__(self) -> bool:
        return self.holds

    def __str__(self) -> str:
        """One line: the verdict, whether it is counted or ambiguous, and why."""
        return f"{self._verdict()[0]}: {self.reason}"

    def _verdict(self) -> Verdict:
        words = "LLR guarantee" if self.holds else "no LLR guarantee"
        if self.ambiguous:
            return f"{words}, by an ambiguous count", "doubt"
        return words + ("" if self.proved else ", by a count"), "good" if self.holds else "bad"


@takes(
    model=a_model, x=valued, method=word, sampler=a_sampler, sample_shape=sizes, progress=a_progress
)
@outside_inference_mode
@followed
def has_llr_guarantee(
    model: Model,
    x: Tensor,
    *,
    model_rank: int | ModelRank | None = None,
    params: Selection = None,
    certify: Certify = "auto",
    method: str = "auto",
    progress: Progress | bool | None = None,
    **options: Any,
) -> Guarantee:
    """Whether the samples `x` have the LLR guarantee, that is, the rank of the Jacobian on them is dim T.

    Args:
        model: a module, or a callable f(params, x).
        x: (n, ...) samples.
        model_rank: dim T, a result of :func:`llr.model_rank` or a number from elsewhere, which is trusted.
            Default: the closed form if :mod:`llr.theory` has one (and there are no `options`), otherwise the
            result of :func:`llr.model_rank` on samples of the shape of `x`.
        params: columns, or values of the parameters, as for :func:`llr.jacobian`; one point.
        certify: whether ranks are proved, as for :func:`llr.model_rank`.
        method: how singular values are found, as for :func:`llr.rank`.
        progress: False for none; or a function, called as ``progress(n, rank, upper)`` after each size.
            Default: after two seconds a line on a terminal or in a notebook.
        **options: further arguments of :func:`llr.model_rank`, such as `sampler`.

    Returns:
        A `Guarantee`, true or false. A rank counted in floating point can be too small; the result is then
        false. ``ambiguous`` says whether the count is ambiguous, and ``reason`` whether it has a gap.

    Raises:
        TypeError: `options` together with `model_rank`.
        ValueError: `model_rank` is less than the rank on `x`, or more than the number of parameters; and
            everything that :func:`llr.model_rank` refuses.

    Source: Zhang et al. (2024), see the module.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
        >>> bool(llr.has_llr_guarantee(model, torch.randn(9, 2)))
        True
        >>> print(llr.has_llr_guarantee(model, torch.randn(9, 2)[:5], model_rank=9))  # doctest: +ELLIPSIS
        no LLR guarantee: the rank on 5 samples is 5, that of the model 9; ... (proved)
    """
    case = _Case.of(Question(model, params, certify, method), x, model_rank, options, progress)
    return case.verdict()


@takes(
    model=a_model, x=valued, method=word, sampler=a_sampler, sample_shape=sizes, progress=a_progress
)
@outside_inference_mode
@followed
def llr_sample_size(
    model: Model,
    x: Tensor,
    *,
    model_rank: int | ModelRank | None = None,
    params: Selection = None,
    certify: Certify = "auto",
    method: str = "auto",
    progress: Progress | bool | None = None,
    **options: Any,
) -> int | None:
    """The number of samples of `x`, from the first on, that are needed for the LLR guarantee.

    Args and errors as for :func:`has_llr_guarantee`.

    Returns:
        The length of the shortest prefix of `x` on which the Jacobian has rank dim T, at least 1; None if all
        of `x` is not enough. It counts points: each gives as many observations as the model has outputs.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
        >>> llr.llr_sample_size(model, torch.randn(20, 2))
        9
    """
    case = _Case.of(Question(model, params, certify, method), x, model_rank, options, progress)
    if case.found.best < case.target.rank:
        return None
    return case.search.shortest(case.found)[0]


@dataclass(frozen=True)
class _Target:
    """dim T, and how it is known."""

    rank: int
    lower: int
    upper: int
    doubt: str = ""


@dataclass
class _Case:
    """Samples, the rank on them, and the rank that they should have."""

    x: Tensor
    target: _Target
    search: Search
    found: Found
    upper: int
    """An upper bound of the rank on x."""

    @classmethod
    def of(
        cls,
        question: Question,
        x: Tensor,
        model_rank: int | ModelRank | None,
        options: dict[str, Any],
        progress: Progress | bool | None,
    ) -> _Case:
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {type(x).__name__}; expected a tensor (torch.as_tensor(x))")
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(
                f"x has no samples (shape {tuple(x.shape)}); expected (n, ...), n >= 1"
            )
        x = checked_points(x, len(x), None, "x")
        model, params = question.model, question.params
        closed = None
        if model_rank is None and not options:
            closed = upper_bound(
                read_problem(model, x[:1], params, torch.float64), params, everywhere=True
            )
        if closed is not None and closed.exact:
            model_rank = closed.upper
        elif model_rank is None:
            given = {"sample_shape": tuple(x.shape[1:]), **options}
            tokens = sample_shape(model, tuple(x.shape[1:]))[1]
            known = tokens is not None or all_samples(model) is not None
            if "sampler" not in options and not x.is_floating_point() and not known:
                raise ValueError(
                    f"x is {x.dtype}, and what other samples there are cannot be read off the model; give "
                    "sampler= (all points as a tensor, or a callable), or model_rank="
                )
            if callable(given.get("sampler")) or isinstance(given.get("sampler"), Tensor):
                given.pop("sample_shape")  # these points have their own shape
            model_rank = find_model_rank(
                model,
                params=params,
                certify=question.certify,
                method=question.method,
                progress=progress,
                **given,
            )
        elif options:
            raise TypeError(
                f"{next(iter(options))}= is about finding the rank of the model, but model_rank= is given; "
                "omit one of them"
            )
        target = _target(model_rank)
        look = Look.at(question, x[:1], upper=target.rank, claim="model_rank")
        if target.rank > look.n_params:
            raise ValueError(
                f"model_rank is {target.rank}, but the model has {look.n_params} parameters; expected no more"
            )
        source = Source("x", lambda _: x[:0], x, limit=len(x))
        # No margin: the question is about x only.
        told = progress if callable(progress) else None
        search = Search(look, source, len(x), len(x) * look.outputs, told)
        whole = search.measure(len(x), prove=False)
        found = Found(prove=False, trials=[whole])
        upper = int(whole.result.upper)
        least = math.ceil(target.rank / look.outputs)
        if look.provable(min(least, len(x))):
            proof = search.grow(least, prove=True)
            if proof.trials[-1].n == len(x):
                upper = min(upper, int(proof.trials[-1].result.upper))
            if proof.complete or proof.best >= found.best:
                found = proof
        return cls(x, target, search, found, upper)

    def verdict(self) -> Guarantee:
        r, target, n = self.found.best, self.target, len(self.x)
        holds, last = r >= target.rank, self.found.trials[-1].result
        if holds:
            proved = self.found.proved >= target.upper
            reason = f"the rank on {counted(n, 'sample')} is that of the model, {target.rank}"
        else:
            proved = self.upper < target.lower
            observations = n * self.search.look.outputs
            reason = f"the rank on {counted(n, 'sample')} is {r}, that of the model {target.rank}"
            differing = self.search.source.distinct(n)
            if observations < target.rank:
                few = "is" if observations == 1 else "are"
                reason += f"; {counted(observations, 'observation')} {few} too few"
            elif differing < n:
                reason += f"; only {differing} of the samples differ"
        if proved:
            reason += " (proved)"
        elif not self.found.prove:
            gap = "clear gap" if last.clear else "no clear gap"
            reason += " (counted in floating point" + (f", ambiguous, {gap})" if last.open else ")")
        ambiguous = not proved and (last.open or bool(target.doubt))
        return Guarantee(holds, r, target.rank, proved, ambiguous, n, reason + target.doubt)


def _target(model_rank: int | ModelRank) -> _Target:
    if isinstance(model_rank, ModelRank):
        doubt = ""
        if not model_rank.saturated:
            doubt = f"; the model rank had not saturated: {model_rank.reason}"
        elif model_rank.ambiguous:
            gap = "clear gap" if model_rank.clear else "no clear gap"
            doubt = f"; the model rank is ambiguous ({gap})"
        return _Target(model_rank.rank, model_rank.lower, model_rank.upper, doubt)
    if type(model_rank) is not int or model_rank < 0:
        raise ValueError(
            f"model_rank is {model_rank!r}; expected dim T, an integer >= 0, or what llr.model_rank returns"
        )
    return _Target(model_rank, model_rank, model_rank)
