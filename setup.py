"""Builds llr: the Python package, and its native library ``llr._C`` where this machine can.

The package also works without the library, more slowly, on ``torch.func``. So what is merely absent
(torch, a compiler) ends in a pure-Python install, and what is present but fails is an error. Either
way the outcome is written to ``llr/_build.json``, because pip hides what a build prints: from there
``llr.info()`` tells what was built against which torch, or why nothing was.

Environment variables:
  LLR_NO_EXTENSION=1  do not build the native library
  LLR_CUDA=0 or 1     never build the CUDA kernels, or fail where they cannot be built
  LLR_SANITIZE=1      build for AddressSanitizer and UBSan (`make asan`)
  CXX, MAX_JOBS, TORCH_CUDA_ARCH_LIST   as PyTorch's extension builder understands them
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 13)  # the oldest release that .ci/run builds and tests, as in pyproject.toml
REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall ."


class AbsentError(Exception):
    """Something the native library needs is not on this machine; the message says what to do."""


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


def cuda_reason(torch: Any, sources: list[str]) -> str | None:
    """Why the CUDA kernels are not built, or None where they are.

    What decides is the compiler and the kind of torch, never whether a GPU is visible here:
    images are built on machines without one.
    """
    choice = os.environ.get("LLR_CUDA")
    if choice == "0":
        return "LLR_CUDA=0 was set"
    cuda_home = importlib.import_module("torch.utils.cpp_extension").CUDA_HOME
    reason = None
    if not sources:
        reason = "this version of llr has no CUDA kernels"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif cuda_home is None or not Path(cuda_home, "bin", "nvcc").exists():
        reason = "no nvcc was found (CUDA_HOME, or nvcc on the PATH)"
    if reason and choice == "1":
        raise SystemExit(f"LLR_CUDA=1, but {reason}.")
    return reason


def native_extension(openmp: bool, cuda_sources: list[str]) -> Extension:
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    includes = cpp_extension.include_paths("cuda" if cuda_sources else "cpu")
    # Named as system headers, torch's own stay silent under -Wall -Wextra; a compiler drops the -I
    # that torch's builder adds for the same directory.
    compile_args = [arg for path in includes for arg in ("-isystem", path)]
    # Portable code: no -march, csrc/cpu/simd.h picks the instructions when it runs. And no
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
    kind = cpp_extension.CUDAExtension if cuda_sources else cpp_extension.CppExtension
    extension = kind(
        "llr._C",
        [*relative("csrc/*.cpp"), *relative("csrc/cpu/*.cpp"), *cuda_sources],
        depends=relative("csrc/**/*.*"),
        extra_compile_args={"cxx": compile_args, "nvcc": ["-O3"]},
        extra_link_args=link_args,
    )
    extension.libraries.remove("torch_python")  # the operators need no Python
    return extension


def relative(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


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
        "sanitize": False,
    }
    try:
        if asked("LLR_NO_EXTENSION"):
            raise AbsentError("LLR_NO_EXTENSION was set when llr was installed")
        torch = import_torch()
        facts["torch"] = torch.__version__
        command, facts["compiler"] = find_compiler()
    except AbsentError as absent:
        facts["reason"] = str(absent)
        print(f"llr: installing without the native library: {absent}", file=sys.stderr)
        return facts, []
    os.environ["CXX"] = command  # so that torch compiles and setuptools links with the same one
    # torch's wheels carry gcc's OpenMP runtime. Code from clang needs another, and two of them in
    # a process fight for the cores: such a build runs its loops on one thread.
    facts["openmp"] = sys.platform == "linux" and "clang" not in facts["compiler"].lower()
    cuda_sources = relative("csrc/cuda/*.cu")
    facts["cuda_reason"] = cuda_reason(torch, cuda_sources) or ""
    facts["cuda"] = not facts["cuda_reason"]
    facts["sanitize"] = asked("LLR_SANITIZE")
    facts["native"] = True
    extension = native_extension(facts["openmp"], cuda_sources if facts["cuda"] else [])
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
            self.build_temp = os.path.join(base, "objects", tag)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                raise CompileError(
                    f"llr's native library could not be compiled with {FACTS['compiler']} for "
                    f"torch {FACTS['torch']} ({type(error).__name__}: {error}; what the compiler "
                    "said is above). Set LLR_NO_EXTENSION=1 to install llr without it: everything "
                    "works, on torch.func and more slowly."
                ) from error

    return BuildNative


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPython, **({"build_ext": build_ext()} if EXTENSIONS else {})},
)
