"""The command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from llr.cli import demo as demo_module
from llr.cli.output import apart
from llr.cli.recovery import recover_command, reproduce_command
from llr.cli.shell import (
    DTYPES,
    OPEN,
    OutputDirectory,
    OutputText,
    Source,
    Write,
    as_json,
    deliver,
    in_shell_words,
    max_bits_option,
    model_options,
    plotting,
    reported,
)
from llr.cli.streams import standard_streams
from llr.cli.sweep import sweep
from llr.cli.theory import embed, reduce, theory
from llr.inputs.samplers import all_samples
from llr.inputs.samplers import sample_shape as shape_of_samples
from llr.ranks.certificates.certificate import Certificate
from llr.ranks.certificates.certify import certify as prove
from llr.ranks.certificates.verification import verify as check
from llr.ranks.info import VERSION
from llr.ranks.info import info as collect_info
from llr.ranks.info import selftest as run_selftest
from llr.ranks.model_rank import model_rank as rank_of_model
from llr.ranks.rank import METHODS
from llr.ranks.rank import rank as rank_of

_LISTED_NUMBERS = 4096
"""Samples of more numbers are left out of the JSON of ``llr model-rank``."""


class _Commands(click.Group):
    """The commands; the text of --help goes where their results go, and may fail in the same ways."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments: here --help and --version of the group itself are answered."""
        with standard_streams():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with standard_streams():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="llr")
def main() -> None:
    """How many samples a network needs: Jacobians, their rank, and how sure it is."""


main.add_command(theory)
main.add_command(embed)
main.add_command(reduce)
main.add_command(recover_command)
main.add_command(reproduce_command)
main.add_command(sweep)


@main.command()
@click.option(
    "--out",
    type=OutputDirectory(),
    default=Path("runs/demo"),
    show_default=True,
    help="Directory of ranks.json and spectra.png.",
)
@click.option("--quick", is_flag=True, help="Only three of the networks.")
@reported
def demo(out: Path, quick: bool) -> None:
    """Ranks of tanh networks of growing width, trained on real data."""
    demo_module.run(out, quick=quick)


@main.command()
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
    type=click.Choice([*DTYPES, "model"]),
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
@click.option(
    "--json", "json_out", metavar="FILE", help="Write the result as JSON; '-' for standard output."
)
@click.option("--plot", "plot_out", metavar="FILE", help="Draw the spectrum: .png, .pdf or .svg.")
@reported
def rank(
    source: Source,
    method: str,
    dtype: str,
    rtol: float | None,
    atol: float | None,
    upper: int | None,
    resolve: bool | None,
    strict: bool,
    max_bits: int,
    chunk_size: int | None,
    json_out: str | None,
    plot_out: str | None,
) -> None:
    """Rank of the Jacobian of MODEL with respect to its parameters, at given samples.

    MODEL is widths, such as mlp:10-64-64-1, or module:callable, such as mypkg.models:build, called
    without arguments; or module:name of a model that exists. It is put into evaluation mode.

    Exit code 3 if the rank is ambiguous, without a clear gap (of 1000). With --rtol or --atol the count is
    what was asked for, and only --strict minds.
    """
    drawing = plotting(plot_out)
    precision = DTYPES.get(dtype)
    net = source.load(precision)
    x = source.samples(precision or _own_dtype(net), net)
    result = apart(rank_of)(
        net,
        x,
        method=method,
        params=list(source.params) or None,
        dtype=None if dtype == "model" else precision,
        rtol=rtol,
        atol=atol,
        upper=upper,
        resolve=resolve,
        max_bits=max_bits,
        chunk_size=chunk_size,
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
    asked_for = rtol is not None or atol is not None
    if result.open and (strict or not (result.clear or asked_for)):
        sys.exit(OPEN)


@main.command()
@model_options(inputs=True)
@click.option("--upper", type=int, help="A known upper bound of the rank: stop there.")
@max_bits_option("Precision cap.")
@click.option(
    "--timeout", type=float, help="Seconds after which to end, with what is proved by then."
)
@click.option(
    "--out",
    required=True,
    type=OutputText(),
    help="The certificate, as JSON; '-' for standard output.",
)
@reported
def certify(
    source: Source, upper: int | None, max_bits: int, timeout: float | None, out: Path
) -> None:
    """Prove a lower bound of the rank of MODEL's Jacobian, and write the proof.

    The network counts as the function that its layers define at the exact binary values of its parameters and
    samples. Exit code 0 also if the bound is not shown to be the rank, or --timeout or --max-bits ended the
    search: the certificate that is written holds all the same, and says which.
    """
    net = source.load()
    x = source.samples(torch.float64, net)
    certificate = apart(prove)(
        net,
        x,
        params=list(source.params) or None,
        upper=upper,
        max_bits=max_bits,
        timeout=timeout,
    )
    deliver([source.line(net), str(certificate)], [(out, lambda path: _save(certificate, path))])


def _save(certificate: Certificate, path: str | Path) -> None:
    if str(path) == "-":
        click.echo(json.dumps(certificate.to_dict(), indent=1))
    else:
        certificate.save(path)


@main.command()
@click.argument("certificate", type=click.Path(path_type=Path))
@model_options(inputs=True)
@max_bits_option("Precision that CERTIFICATE may ask for.")
@click.option("--timeout", type=float, help="Seconds after which to give up.")
@reported
def verify(source: Source, certificate: Path, max_bits: int, timeout: float | None) -> None:
    """Check a CERTIFICATE for MODEL and its samples.

    Exit code 1 if it does not hold, 3 if --timeout or --max-bits kept it from being checked.
    """
    proof = Certificate.load(certificate)
    net = source.load()
    x = source.samples(torch.float64, net)
    verdict = apart(check)(
        proof, net, x, params=list(source.params) or None, max_bits=max_bits, timeout=timeout
    )
    if not verdict.checked:
        click.echo(in_shell_words(verdict.reason))
        sys.exit(OPEN)
    click.echo(f"{'holds' if verdict else 'does NOT hold'}: {verdict.reason}")
    click.echo(source.line(net))
    if not verdict:
        sys.exit(1)


@main.command("model-rank")
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
@click.option("--json", "json_out", metavar="FILE", help="As JSON; '-' for standard output.")
@reported
def model_rank(
    source: Source,
    sampler: str,
    box: tuple[float, float],
    sample_shape: str | None,
    upper: int | None,
    max_samples: int | None,
    certify: bool | None,
    json_out: str | None,
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
    result = apart(rank_of_model)(
        net,
        sampler=drawn,
        params=list(source.params) or None,
        upper=upper,
        max_samples=max_samples,
        certify="auto" if certify is None else certify,
        seed=source.seed,
        sample_shape=shape,
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
            shape_of_samples(net, shape)
        except ValueError as err:
            what = str(err).partition("; give ")[0]
            raise ValueError(
                f"{what}; give --sample-shape, the sizes of one sample such as 3x32x32, or --inputs, a "
                "file of samples to take"
            ) from err


@main.command()
@reported
def info() -> None:
    """Versions, the backend in use and why, and devices."""
    click.echo(str(collect_info()))


@main.command()
@click.option(
    "--device", help="cpu, cuda, or one GPU such as cuda:1.  [default: all that are visible]"
)
@reported
def selftest(device: str | None) -> None:
    """Check the native code against torch on this machine; exit code 1 if they differ."""
    outcome = run_selftest(device)
    click.echo(str(outcome))
    if not outcome.ok:
        sys.exit(1)


def _own_dtype(net: torch.nn.Module) -> torch.dtype:
    floating = (p.dtype for p in net.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())
