"""The same function in a wider network, or in the narrowest one: embeddings, and reductions."""

from llr.embedding.check import Bounds, Check, check
from llr.embedding.compatible import compatible, random_compatible
from llr.embedding.moves import null, split, widen
from llr.embedding.record import Embedding
from llr.embedding.reduce import Reduction, reduce

__all__ = [
    "Bounds",
    "Check",
    "Embedding",
    "Reduction",
    "check",
    "compatible",
    "null",
    "random_compatible",
    "reduce",
    "split",
    "widen",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
