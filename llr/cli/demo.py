"""The demonstration on real data: ranks of tanh networks of growing width, trained to convergence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

import llr
from llr.cli.files import OutputDirectory
from llr.cli.shell import reported
from llr.cli.streams import PlainConsole
from llr.inputs.evaluation.surroundings import torch_threads
from llr.inputs.files.writing import require_directory, write_atomic
from llr.results import progress

NETWORKS = ("10-1-1", "10-2-1", "10-4-1", "10-8-1", "10-16-1", "10-32-1", "10-64-1", "10-16-16-1")
QUICK_NETWORKS = ("10-1-1", "10-4-1", "10-32-1")

# Without weight decay the optimum is not well defined: weights grow without end and the gradient norm
# stays near 1e-3 after thousands of steps. With 5e-3 every network here reaches a strict minimum.
DECAY = 5e-3
CONVERGED = 1e-12  # the gradient norm, in float64; Newton's method gets there and then below 1e-14
SEED = 0

# Networks up to this size are also certified; a proof for the largest here takes half a minute.
_PROVED_PARAMETERS = 200

# Neurons count as equal if their incoming weights differ by less, relative to the largest ones.
_EQUAL = 1e-6


@click.command("demo")
@click.option(
    "--out",
    type=OutputDirectory(),
    default=Path("runs/demo"),
    show_default=True,
    help="Directory of ranks.json and spectra.png.",
)
@click.option("--quick", is_flag=True, help="Train only three of the networks.")
@reported
def demo_command(out: Path, quick: bool) -> None:
    """Ranks of tanh networks of growing width, trained on real data."""
    run(out, quick=quick)


def run(out: Path, quick: bool = False, console: Console | None = None) -> list[dict[str, Any]]:
    """Train the networks, print their ranks, and write ``ranks.json`` and ``spectra.png`` to `out`.

    The data are scikit-learn's bundled diabetes records: 442 patients, 10 measurements, and the
    progress of the disease a year later, all standardised. The loss is half the mean squared error
    plus half `DECAY` times the squared norm of all parameters.

    Args:
        out: directory of the results; made if missing.
        quick: only three of the networks, in a few seconds.
        console: where to print; default standard output. Progress goes to standard error, on a terminal only.

    Returns:
        One dict per network: label, widths, P, r2, loss, gradient_norm, converged, steps, seconds,
        distinct (neurons per hidden layer that differ by more than their sign), merged_P (parameters after
        equal neurons are merged), proved (the certified lower bound of the rank, None for large
        networks), certificate (its certificate), and the fields of its `RankResult`.

    Raises:
        ImportError: scikit-learn or matplotlib is missing.
        ValueError: `out` cannot be created, or cannot be written into.
    """
    console = console or PlainConsole()
    figures = _figures()
    x, y = _diabetes()
    require_directory(out, "out")
    rows: list[dict[str, Any]] = []
    results: dict[str, llr.RankResult] = {}
    names = QUICK_NETWORKS if quick else NETWORKS
    with progress.following(None):
        for i, name in enumerate(names):
            progress.step(f"training {name}", i, len(names))
            start = time.perf_counter()
            model = llr.models.load_model(f"mlp:{name}", seed=SEED)
            fit = train(model, x, y, DECAY)
            # A count in floating point. Copies that differ only in their last bits do not add to this rank,
            # but to the proved one.
            results[name] = llr.rank(model, x, resolve=False)
            proof = llr.certify(model, x) if results[name].n_params <= _PROVED_PARAMETERS else None
            seconds = time.perf_counter() - start
            rows.append(_row(name, model, fit, results[name], proof, y, seconds))
    for line in (
        f"{len(x)} samples of scikit-learn's diabetes data. Tanh networks, weight decay {DECAY:g},",
        f"trained until the gradient norm is below {CONVERGED:.0e}. Ranks in float64.",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_table(rows))
    for line in _explanation(rows):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    facts = {"data": "scikit-learn diabetes", "samples": len(x), "decay": DECAY, "seed": SEED}
    document = {**facts, "torch": str(torch.__version__), "networks": rows}
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "ranks.json", json.dumps(document, indent=1, allow_nan=False))
    figures.save(figures.widths(rows, results), out / "spectra.png")
    wrote = f"wrote {out / 'ranks.json'} and {out / 'spectra.png'}"
    console.print(wrote, highlight=False, soft_wrap=True, markup=False)
    return rows


def _figures() -> Any:
    from llr.ranks import figure  # noqa: PLC0415 - matplotlib is optional

    return figure


def _diabetes() -> tuple[Tensor, Tensor]:
    """Inputs (442, 10) and targets (442, 1), each column with mean 0 and variance 1."""
    try:
        from sklearn.datasets import load_diabetes  # noqa: PLC0415 - scikit-learn is optional
    except ImportError as err:
        raise ImportError("the demo's data need scikit-learn: pip install 'llr[demo]'") from err
    data = load_diabetes(scaled=False)
    columns = torch.cat(
        (torch.as_tensor(data.data), torch.as_tensor(data.target)[:, None]), dim=1
    ).double()
    columns = (columns - columns.mean(0)) / columns.std(0, correction=0)
    return columns[:, :-1], columns[:, -1:]


@dataclass(frozen=True)
class Fit:
    """How training ended."""

    loss: float
    gradient_norm: float
    steps: int

    @property
    def converged(self) -> bool:
        """Whether the gradient norm is at most `CONVERGED`."""
        return self.gradient_norm <= CONVERGED


def train(model: nn.Module, x: Tensor, y: Tensor, decay: float, lbfgs_steps: int = 3000) -> Fit:
    """Minimise half the mean squared error plus half `decay` times the squared parameter norm.

    L-BFGS with a strong-Wolfe line search comes close to the optimum; Newton's method with the full
    Hessian then converges to the limit of float64. A rank needs this precision: away from the optimum,
    neurons that are equal at the optimum still differ, and any difference adds to the rank.

    Args:
        model: changed in place; float64.
        x: inputs (n, d).
        y: targets (n, q).
        decay: >= 0.
        lbfgs_steps: the largest number of L-BFGS steps.
    """
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(theta: Tensor) -> Tensor:
        pieces = zip(named.items(), theta.split(sizes), strict=True)
        values = {name: piece.view(p.shape) for (name, p), piece in pieces}
        error = functional_call(model, values, (x,)) - y
        return error.square().mean() / 2 + decay / 2 * theta.square().sum()

    start = nn.utils.parameters_to_vector(list(named.values())).detach()
    # One thread: these matrices are too small to share, and the result should not depend on the number
    # of cores.
    with torch_threads(1):
        theta, steps = _lbfgs(loss, start, lbfgs_steps)
        theta, more = _newton(loss, theta)
        norm = float(grad(loss)(theta).norm())
    nn.utils.vector_to_parameters(theta, named.values())
    return Fit(loss=float(loss(theta)), gradient_norm=norm, steps=steps + more)


def _lbfgs(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, int]:
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=steps,
        max_eval=4 * steps,
        tolerance_grad=1e-7,
        tolerance_change=0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach(), optimizer.state[theta]["n_iter"]


def _newton(loss: Callable[[Tensor], Tensor], theta: Tensor, steps: int = 60) -> tuple[Tensor, int]:
    """Newton's method; the Hessian is shifted by a multiple of the identity until the loss decreases."""
    gradient = grad(loss)
    hessian = jacrev(gradient, chunk_size=64)
    value, g = loss(theta), gradient(theta)
    identity = torch.eye(len(theta), dtype=theta.dtype)
    shift = 0.0
    for step in range(steps):
        H = hessian(theta)
        while True:
            L, failed = torch.linalg.cholesky_ex(H + shift * identity)
            if not failed:
                candidate = theta - torch.cholesky_solve(g[:, None], L)[:, 0]
                new_value = loss(candidate)
                if new_value <= value + 1e-14:  # the rounding error of the loss itself
                    break
            shift = max(4 * shift, 1e-6)
            if shift > 1e6:
                return theta, step
        new_g = gradient(candidate)
        at_the_limit = g.norm() <= CONVERGED and new_g.norm() > g.norm() / 2
        if at_the_limit:
            return theta, step
        theta, value, g = candidate, new_value, new_g
        shift = shift / 8 if shift > 1e-6 else 0.0
    return theta, steps


