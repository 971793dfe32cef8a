"""The independent check of a certificate; see :mod:`llr.certify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from flint import arb, arb_mat
from torch import Tensor

from llr.exact.network import Network, read_network
from llr.inputs.accept import a_model, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model
from llr.inputs.roles import a_progress, check_int
from llr.linalg.balls import HIGHEST_BITS, LOWEST_BITS, MOST_BITS, Array, precision
from llr.linalg.block_inverse import checked_inverse, largest_piece
from llr.linalg.deadline import TimeLimit, check_timeout, polls_call, time_limit
from llr.linalg.decimals import at_most
from llr.linalg.elimination import Scaled, find_pivots, prove
from llr.linalg.integers import exact_rank, integer_rows, rank_at_least
from llr.ranks.certificates.certificate import Certificate
from llr.results import Record, html
from llr.results.progress import followed, nothing, step
from llr.theory.tangents.upper import upper_bound

# The precision at which the check begins.
_FIRST_BITS = 128


@dataclass(frozen=True, repr=False)
class Verdict(Record):
    """The result of :func:`verify`, usable as a truth value."""

    valid: bool
    reason: str
    checked: bool = True
    """False if `timeout` or `max_bits` ended the check, which then has no result."""

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield self.checked or not self.valid, "valid to be false without a check"
        yield self.checked != self.reason.startswith("not checked"), "a reason that fits checked"
        yield self.valid == self.reason.startswith("rank >= "), "a reason that fits valid"

    def __bool__(self) -> bool:
        return self.valid

    def __str__(self) -> str:
        """One line: the verdict and why."""
        return f"{self._verdict()[0]}: {self.reason}"

    def _verdict(self) -> html.Verdict:
        if not self.checked:
            return "not checked", "doubt"
        return ("holds", "good") if self.valid else ("does not hold", "bad")


@takes(model=a_model, x=valued, progress=a_progress)
@outside_inference_mode
@followed
def verify(
    certificate: Certificate,
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    max_bits: int = MOST_BITS,
    timeout: float | None = None,
    progress: Callable[[int], object] | bool | None = None,
) -> Verdict:
    """Whether a certificate is true of this model and these samples.

    The check shares with :func:`certify` only the evaluation of the Jacobian and, for large matrices, the
    order of elimination. The named rows are evaluated at twice the certificate's precision, or at up to eight
    times if that does not decide. An approximate inverse X with ||I - X A|| < 1 in balls proves that the
    submatrix A is nonsingular; the bound of the determinant is compared with a determinant at the same
    precision. An exact rank is computed again modulo other primes. An upper bound from a caller is not part
    of the proof: it is refused if one elimination of the whole matrix, at the precision of the certificate,
    gives a larger rank. Otherwise it is trusted, and the reason says so.

    A certificate from an untrusted source costs at most the work of one from :func:`certify` with the same
    `max_bits`: a certificate that claims more precision is not checked.

    Args:
        certificate: the claim.
        model: the model of the claim.
        x: the samples of the claim.
        params: as for :func:`certify`.
        max_bits: the largest precision that the certificate may have, as for :func:`certify`.
        timeout: seconds after which the check ends without a result (`checked` is False); None for no limit.
        progress: False for none; or a function, called as ``progress(bits)`` before the rows are evaluated at
            a precision. Default: after two seconds a line on a terminal or in a notebook.

    Returns:
        A `Verdict`, true or false, with a reason that names any difference.

    Raises:
        TypeError: `certificate` is not a `Certificate`.
        ValueError: a model or samples that :func:`certify` refuses.

    Source: S. M. Rump, "Verification methods: rigorous results using floating-point arithmetic", Acta
    Numerica 19 (2010), section 10, for the inverse.

    Example:
        >>> import torch
        >>> from llr import certify, verify
        >>> model, x = torch.nn.Linear(2, 1), torch.eye(2)
        >>> certificate = certify(model, x)
        >>> verify(certificate, model, x + 1).reason
        'the samples differ from those of the certificate'
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"certificate is {type(certificate).__name__}; expected a Certificate (Certificate.load)"
        )
    check_int("max_bits", max_bits, LOWEST_BITS, HIGHEST_BITS)
    check_timeout(timeout)
    try:
        with time_limit(timeout):
            network = read_network(model, x, params)
            reason = _difference(certificate, network) or _false_upper(certificate, network, params)
            bits = certificate.bits or 0
            if not reason and bits > max_bits:
                return Verdict(
                    False,
                    f"not checked: bits is {bits}, more than max_bits={max_bits}; give max_bits={bits} if "
                    "the certificate was made like that",
                    checked=False,
                )
            tell = progress if callable(progress) else nothing
            with polls_call(lambda: step(f"checking {len(certificate.rows)} independent rows")):
                reason = reason or _unproved(certificate, network, tell)
            if not reason and certificate.upper_from == "caller":
                with polls_call(lambda: step(f"checking the upper bound {certificate.upper}")):
                    reason = _disproved(certificate, network)
    except TimeLimit:
        return Verdict(False, f"not checked: timeout={timeout} seconds were over", checked=False)
    if reason:
        return Verdict(False, reason)
    above = (
        "trusted as the caller gave it, and not disproved"
        if certificate.upper_from == "caller"
        else "checked"
    )
    return Verdict(
        True,
        f"rank >= {certificate.rank} is proved again; the upper bound {certificate.upper} is {above}",
    )


