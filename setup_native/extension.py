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
    """The options that name these folders as the system's."""
    return [argument for folder in folders for argument in ("-isystem", folder)]


def native_extension(openmp: bool, cuda: Cuda | None) -> Extension:
    """``llr._C``, with OpenMP and CUDA kernels if asked for."""
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
    # torch 2.11's builder would say C++17.
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
    """The files that match, as setuptools wants them named: from the folder of setup.py."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def build_ext(facts: Mapping[str, Any]) -> type:
    """The builder of torch, with a cache of objects per torch and an error that helps."""
    builder = importlib.import_module("torch.utils.cpp_extension").BuildExtension

    class BuildNative(builder):  # type: ignore[misc, valid-type]
        def finalize_options(self) -> None:
            super().finalize_options()
            # In the source tree also where setuptools would take a temporary directory (editable
            # installs), so that ninja recompiles only what has changed since the last build.
            base = self.get_finalized_command("build").build_base
            tag = f"{sys.implementation.cache_tag}-torch-{facts['torch']}"
            tag += "-cuda" if facts["cuda"] else ""
            self.build_temp = os.path.join(base, "objects", tag)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                without_cuda = (
                    f"If nvcc {facts['nvcc']} is at fault, LLR_CUDA=0 leaves out the CUDA kernels "
                    "alone. "
                    if facts["cuda"]
                    else ""
                )
                raise CompileError(
                    f"llr's native library could not be compiled with {facts['compiler']} for "
                    f"torch {facts['torch']} ({type(error).__name__}: {error}; what the compiler "
                    f"said is above). {without_cuda}Set LLR_NO_EXTENSION=1 to install llr without "
                    "it: everything works, on torch.func and more slowly."
                ) from error

    return BuildNative
