"""The ``llr`` command: its commands, and the modules that define them."""

from __future__ import annotations

import importlib
from typing import Any

import click

import llr
from llr.cli.groups import Group
from llr.cli.streams import standard_streams

# A command's module is imported when the command runs: `llr --help` imports none of them.
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
"""For each command its module and function, and its line in the help."""


class _Commands(Group):
    """The group of commands. Its help text is written to standard output, so errors there are handled."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments. Click answers --help and --version of the group itself here."""
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
        """Import and return the command of this name; None if there is none."""
        if name not in COMMANDS:
            return super().get_command(ctx, name)
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"llr.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names of the commands and what they do."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(llr.__version__, prog_name="llr")
def main() -> None:
    """How many samples a network needs: ranks of Jacobians, and how reliable they are."""
