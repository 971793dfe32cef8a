"""Wide networks with T_wide within T_narrow that cannot be reached by splits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.lifting.chain import Chain, chain_of, check_index, read_chain
from llr.linalg.balls import Array
from llr.results import Record
from llr.results.html import Verdict

Real = float | Fraction
_WHY = "a neuron is duplicated in each of two consecutive layers"


@dataclass(frozen=True, eq=False, repr=False)
class Lift(Record):
    """A member of the family: its numbers, and how its parameters follow from the narrow ones.

    Attributes:
        layer: the hidden layer of `first`, from 0 on; `second` is in the next one.
        first: the neuron that was duplicated in `layer`; its copy is the last neuron of that layer.
        second: the neuron that was duplicated in the next layer; its copy is the last neuron of that layer.
        alpha: the copy's share of the outgoing weights of `second`.
        t: the weight from the copy of `first` to `second`; it is subtracted from the one from `first`.
        s: the weight from the copy of `first` to the copy of `second`.
        r: the weights from the copy of `first` to every other neuron of the next layer, in their order.
        lam: a lambda with (1 - alpha) t + alpha s = lambda u and r_k = lambda v_k, where u and v_k are the
            narrow weights from `first`; None if there is none. All of these are exact numbers.
        exact: whether float64 holds all parameters of the wide network exactly, so that it represents the
            narrow network's function exactly and satisfies the condition with `lam`.
        matrix: (P_wide, P_narrow), A of theta_wide = A theta_narrow + constant, which represents the narrow
            function at any theta_narrow; rows and columns in the order of each model's parameters.
        constant: (P_wide).
    """

    layer: int
    first: int
    second: int
    alpha: Fraction
    t: Fraction
    s: Fraction
    r: tuple[Fraction, ...]
    lam: Fraction | None
    exact: bool
    matrix: Tensor
    constant: Tensor

    _long = ("matrix", "constant")
    _also = ("contained",)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        rows = self.matrix.shape[0] if self.matrix.dim() == 2 else -1
        kept = self.kept("matrix") and self.kept("constant")
        fits = rows == len(self.constant) or not kept
        yield fits and self.constant.dim() == 1, "a matrix with a row for each entry of constant"

    @property
    def contained(self) -> bool:
        """Whether there is a lambda, the condition for T_wide within T_narrow.

        The condition is sufficient at all parameters, and necessary at almost all.
        """
        return self.lam is not None

    def __str__(self) -> str:
        """The member, and whether it is critical for every sample."""
        numbers = ", ".join(
            f"{name} = {_text(getattr(self, name))}" for name in ("alpha", "t", "s")
        )
        r = f", r = ({', '.join(map(_text, self.r))})" if self.r else ""
        verdict = "no lambda" if self.lam is None else f"lambda = {_text(self.lam)}"
        held = "" if self.exact else "; to rounding"
        return (
            f"neuron {self.first} of hidden layer {self.layer} and neuron {self.second} of the next layer "
            f"duplicated, {numbers}{r}: {verdict}{held}"
        )

    def to_dict(self, spectrum: bool = False) -> dict[str, Any]:
        """The fields as plain values for strict JSON, exact numbers as text such as "3/8".

        Args:
            spectrum: whether to include `matrix` and `constant`.
        """
        return super().to_dict(spectrum)

    def _verdict(self) -> Verdict:
        return ("contained", "good") if self.contained else ("no lambda", "bad")


@takes(narrow=a_module)
@outside_inference_mode
def lifted_family(
    narrow: nn.Module,
    *,
    layer: int = 0,
    first: int = 0,
    second: int = 0,
    alpha: Real,
    t: Real | None = None,
    s: Real | None = None,
    r: Sequence[Real] | None = None,
    lam: Real | None = None,
) -> tuple[nn.Sequential, Lift]:
    """A wide network of the same function, with one more neuron in each of two adjacent hidden layers.

    Neuron `first` of a hidden layer and neuron `second` of the next one are duplicated. The outgoing weights
    of `second` are divided in the shares 1 - alpha and alpha. Let u be the narrow weight from `first` to
    `second`. In the wide network, `second` has the weights u - t from `first` and t from its copy, and the
    copy of `second` has u - s and s. Every other neuron k of that layer, with narrow weight v_k from `first`,
    has v_k - r_k and r_k. The function is that of the narrow network for all t, s and r, and T_wide is within
    T_narrow if (and at almost all narrow parameters only if) there is a number lambda with

        (1 - alpha) t + alpha s = lambda u    and    r_k = lambda v_k for all k.

    With t = s this is a sequence of splits; otherwise both copies of `second` have different incoming
    weights, which no sequence of splits and null neurons gives. Either give t, s and r, or lambda:

    * t, s and r: any member, whether critical for every sample or not;
    * lam and t (alpha not 0): s = (lam u - (1 - alpha) t) / alpha and r = lam v;
    * lam and s with alpha = 0: t = lam u and r = lam v.

    Args:
        narrow: an MLP with at least two hidden layers, with or without biases.
        layer: the hidden layer of `first`, from 0 on.
        first: neuron of that layer.
        second: neuron of the next hidden layer.
        alpha: share of the copy of `second`; any number.
        t: weight from the copy of `first` to `second`.
        s: weight from the copy of `first` to the copy of `second`.
        r: weights from the copy of `first` to the other neurons of the layer of `second`, in their order;
            may be omitted if there are none.
        lam: lambda.

    Returns:
        The wide network in float64, with the copies as the last neurons of their layers, and the `Lift`. All
        numbers are computed exactly and then rounded once. If float64 cannot hold u - t and the other
        weights, ``exact`` is false: the function is kept, and the condition satisfied, to rounding only. With
        narrow weights in float32, or of few binary digits, products with shares of few digits are exact.

    Raises:
        TypeError: a model that is no module; values that are no numbers.
        ValueError: a model that is not an MLP with two hidden layers and an activation; indices out of
            range; too few or too many of t, s, r and lam; numbers that are not finite or beyond float64.

    Source: docs/theory.md, Theorem 7.2.

    Example:
        >>> from llr.lifting import lift_status, lifted_family
        >>> from llr.models import mlp
        >>> narrow = mlp([1, 2, 2, 1])
        >>> wide, lift = lifted_family(narrow, alpha=0.25, t=2.0, lam=0.25)
        >>> lift.exact, lift.contained, bool(lift_status(narrow, wide))
        (True, True, True)
        >>> wide, lift = lifted_family(narrow, alpha=0.25, t=2.0, s=1.0, r=[0.5])
        >>> lift.contained, bool(lift_status(narrow, wide))
        (False, False)
    """
    chain = read_chain(narrow, 2, _WHY)
    check_index("layer", layer, chain.hidden - 1, "hidden layers with another one after them")
    below, above = (len(chain.weights[layer + k]) for k in (0, 1))
    check_index("first", first, below, f"neurons of hidden layer {layer}")
    check_index("second", second, above, f"neurons of hidden layer {layer + 1}")
    column = [Fraction(v) for v in chain.weights[layer + 1][:, first].tolist()]
    u, v = column[second], column[:second] + column[second + 1 :]
    share = _number("alpha", alpha)
    numbers = {
        name: _number(name, n) for name, n in (("t", t), ("s", s), ("lam", lam)) if n is not None
    }
    given = _free(numbers, r, len(v)) if lam is None else _by_lambda(numbers, r, share, u, v)
    move = _Move(layer, first, second, share, *given)
    exact, module = _rounded(move, chain)
    return module, Lift(
        layer=layer,
        first=first,
        second=second,
        alpha=share,
        t=move.t,
        s=move.s,
        r=move.r,
        lam=_lambda([u, *v], [(1 - share) * move.t + share * move.s, *move.r]),
        exact=exact,
        matrix=_matrix(move, chain),
        constant=_constant(move, chain),
    )


def _free(
    numbers: dict[str, Fraction], r: Sequence[Real] | None, others: int
) -> tuple[Fraction, Fraction, tuple[Fraction, ...]]:
    if missing := [name for name in ("t", "s") if name not in numbers]:
        raise ValueError(f"{' and '.join(missing)} not given; expected t, s and r, or lam")
    if r is None and others:
        raise ValueError(
            f"r not given; expected a number for each of the {others} other neurons of the layer"
        )
    values = tuple(_number(f"r[{k}]", n) for k, n in enumerate(r or ()))
    if len(values) != others:
        raise ValueError(
            f"r has {len(values)} numbers; expected {others}, one for each other neuron of the layer"
        )
    return numbers["t"], numbers["s"], values


def _by_lambda(
    numbers: dict[str, Fraction],
    r: Sequence[Real] | None,
    alpha: Fraction,
    u: Fraction,
    v: Sequence[Fraction],
) -> tuple[Fraction, Fraction, tuple[Fraction, ...]]:
    lam, (free, bound) = numbers["lam"], ("t", "s") if alpha else ("s", "t")
    if r is not None or bound in numbers:
        raise ValueError(
            f"lam is given with {'r' if r is not None else bound}, which follows from lam; expected lam and "
            f"{free} for alpha {'!=' if alpha else '='} 0"
        )
    if free not in numbers:
        raise ValueError(
            f"{free} not given; expected it with lam for alpha {'!=' if alpha else '='} 0"
        )
    follows = tuple(lam * w for w in v)
    if alpha:
        t = numbers["t"]
        return t, (lam * u - (1 - alpha) * t) / alpha, follows
    return lam * u, numbers["s"], follows


def _lambda(narrow: Sequence[Fraction], wide: Sequence[Fraction]) -> Fraction | None:
    """The number lambda with wide = lambda narrow; None if there is none."""
    ratios = {b / a for a, b in zip(narrow, wide, strict=True) if a}
    if len(ratios) > 1 or any(b for a, b in zip(narrow, wide, strict=True) if not a):
        return None
    return ratios.pop() if ratios else Fraction(0)


def _text(value: Fraction) -> str:
    return str(value) if value.denominator <= 10_000 else f"{float(value):.6g}"


def _number(name: str, value: object) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, float | int | Fraction):
        raise TypeError(f"{name} is {type(value).__name__}; expected a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; expected a finite number")
    return Fraction(value)


@dataclass(frozen=True)
class _Move:
    """The wide layers as an affine function of the narrow ones."""

    layer: int
    first: int
    second: int
    alpha: Fraction
    t: Fraction
    s: Fraction
    r: tuple[Fraction, ...]

    def apply(self, weights: list[Array], biases: list[Array | None], one: int) -> list[Array]:
        """Weight 0, bias 0, weight 1, ... of the wide network.

        Args:
            weights: the weights of the narrow network, exact numbers.
            biases: its biases.
            one: 1; 0 gives the linear part.
        """
        j, i, k = self.first, self.second, self.layer
        weights, biases = list(weights), list(biases)
        weights[k] = np.concatenate((weights[k], weights[k][[j]]))
        W = np.concatenate((weights[k + 1], weights[k + 1][[i]]))
        reads = np.array([*self.r[:i], self.t, *self.r[i:], self.s], dtype=object) * one
        W[:, j] -= reads
        weights[k + 1] = np.concatenate((W, reads[:, None]), axis=1)
        V = weights[k + 2]
        copy = V[:, [i]] * self.alpha
        V = V.copy()
        V[:, i] = V[:, i] * (1 - self.alpha)
        weights[k + 2] = np.concatenate((V, copy), axis=1)
        for layer, neuron in ((k, j), (k + 1, i)):
            b = biases[layer]
            biases[layer] = None if b is None else np.concatenate((b, b[[neuron]]))
        return [a for pair in zip(weights, biases, strict=True) for a in pair if a is not None]


def _arrays(chain: Chain, theta: Array) -> tuple[list[Array], list[Array | None]]:
    """The layers of a vector of parameters, in the order of the narrow model."""
    shapes = iter(chain.columns)
    weights, biases = [], list[Array | None]()
    for W, b in zip(chain.weights, chain.biases, strict=True):
        weights.append(theta[next(shapes)].reshape(tuple(W.shape)))
        biases.append(None if b is None else theta[next(shapes)])
    return weights, biases


def _rounded(move: _Move, chain: Chain) -> tuple[bool, nn.Sequential]:
    """Whether float64 holds the wide network, and the network."""
    theta = np.empty(chain.n_params, dtype=object)
    for where, t in zip(chain.columns, chain.tensors, strict=True):
        theta[where] = [Fraction(v) for v in t.flatten().tolist()]
    wide = move.apply(*_arrays(chain, theta), one=1)
    try:
        values = [[float(v) for v in a.ravel()] for a in wide]
    except OverflowError as error:
        raise ValueError(
            "a weight of the wide network is beyond the largest float64; expected smaller t, s, r or lam, or "
            "an alpha further from 0"
        ) from error
    exact = all(
        Fraction(v) == w
        for row, a in zip(values, wide, strict=True)
        for v, w in zip(row, a.ravel(), strict=True)
    )
    parts = iter(
        torch.tensor(row, dtype=torch.float64).view(a.shape)
        for row, a in zip(values, wide, strict=True)
    )
    weights, biases = [], list[Tensor | None]()
    for b in chain.biases:
        weights.append(next(parts))
        biases.append(None if b is None else next(parts))
    return exact, chain_of(chain.activation, weights, biases).module()


def _flat(parts: list[Array]) -> Tensor:
    return torch.tensor([float(v) for a in parts for v in a.ravel()], dtype=torch.float64)


def _constant(move: _Move, chain: Chain) -> Tensor:
    return _flat(move.apply(*_arrays(chain, np.full(chain.n_params, Fraction(0))), one=1))


def _matrix(move: _Move, chain: Chain) -> Tensor:
    # Every wide parameter is a multiple of one narrow parameter, plus a constant. Applied to the indices of
    # the parameters, the linear part shows which one.
    P = chain.n_params
    ones = _flat(move.apply(*_arrays(chain, np.full(P, Fraction(1))), one=0))
    numbers = np.array([Fraction(p) for p in range(P)], dtype=object)
    rows = ones.nonzero()[:, 0]
    sources = _flat(move.apply(*_arrays(chain, numbers), one=0))[rows] / ones[rows]
    A = torch.zeros(len(ones), P, dtype=torch.float64)
    A[rows, sources.round().long()] = ones[rows]
    return A
