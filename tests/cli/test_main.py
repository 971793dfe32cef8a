"""The command line as users see it: output, files, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

import llr
from llr.cli import demo
from llr.cli import main as cli
from llr.models.load import load_model
from llr.ranks.info import Check, SelfTest
from llr.ranks.installation import Info

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with samples of three inputs."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((30, 3))
    np.save("x.npy", x)
    np.savetxt("x.csv", x, delimiter=",", header="a,b,c", comments="", fmt="%.17g")
    torch.save(torch.from_numpy(x), "x.pt")
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def refusal(*arguments: object) -> str:
    """The single line of a refusal."""
    result = run(*arguments, code=2)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def rank_as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(run("rank", *arguments, "--json", "-").stdout)


@pytest.mark.usefixtures("here")
class TestRank:
    @pytest.mark.parametrize("inputs", ["x.npy", "x.csv", "x.pt"])
    def test_lines(self, inputs: str) -> None:
        output = run("rank", "mlp:3-4-2", "--inputs", inputs).stdout.splitlines()
        assert output[0] == (
            "model  mlp:3-4-2, tanh, RANDOM weights (seed 0); give --weights for yours"
        )
        assert output[1] == "J      30 samples x 2 outputs x 26 parameters"
        x = torch.from_numpy(np.load("x.npy"))
        assert output[2] == str(llr.rank(load_model("mlp:3-4-2"), x))
        assert len(output) == 3

    def test_json(self, here: Path) -> None:
        run("rank", "mlp:3-4-2", "--inputs", "x.npy", "--seed", 3, "--json", "out.json")
        result = json.loads((here / "out.json").read_text())
        assert result["rank"] == 26
        assert result["n_rows"] == 60
        assert len(result["spectrum"]) == 26
        assert result["gap"] > 1e3
        assert (result["model"], result["inputs"], result["seed"]) == ("mlp:3-4-2", "x.npy", 3)
        assert result["torch"] == torch.__version__

    def test_json_on_standard_output(self) -> None:
        result = run("rank", "mlp:3-4-2", "--inputs", "x.npy", "--json", "-")
        assert json.loads(result.stdout)["rank"] == 26
        assert "rank 26 of a 60 x 26 matrix" in result.stderr

    def test_plot(self, here: Path) -> None:
        output = run("rank", "mlp:3-4-2", "--inputs", "x.npy", "--plot", "s.png").stdout
        assert "wrote  s.png" in output
        assert (here / "s.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
    def test_weights(self, name: str) -> None:
        # Both hidden neurons alike: rank 1 + 3 + 1 + output bias, of 13 parameters.
        state = load_model("mlp:3-2-1").state_dict()
        state["0.weight"][1], state["0.bias"][1] = state["0.weight"][0], state["0.bias"][0]
        if name.endswith("pt"):
            torch.save(state, name)
        else:
            safetensors.torch.save_file(state, name)
        assert rank_as_json("mlp:3-2-1", "--inputs", "x.npy", "--weights", name)["rank"] == 6
        assert rank_as_json("mlp:3-2-1", "--inputs", "x.npy")["rank"] == 11

    def test_users_model_in_evaluation_mode(self, here: Path) -> None:
        (here / "own_models.py").write_text(
            "from torch import nn\n"
            "def build():\n"
            "    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1))\n"
        )
        result = rank_as_json("own_models:build", "--inputs", "x.npy")
        assert (result["rank"], result["n_params"]) == (21, 21)
        sys.modules.pop("own_models")

    def test_params(self) -> None:
        result = rank_as_json(
            "mlp:3-4-2", "--inputs", "x.npy", "--params", "0.*", "--params", "2.bias"
        )
        assert result["n_params"] == 18
        assert result["params"] == ["0.*", "2.bias"]

    @pytest.mark.parametrize(
        ("option", "dtype"), [("float64", "float64"), ("float32", "float32"), ("model", "float32")]
    )
    def test_dtype(self, option: str, dtype: str) -> None:
        result = rank_as_json("mlp:3-4-2", "--inputs", "x.npy", "--dtype", option)
        assert result["dtype"] == dtype

    def test_tolerances(self) -> None:
        assert rank_as_json("mlp:3-4-2", "--inputs", "x.npy", "--atol", 1e6)["rank"] == 0
        relative = rank_as_json("mlp:3-4-2", "--inputs", "x.npy", "--rtol", 0.5)
        assert relative["tol"] == 0.5 * relative["spectrum"][0]

    def test_activation_and_chunks(self) -> None:
        result = rank_as_json(
            "mlp:3-4-2", "--inputs", "x.npy", "--activation", "identity", "--chunk-size", 7
        )
        assert result["rank"] == 8  # a linear map with bias, whatever its factors


@pytest.mark.usefixtures("here")
class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("mlp:3", "--inputs", "x.npy"), "expected at least two positive widths"),
            (("nothing:here", "--inputs", "x.npy"), "there is no module 'nothing'"),
            (("mlp:3-1", "--inputs", "y.npy"), "y.npy: there is no such file"),
            (("mlp:3-1", "--inputs", "x.doc"), "expected .csv, .tsv, .txt, .dat, .npy"),
            (("mlp:4-1", "--inputs", "x.npy"), "x has shape (30, 3); expected (n, 4)"),
            (("mlp:3-1", "--inputs", "x.npy", "--weights", "w.bin"), "expected .safetensors"),
            (("mlp:3-1", "--inputs", "x.npy", "--params", "9.*"), "'9.*'"),
            (("mlp:3-1", "--inputs", "x.npy", "--rtol", "-1"), "rtol must be a finite number >= 0"),
            (("mlp:3-1", "--inputs", "x.npy", "--plot", "s.jpg"), "ending in .png, .pdf, .svg"),
            (
                ("torch.nn:Linear", "--inputs", "x.npy", "--activation", "tanh"),
                "--activation is for mlp: models",
            ),
            (("torch.nn:Linear", "--inputs", "x.npy"), "raised TypeError"),
        ],
    )
    def test_one_line(self, arguments: tuple[str, ...], message: str) -> None:
        assert message in refusal("rank", *arguments)

    def test_weights_of_another_shape(self) -> None:
        safetensors.torch.save_file(load_model("mlp:3-5-1").state_dict(), "w.safetensors")
        text = refusal("rank", "mlp:3-4-1", "--inputs", "x.npy", "--weights", "w.safetensors")
        assert "0.weight (5, 3) (the model has (4, 3))" in text

    def test_malformed_files(self, here: Path) -> None:
        (here / "w.safetensors").write_bytes(b"garbage")
        text = refusal("rank", "mlp:3-1", "--inputs", "x.npy", "--weights", "w.safetensors")
        assert "not a safetensors file" in text
        (here / "bad.csv").write_text("1,2,3\n4,,6\n")
        text = refusal("rank", "mlp:3-1", "--inputs", "bad.csv")
        assert "line 2, column 2 is empty" in text
        np.save("object.npy", np.array([{}]), allow_pickle=True)
        assert "Object arrays" in refusal("rank", "mlp:3-1", "--inputs", "object.npy")
        np.save("empty.npy", np.zeros((0, 3)))
        assert "x has no samples" in refusal("rank", "mlp:3-1", "--inputs", "empty.npy")

    def test_unwritable_output(self, here: Path) -> None:
        (here / "folder").mkdir()
        text = refusal("rank", "mlp:3-1", "--inputs", "x.npy", "--json", "folder")
        assert "folder" in text

    def test_any_exception_of_a_model(self, here: Path) -> None:
        (here / "raising.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a = nn.Linear(3, 1)\n"
            "    def forward(self, x):\n"
            "        raise LookupError('two\\nlines')\n"
        )
        text = refusal("rank", "raising:Net", "--inputs", "x.npy")
        assert text.endswith("LookupError: two lines (--debug shows where)")
        sys.modules.pop("raising")

    def test_syntax_error_in_a_users_module(self, here: Path) -> None:
        (here / "broken.py").write_text("def f(:\n")
        assert "SyntaxError" in refusal("rank", "broken:f", "--inputs", "x.npy")

    def test_debug_shows_the_traceback(self) -> None:
        result = run("rank", "mlp:3", "--inputs", "x.npy", "--debug", code=2)
        assert "Traceback (most recent call last)" in result.stderr
        assert "load_model" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: ")

    def test_usage(self) -> None:
        for arguments in (
            ("rank",),
            ("rank", "mlp:3-1"),
            ("rank", "mlp:3-1", "--dtype", "half"),
            ("no",),
        ):
            assert "Usage:" in run(*arguments, code=2).stderr

    @pytest.mark.parametrize("command", ["demo", "rank", "info", "selftest"])
    def test_every_command_has_debug_and_help(self, command: str) -> None:
        assert "--debug" in run(command, "--help").stdout

    def test_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(llr, "rank", interrupted)
        result = run("rank", "mlp:3-1", "--inputs", "x.npy", "--json", "out.json", code=130)
        assert result.stderr == "interrupted\n"

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process on Windows")
    def test_ctrl_c_of_a_running_process(self, here: Path) -> None:
        (here / "slow.py").write_text(
            "import pathlib, time\n"
            "def build():\n"
            "    pathlib.Path('started').touch()\n"
            "    time.sleep(600)\n"
        )
        command = [sys.executable, "-m", "llr.cli", "rank", "slow:build", "--inputs", "x.npy"]
        environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            while not (here / "started").exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate()
        assert process.returncode == 130
        assert stderr == "interrupted\n"


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns() -> Info:
        warnings.warn("something to know", UserWarning, stacklevel=1)
        return Info({"a": "fact"})

    monkeypatch.setattr(llr, "info", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("info")
    assert result.stderr == "warning: something to know\n"
    assert result.stdout == "a  fact\n"


def test_info() -> None:
    with llr.set_memory_budget("2 GB"):  # otherwise it depends on the machine's free memory
        assert run("info").stdout == f"{llr.info()}\n"


@pytest.mark.parametrize(("error", "verdict", "code"), [(1e-15, "all agree", 0), (1.0, "WRONG", 1)])
def test_selftest(monkeypatch: pytest.MonkeyPatch, error: float, verdict: str, code: int) -> None:
    outcome = SelfTest((Check("an operator", error, 1e-13),), "native")
    asked = []
    monkeypatch.setattr(llr, "selftest", lambda device: asked.append(device) or outcome)
    assert verdict in run("selftest", code=code).stdout
    assert verdict in run("selftest", "--device", "cuda:1", code=code).stdout
    assert asked == [None, "cuda:1"]


def test_selftest_of_a_device_that_is_not_there() -> None:
    assert "'cuda:99'; expected one of those visible here: cpu" in refusal(
        "selftest", "--device", "cuda:99"
    )


def test_version() -> None:
    assert run("--version").stdout == f"llr, version {llr.__version__}\n"


def test_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(demo, "run", lambda out, quick: calls.append((out, quick)))
    run("demo", "--out", tmp_path / "here", "--quick")
    run("demo")
    assert [(str(out), quick) for out, quick in calls] == [
        (str(tmp_path / "here"), True),
        ("runs/demo", False),
    ]


def test_every_command_is_where_the_table_says() -> None:
    group = cli.main
    context = click.Context(group)
    for name, (_, line) in cli.COMMANDS.items():
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
        assert line.endswith(".")
    assert group.get_command(context, "nothing") is None


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from llr.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('scipy', 'matplotlib', 'sklearn')\n"
        "       or m.startswith(('llr.cli.theory', 'llr.recovery'))])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "[]"
