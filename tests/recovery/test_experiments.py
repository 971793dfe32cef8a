"""The cells of experiments, the commands that run them, and their figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from cli.test_main import refusal, run
from matplotlib.figure import Figure

from llr.models import Conv1dTwoLayer, MatrixFactorization, TwoLayer
from llr.ranks.rank import rank
from llr.recovery import EXPERIMENTS, Target, reproduce
from llr.recovery import embedded as embedded_cell
from llr.recovery.experiment import Setting, run_cell
from llr.recovery.figure import embedded as embedded_figure
from llr.recovery.search import Data, first_fit
from llr.recovery.sweep import Spec, read_store
from llr.theory import optimistic_sample_size

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

CNN = {"cnn-shared": 6, "cnn-local": 12, "cnn-full": 18}


class TestCells:
    @pytest.mark.parametrize(("architecture", "size"), CNN.items())
    def test_a_kernel_in_three_architectures(self, architecture: str, size: int) -> None:
        """No recovery below the predicted size, always recovery above it."""
        recovered = {-1: 0, 1: 0}
        for seed in range(20, 30):
            for beyond in recovered:
                cell = run_cell(
                    {"architecture": architecture, "d": 5, "n": size + beyond, "seed": seed}
                )
                assert cell["predicted"] == size
                recovered[beyond] += bool(cell["recovered"])
        assert recovered == {-1: 0, 1: 10}

    def test_recovered_is_measured_where_there_are_no_samples(self) -> None:
        """Fewer samples than necessary can be fitted, but do not determine the function elsewhere."""
        cells = [run_cell({"d": 2, "k": 2, "n": 4, "seed": s, "starts": 200}) for s in range(5)]
        assert all(cell["fitted"] for cell in cells)
        assert not any(cell["recovered"] for cell in cells)
        assert all(float(cell["test_error"] or 0) > 1e-6 for cell in cells)

    @pytest.mark.parametrize("strategy", ["recover", "lm"])
    def test_strategies_that_find(self, strategy: str) -> None:
        cell = run_cell({"d": 3, "k": 1, "width": 1, "n": 6, "strategy": strategy})
        assert (cell["recovered"], cell["fitted"], cell["predicted"]) == (True, True, 4)

    def test_a_wide_net_narrowed(self) -> None:
        values = {"d": 2, "k": 1, "width": 8, "n": 6, "steps": 2000, "seed": 1}
        cells = [run_cell({**values, "strategy": s}) for s in ("adam-annealed", "adam-merge-lm")]
        assert [cell["recovered"] for cell in cells] == [False, True]

    @pytest.mark.parametrize("strategy", ["gd", "adam", "adam-annealed"])
    def test_strategies_that_train(self, strategy: str) -> None:
        values = {"d": 2, "k": 1, "width": 4, "n": 12, "strategy": strategy, "init": 0.1}
        short = run_cell({**values, "steps": 20})
        long = run_cell({**values, "steps": 2000})
        assert float(long["train_error"] or 0) < float(short["train_error"] or 0)

    def test_fewer_samples_than_a_neuron_takes_are_a_point_of_the_curve(self) -> None:
        cell = run_cell({"d": 5, "k": 1, "n": 5, "strategy": "recover"})
        assert (cell["recovered"], cell["fitted"], cell["test_error"]) == (False, False, None)

    def test_the_same_values_give_the_same(self) -> None:
        values = {"d": 2, "k": 2, "n": 7, "seed": 3}
        assert run_cell(values) == run_cell(values)
        assert run_cell(values) != run_cell({**values, "seed": 4})

    def test_strategies_and_sizes_share_a_target(self) -> None:
        one = Setting.of({"d": 3, "k": 2, "n": 9, "seed": 5, "strategy": "lm"})
        other = Setting.of({"d": 3, "k": 2, "n": 12, "seed": 5, "strategy": "gd", "width": 7})
        assert one.draw_target().error(other.draw_target().model) == 0

    def test_masks_see_all_there_is(self) -> None:
        for seed in range(5):
            setting = Setting.of(
                {"architecture": "matrix", "d": 5, "rank": 2, "n": 16, "seed": seed}
            )
            target = setting.draw_target()
            data = setting.draw_sample(target)
            assert rank(target.model, data.x).rank == 16
            assert len(torch.unique(data.x, dim=0)) == 16

    def test_a_mask_that_there_is_not(self) -> None:
        with pytest.raises(ValueError, match="n is 26, but the matrix has 25 entries"):
            Setting.of({"architecture": "matrix", "n": 26}).draw_sample(
                Setting.of({"architecture": "matrix", "n": 26}).draw_target()
            )

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "n is missing"),
            ({"n": 3, "depth": 2}, "'depth' is unknown; expected some of n, architecture"),
            ({"n": "3"}, "n is '3'; expected int"),
            ({"n": True}, "n is True; expected int"),
            ({"n": 0}, "n is 0; expected a positive integer"),
            ({"n": 3, "strategy": "sgd"}, "strategy is 'sgd'; expected one of lm, recover"),
            ({"n": 3, "architecture": "mlp"}, "architecture is 'mlp'"),
            ({"n": 3, "target": "easy"}, "target is 'easy'"),
            ({"n": 9, "architecture": "cnn-full", "strategy": "recover"}, "for two-layer networks"),
        ],
    )
    def test_bad_values(self, values: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run_cell(values)  # type: ignore[arg-type]

    def test_an_embedded_target_keeps_its_rank(self) -> None:
        for seed in range(3):
            cell = embedded_cell.run_cell(
                {"d": 2, "k": 2, "width": 5, "n": 7, "seed": seed, "strategy": "recover"}
            )
            assert (cell["narrow_rank"], cell["wide_rank"], cell["parameters"]) == (6, 6, 15)
            assert cell["recovered"]


class TestFirstFit:
    def test_other_models_than_two_layer_networks(self) -> None:
        for net in (
            Conv1dTwoLayer(4, 2, 1, dtype=torch.float64),
            MatrixFactorization(3, 1, 3, dtype=torch.float64),
        ):
            target = Target.generic(net, seed=0)
            size = int(optimistic_sample_size(net, target.model).upper)
            x, y = target.sample(min(size + 2, 9), seed=3)
            fits, spent = first_fit(net, Data(x, y), budget=2000, seed=0)
            assert float(fits.relative[0]) < 1e-22
            assert spent.starts <= 2000
            assert target.error(fits.model(0)) < 1e-8

    def test_a_budget_that_is_spent(self) -> None:
        x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        fits, spent = first_fit(TwoLayer(1, 1), Data(x, x.abs()), budget=20)
        assert spent.starts == 20
        assert float(fits.relative[0]) == pytest.approx(spent.best, rel=0.5)


class TestReproduce:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_quick(self, name: str, tmp_path: Path) -> None:
        done = reproduce(name, tmp_path, quick=True)
        assert done.tally.left == done.tally.failed == 0
        assert done.figure.read_bytes().startswith(b"\x89PNG")
        with done.table.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == done.tally.total
        assert {"recovered", "predicted", "n", "seed"} <= set(rows[0])

    def test_full_grids_are_grids_of_cells_that_make_sense(self) -> None:
        for experiment in EXPERIMENTS.values():
            cells = Spec.parse(experiment.full).cells
            assert len(cells) >= 100
            for cell in cells:
                Setting.of(dict(cell.values))

    def test_goes_on_where_it_was(self, tmp_path: Path) -> None:
        first = reproduce("linear", tmp_path, quick=True)
        again = reproduce("linear", tmp_path, quick=True, suffix=".svg")
        assert (first.tally.now, again.tally.now) == (4, 0)
        assert again.figure.read_text().startswith("<?xml")

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="experiment is 'linaer'; expected one of two-layer"):
            reproduce("linaer", tmp_path)
        with pytest.raises(ValueError, match="jpg"):
            reproduce("linear", tmp_path, suffix=".jpg")
        assert not list(tmp_path.glob("*.sqlite"))

    def test_failures_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Setting, "template", lambda _: 1 / 0)
        with pytest.raises(RuntimeError, match=r"4 cells failed, such as .*ZeroDivisionError"):
            reproduce("linear", tmp_path, quick=True)
        monkeypatch.undo()
        assert reproduce("linear", tmp_path, quick=True).tally.done == 4


class TestEmbeddedFigure:
    def test_shows_ranks_and_rates(self, tmp_path: Path) -> None:
        done = reproduce("embedding", tmp_path, quick=True)
        with read_store(done.results) as store:
            figure = embedded_figure(store.rows())
        assert isinstance(figure, Figure)
        left, right = figure.axes
        drawn = {line.get_label(): line for line in left.lines}
        assert list(drawn["parameters"].get_ydata()) == [3, 6]
        assert list(drawn["rank, maximum"].get_ydata()) == [3, 3]
        assert {line.get_label() for line in right.lines} == {"lm", "recover"}

    def test_nothing_to_draw(self) -> None:
        with pytest.raises(ValueError, match="no cell is done"):
            embedded_figure([])


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine samples of a network of two neurons with biases on two inputs."""
    monkeypatch.chdir(tmp_path)
    x, y = Target.separated(TwoLayer(2, 2), seed=0).sample(9, seed=1)
    rows = torch.cat((x, y), 1).numpy()
    np.savetxt("data.csv", rows, delimiter=",", header="a,b,y", comments="", fmt="%.17g")
    return tmp_path / "data.csv"


