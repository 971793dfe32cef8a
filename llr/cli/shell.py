"""Errors and outputs, which all commands handle in the same way."""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch
from rich.console import Console
from torch import nn

import llr
from llr.cli.files import require_outputs
from llr.cli.streams import PlainConsole, standard_streams
from llr.inputs.files.writing import write_atomic

OPEN = 3
"""The exit code where there is no definite answer."""

# What llr, torch and the system raise about input. Their messages are shown without the type.
_EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError)

Write = Callable[[str | Path], None]
"""Writes a result to the file of this name."""

# Exceptions whose messages are about the arguments of llr's functions.
_OF_ARGUMENTS = (ValueError, TypeError, TimeoutError)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn exceptions into one line on stderr and exit code 2, Ctrl-C into exit code 130.

    The names of all output files are checked before the command begins: see :mod:`llr.cli.files`.
    """

    @click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
    @functools.wraps(command)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings(), standard_streams():
                warnings.showwarning = _show_warning
                require_outputs(kwargs)
                command(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit):
            raise  # click handles these
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except SystemExit as err:
            if _is_ours(err):
                raise
            _fail(
                RuntimeError(f"the model's code ended the program, sys.exit({err.code!r})"), debug
            )
        except Exception as err:  # the code of a model may raise anything
            _fail(err, debug)

    return wrapper


_OURS = ("llr", "__main__", "click")


def _fail(err: Exception, debug: bool) -> None:
    with standard_streams():
        if debug:
            click.echo(traceback.format_exc(), err=True, nl=False)
        text = _one_line(err)
        click.echo(
            f"error: {with_option_names(text) if isinstance(err, _OF_ARGUMENTS) else text}",
            err=True,
        )
    sys.exit(2)


# What messages call the functions of Python, and the words of the command for it.
_IN_SHELL = {
    r"`?llr\.embedding\.reduce`?(\(\w+\))?": "`llr reduce`",
    r"`?llr\.model_rank`?(\(\w+\))?": "`llr model-rank`",
    r"`?llr\.theory\.tangent_dimension`?(\(\w+\))?": "`llr theory model`",
    r"register the class with llr\.exact\.chain\.register, or ": "",
}


def with_option_names(text: str) -> str:
    """Replace names of arguments and functions in a message by options of the current command, and commands.

    ``noise_std=`` becomes ``--noise-std``, ``max_bits=64`` becomes ``--max-bits 64``, and ``seed is -5`` at
    the beginning of a message becomes ``--seed is -5``.
    """
    for python, shell in _IN_SHELL.items():
        text = re.sub(python, shell, text)
    context = click.get_current_context(silent=True)
    for option in context.command.params if context else ():
        if not isinstance(option, click.Option) or not option.name:
            continue
        on, off = option.opts[-1], (option.secondary_opts or [""])[0]
        name = rf"(?<![\w.=-]){option.name}"
        if option.is_flag:
            text = re.sub(f"{name}=(None)?(?=\\W|$)", on, text)
            text = re.sub(f"{name}=True\\b", on, text)
            text = re.sub(f"{name}=False\\b", off or f"no {on}", text)
            continue
        text = re.sub(f"{name}=[\"'](\\w+)[\"']", f"{on} \\1", text)
        text = re.sub(f"{name}=(?=[\\w'\"+.-])", f"{on} ", text)
        text = re.sub(f"{name}=", on, text)
        if re.match(f"{option.name} (is|are|has|pattern) ", text):
            text = re.sub(",? or None\\b", f", or no {on}", on + text[len(option.name) :])
    return re.sub(r'method="(\w+)"', r"`llr rank --method \1`", text)


def _is_ours(end: SystemExit) -> bool:
    """Whether ``sys.exit`` was called by llr, or by click for llr, and not by a model."""
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


def console_beside(json_out: str | None) -> Console:
    """The console for human-readable text: standard output, or standard error if JSON goes to stdout."""
    return PlainConsole(stderr=json_out == "-", highlight=False, soft_wrap=True)


def deliver(lines: Sequence[str], files: Sequence[tuple[str | Path | None, Write]]) -> None:
    """Print a result as text and write its files. A failure does not keep the other files from being written.

    Args:
        lines: the text, for standard output, or for standard error if a file is ``-``.
        files: names of files, and what writes each; those without a name are skipped.

    Raises:
        OSError: something could not be written. Exceptions of the writers pass.
    """
    console = console_beside("-" if any(str(path) == "-" for path, _ in files) else None)
    failures: list[Exception] = []
    try:
        for line in lines:
            console.print(line, markup=False)
    except OSError as err:
        failures.append(err)
    silent = bool(failures)
    for path, write in files:
        if path is None:
            continue
        try:
            write(path)
            if str(path) != "-" and not silent:
                console.print(f"wrote  {path}", markup=False)
        except Exception as err:  # raised below, after the other files
            failures.append(err)
    for other in failures[1:]:
        click.echo(f"error: {_one_line(other)}", err=True)
    if failures:
        raise failures[0]


def as_json(document: dict[str, Any]) -> Write:
    """Return what writes a result with the versions of llr and torch, to a file or, for ``-``, to stdout."""
    versions = {"llr": llr.__version__, "torch": str(torch.__version__)}

    def write(path: str | Path) -> None:
        text = json.dumps({**document, **versions}, indent=1, allow_nan=False)
        if str(path) == "-":
            click.echo(text)
        else:
            write_atomic(path, text, devices=True)

    return write


def plotting(plot_out: str | None, module: str = "ranks.figure") -> Any:
    """Import the plotting module if a figure is wanted. Refuse a bad file name before the computation."""
    if plot_out is None:
        return None
    # If matplotlib is missing, the message of this module says how to install it.
    figures = importlib.import_module("llr.ranks.figure")
    figures.require_format(plot_out)
    return importlib.import_module(f"llr.{module}")


def require_weights(path: Path) -> None:
    """Refuse a file name that :func:`save_weights` cannot write, before the computation."""
    if path.suffix != ".safetensors":
        raise ValueError(f"--out is {str(path)!r}; expected a name ending in .safetensors")


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Write a model's state dict. A failure leaves no partial file."""
    require_weights(Path(path))
    state = {name: t.detach().contiguous().clone() for name, t in net.state_dict().items()}
    write_atomic(path, safetensors.torch.save(state), devices=True)
