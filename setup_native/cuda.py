"""Finds what the CUDA kernels are built with."""

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
    """What the CUDA kernels are built with, and for."""

    nvcc: Path
    release: str  # of nvcc, as "13.0"
    host: str  # the C++ compiler that nvcc leaves the host's code to
    runtime: Path  # the libcudart that torch has loaded: kernels and torch have to share one
    archs: list[str]  # in the notation of TORCH_CUDA_ARCH_LIST

    def headers(self) -> list[str]:
        """Where the runtime's headers are: where nvcc looks for them, and beside the runtime.

        In torch's wheels some are missing, which come with nvcc; and these two may be in different
        environments, one on top of the other.
        """
        ask = [str(self.nvcc), "-ccbin", self.host, "--dryrun", "nothing.cu"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        found = re.findall(r'^#\$ INCLUDES="-I(.*?)"', answer.stderr, re.MULTILINE)
        found.append(str(self.runtime.parents[1] / "include"))
        # Resolved: links to one toolkit are no reason to compile anew. The system's own headers would
        # lose their place in the order.
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
    """What the CUDA kernels are built with; an AbsentError says why they are not.

    What decides is the compiler and the kind of torch, never whether a GPU is visible here:
    images are built on machines without one.
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
            f"TORCH_CUDA_ARCH_LIST: {unknown[0]!r} is not an architecture as 9.0 or 9.0+PTX. Name "
            "those, leave it out, or set LLR_CUDA=0 to install without the CUDA kernels."
        )
    host = [word for word in shlex.split(command) if not word.startswith("-")][-1]
    return Cuda(nvcc, release, host, runtime, archs)


def find_nvcc(wanted: str) -> tuple[Path, str]:
    """The nvcc to use, with its release: the first one here of the major version of torch's CUDA."""
    major = wanted.split(".")[0]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places = [Path(home, "bin", "nvcc")]
    else:
        on_path = shutil.which("nvcc")
        places = [Path(on_path)] if on_path else []
        # Where PyPI's packages put it, and where the toolkit does.
        places += [Path(site, "nvidia", f"cu{major}", "bin", "nvcc") for site in sys.path]
        places.append(Path("/usr/local/cuda/bin/nvcc"))
    others = []
    for nvcc in places:
        if shutil.which(nvcc):
            release = release_of(nvcc)
            if release.split(".")[0] == major:
                return nvcc, release
            others.append(f"{release} ({nvcc})")
    # PyPI's packages for CUDA 12 have no nvcc in them.
    package = f'`pip install "cuda-toolkit[nvcc]=={wanted}.*"`'
    source = package if int(major) >= 13 else f"NVIDIA's toolkit for CUDA {wanted}"
    advice = f"{source} brings one, then `{REBUILD}`"
    if home:
        advice += f" without CUDA_HOME={home}"
    if not others:
        raise AbsentError(f"no nvcc was found while llr was installed: {advice}")
    raise AbsentError(
        f"torch is built with CUDA {wanted} but nvcc is {', '.join(others)}, and their major versions "
        f"have to agree: {advice}"
    )


def release_of(nvcc: Path) -> str:
    """As "13.0"."""
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if not release:
        raise SystemExit(
            f"{nvcc} --version names no release: {(answer.stdout + answer.stderr).strip()}. Set "
            "CUDA_HOME to another CUDA, or LLR_CUDA=0 to install without the CUDA kernels."
        )
    return release[1]


def default_archs(nvcc: Path) -> list[str]:
    """One architecture per generation since Ampere, and PTX for what comes after this nvcc.

    What is compiled for 8.0 runs on every GPU 8.x.
    """
    answer = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    known = sorted(map(int, re.findall(r"^sm_(\d+)$", answer.stdout, re.MULTILINE)), reverse=True)
    first = {number // 10: number for number in known if number >= 80}
    archs = [f"{number // 10}.{number % 10}" for number in sorted(first.values())]
    return [*archs[:-1], f"{archs[-1]}+PTX"]
