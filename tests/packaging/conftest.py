"""Environments, source distributions and wheels that the tests of the installation share."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from environments import (
    HOST,
    ROOT,
    Builder,
    Environment,
    Host,
    Wheels,
    new_environment,
    run,
    succeed,
)


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
    """One environment per torch, shared by all builds, so that each file is compiled once."""
    made: dict[Host, Environment] = {}

    def environment(host: Host) -> Environment:
        if host not in made:
            made[host] = new_environment(host, tmp_path_factory.mktemp("builder") / "env")
        return made[host]

    return environment


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, made in an environment that cannot build the native library."""
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
    """The unpacked source distribution. All tests build from it, so they also check that it is complete."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    [unpacked] = folder.iterdir()
    return unpacked


@pytest.fixture(scope="session")
def wheel_for(builder: Builder, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """A function that builds a wheel without isolation, once per torch."""
    built: dict[Host, Path] = {}

    def wheel(host: Host) -> Path:
        if host not in built:
            folder = tmp_path_factory.mktemp("wheel")
            options = ("--no-deps", "--no-build-isolation", "-w", folder)
            succeed(builder(host).pip("wheel", *options, sources))
            [built[host]] = folder.glob("*.whl")
        return built[host]

    return wheel
