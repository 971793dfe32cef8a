"""Which functions report progress, to whom, and in notebooks. The clock is the tests'."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import llr
from llr import landscape, lifting, recovery
from llr.models import TwoLayer, mlp
from llr.recovery import Target, lm_native, recover
from llr.recovery.train import GD, initial, train
from llr.results import progress

from .makers import critical, embedded, fast_clock, net, points


class _Screen:
    """A screen that keeps what is drawn."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int | None, int | None]] = []
        self.closed = 0

    def draw(self, text: str, done: int | None, total: int | None) -> None:
        assert not self.closed
        self.drawn.append((text, done, total))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> _Screen:
    """A screen that can be seen, and a clock that is seconds later at every look."""
    made = _Screen()
    fast_clock(monkeypatch)
    monkeypatch.setattr(progress, "screen", lambda _: made)
    return made


def searched(**options: Any) -> Any:
    x, y = Target.separated(TwoLayer(1, 2, bias=False), seed=0).sample(12, seed=1)
    return recover(x, y.abs().sqrt(), max_width=2, bias=False, budget=400, **options)


def trained(**options: Any) -> Any:
    model = mlp([1, 2, 1])
    starts = initial(model, 3, generator=torch.Generator().manual_seed(0))
    return train(model, starts, points(4), points(4).sin(), method=GD(), steps=400, **options)


def embedding_in_layers(**options: Any) -> Any:
    return llr.gram(net(2, 3, 3, 1), points(9, 2), backend="layers", **options)


def softsigns(layers: int) -> nn.Module:
    """A model that the native library does not know, so that it is computed in chunks."""
    linear = (nn.Linear(2, 2), nn.Softsign())
    return nn.Sequential(
        *(copy.deepcopy(part) for _ in range(layers) for part in linear), nn.Linear(2, 1)
    ).double()


def ranked(method: str) -> Callable[..., Any]:
    return lambda **o: llr.rank(softsigns(4), points(9, 2), method=method, chunk_size=2, **o)


def verified(**options: Any) -> Any:
    found = llr.certify(net(1, 3, 1), points(12), progress=False)
    return llr.verify(found, net(1, 3, 1), points(12), **options)


def fitted(model: nn.Module, **options: Any) -> Any:
    starts = initial(model, 200, generator=torch.Generator().manual_seed(0))
    return recovery.levenberg_marquardt(model, starts, points(6), points(6).sin(), **options)


def spectrum(kind: str, method: str = "dense", k: int | None = None) -> Callable[..., Any]:
    model, x = net(1, 80, 1), points(9)
    return lambda **o: landscape.hessian_spectrum(
        model, x, x.sin(), kind=kind, method=method, k=k, **o
    )


WORK: dict[str, Callable[..., Any]] = {
    "rank by svd": ranked("svd"),
    "rank by tsqr": ranked("tsqr"),
    "rank by gram": ranked("gram"),
    "rank by auto": ranked("auto"),
    "verify": verified,
    "flow": lambda **o: landscape.flow(
        net(1, 2, 1), points(5), points(5).sin(), times=[0.0, 1.0], **o
    ),
    "levenberg_marquardt": lambda **o: fitted(net(1, 2, 1), **o),
    "levenberg_marquardt by torch": lambda **o: fitted(
        nn.Sequential(nn.Linear(1, 2), nn.Softsign(), nn.Linear(2, 1)), **o
    ),
    "hessian_spectrum": spectrum("full"),
    "hessian_spectrum by Lanczos": spectrum("full", "lanczos", 2),
    "embedded_spectrum": lambda **o: embedded(**o),
    "certify": lambda **o: llr.certify(net(1, 3, 1), points(12), **o),
    "rank": lambda **o: llr.rank(net(1, 3, 1), points(12), method="certified", **o),
    "model_rank": lambda **o: llr.model_rank(net(1, 3, 1), **o),
    "has_llr_guarantee": lambda **o: llr.has_llr_guarantee(
        net(1, 2, 1), points(12), sampler="normal", **o
    ),
    "jacobian": lambda **o: llr.jacobian(
        net(1, 2, 1), points(9), backend="loop", chunk_size=1, **o
    ),
    "gram": embedding_in_layers,
    "recover": searched,
    "train": trained,
    "lifted_critical_points": lambda **o: lifting.lifted_critical_points(
        *critical(), starts=8, **o
    ),
}


PAIRS = {
    *("jacobian", "gram", "lifted_critical_points", "flow", "embedded_spectrum"),
    *("levenberg_marquardt", "levenberg_marquardt by torch", "hessian_spectrum"),
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_native, "_BLOCK_FLOPS", 0)


