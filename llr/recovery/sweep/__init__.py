"""Sweeps: a grid of cells, computed by any number of processes, with all results in one file.

See :meth:`Spec.parse` for the format of a grid, and :func:`run` for what a run guarantees. On the command
line use ``llr sweep spec.toml``, whose ``--help`` shows a spec; on several machines
``torchrun --nproc-per-node 8 -m llr.recovery.sweep spec.toml``.

Example:
    >>> import tempfile
    >>> from llr.recovery.sweep import Spec, read_store, run, table
    >>> shared = {"architecture": "two-layer", "target": "separated", "strategy": "lm"}
    >>> spec = Spec.parse({**shared, "d": 2, "k": 1, "n": [2, 4], "seed": [0, 1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tally = run(spec, f"{folder}/out.sqlite")
    ...     with read_store(f"{folder}/out.sqlite") as store:
    ...         columns = table(store.rows())
    >>> tally.done, columns["n"], columns["recovered"], columns["predicted"]
    (4, [2, 2, 4, 4], [False, False, True, True], [3, 3, 3, 3])
"""

from llr.recovery.sweep.run import Tally, run, tally
from llr.recovery.sweep.runner import Outcome
from llr.recovery.sweep.spec import COORDINATES, Cell, Spec
from llr.recovery.sweep.store import Row, Store, StoreError, open_store, read_store
from llr.recovery.sweep.table import export, table

__all__ = [
    "COORDINATES",
    "Cell",
    "Outcome",
    "Row",
    "Spec",
    "Store",
    "StoreError",
    "Tally",
    "export",
    "open_store",
    "read_store",
    "run",
    "table",
    "tally",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
