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
from llr.cli.shell import OPEN, Write, as_json, deliver, in_shell_words, plotting, reported
from llr.cli.source import Source
from llr.inputs.samplers import all_samples
from llr.inputs.samplers import sample_shape as sample_shape_of
from llr.ranks.rank import METHODS

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_LISTED_NUMBERS = 4096
"""Samples of more numbers are left out of the JSON of ``llr model-rank``."""


@click.command()
@model_options(inputs=True)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="How: a full SVD, QR of blocks of columns, a Gram matrix in double-double, or a proof.",
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
@click.option("--upper", type=int, help="A known upper bound of the rank; believed.")
@click.option(
    "--resolve/--no-resolve",
    default=None,
    help="Settle what a count leaves open by a proof, or never.  [default: where that is quick]",
)
@click.option(
    "--strict", is_flag=True, help="Exit code 3 for every ambiguous rank, also with a clear gap."
)
@max_bits_option("Precision cap of proofs.")
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

    MODEL is widths, such as mlp:10-64-64-1, or module:callable, such as mypkg.models:build, called
    without arguments; or module:name of a model that exists. It is put into evaluation mode.

    Exit code 3 if the rank is ambiguous, without a clear gap (of 1000). With --rtol or --atol the count is
    what was asked for, and only --strict minds.
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
    lines = [
        source.line(net),
        f"J      {len(x)} samples x {outputs} outputs x {result.n_params} parameters",
        in_shell_words(str(result)),
    ]
    if result.open and result.reason:
        lines.append(f"how    {in_shell_words(result.reason)}")
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
    help="Standard normal samples, or uniform ones from a box; or those of --inputs.",
)
@click.option(
    "--box",
    type=(float, float),
    default=(-1.0, 1.0),
    show_default=True,
    help="Of uniform samples, the same for every input.",
)
@click.option(
    "--sample-shape",
    metavar="SIZES",
    help="Of one sample, such as 3x32x32, where MODEL does not tell.",
)
@click.option("--upper", type=int, help="A known upper bound.")
@click.option("--max-samples", type=click.IntRange(min=1), help="Give up beyond so many.")
@click.option(
    "--certify/--no-certify", default=None, help="Prove it, or not.  [default: where that is cheap]"
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
    """The dimension of MODEL's tangent space: its rank on as many samples as it takes.

    Exit code 3 if it is ambiguous without a clear gap (of 1000), or did not stop growing: then it is at
    least the number given.
    """
    shape = None if sample_shape is None else _sizes(sample_shape)
    if shape is not None and source.inputs is not None:
        raise ValueError(
            "--sample-shape is of samples that are drawn; expected no --inputs beside it"
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
    lines = [source.line(net), in_shell_words(str(result))]
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
    """Say in the words of the shell that samples cannot be drawn."""
    if all_samples(net) is None:
        try:
            sample_shape_of(net, shape)
        except ValueError as err:
            what = str(err).partition("; give ")[0]
            raise ValueError(
                f"{what}; give --sample-shape, the sizes of one sample such as 3x32x32, or --inputs, a "
                "file of samples to take"
            ) from err
