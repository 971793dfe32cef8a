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

import json
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.append(str(ROOT))  # where pip builds, this folder is not on the path

from setup_native.decision import decide  # noqa: E402
from setup_native.extension import build_ext  # noqa: E402

FACTS, EXTENSIONS = decide()


class BuildPython(build_py):
    """The command that copies the Python files."""

    def run(self) -> None:
        """Copies them, and writes beside them what is being built."""
        package = Path(ROOT if self.editable_mode else self.build_lib, "llr")
        if not self.editable_mode:  # what an earlier build left there must not reach the wheel
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(FACTS, indent=2) + "\n", encoding="utf-8")


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPython, **({"build_ext": build_ext(FACTS)} if EXTENSIONS else {})},
)