@pytest.mark.usefixtures("small_blocks")
class TestFunctions:
    @pytest.mark.parametrize("name", WORK)
    @pytest.mark.parametrize("default", [None, True])
    def test_default(self, screen: _Screen, name: str, default: bool | None) -> None:
        WORK[name](progress=default)
        assert screen.drawn
        assert screen.closed == 1
        assert all(total is None or 0 <= (done or 0) <= total for _, done, total in screen.drawn)

    @pytest.mark.parametrize("name", WORK)
    def test_silenced(self, screen: _Screen, name: str) -> None:
        WORK[name](progress=False)
        assert not screen.drawn

    @pytest.mark.parametrize("name", WORK)
    def test_function(self, screen: _Screen, name: str) -> None:
        calls: list[tuple[Any, ...]] = []
        WORK[name](progress=lambda *found: calls.append(found))
        assert calls
        assert not screen.drawn
        if name in PAIRS:
            assert all(0 <= done <= total for done, total in calls)
        elif name.startswith("rank by"):
            assert all(bits == 0 and 0 <= done <= total for bits, done, total in calls)
        else:
            assert all(isinstance(value, int | float | None) for c in calls for value in c)

    @pytest.mark.parametrize("name", WORK)
    def test_something_else(self, name: str) -> None:
        with pytest.raises(TypeError, match="progress is str; expected True, False, None or a"):
            WORK[name](progress="yes")

    def test_the_same_result(self, screen: _Screen) -> None:
        shown = llr.jacobian(net(1, 2, 1), points(9), backend="torch", chunk_size=2)
        quiet = llr.jacobian(net(1, 2, 1), points(9), backend="torch", progress=False)
        assert screen.drawn
        assert torch.equal(shown, quiet)

    def test_recover_still_stops_when_told(self, screen: _Screen) -> None:
        assert searched(progress=lambda *_: True).starts < searched(progress=False).starts
        assert not screen.drawn

    def test_it_changes_nothing_else(self) -> None:
        """The closed form is taken whether or not there is progress to tell."""
        model, x = net(1, 2, 1), points(12)
        found = llr.has_llr_guarantee(model, x, progress=False)
        assert found == llr.has_llr_guarantee(model, x, model_rank=7, progress=False)
        assert llr.llr_sample_size(model, x, progress=lambda *_: None) == 7

    def test_an_error_takes_the_line_away(self, screen: _Screen) -> None:
        with pytest.raises(ValueError, match="upper=1 is disproved"):
            llr.certify(net(1, 3, 1), points(12), upper=1)
        assert screen.drawn
        assert screen.closed == 1


class TestFollowing:
    def test_inner_work_adds_to_the_outer_line(self, screen: _Screen) -> None:
        with progress.following(None):
            for i in range(5):
                progress.step("outer", i, 5)
                with progress.following(None):
                    progress.step("inner")
        assert {text for text, _, _ in screen.drawn} == {"outer", "inner"}
        assert screen.closed == 1

    @pytest.mark.parametrize("outer", [False, print])
    def test_what_is_silenced_outside_stays_so(self, screen: _Screen, outer: Any) -> None:
        with progress.following(outer):
            for _ in range(5):
                with progress.following(None):
                    progress.step("inner")
        assert not screen.drawn

    def test_a_function_within_a_line(self, screen: _Screen) -> None:
        """As of ``llr recover``, whose function only tells whether to stop."""
        with progress.following(None), progress.following(print):
            for _ in range(5):
                progress.step("inner")
        assert screen.drawn

    def test_silent(self, screen: _Screen) -> None:
        with progress.silent(), progress.following(None):
            for _ in range(5):
                progress.step("x")
        assert not screen.drawn

    def test_nobody_follows(self, screen: _Screen) -> None:
        progress.step("x")
        assert not screen.drawn

    def test_no_thread_and_no_rich_before(self) -> None:
        before = threading.active_count()
        with progress.following(None):
            for _ in range(100):
                progress.step("x", 1, 2)
            assert threading.active_count() == before


class TestNotebook:
    @pytest.fixture
    def shown(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        texts: list[str] = []

        class Handle:
            def update(self, data: dict[str, str], raw: bool) -> None:
                assert raw
                texts.append(data["text/plain"])

        module: Any = types.ModuleType("IPython")
        module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
        display = types.SimpleNamespace(display=lambda *_, **__: Handle())
        module.display = display
        monkeypatch.setitem(sys.modules, "IPython", module)
        ticks = itertools.count()
        monkeypatch.setattr(progress, "clock", lambda: float(next(ticks)))
        return texts

    def test_a_line_that_goes_away(self, shown: list[str]) -> None:
        llr.jacobian(net(1, 2, 1), points(9), backend="torch", chunk_size=1)
        assert shown[0].startswith("Jacobian: samples")
        assert shown[0].endswith("of 9")
        assert shown[-1] == ""

    def test_a_shell_without_a_kernel_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = types.ModuleType("IPython")
        module.get_ipython = lambda: types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setattr(sys, "stderr", None)
        assert progress.screen(0.0) is None


def test_a_sweep_shows_cells_and_not_what_they_do(screen: _Screen, tmp_path: Path) -> None:
    done = recovery.reproduce("linear", tmp_path, quick=True)
    assert done.tally.done == 4
    assert screen.drawn
    assert {text.partition(":")[0] for text, _, _ in screen.drawn} == {"cells"}
    assert screen.drawn[-1][1:] == (4, 4)
