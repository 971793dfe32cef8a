"""The Hessian of a wide network, compared with that of the narrow network embedded in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes, valued, with_matrix
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_progress, real
from llr.jacobians.jacobian import Progress
from llr.landscape.spectra import HessianSpectrum, check_affordable, spectrum_of
from llr.landscape.surface import Loss, Surface, hessian_of
from llr.results import Record
from llr.results.html import Spectrum, Table, Verdict
from llr.results.phrases import counted
from llr.results.progress import following

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HasMatrix(Protocol):
    """The record of an affine map of parameters, such as :class:`llr.embedding.Embedding`."""

    @property
    def matrix(self) -> Tensor:
        """(P_wide, P_narrow)."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddedSpectrum(Record):
    """The Hessian of a wide network, compared with that of the narrow network embedded in it.

    Attributes:
        narrow: spectrum of the narrow network.
        wide: spectrum of the wide network.
        inside: eigenvalues of the wide Hessian compressed to the image of the embedding, ascending;
            as many of them are negative, zero and positive as of the narrow Hessian.
        outside: eigenvalues of its compression to the orthogonal complement: the directions that the narrow
            network does not have.
        mismatch: ||A' H_wide A - H_narrow|| / ||H_narrow||, 0 to rounding by the chain rule.
        new_negative: how many negative directions the wide Hessian has in addition to the narrow one.
        explained: (P_wide) for each eigenvalue of the wide Hessian, the squared norm of the part of its unit
            eigenvector in the image of the embedding: 1 is a direction of the narrow network, 0 a direction
            that only the wide network has. Eigenvalues that count as zero have the mean of their values, as
            the basis of their eigenvectors is arbitrary. The sum of all values is P_narrow.
    """

    narrow: HessianSpectrum
    wide: HessianSpectrum
    inside: Tensor
    outside: Tensor
    mismatch: float
    new_negative: int
    explained: Tensor

    _order = ("0 <= mismatch",)
    _signed = ("new_negative",)
    _long = ("inside", "outside", "explained")

    def __repr__(self) -> str:
        """One line: how many parameters each network has, and what is new."""
        sizes = f"{self.narrow.n_params} in {counted(self.wide.n_params, 'parameter')}"
        return f"Hessian of {sizes}: {counted(self.new_negative, 'new negative direction')}"

    def __str__(self) -> str:
        """Both spectra, and what is new."""
        new = f"{counted(self.new_negative, 'new negative direction')}"
        same = f"A'HA is the narrow Hessian to {self.mismatch:.1e}"
        return f"narrow: {self.narrow}\nwide:   {self.wide}\n{new}; {same}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the eigenvalues of both Hessians, coloured by what the embedding explains; return the axes.

        Args:
            ax: where to draw the wide Hessian's; None makes a new figure with both. Needs matplotlib
                (``pip install 'llr[plot]'``).

        Raises:
            ValueError: `explained` was not kept.
        """
        self._require("explained")
        from llr.landscape import figure  # noqa: PLC0415 - matplotlib is optional

        if ax is not None:
            return figure.explained(self, ax)
        return figure.embedded(self).axes[1]

    def _rules(self) -> Iterator[tuple[bool, str]]:
        new = self.wide.index - self.narrow.index
        yield self.new_negative == new, f"new_negative to be the difference of the indices, {new}"
        least, most = self.narrow.n_params, self.wide.n_params
        for name, size in (("inside", least), ("outside", most - least), ("explained", most)):
            yield getattr(self, name).shape in ((0,), (size,)), f"{size} values in {name}"

    def _verdict(self) -> Verdict:
        new = self.new_negative
        return f"{new} new negative directions", "bad" if new else "good"

    def _table(self) -> Table:
        rows = [(n, s.n_params, s.index, s.nullity) for n, s in self._both()]
        return ("network", "parameters", "index", "nullity"), rows

    def _pictures(self) -> Sequence[Spectrum]:
        drawn = [(name, picture) for name, s in self._both() for picture in s._pictures()]
        return tuple(replace(p, name=f"{name}: {p.name}") for name, p in drawn)

    def _both(self) -> tuple[tuple[str, HessianSpectrum], ...]:
        return ("narrow", self.narrow), ("wide", self.wide)


@takes(
    narrow=a_module,
    wide=a_module,
    embedding=with_matrix,
    x=valued,
    y=valued,
    rtol=real,
    progress=a_progress,
)
@outside_inference_mode
def embedded_spectrum(
    narrow: nn.Module,
    wide: nn.Module,
    embedding: Tensor | HasMatrix,
    x: Tensor,
    y: Tensor,
    loss: Loss = "mse",
    *,
    rtol: float | None = None,
    progress: Progress | bool | None = None,
) -> EmbeddedSpectrum:
    """Which eigenvalues of a wide network's Hessian come from the narrow network embedded in it.

    With theta_wide = A theta_narrow (+ a constant) the wide loss restricted to the image is the narrow loss,
    so that A' H_wide A = H_narrow: the wide Hessian has at least as many negative directions. The results
    `new_negative` and `outside` describe the other directions: a local minimum may become a strict saddle.

    Args:
        narrow: the narrow network.
        wide: the wide network, of the same function.
        embedding: the `Embedding` returned with `wide`, or its matrix A, (P_wide, P_narrow).
        x: (n, ...) samples.
        y: targets, as for :func:`llr.landscape.criticality`.
        loss: "mse", "cross_entropy" or a function, as for :func:`llr.landscape.criticality`.
        rtol: tolerance of the spectra, as for :func:`llr.landscape.hessian_spectrum`.
        progress: False for none; or a function, called as ``progress(done, total)`` with columns of the
            Hessians, one after the other. Default: after two seconds a line on a terminal or in a notebook.

    Returns:
        An `EmbeddedSpectrum`.

    Raises:
        ValueError: a matrix of another shape or without full column rank, networks whose outputs on `x`
            differ; arguments that :func:`llr.landscape.hessian_spectrum` refuses.

    Source: docs/theory.md, 9.1; Zhang et al., "Embedding Principle of Loss Landscape of Deep Neural Networks"
    (2021).

    Example:
        >>> import torch
        >>> from llr.embedding import split
        >>> from llr.landscape import embedded_spectrum
        >>> from llr.models import mlp
        >>> narrow, x = mlp([1, 1, 1]).double(), torch.randn(9, 1).double()
        >>> wide, embedding = split(narrow, 0, 0)
        >>> embedded_spectrum(narrow, wide, embedding, x, x.sin()).mismatch < 1e-9
        True
    """
    below, above = Surface.of(narrow, x, y, loss), Surface.of(wide, x, y, loss)
    A = embedding if isinstance(embedding, Tensor) else embedding.matrix
    expected = (len(above.theta), len(below.theta))
    if tuple(A.shape) != expected:
        raise ValueError(
            f"the embedding's matrix has shape {tuple(A.shape)}; expected {expected}, the numbers of "
            "parameters of the wide and of the narrow network"
        )
    A = A.detach().to(above.theta)
    if torch.linalg.matrix_rank(A) < A.shape[1]:
        raise ValueError(
            f"the embedding's matrix {tuple(A.shape)} does not have full column rank; expected a matrix that "
            "maps different narrow parameters to different wide ones"
        )
    outputs = below.evaluated(below.theta)
    difference = float((above.evaluated(above.theta) - outputs).abs().max())
    if difference > 1e-6 * max(1.0, float(outputs.abs().max())):
        raise ValueError(
            f"the outputs of the networks differ by up to {difference:.3g}; expected a wide network of the "
            "same function"
        )
    for surface in (above, below):
        check_affordable(surface)
    with following(progress, tell=True):
        H_narrow, H_wide = hessian_of(below, below.theta), hessian_of(above, above.theta)
    Q = torch.linalg.qr(A, mode="complete").Q
    image, complement = Q[:, : A.shape[1]], Q[:, A.shape[1] :]
    compressed = A.mT @ H_wide @ A
    scale = float(torch.linalg.matrix_norm(H_narrow))
    off = float(torch.linalg.matrix_norm(compressed - H_narrow))
    spectra = spectrum_of(H_narrow, rtol), spectrum_of(H_wide, rtol)
    values, vectors = torch.linalg.eigh(H_wide)
    explained = (image.mT @ vectors).square().sum(0)
    zero = values.abs() <= spectra[1].tolerance
    explained[zero] = explained[zero].mean()
    return EmbeddedSpectrum(
        narrow=spectra[0],
        wide=spectra[1],
        inside=torch.linalg.eigvalsh(image.mT @ H_wide @ image).cpu(),
        outside=torch.linalg.eigvalsh(complement.mT @ H_wide @ complement).cpu(),
        mismatch=off / scale if scale > 0 else off,
        new_negative=spectra[1].index - spectra[0].index,
        explained=explained.double().cpu(),
    )
