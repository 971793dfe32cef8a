"""Minimum-norm ReLU networks: when they are the planted network, and how far they are from not being it."""

from llr.theory.relu.patterns import Patterns as Patterns
from llr.theory.relu.patterns import patterns as patterns
from llr.theory.relu.isometry import Isometry as Isometry
from llr.theory.relu.isometry import isometry as isometry
