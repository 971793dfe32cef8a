"""``llr recover`` and ``llr reproduce``. The commands of sweeps are in :mod:`llr.cli.sweep`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

import llr
from llr.cli.options import (
    POSITIVE,
    bias_option,
    json_option,
    nonlinear_option,
    output_bias_option,
    table_options,
    weights_out_option,
)
from llr.cli.shell import (
    OPEN,
    OutputDirectory,
    Write,
    as_json,
    deliver,
    in_shell_words,
    reported,
    require_weights,
    save_weights,
)
from llr.cli.sweep import logging, resumable
from llr.inputs.files.layout import Layout
from llr.inputs.files.load import load_inputs
from llr.recovery import EXPERIMENTS
from llr.results.progress import following


def _number_or_name(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


@click.command("recover")
@click.argument("data", type=click.Path(path_type=Path))
@table_options
@click.option("--key", metavar="NAME", help="Of several arrays in DATA.")
@click.option("--max-width", type=POSITIVE, required=True, help="Neurons at most.")
@click.option("--outputs", type=POSITIVE, default=1, show_default=True, help="Last columns.")
@nonlinear_option
@bias_option
@output_bias_option
@click.option("--starts", type=POSITIVE, help="Give up after so many.")
@click.option("--seconds", type=float, help="Give up after so long.")
@click.option("--noise-std", type=float, help="Of the noise on the targets.  [default: no noise]")
@click.option(
    "--y-error",
    metavar="NUMBER|FORMAT",
    help="Of every target at most, or the format it was computed in.  [default: as it looks]",
)
@click.option("--x-error", type=float, help="Of every input, if rounded after y was computed.")
@click.option(
    "--domain", type=float, nargs=2, help="The box of inputs the claim is about: LOW HIGH."
)
@click.option(
    "--max-frequency", type=float, help="Of a sine network: of a neuron's weights, the norm."
)
@click.option("--held-out", type=POSITIVE, help="Last rows to test instead of to fit.")
@click.option("--seed", default=0, show_default=True, help="Of the starts.")
@weights_out_option
@json_option
@reported
def recover_command(
    data: Path,
    layout: Layout,
    key: str | None,
    outputs: int,
    held_out: int | None,
    starts: int | None,
    seconds: float | None,
    y_error: str | None,
    out: Path | None,
    json_out: str | None,
    **options: Any,
) -> None:
    """Find the two-layer network that made DATA: rows of inputs and, in the last columns, outputs.

    DATA is a .csv, .tsv, .txt, .npy, .npz, .pt or .safetensors file, or - for text on standard input. Exit
    code 0 if the network is recovered (or, with noise, accepted), 1 if nothing fits to rounding, 3 if
    networks fit and the data do not decide. The closest network is written all the same. Ctrl-C ends the
    search: what it found by then is printed and written, and the exit code is 130.
    """
    if out is not None:
        require_weights(out)
    table = load_inputs(data, torch.float64, layout=layout, key=key, what="data")
    if table.dim() != 2 or table.shape[1] <= outputs:
        raise ValueError(
            f"data {data} has shape {tuple(table.shape)}; expected a table with inputs and, in the last "
            f"{outputs} columns, outputs"
        )
    budget = None if starts is None and seconds is None else llr.recovery.Budget(starts, seconds)
    rows = len(table) - (held_out or 0)
    if rows < 1:
        raise ValueError(
            f"--held-out is {held_out}, but the table has {len(table)} rows; expected fewer"
        )
    x, y = table[:, :-outputs], table[:, -outputs:]
    with _interruptible() as interrupted, following(None):
        found = llr.recovery.recover(
            x[:rows],
            y[:rows],
            budget=budget,
            y_error=_number_or_name(y_error),
            held_out=None if held_out is None else (x[rows:], y[rows:]),
            progress=lambda *_: bool(interrupted),
            **options,
        )
    files: list[tuple[Path | str | None, Write]] = [
        (out, lambda path: save_weights(found.model, path)),
        (json_out, as_json({"data": str(data), **found.to_dict()})),
    ]
    deliver([in_shell_words(str(found))], files)
    if interrupted:
        click.echo("interrupted", err=True)
        sys.exit(130)
    if not found:
        sys.exit(OPEN if found.status == "ambiguous" else 1)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Signals of Ctrl-C: the first ends the search after its round, a second one at once."""
    signals: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)


@click.command(
    "reproduce",
    epilog="NAME is one of:\n\n\b\n"
    + "\n".join(f"  {name:<12}{e.question}" for name, e in EXPERIMENTS.items())
    + "\n  all         These, one after the other.",
)
@click.argument("name", type=click.Choice(["all", *EXPERIMENTS]), metavar="NAME")
@click.option(
    "--out",
    type=OutputDirectory(),
    default=Path("runs/reproduce"),
    show_default=True,
    help="Directory of the results, as .sqlite and .csv, and of the figure.",
)
@click.option("--quick", is_flag=True, help="A grid of seconds, to see that it works.")
@click.option("--jobs", type=POSITIVE, default=1, show_default=True, help="Processes to start.")
@click.option("--svg", is_flag=True, help="The figure as SVG instead of PNG.")
@reported
def reproduce_command(name: str, out: Path, quick: bool, jobs: int, svg: bool) -> None:
    """Run an experiment of the theory, or what is left of it, and draw its figure."""
    for each in EXPERIMENTS if name == "all" else [name]:
        click.echo(f"{each}: {EXPERIMENTS[each].question}")
        with resumable():
            done = llr.recovery.reproduce(
                each,
                out,
                quick=quick,
                jobs=jobs,
                suffix=".svg" if svg else ".png",
                progress=logging(),
            )
        whole = "expected of the full grid" if quick else "expected"
        click.echo(f"  {whole}  {EXPERIMENTS[each].expected}")
        click.echo(f"  {done.tally}")
        click.echo(f"  wrote  {done.figure}, {done.table}, {done.results}")
