"""Minimum-norm ReLU networks: when they are the planted network, and how far they are from not being it."""

from llr.theory.relu.check import check_proof as check_proof
from llr.theory.relu.closed_forms import all_ones_probability as all_ones_probability
from llr.theory.relu.closed_forms import gated_skip_probability as gated_skip_probability
from llr.theory.relu.closed_forms import neighbour_bounds as neighbour_bounds
from llr.theory.relu.closed_forms import (
    normalized_neuron_probability as normalized_neuron_probability,
)
from llr.theory.relu.closed_forms import normalized_neuron_recovers as normalized_neuron_recovers
from llr.theory.relu.closed_forms import opens_for_all as opens_for_all
from llr.theory.relu.closed_forms import whitened_skip_recovers as whitened_skip_recovers
from llr.theory.relu.isometry import Isometry as Isometry
from llr.theory.relu.isometry import isometry as isometry
from llr.theory.relu.min_norm import MinNorm as MinNorm
from llr.theory.relu.min_norm import min_norm as min_norm
from llr.theory.relu.patterns import Patterns as Patterns
from llr.theory.relu.patterns import patterns as patterns
from llr.theory.relu.proof import Proof as Proof
from llr.theory.relu.prove import prove_recovery as prove_recovery
from llr.theory.relu.recovers import Recovery as Recovery
from llr.theory.relu.recovers import recovers as recovers
from llr.theory.relu.solution import Solution as Solution
from llr.theory.relu.solution import network_from as network_from
from llr.theory.relu.solution import solution_from as solution_from
