"""The CUDA part of the installation: built if nvcc and torch fit together, otherwise left out with a reason.

Most tests let setup.py decide and compile nothing. No GPU is visible to any of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from environments import (
    ARCHS,
    HOST,
    HOSTS,
    NVCC,
    ROOT,
    Builder,
    Environment,
    Host,
    Wheels,
    each_torch,
    run,
    succeed,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HOST.cuda is None, reason="needs a torch with CUDA"),
]

MAJOR = (HOST.cuda or "0").split(".")[0]
needs_nvcc = pytest.mark.skipif(
    not (HOST.cuda and NVCC), reason="needs a torch with CUDA, and nvcc"
)

NVCC_SCRIPT = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
  *--list-gpu-code*) printf "sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_90a\\nsm_121\\nsm_120\\n" ;;
  *" -c "*) echo planted failure >&2; exit 1 ;;
  *) exec {nvcc} "$@" ;;
esac
"""


def pretend(home: Path, release: str) -> Path:
    """A toolkit whose nvcc reports this release, and fails to compile."""
    script = home / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(NVCC_SCRIPT.format(release=release, nvcc=NVCC or "false"))
    script.chmod(0o755)
    return home


class Decider:
    """Runs setup.py's decision about what to build, for one environment."""

    def __init__(self, env: Environment, sources: Path) -> None:
        self.env, self.sources = env, sources

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ("setup.py", "--quiet", "build_py", "--build-lib", self.env.folder / "lib-built")
        variables = {"PATH": self.env.host.path, **variables}
        return run(self.env.python, *command, cwd=self.sources, **variables)

    def facts(self, **variables: str) -> dict[str, Any]:
        """The facts as in llr/_build.json. Without a CUDA part, asserts that the reason was also printed."""
        printed = succeed(self.run(**variables))
        facts = json.loads((self.env.folder / "lib-built" / "llr" / "_build.json").read_text())
        assert facts["native"]
        assert facts["cuda"] == (not facts["cuda_reason"])
        if not facts["cuda"]:
            assert f"without CUDA kernels: {facts['cuda_reason']}" in printed
        return dict(facts)

    def error(self, **variables: str) -> str:
        outcome = self.run(**variables)
        assert outcome.returncode != 0
        return outcome.stdout


@pytest.fixture
def decider(env: Environment, sources: Path) -> Decider:
    return Decider(env, sources)


# Decisions


def test_without_nvcc(decider: Decider, tmp_path: Path) -> None:
    facts = decider.facts(CUDA_HOME=str(tmp_path))
    assert "no nvcc was found" in facts["cuda_reason"]
    if int(MAJOR) >= 13:
        assert f'pip install "cuda-toolkit[nvcc]=={HOST.cuda}.*"' in facts["cuda_reason"]
    assert facts["cuda_archs"] == ""
    assert "LLR_CUDA=1, but no nvcc" in decider.error(CUDA_HOME=str(tmp_path), LLR_CUDA="1")


def test_switched_off(decider: Decider) -> None:
    assert decider.facts(LLR_CUDA="0")["cuda_reason"] == "LLR_CUDA=0 was set"


def test_nvcc_of_another_major_version(decider: Decider, tmp_path: Path) -> None:
    home = str(pretend(tmp_path / "other", "8.0"))
    facts = decider.facts(CUDA_HOME=home)
    for words in (f"CUDA {HOST.cuda} but nvcc is 8.0", home, "major versions"):
        assert words in facts["cuda_reason"]
    assert "LLR_CUDA=1, but" in decider.error(CUDA_HOME=home, LLR_CUDA="1")


def test_nvcc_of_another_minor_version(decider: Decider, tmp_path: Path) -> None:
    facts = decider.facts(CUDA_HOME=str(pretend(tmp_path / "other", f"{MAJOR}.99")))
    assert facts["nvcc"] == f"{MAJOR}.99"


