"""Models of the theory as ordinary modules, usable wherever llr or torch takes a module."""

from llr.inputs.activations import ACTIVATIONS, Erf, Polynomial, Sine
from llr.models.convolution import Conv1dTwoLayer
from llr.models.factorization import MatrixFactorization
from llr.models.load import load_model
from llr.models.networks import DeepLinear, TwoLayer, mlp
from llr.models.relu import NormalizedTwoLayer, SkipTwoLayer

__all__ = [
    "ACTIVATIONS",
    "Conv1dTwoLayer",
    "DeepLinear",
    "Erf",
    "MatrixFactorization",
    "NormalizedTwoLayer",
    "Polynomial",
    "Sine",
    "SkipTwoLayer",
    "TwoLayer",
    "load_model",
    "mlp",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