class TestCommands:
    def test_recover(self, table: Path) -> None:
        out = run(
            "recover",
            "data.csv",
            "--max-width",
            8,
            "--out",
            "net.safetensors",
            "--json",
            "found.json",
        )
        assert "recovered: if the samples are rounded values of a tanh network" in out.stdout
        found = json.loads(Path("found.json").read_text())
        weights = safetensors.torch.load_file("net.safetensors")
        assert found["model"]["0.weight"] == weights["0.weight"].tolist()
        net = TwoLayer(2, 2, dtype=torch.float64)
        net.load_state_dict(weights)
        data = torch.from_numpy(np.loadtxt(table, delimiter=",", skiprows=1))
        with torch.no_grad():
            assert torch.allclose(net(data[:, :2]), data[:, 2:], atol=1e-12)

    def test_recover_json_alone(self, table: Path) -> None:
        out = run("recover", table, "--max-width", 2, "--json", "-")
        assert json.loads(out.stdout)["status"] == "recovered"
        assert "recovered" in out.stderr

    def test_recover_options(self, table: Path) -> None:
        x, y = Target.separated(TwoLayer(2, 2), seed=0).sample(40, seed=1)
        rows = torch.cat((x, y.float().double()), 1).numpy()
        np.savetxt("short.csv", rows, delimiter=",", fmt="%.17g")
        options = ["--y-error", "float32", "--domain", -1, 1, "--held-out", 10, "--json", "-"]
        found = json.loads(run("recover", "short.csv", "--max-width", 3, *options).stdout)
        assert (found["status"], found["samples"], found["width"]) == ("recovered", 30, 2)
        assert (found["tested"]["points"], found["tested"]["beyond"]) == (10, 0)
        assert "y computed in float32" in found["assumed"]
        assert "the domain given" in found["claim"]
        assert "--y-error is 'single'; expected a number" in refusal(
            "recover", table, "--max-width", 1, "--y-error", "single"
        )
        assert "expected fewer" in refusal("recover", table, "--max-width", 1, "--held-out", 9)

    def test_recover_what_does_not_fit(self, table: Path) -> None:
        out = run("recover", table, "--max-width", 1, "--starts", 50, code=1)
        assert (
            "not found: no network that fits was found in 50 starts (width tried: 1)" in out.stdout
        )

    def test_recover_bad_input(self, table: Path) -> None:
        assert "with inputs and, in the last 3 columns" in refusal(
            "recover", table, "--max-width", 1, "--outputs", 3
        )
        assert "ending in .safetensors" in refusal(
            "recover", table, "--max-width", 1, "--out", "net.pt"
        )
        assert "nowhere.csv" in refusal("recover", "nowhere.csv", "--max-width", 1)
        np.savetxt("few.csv", np.eye(3), delimiter=",")
        assert "expected at least 4" in refusal("recover", "few.csv", "--max-width", 1)

    @pytest.mark.usefixtures("table")
    def test_reproduce(self) -> None:
        out = run("reproduce", "linear", "--quick", "--svg", "--out", "here")
        assert "expected for the full grid  6, one more than for a linear function" in out.stdout
        assert "4 of 4 cells done, 0 failed" in out.stdout
        assert sorted(p.name for p in Path("here").iterdir()) == [
            "linear-quick.csv",
            "linear-quick.sqlite",
            "linear-quick.svg",
        ]

    def test_reproduce_help_lists_the_experiments(self) -> None:
        text = run("reproduce", "--help").stdout
        for name, experiment in EXPERIMENTS.items():
            assert name in text
            assert experiment.question in text
