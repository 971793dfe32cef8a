"""A model's Jacobian layer by layer, in factors or in blocks of columns, without ever holding it whole.

A layer's weight enters through products with what the layer is given, so row i's derivative by it is
sum_t delta[i, t] a[i, t]': signals a going in, derivatives delta of the row's output by what comes out, over
the positions t at which the weight is used (the tokens of a sequence, the places of a filter). Those two
are far smaller than the derivative. For an MLP they come from the chain itself; for another module from hooks and one
backward pass per output. Each time, what they give is compared with the derivative that autograd finds:
parameters that are also used where no hook sees it, and all kinds of layers not known here, become blocks of
columns computed by :mod:`llr.jacobian`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from llr.jacobian import evaluate
from llr.modules import READERS, Reader
from llr.parameters import Columns
from llr.problem import Problem
from llr.reference import ACTIVATIONS, output_leaves
from llr.surroundings import full_precision

log = logging.getLogger("llr")

BLOCK_BYTES = 64 << 20
"""What the part of the Jacobian that is held at a time may take, unless less is free."""
