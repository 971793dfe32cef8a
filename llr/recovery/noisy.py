"""Networks fitted to targets with noise: the narrowest width that the residuals do not reject."""

from __future__ import annotations

import math

from scipy.special import chdtrc
from torch import Tensor

from llr.recovery.hunt import LEAST_ROUNDS, Hunt
from llr.recovery.lm import Fits
from llr.recovery.outcome import NoiseTest
from llr.recovery.search import polished, round_of_starts
from llr.results.phrases import counted, there_are

LEVEL = 0.01
"""The level of the statistical test: how often a network of the right width is rejected."""

_NEARLY = 10.0  # a narrower width is mentioned if its residuals are below so many times the noise


def tested_widths(
    hunt: Hunt, max_width: int, noise_std: float
) -> dict[int, tuple[NoiseTest, Tensor]]:
    """The best fit of every width with its test. Wider networks than the first that passes get equal rounds.

    Raises:
        ValueError: fewer observations than parameters of one neuron.
    """
    kind, data = hunt.kind, hunt.data
    observations = data.y.numel()
    widths = [j for j in range(1, max_width + 1) if kind.parameters(j) < observations]
    if not widths:
        raise ValueError(
            f"{there_are(observations, 'observation')}; expected more than the {kind.parameters(1)} "
            "parameters of one neuron: with noise, residuals are tested"
        )
    best: dict[int, tuple[NoiseTest, Tensor]] = {}
    number = 0
    while accepted(best) is None or number < LEAST_ROUNDS:
        for j in widths:
            template = hunt.template(j)
            fits = round_of_starts(template, data, number, hunt.spent, seed=hunt.seed)
            if fits is None:
                return best
            hunt.rounds[j] = number + 1
            fit = polished(template, data, fits, near=math.inf)
            hunt.note(j, fit)
            test = _tested(hunt, j, fit, noise_std)
            if j not in best or test.statistic < best[j][0].statistic:
                best[j] = test, fit.theta[0]
        number += 1
    return best


def accepted(best: dict[int, tuple[NoiseTest, Tensor]]) -> int | None:
    """The narrowest width that passes the test."""
    return next((j for j in sorted(best) if best[j][0].p_value >= LEVEL), None)


def _tested(hunt: Hunt, width: int, fits: Fits, noise_std: float) -> NoiseTest:
    observations = hunt.data.y.numel()
    ratio = hunt.scaling.unit / noise_std
    statistic = float(fits.loss[0]) * observations * ratio**2
    dof = observations - hunt.kind.parameters(width)
    return NoiseTest(width, statistic, dof, float(chdtrc(dof, statistic)))


def claim(test: NoiseTest) -> str:
    """The result of the test of the narrowest width that passes, as a sentence."""
    narrower = ", the best fits found of narrower ones are rejected" if test.width > 1 else ""
    return (
        f"width {test.width} is not rejected: chi-squared {test.statistic:.4g} with "
        f"{counted(test.dof, 'degree')} of freedom, p = {test.p_value:.2g}{narrower} at the level "
        f"{LEVEL:g}. A statistical test, no proof"
    )


def advice(best: dict[int, tuple[NoiseTest, Tensor]], width: int, noise_std: float) -> str:
    """Advice if the result is doubtful; empty if it is not."""
    doubts = []
    for j in sorted(best):
        test = best[j][0]
        times = math.sqrt(test.statistic / test.dof)
        if j < width and times <= _NEARLY:
            doubts.append(
                f"a better noise_std=, since width {j} has residuals of only {times:.2g} times "
                f"{noise_std:g}"
            )
            break
    test = best[width][0]
    if width == min(best) or test.p_value > 1 - LEVEL:
        times = math.sqrt(test.statistic / test.dof)
        doubts.append(
            f"a smaller noise_std= if {noise_std:g} may be too large, since width {width} has residuals of "
            f"{times:.2g} times that" + (" and is the narrowest" if width == min(best) else "")
        )
    if width == max(best):
        doubts.append(f"a larger max_width=, since {width} is the widest network that was tried")
    return "; ".join(doubts)
