"""The ``llr`` command: which commands there are, and where they are written."""

from __future__ import annotations

import importlib
from typing import Any

import click

import llr
from llr.cli.streams import standard_streams

# A command's module is imported when that command runs: `llr --help` needs none of them.
COMMANDS = {
    "certify": ("proofs:certify", "Prove a lower bound of a rank, and write the proof."),
    "demo": (
        "demo:demo_command",
        "Ranks of networks of growing width, trained on real data.",
    ),
    "embed": ("theory:embed", "Write a model's function as a wider network."),
    "info": ("machine:info", "Versions, the backend in use and why, and devices."),
    "model-rank": ("ranks:model_rank", "The dimension of a model's tangent space."),
    "rank": ("ranks:rank", "The rank of a model's Jacobian at given samples."),
    "recover": (
        "recovery:recover_command",
        "Find the two-layer network that made a table of data.",
    ),
    "reduce": ("theory:reduce", "Write a model's function as the narrowest network."),
    "reproduce": (
        "recovery:reproduce_command",
        "Run an experiment of the theory, and draw it.",
    ),
    "selftest": (
        "machine:selftest",
        "Check the native code against torch on this machine.",
    ),
    "sweep": ("sweep:sweep", "Run a grid of training runs, and look at its results."),
    "theory": ("theory:theory", "How many samples an architecture's functions need."),
    "verify": ("proofs:verify", "Check a proof that certify wrote."),
}
"""Where each command is, and a line about it."""


class _Commands(click.Group):
    """The commands; the text of --help goes where their results go, and may fail in the same ways."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments: here --help and --version of the group itself are answered."""
        with standard_streams():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with standard_streams():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of this name, imported; None if there is none."""
        if name not in COMMANDS:
            return super().get_command(ctx, name)
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"llr.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and what they do."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(llr.__version__, prog_name="llr")
def main() -> None:
    """How many samples a network needs: Jacobians, their rank, and how sure it is."""
