"""The ``llr`` command's first lines, outside of the package: Ctrl-C is heard while that imports torch."""

import sys


def main() -> int:
    """Run the command; exit code 130 for Ctrl-C at any time."""
    try:
        from llr.cli.main import main as command  # noqa: PLC0415 - it is what takes long

        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0
