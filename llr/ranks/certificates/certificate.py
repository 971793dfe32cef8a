"""The proof of a lower bound of a rank as a value: its fields, its JSON, and checks of its form."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llr.inputs.files.arrays import read_file, require_existing
from llr.inputs.files.writing import write_atomic
from llr.inputs.roles import check_int, shown
from llr.linalg.balls import HIGHEST_BITS, LOWEST_BITS
from llr.linalg.decimals import DECIMAL
from llr.results import Shown
from llr.results.html import Verdict
from llr.results.record import NotJSONError, read_object

FORMAT = "llr rank certificate 1"
_CHOICES = {
    "upper_from": ("shape", "theory", "caller", "exact rank"),
    "arithmetic": ("balls", "rationals"),
    "stopped": ("upper bound met", "stopped growing", "precision cap", "time limit"),
}
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, repr=False)
class Certificate(Shown):
    """Rows and columns of a Jacobian whose determinant is proved not to be zero.

    A value is always well formed; the constructor raises ValueError otherwise, naming the field.
    :func:`verify` checks whether the certificate is true of a model and samples.

    Attributes:
        rank: the proved lower bound r.
        upper: the upper bound.
        upper_from: "shape" for min(n_rows, n_params), "theory" for a closed form of dim T (docs/theory.md),
            "caller" for a bound that was passed to :func:`certify` and is not part of the proof, "exact
            rank" for a rank in rational arithmetic.
        rows: r row numbers, ascending. Rows are numbered sample by sample, within a sample output by output.
        columns: r column numbers, ascending.
        bound: a positive lower bound of the absolute value of the determinant, as decimal text.
        arithmetic: "balls" or "rationals".
        bits: the precision of the balls; None for rationals.
        stopped: why the search ended: "upper bound met", "stopped growing" (the rank did not grow when the
            precision doubled, while the remaining entries shrank towards zero: evidence, but no proof, that
            the rank is not larger), "precision cap" or "time limit".
        structure: the model's layers as text.
        model: SHA-256 of the layers, the parameters' exact values and names, and the choice of columns.
        samples: SHA-256 of the samples, which depends on their order.
        n_rows: number of rows of the Jacobian.
        n_params: number of its columns.
        version: of llr.
        checksum: SHA-256 of all other fields.
    """

    rank: int
    upper: int
    upper_from: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    bound: str
    arithmetic: str
    bits: int | None
    stopped: str
    structure: str
    model: str
    samples: str
    n_rows: int
    n_params: int
    version: str
    checksum: str = ""

    def __post_init__(self) -> None:
        for name, least in (("n_rows", 1), ("n_params", 1), ("rank", 0), ("upper", 0)):
            check_int(name, getattr(self, name), least)
        side = min(self.n_rows, self.n_params)
        if not self.rank <= self.upper <= side:
            raise ValueError(
                f"rank is {self.rank} and upper is {self.upper}; expected rank <= upper <= {side}, the "
                "shorter side"
            )
        for name, size in (("rows", self.n_rows), ("columns", self.n_params)):
            self._check_indices(name, size)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}; expected one of {', '.join(choices)}"
                )
        rational = self.arithmetic == "rationals"
        finished = self.upper_from == "exact rank" or self.stopped == "time limit"
        if rational != (self.bits is None) or (
            not finished if rational else self.upper_from == "exact rank"
        ):
            raise ValueError(
                f"bits is {shown(self.bits)} and upper_from is {self.upper_from!r} with arithmetic="
                f"{self.arithmetic!r}; expected None and 'exact rank' with rationals, and only there"
            )
        if self.bits is not None:
            check_int("bits", self.bits, LOWEST_BITS, HIGHEST_BITS)
        if (self.stopped == "upper bound met") != (self.rank == self.upper):
            raise ValueError(f"stopped is {self.stopped!r} at rank {self.rank} of {self.upper}")
        if not isinstance(self.bound, str) or not DECIMAL.fullmatch(self.bound):
            raise ValueError(
                f"bound is {shown(self.bound)}; expected a decimal such as '1.25e-300'"
            )
        if self.bound.startswith("0"):
            raise ValueError(f"bound is {self.bound!r}; expected a positive number")
        for name in ("structure", "version"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {shown(getattr(self, name))}; expected text")
        if not self.checksum:
            object.__setattr__(self, "checksum", self._digest())
        for name in ("model", "samples", "checksum"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _HEX.fullmatch(value):
                raise ValueError(f"{name} is {shown(value)}; expected 64 hexadecimal digits")

    def _check_indices(self, name: str, size: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, tuple) or any(type(i) is not int for i in value):
            raise ValueError(f"{name} is {shown(value)}; expected a tuple of integers")
        if list(value) != sorted(set(value)) or not all(0 <= i < size for i in value):
            raise ValueError(
                f"{name} must ascend within 0 to {size - 1}, each once; got {shown(value)}"
            )
        if len(value) != self.rank:
            raise ValueError(f"{name} has {len(value)} entries; expected rank = {self.rank}")

    def _digest(self) -> str:
        content = {k: v for k, v in self.to_dict().items() if k != "checksum"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def intact(self) -> bool:
        """Whether the checksum matches the other fields."""
        return self.checksum == self._digest()

    @property
    def exact(self) -> bool:
        """Whether lower and upper bound are equal; then they are the rank, if the upper bound is right."""
        return self.rank == self.upper

    @property
    def digest(self) -> str:
        """SHA-256 of the model and the samples."""
        return hashlib.sha256(f"{self.model} {self.samples}".encode()).hexdigest()

    def __str__(self) -> str:
        """One line: the rank, how it is proved, and its upper bound."""
        how = "rational arithmetic" if self.bits is None else f"balls of {self.bits} bits"
        relation = "=" if self.exact else ">="
        above = "" if self.exact else f", {self.stopped}"
        return (
            f"rank {relation} {self.rank} of the {self.n_rows} x {self.n_params} Jacobian of "
            f"{self.structure}: proved in {how}, |det| >= {self.bound}; upper bound {self.upper} "
            f"({self.upper_from}){above}"
        )

    def _verdict(self) -> Verdict:
        return ("exact", "good") if self.exact else (f"lower bound, {self.stopped}", "doubt")

    def _facts(self) -> dict[str, object]:
        hidden = ("rows", "columns", "stopped")
        return {k: v for k, v in super()._facts().items() if k not in hidden}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("rows", "columns")}
        return {"format": FORMAT, **asdict(self), **lists}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """The certificate that :meth:`to_dict` wrote.

        Raises:
            ValueError: fields are missing, unknown, of another type or out of range, or do not match the
                checksum; names the field.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(f"this is no certificate: expected the format {FORMAT!r}")
        names = {field.name for field in fields(cls)}
        given = set(content) - {"format"}
        if given != names:
            if names - given:
                raise ValueError(f"the field {min(names - given)!r} is missing")
            unknown = min(map(str, given - names))
            raise ValueError(f"the field {unknown!r} is unknown; expected those of {FORMAT!r}")
        values = dict(content)
        del values["format"]
        for name in ("rows", "columns"):
            if not isinstance(values[name], list):
                raise ValueError(f"{name} is {shown(values[name])}; expected a list of integers")
            values[name] = tuple(values[name])
        if not values["checksum"]:
            raise ValueError("checksum is empty; expected 64 hexadecimal digits")
        found = cls(**values)
        if not found.intact:
            raise ValueError("checksum does not fit the other fields: the certificate was altered")
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate as JSON, atomically.

        Raises:
            FileNotFoundError: the directory does not exist.
            OSError: the file cannot be written, or `path` is a device or a pipe.
        """
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate from a file that :meth:`save` wrote. Only data is read; nothing is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file cannot be read, or has no well-formed certificate; names the file and the
                field.
        """
        require_existing(Path(path))
        try:
            data = read_file(Path(path))
            try:
                found = read_object(data)
            except NotJSONError as error:
                raise ValueError("is no certificate: not JSON text") from error
            return cls.from_dict(found)
        except ValueError as error:
            raise ValueError(f"certificate {os.fspath(path)}: {error}") from error
