"""Find the two-layer network that made the data: ``llr.recovery.recover``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llr.inputs.accept import takes, valued, valued_or_function
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_flag, a_function, a_progress, a_seed, maybe, real, whole, word
from llr.models.parts import check_sizes
from llr.recovery import words
from llr.recovery.case import Case, Points
from llr.recovery.domain import Domain
from llr.recovery.hunt import Hunt
from llr.recovery.judge import Data64
from llr.recovery.oracle import FRESH, evaluated, fresh
from llr.recovery.outcome import Recovery
from llr.recovery.rounding import Rounding
from llr.recovery.samples import Kind, check, check_frequency, read
from llr.recovery.scaling import Scaling
from llr.recovery.search import Budget, Report, Spent
from llr.results.progress import followed


@takes(
    x=valued,
    y=valued_or_function,
    max_width=whole,
    activation=word,
    noise_std=real,
    seed=a_seed,
    progress=a_progress,
    bias=a_flag,
    output_bias=a_flag,
    max_frequency=real,
    sampler=maybe(a_function),
    fresh_points=whole,
)
@outside_inference_mode
@followed
def recover(
    x: Tensor,
    y: Tensor | Callable[[Tensor], Tensor],
    *,
    max_width: int,
    activation: str = "tanh",
    bias: bool = True,
    output_bias: bool = False,
    budget: Budget | int | None = None,
    noise_std: float | None = None,
    y_error: float | Tensor | str | None = None,
    x_error: float | Tensor | None = None,
    domain: tuple[float | Tensor, float | Tensor] | None = None,
    max_frequency: float | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    sampler: Callable[[int], Tensor] | None = None,
    fresh_points: int = FRESH,
    seed: int = 0,
    progress: Report | bool | None = None,
) -> Recovery:
    """Find the two-layer network that made the data.

    Networks of width 1, 2, ... are fitted by Levenberg-Marquardt from many small random starts, narrow ones
    first, in rounds of doubling size. A fit counts if rounding explains its residuals. Targets computed in
    float64 or float32, or stored to some decimals, are recognised. The status is one of:

    * "recovered": if the samples are rounded values of a network of at most this width and kind, the function
      is this network, to ``evidence.eps`` of its size on the box of the samples. This is not a theorem:
      ``proved`` says what is proved, ``assumed`` which assumptions are made, and ``evidence`` how improbable
      the fit would be otherwise.
    * "ambiguous": this network fits to rounding, but the data do not decide for it; ``reasons`` says why.
    * "approximate": this network comes close, but its residuals are larger than rounding: the samples are not
      its values. They may be noisy, or stored less exactly than they appear to be.
    * "not_found": no network that comes close was found; ``claim`` says in how many starts, and which widths
      were tried.
    * "accepted", only with ``noise_std``: the narrowest width that the residuals do not reject at the level
      of one percent. This is a statistical test, not a proof; ``tests`` has its numbers.

    With a function (a callable y), or with samples that are held out, ``tested`` bounds the share of inputs
    at which the network is wrong, without any assumption about the function.

    Args:
        x: (n, d) samples, or (n,) for one input. The largest absolute value of every column of x and y is
            from 1e-120 to 1e120, or zero.
        y: (n,) or (n, q) targets; or a callable that returns such targets for x, (n, d), and is evaluated at
            fresh points afterwards. The callable gets copies in the dtype of x.
        max_width: the largest number of hidden neurons.
        activation: a name of :data:`llr.models.ACTIVATIONS`. ReLU networks are ambiguous at best: two
            of them may agree on whole regions.
        bias: whether the neurons have biases.
        output_bias: whether the outputs have biases.
        budget: starts, or a :class:`Budget`; default 100,000 starts.
        noise_std: standard deviation of the noise on y; None for data without noise.
        y_error: the largest error of each y, as a number or a tensor; or "float32", "float64", ... for values
            computed in that format. Default: inferred from dtype and values.
        x_error: the largest error of each x, if inputs were rounded after y was computed; 0 if they are
            exact. Default: exact, unless x and y are both decimals, as in a table that was rounded.
        domain: (low, high), the box of inputs for which the function is claimed, each a number or (d,).
            Default: the box of the samples.
        max_frequency: the largest norm of the weights of a neuron in a sine network. On a lattice of samples,
            sines of different frequencies have the same values.
        held_out: (x, y), samples for a test, which are not fitted; drawn independently of each other.
        sampler: m -> (m, d) fresh points at which to evaluate a callable y; default: uniform on the domain.
        fresh_points: how many fresh points.
        seed: the seed of the starts and fresh points: the same seed, data and budget in starts give the same
            result.
        progress: False for none; or a function, which is called after every round with the starts so far, and
            the smallest squared residuals so far, relative to the mean square of the targets. If it returns
            True, the search ends as if the budget were spent. Default: after two seconds a line on a terminal
            or in a notebook.

    Raises:
        TypeError: arguments that are no tensors, dtypes that are no numbers, a callable that computes in
            another dtype.
        ValueError: shapes that do not fit; NaN or infinity; numbers of a size that needs another unit;
            targets that are constant; fewer observations than one neuron has parameters; repeated inputs with
            different targets and no noise; an unknown activation; options that exclude each other.

    Source: docs/recovery.md.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery import Target, recover
        >>> target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        >>> x, y = target.sample(7, seed=1)  # O + 1
        >>> found = recover(x, y, max_width=4, bias=False)
        >>> found.status, found.width, int(found.size), target.error(found.model) < 1e-8
        ('recovered', 2, 6, True)
        >>> found.proved.isolated, found.evidence.eps < 1e-10
        (True, True)
        >>> asked = recover(x, target, max_width=4, bias=False)  # a function, and 1000 fresh points
        >>> asked.tested.beyond, asked.tested.share < 0.003
        (0, True)
    """
    check_sizes(max_width=max_width, fresh_points=fresh_points)
    function = None if isinstance(y, Tensor) or not callable(y) else y
    if function is not None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {type(x).__name__}; expected a tensor (torch.as_tensor)")
        x = x[:, None] if x.dim() == 1 else x
        y = evaluated(function, x)
    elif sampler is not None:
        raise ValueError(
            "sampler= draws points at which a callable y is evaluated, but y is a tensor"
        )
    if noise_std is not None and (
        y_error is not None or function is not None or held_out is not None
    ):
        raise ValueError(
            "noise_std= cannot be combined with y_error=, a callable y or held_out=: with noise, residuals "
            "are tested"
        )
    assert isinstance(y, Tensor) or function is None
    given, dtypes = x, (getattr(x, "dtype", torch.float64), getattr(y, "dtype", torch.float64))
    x, y = read(x, y)  # type: ignore[arg-type]
    kind = Kind(x.shape[1], y.shape[1], activation, bias, output_bias)
    check(x, y, kind, noise_std)
    check_frequency(max_frequency, activation)
    rounding = Rounding.of(x, y, dtypes, y_error, x_error)
    real = Data64(x, y, rounding, Domain.of(x, domain), activation, max_frequency)
    scaling = Scaling.of(x, y, shift=bias)
    noise = rounding.noise(x, y)
    spent = Spent(Budget.of(budget), progress if callable(progress) else None)
    hunt = Hunt(kind, scaling, scaling.inside(x, y), real, seed, noise, spent)
    case = Case(hunt, max_width)
    if noise_std is not None:
        return case.with_noise(noise_std)
    if held_out is not None:
        if function is not None:
            raise ValueError(
                "held_out= is for a tensor y; a callable y is evaluated at fresh points"
            )
        test = _held_out(held_out, kind)
        return case.without_noise(lambda: test)
    if function is None:
        return case.without_noise(None)

    def ask() -> Points:
        points = fresh(sampler, fresh_points, real.domain, given, seed)
        values = evaluated(function, points, kind.q)
        return (*read(points, values), words.where(real.domain, sampler is not None))

    return case.without_noise(ask)


def _held_out(pair: object, kind: Kind) -> Points:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"held_out is {type(pair).__name__}; expected a pair (x, y) of tensors")
    x, y = read(pair[0], pair[1])
    if x.shape[1] != kind.d or y.shape[1] != kind.q:
        raise ValueError(
            f"held_out has shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (m, {kind.d}) and "
            f"(m, {kind.q})"
        )
    return x, y, "samples held out"
