"""The command line: ``llr demo``, ``llr rank``, ``llr info``, ``llr selftest``."""

from __future__ import annotations

import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

import llr
from llr import demo as demo_module
from llr.files import ACTIVATIONS, load_inputs, load_model, write_atomic
from llr.info import info as collect_info
from llr.info import selftest as run_selftest
from llr.rank import rank as rank_of

_DTYPES = {"float64": torch.float64, "float32": torch.float32}

# What llr, torch and the system raise about input; their messages speak for themselves.
_EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError)


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn exceptions into one line on stderr and exit code 2, Ctrl-C into exit code 130."""

    @click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
    @functools.wraps(command)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own business
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except Exception as err:  # models are other people's code: it may be anything
            if debug:
                traceback.print_exc()
            click.echo(f"error: {_one_line(err)}", err=True)
            sys.exit(2)

    return wrapper


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _one_line(err: Exception) -> str:
    text = " ".join(str(err).split())
    if isinstance(err, _EXPECTED) and text:
        return text
    return f"{type(err).__name__}: {text} (--debug shows where)"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(llr.__version__, prog_name="llr")
def main() -> None:
    """How many samples a network needs: Jacobians, their rank, and how sure it is."""


@main.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Directory of ranks.json and spectra.png.",
)
@click.option("--quick", is_flag=True, help="Only three of the networks.")
@_reported
def demo(out: Path, quick: bool) -> None:
    """Ranks of tanh networks of growing width, trained on real data."""
    demo_module.run(out, quick=quick)


@main.command()
@click.argument("model")
@click.option(
    "--inputs",
    required=True,
    type=click.Path(path_type=Path),
    help="Samples: .npy, .csv, or .pt with one tensor.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="State dict: .safetensors, or .pt/.pth of plain tensors.",
)
@click.option(
    "--params",
    multiple=True,
    metavar="GLOB",
    help="Only parameters whose names match; may be repeated.",
)
@click.option(
    "--activation", type=click.Choice(list(ACTIVATIONS)), help="Of an mlp: model.  [default: tanh]"
)
@click.option("--seed", default=0, show_default=True, help="Of random weights.")
@click.option(
    "--dtype",
    type=click.Choice([*_DTYPES, "model"]),
    default="float64",
    show_default=True,
    help="Precision; 'model' keeps the model's own.",
)
@click.option("--rtol", type=float, help="Tolerance relative to the largest singular value.")
@click.option("--atol", type=float, help="Absolute tolerance.")
@click.option("--chunk-size", type=click.IntRange(min=1), help="Samples at a time.")
@click.option(
    "--json", "json_out", metavar="FILE", help="Write the result as JSON; '-' for standard output."
)
@click.option("--plot", "plot_out", metavar="FILE", help="Draw the spectrum: .png, .pdf or .svg.")
@_reported
def rank(
    model: str,
    inputs: Path,
    weights: Path | None,
    params: tuple[str, ...],
    activation: str | None,
    seed: int,
    dtype: str,
    rtol: float | None,
    atol: float | None,
    chunk_size: int | None,
    json_out: str | None,
    plot_out: str | None,
) -> None:
    """Rank of the Jacobian of MODEL with respect to its parameters, at given samples.

    MODEL is widths, such as mlp:10-64-64-1, or module:callable, such as mypkg.models:build, called
    without arguments; or module:name of a model that exists. It is put into evaluation mode.
    """
    if activation is not None and not model.startswith("mlp:"):
        raise ValueError("--activation is for mlp: models; others bring their own")
    plotting = _plotting(plot_out)
    precision = _DTYPES.get(dtype)
    net = load_model(
        model, weights=weights, activation=activation or "tanh", seed=seed, dtype=precision
    )
    net.eval()
    x = load_inputs(inputs, precision or _own_dtype(net))
    result = rank_of(
        net,
        x,
        params=list(params) or None,
        dtype=None if dtype == "model" else precision,
        rtol=rtol,
        atol=atol,
        chunk_size=chunk_size,
    )
    if plotting is not None:
        assert plot_out is not None
        plotting.save(result.plot().figure, plot_out)
    if json_out is not None:
        source = {
            "model": model,
            "activation": activation,
            "weights": None if weights is None else str(weights),
            "seed": seed,
            "params": list(params) or None,
            "inputs": str(inputs),
            "samples": len(x),
        }
        versions = {"llr": llr.__version__, "torch": str(torch.__version__)}
        text = json.dumps({**source, **result.to_dict(), **versions}, indent=1, allow_nan=False)
        if json_out == "-":
            click.echo(text)
        else:
            write_atomic(json_out, text)
    # With JSON on standard output, people read the standard error stream.
    console = Console(stderr=json_out == "-", highlight=False, soft_wrap=True)
    outputs = result.n_rows // len(x)
    console.print(f"model  {model}, {type(net).__name__}", markup=False)
    console.print(f"J      {len(x)} samples x {outputs} outputs x {result.n_params} parameters")
    console.print(str(result), markup=False)
    for written in (json_out, plot_out):
        if written not in (None, "-"):
            console.print(f"wrote  {written}", markup=False)


def _plotting(plot_out: str | None) -> Any:
    """The plotting module if a figure is wanted; refuses a bad name before the work, not after."""
    if plot_out is None:
        return None
    from llr import plot  # noqa: PLC0415 - matplotlib is optional

    plot.require_format(plot_out)
    return plot


def _own_dtype(net: torch.nn.Module) -> torch.dtype:
    floating = (p.dtype for p in net.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


@main.command()
@_reported
def info() -> None:
    """Versions, the backend in use and why, and devices."""
    click.echo(str(collect_info()))


@main.command()
@_reported
def selftest() -> None:
    """Check the native code against torch on this machine; exit code 1 if they differ."""
    outcome = run_selftest()
    click.echo(str(outcome))
    if not outcome.ok:
        sys.exit(1)


if __name__ == "__main__":
    main()
