"""The installation, in new environments: with and without torch, a compiler, isolation."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from environments import (
    HOST,
    HOSTS,
    ROOT,
    VERSION,
    Builder,
    Environment,
    Host,
    Wheels,
    each_torch,
    new_environment,
    succeed,
)

pytestmark = pytest.mark.slow

# Contents of the distributions


def test_sdist_has_all_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        packed = {Path(*Path(name).parts[1:]).as_posix() for name in tar.getnames()}
    for pattern in (
        "csrc/**/*.*",
        "llr/**/*.py",
        "setup_native/*.py",
        "tests/**/*.py",
        "benchmarks/*.py",
    ):
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
    assert {name.split("/")[0] for name in names} == {
        "llr",
        "llr_command.py",
        f"llr-{VERSION}.dist-info",
    }
    others = {Path(name).name for name in names if re.match(r"llr/.*(?<!\.py)(?<!\.pyi)$", name)}
    [library] = {name for name in others if re.fullmatch(r"_C\..*\.so", name)}
    assert others == {library, "_build.json", "py.typed"}
    assert facts["native"]
    assert facts["torch"] == host.torch
    assert f"llr-{VERSION}.dist-info/licenses/LICENSE" in names


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    dependency = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    bound = re.search(
        r"OLDEST_TORCH = \((\d+), (\d+)\)", (ROOT / "setup_native" / "tools.py").read_text()
    )
    default = re.search(r"TORCH \?= torch>=([\d.]+)", (ROOT / "Makefile").read_text())
    assert dependency
    assert bound
    assert default
    assert dependency[1] == f"{bound[1]}.{bound[2]}" == default[1]


# Everything is present: native builds for torch with and without CUDA, no GPU visible


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


# Something is missing: pure Python, and the reason is recorded


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
    # "2.9" is larger than "2.11" as text, but older as a version.
    real = Path(next(site for site in HOST.site if Path(site, "torch").exists()), "torch")
    old = bare.site / "torch"
    shutil.copytree(real / "_vendor", old / "_vendor")
    shutil.copy(real / "torch_version.py", old)
    (old / "version.py").write_text("__version__ = '2.9.1'\n")
    (old / "__init__.py").write_text("from torch.torch_version import __version__\n")
    bare.lend_torch()  # the packages that a build needs; the torch made above is found before the host's
    succeed(bare.install("--no-build-isolation", sources))
    facts = bare.facts()
    assert not facts["native"]
    assert "torch 2.9.1 is older than 2.11" in facts["reason"]


@pytest.mark.skipif(len(HOSTS) < 2, reason="needs two torches: LLR_TEST_PYTHONS")
def test_library_of_another_torch(tmp_path: Path, wheel_for: Wheels) -> None:
    built, running = HOSTS[:2]
    env = new_environment(running, tmp_path / "env")
    succeed(env.install(wheel_for(built)))
    assert env.facts()["torch"] == built.torch
    env.falls_back(built.torch, running.torch)


# Something is present but fails: an error that says what to do


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_failing_compiler_is_an_error(compiler: str, env: Environment, sources: Path) -> None:
    outcome = env.install("--no-build-isolation", sources, CXX=compiler)
    assert outcome.returncode != 0
    assert "LLR_NO_EXTENSION=1" in outcome.stdout
    assert compiler in outcome.stdout
    assert not (env.site / "llr").exists()
