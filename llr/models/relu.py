"""ReLU networks with a linear skip connection, and with normalized neurons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llr.inputs.accept import needed, takes
from llr.inputs.assembly import set_tensors
from llr.inputs.roles import a_float_dtype, a_generator
from llr.models.networks import TwoLayer
from llr.models.parts import check_shape, check_sizes, check_tensors, linear, matrix_shape


class SkipTwoLayer(nn.Module):
    """ReLU neurons beside a linear map, ``w_0 x + sum_i a_i relu(w_i x)``; maps (n, d) to (n, 1).

    Its parts are ``model.skip`` (w_0) and ``model.neurons``, a :class:`TwoLayer`, or None without neurons.

    Args:
        d: inputs.
        m: neurons, perhaps none.
        dtype: of the parameters; default: torch's.
        generator: of the initial values, which are distributed as those of ``nn.Linear``; default: torch's.

    Raises:
        ValueError: sizes that are not integers, or too small.

    Example:
        >>> import torch
        >>> from llr.models import SkipTwoLayer
        >>> SkipTwoLayer(3, 2)(torch.ones(5, 3)).shape
        torch.Size([5, 1])
    """

    @takes(dtype=a_float_dtype, generator=a_generator)
    def __init__(
        self,
        d: int,
        m: int = 0,
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d=d)
        self.skip = linear(d, 1, False, dtype, generator)
        self.neurons = (
            None
            if type(m) is int and m == 0
            else TwoLayer(d, m, activation="relu", bias=False, dtype=dtype, generator=generator)
        )

    @classmethod
    def of(cls, skip: Tensor, w: Tensor | None = None, a: Tensor | None = None) -> SkipTwoLayer:
        """The model with these parameters, copied as they are.

        Args:
            skip: w_0, (d).
            w: (m, d), or None without neurons.
            a: (m), or None without neurons.

        Raises:
            ValueError: shapes that do not fit each other, or only one of w and a.
            TypeError: what is no floating-point tensor, several dtypes or devices.

        Example:
            >>> import torch
            >>> from llr.models import SkipTwoLayer
            >>> SkipTwoLayer.of(torch.tensor([2.0, -1.0]))(torch.ones(1, 2))
            tensor([[1.]], grad_fn=<MmBackward0>)
        """
        check_tensors(skip=skip, w=w, a=a)
        if (w is None) != (a is None):
            raise ValueError(
                f"{'w' if w is None else 'a'} is missing; expected both w and a, or neither"
            )
        if skip.dim() != 1 or not len(skip):
            raise ValueError(f"skip has shape {tuple(skip.shape)}; expected (d,)")
        model = cls(len(skip), generator=torch.Generator())
        set_tensors(model.skip, weight=skip[None], bias=None)
        if w is not None and a is not None:
            model.neurons = _neurons(w, a, len(skip))
        return model

    def forward(self, x: Tensor) -> Tensor:
        """The values, (n, 1)."""
        values: Tensor = self.skip(x)
        return values if self.neurons is None else values + self.neurons(x)


class NormalizedTwoLayer(nn.Module):
    """Normalized ReLU neurons, ``sum_i r_i relu(w_i x) / scale_i``; scale_i is a norm on samples.

    scale_i is the norm of the outputs of neuron i on some samples. Like a batch normalization without
    centring, in evaluation mode: the samples set the scales once, when the model is made. Its parts are
    ``model.neurons``, a :class:`TwoLayer` (w and r), and ``model.scale``, (m).
    """

    scale: Tensor

    def __init__(self, neurons: TwoLayer, scale: Tensor) -> None:
        super().__init__()
        self.neurons = neurons
        self.register_buffer("scale", scale)

    @classmethod
    @takes(x=needed)
    def on(cls, x: Tensor, w: Tensor, r: Tensor) -> NormalizedTwoLayer:
        """The model with these parameters, copied as they are, normalized on the samples x.

        Args:
            x: (n, d).
            w: (m, d).
            r: (m).

        Raises:
            ValueError: shapes that do not fit each other, or a neuron that is 0 on all samples.
            TypeError: what is no floating-point tensor, several dtypes or devices.

        Example:
            >>> import torch
            >>> from llr.models import NormalizedTwoLayer
            >>> x = torch.tensor([[3.0], [4.0], [-1.0]])
            >>> NormalizedTwoLayer.on(x, torch.ones(1, 1), torch.tensor([10.0]))(x).flatten().tolist()
            [6.0, 8.0, 0.0]
        """
        check_tensors(x=x, w=w, r=r)
        _, d = matrix_shape("x", x, "(n, d)")
        neurons = _neurons(w, r, d)
        scale = (x @ w.T).relu().norm(dim=0)
        if not bool((scale > 0).all()):
            unseen = int((scale > 0).int().argmin())
            raise ValueError(
                f"neuron {unseen} is 0 on all {len(x)} samples, and cannot be normalized there; expected a "
                "neuron with x_i.w > 0 for some sample"
            )
        return cls(neurons, scale)

    def forward(self, x: Tensor) -> Tensor:
        """The values, (n, 1)."""
        hidden, act, out = self.neurons
        values: Tensor = out(act(hidden(x)) / self.scale)
        return values


def _neurons(w: Tensor, a: Tensor, d: int) -> TwoLayer:
    m, _ = matrix_shape("w", w, "(m, d)")
    check_shape("w", w, (m, d), f"a number for each of {d} inputs in every row")
    check_shape("a", a, (m,), f"one number for each row of w, which is {tuple(w.shape)}")
    return TwoLayer.of(w, None, a[:, None], activation="relu")
