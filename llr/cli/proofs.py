"""``llr certify`` and ``llr verify``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import torch

import llr
from llr.cli.files import OutputText
from llr.cli.options import json_option, max_bits_option, model_options
from llr.cli.output import apart
from llr.cli.shell import OPEN, as_json, deliver, reported, with_option_names
from llr.cli.source import Source
from llr.inputs.files.writing import write_atomic


@click.command()
@model_options(inputs=True)
@click.option("--upper", type=int, help="A known upper bound of the rank; the search stops there.")
@max_bits_option("Highest precision in bits.")
@click.option(
    "--timeout", type=float, help="Seconds after which to stop, with the bound proved by then."
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

    The proof is about the real function that the layers define, at the exact binary values of parameters and
    samples. The exit code is also 0 if the bound is not shown to be the rank, or if --timeout or --max-bits
    ended the search. The certificate that is written is valid in these cases too, and names the case.
    """
    net = source.load()
    x = source.samples(torch.float64, net)
    certificate = apart(llr.certify)(
        net,
        x,
        params=list(source.params) or None,
        upper=upper,
        max_bits=max_bits,
        timeout=timeout,
    )
    deliver([source.line(net), str(certificate)], [(out, lambda path: _save(certificate, path))])


def _save(certificate: llr.Certificate, path: str | Path) -> None:
    text = json.dumps(certificate.to_dict(), indent=1)
    if str(path) == "-":
        click.echo(text)
    else:
        write_atomic(path, f"{text}\n", devices=True)


@click.command()
@click.argument("certificate", type=click.Path(path_type=Path))
@model_options(inputs=True)
@max_bits_option("Highest precision in bits that CERTIFICATE may require.")
@click.option("--timeout", type=float, help="Seconds after which to give up.")
@json_option
@reported
def verify(
    source: Source, certificate: Path, max_bits: int, timeout: float | None, json_out: str | None
) -> None:
    """Check a CERTIFICATE for MODEL and its samples.

    Exit code 1 if it does not hold, 3 if it could not be checked within --timeout or --max-bits.
    """
    proof = llr.Certificate.load(certificate)
    net = source.load()
    x = source.samples(torch.float64, net)
    verdict = apart(llr.verify)(
        proof, net, x, params=list(source.params) or None, max_bits=max_bits, timeout=timeout
    )
    said = f"{'holds' if verdict else 'does NOT hold'}: {verdict.reason}"
    document = {**source.to_dict(), "certificate": str(certificate), **verdict.to_dict()}
    deliver(
        [source.line(net), said if verdict.checked else with_option_names(verdict.reason)],
        [(json_out, as_json(document))],
    )
    if not verdict:
        sys.exit(1 if verdict.checked else OPEN)
