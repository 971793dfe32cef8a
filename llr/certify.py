"""A proof that a Jacobian has at least so much rank, and its independent check.

The rank of a matrix is at least r if some r rows and r columns of it have a determinant that is not zero. A
certificate names such rows and columns; that the determinant is not zero is shown in ball arithmetic, in
which every rounding error is accounted for, or in rational numbers. The statement is about the exact
function that the model's layers define, at the exact binary numbers in its parameters and samples.

The upper bound has another origin: the shape of the matrix, a closed form of :mod:`llr.theory`, a bound that
the caller brings, or, for models with rational derivatives, the exact rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flint import arb, arb_mat
from torch import Tensor

from llr.accept import a_model, takes, valued
from llr.balls import precision
from llr.certificate import (
    HIGHEST_BITS,
    LOWEST_BITS,
    Certificate,
    at_most,
    check_int,
    decimal_below,
)
from llr.elimination import (
    Pivots,
    Scaled,
    exact_rank,
    find_pivots,
    integer_rows,
    prove,
    rational_pivots,
    remainder,
)
from llr.exact import Network, read_network
from llr.parameters import Selection
from llr.problem import Model
from llr.roles import a_function
from llr.theory.upper import upper_bound

__all__ = ["Certificate", "Verdict", "certify", "verify"]

# Float64 parameters that differ by one unit in the last place differ by 2^-52; where such a difference shows
# only to third order it is 2^-156. A rank that has not grown at this precision is not limited by it.
_ENOUGH_BITS = 256


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found; true or false as itself."""

    valid: bool
    reason: str

    def __bool__(self) -> bool:
        return self.valid


Progress = Callable[[int | None, int, int], None]


@takes(model=a_model, x=valued, progress=a_function)
def certify(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    upper: int | None = None,
    bits: int = 64,
    max_bits: int = 4096,
    progress: Progress | None = None,
) -> Certificate:
    """A proved lower bound of the rank of the model's Jacobian on these samples.

    At each precision, elimination finds as many rows and columns as can be told from noise, and one
    determinant in balls proves them. The precision doubles until the bound meets the upper bound or no longer
    grows. For models of ReLU, polynomials and linear layers the rank is found exactly, in rational numbers.

    Args:
        model: an MLP, or what else :func:`llr.exact.jacobian` reads.
        x: (n, ...) samples.
        params: columns, or values of the parameters, as for :func:`llr.jacobian`; one point.
        upper: an upper bound known otherwise, to stop there. It is believed, not proved. The bound is never
            more than the shorter side of the matrix, nor than a closed form that :mod:`llr.theory` has.
        bits: the first precision.
        max_bits: the last.
        progress: called as ``progress(bits, proved, upper)`` now and then; bits is None in rationals.

    Returns:
        A `Certificate`. At the precision cap, or where the rank stops growing below the upper bound, its
        ``rank`` is less than its ``upper`` and ``stopped`` says why.

    Raises:
        ValueError: `upper` is disproved; precisions out of range; what :func:`llr.exact.jacobian` refuses.

    Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE
    Transactions on Computers 66 (2017), for the arithmetic.

    Example:
        >>> import torch
        >>> from llr.certify import certify, verify
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
        >>> x = torch.linspace(-1, 1, 14)[:, None]
        >>> certificate = certify(model, x)
        >>> certificate.rank, certificate.exact, bool(verify(certificate, model, x))
        (7, True, True)
    """
    check_int("bits", bits, LOWEST_BITS, HIGHEST_BITS)
    check_int("max_bits", max_bits, bits, HIGHEST_BITS)
    if upper is not None:
        check_int("upper", upper, 0)
    network = read_network(model, x, params)
    goal, upper_from = _goal(network, params, upper)
    report = progress or (lambda *_: None)
    if network.rational:
        report(None, 0, goal)
        rows, columns, exponent = rational_pivots(network.rational_jacobian())
        _check_claim(len(rows), upper)
        report(None, len(rows), len(rows))
        return _certificate(
            network,
            rank=len(rows),
            upper=len(rows),
            upper_from="exact rank",
            rows=tuple(rows),
            columns=tuple(columns),
            bound=decimal_below(arb((1, exponent))),
            arithmetic="rationals",
            bits=None,
            stopped="upper bound met",
        )
    best, left = _Proof(bits), None
    while True:
        report(bits, best.rank, goal)
        A = Scaled(network.jacobian(bits), bits)
        pivots = find_pivots(A, lambda: report(bits, best.rank, goal))  # noqa: B023 - called at once
        proved, bound = prove(A, pivots)
        _check_claim(proved, upper)
        if upper_from == "theory" and proved > goal:
            raise RuntimeError(
                f"the rank is at least {proved}, which is certain, but the closed form says at most {goal}: "
                "this is a mistake in llr, please report it with the model; params='*' does without"
            )
        grown = proved > best.rank
        if grown:
            best = _Proof(bits, pivots[:proved], bound)
        report(bits, best.rank, goal)
        if best.rank >= goal:
            stopped = "upper bound met"
            break
        left_before, left = left, remainder(A, best.pivots)
        if left is not None and not grown and _settled(left, left_before, bits):
            stopped = "stopped growing"
            break
        if bits >= max_bits:
            stopped = "precision cap"
            break
        bits = min(2 * bits, max_bits)
    return _certificate(
        network,
        rank=best.rank,
        upper=goal,
        upper_from=upper_from,
        rows=tuple(sorted(row for row, _ in best.pivots)),
        columns=tuple(sorted(column for _, column in best.pivots)),
        bound=decimal_below(best.bound),
        arithmetic="balls",
        bits=best.bits,
        stopped=stopped,
    )


