"""Two-layer networks of 1-d convolution kernels, and their rule for exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llr.exact.chain import Affine, Shape, Step, dense, register, steps_of
from llr.inputs.accept import takes
from llr.inputs.activations import activation_layer
from llr.inputs.assembly import set_tensors
from llr.inputs.roles import a_flag, a_float_dtype, a_generator
from llr.inputs.samplers import own_shape
from llr.models.parts import (
    check_memory,
    check_shape,
    check_sizes,
    check_tensors,
    normal,
)


class Conv1dTwoLayer(nn.Module):
    """A layer of kernels at every position, and a linear one: maps (n, d) to (n, 1).

    It computes ``sum_{l,t} a_{l,t} s(w_l . x[t : t+s])``.

    A shared kernel is the same at all ``positions = d + 1 - kernel_size``; otherwise each position t has its
    own kernel w_{l,t}. The parameters are ``weight``, (channels, kernel_size) or (channels, positions,
    kernel_size), and ``out``, the a_{l,t}, (channels, positions).

    Args:
        d: inputs.
        kernel_size: s.
        channels: number of kernels (l).
        shared: whether kernels are the same at all positions.
        activation: a name in :data:`llr.models.ACTIVATIONS`.
        dtype: of the parameters; default: torch's.
        generator: of the initial values; default: torch's.

    Raises:
        ValueError: sizes that are not positive integers, a kernel longer than `d`, more parameters than fit
            the memory budget, an unknown activation.

    Example:
        >>> import llr, torch
        >>> from llr.models import Conv1dTwoLayer
        >>> llr.model_rank(Conv1dTwoLayer(5, 3, 1, generator=torch.Generator().manual_seed(0))).rank
        6
    """

    TENSORS = ("weight", "out")
    """The names of its parameters."""

    @takes(dtype=a_float_dtype, generator=a_generator, shared=a_flag)
    def __init__(
        self,
        d: int,
        kernel_size: int,
        channels: int,
        *,
        shared: bool = True,
        activation: str = "tanh",
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d=d, kernel_size=kernel_size, channels=channels)
        if kernel_size > d:
            raise ValueError(f"kernel_size is {kernel_size}; expected at most d = {d}")
        if not isinstance(activation, str):
            raise TypeError(f"activation is {type(activation).__name__}; expected a name")
        self.d, self.kernel_size, self.channels = d, kernel_size, channels
        self.shared, self.activation = shared, activation
        self.positions = d + 1 - kernel_size
        own = () if shared else (self.positions,)
        check_memory(channels * (math.prod(own) * kernel_size + self.positions), dtype)
        self.weight: Tensor = normal(
            (channels, *own, kernel_size), 1 / math.sqrt(kernel_size), dtype, generator
        )
        self.out: Tensor = normal(
            (channels, self.positions), 1 / math.sqrt(channels), dtype, generator
        )
        self.act = activation_layer(activation)

    @classmethod
    def of(cls, weight: Tensor, out: Tensor, *, d: int, activation: str = "tanh") -> Conv1dTwoLayer:
        """The model with copies of these parameters.

        Args:
            weight: kernels, (m, s) if all positions share them, or (m, p, s).
            out: (m, p), with p = d + 1 - s.
            d: inputs.
            activation: as for the class.

        Raises:
            ValueError: shapes that do not match.
            TypeError: an argument that is not a floating-point tensor, several dtypes or devices.

        Example:
            >>> import torch
            >>> from llr.models import Conv1dTwoLayer
            >>> kernels, out = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
            >>> Conv1dTwoLayer.of(kernels, out, d=3, activation="relu")(torch.tensor([[1.0, 0.0, 1.0]]))
            tensor([[3.]], grad_fn=<UnsqueezeBackward0>)
        """
        check_tensors(weight=weight, out=out)
        if weight.dim() not in (2, 3):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; expected (m, s), or (m, p, s) without sharing"
            )
        channels, *own, size = weight.shape
        generator, shared = torch.Generator(), not own
        model = cls(d, size, channels, shared=shared, activation=activation, generator=generator)
        why = f"m = {channels} kernels of length {size} at the positions of d = {d} inputs"
        check_shape("weight", weight, tuple(model.weight.shape), why)
        check_shape("out", out, tuple(model.out.shape), why)
        set_tensors(model, weight=weight, out=out)
        return model

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (n, d) to (n, 1)."""
        if x.dim() != 2 or x.shape[1] != self.d:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, {self.d})")
        patches = x.unfold(1, self.kernel_size, 1)  # (n, p, s)
        kind = "nps,ms->nmp" if self.shared else "nps,mps->nmp"
        hidden = self.act(torch.einsum(kind, patches, self.weight))
        return torch.einsum("nmp,mp->n", hidden, self.out)[:, None]

    def misfit(self) -> str:
        """Describe the parameters' shapes if they do not match the sizes (any more); empty if they match."""
        sizes = (self.d, self.kernel_size, self.channels, self.positions)
        own = (self.channels, *(() if self.shared else (self.positions,)), self.kernel_size)
        fits = (
            all(type(size) is int for size in sizes)
            and self.positions == self.d + 1 - self.kernel_size
        )
        if fits and (self.weight.shape, self.out.shape) == (own, (self.channels, self.positions)):
            return ""
        return (
            f"parameters of shapes {tuple(self.weight.shape)} and {tuple(self.out.shape)}, which are not "
            f"those of {self.channels} kernels of size {self.kernel_size} at {self.positions} positions"
        )

    def extra_repr(self) -> str:
        """The sizes, for printing."""
        shared = "" if self.shared else ", shared=False"
        return f"{self.d}, {self.kernel_size}, {self.channels}{shared}"


def _convolution(module: Conv1dTwoLayer, shape: Shape) -> tuple[Sequence[Step], Shape]:
    d, s, m, p = module.d, module.kernel_size, module.channels, module.positions
    if module.misfit():
        raise ValueError(f"has {module.misfit()}")
    if shape != (d,):
        raise ValueError(f"takes samples of shape ({d},); what comes in has shape {shape}")
    patches = np.arange(p)[:, None] + np.arange(s)
    places = np.arange(m * p).reshape(m, p)
    if module.shared:
        read, write = patches[None], places.T[None]
    else:
        read, write = np.tile(patches, (m, 1))[:, None], places.reshape(-1, 1, 1)
    label = f"Conv1dTwoLayer({module.extra_repr()})"
    return [
        Affine(label, module.weight, None, read, write),
        *steps_of(module.act, (m * p,), "act")[0],
        dense(f"Linear({m * p}, 1)", module.out, shape=(1, m * p)),
    ], (1,)


register(Conv1dTwoLayer, _convolution)


@own_shape.register
def _(model: Conv1dTwoLayer) -> tuple[int, ...]:
    return (model.d,)
