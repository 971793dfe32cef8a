"""A dimension by theory: its bounds, their source, and the terms of which they are sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llr.results import Record
from llr.results.html import Table, Verdict
from llr.results.phrases import counted

Status = Literal["exact", "almost everywhere", "bounds"]


@dataclass(frozen=True)
class Term:
    """A summand of a dimension, with its description."""

    dimension: int
    text: str


@dataclass(frozen=True, repr=False)
class Dimension(Record):
    """A dimension that follows from the structure and the exact parameters of a model.

    Attributes:
        what: the quantity, such as "dim T" or "model rank".
        lower: a lower bound.
        upper: an upper bound.
        status: "exact" if the bounds are proved and equal; "almost everywhere" if the upper bound is the
            value for almost all parameters, but perhaps not for these (``lower`` is then the proved lower
            bound); "bounds" otherwise.
        terms: the summands of ``upper``, and remarks of dimension 0.
        statement: where docs/theory.md states it, such as "Theorem 2.2".
        n_params: P, the number of parameters.
    """

    what: str
    lower: int
    upper: int
    status: Status
    terms: tuple[Term, ...]
    statement: str
    n_params: int

    _order = ("lower <= upper",)

    @classmethod
    def between(
        cls, what: str, lower: int, terms: Sequence[Term], statement: str, n_params: int
    ) -> Dimension:
        """A dimension from `lower` to the sum of the terms: exact if these are equal, bounds otherwise."""
        upper = sum(t.dimension for t in terms)
        status: Status = "exact" if lower == upper else "bounds"
        return cls(what, lower, upper, status, tuple(terms), statement, n_params)

    @property
    def exact(self) -> bool:
        """Whether the number is proved."""
        return self.status == "exact"

    def __int__(self) -> int:
        if not self.exact:
            raise ValueError(
                f"{self.what} is between {self.lower} and {self.upper} ({self.status}), no single number; "
                "read .lower and .upper"
            )
        return self.upper

    def __str__(self) -> str:
        """The value and its terms, one per line."""
        proved, statement = f"{self.lower} to {self.upper}", self.statement
        if self.exact:
            proved = str(self.upper)
        elif self.status == "almost everywhere":
            proved = str(self.upper)
            statement += f"; for almost all parameters, at least {self.lower} for all"
        head = f"{self.what} = {proved} of {counted(self.n_params, 'parameter')} ({statement})"
        return "\n".join([head, *(f"  {t.dimension:+5d}  {t.text}" for t in self.terms)])

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield self.status != "exact" or self.lower == self.upper, "equal bounds for status exact"
        yield sum(t.dimension for t in self.terms) == self.upper, "terms with the sum upper"

    def _verdict(self) -> Verdict:
        return self.status, "good" if self.exact else "doubt"

    def _table(self) -> Table:
        return ("summands", ""), [(term.text, term.dimension) for term in self.terms]
