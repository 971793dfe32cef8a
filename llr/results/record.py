"""The base of all results: text, HTML, dictionaries, files and copies."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from llr.inputs.files.arrays import read_file, require_existing
from llr.inputs.files.writing import write_atomic
from llr.inputs.roles import shown
from llr.results import fields, html, rules

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = "llr result 1"
"""The format of files. The number grows when a change makes files unreadable for older versions."""


class Shown:
    """A result that prints as a line, and as a table in a notebook."""

    def __repr__(self) -> str:
        """The first line of the text."""
        return str(self).partition("\n")[0]

    def _repr_html_(self) -> str:
        """A table for notebooks: the text, the verdict, numbers and, where there is one, the spectrum."""
        return html.card(
            type(self).__name__,
            repr(self),
            self._verdict(),
            self._facts(),
            self._table(),
            self._pictures(),
        )

    def _verdict(self) -> html.Verdict | None:
        """The verdict, and whether it is good; None for a result without verdict."""
        return None

    def _facts(self) -> dict[str, object]:
        """The main values by name: by default the fields that are numbers or short texts."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if html.is_short(value)}

    def _table(self) -> html.Table | None:
        """The rows of a result that is a table; None for other results."""
        return None

    def _pictures(self) -> Sequence[html.Spectrum]:
        """Spectra to be drawn."""
        return ()


