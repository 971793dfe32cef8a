"""``llr theory``, ``llr embed`` and ``llr reduce``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_cli import refusal, run

from llr.files import load_model

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_json(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json", "-").stdout)


class TestTheory:
    def test_two_layer(self) -> None:
        size = as_json("theory", "two-layer", "--d", 5, "--k", 3, "--width", 50)
        found = size["optimistic_sample_size"]
        assert (found["upper"], found["status"], found["n_params"]) == (21, "exact", 350)
        assert len(size["stratification"]["rows"]) >= 51

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("--no-bias",), 12),
            (("--output-bias",), 16),
            (("--q", 2), 18),
            (("--activation", "relu"), 12),
        ],
    )
    def test_two_layer_of_other_kinds(self, options: tuple[object, ...], expected: int) -> None:
        size = as_json("theory", "two-layer", "--d", 3, "--k", 3, "--width", 4, *options)
        assert size["optimistic_sample_size"]["upper"] == expected

    def test_cnn(self) -> None:
        sizes = as_json("theory", "cnn", "--d", 5, "--kernel", 3)
        assert {name: s["upper"] for name, s in sizes.items()} == {
            "shared": 6,
            "not shared": 12,
            "fully connected": 18,
        }
        assert "fully connected" in run("theory", "cnn", "--d", 5, "--kernel", 3).stdout

    @pytest.mark.parametrize(
        ("arguments", "ranks"),
        [
            (("factorization", "--m", 4, "--p", 5, "--n", 5), {0, 8, 14, 18, 20}),
            (("linear", "3-4-2"), {0, 4, 6}),
            (("mlp", "1-2-2-1"), {13}),
        ],
    )
    def test_stratifications(self, arguments: tuple[object, ...], ranks: set[int]) -> None:
        found = {row["rank"] for row in as_json("theory", *arguments)["stratification"]["rows"]}
        assert ranks <= found
        assert str(max(ranks)) in run("theory", *arguments, "--plot", "t.png").stdout
        assert Path("t.png").stat().st_size > 10_000

    def test_model(self) -> None:
        found = as_json("theory", "model", "mlp:2-3-1")
        assert found["tangent_dimension"]["upper"] == 13
        assert found["model_rank_of_function"]["upper"] == 13
        assert "dim T = 13" in run("theory", "model", "mlp:2-3-1").stdout

    def test_refusals(self) -> None:
        assert "width is 2" in refusal("theory", "two-layer", "--d", 2, "--k", 3, "--width", 2)
        assert "3-x" in refusal("theory", "linear", "3-x")
        assert "ending in .png" in refusal("theory", "linear", "3-2", "--plot", "t.gif")


class TestEmbedAndReduce:
    def test_there_and_back(self) -> None:
        wide = as_json(
            "embed",
            "mlp:1-2-2-1",
            "--to",
            "1-4-3-1",
            "--out",
            "wide.safetensors",
            "--check",
            "--plot",
            "s.png",
        )
        assert wide["check"]["narrow_rank"] == wide["check"]["wide_rank"] == 13
        assert Path("s.png").exists()
        x = torch.randn(7, 1).double()
        f = load_model("mlp:1-2-2-1", seed=0)
        g = load_model("mlp:1-4-3-1", weights="wide.safetensors")
        torch.testing.assert_close(f(x), g(x))
        back = as_json(
            "reduce", "mlp:1-4-3-1", "--weights", "wide.safetensors", "--out", "narrow.safetensors"
        )
        assert back["reduction"]["widths"] == [1, 2, 2, 1]
        h = load_model("mlp:1-2-2-1", weights="narrow.safetensors")
        torch.testing.assert_close(f(x), h(x))

    def test_text(self) -> None:
        output = run("embed", "mlp:2-2-1", "--to", "2-3-1", "--out", "w.safetensors").stdout
        assert "wrote  w.safetensors" in output
        assert "2-2-1" in run("reduce", "mlp:2-3-1", "--weights", "w.safetensors").stdout

    def test_refusals(self) -> None:
        assert ".safetensors" in refusal("embed", "mlp:2-2-1", "--to", "2-3-1", "--out", "w.pt")
        assert "2-1-1" in refusal("embed", "mlp:2-2-1", "--to", "2-1-1", "--out", "w.safetensors")
        assert not Path("w.safetensors").exists()
