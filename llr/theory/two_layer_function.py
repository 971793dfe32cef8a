"""Model ranks of functions of two-layer networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import lcm

from flint import arb, fmpq

from llr.balls import ACTIVATIONS, precision
from llr.theory.groups import PARITY, Parity, group_neurons
from llr.theory.neuron_sum import NeuronSum, neuron_sum
from llr.theory.periodic import waves
from llr.theory.polynomial import merged_polynomial
from llr.theory.result import Dimension, Term
from llr.theory.structure import Row, TwoLayerNet
from llr.theory.subset_sums import reachable
from llr.theory.two_layer import two_layer_tangent

_BITS = 512
