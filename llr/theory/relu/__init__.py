"""Minimum-norm ReLU networks: when they are the planted network, and how far they are from not being it."""

from llr.theory.relu.check import check_proof
from llr.theory.relu.closed_forms import (
    all_ones_probability,
    gated_skip_probability,
    neighbour_bounds,
    normalized_neuron_probability,
    normalized_neuron_recovers,
    opens_for_all,
    whitened_skip_recovers,
)
from llr.theory.relu.isometry import Isometry, isometry
from llr.theory.relu.min_norm import MinNorm, min_norm
from llr.theory.relu.patterns import Patterns, patterns
from llr.theory.relu.proof import Proof
from llr.theory.relu.prove import prove_recovery
from llr.theory.relu.recovers import Recovery, recovers
from llr.theory.relu.solution import Solution, network_from, solution_from

__all__ = [
    "Isometry",
    "MinNorm",
    "Patterns",
    "Proof",
    "Recovery",
    "Solution",
    "all_ones_probability",
    "check_proof",
    "gated_skip_probability",
    "isometry",
    "min_norm",
    "neighbour_bounds",
    "network_from",
    "normalized_neuron_probability",
    "normalized_neuron_recovers",
    "opens_for_all",
    "patterns",
    "prove_recovery",
    "recovers",
    "solution_from",
    "whitened_skip_recovers",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
