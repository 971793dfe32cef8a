"""The commands of the theory: ``llr theory``, ``llr embed``, ``llr reduce``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import Tensor, nn

from llr import embedding
from llr.files import load_inputs, read_widths
from llr.landscape import branches as find_branches
from llr.models import ACTIVATIONS, Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.rank import rank
from llr.samplers import read_sampler
from llr.shell import (
    Source,
    console_beside,
    model_options,
    plotting,
    reported,
    require_weights,
    save_weights,
    write_json,
)
from llr.theory import (
    model_rank_of_function,
    optimistic_sample_size,
    rank_stratification,
    tangent_dimension,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _outputs(figure: str) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in (
            click.option(
                "--plot", "plot_out", metavar="FILE", help=f"Draw {figure}: .png, .pdf, .svg."
            ),
            click.option(
                "--json", "json_out", metavar="FILE", help="As JSON; '-' for standard output."
            ),
        ):
            command = option(command)
        return command

    return decorate


_positive = click.IntRange(min=1)


@click.group()
def theory() -> None:
    """Closed forms: how many samples functions of an architecture need."""


@theory.command("two-layer")
@click.option("--d", type=_positive, required=True, help="Inputs.")
@click.option("--k", type=_positive, required=True, help="Neurons of the target function.")
@click.option("--width", type=_positive, help="Neurons of the model.  [default: k]")
@click.option("--q", type=_positive, default=1, show_default=True, help="Outputs.")
@click.option(
    "--activation", type=click.Choice(list(ACTIVATIONS)), default="tanh", show_default=True
)
@click.option("--bias/--no-bias", default=True, show_default=True, help="Hidden biases.")
@click.option("--output-bias/--no-output-bias", default=False, show_default=True)
@click.option("--table", is_flag=True, help="Every class of functions of the model.")
@_outputs("the ranks of all classes of functions")
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
        raise ValueError(
            f"width is {width}; expected at least k = {k}, or the function does not fit"
        )
    options: dict[str, Any] = {"activation": activation, "bias": bias, "output_bias": output_bias}
    model = TwoLayer(d, width, q, **options).double()
    target = TwoLayer(d, k, q, **options, generator=_seeded()).double()
    size = optimistic_sample_size(model, target)
    _show_stratification(
        model, json_out, plot_out, table, {"optimistic_sample_size": size.to_dict()}, [str(size)]
    )


@theory.command()
@click.option("--d", type=_positive, required=True, help="Inputs.")
@click.option("--kernel", type=_positive, required=True, help="Size of a kernel.")
@click.option("--kernels", type=_positive, default=1, show_default=True, help="Of the target.")
@click.option("--json", "json_out", metavar="FILE", help="As JSON; '-' for standard output.")
@reported
def cnn(d: int, kernel: int, kernels: int, json_out: str | None) -> None:
    """A function of random convolution kernels: with weight sharing, without, and fully connected."""
    target = Conv1dTwoLayer(d, kernel, kernels, generator=_seeded()).double()
    architectures: dict[str, nn.Module] = {
        "shared": target,
        "not shared": Conv1dTwoLayer(d, kernel, kernels, shared=False).double(),
        "fully connected": TwoLayer(d, kernels * target.positions, bias=False).double(),
    }
    sizes = {name: optimistic_sample_size(net, target) for name, net in architectures.items()}
    write_json(json_out, {name: size.to_dict() for name, size in sizes.items()})
    console = console_beside(json_out)
    for name, size in sizes.items():
        console.print(f"{name:16} {size}", markup=False)


@theory.command()
@click.option("--d", type=_positive, required=True, help="Inputs.")
@click.option("--k", type=_positive, required=True, help="Neurons of the target function.")
@click.option("--width", type=_positive, required=True, help="Neurons of the model.")
@click.option("--q", type=_positive, default=1, show_default=True, help="Outputs.")
@click.option("--bias/--no-bias", default=True, show_default=True, help="Hidden biases.")
@_outputs("from how many observations on each branch is isolated")
@reported
def branches(
    d: int, k: int, width: int, q: int, bias: bool, json_out: str | None, plot_out: str | None
) -> None:
    """Every way to represent a function of K random tanh neurons in a wider network."""
    drawing = plotting(plot_out, "plot_theory")
    found = find_branches(TwoLayer(d, k, q, bias=bias, generator=_seeded()).double(), width)
    if drawing is not None:
        drawing.save(drawing.branches(found).figure, plot_out)
    _report(json_out, found.to_dict(), [str(found)], [plot_out])


@theory.command()
@click.option("--m", type=_positive, required=True, help="Rows of the matrix.")
@click.option("--p", type=_positive, required=True, help="Inner size.")
@click.option("--n", type=_positive, required=True, help="Columns of the matrix.")
@_outputs("the ranks of all classes of functions")
@reported
def factorization(m: int, p: int, n: int, json_out: str | None, plot_out: str | None) -> None:
    """Matrices of every rank as products of (M, P) and (P, N)."""
    _show_stratification(MatrixFactorization(m, p, n).double(), json_out, plot_out)


@theory.command()
@click.argument("widths")
@_outputs("the ranks of all classes of functions")
@reported
def linear(widths: str, json_out: str | None, plot_out: str | None) -> None:
    """Linear maps of every rank in a deep linear network of WIDTHS, such as 3-4-2."""
    _show_stratification(DeepLinear(read_widths(widths)).double(), json_out, plot_out)


@theory.command("mlp")
@click.argument("widths")
@_outputs("the ranks of all classes of functions")
@reported
def deep(widths: str, json_out: str | None, plot_out: str | None) -> None:
    """Functions of narrower tanh networks in one of WIDTHS, such as 2-3-3-1."""
    _show_stratification(mlp(read_widths(widths)).double(), json_out, plot_out)


@theory.command()
@model_options(inputs=False)
@click.option("--json", "json_out", metavar="FILE", help="As JSON; '-' for standard output.")
@reported
def model(source: Source, json_out: str | None) -> None:
    """The tangent dimension of MODEL at its parameters, and the model rank of its function."""
    net = source.load()
    found = {
        "tangent_dimension": tangent_dimension(net),
        "model_rank_of_function": model_rank_of_function(net),
    }
    write_json(
        json_out, {**source.to_dict(), **{name: value.to_dict() for name, value in found.items()}}
    )
    for value in found.values():
        console_beside(json_out).print(str(value), markup=False)


@click.command()
@model_options(inputs=False)
@click.option("--to", "target", required=True, metavar="WIDTHS", help="Such as 1-4-4-1.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .safetensors file.")
@click.option(
    "--check", is_flag=True, help="Function, gradient and tangent space; certified ranks."
)
@click.option("--inputs", type=click.Path(path_type=Path), help="Samples.  [default: random]")
@click.option("--json", "json_out", metavar="FILE", help="As JSON; '-' for standard output.")
@click.option("--plot", "plot_out", metavar="FILE", help="Draw both spectra: .png, .pdf or .svg.")
@reported
def embed(
    source: Source,
    target: str,
    out: Path,
    check: bool,
    inputs: Path | None,
    json_out: str | None,
    plot_out: str | None,
) -> None:
    """Write the same function as MODEL in a network of other WIDTHS, by random splits and null neurons.

    The random choices go by --seed.
    """
    drawing = plotting(plot_out)
    require_weights(out)
    net = source.load()
    wide, record = embedding.widen(net, read_widths(target), _seeded(source.seed))
    document: dict[str, Any] = {**source.to_dict(), "embedding": record.to_dict()}
    lines = [str(record)]
    x = _samples(net, inputs, source.seed) if check or drawing is not None else None
    if check and x is not None:
        found = embedding.check(net, wide, x)
        document["check"] = found.to_dict()
        lines.append(str(found))
    if drawing is not None and x is not None:
        spectra = {name: rank(m, x, method="svd") for name, m in (("narrow", net), ("wide", wide))}
        drawing.save(drawing.spectrum(spectra).figure, plot_out)
    save_weights(wide, out)
    _report(json_out, document, lines, [str(out), plot_out])


@click.command()
@model_options(inputs=False)
@click.option("--out", type=click.Path(path_type=Path), help="Its weights: a .safetensors file.")
@click.option("--json", "json_out", metavar="FILE", help="As JSON; '-' for standard output.")
@reported
def reduce(source: Source, out: Path | None, json_out: str | None) -> None:
    """Find the narrowest network with the function of MODEL: merge, absorb and delete neurons."""
    if out is not None:
        require_weights(out)
    found = embedding.reduce(source.load())
    if out is not None:
        save_weights(found.model, out)
    document = {**source.to_dict(), "reduction": found.to_dict()}
    _report(json_out, document, [str(found)], [None if out is None else str(out)])


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _show_stratification(
    model: nn.Module,
    json_out: str | None,
    plot_out: str | None,
    table: bool = True,
    document: dict[str, Any] | None = None,
    lines: list[str] | None = None,
) -> None:
    drawing = plotting(plot_out, "plot_theory")
    found = rank_stratification(model)
    if drawing is not None:
        drawing.save(drawing.stratification(found).figure, plot_out)
    document = {**(document or {}), "stratification": found.to_dict()}
    _report(json_out, document, [*(lines or []), *([str(found)] if table else [])], [plot_out])


def _report(
    json_out: str | None, document: dict[str, Any], lines: list[str], written: list[str | None]
) -> None:
    write_json(json_out, document)
    console = console_beside(json_out)
    for line in lines:
        console.print(line, markup=False)
    for path in (*written, json_out):
        if path not in (None, "-"):
            console.print(f"wrote  {path}", markup=False)


def _samples(net: nn.Module, inputs: Path | None, seed: int) -> Tensor:
    """The samples of a check: those of a file, or more random ones than the narrow model has parameters."""
    if inputs is not None:
        return load_inputs(inputs, torch.float64)
    n = sum(p.numel() for p in net.parameters()) + 8
    device = torch.device("cpu")
    source = read_sampler("normal", net, shape=None, dtype=torch.float64, device=device, seed=seed)
    return source.first(n)
