"""``python -m llr.recovery.sweep``, which torchrun can also start."""

from llr.cli.sweep import sweep

if __name__ == "__main__":
    sweep(prog_name="python -m llr.recovery.sweep")