def _difference(certificate: Certificate, network: Network) -> str:
    """How the certificate differs from the model and samples, without evaluation; empty if it does not."""
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
        # Use other primes than `certify`.
        rank, _ = exact_rank(integer_rows(network.rational_jacobian())[0], below=2**61)
        if rank != certificate.upper:
            return f"upper is {certificate.upper}; the exact rank is {rank}"
    return ""


def _disproved(certificate: Certificate, network: Network) -> str:
    """Why a caller's upper bound is false, if one elimination shows it; empty otherwise."""
    if network.rational:
        least = rank_at_least(integer_rows(network.rational_jacobian())[0])
    else:
        bits = cast(int, certificate.bits)
        A = Scaled(network.jacobian(bits), bits)
        least = prove(A, find_pivots(A)[: certificate.upper + 1], search=False)[0]
    if least <= certificate.upper:
        return ""
    return f"upper is {certificate.upper}, from a caller; the rank is certainly at least {least}"


def _unproved(certificate: Certificate, network: Network, tell: Callable[[int], object]) -> str:
    """Why it is not proved that the submatrix is nonsingular with such a determinant; empty if it is."""
    most = 8 * max(certificate.bits or MOST_BITS // 2, _FIRST_BITS // 2)
    # Begin with the precision that a true certificate needs; a false one may claim any precision.
    bits = 2 * certificate.bits if certificate.bits and certificate.bits <= 1024 else _FIRST_BITS
    while True:
        tell(bits)
        with precision(bits):
            least = arb(0)
            if network.rational:
                exact = network.rational_jacobian(certificate.rows)
                rows = arb_mat(exact)
                # The determinant is a nonzero integer divided by these powers of two.
                least = arb((1, -sum(integer_rows(exact)[1])))
            else:
                rows = network.jacobian(bits, certificate.rows)
            A = Scaled(_columns(rows, certificate.columns), bits)
        at = _order(A)
        found = None if len(at[0]) < certificate.rank else A.determinant_bounds(*at)
        if found is not None:
            if not at_most(certificate.bound, found[1]):
                digits = found[1].str(10, radius=False)
                return f"bound is {certificate.bound}, but the determinant is at most {digits}"
            with precision(bits):
                shown = _nonsingular(A.block(*at), largest_piece(bits))
            if shown and any(at_most(certificate.bound, low) for low in (found[0], least)):
                return ""
        if bits >= most:
            return f"these rows and columns could not be shown to be independent at {bits} bits"
        bits = min(2 * bits, most)


def _order(A: Scaled) -> tuple[list[int], list[int]]:
    """The rows and columns in an order of elimination, as needed for large matrices."""
    n = len(A.entries)
    if n <= largest_piece(A.bits):
        return list(range(n)), list(range(n))
    pivots = find_pivots(A)
    return [row for row, _ in pivots], [column for _, column in pivots]


def _columns(M: arb_mat, columns: Sequence[int]) -> arb_mat:
    return arb_mat(M.nrows(), len(columns), [row[j] for row in M.tolist() for j in columns])


def _nonsingular(A: Array, piece: int) -> bool:
    """Whether an X with X A near the identity was found, so that every matrix in the balls is nonsingular."""
    return checked_inverse(A, piece) is not None
