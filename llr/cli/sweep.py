"""The commands of a sweep: ``llr sweep``, and ``python -m llr.recovery.sweep`` for torchrun."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from llr.cli.files import require_other
from llr.cli.groups import Group
from llr.cli.options import POSITIVE
from llr.cli.shell import console_beside, plotting, reported
from llr.recovery.sweep.board import Address
from llr.recovery.sweep.run import Tally, tally
from llr.recovery.sweep.run import run as run_sweep
from llr.recovery.sweep.runner import DEFAULT_RUNNER
from llr.recovery.sweep.store import Row, read_store
from llr.recovery.sweep.table import export as export_table
from llr.recovery.sweep.table import require_table_format
from llr.recovery.sweep.worker import work
from llr.results.phrases import counted

_FAILURES_SHOWN = 5
_BETWEEN_LINES = 30.0  # seconds


class _SpecFirst(Group):
    """A group in which ``sweep spec.toml``, with or without options, means ``sweep run spec.toml``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_spec = any(argument.endswith(".toml") for argument in args)
        if is_spec and args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


EXAMPLE = """\
# From how many samples are two tanh neurons recovered? Predicted: 6.
architecture = "two-layer"    # of the model that is fitted
target = "separated"          # neurons far apart
strategy = ["lm", "recover"]
d = 2                         # inputs
k = 2                         # neurons of the target
width = [2, 3]                # neurons of the model
n = { from = 4, to = 9 }      # samples
seed = { from = 0, to = 19 }
[options]                     # what else the runner takes
starts = 256
"""
"""A spec, as the help shows it."""

_FILE = click.argument("file", type=click.Path(path_type=Path))
_VERBATIM = "\b\n"  # click: do not wrap this paragraph


@click.group(
    cls=_SpecFirst,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"{_VERBATIM}A SPEC:\n{EXAMPLE}",
)
def sweep() -> None:
    """Run a grid of training runs, and look at its results.

    `sweep SPEC.toml` is short for `sweep run SPEC.toml`. The cells of a SPEC are the product of its lists. A
    SPEC with blocks [[grid]] has one product for each block, with the keys above the blocks added to each.
    The keys are those of llr.recovery.experiment.Setting. `run --runner` names other code to run; [options]
    holds keys of that code.
    """


@sweep.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file of results.  [default: SPEC with the suffix .sqlite]",
)
@click.option("--jobs", type=POSITIVE, default=1, show_default=True, help="Processes to start.")
@click.option(
    "--threads",
    type=POSITIVE,
    help="Threads of each cell; its last bits depend on them.  [default: that of the file, or 1]",
)
@click.option(
    "--runner",
    metavar="MODULE:CALLABLE",
    help=f"The code that computes a cell.  [default: that of the file, or {DEFAULT_RUNNER}]",
)
@click.option("--retry-failed", is_flag=True, help="Compute failed cells again.")
@click.option(
    "--extend", is_flag=True, help="Add the cells of SPEC to the results of another SPEC."
)
@click.option(
    "--lease",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time without a sign of life after which a process counts as dead.",
)
@reported
def run(
    spec: Path,
    out: Path | None,
    jobs: int,
    threads: int | None,
    runner: str | None,
    retry_failed: bool,
    extend: bool,
    lease: float,
) -> None:
    """Compute the cells of SPEC that the file of results lacks; exit code 1 if some failed.

    The same command continues a sweep that was killed. Under torchrun, all processes share the cells.
    """
    out = spec.with_suffix(".sqlite") if out is None else out
    require_other(out, "--out", spec, "SPEC")  # also the default
    with resumable():
        end = run_sweep(
            spec,
            out,
            runner=runner,
            threads=threads,
            jobs=jobs,
            retry_failed=retry_failed,
            extend=extend,
            lease=lease,
            progress=logging(),
        )
    if end is None:
        return  # under torchrun, a process that does not write
    click.echo(f"{end}; wrote {out}")
    if end.failed:
        click.echo(f"`status {out}` shows the errors, `--retry-failed` tries again", err=True)
        sys.exit(1)


@sweep.command()
@_FILE
@click.option("--tracebacks", is_flag=True, help="Show all failures with their tracebacks.")
@reported
def status(file: Path, tracebacks: bool) -> None:
    """Show how many cells of FILE are done, and which failed."""
    with read_store(file) as store:
        click.echo(f"{tally(store)}")
        click.echo(f"runner {store.runner}, {counted(store.threads, 'thread')} a cell")
        failures = [row for row in store.rows() if row.status == "failed"]
    for row in failures if tracebacks else failures[:_FAILURES_SHOWN]:
        click.echo(_failure(row, tracebacks))
    if len(failures) > _FAILURES_SHOWN and not tracebacks:
        click.echo(f"and {len(failures) - _FAILURES_SHOWN} more; --tracebacks shows all")


def _failure(row: Row, traceback: bool) -> str:
    assert row.outcome is not None
    text = f"failed  {row.cell}: {row.outcome.error}"
    return f"{text}\n{row.outcome.traceback}" if traceback and row.outcome.traceback else text


@sweep.command()
@_FILE
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--provenance",
    is_flag=True,
    help="Add the process, time and duration of each cell.",
)
@reported
def export(file: Path, table: Path, provenance: bool) -> None:
    """Write the results in FILE as TABLE, .csv or .parquet."""
    require_table_format(table)
    with read_store(file) as store:
        count = export_table(store, table, provenance=provenance)
    click.echo(f"wrote {table}, {counted(count, 'row')}")


@sweep.command()
@_FILE
@click.argument("figure", type=click.Path(path_type=Path))
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only cells with this coordinate; may be repeated.",
)
@click.option(
    "--success", default="recovered", show_default=True, help="The result whose mean is drawn."
)
@click.option(
    "--predicted",
    default="predicted",
    show_default=True,
    help="The result that holds the predicted sample size.",
)
@reported
def plot(file: Path, figure: Path, where: tuple[str, ...], success: str, predicted: str) -> None:
    """Draw how often targets are recovered from n samples, as FIGURE: .png, .pdf or .svg.

    One width gives lines over n; several widths give a heat map over n and width.
    """
    drawing = plotting(str(figure), "recovery.sweep.figure")
    with read_store(file) as store:
        rows = drawing.selected(store.rows(), where)
    drawing.save(drawing.draw(rows, success=success, predicted=predicted), figure)
    click.echo(f"wrote {figure}")


@sweep.command(hidden=True)
@click.argument("host")
@click.argument("port", type=int)
@click.argument("prefix")
@click.argument("name")
@reported
def worker(host: str, port: int, prefix: str, name: str) -> None:
    """Compute cells for the process that started this one and holds its standard input open."""
    work(Address(host, port, prefix), name, own=True)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that no finished cell is lost."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("finished cells are kept; the same command continues from there", err=True)
        raise


def logging() -> _Log | None:
    """A function that writes a line to the log now and then; None on a terminal, which has a bar."""
    return None if console_beside("-").is_terminal else _Log()


class _Log:
    """Write the state of a sweep to standard error, at most every half minute."""

    def __init__(self) -> None:
        self._due = _BETWEEN_LINES

    def __call__(self, now: Tally) -> None:
        if now.left and now.seconds >= self._due:
            self._due = now.seconds + _BETWEEN_LINES
            click.echo(f"{now}, {now.remaining}", err=True)
