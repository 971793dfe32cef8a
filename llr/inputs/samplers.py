"""Sources of samples: distributions, boxes, finite domains, and functions of the user.

A source is an infinite sequence, or one as long as its domain, of which points are drawn as needed: the first
n points stay the same when more are drawn. Each source has its own random generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llr.inputs.mlp import NotAnMLP, read_mlp
from llr.inputs.tensors import check_finite, refuse_complex

Domain = tuple[float | Tensor, float | Tensor]
Sampler = str | Domain | Tensor | Callable[[int, torch.Generator], Tensor]

_HOW = (
    '"normal", "uniform", a box (low, high), a tensor (N, ...) of points, or a callable '
    "f(n, generator) that returns n points"
)
# The number of points drawn from a distribution at a time. Fixed, so that the sequence does not depend on how
# many points are requested together.
_BLOCK = 64
# If there are at most this many inputs made of tokens, all are listed; otherwise inputs are drawn.
_LISTED = 1 << 16


class Source:
    """A sequence of sample points; see the module's docstring."""

    def __init__(
        self,
        description: str,
        draw: Callable[[int], Tensor],
        points: Tensor,
        *,
        block: int | None = _BLOCK,
        limit: int | None = None,
    ) -> None:
        """Take the function that draws more points, and the first points, (0, ...) if there are none."""
        self.description = description
        self.limit = limit
        """The number of points; None if it is infinite."""
        self._draw, self._points, self._block = draw, points, block

    def first(self, n: int) -> Tensor:
        """The first n points, or all if there are fewer."""
        while len(self._points) < n and len(self._points) != self.limit:
            more = self._draw(self._block or n - len(self._points))
            # Before the first draw the shape is not known.
            self._points = torch.cat((self._points, more)) if len(self._points) else more
        return self._points[:n]

    def distinct(self, n: int) -> int:
        """The number of distinct points among the first n."""
        return len(torch.unique(self.first(n), dim=0))


