"""Imported before torch: makes idle OpenMP threads sleep instead of spin.

Several processes run tests in parallel, each with as many threads as there are cores. Spinning threads keep
cores busy, which made some test files ten times slower.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
