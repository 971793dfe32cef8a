"""The options that say where a model, its weights and its samples come from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import Tensor, nn

from llr.cli.output import printing_apart
from llr.inputs.activations import ACTIVATIONS
from llr.inputs.files.layout import Layout
from llr.inputs.files.load import as_taken_by, converted, load_inputs
from llr.models.load import load_model, names_widths

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Source:
    """Where a model and its samples come from, as the options say."""

    model: str
    weights: Path | None
    params: tuple[str, ...]
    activation: str | None
    seed: int
    inputs: Path | None = None
    key: str | None = None
    layout: Layout = field(default_factory=Layout)
    inputs_key: str | None = None

    def load(self, dtype: torch.dtype | None = torch.float64) -> nn.Module:
        """The model in evaluation mode; None keeps its own precision. What its code prints goes to stderr."""
        if self.activation is not None and not names_widths(self.model):
            raise ValueError("--activation is for mlp: models; others bring their own")
        if self.key is not None and self.weights is None:
            raise ValueError("--key is for --weights; --inputs-key names an array of --inputs")
        if self.inputs is None and (self.inputs_key or self.layout.given):
            option = "--inputs-key" if self.inputs_key else self.layout.given[0]
            raise ValueError(f"{option} is for --inputs, which are not given")
        with printing_apart():
            net = load_model(
                self.model,
                weights=self.weights,
                key=self.key,
                activation=self._activation or "tanh",
                seed=self.seed,
                dtype=dtype,
            )
        return net.eval()

    def samples(self, dtype: torch.dtype, net: nn.Module) -> Tensor:
        """What --inputs names, in `dtype`; integers stay integers if that is what `net` takes."""
        assert self.inputs is not None
        name = f"inputs {'standard input' if str(self.inputs) == '-' else self.inputs}"
        x = load_inputs(self.inputs, layout=self.layout, key=self.inputs_key)
        with printing_apart():
            x = as_taken_by(net, x, dtype, name)
        return converted(x, dtype, name) if x.is_floating_point() else x

    @property
    def _activation(self) -> str | None:
        return self.activation or ("tanh" if names_widths(self.model) else None)

    def line(self, net: nn.Module) -> str:
        """The model for people, and where its weights are from: random ones are said aloud."""
        parts = [f"model  {self.model}", self._activation or type(net).__name__]
        if self.weights is not None:
            parts.append(f"weights {self.weights}")
        elif names_widths(self.model):
            parts.append(f"RANDOM weights (seed {self.seed}); give --weights for yours")
        else:
            parts.append(f"weights as built (seed {self.seed}); --weights loads others")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, beside the result."""
        built = "random" if names_widths(self.model) else "as built"
        return {
            "model": self.model,
            "activation": self._activation,
            "weights": built if self.weights is None else str(self.weights),
            "seed": self.seed,
            "params": list(self.params) or None,
            "inputs": None if self.inputs is None else str(self.inputs),
        }


def table_options(command: _Command) -> _Command:
    """The options of tables in text files, as one argument `layout`."""

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
        click.option("--sep", metavar="MARK", help="Of text, between cells: , ; | tab or space."),
        click.option("--decimal", metavar="MARK", help="Of text, the decimal mark: . or ,"),
        click.option(
            "--header/--no-header",
            default=None,
            help="Of text: whether the first line holds names.  [default: where that is certain]",
        ),
        click.option(
            "--columns",
            metavar="LIST",
            help="Of text: columns to read, such as 2-4,7 or age,dose.  [default: all]",
        ),
    )
    decorated: Any = with_layout
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


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
            click.option("--inputs-key", metavar="NAME", help="Of several arrays in --inputs."),
        ]
    options += [
        click.option(
            "--weights",
            type=file,
            help="State dict: .safetensors, or .pt/.pth/.ckpt of plain tensors.",
        ),
        click.option("--key", metavar="NAME", help="Where in --weights the state dict is."),
    ]
    if params:
        selection = "Only parameters whose names match; may be repeated."
        options.append(click.option("--params", multiple=True, metavar="GLOB", help=selection))
    return [
        *options,
        click.option(
            "--activation",
            type=click.Choice(list(ACTIVATIONS)),
            help="Of an mlp: model.  [default: tanh]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            metavar="INTEGER",
            help="Of random weights.",
        ),
    ]
