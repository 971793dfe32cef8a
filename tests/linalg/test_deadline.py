"""Polls end work that is late, and report that it goes on."""

from __future__ import annotations

import pytest

from llr.linalg.deadline import TimeLimit, poll, polls_call, time_limit


def test_every_poll_calls_the_innermost_function() -> None:
    calls: list[str] = []
    poll()
    with polls_call(lambda: calls.append("outer")):
        poll()
        with polls_call(lambda: calls.append("inner")):
            poll()
        poll()
    poll()
    assert calls == ["outer", "inner", "outer"]


def test_late_work_is_not_reported() -> None:
    calls: list[str] = []
    with polls_call(lambda: calls.append("x")), time_limit(-1.0), pytest.raises(TimeLimit):
        poll()
    assert not calls