def test_nvcc_of_a_package_is_found_behind_one_that_does_not_fit(
    decider: Decider, tmp_path: Path
) -> None:
    other = pretend(tmp_path / "other", "8.0")
    pretend(decider.env.site / "nvidia" / f"cu{MAJOR}", f"{MAJOR}.99")
    path = os.pathsep.join([str(other / "bin"), decider.env.host.path])
    assert decider.facts(CUDA_HOME="", PATH=path)["nvcc"] == f"{MAJOR}.99"


def test_nvcc_that_does_not_work(decider: Decider, tmp_path: Path) -> None:
    home = pretend(tmp_path / "other", f"{MAJOR}.0")
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho no licence >&2\nexit 1\n")
    printed = decider.error(CUDA_HOME=str(home))
    assert "no licence" in printed
    assert "LLR_CUDA=0" in printed


@pytest.mark.parametrize(
    ("wanted", "archs"),
    [
        ("8.6;9.0a+PTX", "8.6 9.0a+PTX"),
        ("", "8.0 9.0 12.0+PTX"),  # one for each generation since 8.0 that this nvcc knows
    ],
)
def test_architectures(wanted: str, archs: str, decider: Decider, tmp_path: Path) -> None:
    home = str(pretend(tmp_path / "toolkit", f"{MAJOR}.0"))
    assert decider.facts(CUDA_HOME=home, TORCH_CUDA_ARCH_LIST=wanted)["cuda_archs"] == archs


def test_what_is_no_architecture(decider: Decider, tmp_path: Path) -> None:
    home = str(pretend(tmp_path / "toolkit", f"{MAJOR}.0"))
    printed = decider.error(CUDA_HOME=home, TORCH_CUDA_ARCH_LIST="9.0 Hopper")
    assert "'Hopper' is not an architecture" in printed
    assert "LLR_CUDA=0" in printed


def test_demanded_where_torch_is_missing(bare: Environment, sources: Path) -> None:
    outcome = bare.install(sources, LLR_CUDA="1")
    assert outcome.returncode != 0
    assert "LLR_CUDA=1, but no torch could be imported" in outcome.stdout


# Builds


@needs_nvcc
@each_torch
def test_compiled_for_the_architectures_asked_for_and_no_other(
    host: Host, wheel_for: Wheels, tmp_path: Path
) -> None:
    places = [Path(site, "triton/backends/nvidia/bin") for site in host.site]
    cuobjdump = shutil.which("cuobjdump", path=os.pathsep.join(map(str, places)))
    if cuobjdump is None:
        pytest.skip("needs cuobjdump, which comes with triton")
    with zipfile.ZipFile(wheel_for(host)) as archive:
        [name] = [name for name in archive.namelist() if re.fullmatch(r"llr/_C\..*\.so", name)]
        library = archive.extract(name, tmp_path)
    listed = run(cuobjdump, "--list-elf", "--list-ptx", library, cwd=tmp_path).stdout
    found = re.findall(r"^(ELF|PTX) file .*\.(sm_\w+)\.", listed, re.MULTILINE)
    assert found == [("ELF", f"sm_{ARCHS.replace('.', '')}")] * len(
        list(ROOT.glob("csrc/*/cuda/*.cu"))
    )


@needs_nvcc
def test_nvcc_that_cannot_compile(
    builder: Builder, wheel_for: Wheels, sources: Path, tmp_path: Path
) -> None:
    wheel_for(HOST)  # all but the CUDA part is compiled already
    home = str(pretend(tmp_path / "toolkit", f"{MAJOR}.0"))
    outcome = builder(HOST).install("--no-build-isolation", sources, CUDA_HOME=home)
    assert outcome.returncode != 0
    assert "planted failure" in outcome.stdout
    assert (
        f"If nvcc {MAJOR}.0 is the cause, set LLR_CUDA=0 to leave out only the CUDA kernels"
        in outcome.stdout
    )


@needs_nvcc
@pytest.mark.skipif(
    any(not host.archs for host in HOSTS), reason="another torch has no CUDA: its wheel shows it"
)
def test_the_rest_is_built_where_it_is_switched_off(builder: Builder, sources: Path) -> None:
    env = builder(HOST)
    succeed(env.install("--no-build-isolation", sources, LLR_CUDA="0"))
    env.is_native(archs="")
