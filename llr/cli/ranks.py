"""``llr rank`` and ``llr model-rank``."""

from __future__ import annotations

import re
import sys
from typing import Any

import click
import torch
from torch import Tensor

import llr
from llr.cli.options import json_option, max_bits_option, model_options, plot_option
from llr.cli.output import apart
from llr.cli.shell import OPEN, Write, as_json, deliver, plotting, reported, with_option_names
from llr.cli.source import Source
from llr.inputs.samplers import all_samples
from llr.inputs.samplers import sample_shape as sample_shape_of
from llr.ranks.rank import METHODS
from llr.results.phrases import counted

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_LISTED_NUMBERS = 4096
"""``llr model-rank`` leaves samples with more numbers than this out of its JSON."""


@click.command()
@model_options(inputs=True)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="A full SVD, QR of blocks of columns, a Gram matrix in double-double, or a proof.",
)
@click.option(
    "--dtype",
    type=click.Choice([*_DTYPES, "model"]),
    default="float64",
    show_default=True,
    help="Precision; 'model' keeps the model's own.",
)
@click.option("--rtol", type=float, help="Tolerance relative to the largest singular value.")
@click.option("--atol", type=float, help="Absolute tolerance.")
@click.option("--upper", type=int, help="A known upper bound of the rank; assumed to be true.")
@click.option(
    "--resolve/--no-resolve",
    default=None,
    help="Prove the rank where the count is ambiguous, or never.  [default: where it is quick]",
)
@click.option(
    "--strict", is_flag=True, help="Exit code 3 for every ambiguous rank, even with a clear gap."
)
@max_bits_option("Highest precision of proofs in bits.")
@click.option("--chunk-size", type=click.IntRange(min=1), help="Samples at a time.")
@json_option
@plot_option("the spectrum")
@reported
def rank(
    source: Source,
    dtype: str,
    strict: bool,
    json_out: str | None,
    plot_out: str | None,
    **options: Any,
) -> None:
    """Rank of the Jacobian of MODEL with respect to its parameters, at given samples.

    MODEL is widths, such as mlp:10-64-64-1; or module:callable, such as mypkg.models:build, which is called
    without arguments; or module:name of an existing model. The model is put into evaluation mode.

    Exit code 3 if the rank is ambiguous and has no clear gap (of 1000). With --rtol or --atol, the count at
    this tolerance is the answer, and an ambiguous rank has exit code 3 only with --strict.
    """
    drawing = plotting(plot_out)
    precision = _DTYPES.get(dtype)
    net = source.load(precision)
    x = source.samples(precision or _own_dtype(net), net)
    result = apart(llr.rank)(
        net,
        x,
        params=list(source.params) or None,
        dtype=None if dtype == "model" else precision,
        **options,
    )
    outputs = result.n_rows // len(x)
    sizes = ((len(x), "sample"), (outputs, "output"), (result.n_params, "parameter"))
    lines = [
        source.line(net),
        f"J      {' x '.join(counted(*size) for size in sizes)}",
        with_option_names(str(result)),
    ]
    if result.open and result.reason:
        lines.append(f"how    {with_option_names(result.reason)}")
    document = {**source.to_dict(), "samples": len(x), **result.to_dict(spectrum=True)}
    files: list[tuple[str | None, Write]] = [
        (json_out, as_json(document)),
        (plot_out, lambda path: drawing.save(result.plot().figure, path)),
    ]
    deliver(lines, files)
    asked_for = options["rtol"] is not None or options["atol"] is not None
    if result.open and (strict or not (result.clear or asked_for)):
        sys.exit(OPEN)


def _own_dtype(net: torch.nn.Module) -> torch.dtype:
    floating = (p.dtype for p in net.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


@click.command("model-rank")
@model_options(inputs=True, required=False)
@click.option(
    "--sampler",
    type=click.Choice(["normal", "uniform"]),
    default="normal",
    show_default=True,
    help="Standard normal samples, or uniform ones from --box. Not used with --inputs.",
)
@click.option(
    "--box",
    type=(float, float),
    default=(-1.0, 1.0),
    show_default=True,
    help="Lowest and highest value of uniform samples, the same for every input.",
)
@click.option(
    "--sample-shape",
    metavar="SIZES",
    help="Shape of one sample, such as 3x32x32, if MODEL does not define it.",
)
@click.option("--upper", type=int, help="A known upper bound.")
@click.option("--max-samples", type=click.IntRange(min=1), help="Largest number of samples to try.")
@click.option(
    "--certify/--no-certify",
    default=None,
    help="Prove the rank, or not.  [default: where it is cheap]",
)
@json_option
@reported
def model_rank(
    source: Source,
    sampler: str,
    box: tuple[float, float],
    sample_shape: str | None,
    certify: bool | None,
    json_out: str | None,
    **options: Any,
) -> None:
    """The dimension of MODEL's tangent space: its rank on so many samples that it stops growing.

    Exit code 3 if the rank is ambiguous without a clear gap (of 1000), or if it did not stop growing: then
    the number given is a lower bound.
    """
    shape = None if sample_shape is None else _sizes(sample_shape)
    if shape is not None and source.inputs is not None:
        raise ValueError(
            "--sample-shape is the shape of samples that are drawn; expected no --inputs with it"
        )
    net = source.load()
    drawn: Tensor | tuple[float, float] | str = box if sampler == "uniform" else sampler
    if source.inputs is None:
        _require_shape(net, shape)
    else:
        drawn = source.samples(torch.float64, net)
    result = apart(llr.model_rank)(
        net,
        sampler=drawn,
        params=list(source.params) or None,
        certify="auto" if certify is None else certify,
        seed=source.seed,
        sample_shape=shape,
        **options,
    )
    lines = [source.line(net), with_option_names(str(result))]
    found = result.to_dict(spectrum=True)
    if result.samples.numel() > _LISTED_NUMBERS:
        found["samples"] = None
    deliver(lines, [(json_out, as_json({**source.to_dict(), **found}))])
    if (result.ambiguous and not result.clear) or not result.saturated:
        sys.exit(OPEN)


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,8}([x,][1-9]\d{0,8})*", text, re.ASCII):
        raise ValueError(f"--sample-shape is {text!r}; expected sizes such as 5 or 3x32x32")
    return tuple(map(int, re.split("[x,]", text)))


def _require_shape(net: torch.nn.Module, shape: tuple[int, ...] | None) -> None:
    """Refuse a model whose samples have no known shape, in a message that names options of the shell."""
    if all_samples(net) is None:
        try:
            sample_shape_of(net, shape)
        except ValueError as err:
            what = str(err).partition("; give ")[0]
            raise ValueError(
                f"{what}; give --sample-shape, the sizes of one sample such as 3x32x32, or --inputs, a "
                "file of samples to take"
            ) from err
