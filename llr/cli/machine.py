"""``llr info`` and ``llr selftest``."""

from __future__ import annotations

import sys

import click

import llr
from llr.cli.options import json_option
from llr.cli.shell import as_json, deliver, reported


@click.command()
@json_option
@reported
def info(json_out: str | None) -> None:
    """Versions, the backend in use and why, and devices."""
    found = llr.info()
    deliver([str(found)], [(json_out, as_json(found.to_dict()))])


@click.command()
@click.option(
    "--device", help="cpu, cuda, or one GPU such as cuda:1.  [default: all visible devices]"
)
@json_option
@reported
def selftest(device: str | None, json_out: str | None) -> None:
    """Check the native code against torch on this machine; exit code 1 if they differ."""
    outcome = llr.selftest(device)
    deliver([str(outcome)], [(json_out, as_json(outcome.to_dict()))])
    if not outcome.ok:
        sys.exit(1)
