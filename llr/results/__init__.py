"""What all results share: text and HTML, dictionaries and files, figures, and the progress of long work."""

from llr.results.record import Record, Shown

__all__ = [
    "Record",
    "Shown",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
