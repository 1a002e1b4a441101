"""Every number that a race is summed up by: medians, intervals, verdicts, best trials, edges.

Tables, figures and notebooks take them from here, so that one race never says two things.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xgblora_lab.bench.records import History

ALPHA = 0.05  # two-sided
POWER = 0.8
MOST_SEEDS = 100
AHEAD, BEHIND, OPEN = "ahead", "behind", "cannot be told apart"


@dataclass(frozen=True)
class Spread:
    """Median and range of one value over seeds.

    A value that is not finite (a seed that diverged) counts as the worst in the median, so that it cannot
    hide. The range is that of the finite values. `median` is nan where it falls on a diverged seed; `low` and
    `high` are nan where no value is finite.
    """

    median: float
    low: float
    high: float
    count: int
    diverged: int

    def __str__(self) -> str:
        """For example "0.82 (0.81 to 0.83)", "2 (1 to 2; 1 of 3 diverged)" or "diverged"."""
        if self.diverged == self.count:
            return "diverged" if self.count else "none"
        middle = f"{self.median:.4g}" if math.isfinite(self.median) else "diverged"
        if self.count == 1:
            return middle
        broken = f"; {self.diverged} of {self.count} diverged" if self.diverged else ""
        return f"{middle} ({self.low:.4g} to {self.high:.4g}{broken})"


def spread(values: Sequence[float], greater_is_better: bool = False) -> Spread:
    """Median and range over seeds.

    Parameters
    ----------
    values : sequence of float
        One per seed; nan and infinities mean that the seed diverged.
    greater_is_better : bool, default False
        Which end of the scale a diverged seed counts at.

    Returns
    -------
    Spread
    """
    finite = [float(v) for v in values if math.isfinite(v)]
    worst = -math.inf if greater_is_better else math.inf
    ordered = [float(v) if math.isfinite(v) else worst for v in values]
    middle = statistics.median(ordered) if ordered else math.nan
    return Spread(
        median=middle if math.isfinite(middle) else math.nan,
        low=min(finite, default=math.nan),
        high=max(finite, default=math.nan),
        count=len(ordered),
        diverged=len(ordered) - len(finite),
    )


def median(values: Sequence[float], greater_is_better: bool = False) -> float:
    """The median in which a value that is not finite counts as the worst; nan where it is one of these."""
    return spread(values, greater_is_better).median


@dataclass(frozen=True)
class Difference:
    """A method minus the reference, paired by seed, with Student's interval of the mean.

    `low` and `high` bound the 95 % interval of this comparison alone; nan with fewer than two pairs. `p` is
    the two-sided p-value of Student's paired test, and `corrected` the same after Holm's correction for all
    comparisons of the race. `seeds` is how many it would take to tell, see `seeds_to_tell`. `lost` counts
    pairs in which one of the two diverged; they leave no verdict.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int
    lost: int
    seeds: float
    corrected: float = math.nan

    def __str__(self) -> str:
        """For example "+0.012 (-0.003 to +0.027)"; one pair alone has no interval."""
        if not self.count:
            return "diverged" if self.lost else ""
        text = f"{self.mean:+.3g}"
        if math.isfinite(self.low):
            text += f" ({self.low:+.3g} to {self.high:+.3g})"
        return text + (f", {self.lost} of {self.count + self.lost} diverged" if self.lost else "")

    def verdict(self, greater_is_better: bool) -> str:
        """`"ahead"`, `"behind"` or `"cannot be told apart"`, from the corrected p-value and the direction."""
        if self.lost or not self.corrected < ALPHA:
            return OPEN
        return AHEAD if (self.mean > 0) == greater_is_better else BEHIND

    @property
    def seeds_in_words(self) -> str:
        """`seeds` for a table; empty where there is no spread to reckon with."""
        if math.isnan(self.seeds):
            return ""
        return f"{self.seeds:.0f}" if math.isfinite(self.seeds) else f"more than {MOST_SEEDS}"


def paired(differences: Sequence[float], confidence: float = 1 - ALPHA) -> Difference:
    """Mean of paired differences with Student's interval and p-value.

    Parameters
    ----------
    differences : sequence of float
        Method minus reference, one per seed.
    confidence : float, default 0.95
        Of the interval.

    Returns
    -------
    Difference
        Without a correction: `corrected` equals `p`.
    """
    from scipy import stats

    finite = [float(d) for d in differences if math.isfinite(d)]
    n, lost = len(finite), len(differences) - len(finite)
    if n < 2:
        mean = finite[0] if finite else math.nan
        return Difference(mean, math.nan, math.nan, math.nan, n, lost, math.nan)
    mean, error = statistics.fmean(finite), statistics.stdev(finite) / math.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    # Without an error all seeds agree to the last digit.
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, n, lost, seeds_to_tell(finite), p)


