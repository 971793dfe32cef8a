"""Sweeps: a grid of cells, computed by any number of processes, and kept in one file.

See :func:`run` for what it promises. On the command line: ``python -m llr.recovery.sweep run spec.toml``, or
``torchrun --nproc-per-node 8 -m llr.recovery.sweep run spec.toml``.
"""

from llr.recovery.sweep.run import Tally as Tally
from llr.recovery.sweep.run import run as run
from llr.recovery.sweep.run import tally as tally
from llr.recovery.sweep.runner import Outcome as Outcome
from llr.recovery.sweep.spec import COORDINATES as COORDINATES
from llr.recovery.sweep.spec import Cell as Cell
from llr.recovery.sweep.spec import Spec as Spec
from llr.recovery.sweep.store import Row as Row
from llr.recovery.sweep.store import Store as Store
from llr.recovery.sweep.store import StoreError as StoreError
from llr.recovery.sweep.store import open_store as open_store
from llr.recovery.sweep.store import read_store as read_store
from llr.recovery.sweep.table import export as export
from llr.recovery.sweep.table import table as table
