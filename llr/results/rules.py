"""Checks that the fields of a result fit each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from torch import Tensor

from llr.inputs.roles import shown
from llr.results.fields import hints


def check_counts(record: Any, signed: tuple[str, ...]) -> None:
    """Refuse negative integers in fields of integers, except in those named `signed`.

    Raises:
        ValueError: names the field.
    """
    found = hints(type(record))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name not in signed and _is_whole(found[field.name]) and min(_flat(value)) < 0:
            raise ValueError(
                f"{field.name!r} of {type(record).__name__} is {shown(value)}; expected no negative integer"
            )


def check_order(record: Any, chain: str) -> None:
    """Refuse fields that are not in the order of a chain, such as "0 <= lower <= upper".

    Fields that are None are left out. NaN is in no order. Tensors are compared entry by entry.

    Raises:
        ValueError: names the two fields.
    """
    before: tuple[str, Any] | None = None
    for name in chain.split(" <= "):
        value = int(name) if name.isdigit() else getattr(record, name)
        if value is None:
            continue
        if before is not None and not all(a <= b for a, b in _pairs(before[1], value)):
            found = (before, (name, value))
            told = " and ".join(f"{n!r} is {shown(v)}" for n, v in found if not n.isdigit())
            raise ValueError(f"{type(record).__name__}: {told}; expected {chain}")
        before = name, value


def _pairs(one: Any, two: Any) -> Iterator[tuple[Any, Any]]:
    ones, twos = (v.flatten().tolist() if isinstance(v, Tensor) else None for v in (one, two))
    if ones is not None and twos is not None:
        return iter(zip(ones, twos, strict=True))
    return iter(
        [(a, b) for a in ones or [one] for b in twos or [two]] if [] not in (ones, twos) else []
    )


def _is_whole(hint: Any) -> bool:
    """Whether an annotation is of integers: alone, in tuples or lists, or None."""
    parts = [part for part in get_args(hint) if part not in (type(None), Ellipsis)]
    return hint is int or (bool(parts) and all(map(_is_whole, parts)))


def _flat(value: Any) -> list[int]:
    if isinstance(value, tuple | list):
        return [0, *(number for part in value for number in _flat(part))]
    return [value or 0]
