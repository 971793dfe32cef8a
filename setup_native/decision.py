"""Decides what is built, and why a part is left out."""

from __future__ import annotations

import os
import sys
from typing import Any

from setuptools import Extension

from setup_native.cuda import find_cuda
from setup_native.extension import native_extension
from setup_native.tools import AbsentError, asked, find_compiler, import_torch


def refuse_if_demanded(absent: AbsentError) -> None:
    """End the build if LLR_CUDA=1 was set although something that the CUDA kernels need is absent."""
    if os.environ.get("LLR_CUDA") == "1":
        raise SystemExit(f"LLR_CUDA=1, but {absent}.") from absent


def decide() -> tuple[dict[str, Any], list[Extension]]:
    """Return the facts for llr/_build.json, and the extensions to build: one or none."""
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
    # torch's wheels contain gcc's OpenMP runtime. Code from clang needs another one, and two runtimes in one
    # process compete for the cores. So a build with clang runs its loops on one thread.
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
