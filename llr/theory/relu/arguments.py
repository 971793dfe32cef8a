"""What the functions of llr.relu are given, read and checked: samples, values, planted networks."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.mlp import NotAnMLP, read_mlp
from llr.inputs.tensors import refuse_complex
from llr.linalg.integers import as_integers
from llr.models import NormalizedTwoLayer, SkipTwoLayer
from llr.theory.relu.cells import signs
from llr.theory.relu.degenerate import line

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["plain", "skip", "normalized"]


class OnHyperplane(ValueError):
    """A sample lies on the hyperplane of a planted neuron, which then is in no open cell."""


@dataclass(frozen=True)
class Network:
    """A planted network in float64: its neurons, those that contribute nothing left out.

    Attributes:
        kind: which program it belongs to.
        w: (m, d).
        a: (m), the outgoing weights; of a normalized neuron r over its scale.
        skip: (d), zeros if the kind is "skip" and there is no linear part; None for the other kinds.
    """

    kind: Kind
    w: Array
    a: Array
    skip: Array | None


def samples_of(x: Tensor) -> Array:
    """The samples as float64, (n, d).

    Raises:
        ValueError: another shape, no entries, NaN or infinity.
        TypeError: complex numbers.
    """
    refuse_complex("x", x)
    if x.dim() != 2 or not x.numel():
        raise ValueError(f"x has shape {tuple(x.shape)}; expected samples (n, d), not empty")
    x = x.detach().to("cpu", torch.float64)
    _check_finite("x", x)
    return x.numpy()


def values_of(y: Tensor, x: Array) -> Array:
    """The values at the samples as float64, (n).

    Raises:
        ValueError: another shape, NaN or infinity, or values that no network without biases has: not 0 at 0,
            or different at equal samples.
        TypeError: complex numbers.
    """
    refuse_complex("y", y)
    n = len(x)
    if tuple(y.shape) not in ((n,), (n, 1)):
        raise ValueError(
            f"y has shape {tuple(y.shape)}; expected ({n},) or ({n}, 1), one number for each of the {n} "
            "samples"
        )
    y = y.detach().to("cpu", torch.float64).reshape(n)
    _check_finite("y", y)
    values: Array = y.numpy()
    impossible = ~x.any(axis=1) & (values != 0)
    if impossible.any():
        i = int(impossible.argmax())
        raise ValueError(
            f"sample {i} is zero and y[{i}] is {values[i]}; networks without biases are 0 there: append "
            "a column "
            "of ones to x for biases, or leave the sample out"
        )
    _, first, of = np.unique(x, axis=0, return_index=True, return_inverse=True)
    different = values != values[first][of.ravel()]
    if different.any():
        i = int(different.argmax())
        j = int(first[of.ravel()[i]])
        raise ValueError(
            f"samples {j} and {i} are equal, but y is {values[j]} and {values[i]}; no function has both "
            "values"
        )
    return values


def _check_finite(name: str, t: Tensor) -> None:
    """Refuse NaN and infinity."""
    bad = (~torch.isfinite(t)).nonzero()
    if len(bad):
        at = tuple(bad[0].tolist())
        raise ValueError(
            f"{name}[{', '.join(map(str, at))}] is {float(t[at])}; expected finite numbers"
        )


def network_of(target: nn.Module, x: Array) -> Network:
    """The planted network.

    Raises:
        ValueError: biases, an activation other than ReLU, several outputs, another number of inputs than x
            has, NaN or infinity, or nothing that contributes.
        TypeError: no two-layer network.
    """
    if not isinstance(target, nn.Module):
        raise TypeError(
            f"target is {type(target).__name__}; expected a two-layer ReLU network, such as "
            'llr.models.TwoLayer.of(w, None, a, activation="relu")'
        )
    kind: Kind = "plain"
    skip: Array | None = None
    neurons: nn.Module | None = target
    if isinstance(target, SkipTwoLayer):
        kind, neurons = "skip", target.neurons
        if target.skip.bias is not None:
            raise _biases("the skip connection has a bias")
        skip = _floats("the skip connection", target.skip.weight, x)[0]
    elif isinstance(target, NormalizedTwoLayer):
        kind, neurons = "normalized", target.neurons
    w, a = np.zeros((0, x.shape[1])), np.zeros(0)
    if neurons is not None:
        w, a = _neurons(neurons, x)
    if isinstance(target, NormalizedTwoLayer):
        a = a / _finite("target's scale", target.scale)
    used = w.any(axis=1) & (a != 0)
    w, a = w[used], a[used]
    if kind != "normalized":
        w, a = _merged(w, a)
    if not len(a) and (skip is None or not skip.any()):
        raise ValueError(
            "target is the zero function; expected a neuron, or a skip connection, that contributes"
        )
    return Network(kind, w, a, skip)


def _neurons(model: nn.Module, x: Array) -> tuple[Array, Array]:
    try:
        mlp = read_mlp(model)
    except NotAnMLP as error:
        raise TypeError(
            f"target is no two-layer network: {error}; expected a TwoLayer, SkipTwoLayer or "
            "NormalizedTwoLayer of "
            "llr.models"
        ) from error
    if len(mlp.weights) != 2:
        raise TypeError(f"target is a {mlp}; expected one hidden layer")
    if mlp.activation != "relu":
        raise ValueError(f"target has the activation {mlp.activation!r}; expected 'relu'")
    if any(b is not None for b in mlp.biases):
        raise _biases("target has biases")
    outputs = mlp.widths[2]
    if outputs != 1:
        raise ValueError(f"target has {outputs} outputs; expected 1")
    w = _floats("target's first layer", mlp.weights[0], x)
    return w, _finite("target's second layer", mlp.weights[1])[0]


def _biases(what: str) -> ValueError:
    return ValueError(
        f"{what}; expected none (bias=False): append a column of ones to x, and the biases to the "
        "weights, instead"
    )


def _floats(name: str, weight: Tensor, x: Array) -> Array:
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} takes {weight.shape[1]} inputs, but x has {x.shape[1]} columns; expected as many"
        )
    return _finite(name, weight)


def _finite(name: str, weight: Tensor) -> Array:
    weight = weight.detach().to("cpu", torch.float64)
    _check_finite(name, weight)
    return cast(Array, weight.numpy())


def _merged(w: Array, a: Array) -> tuple[Array, Array]:
    """Neurons of exactly the same direction and sign as one; the function and its cost stay the same."""
    kept: dict[tuple[object, ...], int] = {}
    w, a = w.copy(), a.copy()
    for i, row in enumerate(w):
        integers = as_integers(row.tolist())
        positive = next(v for v in integers if v) > 0
        j = kept.setdefault((line(integers), positive, a[i] > 0), i)
        if j != i:
            a[j] += a[i] * np.linalg.norm(row) / np.linalg.norm(w[j])
    rest = list(kept.values())
    return w[rest], a[rest]


def patterns_of(w: Array, x: Array) -> Array:
    """The patterns 1[x_i.w > 0] of neurons, exactly, (m, n), bool.

    Raises:
        OnHyperplane: x_i.w is exactly 0 for a sample that is not zero.
    """
    found = signs(x, w)
    for j, i in np.argwhere(found == 0):
        if not x[i].any():
            continue
        value = sum(
            (Fraction(p) * Fraction(q) for p, q in zip(x[i].tolist(), w[j].tolist(), strict=True)),
            Fraction(0),
        )
        if value == 0:
            raise OnHyperplane(
                f"sample {i} lies on the hyperplane of neuron {j} of the target (x_i.w = 0 exactly), so "
                "the neuron "
                "is in no open cell, and isometry conditions do not decide; move the sample or the neuron"
            )
        found[j, i] = 1 if value > 0 else -1
    return found > 0
