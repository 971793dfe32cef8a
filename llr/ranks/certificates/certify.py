"""Proves a lower bound of the rank of a Jacobian.

The rank of a matrix is at least r if some r rows and r columns of it have a determinant that is not zero. A
certificate names such rows and columns. It is proved in ball arithmetic, which bounds every rounding error,
or in rational numbers that the determinant is not zero. The statement is about the exact function that the
model's layers define, at the exact binary numbers in its parameters and samples.

The upper bound comes from elsewhere: the shape of the matrix, a closed form of :mod:`llr.theory`, a bound
that the caller gives, or, for models with rational derivatives, the exact rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flint import arb
from torch import Tensor

from llr.exact.network import Network, read_network
from llr.inputs.accept import a_model, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model
from llr.inputs.roles import a_progress, check_int
from llr.linalg.balls import HIGHEST_BITS as HIGHEST_BITS
from llr.linalg.balls import LOWEST_BITS as LOWEST_BITS
from llr.linalg.balls import MOST_BITS as MOST_BITS
from llr.linalg.balls import precision
from llr.linalg.deadline import TimeLimit, check_timeout, polls_call, time_limit
from llr.linalg.decimals import decimal_below
from llr.linalg.elimination import Pivots, Scaled, find_pivots, prove, rational_pivots, remainder
from llr.ranks.certificates.certificate import Certificate
from llr.ranks.certificates.verification import Verdict, verify
from llr.ranks.info import VERSION
from llr.results.progress import followed, step
from llr.theory.tangents.upper import upper_bound

__all__ = ["Certificate", "Verdict", "certify", "verify"]

# Float64 parameters that differ by one unit in the last place differ by 2^-52. If only the third order of
# this difference matters, it is 2^-156. A rank that does not grow at this precision is not limited by the
# precision.
_ENOUGH_BITS = 256
_FIRST_BITS = 64


Progress = Callable[[int | None, int, int], None]


@takes(model=a_model, x=valued, progress=a_progress)
@outside_inference_mode
@followed
def certify(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    upper: int | None = None,
    bits: int | None = None,
    max_bits: int = MOST_BITS,
    timeout: float | None = None,
    progress: Progress | bool | None = None,
) -> Certificate:
    """A proved lower bound of the rank of the model's Jacobian on these samples.

    At each precision, elimination finds as many independent rows and columns as rounding errors allow, and
    one determinant in balls proves them independent. The precision doubles until the lower bound reaches the
    upper bound or no longer grows. For models of ReLU, polynomials and linear layers the exact rank is
    computed in rational numbers.

    Args:
        model: an MLP, or another model that docs/certificates.md lists.
        x: (n, ...) samples.
        params: columns, or values of the parameters, as for :func:`llr.jacobian`; one point.
        upper: an upper bound from elsewhere, at which the search stops. It is trusted, not proved. The bound
            is never more than the shorter side of the matrix, nor than a closed form of :mod:`llr.theory`.
        bits: the first precision; None for 64, or `max_bits` if that is less.
        max_bits: the last precision, from 32 to 2^20.
        timeout: seconds after which the search ends with what is proved by then; None for no limit. Single
            steps take about half a second at most, and longer only if the numbers have very many digits.
        progress: False for none; or a function, called as ``progress(bits, proved, upper)`` from time to
            time, with bits None in rationals. Default: after two seconds a line on a terminal or in a
            notebook.

    Returns:
        A `Certificate`. If the search ends at the precision cap, at the time limit, or because the rank stops
        growing below the upper bound, its ``rank`` is less than its ``upper`` and ``stopped`` says why.

    Raises:
        ValueError: `upper` is disproved; precisions or `timeout` out of range; a model that
            docs/certificates.md does not list, and what :func:`llr.jacobian` refuses.
        TimeoutError: `timeout` was over before the model was read.

    Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE
    Transactions on Computers 66 (2017), for the arithmetic.

    Example:
        >>> import torch
        >>> from llr import certify, verify
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
        >>> x = torch.linspace(-1, 1, 14)[:, None]
        >>> certificate = certify(model, x)
        >>> certificate.rank, certificate.exact, bool(verify(certificate, model, x))
        (7, True, True)
    """
    if bits is not None:
        check_int("bits", bits, LOWEST_BITS, HIGHEST_BITS)
    check_int("max_bits", max_bits, bits or LOWEST_BITS, HIGHEST_BITS)
    if upper is not None:
        check_int("upper", upper, 0)
    check_timeout(timeout)
    with time_limit(timeout):
        try:
            network = read_network(model, x, params)
            goal, upper_from = _goal(network, params, upper)
        except TimeLimit:
            raise TimeoutError(
                f"timeout={timeout} seconds were over before the model was read; give more"
            ) from None

        line = "proving"

        def report(bits: int | None, proved: int, upper: int) -> None:
            nonlocal line
            if callable(progress):
                progress(bits, proved, upper)
            arithmetic = "in rationals" if bits is None else f"at {bits} bits"
            line = f"proving {arithmetic}: rank >= {proved} of at most {upper}"
            step(line)

        with polls_call(lambda: step(line)):
            if network.rational:
                return _in_rationals(network, goal, upper_from, upper, report)
            first = min(_FIRST_BITS, max_bits) if bits is None else bits
            return _in_balls(network, goal, upper_from, upper, first, max_bits, report)


def _in_rationals(
    network: Network, goal: int, upper_from: str, upper: int | None, report: Progress
) -> Certificate:
    report(None, 0, goal)
    rows: list[int] = []
    columns: list[int] = []
    exponent, stopped, limit = 0, "time limit", goal
    try:
        rows, columns, exponent = rational_pivots(network.rational_jacobian())
        stopped, limit, upper_from = "upper bound met", len(rows), "exact rank"
    except TimeLimit:
        if not limit:
            stopped = "upper bound met"
    _check_claim(len(rows), upper)
    report(None, len(rows), limit)
    return _certificate(
        network,
        rank=len(rows),
        upper=limit,
        upper_from=upper_from,
        rows=tuple(rows),
        columns=tuple(columns),
        bound=decimal_below(arb((1, exponent))),
        arithmetic="rationals",
        bits=None,
        stopped=stopped,
    )


def _in_balls(
    network: Network,
    goal: int,
    upper_from: str,
    upper: int | None,
    bits: int,
    max_bits: int,
    report: Progress,
) -> Certificate:
    best, left, stopped, count = _Proof(bits), None, "", -1
    while not stopped:
        report(bits, best.rank, goal)
        try:
            A = Scaled(network.jacobian(bits), bits)
            pivots = find_pivots(A, lambda: report(bits, best.rank, goal))  # noqa: B023 - called at once
            # While more precision finds more pivots, do not search for a proof of fewer pivots.
            last = len(pivots) <= count or bits >= max_bits
            count = len(pivots)
            proved, bound = prove(A, pivots, search=last)
            grown = proved > best.rank
            if grown:
                best = _Proof(bits, pivots[:proved], bound)
            left_before, left = left, None if best.rank >= goal else remainder(A, best.pivots)
        except TimeLimit:
            stopped = "time limit"
            grown = False
        _check_claim(best.rank, upper)
        if upper_from == "theory" and best.rank > goal:
            raise RuntimeError(
                f"the rank is at least {best.rank}, which is certain, but the closed form says at most "
                f"{goal}: this is a mistake in llr, please report it with the model; params='*' avoids it"
            )
        report(bits, best.rank, goal)
        if best.rank >= goal:
            stopped = "upper bound met"
        elif stopped:
            break
        elif left is not None and not grown and _settled(left, left_before, bits):
            stopped = "stopped growing"
        elif bits >= max_bits:
            stopped = "precision cap"
        else:
            bits = min(2 * bits, max_bits)
    return _certificate(
        network,
        rank=best.rank,
        upper=goal,
        upper_from=upper_from,
        rows=tuple(sorted(row for row, _ in best.pivots)),
        columns=tuple(sorted(column for _, column in best.pivots)),
        bound=decimal_below(_less(best.bound) if best.pivots else arb(1)),
        arithmetic="balls",
        bits=best.bits,
        stopped=stopped,
    )


def _goal(network: Network, params: Selection, upper: int | None) -> tuple[int, str]:
    """The smallest upper bound, and its source."""
    bounds = [(min(network.n_rows, network.n_params), "shape")]
    if not network.rational:
        closed = upper_bound(network.problem, params)
        bounds += [(closed.upper, "theory")] if closed else []
    bounds += [(upper, "caller")] if upper is not None else []
    return min(bounds, key=lambda bound: bound[0])


@dataclass(frozen=True)
class _Proof:
    bits: int
    pivots: Pivots = field(default_factory=list)
    bound: arb = field(default_factory=lambda: arb(1))

    @property
    def rank(self) -> int:
        return len(self.pivots)


def _settled(left: arb, before: arb | None, bits: int) -> bool:
    """Whether the remaining entries shrank with the precision as those of a zero matrix do."""
    if left == 0:
        return True
    if before is None or bits < _ENOUGH_BITS:
        return False
    with precision(bits):
        return bool(left <= before * arb((1, -bits // 4)))


def _less(bound: arb) -> arb:
    """A slightly smaller bound, since a check at another precision has another ball around the number."""
    with precision(_ENOUGH_BITS):
        return (bound * (1 - arb((1, -36)))).lower()


def _check_claim(rank: int, upper: int | None) -> None:
    if upper is not None and rank > upper:
        raise ValueError(
            f"upper={upper} is disproved: on these samples the rank is at least {rank}, which is certain"
        )


def _certificate(network: Network, **found: Any) -> Certificate:
    return Certificate(
        **found,
        structure=network.structure,
        model=network.model_digest,
        samples=network.samples_digest,
        n_rows=network.n_rows,
        n_params=network.n_params,
        version=VERSION,
    )
