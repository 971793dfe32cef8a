"""The rank of a model, and samples that attain it.

The tangent space T of a model at parameters theta is spanned by the functions df(.; theta) / d theta_i on the
whole input space; dim T is the rank of the model at theta. The Jacobian on n samples has rank at most dim T.
If its rank is dim T, the samples determine the function near theta: they have the LLR guarantee (Local Linear
Recovery, :mod:`llr.ranks.guarantee`). For a scalar analytic model almost every set of dim T or more samples
has the guarantee, and no smaller set has it.

Sources: Zhang et al., "Optimistic Estimate Uncovers the Potential of Nonlinear Models" (2023), for the rank
and the optimistic sample size; Zhang et al., "Local Linear Recovery Guarantee of Deep Neural Networks at
Overparameterization" (2024), for the guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llr.inputs.accept import a_model, a_sampler, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection, columns_of_callable, columns_of_module
from llr.inputs.problem import Model
from llr.inputs.roles import a_progress, a_seed, check_int, sizes, word
from llr.inputs.samplers import Sampler, read_sampler
from llr.ranks.result import RankResult
from llr.ranks.saturation import Certify, Look, Progress, Question, Search, proved, unclear
from llr.results import Record
from llr.results.html import Spectrum, Verdict
from llr.results.phrases import counted
from llr.results.progress import followed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The default of max_samples is this many times P + margin scalar observations.
_PATIENCE = 16
_MOST_MARGIN = 10**6


@dataclass(frozen=True, eq=False, repr=False)
class ModelRank(Record):
    """The rank of a model at its parameters, how far it is proved, and a sample that attains it.

    Attributes:
        rank: dim T as found: the largest rank of the Jacobian on any of the samples tried.
        lower: a proved lower bound of dim T, 0 without a certificate.
        upper: an upper bound of dim T: the number of parameters, a closed form, the caller's `upper`, or the
            rank on all points of a finite domain.
        upper_from: the source of `upper`: "parameters", "theory" (a closed form), "caller" (trusted, not
            proved) or "domain".
        ambiguous: whether the rank on the largest sample is open, as for `RankResult`: its bounds differ, or
            the lower one is an estimate, or a larger rank is proved on another sample.
        clear: whether the count on the largest sample has a gap of 1e3, or its proof did not grow with the
            precision. Smooth functions have such gaps by chance, too.
        saturated: whether the rank stopped growing with the number of samples, or cannot grow. If False,
            dim T may be larger.
        reason: why the search ended, as text.
        samples: the shortest prefix of the sampler's sequence that attains the rank.
        result: the `RankResult` on these samples.
        trace: the sizes that were tried and the rank at each, (n, rank).
        sampler: the source of the samples, as text.
        n_params: P.
    """

    rank: int
    lower: int
    upper: int
    upper_from: str
    ambiguous: bool
    clear: bool
    saturated: bool
    reason: str
    samples: Tensor
    result: RankResult
    trace: list[tuple[int, int]]
    sampler: str
    n_params: int

    _order = ("lower <= rank <= upper <= n_params",)
    _long = ("samples",)
    _also = ("exact", "n_samples")

    @property
    def exact(self) -> bool:
        """Whether the bounds are equal, so that the rank is proved (if a bound from the caller is right)."""
        return self.lower == self.upper

    @property
    def n_samples(self) -> int:
        """The number of points that attain the rank; each gives one observation per output."""
        return len(self.samples)

    def __str__(self) -> str:
        """One line: the rank, how it is known, and on what samples."""
        if self.exact:
            known = "proved" + (", given the upper bound" if self.upper_from == "caller" else "")
        elif self.result.certificate is not None:
            known = f"proved between {self.lower} and {self.upper}"
        else:
            known = f"counted by {self.result.method}, not proved"
        line = (
            f"model rank {'' if self.saturated else '>= '}{self.rank} of "
            f"{counted(self.n_params, 'parameter')} ({known}), attained on "
            f"{counted(self.n_samples, 'sample')} ({self.sampler})"
        )
        if self.ambiguous:
            line += (
                "; AMBIGUOUS (clear gap): no upper bound meets it, or the error is estimated"
                if self.clear
                else "; AMBIGUOUS (no clear gap): singular values without a gap, or fewer than are proved"
            )
        return line if self.saturated else f"{line}; NOT SATURATED: {self.reason}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The axes of a figure of the rank against the number of samples, between its bounds.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).
        """
        from llr.ranks import figure  # noqa: PLC0415 - matplotlib is optional

        return figure.growth(self, ax=ax)

    def _emptied(self, name: str) -> Tensor:
        return getattr(self, name).new_empty((self.n_samples, 0))

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield self.result.n_params == self.n_params, "as many parameters in result as n_params"
        yield (
            int(self.result.rank) >= self.rank or self.lower == self.rank,
            "the rank of result to be that of the model",
        )
        yield all(rank <= self.upper for _, rank in self.trace), "no rank in trace above upper"
        yield self.saturated or not self.exact, "saturated to be true where lower is upper"
        yield self.exact <= (not self.ambiguous), "ambiguous to be false where lower is upper"

    def _verdict(self) -> Verdict:
        if not self.saturated:
            return "not saturated", "doubt"
        if self.ambiguous:
            return "ambiguous", "doubt"
        return ("proved" if self.exact else "counted"), "good"

    def _facts(self) -> dict[str, object]:
        return {
            "rank": self.rank,
            "at least": f"{self.lower}, proved" if self.lower else "nothing proved",
            "at most": f"{self.upper} ({self.upper_from})",
            "parameters": self.n_params,
            "samples": self.n_samples,
            "sampler": self.sampler,
            "search": self.reason,
        }

    def _pictures(self) -> Sequence[Spectrum]:
        return self.result._pictures()


