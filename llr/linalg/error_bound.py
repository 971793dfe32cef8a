"""Error bounds of a computed Jacobian, and of singular values computed from it.

For an MLP, with u = 2^-53, z^ a computed number, z the exact one, ez >= |z^ - z|, and likewise for the
others:

    z = W a + b:      ez = |W| (ea + (m + 2) u |a|) + (m + 2) u |b|                      (m terms)
    a = sigma(z):     ea = (sup |sigma'| near z) ez + the activation's own error;  eg likewise with sigma''
    t = W' d:         et = |W|' (ed + (h + 2) u |d|)                                     (h terms)
    d = t sigma'(z):  ed = et (|g| + eg) + |t| (eg + 2u |g|)
    entry d_i a_j:    ed_i (|a_j| + ea_j) + |d_i| (ea_j + 2u |a_j|)

This holds for sums in any order, with or without fused products, and if numbers below 2^-1022 are flushed to
zero. The native operators compute these bounds along with their signals (csrc/signals/cpu/error_bound.h);
here is the same in torch operations. By Weyl's inequality the error of a singular value is at most the
Frobenius norm of the entries' errors plus the error of the SVD.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. (2002), sections 3.1 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llr.operators.formula import ACTIVATIONS

U = 2.0**-53
FLOAT32 = 2.0**-24
LEAST = 1e-307
"""An upper bound of the error of an operation by underflow."""
_ROUNDED_UP = 1.01  # covers the rounding errors of the bound itself, a sum of positive numbers
_LOST = 1e-303  # more than |z| e^-|z| beyond 707, where the native table's exponentials are 0

# sup |sigma'| and sup |sigma''|
_STEEPEST = {"sigmoid": 0.25, "gelu": 1.13, "erf": 1.13, "silu": 1.1}
_BEND = {"tanh": 0.77, "sigmoid": 0.0963, "softplus": 0.25, "gelu": 0.8, "silu": 0.5, "erf": 0.968}

# Where torch's softplus becomes the identity, and an upper bound of the jumps of value and slope there.
_THRESHOLD, _JUMP = 20.0, 2.07e-9


@dataclass(frozen=True, eq=False)
class LayerErrors:
    """The factors of a layer's derivatives, and bounds of their errors; all nonnegative."""

    a: Tensor
    """(..., n, in): magnitudes of the layer's inputs."""
    ea: Tensor
    d: Tensor | None
    """(..., n, q, out): magnitudes of the derivatives; None for the last layer, with unit vectors."""
    ed: Tensor | None


def layer_errors(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    *,
    autograd: bool = False,
) -> list[LayerErrors]:
    """The running error analysis of an MLP in float64, by layer.

    Args:
        x: (n, d), or (B, n, d).
        weights: per layer (out, in), or (B, out, in).
        biases: per layer (out) or (B, out), or None.
        activation: a name in :data:`llr.operators.formula.ACTIVATIONS`.
        autograd: whether torch computes the activations and their slopes, with errors of a few units of 1.
            With False it is the native table, whose errors are a few units of the values.
    """
    sigma, slope = ACTIVATIONS[activation]
    a = x.detach().double()
    ea = torch.zeros_like(a)
    inputs, errors, slopes = [a], [ea], []
    tensors = [w.detach().double() for w in weights]
    for w, bias in zip(tensors[:-1], biases[:-1], strict=True):
        c = _sum_of(w.shape[-1])
        z, ez = a @ w.mT, _fed(a, ea, c) @ w.abs().mT + (w.shape[-1] + 2) * LEAST
        # A sum of zeros is exactly zero and stays on its side of ReLU's kink.
        terms = ((a != 0) | (ea != 0)).double() @ (w != 0).double().mT
        if bias is not None:
            b = bias.detach().double().unsqueeze(-2)
            z, ez, terms = z + b, ez + c * b.abs(), terms + (b != 0)
        ez = torch.where(terms == 0, 0.0, ez)
        a, g = sigma(z), slope(z)
        ea, eg = _activation_errors(activation, z, a, g, ez, autograd)
        inputs.append(a)
        errors.append(ea)
        slopes.append((g, eg))
    layers = [LayerErrors(inputs[-1].abs(), errors[-1], None, None)]
    q = weights[-1].shape[-2]
    t = tensors[-1].unsqueeze(-3).expand(*a.shape[:-1], q, a.shape[-1])
    et = torch.zeros_like(t)
    for k in reversed(range(len(slopes))):
        g, eg = (part.unsqueeze(-2) for part in slopes[k])
        d = t * g
        ed = et * (g.abs() + eg) + t.abs() * (eg + 2 * U * g.abs()) + LEAST
        layers.append(LayerErrors(inputs[k].abs(), errors[k], d.abs(), ed))
        if k > 0:
            w = tensors[k].unsqueeze(-3)
            et = _fed(d, ed, _sum_of(w.shape[-2])) @ w.abs() + (w.shape[-2] + 2) * LEAST
            t = d @ w
    return layers[::-1]


