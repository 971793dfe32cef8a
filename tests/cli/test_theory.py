"""``llr theory``, ``llr embed`` and ``llr reduce``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llr.models.load import load_model

from .test_main import refusal, run

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json", "-").stdout)


def is_picture(name: str) -> bool:
    return Path(name).read_bytes().startswith(b"\x89PNG") and Path(name).stat().st_size > 10_000


class TestTheory:
    def test_two_layer(self) -> None:
        arguments = ("theory", "two-layer", "--d", 5, "--k", 3, "--width", 50)
        size = as_json(*arguments)
        found = size["optimistic_sample_size"]
        assert (found["upper"], found["status"], found["n_params"]) == (21, "exact", 350)
        ranks = {row["text"]: row["rank"] for row in size["stratification"]["rows"]}
        assert [ranks[f"{k} neurons"] for k in range(2, 51)] == [7 * k for k in range(2, 51)]
        text = run(*arguments).stdout
        assert text.splitlines()[0] == "model rank = 21 of 350 parameters (Theorem 2.3)"
        assert "two-layer network" not in text
        table = run(*arguments, "--table", "--plot", "t.png").stdout
        assert "   350  50 neurons\n" in table
        assert table.endswith("wrote  t.png\n")
        assert is_picture("t.png")

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
        # With one output, each sample is one observation. Here, several outputs need half as many samples.
        assert size.get("points", {}).get("lower") == (9 if "--q" in options else None)

    def test_cnn(self) -> None:
        sizes = as_json("theory", "cnn", "--d", 5, "--kernel", 3)
        numbers = {name: s["upper"] for name, s in sizes.items() if isinstance(s, dict)}
        assert numbers == {"shared weights": 6, "no sharing": 12, "fully connected": 18}
        lines = run("theory", "cnn", "--d", 5, "--kernel", 3, "--channels", 20).stdout.splitlines()
        assert [line[:36].split()[-2:] for line in lines] == [
            ["parameters", "samples"],
            ["120", "6"],
            ["240", "12"],
            ["360", "18"],
        ]

    def test_branches(self) -> None:
        arguments = ("theory", "branches", "--d", 2, "--k", 1, "--width", 2)
        rows = as_json(*arguments)["rows"]
        assert [(row["tangent"], row["codimension"]) for row in rows] == [(5, 5), (4, 7), (7, 7)]
        lines = run(*arguments, "--plot", "b.png").stdout.splitlines()
        assert len(lines) == 2 + 3 + 1
        assert is_picture("b.png")

    @pytest.mark.parametrize(
        ("arguments", "ranks"),
        [
            (("factorization", "--m", 4, "--p", 5, "--n", 5), [0, 8, 14, 18, 20]),
            (("linear", "3-4-2"), [0, 4, 6]),
            (("mlp", "1-2-2-1"), [1, 6, 9, 9, 13]),
        ],
    )
    def test_stratifications(self, arguments: tuple[object, ...], ranks: list[int]) -> None:
        found = [row["rank"] for row in as_json("theory", *arguments)["stratification"]["rows"]]
        assert found == ranks
        lines = run("theory", *arguments, "--plot", "t.png").stdout.splitlines()
        assert [int(line.split()[0]) for line in lines[2:-1]] == ranks
        assert is_picture("t.png")

    def test_a_function_of_a_deep_network(self) -> None:
        arguments = ("theory", "mlp", "1-50-50-1", "--target", "1-2-2-1")
        found = as_json(*arguments)["optimistic_sample_size"]
        assert (found["upper"], found["status"]) == (13, "almost everywhere")
        assert "for almost all parameters, at least 1 for all" in run(*arguments).stdout

    def test_model(self) -> None:
        found = as_json("theory", "model", "mlp:2-3-1")
        assert found["tangent_dimension"]["upper"] == 13
        assert found["model_rank_of_function"]["upper"] == 13
        assert "dim T = 13" in run("theory", "model", "mlp:2-3-1").stdout

    def test_refusals(self) -> None:
        assert "--width is 2" in refusal("theory", "two-layer", "--d", 2, "--k", 3, "--width", 2)
        cnn = ("theory", "cnn", "--d", 5, "--kernel", 3)
        assert "--channels is 1" in refusal(*cnn, "--kernels", 2, "--channels", 1)
        assert "kernel_size" in refusal("theory", "cnn", "--d", 2, "--kernel", 3)
        assert "3-x" in refusal("theory", "linear", "3-x")
        assert "ending in .png" in refusal("theory", "linear", "3-2", "--plot", "t.gif")
        assert "needs [1, 3, 2, 1]" in refusal("theory", "mlp", "1-2-2-1", "--target", "1-3-2-1")
        draw = ("--target", "1-2-2-1", "--plot", "t.png")
        assert "omit --target" in refusal("theory", "mlp", "1-3-3-1", *draw)
        unknown = run("theory", "model", "mlp:2-2-1", "--params", "*", code=2).stderr
        assert "No such option" in unknown
        run("theory", "two-layer", "--d", 0, "--k", 1, code=2)


CONVOLUTION = """
import torch
from llr.models import Conv1dTwoLayer

def build():
    return Conv1dTwoLayer(5, 3, 2, generator=torch.Generator().manual_seed(0)).double()
