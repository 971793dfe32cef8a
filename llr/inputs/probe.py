"""Runs a model on a few samples, and on all together, before its Jacobian is used.

It refuses forwards that are random, keep state, mix samples, lose precision or cut autograd's graph, and
copies that do not compute what the module computes. The native path needs none of this: it computes from the
weights alone.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.func import vmap

from llr.inputs.evaluation.compare import (
    UNSUPPORTED,
    flat,
    ragged,
    why_unsupported,
)
from llr.inputs.evaluation.surroundings import closed, random_state
from llr.inputs.examination import Examination, Probe
from llr.inputs.problem import Problem, as_leaves


def probe(problem: Problem) -> Probe:
    """Run the model at its first parameter point; the result is kept for each problem.

    The global random state does not change.

    Raises:
        ValueError: the model is random, changes its buffers or parameters, computes in lower precision than
            that of the problem, or uses tensors of the module that its copy cannot replace; or its outputs
            depend on other samples or on none of the chosen parameters, are NaN or infinite, or have no
            sample dimension.
        TypeError: the output is not made of floating-point tensors.
    """
    if "probe" not in problem.kept:
        examination = Examination(problem)
        drew = lambda: bool(examination.watch.draws)  # noqa: E731
        with closed(), torch.enable_grad(), random_state(problem.x.device, drew):
            problem.kept["probe"] = examination.outcome()
    return cast(Probe, problem.kept["probe"])


def refuse_interactions(problem: Problem) -> None:
    """Compare the outputs for all samples one by one with those for all together.

    Raises:
        ValueError: the samples interact; and what :func:`probe` refuses.
    """
    found = probe(problem)
    if found.together is None:
        return
    values = as_leaves(problem.point())
    step = math.ceil(len(found.together) / max(1, found.count))
    last = len(found.together) - 1
    some = torch.arange(
        last, -1, -step, device=problem.x.device
    )  # counted from the end, to include the last sample
    x = problem.x.detach()[some]

    def one(sample: Tensor) -> Tensor:
        outputs = flat(problem.call(values, sample[None]))
        if len(outputs) != found.outputs:
            raise ValueError(ragged(len(outputs), found.outputs))
        return outputs

    with closed(), torch.enable_grad():
        alone = None
        if not found.is_looped:
            try:
                alone = vmap(one)(x.clone())
            except UNSUPPORTED as error:
                found.obstacle = why_unsupported(error, found.draws_own)
        if alone is None:
            alone = torch.stack([one(sample.clone()).detach() for sample in x])
    found.compare_some(alone, some)
