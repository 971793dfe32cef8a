"""``llr info`` and ``llr selftest``."""

from __future__ import annotations

import sys

import click

import llr
from llr.cli.shell import reported


@click.command()
@reported
def info() -> None:
    """Versions, the backend in use and why, and devices."""
    click.echo(str(llr.info()))


@click.command()
@click.option(
    "--device", help="cpu, cuda, or one GPU such as cuda:1.  [default: all visible devices]"
)
@reported
def selftest(device: str | None) -> None:
    """Check the native code against torch on this machine; exit code 1 if they differ."""
    outcome = llr.selftest(device)
    click.echo(str(outcome))
    if not outcome.ok:
        sys.exit(1)
