"""The results of :func:`llr.info` and :func:`llr.selftest`."""

from __future__ import annotations

from dataclasses import dataclass

from llr.results import Record
from llr.results.html import Table, Verdict


@dataclass(frozen=True, repr=False)
class Info(Record):
    """The facts of :func:`llr.info`; prints as a table."""

    facts: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.facts), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.facts.items())

    def __repr__(self) -> str:
        return ", ".join(
            f"{n} {v}" for n, v in self.facts.items() if n in ("llr", "torch", "backend")
        )

    def _facts(self) -> dict[str, object]:
        return dict(self.facts)


@dataclass(frozen=True)
class Check:
    """One comparison: the largest error relative to the largest entry, and the allowed error."""

    name: str
    error: float
    allowed: float
    device: str = "cpu"
    note: str = ""
    """A problem other than an error of numbers; empty if there is none."""

    @property
    def ok(self) -> bool:
        """Whether the error is allowed; False for NaN."""
        return self.error <= self.allowed

    @property
    def verdict(self) -> str:
        """The result as text, with any problem other than an error of numbers."""
        return ("ok" if self.ok else "WRONG") + (f": {self.note}" if self.note else "")


@dataclass(frozen=True, repr=False)
class SelfTest(Record):
    """The outcome of :func:`llr.selftest`; prints as a table, ``ok`` if everything agreed."""

    checks: tuple[Check, ...]
    backend: str

    _also = ("ok",)

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        place = max((len(check.device) for check in self.checks), default=0)
        lines = [
            f"{check.name:<{width}}  {check.device:<{place}}  {check.error:8.1e} "
            f"(allowed {check.allowed:.0e})  {check.verdict}"
            for check in self.checks
        ]
        return "\n".join([f"backend: {self.backend}", *lines, self._summary()])

    def _summary(self) -> str:
        failed = sum(not check.ok for check in self.checks)
        return "all agree" if failed == 0 else f"{failed} of {len(self.checks)} are WRONG"

    def __repr__(self) -> str:
        return f"self-test of {self.backend}: {self._summary()}"

    def _verdict(self) -> Verdict:
        return self._summary(), "good" if self.ok else "bad"

    def _table(self) -> Table:
        rows = [(c.name, c.device, c.error, c.allowed, c.verdict) for c in self.checks]
        return ("operator", "device", "error", "allowed", ""), rows
