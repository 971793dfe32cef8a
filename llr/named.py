"""Objects of modules by their name: how the command line names code of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator


def named_object(name: str, what: str, expected: str) -> object:
    """What ``module:name`` names; dots in the name reach into classes. Imported, never unpickled.

    Modules are also found in the current directory.

    Args:
        name: such as ``mypkg.models:build``.
        what: is looked for, for messages: "model".
        expected: the ways to write it, for messages.

    Raises:
        ValueError: malformed, or nothing of that name.
        ImportError: importing the module failed.

    Example:
        >>> from llr.named import named_object
        >>> named_object("math:pi", "number", "module:number, such as math:pi")
        3.141592653589793
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{what} {name!r}: expected {expected}")
    with current_directory_importable():
        found = _imported(name, what, module_name)
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ValueError(f"{what} {name!r}: module {module_name!r} has no {attribute!r}")
            found = getattr(found, part)
    return found


def _imported(name: str, what: str, module_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{module_name}.".startswith(f"{err.name}."):
            raise  # the module exists, but imports one that does not
        raise ValueError(
            f"{what} {name!r}: there is no module {err.name!r} here or in the Python environment; run from "
            "the directory that holds it, or install it"
        ) from err


@contextlib.contextmanager
def current_directory_importable() -> Iterator[None]:
    """Modules of the current directory are found, as they are by ``python -m``."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            with contextlib.suppress(ValueError):  # the user's module removed it
                sys.path.remove(here)