"""


class TestEmbedAndReduce:
    @pytest.mark.parametrize("options", [(), ("--general",)])
    def test_there_and_back(self, options: tuple[str, ...]) -> None:
        to = ("--to", "1-4-3-1", "--out", "wide.safetensors", "--check", "--plot", "s.png")
        wide = as_json("embed", "mlp:1-2-2-1", *to, *options)
        found = wide["check"]
        assert found["narrow"] == found["wide"] == found["joint"] == {"lower": 13, "upper": 13}
        assert (found["verdict"], found["critical"], found["proved_same"]) == ("equal", True, True)
        assert is_picture("s.png")
        hessian = wide["hessian"]
        assert hessian["mismatch"] < 1e-9
        assert sum(hessian["explained"]) == pytest.approx(13)
        assert len(hessian["explained"]) == 27
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
        to = ("--to", "2-3-1", "--out", "w.safetensors", "--check", "--plot", "s.pdf")
        lines = run("embed", "mlp:2-2-1", *to, "--seed", 3).stdout.splitlines()
        assert lines[0].startswith(
            "model  mlp:2-2-1, tanh, RANDOM weights (seed 3); give --weights"
        )
        assert lines[1] == "2-2-1 in 2-3-1: 9 of 13 parameters"
        assert lines[2].startswith("  layer 0: ")
        assert lines[3].startswith("same function (proved), criticality kept, tangent space equal")
        assert lines[4].startswith("narrow: full Hessian, 9 parameters")
        assert lines[-2:] == ["wrote  w.safetensors", "wrote  s.pdf"]
        lines = run("reduce", "mlp:2-3-1", "--weights", "w.safetensors").stdout.splitlines()
        assert lines[0] == "model  mlp:2-3-1, tanh, weights w.safetensors"
        assert lines[1].startswith("2-3-1 reduced to 2-2-1: proved to be the same function")
        assert len(lines) == 3

    def test_seeds(self) -> None:
        steps = [
            as_json("embed", "mlp:2-3-1", "--to", "2-6-1", "--seed", seed)["embedding"]["steps"]
            for seed in (0, 0, 1)
        ]
        assert steps[0] == steps[1] != steps[2]

    def test_samples_of_ones_own(self) -> None:
        x = np.random.default_rng(0).standard_normal((30, 2))
        np.save("x.npy", x)
        np.save("y.npy", np.sin(x[:, :1]))
        files = ("--inputs", "x.npy", "--targets", "y.npy")
        arguments = ("embed", "mlp:2-2-1", "--to", "2-3-1")
        found = as_json(*arguments, "--check", *files)
        assert found["check"]["n_observations"] == 30
        assert found["inputs"] == "x.npy"
        assert "expected one of them" in refusal(*arguments, *files)
        np.save("few.npy", x[:5])
        few = as_json(*arguments, "--check", "--inputs", "few.npy")["check"]
        assert few["narrow"] == {"lower": 5, "upper": 9}
        assert few["critical"] is None

    def test_a_convolution(self) -> None:
        Path("nets_of_kernels.py").write_text(CONVOLUTION)
        to = ("--to", "5-4-1", "--check", "--plot", "s.png", "--out", "w.safetensors")
        found = as_json("embed", "nets_of_kernels:build", *to)
        assert found["check"]["verdict"] == "equal"
        assert found["check"]["wide"] == {"lower": 12, "upper": 12}
        assert found["embedding"]["wide"] == [5, 4, 1]
        assert is_picture("s.png")

    @pytest.mark.filterwarnings("default:layer 0. neurons:UserWarning")
    def test_nearly_equal_neurons(self) -> None:
        state = load_model("mlp:1-2-1").state_dict()
        state["0.weight"], state["0.bias"] = (
            torch.tensor([[1], [1 + 1e-12]], dtype=torch.float64),
            torch.ones(2),
        )
        torch.save({name: t.double() for name, t in state.items()}, "near.pt")
        result = run("reduce", "mlp:1-2-1", "--weights", "near.pt")
        assert result.stdout.splitlines()[1].startswith("1-2-1 reduced to 1-2-1")
        assert result.stderr.startswith("warning: layer 0: neurons")

    def test_refusals(self) -> None:
        arguments = ("embed", "mlp:2-2-1", "--to")
        assert ".safetensors" in refusal(*arguments, "2-3-1", "--out", "w.pt")
        message = refusal(*arguments, "2-1-1", "--out", "w.safetensors")
        assert "--to has 1 neuron in layer 0, but the model has 2" in message
        assert not Path("w.safetensors").exists()
        assert "ending in .png" in refusal(*arguments, "2-3-1", "--plot", "s.gif")
        assert "no such file" in refusal(*arguments, "2-3-1", "--check", "--inputs", "x.npy")
        Path("recurrent_nets.py").write_text("import torch\nnet = torch.nn.LSTM(1, 1)\n")
        assert "`llr model-rank` finds" in refusal("reduce", "recurrent_nets:net")

    def test_nothing_is_unpickled(self) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path("sprung").touch, ()

        torch.save({"0.weight": Trap()}, "w.pt")
        torch.save(Trap(), "x.pt")
        refusal("reduce", "mlp:1-2-1", "--weights", "w.pt")
        refusal("embed", "mlp:1-2-1", "--to", "1-3-1", "--check", "--inputs", "x.pt")
        assert not Path("sprung").exists()