def row_errors(
    layers: Sequence[LayerErrors],
    outputs: int,
    counts: Callable[[int, bool], bool] = lambda *_: True,
    biases: Sequence[bool] = (),
    *,
    single: bool = False,
) -> Tensor:
    """A bound of the root of the sum of squared errors of each row of the Jacobian, (..., n, q).

    Args:
        layers: as from :func:`layer_errors`.
        outputs: q.
        counts: whether a layer's weight (or, with True, its bias) is a column.
        biases: which layers have a bias; default: all.
        single: whether the entries are rounded to float32.
    """
    u = 2 * U + (_ROUNDED_UP * FLOAT32 if single else 0.0)
    lost = 2e-38 if single else LEAST
    parts: list[Tensor] = []
    for index, layer in enumerate(layers):
        weight = counts(index, False)
        bias = counts(index, True) and (not biases or biases[index])
        e = _norm(layer.ea + u * layer.a).unsqueeze(-1)
        if layer.d is None or layer.ed is None:
            parts += [e] if weight else []
            continue
        ed, d = _norm(layer.ed), _norm(layer.d + layer.ed)
        if weight:
            size = math.sqrt(layer.a.shape[-1] * layer.d.shape[-1])
            parts.append(ed * _norm(layer.a + layer.ea).unsqueeze(-1) + d * e + size * lost)
        if bias:
            more = u * d if single else torch.zeros_like(d)
            parts.append(ed + more + math.sqrt(layer.d.shape[-1]) * lost)
    shape = (*layers[-1].a.shape[:-1], outputs)
    parts = parts or [layers[-1].a.new_zeros(shape)]
    total = torch.stack([part.expand(shape) for part in parts]).norm(dim=0)
    return (_ROUNDED_UP * total + 1e-150).nan_to_num(nan=math.inf, posinf=math.inf)


def _sum_of(terms: int) -> float:
    """The rounding error of a sum of this many products and one more term."""
    return (terms + 2) * U


def _fed(values: Tensor, errors: Tensor, c: float) -> Tensor:
    """The error bound after a matrix product."""
    return errors + c * values.abs() + LEAST * ((values != 0) | (errors != 0))


def _norm(v: Tensor) -> Tensor:
    """The norm over the last dimension, at least what squares may lose by underflow."""
    return (v.square().sum(-1) + v.shape[-1] * LEAST).sqrt()


def _activation_errors(
    name: str, z: Tensor, a: Tensor, g: Tensor, ez: Tensor, autograd: bool
) -> tuple[Tensor, Tensor]:
    """Bounds of the errors of value and slope."""
    size, zero = z.abs(), torch.zeros_like(z)
    if name == "identity":
        return ez, zero
    if name == "relu":
        sure = (ez <= 0) | ((size > ez) & (size < 1e300))
        return ez, (~sure).to(z.dtype)
    value, slope = a.abs(), g.abs()
    square = torch.where(size < 40, z * z, 0.0)
    terms, off, slope_off = slope, 8 * U * value, 10 * U + zero
    if name in ("gelu", "silu"):
        terms = slope + torch.where(z < 0, 2 * value, 0.0)
    if name == "gelu":
        off, slope_off = off + U * square * value, slope_off + U * square
    if name == "erf":
        slope_off = slope_off + 2 * U * square
    slope_off = slope_off * terms + _LOST
    if autograd:
        off = 8 * U * (value + (size if name in ("gelu", "silu", "softplus") else zero))
        slope_off = 16 * U * (1 + size.clamp(max=40.0)) + _LOST
    steepest, bend, at_most = _STEEPEST.get(name, 1.0), _BEND.get(name, 1.0), slope + slope_off
    turn = bend * ez
    steep = (at_most + turn).clamp(max=steepest)
    if name in ("tanh", "sigmoid", "softplus", "erf"):
        step = {"tanh": 2 * ez, "erf": (2 * size + ez) * ez}.get(name, ez)
        relative = torch.where(step <= 1, step * (1 + step) * at_most, math.inf)
        turn, steep = torch.fmin(turn, relative), torch.fmin(steep, at_most + relative)
    elif name in ("gelu", "silu"):
        bent = 2 * (size * at_most + value) if name == "gelu" else 4 * value
        tail = (z < -2) & ((size + ez) * ez <= 0.3)
        local = torch.where(tail, (bent + _LOST) * ez, math.inf)
        turn, steep = torch.fmin(turn, local), torch.fmin(steep, at_most + local)
    jump = zero
    if name == "softplus":
        far = (z - _THRESHOLD).abs() > _ROUNDED_UP * ez + 1e-14
        jump = torch.where(far, 0.0, _JUMP)
    return steep * ez + off + _LOST + jump, turn + slope_off + _LOST + jump


def svd_error(spectrum: Tensor, short_side: int, dtype: torch.dtype, *, blocks: int = 0) -> Tensor:
    """An error bound of singular values for the SVD alone, (...).

    ``2u (10 + 2 short_side + blocks) sigma_1``, with the u of `dtype`: a conservative constant, not proved.

    Args:
        spectrum: (..., k), descending.
        short_side: of the matrix.
        dtype: of the matrix.
        blocks: the number of successive QR factorisations.
    """
    u = torch.finfo(dtype).eps / 2
    top = spectrum[..., 0] if spectrum.shape[-1] else spectrum.new_zeros(spectrum.shape[:-1])
    return 2 * u * (10 + 2 * short_side + blocks) * top.double()


def estimated_error(spectrum: Tensor, short_side: int, n_params: int, dtype: torch.dtype) -> Tensor:
    """An estimate of the error of singular values, for models without a rule for a bound, (...).

    ``16 u (short_side + sqrt(n_params)) sigma_1``, with the u of `dtype`. The first part is measured (no
    count was above the proved rank). The root is for the sums inside layers, which have at most as many terms
    as there are parameters.
    """
    u = torch.finfo(dtype).eps / 2
    top = spectrum[..., 0] if spectrum.shape[-1] else spectrum.new_zeros(spectrum.shape[:-1])
    return 16 * u * (short_side + math.sqrt(n_params)) * top.double()
