"""Linear independence of functions of neurons; the code is in :mod:`llr.theory.spans.neurons`."""

from llr.theory.spans.neurons import Independence, independence

__all__ = ["Independence", "independence"]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
