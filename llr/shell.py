"""What the commands of the command line share: errors, the options that describe a model, outputs."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

import llr
from llr.activations import ACTIVATIONS
from llr.files import load_inputs, load_model, write_atomic

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# What llr, torch and the system raise about input; their messages speak for themselves.
_EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def reported(command: Callable[..., None]) -> Callable[..., None]:
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


@dataclass(frozen=True)
class Source:
    """Where a model and its samples come from, as the options say."""

    model: str
    weights: Path | None
    params: tuple[str, ...]
    activation: str | None
    seed: int
    inputs: Path | None = None

    def load(self, dtype: torch.dtype | None = torch.float64) -> nn.Module:
        """The model in evaluation mode; None keeps its own precision."""
        if self.activation is not None and not self.model.startswith("mlp:"):
            raise ValueError("--activation is for mlp: models; others bring their own")
        activation = self.activation or "tanh"
        net = load_model(
            self.model, weights=self.weights, activation=activation, seed=self.seed, dtype=dtype
        )
        return net.eval()

    def samples(self, dtype: torch.dtype) -> Tensor:
        """What --inputs names."""
        assert self.inputs is not None
        return load_inputs(self.inputs, dtype)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, beside the result."""
        return {
            "model": self.model,
            "activation": self.activation,
            "weights": None if self.weights is None else str(self.weights),
            "seed": self.seed,
            "params": list(self.params) or None,
            "inputs": None if self.inputs is None else str(self.inputs),
        }


def model_options(
    inputs: bool, *, required: bool = True, params: bool = True
) -> Callable[[_Command], _Command]:
    """The options that become a `Source`, the command's first argument.

    Args:
        inputs: whether there are samples.
        required: whether they have to be given.
        params: whether parameters can be selected.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_source(
            model: str,
            weights: Path | None,
            activation: str | None,
            seed: int,
            params: tuple[str, ...] = (),
            inputs: Path | None = None,
            **others: Any,
        ) -> Any:
            return command(Source(model, weights, params, activation, seed, inputs), **others)

        options = [
            click.argument("model"),
            click.option(
                "--weights",
                type=click.Path(path_type=Path),
                help="State dict: .safetensors, or .pt/.pth of plain tensors.",
            ),
            click.option(
                "--activation",
                type=click.Choice(list(ACTIVATIONS)),
                help="Of an mlp: model.  [default: tanh]",
            ),
            click.option("--seed", default=0, show_default=True, help="Of random weights."),
        ]
        if params:
            options.insert(
                2,
                click.option(
                    "--params",
                    multiple=True,
                    metavar="GLOB",
                    help="Only parameters whose names match; may be repeated.",
                ),
            )
        if inputs:
            options.insert(
                1,
                click.option(
                    "--inputs",
                    required=required,
                    type=click.Path(path_type=Path),
                    help="Samples: .npy, .csv, or .pt with one tensor."
                    + ("" if required else "  [default: normal ones]"),
                ),
            )
        decorated: Any = with_source
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def console_beside(json_out: str | None) -> Console:
    """Where people read: standard output, or standard error if JSON takes that one."""
    return Console(stderr=json_out == "-", highlight=False, soft_wrap=True)


def write_json(path: str | None, document: dict[str, Any]) -> None:
    """Write a result and the versions that made it; '-' is standard output, None nowhere."""
    if path is None:
        return
    versions = {"llr": llr.__version__, "torch": str(torch.__version__)}
    text = json.dumps({**document, **versions}, indent=1, allow_nan=False)
    if path == "-":
        click.echo(text)
    else:
        write_atomic(path, text)


def plotting(plot_out: str | None, module: str = "plot") -> Any:
    """The plotting module if a figure is wanted; refuses a bad name before the work, not after."""
    if plot_out is None:
        return None
    from llr import plot  # noqa: PLC0415 - matplotlib is optional

    plot.require_format(plot_out)
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
