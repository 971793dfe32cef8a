"""Certificates: the work is bounded, ends in time and reacts to Ctrl-C; changed files are refused."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from flint import arb
from torch import Tensor, nn

from llr import Certificate, certify, verify
from llr.linalg.balls import precision
from llr.linalg.deadline import TimeLimit, poll, time_limit
from llr.linalg.decimals import at_most, decimal_below
from llr.models import Polynomial, TwoLayer

CASES = int(os.environ.get("LLR_RANDOM_CASES", "150"))


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Ends the process with a traceback if a test takes too long: unbounded work would take days."""
    faulthandler.dump_traceback_later(600, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def net(bias: float, act: nn.Module, weight: float = 0.0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(1, 2), act, nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(weight)
        model[0].bias.fill_(bias)
        model[2].weight.copy_(torch.tensor([[1.0, 2.0]]))
    return model


class TestExponents:
    @pytest.mark.parametrize(
        "exponent", [0, 5, -5, 300, -19_990, 30_000, -70_000, 10**9, -(10**15)]
    )
    @pytest.mark.parametrize("mantissa", [1, 3, 2**70 + 1, 999_999_999_999])
    def test_decimals_are_just_below(self, mantissa: int, exponent: int) -> None:
        text = decimal_below(arb((mantissa, exponent)))
        assert at_most(text, arb((mantissa, exponent)))
        assert not at_most(text, arb((mantissa, exponent - 1)))
        digits, power = text.split("e")
        with mpmath.workdps(60):
            log = mpmath.log(mantissa, 10) + exponent * mpmath.log(2, 10)
            below = mpmath.log(mpmath.mpf(digits), 10) + int(power)
            assert 0 <= log - below < 1e-10

    @pytest.mark.parametrize("act", [nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.GELU(), nn.SiLU()])
    @pytest.mark.parametrize("size", [40.0, 1e4, 1e9, 1e15, 1e300])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_large_preactivations(self, act: nn.Module, size: float, sign: int) -> None:
        model, x = net(sign * size, act), torch.tensor([[1.0], [0.25], [-3.0]]).double()
        found = certify(model, x, max_bits=512)
        assert verify(found, model, x)
        assert found.rank <= 3

    def test_large_sines_and_polynomials(self) -> None:
        x = torch.tensor([[1.0], [0.25], [-3.0]]).double()
        for act in (nn.Identity(), Polynomial([0.0, 1.0, 1e300])):
            model = net(1e300, act, 1e200)
            assert verify(certify(model, x), model, x)
        sine = TwoLayer.of(
            torch.tensor([[1e300]], dtype=torch.float64),
            None,
            torch.ones(1, 1).double(),
            activation="sin",
        )
        assert certify(sine, x, max_bits=256).rank >= 0


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Certificate]:
    torch.manual_seed(0)
    model = TwoLayer(1, 4).double()
    x = torch.randn(18, 1).double()
    return model, x, certify(model, x)


class TestForgedFiles:
    def test_bits_cost_nothing(self, case: tuple[nn.Module, Tensor, Certificate]) -> None:
        model, x, found = case
        for bits in (1 << 20, 1 << 14, 4097):
            lie = replace(found, bits=bits, checksum="")
            verdict = verify(lie, model, x)
            assert not verdict
            assert f"bits is {bits}, more than max_bits=4096" in verdict.reason
        rows = (0, *range(1, found.rank))
        verify(replace(found, bits=4096, rows=rows, bound="9.0e99", checksum=""), model, x)

    def test_a_certificate_of_higher_precision(
        self, case: tuple[nn.Module, Tensor, Certificate]
    ) -> None:
        model, x, _ = case
        found = certify(model, x, bits=5000, max_bits=5000)
        assert not verify(found, model, x)
        assert verify(found, model, x, max_bits=5000)

    @pytest.mark.parametrize("seed", range(CASES))
    def test_changed_files(
        self, seed: int, case: tuple[nn.Module, Tensor, Certificate], tmp_path: Any
    ) -> None:
        model, x, found = case
        rng = random.Random(seed)
        content = mutated(found.to_dict(), rng)
        path = tmp_path / "proof.json"
        text = json.dumps(content)
        if rng.random() < 0.2:
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["", "x", "[" * 100_000, "1" * 5000, "\\ud800", "NaN"])
                + text[at + 1 :]
            )
        path.write_text(text)
        loaded, message = _or_refusal(lambda: Certificate.load(path))
        assert loaded == found or str(path) in message
        # The same with a matching checksum.
        if isinstance(content, dict) and "checksum" in content:
            forged, message = _or_refusal(
                lambda: Certificate.from_dict(
                    {**content, "checksum": rechecked({**content, "checksum": ""})}
                )
            )
            if forged is not None and verify(forged, model, x):  # it is true even so
                for name in ("model", "samples", "structure"):
                    assert getattr(forged, name) == getattr(found, name)
                assert forged.rank <= found.rank <= forged.upper


