"""Random calls of the public functions: each returns, or raises a refusal of llr with one line of text.

``LLR_RANDOM_CASES=20000 pytest tests/inputs/test_fuzz.py`` draws more.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import llr

from .fuzz_calls import draw, shown
from .refusals import complaint

CASES = int(os.environ.get("LLR_RANDOM_CASES", "120"))
FIRST = int(os.environ.get("LLR_RANDOM_SEED", "0"))
SECONDS = 60
"""Seconds after which a call counts as hanging; normal calls take milliseconds."""

ALSO: dict[str, tuple[type[Exception], ...]] = {"flow": (RuntimeError,)}
"""Exceptions that some functions document beside the usual ones."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"it took more than {seconds} s of the processor's time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.filterwarnings("ignore")
def test_random_calls_return_or_refuse() -> None:
    llr.jacobian(nn.LayerNorm(2), torch.ones(1, 2))  # torch imports its compiler at the first vmap
    bad = []
    for number in range(FIRST, FIRST + CASES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name, called, arguments = draw(number)
            try:
                with within(SECONDS):
                    called(**arguments)
            except Exception as error:
                wrong = complaint(error, ALSO.get(name, ()))
                if wrong is not None:
                    text = f"{type(error).__name__}: {str(error)[:200]}"
                    bad.append(f"{number}: {name}({shown(arguments)}): {wrong}: {text}")
    assert not bad, f"{len(bad)} of {CASES} calls:\n" + "\n".join(bad)
