"""Minimum-norm gated ReLU programs against clarabel, cvxpy and scnn; the time to list all patterns.

    python benchmarks/relu.py            # minutes
    python benchmarks/relu.py --quick    # one round of the small case, to check that it runs

Each contender solves 1/2 |sum_j D_j X u_j - y|^2 + r sum_j |u_j| over the same random gates in float64 on
one thread, with r = 1e-3 of the least r whose solution is 0; llr and clarabel also solve the interpolation,
the least sum. They take turns in every round, so that a change of the machine's speed affects all alike; a
table has the median of the ratios to llr within a round, and how far the objective that was reached is
above the best. Packages that are not installed are left out (clarabel; cvxpy and scs; pyscnn, whose loss is
divided by 2n).
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import clock_of, environment, load_warning, table

import llr
from llr import relu
from llr.theory.relu.gated import solve
from llr.theory.relu.groups import Gates

Array = np.ndarray[Any, np.dtype[Any]]
CASES = {"40 x 10, 100 patterns": (40, 10, 100), "100 x 20, 400 patterns": (100, 20, 400)}
LISTS = ((25, 5), (40, 4), (60, 3), (20, 6))
GAP = 1e-8
SCNN_STEPS = 1000
Objective = Callable[[], float]


def optional(name: str) -> Any:
    """A package, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class Case:
    """Samples, gates, and values of a random network of five neurons."""

    def __init__(self, n: int, d: int, p: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.x = generator.standard_normal((n, d))
        self.gates = generator.standard_normal((p, d))
        self.mask = (self.gates @ self.x.T > 0).astype(float)
        hidden = np.maximum(self.x @ generator.standard_normal((d, 5)), 0)
        self.y = hidden @ generator.standard_normal(5)
        zero = np.linalg.norm((self.mask * self.y) @ self.x, axis=1).max()
        self.penalty = 1e-3 * float(zero)

    def objective(self, u: Array, mask: Array | None = None) -> float:
        """The penalized objective over r, so that it is a sum of norms and a penalty."""
        mask = self.mask if mask is None else mask
        off = (mask * (u @ self.x.T)).sum(axis=0) - self.y
        return float(np.linalg.norm(u, axis=1).sum() + off @ off / (2 * self.penalty))

    def ours(self, penalty: float) -> float:
        groups = Gates(torch.from_numpy(self.x), torch.from_numpy(self.mask))
        found = solve(groups, torch.from_numpy(self.y), tolerance=GAP, penalty=penalty)
        if max(found.gap, found.residual) > GAP:
            raise RuntimeError(f"gap {found.gap}, residual {found.residual}")
        return found.value

    def clarabel(self, penalty: float) -> Objective:
        """A run of clarabel's solver; setting it up is not part of it."""
        clarabel, sp = importlib.import_module("clarabel"), importlib.import_module("scipy.sparse")
        (n, d), p = self.x.shape, len(self.mask)
        blocks = np.concatenate([m[:, None] * self.x for m in self.mask], axis=1)
        rest = n if penalty else 0
        first = [sp.csc_matrix(blocks), sp.csc_matrix((n, p))] + (
            [-sp.identity(n)] if penalty else []
        )
        rows, columns = [], []
        for j in range(p):
            rows += range(j * (d + 1), (j + 1) * (d + 1))
            columns += [p * d + j, *range(j * d, (j + 1) * d)]
        size = p * (d + 1) + rest
        cone = sp.csc_matrix((-np.ones(len(rows)), (rows, columns)), shape=(p * (d + 1), size))
        A = sp.vstack([sp.hstack(first), cone]).tocsc()
        b = np.concatenate((self.y, np.zeros(p * (d + 1))))
        c = np.concatenate((np.zeros(p * d), np.ones(p), np.zeros(rest)))
        weights = np.concatenate(
            (np.zeros(p * (d + 1)), np.full(rest, 1 / penalty if penalty else 0))
        )
        cones = [clarabel.ZeroConeT(n), *(clarabel.SecondOrderConeT(d + 1) for _ in range(p))]
        settings = clarabel.DefaultSettings()
        settings.verbose, settings.max_threads = False, 1
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = GAP

        def run() -> float:
            started = clarabel.DefaultSolver(sp.diags(weights).tocsc(), c, A, b, cones, settings)
            before = time.perf_counter()
            found = started.solve()
            self.seconds = time.perf_counter() - before
            if str(found.status) != "Solved":
                raise RuntimeError(f"clarabel: {found.status}")
            return float(found.obj_val)

        return run

    def cvxpy(self, solver: str) -> float:
        """One matrix variable and one norm by rows; a sum over patterns compiles for seconds."""
        cp = importlib.import_module("cvxpy")
        u = cp.Variable((len(self.mask), self.x.shape[1]))
        outputs = cp.sum(cp.multiply(self.mask, u @ self.x.T), axis=0)
        norms = cp.sum(cp.norm(u, 2, axis=1))
        objective = norms + cp.sum_squares(outputs - self.y) / (2 * self.penalty)
        options = {"eps": GAP, "max_iters": 20_000} if solver == "SCS" else {}
        cp.Problem(cp.Minimize(objective)).solve(solver=solver, **options)
        return self.objective(u.value)

    def scnn(self) -> float:
        models, solvers, optimize, metrics, regularizers = (
            importlib.import_module(f"scnn.{part}")
            for part in ("models", "solvers", "optimize", "metrics", "regularizers")
        )
        model = models.ConvexGatedReLU(self.gates.T, bias=False)
        model, _ = optimize.optimize_model(
            model, solvers.RFISTA(model, tol=1e-16, max_iters=SCNN_STEPS), metrics.Metrics(),
            self.x, self.y[:, None], regularizer=regularizers.NeuronGL1(self.penalty / len(self.y)),
            device="cpu", dtype="float64", unitize_data=False, verbose=False,
        )  # fmt: skip
        # Some patterns are dropped and the rest reordered, so the gates are those of the result; u_j is split
        # into weights of two layers.
        mask = (self.x @ model.G >= 0).astype(float).T
        inner, outer = model.parameters
        return self.objective(inner * outer.T, mask)


def contenders(case: Case, penalized: bool) -> dict[str, Objective]:
    penalty = case.penalty if penalized else 0.0
    runs: dict[str, Objective] = {"llr": lambda: case.ours(penalty)}
    if optional("clarabel"):
        runs["clarabel, solver only"] = case.clarabel(penalty)
    if penalized and optional("cvxpy"):
        runs["cvxpy and clarabel"] = lambda: case.cvxpy("CLARABEL")
        if optional("scs"):
            runs["cvxpy and SCS"] = lambda: case.cvxpy("SCS")
    if penalized and optional("scnn"):
        runs[f"scnn, {SCNN_STEPS:,} steps"] = case.scnn
    return runs


def compared(name: str, penalized: bool, rounds: int) -> list[list[str]]:
    """A row for each contender."""
    seconds: dict[str, list[float]] = {}
    reached: dict[str, float] = {}
    for seed in range(rounds):
        case = Case(*CASES[name], seed)
        runs = contenders(case, penalized)
        order = list(runs)
        random.Random(seed).shuffle(order)
        values = {}
        for contender in order:
            before = time.perf_counter()
            values[contender] = runs[contender]()
            took = time.perf_counter() - before
            if contender.startswith("clarabel"):
                took = case.seconds
            seconds.setdefault(contender, []).append(took)
        best = min(values.values())
        for contender, value in values.items():
            reached[contender] = max(reached.get(contender, 0.0), value / best - 1)
    rows = []
    for contender, took in seconds.items():
        ratio = statistics.median(t / s for t, s in zip(took, seconds["llr"], strict=True))
        program = "penalized" if penalized else "interpolation"
        rows.append([name, program, contender, f"{statistics.median(took):.3g} s", f"{ratio:.3g}x",
                     f"{reached[contender]:.0e}"])  # fmt: skip
    return sorted(rows, key=lambda row: row[2] != "llr")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of the small case")
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    facts = environment(device)
    names = list(CASES)[:1] if settings.quick else list(CASES)
    rounds = 1 if settings.quick else settings.rounds
    for name in names:  # what is loaded on first use
        for run in contenders(Case(12, 3, 20, 0), True).values() if name == names[0] else ():
            run()
    rows = [
        row
        for name in names
        for penalized in (False, True)
        for row in compared(name, penalized, rounds)
    ]
    head = ["case", "program", "contender", "time", "times llr's", "above the best, at most"]
    print(table(head, rows))
    lists = []
    clock = clock_of(device)
    for n, d in LISTS[2:3] if settings.quick else LISTS:
        x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = relu.patterns(x)
        took = statistics.median(clock(lambda x=x: relu.patterns(x), 1) for _ in range(rounds))
        lists.append(
            [f"{n} x {d}", f"{len(found):,}", "yes" if found.complete else "no", f"{took:.3g} s"]
        )
    print()
    print(table(["samples", "patterns", "complete", "time"], lists))
    print(
        f"\nllr {llr.__version__}, torch {torch.__version__}, {facts.get('cpu')}, one thread, float64"
    )
    if warning := load_warning(facts["load_average"]):
        print(warning)
    return 0


if __name__ == "__main__":
    sys.exit(main())
