"""Environments for the tests of the installation, with and without torch, and checks of what is installed.

LLR_TEST_PYTHONS names interpreters, separated by spaces, whose environments have torch and llr's other
requirements (default: the one running); `make packaging` names every environment of this checkout.
New environments borrow those packages through a .pth file, so torch is installed only once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
[VERSION] = re.findall(
    r'^VERSION = "(.*)"', (ROOT / "llr" / "ranks" / "info.py").read_text(), re.MULTILINE
)
PYTHONS = os.environ.get("LLR_TEST_PYTHONS", sys.executable).split()
LEFT_OUT = re.compile(r"LLR_|PYTHON|(CXX|CC|VIRTUAL_ENV)$")
ARCHS = "9.0"  # the architecture for CUDA kernels in these tests: a single one takes the least time


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with this process's environment, without variables that affect a build."""
    env = {k: v for k, v in os.environ.items() if not LEFT_OUT.match(k)}
    # No GPU is visible, as when container images are built.
    env |= {"CUDA_VISIBLE_DEVICES": "", "TORCH_CUDA_ARCH_LIST": ARCHS}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def succeed(outcome: subprocess.CompletedProcess[str]) -> str:
    assert outcome.returncode == 0, outcome.stdout
    return outcome.stdout


@dataclass(frozen=True)
class Host:
    """An interpreter with torch, and the facts about it that the tests need."""

    python: Path
    torch: str
    cuda: str | None  # the version that torch is built with
    site: tuple[str, ...]

    @property
    def path(self) -> str:
        """A PATH with the host's ninja, for builds without isolation."""
        return f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"

    @property
    def archs(self) -> str:
        """The architectures that the CUDA part is built for with this torch; empty if it is not built."""
        return ARCHS if self.cuda and NVCC else ""


def look_at(python: str) -> Host:
    code = (
        "import json, sys, torch\n"
        "site = [p for p in sys.path if p.endswith('-packages')]\n"
        "print(json.dumps([torch.__version__, torch.version.cuda, site]))"
    )
    path = Path(os.path.abspath(python))  # not resolved: a link's target is another environment
    answer = run(path, "-I", "-c", code, cwd=ROOT)
    torch, cuda, site = json.loads(succeed(answer).splitlines()[-1])
    return Host(path, torch, cuda, tuple(site))


PLACES = ["/usr/local/cuda/bin", os.environ["PATH"], os.environ.get("CUDA_HOME", "") + "/bin"]
NVCC = shutil.which("nvcc", path=os.pathsep.join(reversed(PLACES)))
HOSTS = [look_at(python) for python in PYTHONS]
each_torch = pytest.mark.parametrize("host", HOSTS, ids=[host.torch for host in HOSTS])
HOST = HOSTS[-1]  # for tests that work with any torch


@dataclass(frozen=True)
class Environment:
    """A new environment, and the host whose pip installs into it."""

    host: Host
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python3*/site-packages"))

    def lend_torch(self) -> None:
        (self.site / "host.pth").write_text("\n".join(self.host.site))

    def pip(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        pip = (self.host.python, "-m", "pip", "--python", self.python)
        variables = {"PATH": self.host.path, **variables}
        return run(*pip, *arguments, cwd=self.folder, **variables)

    def install(self, *what: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.pip("install", "--no-deps", *what, **variables)

    def facts(self) -> dict[str, Any]:
        return dict(json.loads((self.site / "llr" / "_build.json").read_text()))

    def use(self) -> dict[str, Any]:
        """Compute two Jacobians in a new process, and return its output."""
        code = (
            "import json, pathlib, warnings\n"
            "import torch, llr\n"
            "from llr.operators import _ops\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    warnings.simplefilter('always')\n"
            "    for _ in range(2):\n"
            "        J = llr.jacobian(torch.nn.Linear(2, 1), torch.ones(3, 2))\n"
            "maps = pathlib.Path('/proc/self/maps')\n"
            "words = maps.read_text().split() if maps.exists() else []\n"
            "kernels = llr.info().facts.get('CUDA kernels', '')\n"
            "print(json.dumps({'native': _ops.NATIVE, 'reason': _ops.REASON, 'kernels': kernels,\n"
            "    'J': J.tolist(), 'warnings': [str(w.message) for w in caught],\n"
            "    'where': llr.__file__, 'version': llr.__version__,\n"
            "    'cuda': sorted({w for w in words if 'libcudart' in w}),\n"
            "    'openmp': sorted({w for w in words if 'libgomp' in w or 'omp5' in w})}))"
        )
        answer = run(self.python, "-I", "-c", code, cwd=self.folder, CUDA_VISIBLE_DEVICES="")
        seen = dict(json.loads(succeed(answer).splitlines()[-1]))
        assert seen["J"] == [[[1.0, 1.0, 1.0]]] * 3
        assert seen["version"] == VERSION
        return seen

    def falls_back(self, *reasons: str) -> None:
        """Assert that llr works here without its library; the reason is in REASON and in one warning."""
        seen = self.use()
        assert not seen["native"]
        assert all(reason in seen["reason"] for reason in reasons), seen["reason"]
        [warning] = seen["warnings"]
        assert seen["reason"] in warning

    def is_native(self, archs: str | None = None) -> None:
        """Assert that the library works here, with CUDA kernels for these architectures, or the host's."""
        archs = self.host.archs if archs is None else archs
        facts, seen = self.facts(), self.use()
        assert facts["native"], facts
        assert facts["torch"] == self.host.torch
        assert facts["compiler"]
        assert seen["native"], seen["reason"]
        assert seen["warnings"] == []
        assert (facts["cuda"], facts["cuda_archs"]) == (bool(archs), archs), facts["cuda_reason"]
        assert seen["kernels"] == (archs or f"none: {facts['cuda_reason']}")
        assert len(seen["cuda"]) == bool(self.host.cuda)  # only torch's runtime
        if sys.platform == "linux":  # only torch's OpenMP runtime, not a second one
            [runtime] = seen["openmp"]
            assert "/torch/lib/" in runtime


Builder = Callable[[Host], Environment]
Wheels = Callable[[Host], Path]


def new_environment(host: Host, folder: Path, torch: bool = True) -> Environment:
    succeed(run(host.python, "-m", "venv", "--without-pip", folder, cwd=folder.parent))
    made = Environment(host, folder)
    if torch:
        made.lend_torch()
    return made
