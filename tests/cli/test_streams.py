"""What the commands do if standard output, or a file of results, cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llr

from .test_main import refusal, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning"),
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
]

SOURCE = ("mlp:2-3-1", "--inputs", "x.npy")
FULL = "error: standard output cannot be written (No space left on device); free some space there"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((40, 2)))
    return tmp_path


def process(*arguments: str, stdout: int, unbuffered: bool = False) -> tuple[int, str]:
    """The exit code, and the text on standard error."""
    code = "import sys; from llr_command import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    return done.returncode, done.stderr


class TestStandardOutput:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("verify", "proof.json", *SOURCE),
            ("rank", *SOURCE, "--json", "r.json"),
            ("rank", *SOURCE, "--json", "-"),
            ("theory", "linear", "3-4-2"),
            ("--help",),
            ("rank", "--help"),
            ("info",),
        ],
    )
    @pytest.mark.parametrize("unbuffered", [False, True])
    def test_a_closed_pipe(self, arguments: tuple[str, ...], unbuffered: bool) -> None:
        """As in ``llr verify ... | head -1``: no message, and not the exit code of an answer."""
        run("certify", *SOURCE, "--out", "proof.json")
        reader, writer = os.pipe()
        os.close(reader)
        try:
            code, errors = process(*arguments, stdout=writer, unbuffered=unbuffered)
        finally:
            os.close(writer)
        assert code == 141
        assert "error:" not in errors
        assert "Traceback" not in errors
        assert "Broken pipe" not in errors
        if "r.json" in arguments:
            assert json.loads(Path("r.json").read_text())["rank"] == 13

    @pytest.mark.parametrize(
        "arguments", [("rank", *SOURCE, "--json", "r.json"), ("--help",), ("rank", *SOURCE)]
    )
    @pytest.mark.parametrize("unbuffered", [False, True])
    def test_a_full_disk(self, arguments: tuple[str, ...], unbuffered: bool) -> None:
        with open("/dev/full", "w") as full:
            code, errors = process(*arguments, stdout=full.fileno(), unbuffered=unbuffered)
        assert code == 2
        assert errors.startswith(FULL)
        assert len(errors.splitlines()) == 1
        if "r.json" in arguments:
            assert json.loads(Path("r.json").read_text())["rank"] == 13


class TestFiles:
    @pytest.mark.parametrize(
        ("arguments", "printed"),
        [
            (("rank", *SOURCE, "--json", "/dev/full", "--plot", "s.png"), "rank 13 of a 40 x 13"),
            (("certify", *SOURCE, "--out", "/dev/full"), "rank = 13 of the 40 x 13"),
            (("model-rank", "mlp:2-3-1", "--json", "/dev/full"), "13"),
            (("theory", "linear", "3-4-2", "--json", "/dev/full"), "rank"),
            (("embed", "mlp:1-2-1", "--to", "1-3-1", "--json", "/dev/full"), "3"),
            (("reduce", "mlp:1-2-1", "--json", "/dev/full", "--out", "w.safetensors"), "2"),
        ],
    )
    def test_the_result_is_printed_first(self, arguments: tuple[str, ...], printed: str) -> None:
        result = run(*arguments, code=2)
        assert printed in result.stdout
        assert result.stderr.endswith("error: /dev/full: No space left on device\n")
        for name in ("s.png", "w.safetensors"):  # files that can be written are written
            assert Path(name).exists() == (name in arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("rank", *SOURCE, "--plot", "-"),
            ("demo", "--out", "-"),
            ("reproduce", "linear", "--out", "-"),
            ("sweep", "run", "spec.toml", "--out", "-"),
            ("sweep", "export", "spec.sqlite", "-"),
            ("reduce", "mlp:1-2-1", "--out", "-"),
            ("embed", "mlp:1-2-1", "--to", "1-3-1", "--out", "-"),
        ],
    )
    def test_standard_output_is_for_text(self, arguments: tuple[str, ...], here: Path) -> None:
        assert "is '-', standard output, which takes text only" in refusal(*arguments)
        assert [path.name for path in here.iterdir()] == ["x.npy"]

    def test_a_certificate_on_standard_output(self, here: Path) -> None:
        result = run("certify", *SOURCE, "--out", "-")
        certificate = llr.Certificate.from_dict(json.loads(result.stdout))
        assert certificate.rank == 13
        assert "rank = 13 of the 40 x 13" in result.stderr
        assert not (here / "-").exists()


class TestWords:
    """Messages name arguments of llr's functions by the command's options."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("rank", *SOURCE, "--upper", "-1"), "--upper is -1; expected"),
            (("rank", *SOURCE, "--params", "nothing"), "--params pattern 'nothing' matches no"),
            (
                ("certify", *SOURCE, "--timeout", "-1", "--out", "p.json"),
                "--timeout is -1.0; expected a positive number of seconds, or no --timeout",
            ),
        ],
    )
    def test_of_ranks(self, arguments: tuple[str, ...], message: str) -> None:
        assert message in refusal(*arguments)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ("--noise-std", "0.1", "--y-error", "0.1"),
                "--noise-std cannot be combined with --y-error",
            ),
            (("--y-error", "abc"), "--y-error is 'abc'"),
            (("--seed", "-5"), "--seed is -5"),
        ],
    )
    def test_of_recover(self, options: tuple[str, ...], message: str) -> None:
        found = refusal("recover", "x.npy", "--max-width", "1", *options)
        assert message in found
        assert "_" not in found
        assert "=" not in found

    @pytest.mark.parametrize(
        "command", [("rank", *SOURCE), ("certify", *SOURCE, "--out", "p"), ("verify", "p", *SOURCE)]
    )
    def test_one_limit_of_bits(self, command: tuple[str, ...]) -> None:
        for bits in ("31", "1048577"):
            output = run(*command, "--max-bits", bits, code=2).output
            assert "not in the range 32<=x<=1048576" in output
