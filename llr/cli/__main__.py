"""``python -m llr.cli``."""

from llr.cli.main import main

if __name__ == "__main__":
    main()
