"""The theory of Local Linear Recovery: dimensions of tangent spaces and optimistic sample sizes, exactly."""

from llr.theory.functions.function import model_rank_of_function, optimistic_sample_size
from llr.theory.functions.points import Points, points_needed
from llr.theory.functions.stratification import FunctionClass, Stratification, rank_stratification
from llr.theory.result import Dimension, Term
from llr.theory.spans.neurons import Independence, independence
from llr.theory.structures.structure import read_structure
from llr.theory.tangents.tangent import tangent_dimension
from llr.theory.tangents.two_layer import generic_rank

__all__ = [
    "Dimension",
    "FunctionClass",
    "Independence",
    "Points",
    "Stratification",
    "Term",
    "generic_rank",
    "independence",
    "model_rank_of_function",
    "optimistic_sample_size",
    "points_needed",
    "rank_stratification",
    "read_structure",
    "tangent_dimension",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
