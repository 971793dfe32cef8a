"""Options that commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from llr.cli.source import Source
from llr.inputs.activations import ACTIVATIONS
from llr.inputs.files.layout import Layout
from llr.ranks.certificates.certify import HIGHEST_BITS, LOWEST_BITS, MOST_BITS

_Command = TypeVar("_Command", bound=Callable[..., Any])
Option = Callable[[_Command], _Command]

POSITIVE = click.IntRange(min=1)

json_option: Option = click.option(
    "--json", "json_out", metavar="FILE", help="The result as JSON; '-' for standard output."
)
weights_out_option: Option = click.option(
    "--out", type=click.Path(path_type=Path), help="The network's weights: a .safetensors file."
)
nonlinear_option: Option = click.option(
    "--activation",
    type=click.Choice([name for name in ACTIVATIONS if name != "identity"]),
    default="tanh",
    show_default=True,
)
bias_option: Option = click.option(
    "--bias/--no-bias", default=True, show_default=True, help="Hidden biases."
)
output_bias_option: Option = click.option(
    "--output-bias/--no-output-bias", default=False, show_default=True
)


def plot_option(figure: str) -> Option:
    """The option ``--plot``; `figure` says in the help what it draws."""
    return click.option(
        "--plot", "plot_out", metavar="FILE", help=f"Draw {figure}: .png, .pdf or .svg."
    )


def max_bits_option(help_text: str) -> Callable[[_Command], _Command]:
    """The option ``--max-bits``, with the same limits for every command."""
    return click.option(
        "--max-bits",
        type=click.IntRange(LOWEST_BITS, HIGHEST_BITS),
        metavar="INTEGER",
        default=MOST_BITS,
        show_default=True,
        help=help_text,
    )


def table_options(command: _Command) -> _Command:
    """Add the options of tables in text files; the command gets them as one argument `layout`."""

    @functools.wraps(command)
    def with_layout(
        sep: str | None,
        decimal: str | None,
        header: bool | None,
        columns: str | None,
        **others: Any,
    ) -> Any:
        return command(layout=Layout(sep, decimal, header, columns), **others)

    options = (
        click.option(
            "--sep", metavar="MARK", help="Separator of a text table: , ; | tab or space."
        ),
        click.option("--decimal", metavar="MARK", help="Decimal mark of a text table: . or ,"),
        click.option(
            "--header/--no-header",
            default=None,
            help="Whether the first line of a text table holds names.  [default: detected]",
        ),
        click.option(
            "--columns",
            metavar="LIST",
            help="Columns of a text table to read, such as 2-4,7 or age,dose.  [default: all]",
        ),
    )
    decorated: Any = with_layout
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def model_options(
    inputs: bool, *, required: bool = True, params: bool = True
) -> Callable[[_Command], _Command]:
    """Add the options of a model; the command gets them as a `Source`, its first argument.

    Args:
        inputs: whether the command takes samples.
        required: whether the samples have to be given.
        params: whether parameters can be selected.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_source(
            model: str,
            weights: Path | None,
            key: str | None,
            activation: str | None,
            seed: int,
            params: tuple[str, ...] = (),
            inputs: Path | None = None,
            inputs_key: str | None = None,
            layout: Layout | None = None,
            **others: Any,
        ) -> Any:
            source = Source(
                model,
                weights,
                params,
                activation,
                seed,
                inputs,
                key,
                layout or Layout(),
                inputs_key,
            )
            return command(source, **others)

        decorated: Any = with_source
        if inputs:
            decorated = table_options(decorated)
        for option in reversed(_options(inputs, required, params)):
            decorated = option(decorated)
        return decorated

    return decorate


def _options(inputs: bool, required: bool, params: bool) -> list[Callable[[Any], Any]]:
    file = click.Path(path_type=Path)
    options = [click.argument("model")]
    if inputs:
        kinds = (
            "Samples: .csv, .tsv, .txt, .npy, .npz, .pt, .safetensors; - is text on standard input."
        )
        default = "" if required else "  [default: drawn]"
        options += [
            click.option("--inputs", required=required, type=file, help=kinds + default),
            click.option(
                "--inputs-key",
                metavar="NAME",
                help="Array of --inputs, if there are several.",
            ),
        ]
    options += [
        click.option(
            "--weights",
            type=file,
            help="State dict: .safetensors, or .pt/.pth/.ckpt of plain tensors.",
        ),
        click.option("--key", metavar="NAME", help="Key of the state dict in --weights."),
    ]
    if params:
        selection = "Only parameters whose names match; may be repeated."
        options.append(click.option("--params", multiple=True, metavar="GLOB", help=selection))
    return [
        *options,
        click.option(
            "--activation",
            type=click.Choice(list(ACTIVATIONS)),
            help="Activation of an mlp: model.  [default: tanh]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            metavar="INTEGER",
            help="Seed of random weights.",
        ),
    ]
