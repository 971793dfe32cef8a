"""The ``llr`` command's first lines, outside of the package: Ctrl-C is heard while that imports torch."""

import atexit
import os
import signal
import sys


def main() -> int:
    """Run the command; exit code 130 for Ctrl-C at any time."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        # Raised in the middle of other packages' imports, KeyboardInterrupt may come out as anything.
        signal.signal(signal.SIGINT, _leave)
        # Registered first, so called last: later Python restores the system's handler, which kills.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from llr.cli.main import main as command  # noqa: PLC0415 - it is what takes long

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        if heard:
            signal.signal(signal.SIGINT, _leave)  # until Python has ended
    return 0


def _leave(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
