"""Finds the tools that the CUDA kernels are built with."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setup_native.tools import REBUILD, AbsentError


@dataclass(frozen=True)
class Cuda:
    """The tools that the CUDA kernels are built with, and the target architectures."""

    nvcc: Path
    release: str  # of nvcc, as "13.0"
    host: str  # the C++ compiler that nvcc uses for the host's code
    runtime: Path  # the libcudart that torch has loaded: kernels and torch have to share one
    archs: list[str]  # in the notation of TORCH_CUDA_ARCH_LIST

    def headers(self) -> list[str]:
        """The folders of the runtime's headers: those that nvcc searches, and the one beside the runtime.

        Both are needed: torch's wheels lack some headers that come with nvcc, and torch and nvcc may be in
        different environments, one on top of the other.
        """
        ask = [str(self.nvcc), "-ccbin", self.host, "--dryrun", "nothing.cu"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        found = re.findall(r'^#\$ INCLUDES="-I(.*?)"', answer.stderr, re.MULTILINE)
        found.append(str(self.runtime.parents[1] / "include"))
        # Resolved, so that another link to the same toolkit does not cause a rebuild. Without /usr/include,
        # because naming it would change the compiler's search order.
        paths = [str(Path(path).resolve()) for path in found]
        return [path for path in paths if path != "/usr/include"]

    def gencode(self) -> list[str]:
        """nvcc's options for the architectures."""
        options = []
        for arch in self.archs:
            number, _, ptx = arch.replace(".", "").partition("+")
            codes = [f"sm_{number}", *([f"compute_{number}"] if ptx else [])]
            options += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
        return options


def find_cuda(torch: Any, command: str) -> Cuda:
    """Return the tools that the CUDA kernels are built with.

    The decision depends on the compiler and on the build of torch, not on whether a GPU is visible: container
    images are built on machines without one.

    Raises:
        AbsentError: the kernels cannot be built; the message says why.
    """
    if os.environ.get("LLR_CUDA") == "0":
        raise AbsentError("LLR_CUDA=0 was set")
    if torch.version.cuda is None:
        raise AbsentError(f"torch {torch.__version__} is built without CUDA")
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    loaded = [Path(line.split(maxsplit=5)[-1]) for line in lines]
    runtime = next((path for path in loaded if path.name.startswith("libcudart")), None)
    if runtime is None:
        raise AbsentError(f"torch {torch.__version__} has no shared CUDA runtime (libcudart)")
    nvcc, release = find_nvcc(torch.version.cuda)
    archs = re.split("[; ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; "))
    if archs == [""]:
        archs = default_archs(nvcc)
    unknown = [arch for arch in archs if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]
    if unknown:
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST: {unknown[0]!r} is not an architecture such as 9.0 or 9.0+PTX. Correct "
            "the variable, unset it, or set LLR_CUDA=0 to install without the CUDA kernels."
        )
    host = [word for word in shlex.split(command) if not word.startswith("-")][-1]
    return Cuda(nvcc, release, host, runtime, archs)


def find_nvcc(wanted: str) -> tuple[Path, str]:
    """Return the path and release of the first nvcc whose major version is that of torch's CUDA."""
    major = wanted.split(".")[0]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places = [Path(home, "bin", "nvcc")]
    else:
        on_path = shutil.which("nvcc")
        places = [Path(on_path)] if on_path else []
        # The folder of PyPI's packages, then that of the toolkit.
        places += [Path(site, "nvidia", f"cu{major}", "bin", "nvcc") for site in sys.path]
        places.append(Path("/usr/local/cuda/bin/nvcc"))
    others = []
    for nvcc in places:
        if shutil.which(nvcc):
            release = release_of(nvcc)
            if release.split(".")[0] == major:
                return nvcc, release
            others.append(f"{release} ({nvcc})")
    # PyPI's packages for CUDA 12 do not contain nvcc.
    package = f'`pip install "cuda-toolkit[nvcc]=={wanted}.*"`'
    source = package if int(major) >= 13 else f"NVIDIA's toolkit for CUDA {wanted}"
    advice = f"install it with {source}, then run `{REBUILD}`"
    if home:
        advice += f" without CUDA_HOME={home}"
    if not others:
        raise AbsentError(f"no nvcc was found while llr was installed: {advice}")
    raise AbsentError(
        f"torch is built with CUDA {wanted} but nvcc is {', '.join(others)}, and their major versions "
        f"have to agree: {advice}"
    )


def release_of(nvcc: Path) -> str:
    """Return the release of this nvcc, such as "13.0"."""
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if not release:
        raise SystemExit(
            f"{nvcc} --version prints no release: {(answer.stdout + answer.stderr).strip()}. Set "
            "CUDA_HOME to another CUDA, or LLR_CUDA=0 to install without the CUDA kernels."
        )
    return release[1]


def default_archs(nvcc: Path) -> list[str]:
    """One architecture per generation since Ampere, and PTX for generations that this nvcc does not know.

    Code compiled for 8.0 runs on every GPU 8.x.
    """
    answer = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    known = sorted(map(int, re.findall(r"^sm_(\d+)$", answer.stdout, re.MULTILINE)), reverse=True)
    first = {number // 10: number for number in known if number >= 80}
    archs = [f"{number // 10}.{number % 10}" for number in sorted(first.values())]
    return [*archs[:-1], f"{archs[-1]}+PTX"]
