"""Evidence for a fit: how improbable the fit would be if the function were no network of the class.

Random neurons, as large and as steep as those found, are projected away from the changes that the parameters
can cause. The remainder, in units of the rounding, is the misfit that a function outside of the class would
typically have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from flint import arb, arb_mat
from torch import Tensor

from llr.operators.formula import ACTIVATIONS
from llr.recovery.polish import Polished
from llr.recovery.precise import floats
from llr.recovery.rounding import UNIT

_MOST = 120  # random neurons
_SEEN = 30.0  # a direction above so many roundings counts as one more observation
_SURPRISE = 3.0  # a remainder up to so many roundings is no evidence


@dataclass(frozen=True)
class Evidence:
    """The information in the samples.

    Attributes:
        decades: log10 of one over the estimated probability that the fit is a coincidence, less log10 of the
            number of starts. This is a measure, not a theorem.
        n_effective: the number of independent observations of a network of this kind in the samples; with
            several outputs, the smallest such number.
        needed: the parameters of one output; `n_effective` has to be larger.
        seen: the number of directions of the parameters that show above rounding.
    """

    decades: float
    n_effective: int
    needed: int
    seen: int


def evidence(fit: Polished, x: Tensor, y: Tensor, starts: int) -> Evidence:
    """Measure the evidence for a fit (python-flint's precision must be set).

    Args:
        fit: a fit at a minimum.
        x: (n, d) samples.
        y: (n, q) targets.
        starts: the number of starts that were tried before it was found.
    """
    (n, q), form = y.shape, fit.form
    scale = float(y.square().mean().sqrt())
    values, noise = _random_neurons(fit, x, min(3 * n + 20, _MOST))
    size = (scale / values.square().mean(0).sqrt().clamp_min(1e-300)).clamp_max(1e300)
    values, noise = values * size, noise * size
    M = fit.point.jacobian(fit.weights)
    sizes = [t.abs_upper() for t in fit.theta]
    seen, left = _left(M, sizes, _outputs(values, fit.delta), _outputs(noise, fit.delta))
    decades = float((left / _SURPRISE).clamp_min(1.0).log10().sum()) - math.log10(max(starts, 1))
    if q == 1:
        effective, needed = seen + int((left > _SEEN).sum()), form.count
        return Evidence(decades, effective, needed, seen)
    counts = []
    P = form.count
    for o in range(q):
        columns = form.one_output(o)
        entries = M.entries()
        own = arb_mat(
            n, len(columns), [entries[(i * q + o) * P + c] for i in range(n) for c in columns]
        )
        delta = fit.delta[:, o : o + 1]
        alone, left = _left(own, [sizes[c] for c in columns], values / delta, noise / delta)
        counts.append(alone + int((left > _SEEN).sum()))
    return Evidence(decades, min(counts), len(form.one_output(0)), seen)


def _outputs(values: Tensor, delta: Tensor) -> Tensor:
    """(n q, M q): the change of the outputs by each neuron in each output, in units of the rounding."""
    n, q = delta.shape
    blocks = values[:, None, :, None] / delta[:, :, None, None]
    return (blocks * torch.eye(q, dtype=values.dtype)[None, :, None, :]).reshape(n * q, -1)


def _random_neurons(fit: Polished, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values (n, count) of random neurons as steep as those found, and bounds of their rounding."""
    form, net = fit.form, fit.net
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1

    W = net.w
    centre = x.mean(0) if form.bias else torch.zeros_like(x[0])
    spread = (x - centre).square().mean(0).sqrt().clamp_min(1e-300)
    steep = (W * spread).norm(dim=1)
    which = torch.randint(form.k, (count,), generator=generator)
    v = torch.randn(count, form.d, generator=generator, dtype=torch.float64)
    v *= (steep[which] * torch.exp2(uniform(count)) / v.norm(dim=1))[:, None] / spread
    z = (x - centre) @ v.T
    size = (x - centre).abs() @ v.abs().T
    if form.bias:
        thresholds = net.before(centre[None])[0]
        which = torch.randint(form.k, (count,), generator=generator)
        off = thresholds[which] * uniform(count).sign() * torch.exp2(uniform(count))
        z, size = z + off, size + off.abs()
    sigma, slope = ACTIVATIONS[form.activation]
    h, u = sigma(z), UNIT["float64"]
    return h, u * (4 * h.abs() + (form.d + 2) * slope(z).abs() * size + 4 * z.abs() * (h != 0))


def _left(M: arb_mat, sizes: list[arb], values: Tensor, noise: Tensor) -> tuple[int, Tensor]:
    """The number of directions of M's columns above rounding, and the singular values of `values` outside.

    Both are in units of the rounding. Columns are multiplied by the sizes of their parameters, so that a
    remainder below 1 is invisible. Rounding of the values can only lower the result.
    """
    rows = M.nrows()
    kept, factor = _pivots(M, sizes)
    if factor is not None:
        picked = M.entries()
        P = M.ncols()
        columns = arb_mat(rows, len(kept), [picked[i * P + j] for i in range(rows) for j in kept])
        Q = floats((columns * factor).mid())
        values = values - Q @ (Q.T @ values)
        values = values - Q @ (Q.T @ values)
    values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    spread = math.sqrt(values.shape[1])
    found = torch.linalg.svdvals(values)[: max(rows - len(kept), 0)]
    noise = torch.nan_to_num(noise, nan=0.0, posinf=1e300, neginf=1e300)
    return len(kept), (found - float(noise.norm())).clamp_min(0.0) / spread


def _pivots(M: arb_mat, sizes: list[arb]) -> tuple[list[int], arb_mat | None]:
    """Columns above rounding, by Cholesky with pivots, and F: these columns times F are orthonormal."""
    P = M.ncols()
    middle = M.mid()
    N = (middle.transpose() * middle).mid().tolist()
    scaled = [[(N[i][j] * sizes[i] * sizes[j]).mid() for j in range(P)] for i in range(P)]
    rest = list(range(P))
    diagonal = [scaled[j][j] for j in range(P)]
    rows: list[list[arb]] = []
    kept: list[int] = []
    while rest:
        finite = [j for j in rest if diagonal[j].is_finite()]
        best = max(finite, key=lambda j: float(diagonal[j]), default=None)
        if best is None or not diagonal[best] > 1:
            break
        root = diagonal[best].sqrt().mid()
        row = [arb(0)] * P
        rest.remove(best)
        for j in rest:
            t = scaled[best][j]
            for r in rows:
                t = t - r[best] * r[j]
            row[j] = (t / root).mid()
            diagonal[j] = (diagonal[j] - row[j] * row[j]).mid()
        row[best] = root
        rows.append(row)
        kept.append(best)
    if not kept:
        return [], None
    m = len(kept)
    R = arb_mat(m, m, [row[j] for row in rows for j in kept])
    eye = arb_mat(m, m, [sizes[kept[i]] * int(i == j) for i in range(m) for j in range(m)])
    # columns D = Q R, so columns (D R^-1) = Q.
    inverse = R.solve(
        arb_mat(m, m, [int(i == j) for i in range(m) for j in range(m)]), algorithm="approx"
    )
    return kept, (eye * inverse.mid()).mid()
