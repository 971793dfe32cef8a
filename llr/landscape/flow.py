"""How fast gradient flow forgets a residual: the rate of the theory, and the flow itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import grad

from llr.jacobian import evaluate
from llr.landscape.spectra import check_affordable, dense_hessian
from llr.landscape.surface import Loss, Surface
from llr.parameters import Selection
from llr.problem import Model
from llr.spectrum import count, svdvals
from llr.surroundings import outside_inference_mode
