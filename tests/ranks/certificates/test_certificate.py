"""Certificates as data: their JSON, refused files, and their decimals."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from flint import arb
from helpers.oracles import mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llr import Certificate, certify, verify
from llr.linalg.balls import precision
from llr.linalg.decimals import at_most, decimal_below

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@pytest.fixture(scope="module")
def case() -> tuple[nn.Sequential, Tensor, Certificate]:
    """A network with a dead neuron, rank 11 of P = 13, and its certificate."""
    torch.manual_seed(0)
    model, x = mlp(1, 4, 1), torch.randn(25, 1, dtype=torch.float64)
    with torch.no_grad():
        model[2].weight[0, 3] = 0
    certificate = certify(model, x, params="*")  # without the closed form, which says 11
    assert (certificate.rank, certificate.upper, certificate.n_rows) == (11, 13, 25)
    return model, x, certificate


class TestFiles:
    def test_round_trip(
        self, case: tuple[nn.Sequential, Tensor, Certificate], tmp_path: Path
    ) -> None:
        model, x, certificate = case
        certificate.save(tmp_path / "c.json")
        again = Certificate.load(tmp_path / "c.json")
        assert again == certificate
        assert verify(again, model, x)
        assert json.loads((tmp_path / "c.json").read_text())["rank"] == 11

    def test_interrupted_save_leaves_the_old_file(
        self,
        case: tuple[nn.Sequential, Tensor, Certificate],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = tmp_path / "c.json"
        path.write_text("old")

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            case[2].save(path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "other"}, "no certificate"),
            ({"rank": "11"}, "rank is '11'; expected an integer"),
            ({"rank": True}, "rank is True"),
            ({"rank": 14}, "rank is 14 and upper is 13"),
            ({"upper": 99}, "upper is 99; expected rank <= upper <= 13"),
            ({"rows": "0"}, "rows is '0'; expected a list"),
            ({"rows": [0.0] * 11}, "rows is .* tuple of integers"),
            ({"rows": list(range(12))}, "rows has 12 entries; expected rank = 11"),
            ({"rows": [*range(10), 25]}, "rows must ascend within 0 to 24"),
            ({"columns": [*range(10), 3]}, "columns must ascend"),
            ({"bits": 0}, "bits is 0; expected an integer from 32"),
            ({"bits": None}, "bits is None"),
            ({"arithmetic": "floats"}, "arithmetic is 'floats'; expected one of balls"),
            ({"stopped": "upper bound met"}, "stopped is 'upper bound met' at rank 11 of 13"),
            ({"upper_from": "exact rank"}, "upper_from is 'exact rank'"),
            ({"bound": "0.00e-3"}, "bound is '0.00e-3'; expected a positive"),
            ({"bound": "1e-3"}, "bound is '1e-3'; expected a decimal"),
            ({"bound": 1.0}, "bound is 1.0"),
            ({"model": "abc"}, "model is 'abc'; expected 64 hexadecimal"),
            ({"structure": 3}, "structure is 3; expected text"),
            ({"checksum": "0" * 64}, "checksum does not fit"),
            ({"checksum": ""}, "checksum is empty"),
            ({"note": 1}, "the field 'note' is unknown"),
        ],
    )
    def test_malformed(
        self,
        case: tuple[nn.Sequential, Tensor, Certificate],
        tmp_path: Path,
        changes: dict[str, Any],
        message: str,
    ) -> None:
        (tmp_path / "c.json").write_text(json.dumps({**case[2].to_dict(), **changes}))
        with pytest.raises(ValueError, match=f"c.json: .*{message}"):
            Certificate.load(tmp_path / "c.json")

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"3"])
    def test_not_json_of_a_certificate(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.json: "):
            Certificate.load(tmp_path / "c.json")

    @pytest.mark.parametrize("name", ["rank", "upper", "checksum"])
    def test_repeated_field(
        self, case: tuple[nn.Sequential, Tensor, Certificate], tmp_path: Path, name: str
    ) -> None:
        text = json.dumps(case[2].to_dict())
        (tmp_path / "c.json").write_text(f'{{"{name}": 99, {text[1:]}')
        with pytest.raises(ValueError, match=rf"c\.json: the field '{name}' is there twice"):
            Certificate.load(tmp_path / "c.json")

    def test_missing_field(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        content = case[2].to_dict()
        del content["bound"]
        with pytest.raises(ValueError, match="'bound' is missing"):
            Certificate.from_dict(content)


class TestDecimals:
    @settings(max_examples=200, derandomize=True, deadline=None)
    @given(st.integers(1, 10**40), st.integers(-3000, 3000))
    def test_round_down_by_little(self, man: int, exp: int) -> None:
        with precision(200):
            value = arb((man, exp))
        true = Fraction(man) * Fraction(2) ** exp
        text = decimal_below(value)
        assert Fraction(text) <= true < Fraction(text) * (1 + Fraction(1, 10**10))
        assert at_most(text, value)

    def test_exact_comparison(self) -> None:
        assert at_most("5.0e-1", arb(0.5))
        assert not at_most("5.00000000000000000000000000001e-1", arb(0.5))
        assert at_most("1.0e-9999999", arb((1, -33_000_000)))
        assert not at_most("1.0e-9999999", arb((1, -33_300_000)))
        assert not at_most("1.0e-5", arb(0))
        assert at_most("1.0e0", arb((1, 5)))


class TestBoundsOfCallers:
    @staticmethod
    def forged(honest: Certificate, upper: int) -> Certificate:
        """A certificate that proves nothing, with an invented upper bound."""
        return replace(
            honest,
            rank=0,
            rows=(),
            columns=(),
            bound=decimal_below(arb(1)),
            upper=upper,
            upper_from="caller",
            stopped="time limit" if upper else "upper bound met",
            checksum="",
        )

    @pytest.mark.parametrize("upper", [0, 4, 10, 11, 12])
    def test_false_ones_are_refused(
        self, case: tuple[nn.Sequential, Tensor, Certificate], upper: int
    ) -> None:
        model, x, honest = case
        verdict = verify(self.forged(honest, upper), model, x, params="*")
        assert verdict.checked
        assert verdict.valid == (upper >= 11)
        word = "trusted as the caller gave it" if verdict else f"at least {upper + 1}"
        assert word in verdict.reason

    def test_of_a_relu_network(self) -> None:
        model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
        honest = certify(model, x)
        assert honest.rank > 1
        for upper in range(1, honest.rank + 1):
            verdict = verify(self.forged(honest, upper), model, x)
            assert verdict.valid == (upper == honest.rank), verdict.reason
