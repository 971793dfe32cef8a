"""The landscape of a loss: critical points, Hessians, branches of global minima, gradient flow."""

from llr.landscape.branches import Branch, Branches, branches
from llr.landscape.critical import Criticality, criticality
from llr.landscape.critical_targets import critical_targets
from llr.landscape.embedded import EmbeddedSpectrum, embedded_spectrum
from llr.landscape.flow import Flow, Rate, flow, rate
from llr.landscape.points import random_point
from llr.landscape.spectra import HessianSpectrum, hessian_spectrum

__all__ = [
    "Branch",
    "Branches",
    "Criticality",
    "EmbeddedSpectrum",
    "Flow",
    "HessianSpectrum",
    "Rate",
    "branches",
    "critical_targets",
    "criticality",
    "embedded_spectrum",
    "flow",
    "hessian_spectrum",
    "random_point",
    "rate",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
