"""Fully connected models: two-layer networks, MLPs of any depth, deep linear networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from llr.inputs.accept import takes
from llr.inputs.activations import activation_layer
from llr.inputs.assembly import set_tensors
from llr.inputs.roles import a_flag, a_float_dtype, a_generator, a_sequence
from llr.inputs.widths import linear_numbers
from llr.models.parts import (
    check_memory,
    check_shape,
    check_sizes,
    check_tensors,
    check_widths,
    linear,
    matrix_shape,
)


class _Chain(nn.Sequential):
    """A sequence of layers, whose slices are plain ``nn.Sequential``."""

    def __getitem__(self, idx: Any) -> Any:
        return (
            nn.Sequential(*list(self)[idx]) if isinstance(idx, slice) else super().__getitem__(idx)
        )


class TwoLayer(_Chain):
    """An MLP of one hidden layer, which maps (n, d) to (n, q).

    It computes ``sum_i a_i s(w_i . x + b_i) (+ c)``.

    Its parts are ``model[0]`` (w and b), ``model[1]`` (s) and ``model[2]`` (a, transposed, and c).

    Args:
        d: inputs.
        m: neurons.
        q: outputs.
        activation: a name in :data:`llr.models.ACTIVATIONS`, or a module such as ``Polynomial([0, 0, 1])``,
            of which a copy is used.
        bias: whether the model has hidden biases b_i.
        output_bias: whether the model has output biases c.
        dtype: of the parameters; default: torch's.
        generator: of the initial values, which are distributed as those of ``nn.Linear``; default: torch's.

    Raises:
        ValueError: sizes that are not positive integers, more parameters than fit the memory budget, an
            unknown activation.
        TypeError: an activation that is neither a name nor a module.

    Example:
        >>> import llr, torch
        >>> from llr.models import TwoLayer
        >>> model = TwoLayer(2, 3, generator=torch.Generator().manual_seed(0))
        >>> llr.model_rank(model).rank
        12
    """

    @takes(dtype=a_float_dtype, generator=a_generator, bias=a_flag, output_bias=a_flag)
    def __init__(
        self,
        d: int,
        m: int,
        q: int = 1,
        *,
        activation: str | nn.Module = "tanh",
        bias: bool = True,
        output_bias: bool = False,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_sizes(d=d, m=m, q=q)
        check_memory(linear_numbers([d, m, q], bias, output_bias), dtype)
        super().__init__(
            linear(d, m, bias, dtype, generator),
            activation_layer(activation),
            linear(m, q, output_bias, dtype, generator),
        )

    @classmethod
    def of(
        cls,
        w: Tensor,
        b: Tensor | None,
        a: Tensor,
        c: Tensor | None = None,
        *,
        activation: str | nn.Module = "tanh",
    ) -> TwoLayer:
        """The model with copies of these parameters.

        Args:
            w: (m, d).
            b: (m), or None for a model without hidden biases.
            a: (m, q).
            c: (q), or None for a model without output biases.
            activation: as for the class.

        Raises:
            ValueError: shapes that do not match.
            TypeError: an argument that is not a floating-point tensor, several dtypes or devices.

        Example:
            >>> import torch
            >>> from llr.models import TwoLayer
            >>> model = TwoLayer.of(torch.ones(1, 2), None, torch.ones(1, 1), activation="relu")
            >>> model(torch.tensor([[3.0, -1.0]]))
            tensor([[2.]], grad_fn=<MmBackward0>)
        """
        check_tensors(w=w, b=b, a=a, c=c)
        m, d = matrix_shape("w", w, "(m, d)")
        _, q = matrix_shape("a", a, "(m, q)")
        check_shape("a", a, (m, q), f"one row for each row of w, which is {tuple(w.shape)}")
        check_shape("b", b, (m,), f"one number for each row of w, which is {tuple(w.shape)}")
        check_shape("c", c, (q,), f"one number for each column of a, which is {tuple(a.shape)}")
        model = cls(
            d,
            m,
            q,
            activation=activation,
            bias=b is not None,
            output_bias=c is not None,
            generator=torch.Generator(),
        )
        set_tensors(model[0], weight=w, bias=b)
        set_tensors(model[2], weight=a.T, bias=c)
        return model


class DeepLinear(_Chain):
    """Linear layers without biases, which map (n, n_0) to (n, n_L).

    They compute ``W_L ... W_1 x``.

    Args:
        widths: n_0, ..., n_L.
        dtype: of the parameters; default: torch's.
        generator: of the initial values, which are distributed as those of ``nn.Linear``; default: torch's.

    Raises:
        ValueError: fewer than two widths, a width that is not a positive integer, or more parameters than fit
            the memory budget.

    Example:
        >>> import llr, torch
        >>> from llr.models import DeepLinear
        >>> llr.model_rank(DeepLinear([3, 4, 2], generator=torch.Generator().manual_seed(0))).rank
        6
    """

    @takes(widths=a_sequence, dtype=a_float_dtype, generator=a_generator)
    def __init__(
        self,
        widths: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_widths(widths)
        check_memory(linear_numbers(widths, False, False), dtype)
        super().__init__(*(linear(i, o, False, dtype, generator) for i, o in pairwise(widths)))

    @classmethod
    def of(cls, *weights: Tensor) -> DeepLinear:
        """The model with copies of these weights, (n_1, n_0), (n_2, n_1), ....

        Raises:
            ValueError: no weights, shapes that do not match.
            TypeError: an argument that is not a floating-point tensor, several dtypes or devices.

        Example:
            >>> import torch
            >>> from llr.models import DeepLinear
            >>> DeepLinear.of(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))(torch.ones(1, 2))
            tensor([[9.]], grad_fn=<MmBackward0>)
        """
        if not weights:
            raise ValueError("there are no weights; expected W_1, ..., W_L, at least one")
        check_tensors(**{f"W_{number}": W for number, W in enumerate(weights, 1)})
        widths: list[int] = []
        for number, W in enumerate(weights, 1):
            h, w = matrix_shape(f"W_{number}", W, f"(n_{number}, n_{number - 1})")
            widths = widths or [w]
            why = f"as many columns as the matrix before it has rows, {widths[-1]}"
            check_shape(f"W_{number}", W, (h, widths[-1]), why)
            widths.append(h)
        model = cls(widths, generator=torch.Generator())
        for layer, W in zip(model, weights, strict=True):
            set_tensors(layer, weight=W)
        return model


@takes(
    widths=a_sequence, dtype=a_float_dtype, generator=a_generator, bias=a_flag, output_bias=a_flag
)
def mlp(
    widths: Sequence[int],
    activation: str | nn.Module = "tanh",
    bias: bool = True,
    output_bias: bool = True,
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """An MLP: linear layers of these widths, with an activation after each but the last.

    Args:
        widths: inputs, hidden widths, outputs.
        activation: a name in :data:`llr.models.ACTIVATIONS`, or a module such as ``Polynomial([0, 0, 1])``,
            of which copies are used.
        bias: whether the hidden layers have biases.
        output_bias: whether the last layer has biases.
        dtype: of the parameters; default: torch's.
        generator: of the initial values, which are distributed as those of ``nn.Linear``; default: torch's.

    Raises:
        ValueError: fewer than two widths, a width that is not a positive integer, more parameters than fit
            the memory budget, an unknown activation.
        TypeError: an activation that is neither a name nor a module.

    Example:
        >>> from llr.models import mlp
        >>> print(mlp([2, 3, 1], "silu"))
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): SiLU()
          (2): Linear(in_features=3, out_features=1, bias=True)
        )
    """
    check_widths(widths)
    check_memory(linear_numbers(widths, bias, output_bias), dtype)
    *hidden, last = pairwise(widths)
    layers: list[nn.Module] = []
    for i, o in hidden:
        layers += [linear(i, o, bias, dtype, generator), activation_layer(activation)]
    return nn.Sequential(*layers, linear(*last, output_bias, dtype, generator))
