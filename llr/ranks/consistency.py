"""Checks that the fields of a rank fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from llr.linalg.spectrum import PROVED, is_open

if TYPE_CHECKING:
    from llr.ranks.result import RankResult


def check_shapes(found: RankResult) -> None:
    """Refuse fields whose shapes or types do not fit each other, and ranks out of range.

    Raises:
        ValueError: names the field.
    """
    shape = torch.as_tensor(found.rank).shape
    for name in ("tol", "gap", "ambiguous", "lower", "upper"):
        if torch.as_tensor(getattr(found, name)).shape != shape:
            raise ValueError(f"{name!r} of RankResult has not the shape of rank, {tuple(shape)}")
    short = min(found.n_rows, found.n_params)
    for name in ("rank", "lower", "upper"):
        value = torch.as_tensor(getattr(found, name))
        whole = not value.is_floating_point() and value.dtype != torch.bool
        if not whole or bool(((value < 0) | (value > short)).any()):
            raise ValueError(f"{name!r} of RankResult is no rank; expected 0 to {short}")
    if torch.as_tensor(found.ambiguous).dtype != torch.bool:
        raise ValueError("'ambiguous' of RankResult holds numbers; expected true or false")
    for name in found._long:
        value = getattr(found, name)
        if value is not None and value.shape not in ((*shape, short), (*shape, 0)):
            raise ValueError(
                f"{name!r} of RankResult has shape {tuple(value.shape)}; expected {(*shape, short)}"
            )


def conditions(found: RankResult) -> Iterator[tuple[bool, str]]:
    """Whether the bounds, the count and the proof fit each other: conditions, and what is expected."""
    rank, lower, upper = (torch.as_tensor(v) for v in (found.rank, found.lower, found.upper))
    by_error = found.counted_above == "error"
    yield by_error or found.counted_above == "tolerance", "counted_above error or tolerance"
    if by_error:
        fits = bool(((lower == rank) & (rank <= upper)).all())
        yield fits, "lower, which is the rank, to be at most upper"
        ambiguous = is_open(lower, upper, found.lower_from)
        yield (
            torch.equal(ambiguous, torch.as_tensor(found.ambiguous)),
            "ambiguous to fit the bounds",
        )
    elif found.lower_from in PROVED:
        yield bool((lower <= upper).all()), "lower to be at most upper"
    for name in found._long:
        value = getattr(found, name)
        yield value is None or not bool(value.isnan().any()), f"no NaN in {name}"
    certified = found.method == "certified"
    yield (
        certified == (found.certificate is not None),
        "a certificate for certified, and only then",
    )
    if found.certificate is not None:
        bounds = found.certificate.rank, found.certificate.n_rows, found.certificate.n_params
        fits = bounds == (found.rank, found.n_rows, found.n_params)
        yield fits, "the rank and the size of the matrix of the certificate"
        return
    counted = "spectrum" if found.equilibrated is None else "equilibrated"
    values = getattr(found, counted)
    # Values in float32 have been rounded, and a value within its rounding of the error does not count.
    if found.kept(counted) and (values.dtype == torch.float64 or not by_error):
        above = (values.double() > torch.as_tensor(found.tol, dtype=torch.float64)[..., None]).sum(
            -1
        )
        above = above.minimum(upper) if by_error else above
        yield (
            torch.equal(above, rank),
            f"rank to be the number of values of {counted} above tol",
        )