def _goal(network: Network, params: Selection, upper: int | None) -> tuple[int, str]:
    """The smallest upper bound, and which it is."""
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
    """Whether what remains shrank with the precision as zeros do."""
    if left == 0:
        return True
    return before is not None and bits >= _ENOUGH_BITS and left <= before * arb((1, -bits // 4))


def _check_claim(rank: int, upper: int | None) -> None:
    if upper is not None and rank > upper:
        raise ValueError(
            f"upper={upper} is disproved: on these samples the rank is at least {rank}, which is certain"
        )


def _certificate(network: Network, **found: Any) -> Certificate:
    try:
        own = version("llr")
    except PackageNotFoundError:  # a checkout that was never installed
        own = "unknown"
    return Certificate(
        **found,
        structure=network.structure,
        model=network.model_digest,
        samples=network.samples_digest,
        n_rows=network.n_rows,
        n_params=network.n_params,
        version=own,
    )


@takes(model=a_model, x=valued)
def verify(
    certificate: Certificate, model: Model, x: Tensor, *, params: Selection = None
) -> Verdict:
    """Whether a certificate is true of this model and these samples.

    The check shares only the evaluation of the Jacobian with what made the certificate. The named rows are
    evaluated at twice the certificate's precision, and more if that does not decide; that the submatrix A is
    nonsingular follows from an approximate inverse X with ||I - X A|| < 1 in balls; the bound of the
    determinant is compared with a determinant at that precision. An exact rank is computed again modulo other
    primes. An upper bound from a caller cannot be checked; the reason says so.

    Args:
        certificate: the claim.
        model: the model that it is said to be of.
        x: the samples.
        params: as for :func:`certify`.

    Returns:
        A `Verdict`: true or false, with a reason that names what differs.

    Raises:
        TypeError: `certificate` is no `Certificate`.
        ValueError: what :func:`llr.exact.jacobian` refuses of the model and the samples.

    Source: S. M. Rump, "Verification methods: rigorous results using floating-point arithmetic", Acta
    Numerica 19 (2010), section 10, for the inverse.

    Example:
        >>> import torch
        >>> from llr.certify import certify, verify
        >>> model, x = torch.nn.Linear(2, 1), torch.eye(2)
        >>> certificate = certify(model, x)
        >>> verify(certificate, model, x + 1).reason
        'the samples differ from those of the certificate'
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"certificate is {type(certificate).__name__}; expected a Certificate (Certificate.load)"
        )
    network = read_network(model, x, params)
    reason = _difference(certificate, network) or _false_upper(certificate, network, params)
    if reason:
        return Verdict(False, reason)
    if reason := _unproved(certificate, network):
        return Verdict(False, reason)
    above = "believed as the caller gave it" if certificate.upper_from == "caller" else "checked"
    return Verdict(
        True,
        f"rank >= {certificate.rank} is proved again; the upper bound {certificate.upper} is {above}",
    )


def _difference(certificate: Certificate, network: Network) -> str:
    """What shows without evaluating anything that the certificate is of something else."""
    if not certificate.intact:
        return "the checksum does not fit the other fields: the certificate was altered"
    if certificate.structure != network.structure:
        return f"the certificate is of {certificate.structure}, the model is {network.structure}"
    if certificate.model != network.model_digest:
        return "the parameters, or the choice of columns, differ from those of the certificate"
    if certificate.samples != network.samples_digest:
        return "the samples differ from those of the certificate"
    for name in ("n_rows", "n_params"):
        if getattr(certificate, name) != getattr(network, name):
            return f"{name} is {getattr(network, name)}, not {getattr(certificate, name)}"
    if (certificate.arithmetic == "rationals") != network.rational:
        return f"a {network.structure} network is not certified in {certificate.arithmetic}"
    return ""


def _false_upper(certificate: Certificate, network: Network, params: Selection) -> str:
    side = min(network.n_rows, network.n_params)
    if certificate.upper_from == "shape" and certificate.upper != side:
        return f"upper is {certificate.upper}; the shape of the Jacobian makes it {side}"
    if certificate.upper_from == "theory":
        closed = upper_bound(network.problem, params)
        if closed is None or certificate.upper != closed.upper:
            return f"upper is {certificate.upper}; the closed form is {closed and closed.upper}"
    if certificate.upper_from == "exact rank":
        # Other primes than those that made the certificate.
        rank, _ = exact_rank(integer_rows(network.rational_jacobian())[0], below=2**61)
        if rank != certificate.upper:
            return f"upper is {certificate.upper}; the exact rank is {rank}"
    return ""


def _unproved(certificate: Certificate, network: Network) -> str:
    """Why the submatrix is not shown to be nonsingular with such a determinant; empty if it is."""
    everything = range(certificate.rank)
    first = 2 * (certificate.bits or max(64, certificate.rank))
    for bits in (first, 2 * first, 4 * first):
        with precision(bits):
            if network.rational:
                rows = arb_mat(network.rational_jacobian(certificate.rows))
            else:
                rows = network.jacobian(bits, certificate.rows)
            A = Scaled(_columns(rows, certificate.columns), bits)
            det = A.determinant(everything, everything)
            if not det.is_finite():  # the balls are too wide to say anything
                continue
            if not at_most(certificate.bound, abs(det).upper()):
                return f"bound is {certificate.bound}, but the determinant is {det.str(10)}"
            if _nonsingular(A.matrix(everything, everything)) and at_most(
                certificate.bound, det.abs_lower()
            ):
                return ""
    return f"these rows and columns could not be shown to be independent at {4 * first} bits"


def _columns(M: arb_mat, columns: Sequence[int]) -> arb_mat:
    return arb_mat(M.nrows(), len(columns), [row[j] for row in M.tolist() for j in columns])


def _nonsingular(A: arb_mat) -> bool:
    """Whether X A is near 1 for some X, so that every matrix in the balls of A is nonsingular."""
    n = A.nrows()
    one = arb_mat(n, n, [int(i == j) for i in range(n) for j in range(n)])
    try:
        X = A.mid().solve(one, algorithm="approx").mid()
    except ZeroDivisionError:
        return False
    defect = (one - X * A).tolist()
    return all(sum((abs(e) for e in row), arb(0)) < 1 for row in defect)
