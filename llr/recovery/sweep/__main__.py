"""``python -m llr.recovery.sweep``, which torchrun can start as well."""

from llr.cli.sweep import sweep

if __name__ == "__main__":
    sweep(prog_name="python -m llr.recovery.sweep")