def compare(differences: Mapping[str, Sequence[float]]) -> dict[str, Difference]:
    """All comparisons of a race with its reference, corrected together by Holm's step-down.

    Parameters
    ----------
    differences : mapping of str to sequence of float
        Label → differences to the reference by seed.

    Returns
    -------
    dict of str to Difference
    """
    found = {label: paired(values) for label, values in differences.items()}
    corrected = holm([d.p for d in found.values()])
    return {label: replace(d, corrected=p) for (label, d), p in zip(found.items(), corrected, strict=True)}


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down, which bounds the chance of even one false verdict.

    Parameters
    ----------
    p : sequence of float
        One per comparison. nan where there is no test; it stays nan and is not counted.

    Returns
    -------
    list of float
        In the order given, each at most 1.

    References
    ----------
    S. Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6.
    """
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    corrected, so_far = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = so_far
    return corrected


def seeds_to_tell(differences: Sequence[float]) -> float:
    """How many seeds it would take to tell the two apart, if mean and spread are as observed.

    The smallest number of pairs at which Student's two-sided test at 5 % finds the difference with a
    probability of 80 %. A spread from few seeds is rough, and so is this number.

    Parameters
    ----------
    differences : sequence of float
        Method minus reference, one per seed; at least two finite ones.

    Returns
    -------
    float
        A whole number from 2 to 100; inf beyond 100, nan with fewer than two differences.
    """
    from scipy import stats

    finite = [d for d in differences if math.isfinite(d)]
    if len(finite) < 2:
        return math.nan
    mean, deviation = abs(statistics.fmean(finite)), statistics.stdev(finite)
    if mean == 0:
        return math.inf
    if deviation == 0:
        return 2
    n = np.arange(2, MOST_SEEDS + 1)
    shift = np.minimum(mean / deviation * np.sqrt(n), 30)  # beyond 30 the power is 1 and the series fails
    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)
    power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    enough = np.nan_to_num(power, nan=0.0) >= POWER
    return float(n[enough.argmax()]) if enough.any() else math.inf


def best(values: Sequence[float], greater_is_better: bool = False) -> int:
    """The index of the best value of a set of trials.

    Parameters
    ----------
    values : sequence of float
        One per trial. One that is not finite is the worst there is; of equal ones the first is taken.
    greater_is_better : bool, default False

    Returns
    -------
    int

    Raises
    ------
    ValueError
        There is no trial.
    """
    if not len(values):
        raise ValueError("No trial to choose from: give at least one.")
    sign = -1 if greater_is_better else 1
    return min(range(len(values)), key=lambda i: sign * values[i] if math.isfinite(values[i]) else math.inf)


def edge(value: float, tried: Sequence[float]) -> str:
    """On which edge of what was tried a value lies.

    Parameters
    ----------
    value : float
        The best one.
    tried : sequence of float
        All, the best one among them.

    Returns
    -------
    str
        `"lowest"`, `"highest"`, or nothing: inside, or nothing else was tried.
    """
    if len(set(tried)) < 2:
        return ""
    return "lowest" if value <= min(tried) else "highest" if value >= max(tried) else ""


def steps_to(history: History, target: float) -> float:
    """Steps at the end of the first round whose probe loss is at or below `target`; inf if there is none."""
    return steps_until([r.step for r in history], [r.probe_after for r in history], target)


def steps_until(
    steps: Sequence[float], values: Sequence[float], target: float, greater_is_better: bool = False
) -> float:
    """The first of `steps` whose value has reached the target.

    Parameters
    ----------
    steps, values : sequence of float
        What was spent, and what was reached, by the end of every round.
    target : float
        Reached by a value equal to it or better.
    greater_is_better : bool, default False
        Of the values.

    Returns
    -------
    float
        inf where no value reached it.
    """
    for step, value in zip(steps, values, strict=True):
        if value >= target if greater_is_better else value <= target:
            return float(step)
    return math.inf


def steps_in_words(steps: Sequence[float]) -> str:
    """Median over seeds of what `steps_to` gave; a seed that never arrived counts as the last."""
    middle = median(steps)
    return f"{middle:g}" if math.isfinite(middle) else "not reached"
