"""Reads samples and weights from files, and writes files atomically.

``load`` reads samples; ``layout``, ``header``, ``tables`` read text, ``arrays`` binary files, ``checkpoints``
weights. ``writing`` writes a whole file or none. Nothing is ever unpickled. ``load_model`` comes from
:mod:`llr.models`, which is loaded at the first use.
"""

import importlib
from typing import Any

from llr.inputs.files.load import load_inputs as load_inputs


def __getattr__(name: str) -> Any:
    if name == "load_model":
        return importlib.import_module("llr.models.load").load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
