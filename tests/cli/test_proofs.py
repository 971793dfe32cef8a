"""``llr rank --method``, ``llr certify``, ``llr verify`` and ``llr model-rank``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import llr
from llr.models.load import load_model

from .test_main import rank_as_json, refusal, run

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

SOURCE = ("mlp:2-3-1", "--inputs", "x.npy")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((40, 2)))
    return tmp_path


class TestMethods:
    @pytest.mark.parametrize("method", ["svd", "tsqr", "gram"])
    def test_counting(self, method: str) -> None:
        result = rank_as_json(*SOURCE, "--method", method)
        assert (result["method"], result["rank"], result["upper"]) == (method, 13, 13)
        assert (result["lower"], result["lower_from"], result["exact"]) == (13, "error bound", True)
        assert (result["upper_from"], result["certificate"]) == ("shape", None)

    def test_certified(self) -> None:
        result = rank_as_json(*SOURCE, "--method", "certified", "--max-bits", 256)
        assert (result["lower"], result["exact"], result["bits"]) == (13, True, 64)
        assert llr.Certificate.from_dict(result["certificate"]).rank == 13

    def test_upper(self) -> None:
        assert rank_as_json(*SOURCE, "--upper", 13)["upper"] == 13
        assert "--upper 9 is disproved" in refusal("rank", *SOURCE, "--upper", 9)

    def test_what_is_not_exact_is_called_ambiguous(self) -> None:
        """Two copies of one neuron, and no closed form for a choice of parameters."""
        net = load_model("mlp:2-2-1")
        with torch.no_grad():
            net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
        torch.save(net.state_dict(), "twins.pt")
        twins = ("mlp:2-2-1", "--inputs", "x.npy", "--weights", "twins.pt", "--params", "*")
        output = run("rank", *twins, "--method", "certified").stdout
        assert "stopped growing); AMBIGUOUS: the bounds do not meet" in output
        run("rank", *twins, "--method", "certified", "--strict", code=3)

    def test_unknown(self) -> None:
        assert "'qr' is not one of" in run("rank", *SOURCE, "--method", "qr", code=2).output


class TestCertify:
    def test_round_trip(self, here: Path) -> None:
        output = run("certify", *SOURCE, "--out", "proof.json").stdout
        assert "wrote  proof.json" in output
        assert "13" in output
        kept = llr.Certificate.load(here / "proof.json")
        assert kept.exact
        verdict = run("verify", "proof.json", *SOURCE)
        assert "\nholds: " in verdict.stdout
        model, x = load_model("mlp:2-3-1", dtype=torch.float64), torch.from_numpy(np.load("x.npy"))
        assert llr.verify(kept, model, x)

    def test_another_model(self) -> None:
        run("certify", *SOURCE, "--out", "proof.json")
        output = run("verify", "proof.json", *SOURCE, "--seed", 1, code=1).stdout
        assert "\ndoes NOT hold: the parameters" in output

    def test_other_samples(self) -> None:
        run("certify", *SOURCE, "--out", "proof.json")
        np.save("x.npy", np.load("x.npy")[::-1])
        assert "samples" in run("verify", "proof.json", *SOURCE, code=1).stdout

    def test_edited(self, here: Path) -> None:
        run("certify", "mlp:2-2-1", "--inputs", "x.npy", "--out", "proof.json")
        proof = json.loads((here / "proof.json").read_text())
        proof["rows"][0] = next(i for i in range(40) if i not in proof["rows"])
        proof["rows"].sort()
        (here / "proof.json").write_text(json.dumps(proof))
        message = refusal("verify", "proof.json", "mlp:2-2-1", "--inputs", "x.npy")
        assert "proof.json: checksum does not fit the other fields" in message

    def test_no_certificate(self, here: Path) -> None:
        (here / "proof.json").write_text("{}")
        assert "proof.json" in refusal("verify", "proof.json", *SOURCE)
        assert "absent.json" in refusal("verify", "absent.json", *SOURCE)

    def test_disproved_upper_bound(self, here: Path) -> None:
        assert "disprove" in refusal("certify", *SOURCE, "--upper", 5, "--out", "proof.json")
        assert not (here / "proof.json").exists()

    def test_params(self) -> None:
        run("certify", *SOURCE, "--params", "2.*", "--out", "proof.json")
        run("verify", "proof.json", *SOURCE, "--params", "2.*")
        run("verify", "proof.json", *SOURCE, code=1)

    def test_bounds_of_the_work(self, here: Path) -> None:
        message = refusal("certify", *SOURCE, "--timeout", 1e-9, "--out", "proof.json")
        assert "--timeout 1e-09 seconds were over" in message
        assert not (here / "proof.json").exists()
        run("certify", *SOURCE, "--timeout", 300, "--out", "proof.json")
        verified = ("verify", "proof.json", *SOURCE)
        assert "\nholds: " in run(*verified, "--timeout", 300).stdout
        output = run(*verified, "--timeout", 1e-9, code=3).stdout
        assert output.endswith("\nnot checked: --timeout 1e-09 seconds were over\n")
        output = run(*verified, "--max-bits", 32, code=3).stdout
        assert "\nnot checked: bits is 64, more than --max-bits 32; give --max-bits 64" in output
        assert "--timeout" in run(*verified, "--timeout", "soon", code=2).output
        message = refusal(*verified, "--timeout", -1)
        assert (
            "--timeout is -1.0; expected a positive number of seconds, or no --timeout" in message
        )

    @pytest.mark.slow
    def test_interrupted(self, here: Path) -> None:
        np.save("x.npy", np.random.default_rng(0).standard_normal((600, 1)))
        (here / "proof.json").write_text("what was there before")
        code = "from llr.cli.main import main; print('here', flush=True); main()"
        command = [sys.executable, "-c", code, "certify", "mlp:1-100-1", "--inputs", "x.npy"]
        process = subprocess.Popen(
            [*command, "--out", "proof.json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(8)
        assert process.poll() is None, "it should take minutes"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in errors
        assert (here / "proof.json").read_text() == "what was there before"
        assert sorted(p.name for p in here.iterdir()) == ["proof.json", "x.npy"]


class TestOpenRanks:
    """Scripts depend on exit code 3, which means that the rank is not certain."""

    MODEL = ("mlp:1-16-1", "--inputs", "x.npy", "--weights", "w.pt")

    @pytest.fixture
    def weights(self, here: Path) -> None:
        torch.manual_seed(0)
        model = load_model("mlp:1-16-1", dtype=torch.float64)
        for p in model.parameters():
            torch.nn.init.normal_(p)
        torch.save(model.state_dict(), here / "w.pt")
        np.save(here / "x.npy", np.random.default_rng(0).standard_normal((60, 1)))

    @pytest.mark.usefixtures("weights")
    def test_settled_at_once(self) -> None:
        output = run("rank", *self.MODEL).stdout
        assert "rank 49 of a 60 x 49 matrix, proved" in output

    @pytest.mark.usefixtures("weights")
    def test_ambiguous(self) -> None:
        output = run("rank", *self.MODEL, "--no-resolve", code=3).stdout
        assert "AMBIGUOUS" in output
        counted = run("rank", *self.MODEL, "--no-resolve", "--rtol", 1e-9).stdout
        assert "sigma_" in counted

    @pytest.mark.usefixtures("weights")
    def test_what_a_proof_would_take(self) -> None:
        output = run("rank", *self.MODEL, "--method", "svd", code=3).stdout
        assert "a certificate would take about" in output
        assert "proved" in run("rank", *self.MODEL, "--method", "svd", "--resolve").stdout

    def test_clear_only(self, here: Path) -> None:
        x = np.random.default_rng(0).standard_normal((200, 10))
        np.save(here / "x.npy", np.concatenate((x, x + 1e-14)))  # samples that are almost equal
        source = ("mlp:10-40-1", "--inputs", "x.npy", "--no-resolve")
        assert "; AMBIGUOUS (clear gap): the rank is at least" in run("rank", *source).stdout
        run("rank", *source, "--strict", code=3)


class TestModelRank:
    def test_lines(self) -> None:
        output = run("model-rank", "mlp:2-3-1").stdout
        model = load_model("mlp:2-3-1", dtype=torch.float64)
        assert output.splitlines()[1:] == str(llr.model_rank(model)).splitlines()
        assert "13" in output

    def test_json(self, here: Path) -> None:
        run("model-rank", "mlp:2-3-1", "--json", "out.json")
        result = json.loads((here / "out.json").read_text())
        assert (result["rank"], result["exact"]) == (13, True)
        assert result["model"] == "mlp:2-3-1"

    def test_box_and_no_proof(self) -> None:
        options = ("--sampler", "uniform", "--box", 0, 1, "--no-certify", "--json", "-")
        result = json.loads(run("model-rank", "mlp:2-3-1", *options).stdout)
        assert (result["rank"], result["lower"], result["exact"]) == (13, 0, False)

    def test_too_few_samples(self) -> None:
        few = ("model-rank", "mlp:2-3-1", "--max-samples", 5)
        result = json.loads(run(*few, "--json", "-", code=3).stdout)
        assert result["rank"] == 5
        assert result["saturated"] is False
        assert "\nmodel rank >= 5 of 13 parameters" in run(*few, code=3).stdout

    def test_empty_box(self) -> None:
        assert "low" in refusal("model-rank", "mlp:2-3-1", "--sampler", "uniform", "--box", 1, 1)
