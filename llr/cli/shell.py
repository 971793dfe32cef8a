"""What the commands of the command line share: errors, outputs."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch
from rich.console import Console
from torch import nn

from llr.cli.source import Source as Source
from llr.cli.source import model_options as model_options
from llr.inputs.files.writing import require_directory, require_writable, write_atomic
from llr.ranks.info import VERSION

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# What llr, torch and the system raise about input; their messages speak for themselves.
_EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError)

# The parameters of commands that name what is written, and how people write them.
_OUTPUTS = {
    "json_out": "--json",
    "plot_out": "--plot",
    "out": "--out",
    "table": "TABLE",
    "figure": "FIGURE",
}


class OutputDirectory(click.Path):
    """The type of an option that names a directory of results, made where it is missing."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn exceptions into one line on stderr and exit code 2, Ctrl-C into exit code 130.

    Before the command begins, everything that it is to write is checked.
    """

    @click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
    @functools.wraps(command)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                _require_outputs(kwargs)
                command(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own business
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except SystemExit as err:
            if _is_ours(err):
                raise
            _fail(
                RuntimeError(f"the model's code ended the program, sys.exit({err.code!r})"), debug
            )
        except Exception as err:  # models are other people's code: it may be anything
            _fail(err, debug)

    return wrapper


_OURS = ("llr", "__main__", "rich", "click")


def _fail(err: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {_one_line(err)}", err=True)
    sys.exit(2)


def _is_ours(end: SystemExit) -> bool:
    """Whether the program is ended by llr, or by what prints for it (a closed pipe), not by a model."""
    frames = [frame for frame, _ in traceback.walk_tb(end.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).partition(".")[0] in _OURS


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _one_line(err: Exception) -> str:
    text = " ".join(str(err).split())
    if isinstance(err, OSError) and err.strerror:
        return err.strerror if err.filename is None else f"{err.filename}: {err.strerror}"
    if isinstance(err, _EXPECTED) and text:
        return text
    return f"{type(err).__name__}: {text} (--debug shows where)"


def _require_outputs(arguments: dict[str, Any]) -> None:
    """Refuse what cannot be written, before the work."""
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun only the first process writes
    kinds = {
        parameter.name: parameter.type for parameter in click.get_current_context().command.params
    }
    files: dict[Path, str] = {}
    if arguments.get("json_out") == "-" and sys.stdout is None:
        raise ValueError("--json -: standard output is closed")
    for name, option in _OUTPUTS.items():
        path = arguments.get(name)
        if not isinstance(path, str | Path) or str(path) == "-":
            continue
        if isinstance(kinds.get(name), OutputDirectory):
            require_directory(path, option)
            continue
        require_writable(path, option)
        other = files.setdefault(Path(path).resolve(), option)
        if other != option:
            raise ValueError(
                f"{option} and {other} are both {str(path)!r}; expected different files"
            )


def console_beside(json_out: str | None) -> Console:
    """Where people read: standard output, or standard error if JSON takes that one."""
    return Console(stderr=json_out == "-", highlight=False, soft_wrap=True)


def write_json(path: str | None, document: dict[str, Any]) -> None:
    """Write a result and the versions that made it; '-' is standard output, None nowhere."""
    if path is None:
        return
    versions = {"llr": VERSION, "torch": str(torch.__version__)}
    text = json.dumps({**document, **versions}, indent=1, allow_nan=False)
    if path == "-":
        click.echo(text)
    else:
        write_atomic(path, text)


def plotting(plot_out: str | None, module: str = "ranks.figure") -> Any:
    """The plotting module if a figure is wanted; refuses a bad name before the work, not after."""
    if plot_out is None:
        return None
    figures = importlib.import_module("llr.ranks.figure")  # says how to get matplotlib
    figures.require_format(plot_out)
    return importlib.import_module(f"llr.{module}")


def require_weights(path: Path) -> None:
    """Refuse a name that :func:`save_weights` cannot write, before the work."""
    if path.suffix != ".safetensors":
        raise ValueError(f"--out is {str(path)!r}; expected a name ending in .safetensors")


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a model's state dict, whole or not at all."""
    require_weights(path)
    state = {name: t.detach().contiguous().clone() for name, t in net.state_dict().items()}
    write_atomic(path, safetensors.torch.save(state))
