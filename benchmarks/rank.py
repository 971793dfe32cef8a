"""Singular values and ranks by llr, torch, numpy, scipy and JAX, compared in one run; proofs of ranks.

    python benchmarks/rank.py                        # minutes; writes benchmarks/results/rank.{json,md}
    python benchmarks/rank.py --device cuda          # rank-NAME.{json,md}, with the GPU's name
    python benchmarks/rank.py --memory --scaling     # also peak memory, and rank_scaling.svg
    python benchmarks/rank.py --quick                # tiny sizes, to check that it runs; writes only to --out

Every contender is called once per round, in an order that is shuffled for each round; medians over the rounds
are compared. Contenders are timed only after all agree. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from statistics import median
from typing import Any

import gpu
import torch
from contenders import Case, Disagreement, import_jax
from gpu_model import GPUS, JACOBI_SWEEPS, gram, svdvals
from harness import (
    clock_of,
    deliver,
    interleaved,
    measures_memory,
    measuring,
    options,
    parse,
    ratios,
    result_name,
)
from rank_contenders import (
    AUTO,
    CERTIFIED,
    GEJSV,
    GESDD,
    GRAM_DD,
    GRAM_OP,
    GRAM_TORCH,
    JAX,
    LLR,
    LLR_RANK,
    NUMPY,
    OP,
    RANKS,
    TORCH,
    TORCH_FUNC,
    TORCH_RANK,
    Matrices,
    Proof,
    check_grams,
    check_ranks,
    check_svd,
    gram_contenders,
    jacobian_by_torch,
    matrices,
    network,
    proof_contenders,
    proof_network,
    rank_contender,
    svd_contenders,
)
from rank_report import EXACT, PEAK, SECONDS, report, shown
from rank_scaling import (
    QUICK_SWEEPS,
    SWEEPS,
    Point,
    fresh,
    jacobian_bytes,
    parameters,
    save_figure,
    scaling,
)

SVD_CASES = {
    "svd-100x81": Matrices(256, 100, 81),
    "svd-32x32": Matrices(1024, 32, 32),
    "svd-200x60": Matrices(64, 200, 60),
}
RANK_CASES = {
    "rank-256": Case((10, 256, 256, 1), 512),
    "rank-512": Case((10, 512, 512, 1), 512),
}
BIG_CASES = {"big": Case((10, 4096, 4096, 1), 512)}
PROOF_CASES = {
    "proof-32": Proof((1, 32, 1), 192),
    "proof-10-10": Proof((1, 10, 10, 1), 282),
    "proof-40": Proof((3, 40, 1), 220),
}
GRAM_CASES = {  # by default on a GPU only
    "gram-512": Case((10, 512, 512, 1), 512),
    "gram-1024": Case((10, 512, 512, 1), 1024),
}
PARTS: dict[str, dict[str, Any]] = {
    "svdvals": SVD_CASES,
    "rank": RANK_CASES,
    "big": BIG_CASES,
    "proof": PROOF_CASES,
    "gram": GRAM_CASES,
}
CASES = SVD_CASES | RANK_CASES | BIG_CASES | PROOF_CASES
GPU_CASES = SVD_CASES | GRAM_CASES | RANK_CASES | BIG_CASES  # proofs run on the CPU only

RATIOS = (
    (TORCH, OP),
    (TORCH, LLR),
    (NUMPY, OP),
    (GESDD, OP),
    (GEJSV, OP),
    (JAX, OP),
    (TORCH_RANK, LLR_RANK),
    (GRAM_TORCH, GRAM_OP),
    (GRAM_TORCH, GRAM_DD),
    *((TORCH_FUNC, name) for name in RANKS[:-1]),
)
"""Pairs of contenders; the ratio is the time of the first over that of the second."""

PROMISES: tuple[tuple[str, str, str, float], ...] = (
    ("svd-100x81", f"{TORCH} / {OP}", "≥", 6),
    ("svd-32x32", f"{TORCH} / {OP}", "≥", 8),
    ("svd-200x60", f"{TORCH} / {OP}", "≥", 4),
    ("rank-256", f"{TORCH_FUNC} / {AUTO}", "≥", 12),
    ("rank-512", f"{TORCH_FUNC} / {AUTO}", "≥", 30),
    ("big", SECONDS, "<", 30),
    ("big", PEAK, "<", 2e9),
    ("proof-32", EXACT, "=", True),
    ("proof-32", SECONDS, "<", 20),
    ("proof-10-10", EXACT, "=", True),
    ("proof-10-10", SECONDS, "<", 15),
    ("proof-40", EXACT, "=", True),
    ("proof-40", SECONDS, "<", 10),
)
"""Case, quantity, comparison, bound."""

COMPARE = {"≥": operator.ge, "<": operator.lt, "=": operator.eq}
BIG_RUNS = 3
LONGEST = 300.0  # s, for a process of the big case or of --memory


def timed(
    runs: Mapping[str, Callable[[], Any]],
    settings: Any,
    seconds: float,
    excused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Time contenders: the samples, medians and ratios. Those in `excused` are not timed."""
    runs = {name: run for name, run in runs.items() if name not in (excused or {})}
    calls, samples = interleaved(runs, clock_of(settings.device), seconds, settings.quick)
    return {
        "excused": excused or {},
        "rounds": min(map(len, samples.values())),
        "calls_per_sample": calls,
        "samples": samples,
        "median": {name: median(s) for name, s in samples.items()},
        "ratios": ratios(samples, RATIOS),
    }


