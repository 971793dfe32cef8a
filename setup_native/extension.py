"""The sources and options of the native library, and the command that compiles it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.errors import CompileError

from setup_native.cuda import Cuda
from setup_native.tools import asked

ROOT = Path(__file__).resolve().parents[1]


def system_headers(folders: list[str]) -> list[str]:
    """Compiler options that declare these folders as system headers."""
    return [argument for folder in folders for argument in ("-isystem", folder)]


def native_extension(openmp: bool, cuda: Cuda | None) -> Extension:
    """Return the extension ``llr._C``, with OpenMP and CUDA kernels if asked for."""
    if cuda:  # torch's builder reads CUDA_HOME when it is imported
        os.environ["CUDA_HOME"] = str(cuda.nvcc.parents[1])
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    sources = [*relative("csrc/*.cpp"), *relative("csrc/*/*.cpp"), *relative("csrc/*/cpu/*.cpp")]
    headers = cpp_extension.include_paths() + (cuda.headers() if cuda else [])
    # As system headers, torch's headers cause no warnings under -Wall -Wextra. The compiler ignores the -I
    # that torch's builder adds for the same folder.
    compile_args = system_headers(headers)
    # Portable code: no -march, because csrc/common/cpu/simd.h chooses the instructions at run time. No
    # -ffast-math, because ranks depend on the last bits, and NaN must be detected. These flags only allow
    # fused multiply-adds and drop errno and floating-point traps, which this code does not use.
    compile_args += ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    # The builder of torch 2.11 would choose C++17.
    compile_args += ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra"]
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
        # By its path: in torch's wheels -lcudart would not find it.
        link_args.append(str(cuda.runtime))
    # Not CUDAExtension, which would link nvcc's runtime instead of torch's.
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
    """The files that match, with paths relative to the folder of setup.py, as setuptools needs them."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def build_ext(facts: Mapping[str, Any]) -> type:
    """The builder of torch, with a separate cache of objects for each torch and a helpful error message."""
    builder = importlib.import_module("torch.utils.cpp_extension").BuildExtension

    class BuildNative(builder):  # type: ignore[misc, valid-type]
        def finalize_options(self) -> None:
            super().finalize_options()
            # Always in the source tree (setuptools would use a temporary folder for editable installs), so
            # that ninja recompiles only the files that have changed since the last build.
            base = self.get_finalized_command("build").build_base
            tag = f"{sys.implementation.cache_tag}-torch-{facts['torch']}"
            tag += "-cuda" if facts["cuda"] else ""
            self.build_temp = os.path.join(base, "objects", tag)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                without_cuda = (
                    f"If nvcc {facts['nvcc']} is the cause, set LLR_CUDA=0 to leave out only the CUDA "
                    "kernels. "
                    if facts["cuda"]
                    else ""
                )
                raise CompileError(
                    f"llr's native library could not be compiled with {facts['compiler']} for "
                    f"torch {facts['torch']} ({type(error).__name__}: {error}; the compiler's output "
                    f"is above). {without_cuda}Set LLR_NO_EXTENSION=1 to install llr without "
                    "it: everything works, but more slowly, with torch.func."
                ) from error

    return BuildNative
