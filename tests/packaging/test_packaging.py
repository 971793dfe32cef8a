"""The installation itself, in environments made for it: with and without torch, a compiler, isolation.

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
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
[VERSION] = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
PYTHONS = os.environ.get("LLR_TEST_PYTHONS", sys.executable).split()
LEFT_OUT = re.compile(r"LLR_|PYTHON|(CXX|CC|VIRTUAL_ENV|TORCH_CUDA_ARCH_LIST)$")


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command's outcome, in this process's environment without what steers a build."""
    env = {k: v for k, v in os.environ.items() if not LEFT_OUT.match(k)}
    # Images are built where no GPU is visible: so are these.
    env |= {"CUDA_VISIBLE_DEVICES": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
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
    """An interpreter that has torch, and what the tests need to know of it."""

    python: Path
    torch: str
    cuda: bool
    site: tuple[str, ...]

    @property
    def path(self) -> str:
        """A PATH with the host's ninja, for builds without isolation."""
        return f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"


def look_at(python: str) -> Host:
    code = (
        "import json, sys, torch\n"
        "site = [p for p in sys.path if p.endswith('-packages')]\n"
        "print(json.dumps([torch.__version__, torch.version.cuda is not None, site]))"
    )
    path = Path(os.path.abspath(python))  # not resolved: a link's target is another environment
    answer = run(path, "-I", "-c", code, cwd=ROOT)
    torch, cuda, site = json.loads(succeed(answer).splitlines()[-1])
    return Host(path, torch, cuda, tuple(site))


HOSTS = [look_at(python) for python in PYTHONS]
each_torch = pytest.mark.parametrize("host", HOSTS, ids=[host.torch for host in HOSTS])
HOST = HOSTS[-1]  # where any torch will do


@dataclass(frozen=True)
class Environment:
    """A new environment, and the host whose pip works on it."""

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
        """Computes two Jacobians in a new process; what it saw."""
        code = (
            "import json, pathlib, warnings\n"
            "import torch, llr\n"
            "from llr import _ops\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    warnings.simplefilter('always')\n"
            "    for _ in range(2):\n"
            "        J = llr.jacobian(torch.nn.Linear(2, 1), torch.ones(3, 2))\n"
            "maps = pathlib.Path('/proc/self/maps')\n"
            "words = maps.read_text().split() if maps.exists() else []\n"
            "print(json.dumps({'native': _ops.NATIVE, 'reason': _ops.REASON,\n"
            "    'J': J.tolist(), 'warnings': [str(w.message) for w in caught],\n"
            "    'where': llr.__file__, 'version': llr.__version__,\n"
            "    'openmp': sorted({w for w in words if 'libgomp' in w or 'omp5' in w})}))"
        )
        answer = run(self.python, "-I", "-c", code, cwd=self.folder, CUDA_VISIBLE_DEVICES="")
        seen = dict(json.loads(succeed(answer).splitlines()[-1]))
        assert seen["J"] == [[[1.0, 1.0, 1.0]]] * 3
        assert seen["version"] == VERSION
        return seen

    def falls_back(self, *reasons: str) -> None:
        """Llr works here without its library, and says why: in REASON, and in one warning."""
        seen = self.use()
        assert not seen["native"]
        assert all(reason in seen["reason"] for reason in reasons), seen["reason"]
        [warning] = seen["warnings"]
        assert seen["reason"] in warning

    def is_native(self) -> None:
        facts, seen = self.facts(), self.use()
        assert facts["native"], facts
        assert facts["torch"] == self.host.torch
        assert facts["compiler"]
        assert seen["native"], seen["reason"]
        assert seen["warnings"] == []
        if sys.platform == "linux":  # torch's own OpenMP runtime, and no second one beside it
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


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """A new environment without torch."""
    return new_environment(HOST, tmp_path / "env", torch=False)


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    """A new environment with some torch."""
    return new_environment(HOST, tmp_path / "env")


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """One environment per torch for all that is compiled there, so that it is compiled once."""
    made: dict[Host, Environment] = {}

    def environment(host: Host) -> Environment:
        if host not in made:
            made[host] = new_environment(host, tmp_path_factory.mktemp("builder") / "env")
        return made[host]

    return environment


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, packed where nothing native could be built."""
    folder = tmp_path_factory.mktemp("sdist")
    junk = [".*", "build", "dist", "runs", "*.egg-info", "*.so", "_build.json", "__pycache__"]
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*junk))
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    pack = run(HOST.python, "-c", code, cwd=folder / "checkout", LLR_NO_EXTENSION="1")
    succeed(pack)
    [packed] = folder.glob("*.tar.gz")
    return packed


@pytest.fixture(scope="session")
def sources(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution. Every test builds from it, which shows that it is complete."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    [unpacked] = folder.iterdir()
    return unpacked


@pytest.fixture(scope="session")
def wheel_for(builder: Builder, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Builds, once per torch, a wheel without isolation."""
    built: dict[Host, Path] = {}

    def wheel(host: Host) -> Path:
        if host not in built:
            folder = tmp_path_factory.mktemp("wheel")
            options = ("--no-deps", "--no-build-isolation", "-w", folder)
            succeed(builder(host).pip("wheel", *options, sources))
            [built[host]] = folder.glob("*.whl")
        return built[host]

    return wheel


# What is in the distributions


def test_sdist_has_all_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        packed = {Path(*Path(name).parts[1:]).as_posix() for name in tar.getnames()}
    for pattern in ("csrc/**/*.*", "llr/**/*.py", "tests/**/*.py", "benchmarks/*.py"):
        there = [p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern) if p.is_file()]
        assert there, pattern
        assert packed.issuperset(there), set(there) - packed
    assert packed >= {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "llr/py.typed"}
    assert not [name for name in packed if re.search(r"\.so$|_build\.json$|__pycache__", name)]


