"""Checks that an exception is a refusal of llr: documented, raised by llr's code, with one line of text."""

from __future__ import annotations

import dis
from pathlib import Path

import llr

OURS = (TypeError, ValueError, NotImplementedError)
_HOME = str(Path(llr.__file__).parent)
_RAISES = {dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"]}


def complaint(error: BaseException, also: tuple[type[Exception], ...] = ()) -> str | None:
    """Why an exception of a public function is not a proper refusal; None if it is.

    `also` are exceptions that this function documents beside the usual ones.
    """
    if not isinstance(error, (*OURS, *also)):
        return f"{type(error).__name__} is not a refusal"
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if not code.co_filename.startswith(_HOME):
        return f"it comes from {code.co_filename}:{trace.tb_lineno}"
    raised = code.co_code[trace.tb_lasti] in _RAISES
    if not raised and not (isinstance(error, TypeError) and "argument" in str(error)):
        return f"it was not raised on purpose, at {code.co_filename}:{trace.tb_lineno}"
    text = str(error)
    if "\n" in text or len(text) > 900 or "Facebook" in text or "stateless" in text:
        return "its message is not one line by llr"
    return None
