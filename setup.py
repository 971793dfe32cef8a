"""Builds llr: the Python package, and its native library ``llr._C`` where this machine can.

The package also works without the library, more slowly, on ``torch.func``. So what is merely absent
(torch, a compiler) ends in a pure-Python install, and what is present but fails is an error. Either
way the outcome is written to ``llr/_build.json``, because pip hides what a build prints: from there
``llr.info()`` tells what was built against which torch, or why nothing was.

Environment variables:
  LLR_NO_EXTENSION=1  do not build the native library
  LLR_CUDA=0 or 1     never build the CUDA kernels, or fail where they cannot be built
  LLR_SANITIZE=1      build for AddressSanitizer and UBSan (`make asan`)
  CUDA_HOME           where CUDA's compiler is: in bin/nvcc
  TORCH_CUDA_ARCH_LIST  the architectures to compile the CUDA kernels for, as "8.0;9.0+PTX"
  CXX, MAX_JOBS       as PyTorch's extension builder understands them
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 13)  # the oldest release that .ci/run builds and tests, as in pyproject.toml
REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall ."


class AbsentError(Exception):
    """Something that a part of the library needs is not on this machine; the message says what."""


def asked(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def import_torch() -> Any:
    """The torch of the environment that llr is being installed into.

    Under pip's build isolation only the requirements of the build can be imported, and torch is
    deliberately not one of them (see pyproject.toml). But the interpreter is still the one of the
    environment being installed into: asked without the variables that isolate it, it tells where
    that environment keeps its packages. They go to the end of the path, behind the isolated ones.
    """
    if importlib.util.find_spec("torch") is None:
        ask = [sys.executable, "-E", "-c", "import json, sys; print(json.dumps(sys.path[1:]))"]
        with tempfile.TemporaryDirectory() as nowhere:
            answer = subprocess.run(ask, cwd=nowhere, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            paths = json.loads(answer.stdout)
            sys.path += [path for path in paths if path not in sys.path]
            importlib.invalidate_caches()
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        raise AbsentError(
            f"no torch could be imported while llr was installed ({error}): "
            f"install torch, then `{REBUILD}` in llr's sources"
        ) from error
    if torch.__version__ < OLDEST_TORCH:  # a TorchVersion: compares as a version, not as text
        raise AbsentError(
            f"torch {torch.__version__} is older than {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, the oldest "
            f"the native library is built for: upgrade it, then `{REBUILD}` in llr's sources"
        )
    return torch


def find_compiler() -> tuple[str, str]:
    """The C++ compiler to use, as a command, and the line by which it names itself."""
    if sys.platform == "win32":
        raise AbsentError("the native library is not built on Windows")
    wanted = os.environ.get("CXX")
    found = [
        command
        for command in ([wanted] if wanted else ["c++", "g++", "clang++"])
        if shutil.which(shlex.split(command)[0])
    ]
    if not found and wanted:
        raise SystemExit(
            f"CXX={wanted}: there is no such program. Set CXX to a C++ compiler, leave it out, "
            "or set LLR_NO_EXTENSION=1 to install without the native library."
        )
    if not found:
        raise AbsentError(
            "no C++ compiler was found (c++, g++ or clang++) while llr was installed: "
            f"install one or set CXX, then `{REBUILD}` in llr's sources"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise AbsentError(
            f"Python's C headers are not installed ({header} does not exist): install them "
            f"(Debian: python3-dev), then `{REBUILD}` in llr's sources"
        )
    version = subprocess.run(
        [*shlex.split(found[0]), "--version"], capture_output=True, text=True, check=False
    )
    return found[0], (version.stdout.splitlines() or [found[0]])[0]


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


def system_headers(folders: list[str]) -> list[str]:
    return [argument for folder in folders for argument in ("-isystem", folder)]


def native_extension(openmp: bool, cuda: Cuda | None) -> Extension:
    if cuda:  # torch's builder looks when it is imported
        os.environ["CUDA_HOME"] = str(cuda.nvcc.parents[1])
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    sources = [*relative("csrc/*.cpp"), *relative("csrc/*/*.cpp"), *relative("csrc/*/cpu/*.cpp")]
    headers = cpp_extension.include_paths() + (cuda.headers() if cuda else [])
    # Named as system headers, torch's own stay silent under -Wall -Wextra; a compiler drops the -I
    # that torch's builder adds for the same directory.
    compile_args = system_headers(headers)
    # Portable code: no -march, csrc/common/cpu/simd.h picks the instructions when it runs. And no
    # -ffast-math: ranks hang on the last bits, and NaN must be seen. These flags only let sums be
    # fused and drop errno and floating-point traps, which nothing here reads.
    compile_args += ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    compile_args += ["-fvisibility=hidden", "-Wall", "-Wextra"]
    link_args = []
    if openmp:
        compile_args.append("-fopenmp")
        link_args.append("-fopenmp")
    if asked("LLR_SANITIZE"):
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        compile_args += [*sanitizers, "-fno-omit-frame-pointer", "-fno-wrapv", "-O1", "-g"]
        link_args += sanitizers
    nvcc_args = []
    if cuda:
        sources += [*relative("csrc/*/cuda/*.cpp"), *relative("csrc/*/cuda/*.cu")]
        compile_args.append(f"-DLLR_CUDA_ARCHS={' '.join(cuda.archs)}")
        nvcc_args = ["-O3", "-std=c++17", "-Xcompiler=-fvisibility=hidden,-Wall"]
        nvcc_args += ["-ccbin", cuda.host, *cuda.gencode(), *system_headers(cuda.headers())]
        # By its path: in torch's wheels it has no name that -lcudart would find.
        link_args.append(str(cuda.runtime))
    # Not CUDAExtension, which would link the runtime that lies with nvcc.
    extension = cpp_extension.CppExtension(
        "llr._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=relative("csrc/**/*.*"),
        extra_compile_args={"cxx": compile_args, "nvcc": nvcc_args},
        extra_link_args=link_args,
        libraries=["c10_cuda"] if cuda else [],
    )
    extension.libraries.remove("torch_python")  # the operators need no Python
    return extension


def relative(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def refuse_if_demanded(absent: AbsentError) -> None:
    if os.environ.get("LLR_CUDA") == "1":
        raise SystemExit(f"LLR_CUDA=1, but {absent}.") from absent


def decide() -> tuple[dict[str, Any], list[Extension]]:
    """The facts for llr/_build.json, and the extensions to build: one, or none."""
    facts: dict[str, Any] = {
        "native": False,
        "reason": "",
        "torch": None,
        "compiler": None,
        "openmp": False,
        "cuda": False,
        "cuda_reason": "the native library was not built",
        "cuda_archs": "",
        "nvcc": None,
        "sanitize": False,
    }
    try:
        if asked("LLR_NO_EXTENSION"):
            raise AbsentError("LLR_NO_EXTENSION was set when llr was installed")
        torch = import_torch()
        facts["torch"] = torch.__version__
        command, facts["compiler"] = find_compiler()
    except AbsentError as absent:
        refuse_if_demanded(absent)
        facts["reason"] = str(absent)
        print(f"llr: installing without the native library: {absent}", file=sys.stderr)
        return facts, []
    os.environ["CXX"] = command  # so that torch compiles and setuptools links with the same one
    # torch's wheels carry gcc's OpenMP runtime. Code from clang needs another, and two of them in
    # a process fight for the cores: such a build runs its loops on one thread.
    facts["openmp"] = sys.platform == "linux" and "clang" not in facts["compiler"].lower()
    facts["sanitize"] = asked("LLR_SANITIZE")
    facts["native"] = True
    cuda = None
    try:
        cuda = find_cuda(torch, command)
        facts |= {"cuda": True, "cuda_reason": ""}
        facts |= {"cuda_archs": " ".join(cuda.archs), "nvcc": cuda.release}
    except AbsentError as absent:
        refuse_if_demanded(absent)
        facts["cuda_reason"] = str(absent)
        print(f"llr: installing without CUDA kernels: {absent}", file=sys.stderr)
    extension = native_extension(facts["openmp"], cuda)
    return facts, [extension]


FACTS, EXTENSIONS = decide()


class BuildPython(build_py):
    """Copies the Python files, and writes beside them what is being built."""

    def run(self) -> None:
        package = Path(ROOT if self.editable_mode else self.build_lib, "llr")
        if not self.editable_mode:  # what an earlier build left there must not reach the wheel
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(FACTS, indent=2) + "\n", encoding="utf-8")


def build_ext() -> type:
    """The builder of torch, with a cache of objects per torch and an error that helps."""
    builder = importlib.import_module("torch.utils.cpp_extension").BuildExtension

    class BuildNative(builder):  # type: ignore[misc, valid-type]
        def finalize_options(self) -> None:
            super().finalize_options()
            # In the source tree also where setuptools would take a temporary directory (editable
            # installs), so that ninja recompiles only what has changed since the last build.
            base = self.get_finalized_command("build").build_base
            tag = f"{sys.implementation.cache_tag}-torch-{FACTS['torch']}"
            tag += "-cuda" if FACTS["cuda"] else ""
            self.build_temp = os.path.join(base, "objects", tag)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                without_cuda = (
                    f"If nvcc {FACTS['nvcc']} is at fault, LLR_CUDA=0 leaves out the CUDA kernels "
                    "alone. "
                    if FACTS["cuda"]
                    else ""
                )
                raise CompileError(
                    f"llr's native library could not be compiled with {FACTS['compiler']} for "
                    f"torch {FACTS['torch']} ({type(error).__name__}: {error}; what the compiler "
                    f"said is above). {without_cuda}Set LLR_NO_EXTENSION=1 to install llr without "
                    "it: everything works, on torch.func and more slowly."
                ) from error

    return BuildNative


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPython, **({"build_ext": build_ext()} if EXTENSIONS else {})},
)