@each_torch
def test_wheel_has_the_package_and_its_library_alone(host: Host, wheel_for: Wheels) -> None:
    wheel = wheel_for(host)
    assert re.search(r"-cp3\d+-cp3\d+-", wheel.name)  # not for every Python
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        facts = json.loads(archive.read("llr/_build.json"))
    assert {name.split("/")[0] for name in names} == {"llr", f"llr-{VERSION}.dist-info"}
    others = {Path(name).name for name in names if re.match(r"llr/.*(?<!\.py)(?<!\.pyi)$", name)}
    [library] = {name for name in others if re.fullmatch(r"_C\..*\.so", name)}
    assert others == {library, "_build.json", "py.typed"}
    assert facts["native"]
    assert facts["torch"] == host.torch
    assert f"llr-{VERSION}.dist-info/licenses/LICENSE" in names


def test_setup_and_pyproject_name_the_same_oldest_torch() -> None:
    dependency = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    bound = re.search(r"OLDEST_TORCH = \((\d+), (\d+)\)", (ROOT / "setup.py").read_text())
    default = re.search(r"TORCH \?= torch>=([\d.]+)", (ROOT / "Makefile").read_text())
    assert dependency
    assert bound
    assert default
    assert dependency[1] == f"{bound[1]}.{bound[2]}" == default[1]


# Where everything is there: native, against the CPU build and the CUDA build of torch, no GPU visible


@each_torch
def test_without_isolation(host: Host, tmp_path: Path, wheel_for: Wheels) -> None:
    env = new_environment(host, tmp_path / "env")
    succeed(env.install(wheel_for(host)))
    env.is_native()


@each_torch
def test_with_isolation_for_the_torch_already_there(
    host: Host, builder: Builder, sources: Path
) -> None:
    env = builder(host)
    succeed(env.install(sources))
    env.is_native()


def test_editable(builder: Builder, sources: Path) -> None:
    env = builder(HOST)
    succeed(env.install("--no-build-isolation", "-e", sources))
    seen = env.use()
    assert seen["native"], seen["reason"]
    assert Path(seen["where"]).parent == sources / "llr"


# Where something is missing: pure Python, and the reason is kept


def test_without_torch_then_with(bare: Environment, sources: Path) -> None:
    succeed(bare.install(sources))
    facts = bare.facts()
    assert not facts["native"]
    assert facts["torch"] is None
    assert "Root-Is-Purelib: true" in next(bare.site.glob("llr-*/WHEEL")).read_text()
    bare.lend_torch()
    bare.falls_back("no torch could be imported", "pip install --no-build-isolation")


def test_without_a_compiler(env: Environment, sources: Path, tmp_path: Path) -> None:
    succeed(env.install("--no-build-isolation", sources, PATH=str(tmp_path)))
    assert not env.facts()["native"]
    env.falls_back("no C++ compiler was found")


def test_switched_off(env: Environment, sources: Path) -> None:
    succeed(env.install("--no-build-isolation", sources, LLR_NO_EXTENSION="1"))
    assert not env.facts()["native"]
    assert not list(env.site.glob("llr/*.so"))
    env.falls_back("LLR_NO_EXTENSION")


def test_torch_too_old(bare: Environment, sources: Path) -> None:
    # 2.9 comes after 2.13 as text, before it as a version.
    real = Path(next(site for site in HOST.site if Path(site, "torch").exists()), "torch")
    old = bare.site / "torch"
    shutil.copytree(real / "_vendor", old / "_vendor")
    shutil.copy(real / "torch_version.py", old)
    (old / "version.py").write_text("__version__ = '2.9.1'\n")
    (old / "__init__.py").write_text("from torch.torch_version import __version__\n")
    bare.lend_torch()  # the packages that a build needs; the torch above comes before the host's
    succeed(bare.install("--no-build-isolation", sources))
    facts = bare.facts()
    assert not facts["native"]
    assert "torch 2.9.1 is older than 2.13" in facts["reason"]


@pytest.mark.skipif(len(HOSTS) < 2, reason="needs two torches: LLR_TEST_PYTHONS")
def test_library_of_another_torch(tmp_path: Path, wheel_for: Wheels) -> None:
    built, running = HOSTS[:2]
    env = new_environment(running, tmp_path / "env")
    succeed(env.install(wheel_for(built)))
    assert env.facts()["torch"] == built.torch
    env.falls_back(built.torch, running.torch)


# Where something is there and fails: an error that says what to do


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_failing_compiler_is_an_error(compiler: str, env: Environment, sources: Path) -> None:
    outcome = env.install("--no-build-isolation", sources, CXX=compiler)
    assert outcome.returncode != 0
    assert "LLR_NO_EXTENSION=1" in outcome.stdout
    assert compiler in outcome.stdout
    assert not (env.site / "llr").exists()


def test_cuda_where_it_cannot_be_built(env: Environment, sources: Path) -> None:
    outcome = env.install("--no-build-isolation", sources, LLR_CUDA="1")
    assert outcome.returncode != 0
    assert "LLR_CUDA=1, but" in outcome.stdout
