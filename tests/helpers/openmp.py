"""Imported before torch: threads that wait for work are not to spin.

Several processes run tests side by side, each with as many threads as there are cores. Threads of OpenMP keep
a core busy while they wait, which made some files take ten times as long.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