def _row(
    name: str,
    model: nn.Module,
    fit: Fit,
    result: llr.RankResult,
    proof: llr.Certificate | None,
    y: Tensor,
    seconds: float,
) -> dict[str, Any]:
    widths = [int(w) for w in name.split("-")]
    distinct = distinct_neurons([m for m in model.modules() if isinstance(m, nn.Linear)])
    penalty = DECAY / 2 * sum(float(p.detach().square().sum()) for p in model.parameters())
    mse = 2 * (fit.loss - penalty)
    return {
        "label": name,
        "widths": widths,
        "P": result.n_params,
        "r2": 1 - mse / float(y.square().mean()),
        "loss": fit.loss,
        "gradient_norm": fit.gradient_norm,
        "converged": fit.converged,
        "steps": fit.steps,
        "seconds": round(seconds, 3),
        "distinct": distinct,
        "merged_P": sum((a + 1) * b for a, b in pairwise([widths[0], *distinct, widths[-1]])),
        **result.to_dict(spectrum=True),
        "proved": None if proof is None else proof.rank,
        "proved_exact": proof is not None and proof.exact,
        "certificate": None if proof is None else proof.to_dict(),
    }


def distinct_neurons(layers: Sequence[nn.Linear]) -> list[int]:
    """Per hidden layer of an odd-activation network, the neurons that are not copies of each other.

    From the first layer up, neurons equal up to sign are merged and their outgoing weights added;
    neurons without incoming weights are dropped. Merging keeps the network's function.
    """
    counts = []
    incoming = layers[0].weight.detach()
    for layer, following in pairwise(layers):
        neurons = torch.cat((incoming, layer.bias.detach()[:, None]), dim=1)
        nearest = _EQUAL * neurons.norm(dim=1).max()
        kept: list[Tensor] = []
        outgoing: list[Tensor] = []
        for neuron, weights in zip(neurons, following.weight.detach().T, strict=True):
            if neuron.norm() <= nearest:
                continue
            for i, other in enumerate(kept):
                sign = 1 if neuron @ other > 0 else -1
                if (neuron - sign * other).norm() <= nearest:
                    outgoing[i] = outgoing[i] + sign * weights
                    break
            else:
                kept.append(neuron)
                outgoing.append(weights)
        counts.append(len(kept))
        incoming = (
            torch.stack(outgoing, dim=1)
            if outgoing
            else following.weight.new_zeros(following.out_features, 0)
        )
    return counts


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    # Narrow enough for a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("network", no_wrap=True)
    headings = ("P", "R²", "|grad|", "rank", "gap", "count", "proved", "distinct", "merged P")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        gap = "-" if row["gap"] is None else f"{row['gap']:.1e}"
        table.add_row(
            row["label"],
            str(row["P"]),
            f"{row['r2']:.3f}",
            f"{row['gradient_norm']:.0e}" + ("" if row["converged"] else "!"),
            f"[bold]{row['rank']}[/bold]",
            gap,
            _count(row),
            _proof(row),
            "-".join(map(str, row["distinct"])),
            str(row["merged_P"]),
        )
    return table


