"""The closed forms as upper bounds of ranks on given samples."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from llr.exact.kinks import off_analytic
from llr.exact.network import network_of_mlp
from llr.inputs.parameters import Selection
from llr.inputs.problem import Problem
from llr.theory.result import Dimension
from llr.theory.structures.structure import read_structure
from llr.theory.tangents.tangent import dimension_of

_BEYOND = 20.0  # torch's softplus is the identity there


def upper_bound(
    problem: Problem, params: Selection, *, everywhere: bool = False
) -> Dimension | None:
    """dim T of a model by theory, if it bounds the rank on the problem's samples; else None.

    None for a model or a choice of parameters that the theory does not cover, for ReLU, whose slope at a kink
    is not that of a neighbourhood, and for softplus on samples where torch's is not the analytic function.

    Args:
        problem: the model, its columns and its samples.
        params: the argument `params` of the problem.
        everywhere: whether the bound must hold on all samples.

    Source: docs/theory.md, Theorems 2.2, 3.1, 4.1, 5.1 and 6.2.
    """
    model = problem.model
    if params is not None or not isinstance(model, nn.Module):
        return None
    try:
        structure = read_structure(model)
    except ValueError:  # the model has none of the theory's structures
        return None
    activation = getattr(structure, "activation", None)
    if activation == "relu" or (
        activation == "softplus" and (everywhere or not _is_analytic(problem))
    ):
        return None
    return dimension_of(structure)


def _is_analytic(problem: Problem) -> bool:
    """Whether no preactivation of the softplus MLP is beyond the threshold; True is certain.

    Most samples are decided in float64 with an error bound; the others in balls.
    """
    if problem.mlp is None:
        return False
    tensors = [t for _, t in problem.chain()]
    x = problem.x.double()
    off = torch.zeros_like(x)
    fine = torch.ones(len(x), dtype=torch.bool, device=x.device)
    eps = torch.finfo(torch.float64).eps
    for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
        assert weight is not None
        W, b = weight.detach().double(), None if bias is None else bias.detach().double()
        z = F.linear(x, W, b)
        size = F.linear(x.abs(), W.abs(), None if b is None else b.abs())
        # Twice Higham's bound of a sum in any order, to cover the rounding of the bound itself.
        off = 1.001 * (F.linear(off, W.abs()) + (W.shape[1] + 4) * eps * size)
        fine &= (z + off < _BEYOND).all(1)  # False for NaN
        x = F.softplus(z)
        off = 1.001 * (off + 16 * eps * (x + 1))
    if bool(fine.all()):
        return True
    rest = replace(problem, x=problem.x[~fine])
    return not off_analytic(network_of_mlp(rest, problem.mlp))
