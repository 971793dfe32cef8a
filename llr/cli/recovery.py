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
from llr.cli.files import OutputDirectory
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
    Write,
    as_json,
    deliver,
    reported,
    require_weights,
    save_weights,
    with_option_names,
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
@click.option("--key", metavar="NAME", help="Array of DATA, if there are several.")
@click.option("--max-width", type=POSITIVE, required=True, help="Largest number of hidden neurons.")
@click.option(
    "--outputs",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="Last columns that are outputs.",
)
@nonlinear_option
@bias_option
@output_bias_option
@click.option("--starts", type=POSITIVE, help="Give up after so many random starts.")
@click.option("--seconds", type=float, help="Give up after so many seconds.")
@click.option(
    "--noise-std",
    type=float,
    help="Standard deviation of the noise on the outputs.  [default: no noise]",
)
@click.option(
    "--y-error",
    metavar="NUMBER|FORMAT",
    help="Largest error of an output, or the format it was computed in.  [default: inferred from DATA]",
)
@click.option(
    "--x-error",
    type=float,
    help="Largest error of an input, if inputs were rounded after the outputs were computed.",
)
@click.option(
    "--domain",
    type=float,
    nargs=2,
    help="The box of inputs for which the function is claimed: LOW HIGH.",
)
@click.option(
    "--max-frequency", type=float, help="Largest norm of a neuron's weights in a sine network."
)
@click.option(
    "--held-out", type=POSITIVE, help="How many of the last rows are for a test, not for the fit."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the random starts.")
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
    code 0 if the network is recovered (or, with noise, accepted), 1 if none was found that fits to rounding,
    3 if networks fit, but the data do not decide between them. The closest network is written in all cases.
    Ctrl-C ends the search: what was found by then is printed and written, and the exit code is 130.
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
    deliver([with_option_names(str(found))], files)
    if interrupted:
        click.echo("interrupted", err=True)
        sys.exit(130)
    if not found:
        sys.exit(OPEN if found.status == "ambiguous" else 1)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect signals of Ctrl-C: the first ends the search after its round, the second one at once."""
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
    + "\n  all         All of these, one after the other.",
)
@click.argument("name", type=click.Choice(["all", *EXPERIMENTS]), metavar="NAME")
@click.option(
    "--out",
    type=OutputDirectory(),
    default=Path("runs/reproduce"),
    show_default=True,
    help="Directory of the results, as .sqlite and .csv, and of the figure.",
)
@click.option(
    "--quick", is_flag=True, help="A small grid that takes seconds, to see that it works."
)
@click.option("--jobs", type=POSITIVE, default=1, show_default=True, help="Processes to start.")
@click.option("--svg", is_flag=True, help="The figure as SVG instead of PNG.")
@reported
def reproduce_command(name: str, out: Path, quick: bool, jobs: int, svg: bool) -> None:
    """Run an experiment of the theory, or the cells of it that are missing, and draw its figure."""
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
        whole = "expected for the full grid" if quick else "expected"
        click.echo(f"  {whole}  {EXPERIMENTS[each].expected}")
        click.echo(f"  {done.tally}")
        click.echo(f"  wrote  {done.figure}, {done.table}, {done.results}")