@takes(
    model=a_model,
    sampler=a_sampler,
    sample_shape=sizes,
    method=word,
    progress=a_progress,
    seed=a_seed,
)
@outside_inference_mode
@followed
def model_rank(
    model: Model,
    *,
    sampler: Sampler = "normal",
    params: Selection = None,
    upper: int | None = None,
    certify: Certify = "auto",
    margin: int = 8,
    max_samples: int | None = None,
    seed: int = 0,
    sample_shape: Sequence[int] | None = None,
    method: str = "auto",
    progress: Progress | bool | None = None,
) -> ModelRank:
    """The rank of a model at its parameters, dim T: how many scalar observations determine its function.

    The number of samples is doubled until there are more than `margin` more observations than the rank and
    the next doubling does not raise the rank; or until the rank cannot grow. First singular values are
    counted. If a proof at the size found takes moderate time, ranks are proved from there on, which also
    finds directions below the rounding error of floating point. A proved rank on any sample is a proved lower
    bound of dim T.

    It is proved that dim T is not larger only if the rank equals the number of parameters, the closed form
    that :mod:`llr.theory` has for the model, the caller's `upper`, or the rank on a whole finite domain.
    Otherwise the only evidence is that the rank stopped growing. This can mislead if samples are bad:
    repeated points, inputs in a subspace, x and -x for a model of odd functions. T is then the tangent space
    of the function on the points that the sampler reaches. In ReLU networks some directions change outputs
    only in small linear regions. Omit points exactly on a kink: the slope that torch takes there can add a
    false direction.

    Args:
        model: a module, or a callable f(params, x).
        sampler: "normal" (standard) or "uniform" (on [-1, 1]); a box (low, high) of numbers or tensors; a
            tensor (N, ...), whose points are taken in random order, each once; or a callable f(n, generator)
            that returns n new points at each call. With "normal" and "uniform", a model that begins with an
            embedding gets random tokens, and a ``MatrixFactorization`` gets all index pairs.
        params: columns, or values of the parameters, as for :func:`llr.jacobian`; one point.
        upper: an upper bound of dim T known from theory; trusted.
        certify: "auto" proves ranks if N P (200 + min(N, P)) <= 1e8 for N rows and P columns, and
            :func:`llr.certify` accepts the model; True proves them at any cost, False never.
        margin: how many more observations than the rank are needed, from 1 to a million.
        max_samples: the most points to draw; default: enough for 16 (P + margin) observations.
        seed: of the samples, which depend only on seed and sampler. The global generator is not used.
        sample_shape: shape of one sample. It is needed for all models except MLPs and ``nn.Sequential``
            that begin with a linear layer.
        method: how singular values are found, as for :func:`llr.rank`; "certified" is ``certify=True``.
        progress: False for none; or a function, called as ``progress(n, rank, upper)`` after each size.
            Default: after two seconds a line on a terminal or in a notebook.

    Returns:
        A `ModelRank`. If the search ran out of samples, it has ``saturated=False`` and a reason.

    Raises:
        TypeError: a sampler of another kind.
        ValueError: a malformed sampler or sample, a shape that cannot be determined, an `upper` that is
            disproved, a model that cannot be certified with ``certify=True``; and everything that
            :func:`llr.rank` refuses.

    Source: Zhang et al., "Optimistic Estimate Uncovers the Potential of Nonlinear Models" (2023).

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> llr.model_rank(model).rank  # 1-4-1 with all biases: every parameter counts
        13
        >>> _ = torch.nn.init.zeros_(model[2].weight)
        >>> llr.model_rank(model).rank  # four functions and the constant
        5
    """
    check_int("margin", margin, 1, _MOST_MARGIN)
    check_int("seed", seed, 0)
    for name, bound in (("max_samples", max_samples), ("upper", upper)):
        if bound is not None:
            check_int(name, bound, 1 if name == "max_samples" else 0)
    if isinstance(model, nn.Module):
        columns = columns_of_module(type(model).__name__, dict(model.named_parameters()), params)
    else:
        columns = columns_of_callable(params)
    some = next(iter(columns.values.values()))
    source = read_sampler(
        sampler, model, shape=sample_shape, dtype=some.dtype, device=some.device, seed=seed
    )
    question = Question(model, params, certify, method)
    look = Look.at(question, source.first(1), upper=upper)
    most = max_samples or math.ceil(_PATIENCE * (look.n_params + margin) / look.outputs)
    search = Search(look, source, most, margin, progress if callable(progress) else None)
    start = math.ceil(2 * margin / look.outputs)
    found = search.grow(start, prove=False, give_way=True)
    trace, proof = found.trials, None
    if look.provable(found.first):
        proof = search.grow(found.first, prove=True)
        if not found.complete and not proof.complete:  # neither search was completed
            found = search.grow(start, prove=False)
            trace = found.trials
        if proof.complete or proof.best > found.best:
            trace = [trial for trial in trace if trial.n < proof.trials[0].n] + proof.trials
            found = proof
    n, result = search.shortest(found)
    lower = max(proved(result), proof.proved if proof else 0)
    if not result.certificate and look.provable(n):
        there = look.rank(source.first(n), prove=True)
        lower = max(lower, proved(there))
        result = there if proved(there) >= found.best else result
    dimension = max(found.best, lower)
    whole = found.trials[-1].result if found.trials[-1].n == source.limit else None
    limit, limit_from = look.upper, look.upper_from
    if whole is not None and int(whole.upper) < limit:
        limit, limit_from = int(whole.upper), "domain"
    last = found.trials[-1].result
    return ModelRank(
        rank=dimension,
        lower=lower,
        upper=limit,
        upper_from=limit_from,
        ambiguous=lower < limit and (last.open or lower > found.best),
        clear=not unclear(last) and lower <= found.best,
        saturated=lower == limit or (found.saturated and lower <= found.best),
        reason=found.reason,
        samples=source.first(n).clone(),
        result=result,
        trace=[(trial.n, trial.rank) for trial in trace],
        sampler=source.description,
        n_params=look.n_params,
    )
