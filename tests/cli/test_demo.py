"""The demo: its data, its training, its counts of neurons, and whether the ranks it shows are right."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_diabetes
from torch import nn

from llr import Certificate, verify
from llr.cli import demo
from llr.models.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

Quick = tuple[Path, list[dict[str, Any]], str]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    """One quick run: its directory, rows and printed text."""
    out = tmp_path_factory.mktemp("demo") / "new"
    text = io.StringIO()
    rows = demo.run(out, quick=True, console=Console(file=text, width=80))
    return out, rows, text.getvalue()


class TestRun:
    def test_ranks_are_those_of_the_merged_networks(self, quick: Quick) -> None:
        # Two-layer tanh network of k distinct neurons, 10 inputs, all biases: dim T = 12 k + 1.
        _, rows, _ = quick
        for row in rows:
            assert row["converged"]
            # Copies after training differ in their last bits: a counted rank is clear, but not proved.
            assert row["clear"]
            assert row["ambiguous"] == (row["rank"] < row["P"])
            assert row["rank"] == 12 * row["distinct"][0] + 1 == row["merged_P"]
            assert row["n_rows"] == 442

    def test_the_wide_network_is_deficient(self, quick: Quick) -> None:
        _, rows, text = quick
        widest = rows[-1]
        assert widest["rank"] < widest["P"] == 12 * widest["widths"][1] + 1
        assert f"ranks are below min(442, P), the first at P = {widest['P']}" in text

    def test_table(self, quick: Quick) -> None:
        _, rows, text = quick
        lines = text.splitlines()
        for row in rows:
            cells = next(line.split() for line in lines if line.split()[:1] == [row["label"]])
            assert cells[1] == str(row["P"])
            assert cells[4] == str(row["rank"])
            assert cells[6] == ("exact" if row["rank"] == row["P"] else "clear")
            assert cells[7] == ("-" if row["P"] > 200 else f"{row['P']}")
        assert all(len(line) <= 90 for line in lines if not line.startswith("wrote"))
        assert "\x1b" not in text  # neither colours nor a progress bar outside a terminal

    def test_proofs_hold(self, quick: Quick) -> None:
        _, rows, _ = quick
        x, y = demo._diabetes()
        for row in rows:
            if row["proved"] is None:
                assert row["P"] > 200
                continue
            model = load_model(f"mlp:{row['label']}", seed=demo.SEED)
            demo.train(model, x, y, demo.DECAY)
            assert verify(Certificate.from_dict(row["certificate"]), model, x)
            assert row["rank"] <= row["proved"] == row["P"]

    def test_files(self, quick: Quick) -> None:
        out, rows, text = quick
        assert sorted(p.name for p in out.iterdir()) == ["ranks.json", "spectra.png"]
        stored = json.loads((out / "ranks.json").read_text())
        assert stored["networks"] == rows
        assert stored["samples"] == 442
        for row in rows:
            counted = row["equilibrated"] or row["spectrum"]
            tol = np.finfo(float).eps * min(442, row["P"]) * counted[0]
            assert tol < row["tol"] < 100 * tol
            assert row["rank"] == sum(s > row["tol"] for s in counted)
        assert (out / "spectra.png").read_bytes().startswith(b"\x89PNG")
        assert str(out / "ranks.json") in text

    def test_every_network_has_its_figure_and_row(self, quick: Quick) -> None:
        assert [row["label"] for row in quick[1]] == list(demo.QUICK_NETWORKS)
        assert set(demo.QUICK_NETWORKS) < set(demo.NETWORKS)

    def test_not_converged_is_said(self) -> None:
        row = {
            "label": "10-1-1",
            "P": 13,
            "r2": 0.5,
            "gradient_norm": 1e-3,
            "converged": False,
            "rank": 13,
            "tol": 1e-13,
            "gap": None,
            "ambiguous": True,
            "clear": False,
            "exact": False,
            "distinct": [1],
            "merged_P": 13,
            "proved": None,
            "n_rows": 442,
        }
        text = io.StringIO()
        console = Console(file=text, width=80)
        console.print(demo._table([row]))
        assert "1e-03!" in text.getvalue()
        assert "open" in text.getvalue()
        assert "not converged (gradient norm above 1e-12): 10-1-1" in "\n".join(
            demo._explanation([row])
        )

    @pytest.mark.parametrize(
        ("missing", "extra"), [("sklearn.datasets", "demo"), ("matplotlib", "plot")]
    )
    def test_missing_extras(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str
    ) -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        for name in ("llr.results.figures", "llr.ranks.figure"):
            monkeypatch.delattr(name, raising=False)
            monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ImportError, match=rf"pip install 'llr\[{extra}\]'"):
            demo.run(tmp_path / "out", quick=True)
        assert not (tmp_path / "out").exists()


def test_data() -> None:
    x, y = demo._diabetes()
    raw = load_diabetes(scaled=False)
    for ours, theirs in ((x, raw.data), (y, raw.target[:, None])):
        expected = (theirs - theirs.mean(0)) / theirs.std(0)
        assert np.allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert x.shape == (442, 10)
    assert y.shape == (442, 1)


class TestTrain:
    def test_ridge_regression(self) -> None:
        # A linear model has its optimum in closed form.
        g = torch.Generator().manual_seed(0)
        x = torch.randn(50, 3, dtype=torch.float64, generator=g)
        y = torch.randn(50, 1, dtype=torch.float64, generator=g)
        model = load_model("mlp:3-1")
        fit = demo.train(model, x, y, decay=0.1)
        X = torch.cat((x, torch.ones(50, 1, dtype=torch.float64)), 1)
        expected = torch.linalg.solve(X.T @ X / 50 + 0.1 * torch.eye(4).double(), X.T @ y / 50)
        found = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert torch.allclose(found, expected[:, 0], rtol=0, atol=1e-14)
        assert fit.converged
        loss = (X @ expected - y).square().mean() / 2 + 0.05 * expected.square().sum()
        assert fit.loss == pytest.approx(loss.item(), rel=1e-13)

    def test_gradient_is_that_of_the_stated_loss(self) -> None:
        x, y = demo._diabetes()
        model = load_model("mlp:10-3-1")
        fit = demo.train(model, x, y, decay=5e-3)
        loss = (model(x) - y).square().mean() / 2
        loss = loss + 2.5e-3 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        norm = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm().item()
        assert fit.converged
        assert norm < 1e-12
        assert fit.loss == pytest.approx(loss.item(), rel=1e-12)

    def test_too_few_steps_are_not_called_convergence(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo, "_newton", lambda _, theta: (theta, 0))
        x, y = demo._diabetes()
        fit = demo.train(load_model("mlp:10-3-1"), x, y, decay=5e-3, lbfgs_steps=3)
        assert not fit.converged
        assert fit.gradient_norm > 1e-6
        assert fit.steps == 3

    def test_leaves_a_saddle(self) -> None:
        # All parameters zero is a critical point of every tanh network, but not a minimum of this one.
        model = load_model("mlp:1-1-1")
        x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1e-3)
        fit = demo.train(model, x, x, decay=1e-2)
        assert fit.converged
        assert model[0].weight.abs().item() > 0.1

    def test_deterministic(self) -> None:
        x, y = demo._diabetes()
        models = [load_model("mlp:10-2-1", seed=4) for _ in range(2)]
        for model in models:
            demo.train(model, x, y, decay=5e-3)
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            assert torch.equal(p, q)


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


class TestDistinctNeurons:
    def test_copies_mirror_images_and_dead_neurons(self) -> None:
        first = linear(
            [[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0], [1.0, 2.1], [0.0, 0.0]], [3.0, -3, 3, 3, 0]
        )
        assert demo.distinct_neurons([first, linear([[1.0] * 5], [0.0])]) == [2]

    def test_bias_tells_neurons_apart(self) -> None:
        first = linear([[1.0, 2.0], [1.0, 2.0]], [0.0, 1.0])
        assert demo.distinct_neurons([first, linear([[1.0, 1.0]], [0.0])]) == [2]

    def test_merging_makes_neurons_above_equal(self) -> None:
        # The second layer reads the copies with weights (1, 2) and (3, 0): the same sum.
        first = linear([[1.0], [1.0], [2.0]], [0.5, 0.5, 0.0])
        second = linear([[1.0, 2.0, 1.0], [3.0, 0.0, 1.0]], [0.1, 0.1])
        assert demo.distinct_neurons([first, second, linear([[1.0, 1.0]], [0.0])]) == [2, 1]

    def test_mirror_images_below_count_with_their_sign(self) -> None:
        first = linear([[1.0], [-1.0]], [0.5, -0.5])
        second = linear([[1.0, 2.0], [-1.0, 0.0]], [0.1, 0.1])  # both sum to -1
        assert demo.distinct_neurons([first, second, linear([[1.0, 1.0]], [0.0])]) == [1, 1]

    def test_all_dead(self) -> None:
        first = linear([[0.0], [0.0]], [0.0, 0.0])
        assert demo.distinct_neurons([first, linear([[1.0, 1.0]], [0.0])]) == [0]

    @pytest.mark.parametrize("widths", ["2-5-1", "2-3-4-2"])
    def test_random_networks_have_no_copies(self, widths: str) -> None:
        model = load_model(f"mlp:{widths}")
        layers = [m for m in model if isinstance(m, nn.Linear)]
        assert demo.distinct_neurons(layers) == [layer.out_features for layer in layers[:-1]]
