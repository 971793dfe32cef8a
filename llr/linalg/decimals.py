"""Exact positive numbers as decimals that are rounded down, for all exponents."""

from __future__ import annotations

import math
import re
from typing import cast

from flint import arb, fmpz

from llr.linalg.balls import precision

DECIMAL = re.compile(r"(\d)\.(\d{1,30})e([+-]?\d{1,19})")
# Binary exponents of at most this many bits have decimal exponents that DECIMAL accepts.
EXPONENT_BITS = 62
# Beyond these decimal or binary exponents powers are balls: as integers they would exceed any memory.
_EXACT_TEN, _EXACT_TWO = 5_000, 20_000
# The working precision; a large decimal exponent costs at most 62 of these bits.
_DECIMAL_BITS = 256


def decimal_below(value: arb) -> str:
    """Twelve digits of an exact positive number, rounded down, as text; for :attr:`Certificate.bound`.

    The work is bounded for every exponent of at most :data:`EXPONENT_BITS` bits.
    """
    man, exp = (int(part) for part in value.man_exp())
    power = math.floor((man.bit_length() + exp) * math.log10(2)) - 12
    if abs(exp) <= _EXACT_TWO and man.bit_length() <= _EXACT_TWO:
        scaled = man * 10 ** max(-power, 0) << max(exp, 0)
        digits = str((scaled >> max(-exp, 0)) // 10 ** max(power, 0))
        return f"{digits[0]}.{digits[1:12]}e{power + len(digits) - 1}"
    with precision(_DECIMAL_BITS):
        power = _floor((value.log() / arb(10).log()).lower() - 11)
        digits = str(_floor((value / _power_of_ten(power)).lower()))
    return f"{digits[0]}.{digits[1:12]}e{power + len(digits) - 1}"


def at_most(bound: str, value: arb) -> bool:
    """Whether a decimal as :func:`decimal_below` writes it is certainly at most an exact number >= 0."""
    whole, fraction, power = cast(re.Match[str], DECIMAL.fullmatch(bound)).groups()
    digits, ten = int(whole + fraction), int(power) - len(fraction)
    man, exp = value.man_exp()
    if abs(ten) > _EXACT_TEN or abs(int(exp)) > _EXACT_TWO:
        with precision(_DECIMAL_BITS):
            return bool(digits * _power_of_ten(ten) <= value)
    left = fmpz(digits) * fmpz(10) ** max(ten, 0) * fmpz(2) ** max(-int(exp), 0)
    right = man * fmpz(10) ** max(-ten, 0) * fmpz(2) ** max(int(exp), 0)
    return bool(left <= right)


def _floor(x: arb) -> int:
    """The floor of a ball whose radius is too small to matter here."""
    man, exp = x.floor().lower().man_exp()
    return int(man) << int(exp) if exp >= 0 else int(man) >> -int(exp)


def _power_of_ten(exponent: int) -> arb:
    return (exponent * arb(10).log()).exp()
