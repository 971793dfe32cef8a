"""Tangent dimensions of two-layer networks, in closed form at every parameter."""

from __future__ import annotations

from llr.theory.groups import PARITY as PARITY
from llr.theory.groups import Group as Group
from llr.theory.groups import Grouping as Grouping
from llr.theory.groups import group_neurons as group_neurons