def read_sampler(
    sampler: Sampler,
    model: object,
    *,
    shape: Sequence[int] | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> Source:
    """The source for the argument `sampler=` of :func:`llr.model_rank`.

    Args:
        sampler: see :func:`llr.model_rank`.
        model: gives the shape of a sample if the sampler does not.
        shape: of one sample, if the caller gave it.
        dtype: of the points that are drawn here.
        device: of the points. They are drawn on the CPU, so they are the same for every device.
        seed: of the generator.

    Raises:
        TypeError: `sampler` has none of the accepted types.
        ValueError: a malformed sampler, or a shape that cannot be determined.
    """
    given = None if shape is None else _checked_shape(shape)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(sampler, Tensor):
        return _finite_domain(sampler, given, generator, f"{len(_points(sampler))} points", seed)
    if isinstance(sampler, tuple):
        return _box(sampler, model, given, generator, dtype, device, seed)
    if isinstance(sampler, str):
        if sampler not in ("normal", "uniform"):
            raise ValueError(f"sampler is {sampler!r}; expected {_HOW}")
        if (domain := all_samples(model)) is not None:
            return _finite_domain(domain, given, generator, "all index pairs", seed)
        inner, tokens = sample_shape(model, given)
        if tokens is not None:
            return _tokens(tokens, inner, generator, device, seed)
        if sampler == "uniform":
            return _box((-1.0, 1.0), model, inner, generator, dtype, device, seed)

        def normal(n: int) -> Tensor:
            values = torch.randn(n, *inner, generator=generator, dtype=torch.float64)
            return values.to(device, dtype)

        nothing = torch.empty(0, *inner, dtype=dtype, device=device)
        return Source(f"standard normal of shape {inner}, seed {seed}", normal, nothing)
    if callable(sampler):
        return _callable(sampler, given, generator, seed)
    raise TypeError(f"sampler is {type(sampler).__name__}; expected {_HOW}")


def _points(domain: Tensor) -> Tensor:
    if domain.dim() == 0 or len(domain) == 0:
        raise ValueError(
            f"sampler is a tensor of shape {tuple(domain.shape)}; expected points (N, ...), N >= 1"
        )
    return domain


def _finite_domain(
    domain: Tensor, given: tuple[int, ...] | None, generator: torch.Generator, what: str, seed: int
) -> Source:
    points = checked_points(domain, len(domain), given, "sampler")
    order = torch.randperm(len(points), generator=generator).to(points.device)
    points = points[order]
    return Source(
        f"{what} in the order of seed {seed}", lambda _: points[:0], points, limit=len(points)
    )


def _box(
    ends: Domain,
    model: object,
    given: tuple[int, ...] | None,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> Source:
    if len(ends) != 2 or not all(isinstance(v, Tensor | float | int) for v in ends):
        raise ValueError(
            f"sampler is a tuple of {len(ends)}; expected (low, high), numbers or tensors"
        )
    for end in ends:
        refuse_complex("sampler", end)
    low, high = (torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for v in ends)
    try:
        own = tuple(torch.broadcast_shapes(low.shape, high.shape))
        if given is None:
            given = own or sample_shape(model, None)[0]
        low, high = low.expand(given), high.expand(given)
    except RuntimeError as error:  # raised by torch for shapes that cannot be broadcast
        raise ValueError(
            f"low has shape {tuple(low.shape)} and high {tuple(high.shape)}; expected shapes that expand to "
            f"one sample{'' if given is None else f', {given}'}"
        ) from error
    wrong = ~((low < high) & torch.isfinite(high - low))
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"the domain goes from low = {low[at].item()} to high = {high[at].item()} at index {at}; "
            "expected finite numbers low < high"
        )

    def uniform(n: int) -> Tensor:
        values = torch.rand(n, *low.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * values).to(device, dtype)

    interval = f"[{low.min().item():g}, {high.max().item():g}]"
    within = "in" if bool((low == low.min()).all() and (high == high.max()).all()) else "within"
    nothing = torch.empty(0, *low.shape, dtype=dtype, device=device)
    return Source(
        f"uniform {within} {interval} of shape {tuple(low.shape)}, seed {seed}", uniform, nothing
    )


def _tokens(
    kinds: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device, seed: int
) -> Source:
    size = math.prod(shape)
    what = f"tokens below {kinds} of shape {shape}"
    if kinds**size <= _LISTED:
        numbers = torch.arange(kinds**size)[:, None] // kinds ** torch.arange(size) % kinds
        return _finite_domain(
            numbers.reshape(-1, *shape).to(device), None, generator, f"all {what}", seed
        )

    def draw(n: int) -> Tensor:
        return torch.randint(kinds, (n, *shape), generator=generator).to(device)

    nothing = torch.empty(0, *shape, dtype=torch.int64, device=device)
    return Source(f"uniform {what}, seed {seed}", draw, nothing)


def _callable(
    function: Callable[[int, torch.Generator], Tensor],
    given: tuple[int, ...] | None,
    generator: torch.Generator,
    seed: int,
) -> Source:
    name = getattr(function, "__name__", type(function).__name__)
    shape = given

    def draw(n: int) -> Tensor:
        nonlocal shape
        points = checked_points(function(n, generator), n, shape, f"what sampler {name} returned")
        shape = tuple(points.shape[1:])
        return points

    return Source(f"{name}, seed {seed}", draw, torch.empty(0, *(shape or ())), block=None)


def checked_points(x: Any, n: int, shape: tuple[int, ...] | None, what: str) -> Tensor:
    """Check points: n of this shape (None for any), finite; returned without their graph."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} is {type(x).__name__}; expected a tensor (n, ...)")
    if x.dim() == 0 or len(x) != n:
        raise ValueError(f"{what} has shape {tuple(x.shape)}; expected {n} points, ({n}, ...)")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"{what} has samples of shape {tuple(x.shape[1:])}; expected {shape} as before, or as "
            "sample_shape= says"
        )
    if x.is_floating_point():
        check_finite(x, what, ("sample", *["index"] * (x.dim() - 1)))
    return x.detach()


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    found = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if any(type(size) is not int or size < 1 for size in found):
        raise ValueError(
            f"sample_shape is {shape!r}; expected the positive sizes of one sample, such as (3,), or () for "
            "a single number"
        )
    return found


@functools.singledispatch
def all_samples(_: object) -> Tensor | None:
    """All samples, for a model that has finitely many and does not read tokens.

    A model's class registers its implementation, as for :func:`own_shape`.
    """
    return None


@functools.singledispatch
def own_shape(_: object) -> tuple[int, ...] | None:
    """The shape of one sample, for a model whose class defines it."""
    return None


def sample_shape(
    model: object, given: tuple[int, ...] | None
) -> tuple[tuple[int, ...], int | None]:
    """The shape of one sample, and the number of different tokens for a model that reads tokens.

    It is read from an MLP, or from the first layer of an ``nn.Sequential``. Other modules may change their
    input before a layer sees it.

    Raises:
        ValueError: the shape cannot be determined; the message asks for it.
    """
    layers = _chain(model) if isinstance(model, nn.Module) else []
    first = layers[0] if layers else None
    if isinstance(first, nn.Embedding):
        # If a linear layer reads flattened embeddings, its width gives their number.
        after = [type(m) for m in layers[1:3]] == [nn.Flatten, nn.Linear]
        width = layers[2].in_features if after else 0
        if given is None and (width == 0 or width % first.embedding_dim):
            raise ValueError(
                f"the model begins with Embedding({first.num_embeddings}, {first.embedding_dim}), for any "
                "number of tokens; give it as sample_shape=(L,), or () for one token per sample"
            )
        return given or ((width // first.embedding_dim,) if after else ()), first.num_embeddings
    if given is not None:
        return given, None
    if (own := own_shape(model)) is not None:
        return own, None
    if isinstance(model, nn.Module):
        try:
            return (read_mlp(model).widths[0],), None
        except NotAnMLP:
            pass  # its first layer may still give the shape
    if isinstance(first, nn.Linear):
        return (first.in_features,), None
    if isinstance(first, nn.Unflatten) and first.dim in (1, -1):
        sizes: Any = first.unflattened_size
        if all(isinstance(size, int) and size > 0 for size in sizes):
            return (math.prod(sizes),), None
    kind = type(model).__name__
    if isinstance(first, nn.Conv1d | nn.Conv2d):
        sizes = ", ".join(("L",) if isinstance(first, nn.Conv1d) else ("H", "W"))
        raise ValueError(
            f"the {kind} begins with {type(first).__name__}, which takes samples of any size "
            f"({first.in_channels}, {sizes}); give it as sample_shape=, or a callable as sampler="
        )
    raise ValueError(
        f"what samples {kind} takes cannot be read off it; give sample_shape=(...), the shape of one "
        "sample, or a callable or a tensor of points as sampler="
    )


def _chain(module: nn.Module) -> list[Any]:
    """The layers of nested ``nn.Sequential`` in order, without those that do not change flat samples."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return [module]
    layers = [layer for child in module for layer in _chain(child)]
    layers = [m for m in layers if not isinstance(m, nn.Identity | nn.modules.dropout._DropoutNd)]
    while layers and isinstance(layers[0], nn.Flatten):
        layers = layers[1:]
    return layers