class Record(Shown):
    """A result that can be written as JSON and read back: a dataclass, whose fields are written.

    Class attributes of a result:

    * ``_long``: fields with long tensors, which ``to_dict()`` leaves out by default.
    * ``_also``: properties that ``to_dict()`` adds for its readers; ``from_dict`` checks them.
    * ``_keys``: field -> another name in ``to_dict()``.
    * ``_unstored``: fields that are not written, and get their default values when read.
    * ``_order``: orders of fields, such as "0 <= lower <= upper", which ``from_dict`` checks.
    * ``_signed``: fields of integers that may be negative. All others are counts or indices.
    """

    _long: tuple[str, ...] = ()
    _also: tuple[str, ...] = ()
    _keys: ClassVar[Mapping[str, str]] = {}
    _unstored: tuple[str, ...] = ()
    _order: tuple[str, ...] = ()
    _signed: tuple[str, ...] = ()

    @classmethod
    def stored(cls) -> list[str]:
        """The names of the fields that are written."""
        return [f.name for f in dataclasses.fields(cls) if f.name not in cls._unstored]  # type: ignore[arg-type]

    def to_dict(self, spectrum: bool = False) -> dict[str, Any]:
        """The fields as plain values for strict JSON: ``json.dumps(..., allow_nan=False)`` works.

        With ``spectrum=True``, :meth:`from_dict` makes a result of them whose fields are equal to the last
        bit. For results with tensors or networks ``==`` compares identity, and is False then.

        Tensors are written as nested lists, dtypes as names. Infinity is None, or "inf" for fields in which
        None has another meaning; NaN is "nan".

        Args:
            spectrum: whether to include spectra and other long tensors. If not, their keys are missing, and
                the result of :meth:`from_dict` has empty tensors in their place.
        """
        found = fields.hints(type(self))
        tensors: dict[str, dict[str, Any] | None] = {}
        content: dict[str, Any] = {}
        for name in self.stored():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                if name in self._long and not spectrum:
                    tensors[name] = fields.dtype_and_shape(self._emptied(name))
                    continue
                tensors[name] = fields.undetermined(value, self._dtype_of(name))
            content[self._keys.get(name, name)] = self._written(name, found[name], spectrum)
        for name in self._also:
            content[name] = fields.plain(getattr(self, name), found.get(name, Any), spectrum)
        extras = {name: extra for name, extra in tensors.items() if extra is not None}
        return {**content, "tensors": extras} if extras else content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The result that :meth:`to_dict` wrote, with its tensors on the CPU.

        Checked are the names and types of the fields, shapes of tensors, the order of bounds, that counts are
        not negative, and values that follow from other fields that were kept, such as the index of a Hessian
        from its eigenvalues. Nothing is computed again from models or samples, so that consistent fields may
        still be false. Only the proof of a certificate can be checked, by :func:`llr.verify`.

        Raises:
            ValueError: fields that are missing or unknown, of another type, or that contradict each other;
                names the field.
        """
        me = cls.__name__
        if not isinstance(content, Mapping):
            raise ValueError(f"{me} is {shown(content)}; expected its fields by name")
        keys = {name: cls._keys.get(name, name) for name in cls.stored()}
        extras = content.get("tensors", {})
        if not isinstance(extras, Mapping):
            raise ValueError(f"{me}: tensors is {shown(extras)}; expected fields by name")
        left_out = {n for n in cls._long if keys[n] not in content and n in extras}
        needed = [key for name, key in keys.items() if name not in left_out]
        fields.check_names(content, needed, [*keys.values(), *cls._also, "tensors"], me)
        fields.check_names(extras, [], list(keys), f"tensors of {me}")
        found = fields.hints(cls)
        values = {}
        for name, key in keys.items():
            where = f"{key!r} of {me}"
            if name in left_out:
                values[name] = fields.restored([], Tensor, where, extras[name])
            else:
                values[name] = cls._read(name, found[name], content, where)
        try:
            made = cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{me}: {error}") from error
        made._check(content)
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON, with its spectrum. A failure leaves no partial file.

        Args:
            path: a file in a directory that exists; a file that is there is replaced.

        Raises:
            FileNotFoundError: the directory does not exist.
            OSError: the file cannot be written, or `path` is a device or a pipe.
        """
        document = {"format": FORMAT, "type": type(self).__name__, **self.to_dict(spectrum=True)}
        write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The result in a file that :meth:`save` wrote. Reads numbers and text only, executes nothing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file cannot be read, is a directory, a device or a pipe, or holds no such result;
                names the file and the field.
        """
        require_existing(Path(path))
        try:
            content = read_object(read_file(Path(path)))
            kind = content.pop("format", None)
            if kind != FORMAT:
                raise ValueError(f"format is {shown(kind)}; expected {FORMAT!r}")
            name = content.pop("type", None)
            if name != cls.__name__:
                raise ValueError(f"type is {shown(name)}; expected {cls.__name__!r}")
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"result {os.fspath(path)}: {error}") from error

    def kept(self, name: str) -> bool:
        """Whether the result has this tensor; False if it was left out when the result was written."""
        value = getattr(self, name)
        return value is not None and bool(value.numel())

    def _require(self, name: str) -> None:
        """Refuse to draw a tensor of NaN, or one that was left out when the result was written.

        Raises:
            ValueError: names the tensor, and says which; how to keep it.
        """
        value = getattr(self, name)
        if value is not None and value.numel() and bool(value.isnan().all()):
            raise ValueError(
                f"the {name} of this {type(self).__name__} has NaN only, so there is nothing to draw"
            )
        if not self.kept(name):
            raise ValueError(
                f"the {name} of this {type(self).__name__} was not kept, so there is nothing to draw; write "
                "it with to_dict(spectrum=True) or save(path)"
            )

    def _emptied(self, name: str) -> Tensor:
        """The placeholder of a long tensor that is left out: its last dimension has size 0."""
        value: Tensor = getattr(self, name)
        return value.new_empty((*value.shape[:-1], 0))

    def _dtype_of(self, name: str) -> torch.dtype | None:  # noqa: ARG002 - results override it
        """The dtype that a field's tensor has by default; None for the one that its numbers suggest."""
        return None

    def _written(self, name: str, hint: Any, spectrum: bool) -> Any:
        return fields.plain(getattr(self, name), hint, spectrum)

    @classmethod
    def _read(cls, name: str, hint: Any, content: Mapping[str, Any], where: str) -> Any:
        value = content[cls._keys.get(name, name)]
        return fields.restored(value, hint, where, content.get("tensors", {}).get(name))

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """Whether the fields fit each other, as pairs of a condition and what is expected, as text."""
        yield from ()

    def _check(self, content: Mapping[str, Any]) -> None:
        """Refuse fields, and properties in `content`, that contradict each other."""
        rules.check_counts(self, self._signed)
        for chain in self._order:
            rules.check_order(self, chain)
        for holds, expected in self._rules():
            if not holds:
                raise ValueError(
                    f"the fields of {type(self).__name__} contradict each other; expected {expected}"
                )
        for name in self._also:
            if name not in content:
                continue
            own = fields.plain(getattr(self, name), Any, False)
            if own != content[name]:
                raise ValueError(
                    f"{name!r} of {type(self).__name__} is {shown(content[name])}, which does not fit the "
                    f"other fields: expected {shown(own)}"
                )


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object strictly: each name may occur only once.

    Raises:
        NotJSONError: no JSON.
        ValueError: another value, a name that is there twice, NaN or infinity.
    """
    try:
        found = json.loads(data, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except _NotStrict:
        raise
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except ValueError as error:  # also the error of bytes that are not UTF-8
        raise NotJSONError("is not JSON text") from error
    if not isinstance(found, dict):
        raise ValueError(f"is {shown(found)}; expected a JSON object")
    return found


class NotJSONError(ValueError):
    """Text that is no JSON at all."""


class _NotStrict(ValueError):
    """JSON that other readers may understand differently."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotStrict(f"the field {shown(twice)} is there twice; expected each field once")
    return found


def _refuse_constant(name: str) -> Any:
    raise _NotStrict(f"has {name}, which is not JSON; expected null or text for it")
