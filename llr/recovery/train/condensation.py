"""Condensation: the number of directions in which the neurons of a layer point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llr import RankResult, rank
from llr.inputs.accept import a_module, needed, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.mlp import MLP, NotAnMLP, read_mlp
from llr.inputs.parameters import layout
from llr.inputs.roles import number, real, whole
from llr.inputs.tensors import check_finite
from llr.models import TwoLayer
from llr.results import Record
from llr.results.html import Table

# s(-z) = -s(z): opposite directions give the same neuron, up to the sign of its outgoing weights.
_ODD = frozenset({"identity", "tanh", "erf", "sin"})


@dataclass(frozen=True, eq=False, repr=False)
class Condensation(Record):
    """Directions of the m neurons of a layer, and their clusters; for every parameter point in the batch.

    A neuron's direction is that of its incoming parameters (w, b), up to sign if the activation is odd. Its
    mass is the norm of (w, b) times the norm of its outgoing weights. If the activation is homogeneous or the
    neuron small, this is the size of its contribution.

    Attributes:
        directions: (..., m, d) unit vectors, d inputs and the bias if there is one; if the activation is odd,
            oriented like the heaviest neuron of the cluster. Zero for a neuron without incoming parameters.
        norms: (..., m) norms of (w, b).
        masses: (..., m) masses.
        labels: (..., m) int64: the cluster of each neuron. Cluster 0 is built around the heaviest neuron, and
            each further one around the heaviest neuron that has no cluster yet.
        shares: (..., m): the share of cluster 0, 1, ... in the mass of all; the sum is 1, or 0 without mass.
        effective: (...) int64: the effective neuron count, which is the number of clusters that have at least
            `share` of the mass.
        participation: (...): one over the sum of squared shares; k for k clusters of equal mass.
        direction_spread: (...): the spread of directions u, weighted by mass: 0 for one direction, near 1 for
            many. It is 1 minus the largest eigenvalue of the mean of u u' for odd activations, and 1 minus
            the squared length of the mean of u for other activations.
        norm_spread: (..., m): for each cluster, the standard deviation of the norms divided by their mean,
            weighted by mass.
    """

    directions: Tensor
    norms: Tensor
    masses: Tensor
    labels: Tensor
    shares: Tensor
    effective: Tensor
    participation: Tensor
    direction_spread: Tensor
    norm_spread: Tensor

    _order = (
        "0 <= norms",
        "0 <= masses",
        "0 <= shares",
    )
    _long = ("directions",)

    def __str__(self) -> str:
        """One line: how many neurons, and how many of them count."""
        counts = self.effective.flatten().tolist()
        if not counts:
            return "condensation of no networks"
        least, most = min(counts), max(counts)
        span = str(least) if least == most else f"{least} to {most}"
        many = f" in each of {len(counts)} networks" if len(counts) > 1 else ""
        return f"{self.norms.shape[-1]} neurons{many}: {span} effective"

    def _rules(self) -> Iterator[tuple[bool, str]]:
        m = self.norms.shape[-1]
        for name, least, most in (("labels", 0, m - 1), ("effective", 0, m)):
            value: Tensor = getattr(self, name)
            fits = not bool(((value < least) | (value > most)).any()) and value.dtype == torch.int64
            yield fits, f"integers from {least} to {most} in {name}"

    def _check(self, content: Mapping[str, Any]) -> None:
        neurons = self.norms.shape
        for name in ("masses", "labels", "shares", "norm_spread"):
            if getattr(self, name).shape != neurons or not neurons:
                raise ValueError(f"{name!r} of Condensation has not the shape of norms, {neurons}")
        for name in ("effective", "participation", "direction_spread"):
            if getattr(self, name).shape != neurons[:-1]:
                raise ValueError(f"{name!r} of Condensation has not one number for each network")
        super()._check(content)

    def _facts(self) -> dict[str, object]:
        if self.effective.dim():
            return {}
        values = {
            "effective neurons": int(self.effective),
            "participation": float(self.participation),
            "direction spread": float(self.direction_spread),
        }
        return {"neurons": self.norms.shape[-1], **values}

    def _table(self) -> Table | None:
        if self.effective.dim():
            return None
        found = zip(self.labels.tolist(), self.masses.tolist(), self.norms.tolist(), strict=True)
        rows = [(i, label, mass, norm) for i, (label, mass, norm) in enumerate(found)]
        return ("neuron", "cluster", "mass", "norm"), rows


@takes(model=a_module, theta=valued, layer=whole, angle=number, share=number)
@outside_inference_mode
def condensation(
    model: nn.Module,
    theta: Tensor | None = None,
    *,
    layer: int = 0,
    angle: float = 0.1,
    share: float = 0.01,
) -> Condensation:
    """Measure how far the neurons of a hidden layer have condensed.

    Args:
        model: an MLP: `TwoLayer`, :func:`llr.models.mlp` or any module that :func:`llr.jacobian` recognises
            as an MLP.
        theta: (..., P) parameter points, such as those of a `Training` or its history; default: the model's
            own.
        layer: which hidden layer, from 0 on.
        angle: neurons within this angle (radians) of the heaviest neuron of a cluster belong to the cluster.
        share: clusters with less than this share of the mass do not count as effective neurons.

    Returns:
        A `Condensation`.

    Raises:
        ValueError: a model that is no MLP, a layer that does not exist, parameters of another shape or not
            finite, an angle not in (0, pi/2], a share not in [0, 1).

    Source: Luo et al., "Phase diagram for two-layer ReLU neural networks at infinite-width limit" (2021);
    Zhou et al., "Towards understanding the condensation of neural networks at initial training" (2022).

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery.train import condensation
        >>> w = torch.tensor([[1.0, 1.0], [-2.0, -2.0], [2.0, 0.0]])
        >>> found = condensation(TwoLayer.of(w, None, torch.ones(3, 1)))
        >>> found.labels, int(found.effective)
        (tensor([0, 0, 1]), 2)
    """
    incoming, outgoing, activation = _neurons(model, theta, layer)
    _check_angle(angle, share)
    norms = incoming.norm(dim=-1)
    directions = incoming / norms.where(norms > 0, 1.0)[..., None]
    masses = norms * outgoing.norm(dim=-1)
    odd = activation in _ODD
    labels, signs = _clusters(directions, masses, angle, odd)
    directions = directions * signs[..., None]
    total = masses.sum(-1, keepdim=True)
    parts = masses / total.where(total > 0, 1.0)
    member = labels[..., None, :] == torch.arange(masses.shape[-1], device=labels.device)[:, None]
    inside = member * parts[..., None, :]  # (..., cluster, neuron)
    shares = inside.sum(-1)
    some = shares.where(shares > 0, 1.0)
    mean = (inside * norms[..., None, :]).sum(-1) / some
    variance = (inside * (norms[..., None, :] - mean[..., None]) ** 2).sum(-1) / some
    squares = shares.square().sum(-1)
    return Condensation(
        directions=directions,
        norms=norms,
        masses=masses,
        labels=labels,
        shares=shares,
        effective=((shares >= share) & (shares > 0)).sum(-1),
        participation=torch.where(squares > 0, 1 / squares.where(squares > 0, 1.0), 0.0),
        direction_spread=_spread(directions, parts, odd),
        norm_spread=variance.sqrt() / mean.where(mean > 0, 1.0),
    )


@takes(model=a_module, theta=valued, angle=number, share=number)
@outside_inference_mode
def merge(
    model: nn.Module,
    theta: Tensor | None = None,
    *,
    angle: float = 0.1,
    share: float = 0.0,
    width: int | None = None,
) -> TwoLayer:
    """Merge parallel neurons of a two-layer network; the narrower network is a start for further fitting.

    The neurons of a cluster become one neuron with the sum of their outgoing weights (each with its sign) and
    the mean of their incoming parameters, weighted by the outgoing ones. Equal neurons, up to sign if the
    activation is odd, are merged exactly. Otherwise the function changes; if the outgoing weights of each
    cluster have one direction, it does not change to first order in w x + b.

    Args:
        model: a two-layer network, as for :func:`condensation`.
        theta: (P,) parameters; default: the model's own.
        angle: which neurons are parallel, as for :func:`condensation`.
        share: clusters with less than this share of the mass are left out, as are clusters without mass.
        width: keep at most so many clusters, the heaviest ones.

    Returns:
        A `TwoLayer`, with its neurons ordered by decreasing mass of their clusters.

    Raises:
        ValueError: arguments that :func:`condensation` refuses, a network with more hidden layers, several
            parameter points, all neurons without mass, a width that is not positive.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery.train import merge
        >>> wide = TwoLayer.of(torch.tensor([[1.0], [-1.0]]), None, torch.tensor([[3.0], [-2.0]]))
        >>> merge(wide)[2].weight
        Parameter containing:
        tensor([[5.]], requires_grad=True)
    """
    if width is not None and (type(width) is not int or width < 1):
        raise ValueError(f"width is {width!r}; expected a positive integer")
    incoming, outgoing, activation = _neurons(model, theta, 0)
    mlp, values = _read(model, theta)
    if len(mlp.weights) != 2 or incoming.dim() != 2:
        raise ValueError(
            f"the model is a {mlp} at parameters {'of its own' if theta is None else tuple(theta.shape)}; "
            "expected one hidden layer, and one parameter point (P,)"
        )
    found = condensation(model, theta, angle=angle, share=share)
    heavy = found.shares.argsort(descending=True, stable=True)
    kept = heavy[(found.shares[heavy] > 0) & (found.shares[heavy] >= share)][:width]
    if not len(kept):
        raise ValueError("no neuron has incoming and outgoing weights; there is nothing to merge")
    signs = torch.where((found.directions * incoming).sum(-1) < 0, -1.0, 1.0).to(incoming)
    sizes = outgoing.norm(dim=-1)
    member = (found.labels == kept[:, None]).to(incoming)  # (cluster, neuron)
    a = member @ (signs[:, None] * outgoing)
    weights = member * sizes
    w = weights @ (signs[:, None] * incoming) / weights.sum(1, keepdim=True)
    bias = mlp.biases[0] is not None
    return TwoLayer.of(
        w[:, :-1] if bias else w,
        w[:, -1] if bias else None,
        a,
        values[1][1],
        activation=activation,
    )


@takes(model=a_module, theta=needed, x=valued, rtol=real)
@outside_inference_mode
def tangent_rank(
    model: nn.Module, theta: Tensor, x: Tensor, *, rtol: float | None = None
) -> RankResult:
    """The rank of the Jacobian on samples, at many parameter points, such as those of a trajectory.

    Near condensed parameters the singular values form two groups, with a gap that closes as neurons separate.
    With an `rtol` between the groups, the rank is that of the condensed network; the default counts the small
    singular values, too.

    Args:
        model: the template.
        theta: (..., P) parameter points, columns as in :func:`llr.layout`.
        x: (n, ...) samples; take at least as many as the model has parameters, or they may limit the rank.
        rtol: as for :func:`llr.rank`.

    Returns:
        A `RankResult`, batched like `theta`. It counts the singular values above their error. The count is
        exact if it equals the smaller size of the matrix; otherwise ``ambiguous`` is true, and ``clear`` says
        whether the count is independent of the error. A condensed network has a smaller rank, but floating
        point cannot distinguish it from nearby networks.

    Raises:
        ValueError: parameters of another shape; arguments that :func:`llr.rank` refuses.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery.train import initial, tangent_rank
        >>> model = TwoLayer(1, 2)
        >>> points = initial(model, 3, generator=torch.Generator().manual_seed(0))
        >>> tangent_rank(model, points, torch.linspace(-2, 2, 20).double()[:, None]).rank
        tensor([6, 6, 6])
    """
    slices = layout(model)
    _check_points(theta, sum(s.stop - s.start for s in slices.values()))
    rows, shapes = theta.reshape(-1, theta.shape[-1]), dict(model.named_parameters())
    values = {
        name: rows[:, s].reshape(len(rows), *shapes[name].shape) for name, s in slices.items()
    }
    found = rank(model, x, params=values, method="svd", dtype=None, rtol=rtol)
    return found.reshaped(theta.shape[:-1])


def _check_points(theta: Tensor, P: int) -> None:
    if not isinstance(theta, Tensor):
        raise TypeError(f"theta is {type(theta).__name__}; expected a tensor (..., P)")
    if theta.dim() == 0 or theta.shape[-1] != P or theta.numel() == 0:
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}; expected (..., {P}), the model's parameters in a row"
        )
    check_finite(theta, "theta", ("parameter",))


def _check_angle(angle: float, share: float) -> None:
    if not 0 < angle <= math.pi / 2:
        raise ValueError(f"angle is {angle!r}; expected radians, more than 0 and at most pi/2")
    if not 0 <= share < 1:
        raise ValueError(f"share is {share!r}; expected at least 0 and less than 1")


def _read(model: nn.Module, theta: Tensor | None) -> tuple[MLP, list[tuple[Tensor, Tensor | None]]]:
    """The MLP, and its layers' weights and biases with the batch of `theta`."""
    try:
        mlp = read_mlp(model)
    except NotAnMLP as departure:
        raise ValueError(
            f"expected an MLP, and {type(model).__name__} is none: {departure}"
        ) from None
    if 0 in mlp.widths:
        raise ValueError(f"the model is a {mlp}; expected layers of at least one neuron")
    layers = list(zip(mlp.weights, mlp.biases, strict=True))
    kinds = {t.dtype for layer in layers for t in layer if t is not None}
    kinds = {theta.dtype} if theta is not None else kinds
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        way = "" if any(kind.is_complex for kind in kinds) else " (model.double())"
        raise TypeError(
            f"parameters are {', '.join(sorted(map(str, kinds)))}; expected float32 or float64 alone{way}"
        )
    if theta is None:
        return mlp, [(w.detach(), None if b is None else b.detach()) for w, b in layers]
    slices = layout(model)
    _check_points(theta, sum(s.stop - s.start for s in slices.values()))
    columns = {id(p): slices[name] for name, p in model.named_parameters() if name in slices}

    def at(t: Tensor) -> Tensor:
        if id(t) not in columns:  # frozen
            return t.detach().to(theta)
        return theta[..., columns[id(t)]].unflatten(-1, t.shape).detach()

    return mlp, [(at(w), None if b is None else at(b)) for w, b in layers]


