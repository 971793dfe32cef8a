"""Imports objects by name: how the command line refers to the user's own code."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_GUARD = 'put what is to run only as a program under `if __name__ == "__main__":`'


def named_object(name: str, what: str, expected: str) -> object:
    """The object that ``module:name`` refers to; the name may have dots. Imported, never unpickled.

    Modules are also found in the current directory, and a file is accepted as a module:
    ``models/own.py:build``. During the import, ``sys.argv`` contains only its name.

    Args:
        name: such as ``mypkg.models:build``.
        what: what is looked for, for messages, such as "model".
        expected: the accepted ways to write it, for messages.

    Raises:
        ValueError: a malformed name, or no object of that name.
        ImportError: importing the module failed, or ended the program.

    Example:
        >>> from llr.inputs.named import named_object
        >>> named_object("math:pi", "number", "module:number, such as math:pi")
        3.141592653589793
    """
    module_name, colon, attribute = name.rpartition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{what} {name!r}: expected {expected}")
    is_file = module_name.endswith(".py")
    if not is_file and not re.fullmatch(r"\w+(\.\w+)*", module_name):
        raise ValueError(
            f"{what} {name!r}: {module_name!r} is no name of a module; expected {expected}"
        )
    with current_directory_importable(), program_arguments(module_name):
        with explained(f"{what} {name!r}: importing it", ImportError):
            found: object = (
                _of_file(name, what, module_name) if is_file else _imported(name, what, module_name)
            )
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ValueError(
                    f"{what} {name!r}: module {module_name!r} has no {attribute!r}{_meant(found, part)}"
                )
            found = getattr(found, part)
    return found


def _imported(name: str, what: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{module_name}.".startswith(f"{err.name}."):
            raise  # the module exists, but imports another one that does not
        raise ValueError(
            f"{what} {name!r}: there is no module {err.name!r} here or in the Python environment; run from "
            "the directory that holds it, or install it"
        ) from err


def _of_file(name: str, what: str, file: str) -> ModuleType:
    if not Path(file).is_file():
        raise ValueError(f"{what} {name!r}: there is no file {file!r}")
    path = Path(file).resolve()
    own = re.sub(r"\W", "_", path.stem)
    there = importlib.util.find_spec(own) if own not in sys.modules else sys.modules[own].__spec__
    if there is not None and there.origin == str(path):
        return importlib.import_module(own)
    if there is not None or own in sys.modules:  # another module has this name
        own = f"{own}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if own in sys.modules:
            return sys.modules[own]
    spec = importlib.util.spec_from_file_location(own, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _importable(str(path.parent)):  # as Python does for a program's folder
        sys.modules[own] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(own, None)
            raise
    return module


def _meant(found: object, part: str) -> str:
    close = difflib.get_close_matches(part, [n for n in dir(found) if not n.startswith("_")], 1)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def explained(doing: str, kind: type[Exception]) -> Iterator[None]:
    """Turn exceptions of the user's code into one line that says what was done and where it was raised.

    Exceptions become `kind`, and so does ``sys.exit``. ValueErrors that llr raises and interrupts are passed
    on unchanged.
    """
    try:
        yield
    except SystemExit as err:
        raise kind(
            f"{doing} ended the program, sys.exit({err.code!r}){_where(err)}; {_GUARD}"
        ) from err
    except Exception as err:
        frames = traceback.extract_tb(err.__traceback__)
        if isinstance(err, ValueError) and frames[-1].filename == __file__:
            raise
        text = " ".join(str(err).split())
        new = kind(f"{doing} raised {type(err).__name__}: {text}{_where(err)}")
        if isinstance(err, ModuleNotFoundError) and kind is ImportError:
            new = ModuleNotFoundError(str(new), name=err.name)
        raise new from err


def _where(err: BaseException) -> str:
    """The file and line of the user's code from which an exception came."""
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(err.__traceback__)):
        if not frame.filename.startswith(("<", __file__, *libraries)):
            return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""


@contextlib.contextmanager
def program_arguments(name: str) -> Iterator[None]:
    """Hide llr's command line from code that reads the command line when it is imported."""
    before, sys.argv = sys.argv, [name]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def current_directory_importable() -> Iterator[None]:
    """Make modules of the current directory importable, as ``python -m`` does."""
    with contextlib.nullcontext() if "" in sys.path else _importable(os.getcwd()):
        yield


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            with contextlib.suppress(ValueError):  # the user's module removed it
                sys.path.remove(folder)
