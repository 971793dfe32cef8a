"""Minimum-norm ReLU networks: when they are the planted network, and how far they are from not being it."""

from llr.theory.relu.patterns import Patterns as Patterns
from llr.theory.relu.patterns import patterns as patterns
