"""Checks of a mutated model: functions that read it must agree with the model that runs, or refuse it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import llr
from llr.embedding import split
from llr.exact import network as exact
from llr.recovery import Damping, levenberg_marquardt
from llr.recovery.train.data import Data
from llr.recovery.train.machines import machine_for
from llr.theory import tangent_dimension

from .refusals import complaint

F64 = torch.float64


def truth(model: nn.Module, x: Tensor) -> Tensor | None:
    """The Jacobian of the model that runs, one gradient at a time; None if it does not run."""
    parameters = list(model.parameters())
    try:
        rows = []
        for sample in x:
            for y in model(sample[None]).reshape(-1):
                found = (
                    torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True)
                    if y.requires_grad
                    else [None] * len(parameters)
                )
                rows.append(
                    torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).reshape(-1)
                            for g, p in zip(found, parameters, strict=True)
                        ]
                    ).as_subclass(Tensor)
                )
        return torch.stack(rows).detach()
    except Exception:
        return None


_ONE_STEP = Damping(iterations=2)


def wrong(model: nn.Module, x: Tensor, J: Tensor, *, raised: bool = False) -> list[str]:
    """The functions whose results do not belong to the model that runs. A refusal is not an error.

    With `raised`, the model computes in float32 inside; some functions compute it in float64.
    """
    rounding = 1e-5 if raised else 1e-9
    found = []

    def refused(name: str, error: Exception) -> None:
        foreign = complaint(error)
        if foreign is not None:
            found.append(f"{name}: {foreign}: {error!r}")

    def compare(
        name: str, numbers: Callable[[], Tensor], expected: Tensor, tolerance: float
    ) -> None:
        try:
            given = numbers()
        except Exception as error:
            refused(name, error)
            return
        if given.shape != expected.shape or not bool(
            (
                (given - expected).abs() <= tolerance * float(expected.abs().max().clamp(min=1e-30))
            ).all()
        ):
            found.append(name)

    rank = int(torch.linalg.matrix_rank(J, rtol=1e-9))
    compare("jacobian", lambda: llr.jacobian(model, x).flatten(0, 1), J, 1e-9)
    compare("gram", lambda: llr.gram(model, x).reshape(len(J), len(J)), J @ J.T, rounding)
    compare(
        "exact",
        lambda: torch.tensor(
            [float(v) for v in exact.jacobian(model, x, bits=64).entries()], dtype=F64
        ).reshape(J.shape),
        J,
        1e-9,
    )

    def bounds(name: str, upper: Callable[[], int]) -> None:
        try:
            most = upper()
        except Exception as error:
            refused(name, error)
            return
        if most < rank:
            found.append(name)

    def certified() -> int:
        certificate = llr.certify(model, x)
        tight = int(torch.linalg.matrix_rank(J, rtol=1e-15)) if J.any() else 0
        if certificate.rank > tight or not llr.verify(certificate, model, x):
            found.append("certify")
        return certificate.upper

    bounds("certificate's upper bound", certified)
    bounds("theory", lambda: tangent_dimension(model).upper)

    def outputs(m: nn.Module) -> Tensor:
        with torch.no_grad():
            return m(x).reshape(len(x), -1).as_subclass(Tensor)

    compare("embedding", lambda: outputs(split(model, 0, 0)[0]), outputs(model), 1e-6)
    parameters = list(model.parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in parameters]).as_subclass(Tensor)
    y = torch.ones_like(outputs(model))

    def trained() -> Tensor:
        machine = machine_for(model, Data.of(theta[None], x, y), theta[None])
        return machine.forward(theta[None], machine.prepare(x[None]))[0][0]

    compare("train", trained, outputs(model), rounding)
    try:
        fit = levenberg_marquardt(model, theta[None], x, y, damping=_ONE_STEP)
    except Exception as error:
        refused("levenberg_marquardt", error)
        return found
    # The reported loss must be the module's loss at the reported parameters.
    kept = [p.data for p in parameters]
    at = 0
    for p in parameters:
        p.data = fit.theta[0, at : at + p.numel()].view(p.shape)
        at += p.numel()
    loss = (outputs(model) - y).square().mean()
    for p, data in zip(parameters, kept, strict=True):
        p.data = data
    if abs(float(loss) - float(fit.loss)) > (1e-4 if raised else 1e-6) * max(float(loss), 1e-9):
        found.append("levenberg_marquardt")
    return found