def measure_svd(case: Matrices, settings: argparse.Namespace, jax: Any) -> dict[str, Any]:
    """Singular values and ranks of a batch, checked on matrices of half rank and of full rank."""
    errors: dict[str, Any] = {}
    excused: dict[str, str] = {}
    for rank in (case.short_side // 2, case.short_side):
        runs = svd_contenders(matrices(case, rank, settings.device), jax)
        errors[f"rank {rank}"] = check_svd(runs, case, rank, settings.device, excused)
    return {"difference": errors, **timed(runs, settings, settings.seconds, excused)}


def measure_rank(case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    """The rank of a Jacobian from model and samples, in the fewest rounds that are allowed."""
    model, x = network(case, settings.device)
    runs = {name: rank_contender(name, model, x) for name in RANKS}
    excused: dict[str, str] = {}
    said, errors = check_ranks(runs, model, x, excused)
    return {
        "P": parameters(case),
        "bytes": jacobian_bytes(case),
        "said": said,
        "difference": errors,
        **timed(runs, settings, seconds=0, excused=excused),
    }


def measure_gram(case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    """J J' without computing J, and J J' by torch."""
    runs = gram_contenders(*network(case, settings.device))
    found = {"P": parameters(case), "bytes": jacobian_bytes(case), "difference": check_grams(runs)}
    return found | timed(runs, settings, settings.seconds)


def measure_big(case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    """A rank whose Jacobian would not fit in memory, in separate processes."""
    point = Point(case, AUTO, str(settings.device), settings.threads)
    runs = [fresh(point, LONGEST) for _ in range(1 if settings.quick else BIG_RUNS)]
    found: dict[str, Any] = {"P": parameters(case), "bytes": jacobian_bytes(case), "runs": runs}
    missing = [run for run in runs if "missing" in run]
    if missing:
        return {**found, **missing[0]}
    ranks = {run["rank"] for run in runs}
    if len(ranks) > 1:
        raise Disagreement(f"the same rank is {sorted(ranks)} in different processes")
    found[SECONDS] = median(run["seconds"] for run in runs)
    if measures_memory(settings.device):
        found[PEAK] = max(run["peak_bytes"] for run in runs)
        found["growth bytes"] = max(run["growth_bytes"] for run in runs)
    return found


def measure_proof(case: Proof, settings: argparse.Namespace) -> dict[str, Any]:
    """A certified rank, and torch's rank of the same Jacobian in float64 and in float32."""
    model, x = proof_network(case)
    runs, result = proof_contenders(model, x)
    J = jacobian_by_torch(model, x)
    times = timed(runs, settings, seconds=0)
    return {
        **times,
        "P": J.shape[1],
        "rank": result.lower,
        "upper": result.upper,
        "bits": result.bits,
        "float64": int(torch.linalg.matrix_rank(J)),
        "float32": int(torch.linalg.matrix_rank(J.float())),
        EXACT: result.exact,
        SECONDS: times["median"][CERTIFIED],
    }


def measure(name: str, settings: argparse.Namespace, jax: Any) -> dict[str, Any]:
    ((part, case),) = ((part, cases[name]) for part, cases in PARTS.items() if name in cases)
    if settings.quick:
        case = case.quick
    if part == "svdvals":
        found = measure_svd(case, settings, jax)
    elif part == "rank":
        found = measure_rank(case, settings)
    elif part == "gram":
        found = measure_gram(case, settings)
    elif part == "big":
        found = measure_big(case, settings)
    else:
        found = measure_proof(case, settings)
    if settings.device.type == "cuda":
        found["gpu"] = gpu.state(settings.device)
        found["expected"] = expected(name, torch.cuda.get_device_name(settings.device))
    return {"part": part, "case": str(case), **found}


def expected(name: str, card: str) -> dict[str, float]:
    """Seconds that the operators should take by the model of docs/cuda.md, for the GPUs listed there."""
    if card not in GPUS:
        return {}
    if name in SVD_CASES:
        case = SVD_CASES[name]
        work = svdvals(case.number, case.rows, case.columns, JACOBI_SWEEPS[name], GPUS[card])
        return {OP: work.seconds}
    if name not in GRAM_CASES:
        return {}
    case = GRAM_CASES[name]
    return {
        f"{op} graph": gram(case.widths, case.n, op == GRAM_DD, GPUS[card]).seconds
        for op in (GRAM_OP, GRAM_DD)
    }


def promises(cases: Mapping[str, Any], apply: bool) -> list[dict[str, Any]]:
    """For the cases that ran: the promise, the measurement and, if promises apply, whether it holds."""
    rows = []
    for case, what, sign, bound in PROMISES:
        if case not in cases:
            continue
        found = cases[case]
        ratio = found.get("ratios", {}).get(what)
        measured = found.get(what) if ratio is None else ratio["of_medians"]
        holds = measured is not None and COMPARE[sign](measured, bound)
        rows.append(
            {
                "case": case,
                "of": what,
                "bound": f"{sign} {shown(what, bound)}".removeprefix("= "),
                "measured": measured,
                "holds": holds if apply else None,
            }
        )
    return rows


def peaks(settings: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Case -> contender -> peak memory of one call, each measured in a separate process."""
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in settings.cases if name in RANK_CASES):
        case = RANK_CASES[name].quick if settings.quick else RANK_CASES[name]
        for contender in RANKS:
            point = Point(case, contender, str(settings.device), settings.threads)
            found.setdefault(name, {})[contender] = fresh(point, LONGEST)
    return found


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = options(__doc__ or "", CASES, GPU_CASES, seconds=20.0)
    scaling_help = "also time and memory against P and n, each point in a fresh process"
    parser.add_argument("--scaling", action="store_true", help=scaling_help)
    settings = parse(parser)
    if settings.scaling and not measures_memory(settings.device):
        parser.error("--scaling reads /proc/self/status; expected Linux, or --device=cuda")
    if settings.scaling and find_spec("matplotlib") is None:
        parser.error("--scaling draws with matplotlib: pip install 'llr[plot]'")
    return settings


def main() -> None:
    settings = arguments()
    with measuring(settings) as results:
        jax, facts = import_jax(settings.device), results["environment"]
        facts["jax"] = None if jax is None else jax.__version__
        facts |= {name: version_of(name) for name in ("numpy", "scipy", "python-flint")}
        cases = results["cases"] = {}
        for name in settings.cases:
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            try:
                cases[name] = measure(name, settings, jax)
            except Disagreement as error:
                sys.exit(f"\nerror: {error}")
            print(cases[name]["case"], file=sys.stderr)
        results["memory"] = peaks(settings) if settings.memory else {}
        sweeps = QUICK_SWEEPS if settings.quick else SWEEPS
        grown = (
            scaling(sweeps, settings.device, settings.threads, fresh) if settings.scaling else {}
        )
        results["scaling"] = grown
    promised = not settings.quick and settings.threads == 2 and settings.device.type == "cpu"
    results["settings"]["promised"] = promised
    results["promises"] = promises(cases, promised)
    figure = result_name("rank_scaling", settings.device) + ".svg"
    deliver("rank", settings, results, report(results, figure))
    if grown and settings.out is not None:
        save_figure(grown, settings.out / figure)
    if broken := failures(results):
        sys.exit("\n".join(f"error: {line}" for line in broken))


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def failures(results: Mapping[str, Any]) -> list[str]:
    """Processes that ended in an error, without those that took too long or were not tried."""
    found = {name: case for name, case in results["cases"].items() if "missing" in case}
    for name, contenders in results["memory"].items():
        found |= {f"{name}, {contender}": facts for contender, facts in contenders.items()}
    for sweep in results["scaling"].values():
        found |= {f"{point['case']}, {point['contender']}": point for point in sweep["points"]}
    return [f"{name}: {fact['missing']}" for name, fact in found.items() if fact.get("failed")]


if __name__ == "__main__":
    main()
