"""Random calls of the public functions: each returns, or refuses in a line of llr's own.

``LLR_RANDOM_CASES=20000 pytest tests/test_fuzz_face.py`` draws more.
"""

from __future__ import annotations

import dis
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from face_calls import draw, shown
from torch import nn

import llr

CASES = int(os.environ.get("LLR_RANDOM_CASES", "120"))
FIRST = int(os.environ.get("LLR_RANDOM_SEED", "0"))
SECONDS = 60
"""After which a call counts as one that hangs; those here take milliseconds."""

OURS = (TypeError, ValueError, NotImplementedError)
ALSO: dict[str, tuple[type[Exception], ...]] = {"flow": (RuntimeError,)}
"""What some functions document beside these."""
_HOME = str(Path(llr.__file__).parent)
_RAISES = {dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"]}


def complaint(name: str, error: BaseException) -> str | None:
    """What is wrong with an exception that this public function ended with; None if it is of llr's own."""
    if not isinstance(error, (*OURS, *ALSO.get(name, ()))):
        return f"{type(error).__name__} is no refusal"
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if not code.co_filename.startswith(_HOME):
        return f"it comes from {code.co_filename}:{trace.tb_lineno}"
    raised = code.co_code[trace.tb_lasti] in _RAISES
    if not raised and not (isinstance(error, TypeError) and "argument" in str(error)):
        return f"nobody raised it at {code.co_filename}:{trace.tb_lineno}"
    text = str(error)
    if "\n" in text or len(text) > 900 or "Facebook" in text or "stateless" in text:
        return "its message is not one line of ours"
    return None


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
                wrong = complaint(name, error)
                if wrong is not None:
                    text = f"{type(error).__name__}: {str(error)[:200]}"
                    bad.append(f"{number}: {name}({shown(arguments)}): {wrong}: {text}")
    assert not bad, f"{len(bad)} of {CASES} calls:\n" + "\n".join(bad)
