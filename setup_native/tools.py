"""Finds torch and a C++ compiler."""

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

OLDEST_TORCH = (2, 11)  # the oldest release that .ci/run builds and tests, as in pyproject.toml
REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall ."


class AbsentError(Exception):
    """Something that a part of the library needs is absent from this machine; the message says what."""


def asked(variable: str) -> bool:
    """Whether the environment variable is set, and not to 0."""
    return os.environ.get(variable, "") not in ("", "0")


def import_torch() -> Any:
    """Import the torch of the environment that llr is being installed into.

    Under pip's build isolation only the requirements of the build can be imported, and torch is
    deliberately not one of them (see pyproject.toml). But the interpreter is still that of the target
    environment. Started without the variables that isolate it, it reports where that environment keeps
    its packages. Those folders are added at the end of the path, after the isolated ones.

    Raises:
        AbsentError: torch cannot be imported, or it is too old.
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
            f"release that the native library supports: upgrade it, then `{REBUILD}` in llr's sources"
        )
    return torch


def find_compiler() -> tuple[str, str]:
    """Return the command of the C++ compiler to use, and the first line of its ``--version``."""
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
            f"CXX={wanted}: there is no such program. Set CXX to a C++ compiler, unset it, "
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
