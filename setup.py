"""Builds llr: the Python package and, if this machine has what it needs, its native library ``llr._C``.

The package also works without the library, more slowly, with ``torch.func``. So if something is absent
(torch, a compiler), llr is installed as pure Python. If something is present but fails, that is an error.
pip hides what a build prints, so the outcome is written to ``llr/_build.json``. ``llr.info()`` reads it,
and says what was built for which torch, or why nothing was built.

Environment variables:
  LLR_NO_EXTENSION=1  do not build the native library
  LLR_CUDA=0 or 1     0: do not build the CUDA kernels; 1: fail if they cannot be built
  LLR_SANITIZE=1      build for AddressSanitizer and UBSan (`make asan`)
  CUDA_HOME           where CUDA's compiler is: in bin/nvcc
  TORCH_CUDA_ARCH_LIST  the architectures to compile the CUDA kernels for, as "8.0;9.0+PTX"
  CXX, MAX_JOBS       as for PyTorch's extension builder
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.append(str(ROOT))  # under pip, this folder is not on the path

from setup_native.decision import decide  # noqa: E402
from setup_native.extension import build_ext  # noqa: E402

FACTS, EXTENSIONS = decide()


class BuildPython(build_py):
    """The command that copies the Python files and writes ``_build.json``."""

    def run(self) -> None:
        """Copy the files, and write beside them what is being built."""
        package = Path(ROOT if self.editable_mode else self.build_lib, "llr")
        if not self.editable_mode:  # files of an earlier build must not get into the wheel
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(FACTS, indent=2) + "\n", encoding="utf-8")


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPython, **({"build_ext": build_ext(FACTS)} if EXTENSIONS else {})},
)
