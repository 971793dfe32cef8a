"""The commands of the theory: ``llr theory``, ``llr embed``, ``llr reduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import llr
from llr.cli.groups import Group
from llr.cli.options import (
    POSITIVE,
    bias_option,
    json_option,
    model_options,
    nonlinear_option,
    output_bias_option,
    plot_option,
    weights_out_option,
)
from llr.cli.output import apart
from llr.cli.shell import (
    Write,
    as_json,
    deliver,
    plotting,
    reported,
    require_weights,
    save_weights,
    with_option_names,
)
from llr.cli.source import Source
from llr.inputs.files.load import load_inputs
from llr.inputs.samplers import read_sampler
from llr.inputs.widths import read_widths

_d = click.option("--d", type=POSITIVE, required=True, help="Inputs.")
_k = click.option("--k", type=POSITIVE, required=True, help="Neurons of the target function.")
_q = click.option("--q", type=POSITIVE, default=1, show_default=True, help="Outputs.")
_classes = plot_option("the ranks of all classes of functions")


@click.group(cls=Group)
def theory() -> None:
    """Closed forms: how many samples the functions of an architecture need.

    These commands use no samples. A function needs as many samples as its model rank: the smallest dimension
    of the tangent space at parameters that represent the function.
    """


@theory.command("two-layer")
@_d
@_k
@click.option("--width", type=POSITIVE, help="Neurons of the model.  [default: k]")
@_q
@nonlinear_option
@bias_option
@output_bias_option
@click.option("--table", is_flag=True, help="Also every class of functions of the model.")
@json_option
@_classes
@reported
def two_layer(
    d: int,
    k: int,
    width: int | None,
    q: int,
    activation: str,
    bias: bool,
    output_bias: bool,
    table: bool,
    json_out: str | None,
    plot_out: str | None,
) -> None:
    """A function of K random neurons in a two-layer network of some width."""
    width = k if width is None else width
    if width < k:
        raise ValueError(f"--width is {width}; expected at least --k, {k}: the function must fit")
    options: dict[str, Any] = {"activation": activation, "bias": bias, "output_bias": output_bias}
    model = llr.models.TwoLayer(d, width, q, **options).double()
    target = llr.models.TwoLayer(d, k, q, **options, generator=_seeded()).double()
    size = llr.theory.optimistic_sample_size(model, target)
    document: dict[str, Any] = {"optimistic_sample_size": size.to_dict()}
    lines = [str(size)]
    if q > 1:  # a sample gives q observations, so that fewer points than observations are needed
        points = llr.theory.points_needed(target)
        document["points"] = points.to_dict()
        lines.append(str(points).splitlines()[0])
    _stratify(model, json_out, plot_out, document, lines, table)


@theory.command()
@_d
@click.option("--kernel", type=POSITIVE, required=True, help="Size of a kernel.")
@click.option(
    "--kernels", type=POSITIVE, default=1, show_default=True, help="Kernels of the target."
)
@click.option("--channels", type=POSITIVE, help="Kernels of the models.  [default: as the target]")
@json_option
@reported
def cnn(d: int, kernel: int, kernels: int, channels: int | None, json_out: str | None) -> None:
    """A function of random kernels in three networks: shared weights, local ones, fully connected."""
    channels = kernels if channels is None else channels
    if channels < kernels:
        raise ValueError(
            f"--channels is {channels}; expected at least --kernels, {kernels}: the function must fit"
        )
    target = llr.models.Conv1dTwoLayer(d, kernel, kernels, generator=_seeded()).double()
    architectures: dict[str, nn.Module] = {
        "shared weights": llr.models.Conv1dTwoLayer(d, kernel, channels).double(),
        "no sharing": llr.models.Conv1dTwoLayer(d, kernel, channels, shared=False).double(),
        "fully connected": llr.models.TwoLayer(d, channels * target.positions, bias=False).double(),
    }
    sizes = {
        name: llr.theory.optimistic_sample_size(net, target) for name, net in architectures.items()
    }
    rows = [("network", "parameters", "samples", "")]
    for name, size in sizes.items():
        terms = "; ".join(term.text for term in size.terms)
        rows.append((name, str(size.n_params), str(int(size)), f"{terms} ({size.statement})"))
    document = {name: size.to_dict() for name, size in sizes.items()}
    deliver([_aligned(rows)], [(json_out, as_json(document))])


@theory.command()
@_d
@_k
@click.option("--width", type=POSITIVE, required=True, help="Neurons of the model.")
@_q
@bias_option
@json_option
@plot_option("from how many observations on each branch is isolated")
@reported
def branches(
    d: int, k: int, width: int, q: int, bias: bool, json_out: str | None, plot_out: str | None
) -> None:
    """Every way to represent a function of K random tanh neurons in a wider network."""
    drawing = plotting(plot_out, "landscape.figure")
    found = llr.landscape.branches(
        llr.models.TwoLayer(d, k, q, bias=bias, generator=_seeded()).double(), width
    )
    figure = (plot_out, lambda path: drawing.save(drawing.branches(found).figure, path))
    deliver([with_option_names(str(found))], [figure, (json_out, as_json(found.to_dict()))])


@theory.command()
@click.option("--m", type=POSITIVE, required=True, help="Rows of the matrix.")
@click.option("--p", type=POSITIVE, required=True, help="Inner size.")
@click.option("--n", type=POSITIVE, required=True, help="Columns of the matrix.")
@json_option
@_classes
@reported
def factorization(m: int, p: int, n: int, json_out: str | None, plot_out: str | None) -> None:
    """Matrices of every rank as products of (M, P) and (P, N)."""
    _stratify(llr.models.MatrixFactorization(m, p, n).double(), json_out, plot_out)


@theory.command()
@click.argument("widths")
@json_option
@_classes
@reported
def linear(widths: str, json_out: str | None, plot_out: str | None) -> None:
    """Linear maps of every rank in a deep linear network of WIDTHS, such as 3-4-2."""
    _stratify(llr.models.DeepLinear(read_widths(widths, "WIDTHS")).double(), json_out, plot_out)


@theory.command("mlp")
@click.argument("widths")
@click.option("--target", metavar="WIDTHS", help="Only a random function of this narrower network.")
@nonlinear_option
@json_option
@_classes
@reported
def deep(
    widths: str, target: str | None, activation: str, json_out: str | None, plot_out: str | None
) -> None:
    """Functions of narrower networks in a network of WIDTHS, such as 2-3-3-1, with all biases."""
    model = llr.models.mlp(read_widths(widths, "WIDTHS"), activation).double()
    if target is None:
        _stratify(model, json_out, plot_out)
        return
    if plot_out is not None:
        raise ValueError("--plot draws the classes of all functions; omit --target")
    narrow = llr.models.mlp(
        read_widths(target, "--target"), activation, generator=_seeded()
    ).double()
    size = llr.theory.optimistic_sample_size(model, narrow)
    document = {"optimistic_sample_size": size.to_dict()}
    deliver([with_option_names(str(size))], [(json_out, as_json(document))])


@theory.command()
@model_options(inputs=False, params=False)
@json_option
@reported
def model(source: Source, json_out: str | None) -> None:
    """The tangent dimension of MODEL at its parameters, and the model rank of its function.

    MODEL is widths or module:callable, as for llr rank. All parameters are used, as exact numbers.
    """
    net = source.load()
    found = {
        "tangent_dimension": apart(llr.theory.tangent_dimension)(net),
        "model_rank_of_function": apart(llr.theory.model_rank_of_function)(net),
    }
    document = {**source.to_dict(), **{name: value.to_dict() for name, value in found.items()}}
    lines = [source.line(net), *(with_option_names(str(value)) for value in found.values())]
    deliver(lines, [(json_out, as_json(document))])


@click.command()
@model_options(inputs=True, required=False, params=False)
@click.option(
    "--to",
    "widths",  # as the function in Python has it
    required=True,
    metavar="WIDTHS",
    help="Widths, such as 1-4-4-1; for convolutions d-channels-1.",
)
@click.option("--general", is_flag=True, help="Copies whose weights differ, not splits only.")
@click.option("--check", is_flag=True, help="Compare functions, gradients and tangent spaces.")
@click.option(
    "--targets", type=click.Path(path_type=Path), help="Targets of the samples, for the Hessian."
)
@weights_out_option
@json_option
@plot_option("the Hessian's eigenvalues before and after")
@reported
def embed(
    source: Source,
    widths: str,
    general: bool,
    check: bool,
    targets: Path | None,
    out: Path | None,
    json_out: str | None,
    plot_out: str | None,
) -> None:
    """Write the function of MODEL as a wider network, by random splits and null neurons.

    The tangent space stays the same, and critical points stay critical. MODEL is widths or module:callable,
    as for llr rank. --seed is also the seed of the splits, and of samples if there are no --inputs. Gradients
    and Hessians are those of the squared error, at the targets nearest to --targets (default: random ones)
    for which MODEL is critical. The parameters in --out are named as those of mlp: models or of llr.models.
    """
    drawing = plotting(plot_out, "landscape.figure")
    if out is not None:
        require_weights(out)
    net = source.load()
    move = llr.embedding.random_compatible if general else llr.embedding.widen
    wide, record = apart(move)(net, read_widths(widths, "--to"), _seeded(source.seed))
    document: dict[str, Any] = {**source.to_dict(), "embedding": record.to_dict(spectrum=True)}
    lines = [source.line(net), str(record)]
    figure: Any = None
    if check or drawing is not None:
        x = _samples(source, net, record.n_wide)
        y = None if targets is None else load_inputs(targets, torch.float64, what="targets")
        if check:
            found = apart(llr.embedding.check)(net, wide, x, y, seed=source.seed)
            document["check"] = found.to_dict()
            lines.append(str(found))
        if drawing is not None:
            y = apart(llr.landscape.critical_targets)(net, x, y, generator=_seeded(source.seed))
            spectrum = apart(llr.landscape.embedded_spectrum)(net, wide, record, x, y)
            document["hessian"] = spectrum.to_dict(spectrum=True)
            lines.append(str(spectrum))
            figure = drawing.embedded(spectrum)
    elif targets is not None or source.inputs is not None:
        raise ValueError("samples are for --check and --plot; expected one of them")
    files: list[tuple[Path | str | None, Write]] = [
        (out, lambda path: save_weights(wide, path)),
        (plot_out, lambda path: drawing.save(figure, path)),
        (json_out, as_json(document)),
    ]
    deliver(lines, files)


@click.command()
@model_options(inputs=False, params=False)
@weights_out_option
@json_option
@reported
def reduce(source: Source, out: Path | None, json_out: str | None) -> None:
    """Write the function of MODEL as the narrowest network that merging neurons leads to.

    MODEL is widths or module:callable, as for llr rank. Neurons are merged if they are exactly equal, or
    exact combinations of each other; a warning names neurons that nearly are. The parameters in --out are
    named as those of mlp: models or of llr.models.
    """
    if out is not None:
        require_weights(out)
    net = source.load()
    found = apart(llr.embedding.reduce)(net)
    reduction = found.to_dict()
    del reduction["model"]  # --out writes it
    document = {**source.to_dict(), "reduction": reduction}
    files: list[tuple[Path | str | None, Write]] = [
        (out, lambda path: save_weights(found.model, path)),
        (json_out, as_json(document)),
    ]
    deliver([source.line(net), str(found)], files)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stratify(
    model: nn.Module,
    json_out: str | None,
    plot_out: str | None,
    document: dict[str, Any] | None = None,
    lines: Sequence[str] = (),
    table: bool = True,
) -> None:
    """Print `lines` and the stratification of an architecture, and write the files."""
    drawing = plotting(plot_out, "theory.figure")
    found = llr.theory.rank_stratification(model)
    document = {**(document or {}), "stratification": found.to_dict()}
    figure = (plot_out, lambda path: drawing.save(drawing.stratification(found).figure, path))
    deliver([*lines, *([str(found)] if table else [])], [figure, (json_out, as_json(document))])


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """A table as text: words are aligned to the left, numbers to the right."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(size) if rows[-1][i].isdigit() else text.ljust(size)
            for i, (text, size) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in rows
    )


def _samples(source: Source, net: nn.Module, n: int) -> Tensor:
    """The samples of --inputs; without them, n + 8 normal ones, n being the wide network's parameters."""
    if source.inputs is not None:
        return source.samples(torch.float64, net)
    device = torch.device("cpu")
    normal = read_sampler(
        "normal", net, shape=None, dtype=torch.float64, device=device, seed=source.seed
    )
    return normal.first(n + 8)