def _or_refusal(load: Callable[[], Certificate]) -> tuple[Certificate | None, str]:
    """The loaded certificate, or the message of the refusal, which must be short."""
    try:
        return load(), ""
    except ValueError as error:
        message = str(error)
    assert len(message) < 1000
    return None, message


def rechecked(content: dict[str, Any]) -> str:
    values = {
        k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k != "format"
    }
    try:
        return Certificate(**values).checksum
    except TypeError as error:
        raise ValueError("fields") from error


def mutated(content: dict[str, Any], rng: random.Random) -> Any:
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(list(content))
        value = content[key]
        odd: list[Any] = [
            None,
            True,
            -1,
            0,
            1 << 70,
            10**5000,
            0.5,
            "",
            "x",
            [],
            [1],
            {},
            [[]],
            float("inf"),
        ]
        if isinstance(value, int) and rng.random() < 0.6:
            value = value + rng.choice([-1, 1, 100, 1 << 20])
        elif isinstance(value, list) and value and rng.random() < 0.7:
            value[rng.randrange(len(value))] += rng.choice([-1, 1, 3, -100])
        elif key == "bound" and rng.random() < 0.8:
            value = rng.choice(
                ["9.9e99", "1.0e-9999999", "1.0e-999999999999", "1.0e999999999999", "0.0e0"]
            )
        elif key in ("upper_from", "stopped", "arithmetic") and rng.random() < 0.7:
            value = rng.choice(
                ["shape", "theory", "caller", "exact rank", "time limit", "rationals", "balls"]
            )
        else:
            value = rng.choice(odd)
        if rng.random() < 0.1:
            del content[key]
        else:
            content[key] = value
    try:
        json.dumps(content)
    except ValueError:  # an integer that json refuses to write
        return {k: 7 if v == 10**5000 else v for k, v in content.items()}
    return content


class TestTimeLimits:
    def test_poll(self) -> None:
        with time_limit(None):
            poll()
        with time_limit(1e-9):
            time.sleep(1e-3)
            with pytest.raises(TimeLimit):
                poll()
        poll()

    @pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan")])
    def test_bad_input(self, timeout: Any) -> None:
        with pytest.raises(ValueError, match="timeout is"):
            certify(nn.Linear(1, 1), torch.ones(1, 1), timeout=timeout)

    def test_what_was_proved_until_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, x = (
            TwoLayer(1, 12, generator=torch.Generator().manual_seed(0)).double(),
            torch.randn(40, 1).double(),
        )

        def late(*_: Any) -> Any:
            raise TimeLimit

        monkeypatch.setattr("llr.ranks.certificates.certify.remainder", late)
        found = certify(model, x)
        assert found.stopped == "time limit"
        assert 0 <= found.rank < found.upper
        assert verify(found, model, x)
        assert Certificate.from_dict(found.to_dict()) == found
        assert "time limit" in str(found)

    def test_rationals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, x = nn.Linear(2, 1), torch.eye(2)

        def late(*_: Any) -> Any:
            raise TimeLimit

        monkeypatch.setattr("llr.ranks.certificates.certify.rational_pivots", late)
        found = certify(model, x)
        assert (found.rank, found.upper, found.stopped) == (0, 2, "time limit")
        assert verify(found, model, x)

    def test_nothing_was_read(self) -> None:
        model, x = TwoLayer(1, 4).double(), torch.randn(9, 1).double()
        with pytest.raises(TimeoutError, match="before the model was read"):
            certify(model, x, timeout=1e-9)
        verdict = verify(certify(model, x), model, x, timeout=1e-9)
        assert not verdict
        assert "timeout=1e-09" in verdict.reason


BUSY = """
import torch, llr, sys
torch.manual_seed(0)
nn = torch.nn
model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)).double()
x = torch.randn(800, 5).double()
print("begun", flush=True)
try:
    while True:  # however fast one is: the signal comes while one runs
        llr.certify(model, x, bits=BITS, max_bits=4096)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("bits", [64, 1024])
@pytest.mark.parametrize("after", [1.0, 4.0])
def test_ctrl_c(bits: int, after: float) -> None:
    code = BUSY.replace("BITS", str(bits))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "stopped\n")


def test_precision_is_that_of_the_caller_after_a_limit() -> None:
    with precision(77):
        with pytest.raises(TimeoutError):
            certify(TwoLayer(1, 4).double(), torch.randn(9, 1).double(), timeout=1e-9)
        assert (arb(1) / 3).rad() < 2**-75
