"""The closed forms as upper bounds of ranks on given samples."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from llr.parameters import Selection
from llr.problem import Problem
from llr.theory.result import Dimension
from llr.theory.structure import read_structure
from llr.theory.tangent import dimension_of

# torch's softplus is the identity beyond 20; with this margin no rounding decides on which side a sample is.
_SOFTPLUS_MOST = 19.9


def upper_bound(
    problem: Problem, params: Selection, *, everywhere: bool = False
) -> Dimension | None:
    """What the theory says about dim T of a model, where that bounds the rank on the problem's samples.

    None for a model or a choice of parameters that the theory does not know, for ReLU, whose slope on a kink
    is that of no neighbourhood, and for softplus on samples where torch's is not the analytic function.

    Args:
        problem: the model, its columns and its samples.
        params: as it was given for them.
        everywhere: whether the bound is to hold on all samples.

    Source: docs/theory.md, Theorems 2.2, 3.1, 4.1, 5.1 and 6.2.
    """
    model = problem.model
    if params is not None or not isinstance(model, nn.Module):
        return None
    try:
        structure = read_structure(model)
    except ValueError:  # none of its structures
        return None
    activation = getattr(structure, "activation", None)
    if activation == "relu" or (
        activation == "softplus" and (everywhere or not _is_analytic(problem))
    ):
        return None
    return dimension_of(structure)


def _is_analytic(problem: Problem) -> bool:
    """Whether no preactivation of the softplus MLP comes near the threshold."""
    if problem.mlp is None:
        return False
    tensors = [t for _, t in problem.chain()]
    x = problem.x.double()
    for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
        assert weight is not None
        z = F.linear(x, weight.double(), None if bias is None else bias.double())
        if bool((z.abs() > _SOFTPLUS_MOST).any()):
            return False
        x = F.softplus(z)
    return True