def _count(row: dict[str, Any]) -> str:
    if not row["ambiguous"]:
        return "exact" if row["exact"] else "met"
    return "clear" if row["clear"] else "[red]open[/red]"


def _proof(row: dict[str, Any]) -> str:
    if row["proved"] is None:
        return "-"
    return f"{'' if row['proved_exact'] else '≥'}{row['proved']}"


def _explanation(rows: Sequence[dict[str, Any]]) -> list[str]:
    samples = rows[0]["n_rows"]
    lines = [
        f"rank      independent directions in which the outputs on {samples} samples can move",
        "gap       last singular value above its error, divided by the next one or by the error",
        "count     exact: equals an upper bound; clear: a gap of 1000, the rank may be larger",
        f"proved    by a certificate, for the exact weights (networks of up to {_PROVED_PARAMETERS})",
        "distinct  hidden neurons that are not copies of others (up to sign)",
        "merged P  parameters of the network with only the distinct neurons",
    ]
    low = [row for row in rows if row["rank"] < min(row["P"], samples)]
    if low:
        agree = sum(row["rank"] == row["merged_P"] for row in low)
        lines += [
            f"{len(low)} of {len(rows)} ranks are below min({samples}, P), the first at P = {low[0]['P']}:",
            "weight decay has made neurons copies of each other, and a copy adds no direction;",
            f"{agree} of these {len(low)} ranks equal merged P.",
        ]
    copies = [
        row["label"] for row in rows if row["proved"] is not None and row["proved"] > row["rank"]
    ]
    if copies:
        lines += [
            f"The proved ranks of {', '.join(copies)} are larger: copies agree only to rounding after",
            "training, and the last bits in which they differ add to the exact rank. Exact copies do not.",
        ]
    late = [row["label"] for row in rows if not row["converged"]]
    if late:
        lines.append(
            f"! not converged (gradient norm above {CONVERGED:.0e}): {', '.join(late)}; the ranks are "
            "those where training stopped"
        )
    return lines