def _neurons(model: nn.Module, theta: Tensor | None, layer: int) -> tuple[Tensor, Tensor, str]:
    """Incoming (..., m, d) and outgoing (..., m, q) parameters of a hidden layer, and its activation."""
    mlp, values = _read(model, theta)
    if not 0 <= layer < len(values) - 1:
        raise ValueError(f"layer is {layer}, but a {mlp} has {len(values) - 1} hidden layers")
    (w, b), (outgoing, _) = values[layer : layer + 2]
    incoming = w if b is None else torch.cat([w, b[..., None]], -1)
    for name, t in (("incoming", incoming), ("outgoing", outgoing)):
        check_finite(t, f"the {name} parameters of layer {layer}", ("row", "column"))
    return incoming, outgoing.mT, mlp.activation


def _clusters(directions: Tensor, masses: Tensor, angle: float, odd: bool) -> tuple[Tensor, Tensor]:
    """The cluster of each neuron, and its sign relative to the cluster; both (..., m)."""
    shape, m = masses.shape, masses.shape[-1]
    directions, masses = directions.reshape(-1, m, directions.shape[-1]), masses.reshape(-1, m)
    labels = torch.full_like(masses, -1, dtype=torch.int64)
    signs = torch.ones_like(masses)
    widest = 2 * math.sin(angle / 2)  # the chord: cosines of small angles round to 1
    rows = torch.arange(len(masses), device=masses.device)
    for cluster in range(m):
        free = labels < 0
        if not bool(free.any()):
            break
        centre = masses.where(free, -1.0).argmax(-1)
        u = directions[rows, centre][:, None]
        along, against = (directions - u).norm(dim=-1), (directions + u).norm(dim=-1)
        near = torch.minimum(along, against) if odd else along
        mine = free & (near <= widest)
        mine[rows, centre] |= free[rows, centre]
        labels = labels.where(~mine, cluster)
        if odd:
            signs = signs.where(~(mine & (against < along)), -1.0)
    return labels.reshape(shape), signs.reshape(shape)


def _spread(directions: Tensor, parts: Tensor, odd: bool) -> Tensor:
    if odd:
        second = torch.einsum("...m,...mi,...mj->...ij", parts, directions, directions)
        largest = torch.linalg.eigvalsh(second)[..., -1]
    else:
        largest = (parts[..., None] * directions).sum(-2).square().sum(-1)
    return (parts.sum(-1) - largest).clamp(min=0.0)
