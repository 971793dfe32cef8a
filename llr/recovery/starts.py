"""Random starts of training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.mlp import MLP, NotAnMLP, read_mlp
from llr.inputs.parameters import layout
from llr.inputs.roles import a_device_here, a_float_dtype, a_generator, number, word

KINDS = ("normal", "fan-in", "torch")


@takes(
    model=a_module,
    kind=word,
    scale=number,
    generator=a_generator,
    dtype=a_float_dtype,
    device=a_device_here,
)
@outside_inference_mode
def initial(
    model: nn.Module,
    count: int,
    *,
    kind: str = "normal",
    scale: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random parameters for many members.

    A small `scale` (1e-3 to 1e-10) is the small initialisation under which neurons condense.

    Args:
        model: the template.
        count: S, the number of members.
        kind: "normal", all parameters from N(0, scale^2); "fan-in", those of each layer of an MLP from
            N(0, scale^2 / number of its inputs); "torch", as ``nn.Linear`` draws them (uniform up to one
            over the root of the number of inputs), times scale.
        scale: a positive number.
        generator: the generator of the random numbers, on the CPU; default: that of torch.
        dtype: float64 or float32; numbers are drawn in float64.
        device: the device of the result.

    Returns:
        (S, P), columns as in :func:`llr.layout`.

    Raises:
        ValueError: an unknown kind, a scale or count that is not positive, a model without trainable
            parameters, a kind for MLPs with a model that is none.

    Source: Luo, Xu, Ma, Zhang, "Phase diagram for two-layer ReLU neural networks at infinite-width limit",
    J. Mach. Learn. Res. 22 (2021).

    Example:
        >>> from llr.models import TwoLayer
        >>> from llr.recovery.train import initial
        >>> initial(TwoLayer(2, 3), 5, scale=1e-8).shape
        torch.Size([5, 12])
    """
    if type(count) is not int or count < 1:
        raise ValueError(f"count is {count!r}; expected a positive integer")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale!r}; expected a positive number, such as 1e-3")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    slices = layout(model)
    P = sum(s.stop - s.start for s in slices.values())
    if kind == "torch":
        numbers = 2 * torch.rand(count, P, generator=generator, dtype=torch.float64) - 1
    else:
        numbers = torch.randn(count, P, generator=generator, dtype=torch.float64)
    if kind != "normal":
        inputs = _inputs(model, kind)
        for name, s in slices.items():
            numbers[:, s] /= math.sqrt(inputs[name])
    return (scale * numbers).to(device=device, dtype=dtype)


def _inputs(model: nn.Module, kind: str) -> dict[str, int]:
    """For every parameter of an MLP, the number of inputs of its layer."""
    try:
        mlp: MLP = read_mlp(model)
    except NotAnMLP as departure:
        raise ValueError(
            f"kind {kind!r} is for MLPs, and {type(model).__name__} is none ({departure}); use 'normal'"
        ) from None
    names = {id(p): name for name, p in model.named_parameters()}
    layers = zip(mlp.weights, mlp.biases, strict=True)
    return {names[id(t)]: w.shape[1] for w, b in layers for t in (w, b) if t is not None}
