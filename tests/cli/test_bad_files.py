"""Every command that reads or writes files, with every kind of bad file: one line, exit code 2."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.sweep_cases import ENVIRONMENT

import llr
from llr.models.load import load_model

from .test_main import refusal, run

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

MODEL = "mlp:2-2-1"
SUFFIXES = (".csv", ".tsv", ".txt", ".npy", ".npz", ".pt", ".safetensors", ".json", "")
INPUTS = (".csv", ".tsv", ".txt", ".dat", ".npy", ".npz", ".pt", ".safetensors")

# Commands that read a file (BAD), by the kind of file that they expect.
READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rank": (("rank", MODEL, "--inputs", "BAD"), INPUTS),
    "certify": (("certify", MODEL, "--inputs", "BAD", "--out", "o.json"), (".csv", ".npy")),
    "verify, inputs": (("verify", "proof.json", MODEL, "--inputs", "BAD"), (".csv", ".npy")),
    "verify, certificate": (("verify", "BAD", MODEL, "--inputs", "x.npy"), (".json", ".npy", "")),
    "model-rank": (("model-rank", MODEL, "--inputs", "BAD"), (".txt", ".npy")),
    "embed": (("embed", MODEL, "--to", "2-3-1", "--check", "--inputs", "BAD"), (".csv", ".pt")),
    "embed, targets": (
        ("embed", MODEL, "--to", "2-3-1", "--check", "--inputs", "x.npy", "--targets", "BAD"),
        (".csv", ".npy"),
    ),
    "recover": (("recover", "BAD", "--max-width", "1"), INPUTS),
    "rank, weights": (
        ("rank", MODEL, "--inputs", "x.npy", "--weights", "BAD"),
        (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ""),
    ),
    "model, weights": (("theory", "model", MODEL, "--weights", "BAD"), (".safetensors", ".pt")),
    "reduce, weights": (("reduce", MODEL, "--weights", "BAD"), (".safetensors", ".pt")),
    "rank, model": (("rank", "BAD:build", "--inputs", "x.npy"), (".py", "")),
    "sweep": (("sweep", "run", "BAD"), (".toml", "")),
    "status": (("sweep", "status", "BAD"), (".sqlite", "")),
    "export": (("sweep", "export", "BAD", "t.csv"), (".sqlite",)),
    "plot": (("sweep", "plot", "BAD", "f.png"), (".sqlite",)),
}


def missing(_: Path) -> None:
    pass


def directory(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def binary(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(3000))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(3000))


def latin(path: Path) -> None:
    path.write_bytes("größe\n1\n2\n".encode("latin-1"))


def prose(path: Path) -> None:
    path.write_text("It was a dark and stormy night;\nthe rain fell in torrents, 1.5 inches.\n")


def nested(path: Path) -> None:
    path.write_text("[" * 200_000)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)  # sparse: takes no disk space


def unreadable(path: Path) -> None:
    path.write_text("1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


BAD = (
    missing,
    directory,
    empty,
    binary,
    zeros,
    latin,
    prose,
    nested,
    loop,
    pipe,
    listening,
    huge,
    unreadable,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    np.save("x.npy", np.random.default_rng(0).standard_normal((30, 2)))
    return tmp_path


def said_properly(text: str) -> None:
    """The text names no foreign class, error number, temporary file or codec."""
    assert not re.search(
        r"Errno|Error|codec|\.tmp|Traceback|--debug|torch\.load|unpickl(?!es)", text
    ), text


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
@pytest.mark.parametrize("reader", READERS)
def test_reading(reader: str, make: Callable[[Path], None]) -> None:
    arguments, suffixes = READERS[reader]
    if "proof.json" in arguments:
        run("certify", MODEL, "--inputs", "x.npy", "--out", "proof.json")
    for suffix in suffixes:
        path = Path(f"bad{suffix}")
        make(path)
        before = {p.name for p in Path().iterdir()}
        text = refusal(*(a.replace("BAD", path.name) for a in arguments))
        if "importing it raised" not in text:  # errors in Python source are reported by Python
            said_properly(text)
        assert "bad" in text
        assert {p.name for p in Path().iterdir()} <= before | {"bad.sqlite.lock", "__pycache__"}
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


WRITERS: dict[str, tuple[str, ...]] = {
    "rank --json": ("rank", MODEL, "--inputs", "x.npy", "--json"),
    "rank --plot": ("rank", MODEL, "--inputs", "x.npy", "--plot"),
    "certify --out": ("certify", MODEL, "--inputs", "x.npy", "--out"),
    "model-rank --json": ("model-rank", MODEL, "--json"),
    "theory --json": ("theory", "linear", "2-2", "--json"),
    "theory --plot": ("theory", "linear", "2-2", "--plot"),
    "theory model --json": ("theory", "model", MODEL, "--json"),
    "branches --plot": ("theory", "branches", "--d", "1", "--k", "1", "--width", "2", "--plot"),
    "cnn --json": ("theory", "cnn", "--d", "5", "--kernel", "3", "--json"),
    "embed --out": ("embed", MODEL, "--to", "2-3-1", "--out"),
    "embed --plot": ("embed", MODEL, "--to", "2-3-1", "--plot"),
    "reduce --out": ("reduce", MODEL, "--out"),
    "recover --out": ("recover", "xy.csv", "--max-width", "1", "--out"),
    "recover --json": ("recover", "xy.csv", "--max-width", "1", "--json"),
    "sweep --out": ("sweep", "run", "spec.toml", "--out"),
    "export": ("sweep", "export", "s.sqlite"),
    "plot": ("sweep", "plot", "s.sqlite"),
}
SUFFIX = {
    "--json": ".json",
    "--plot": ".png",
    "--out": ".safetensors",
    "export": ".csv",
    "plot": ".png",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writing_is_refused_before_the_work(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The input does not exist either: the output is checked first, before any work.
    os.remove("x.npy")
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    suffix = SUFFIX[writer.split()[-1]]
    Path("file").touch()
    Path(f"folder{suffix}").mkdir()
    for name in (f"folder{suffix}", f"new/a{suffix}", f"file/a{suffix}", f"/proc/a{suffix}"):
        text = refusal(*WRITERS[writer], name)
        said_properly(text)
        assert name in text
    assert {p.name for p in Path().iterdir()} == {"file", f"folder{suffix}"}


@pytest.mark.parametrize("command", [("demo", "--quick"), ("reproduce", "linear", "--quick")])
def test_directories_are_refused_before_the_work(command: tuple[str, ...]) -> None:
    Path("file").touch()
    for name in ("file", "file/deep", "/proc/x"):
        text = refusal(*command, "--out", name)
        said_properly(text)
        assert text.startswith(f"error: --out {name}: ")


def test_one_file_for_two_outputs() -> None:
    text = refusal("rank", MODEL, "--inputs", "x.npy", "--json", "a.png", "--plot", "a.png")
    assert "--plot and --json are both 'a.png'; expected different files" in text


def test_good_files_of_every_kind() -> None:
    x = np.random.default_rng(0).standard_normal((12, 2))
    np.savetxt("x.txt", x, header="a b", fmt="%.17g")
    np.savetxt("x.csv", x, delimiter=";", fmt="%.17g")
    np.savetxt("x.tsv", x, delimiter="\t", header="a\tb", comments="", fmt="%.17g")
    np.savez("x.npz", x=x, n=np.arange(3))
    torch.save(torch.from_numpy(x), "x.pt")
    safetensors.torch.save_file({"x": torch.from_numpy(x)}, "x.safetensors")
    np.save("x.npy", x)
    spectra = [
        json.loads(run("rank", MODEL, "--inputs", name, *options, "--json", "-").stdout)["spectrum"]
        for name, *options in (
            ("x.npy",),
            ("x.txt",),
            ("x.csv", "--sep", ";"),
            ("x.tsv",),
            ("x.npz", "--inputs-key", "x"),
            ("x.pt",),
            ("x.safetensors",),
        )
    ]
    assert all(spectrum == spectra[0] for spectrum in spectra)


class TestOptions:
    def test_decide(self) -> None:
        Path("x.csv").write_text("0,1\n0.5,0.25\n1.5,2\n2.5,-1\n")
        arguments = ("rank", MODEL, "--inputs", "x.csv")
        assert "--header leaves them out, --no-header reads them" in refusal(*arguments)
        assert "3 samples" in run(*arguments, "--header").stdout
        assert "4 samples" in run(*arguments, "--no-header").stdout
        assert (
            "J      3 samples"
            in run("rank", "mlp:1-2-1", "--inputs", "x.csv", "--header", "--columns", "2").stdout
        )

    def test_recover_reads_data(self) -> None:
        Path("xy.csv").write_text("x;y\n" + "".join(f"{i},5;{0 * i},25\n" for i in range(9)))
        assert "data xy.csv: line 2, column 1 is '0,5'" in refusal(
            "recover", "xy.csv", "--max-width", "1", "--decimal", "."
        )
        Path("nan.npy").write_bytes(b"")
        np.save("nan.npy", np.array([[1.0, np.nan]]))
        text = refusal("recover", "nan.npy", "--max-width", "1")
        assert "data nan.npy in torch.float64 has 1 NaN or Inf" in text
        assert "rank" not in text
        np.save("one.npy", np.ones(5))
        assert "data one.npy has shape (5, 1); expected a table" in refusal(
            "recover", "one.npy", "--max-width", "1"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("rank", MODEL, "--inputs", "x.npy", "--sep", ","), "--sep is for text"),
            (("rank", MODEL, "--inputs", "x.npy", "--inputs-key", "x"), "--inputs-key is for .npz"),
            (("rank", MODEL, "--inputs", "x.npy", "--key", "x"), "--key is for --weights"),
            (("embed", MODEL, "--to", "2-3-1", "--sep", ","), "--sep is for --inputs"),
            (("recover", "x.npy", "--max-width", "1", "--key", "x"), "--key is for .npz"),
            (("rank", MODEL, "--inputs", "x.npy", "--sep", "xx"), "--sep is 'xx'; expected one of"),
            (("model-rank", MODEL, "--sample-shape", "0"), "--sample-shape is '0'; expected sizes"),
            (("model-rank", MODEL, "--sample-shape", "2", "--inputs", "x.npy"), "no --inputs"),
        ],
    )
    def test_refused(self, arguments: tuple[str, ...], message: str) -> None:
        assert message in refusal(*arguments)


class TestWhoseWeights:
    def test_random_ones_are_said(self) -> None:
        line = f"model  {MODEL}, relu, RANDOM weights (seed 4); give --weights for yours"
        options = ("--activation", "relu", "--seed", "4")
        inputs = ("--inputs", "x.npy")
        for command in (
            ("rank", MODEL, *inputs),
            ("certify", MODEL, *inputs, "--out", "proof.json"),
            ("verify", "proof.json", MODEL, *inputs),
            ("model-rank", MODEL),
            ("theory", "model", MODEL),
            ("embed", MODEL, "--to", "2-3-1"),
            ("reduce", MODEL),
        ):
            assert line in run(*command, *options).stdout.splitlines()
            if command[0] in ("certify", "verify"):
                continue
            found = json.loads(run(*command, *options, "--json", "-").stdout)
            assert (found["weights"], found["seed"], found["activation"]) == ("random", 4, "relu")

    def test_those_of_a_file(self) -> None:
        torch.save(load_model(MODEL, seed=3).state_dict(), "w.pt")
        result = run("rank", MODEL, "--inputs", "x.npy", "--weights", "w.pt", "--json", "-")
        assert f"model  {MODEL}, tanh, weights w.pt" in result.stderr.splitlines()
        assert json.loads(result.stdout)["weights"] == "w.pt"

    def test_a_models_own(self) -> None:
        Path("whose_nets.py").write_text("from torch import nn\nnet = nn.Linear(2, 1)\n")
        result = run("rank", "whose_nets.py:net", "--inputs", "x.npy", "--json", "-")
        assert (
            "whose_nets.py:net, Linear, weights as built (seed 0); --weights loads others"
            in result.stderr
        )
        found = json.loads(result.stdout)
        assert (found["weights"], found["activation"]) == ("as built", None)

    def test_under_a_key(self) -> None:
        torch.save(
            {
                "model": load_model(MODEL).state_dict(),
                "ema": load_model(MODEL, seed=1).state_dict(),
            },
            "w.pt",
        )
        arguments = ("rank", MODEL, "--inputs", "x.npy", "--weights", "w.pt")
        assert "--key names one of model, ema" in refusal(*arguments)
        run(*arguments, "--key", "ema")


class TestModelRankOfAnyModel:
    @pytest.fixture(autouse=True)
    def model(self) -> None:
        Path("any_nets.py").write_text(
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a = nn.Linear(6, 2)\n"
            "    def forward(self, x):\n"
            "        return torch.tanh(self.a(x.flatten(1)))\n"
        )

    def test_sample_shape(self) -> None:
        for shape in ("2x3", "6"):
            result = run("model-rank", "any_nets:Net", "--sample-shape", shape, "--json", "-")
            assert json.loads(result.stdout)["rank"] == 14
        text = refusal("model-rank", "any_nets:Net")
        assert "what samples Net takes cannot be read off it; give --sample-shape" in text
        assert "sampler=" not in text

    def test_samples_of_a_file(self) -> None:
        np.save("points.npy", np.random.default_rng(0).standard_normal((40, 2, 3)))
        result = run("model-rank", "any_nets:Net", "--inputs", "points.npy", "--json", "-")
        found = json.loads(result.stdout)
        assert (found["rank"], found["inputs"]) == (14, "points.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rank", "mlp:999999999-999999999", "--inputs", "x.npy"), "more than the memory budget"),
        (("theory", "linear", "999999999-999999999-1"), "more than the memory budget"),
        (("theory", "factorization", "--m", 10**9, "--p", 10**9, "--n", 1), "memory budget"),
        (("theory", "two-layer", "--d", 10**9, "--k", 10**9), "memory budget"),
        (("embed", MODEL, "--to", "2-999999999999-1"), "expected at least two positive widths"),
    ],
)
def test_networks_that_cannot_be_meant(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(*arguments)


def test_copies_count() -> None:
    """The memory for reading a network beside its parameters is counted before these are created."""
    with llr.set_memory_budget("200 MB"):
        message = refusal("rank", "mlp:2-999999-1", "--inputs", "x.npy")
    assert "3,999,997 parameters take 32 MB in float64, and 416 MB with the copies" in message
