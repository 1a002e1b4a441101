"""Equal trials for every method over its own knobs, the hopeless ones ended early, no best rate on an edge.

Every decision is taken when all runs it rests on are done, and rests on their scores alone. So it depends
neither on time nor on the number of workers, and a race that goes on takes the same decisions again from
its files. That is all the scheduling there is, which is why no tuning library does it: one that prunes as
results come in, or keeps a second storage beside the runs', would take more code and lose both properties.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xgblora_lab.bench.records import History
from xgblora_lab.methods import Method
from xgblora_lab.racing.summary import best, edge

STEP = 10**0.25  # a quarter decade
# All trials of a method run the first half of the plan, and the better third of them, at least three, all of
# it: what merging gains shows after the first merges, so an earlier cut would end the trials that merge, and
# among few trials the cut is within the noise. A trial that goes on begins again, with the same plan and
# therefore the same curve: no state has to be kept anywhere. That costs 5/6 of nine trials in full.
RUNG, KEPT, LEAST = 1 / 2, 1 / 3, 3
# A method with several sets of knobs begins with so many trials fewer and spends them at the rates beside its
# best trial: a rate is judged with the other knobs as they are.
BESIDE = 2
# Further runs over the whole plan that a method gets while a rate beside its best one has had none. One that
# was cut counts as not tried: before the rate decays, small rates look better than they end.
EXTRA = 4


@dataclass(frozen=True)
class Trial:
    """One setting of a method's knobs.

    Parameters
    ----------
    label : str
        The method's name in the race.
    method : Method
        With the knobs set.
    knobs : mapping of str to JSON value
        Those beside the learning rate.
    """

    label: str
    method: Method
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return self.method.lr

    def at(self, lr: float) -> Trial:
        """The same knobs at another learning rate."""
        return dataclasses.replace(self, method=dataclasses.replace(self.method, lr=lr))

    def __str__(self) -> str:
        return ", ".join([f"lr {self.lr:.4g}", *(f"{name} {value}" for name, value in self.knobs.items())])


@dataclass
class Tuned:
    """What tuning a method has found.

    Parameters
    ----------
    trials : list of Trial
        In the order they were begun.
    runs : dict of int to History
        Index of a trial → its run over the whole plan. Trials that were pruned or failed have none.
    best : int or None
        Index of the chosen trial; None where no run finished.
    whole : set of int
        Indices of the trials that were run over the whole plan, failed ones among them.
    """

    trials: list[Trial]
    runs: dict[int, History] = field(default_factory=dict)
    best: int | None = None
    whole: set[int] = field(default_factory=set)

    @property
    def edge(self) -> str:
        """On which edge of the rates tried to the end, with its other knobs, the best one is.

        "lowest", "highest" or nothing.
        """
        return "" if self.best is None else edge(self.trials[self.best].lr, self._tried())

    def beside(self) -> list[int]:
        """The trials at the rates beside the best one's that were not run to the end; new ones are added."""
        if self.best is None:
            return []
        top, tried = self.trials[self.best], self._tried()
        wanted = [top.at(_round(top.lr / STEP))] if top.lr <= min(tried) else []
        wanted += [top.at(_round(top.lr * STEP))] if top.lr >= max(tried) else []
        found = []
        for trial in wanted:
            same = [
                i
                for i, t in enumerate(self.trials)
                if t.knobs == top.knobs and math.isclose(t.lr, trial.lr, rel_tol=1e-3)
            ]
            if not same:
                self.trials.append(trial)
            found.append(same[0] if same else len(self.trials) - 1)
        return found

    def _tried(self) -> list[float]:
        assert self.best is not None
        knobs = self.trials[self.best].knobs
        return [self.trials[i].lr for i in self.whole if self.trials[i].knobs == knobs]


Run = Callable[[Sequence[Trial], float], "list[History | None]"]


def rates(lr: float, count: int) -> list[float]:
    """`count` learning rates a quarter decade apart, around a method's own default."""
    return [_round(lr * STEP ** (i - (count - 1) // 2)) for i in range(count)]


def plan(label: str, method: Method, knobs: Sequence[Mapping[str, Any]], trials: int) -> list[Trial]:
    """The trials that a method begins with.

    Parameters
    ----------
    label : str
        The method's name in the race.
    method : Method
        Its `lr` is the middle of the rates.
    knobs : sequence of mapping
        Sets of options beside the learning rate, as in `Method.knobs`; at least one, which may be empty.
    trials : int
        How many.

    Returns
    -------
    list of Trial
        With one set of options: as many rates. With several: two fewer, kept for the rates beside the best
        one; half as many rates as trials, each with two of the sets, taken in turn.
    """
    if len(knobs) > 1:
        trials = max(2, trials - BESIDE)
    tried = rates(method.lr, trials if len(knobs) == 1 else math.ceil(trials / 2))
    found = []
    for i in range(trials):
        again, at = divmod(i, len(tried))
        options = knobs[(at + again * max(1, len(knobs) // 2)) % len(knobs)]
        made = dataclasses.replace(method, **{**options, "lr": tried[at]})
        found.append(Trial(label, made, options))
    return found


def ahead(plans: Mapping[str, Sequence[Trial]], adapt: Iterable[str]) -> float:
    """How many runs of the whole plan `tune` makes of these; those beside a best rate come on top."""
    found, adapted = 0.0, set(adapt)
    for label, trials in plans.items():
        cut = label in adapted and len(trials) > LEAST
        found += len(trials) * RUNG + max(LEAST, math.ceil(len(trials) * KEPT)) if cut else len(trials)
    return found


def tune(plans: Mapping[str, Sequence[Trial]], run: Run, adapt: Iterable[str] = ()) -> dict[str, Tuned]:
    """Run the trials of all methods and choose one of each.

    Parameters
    ----------
    plans : mapping of str to sequence of Trial
        Label → the trials to begin with.
    run : callable
        Takes trials and the share of the plan to run them for; gives their histories, None for a failed one.
    adapt : iterable of str
        Labels whose trials are pruned and whose grid grows; the others' trials are run as they are.

    Returns
    -------
    dict of str to Tuned
    """
    found = {label: Tuned(list(trials)) for label, trials in plans.items()}
    adapted = set(adapt)
    going = {label: list(range(len(t.trials))) for label, t in found.items()}
    short = {label: going[label] for label in found if label in adapted and len(going[label]) > LEAST}
    for label, runs in _each(found, short, run, RUNG).items():
        going[label] = _better(runs, max(LEAST, math.ceil(len(runs) * KEPT)))
    begun = dict.fromkeys(found, 0)
    while any(going.values()):
        for label, runs in _each(found, going, run, 1.0).items():
            tuned = found[label]
            tuned.whole |= runs.keys()
            tuned.runs |= {i: history for i, history in runs.items() if history is not None}
            order = list(tuned.runs)
            merits = [merit(history) for history in tuned.runs.values()]
            tuned.best = order[best(merits, True)] if order else None
        going = {}
        for label, tuned in found.items():
            if label not in adapted:
                continue
            left = EXTRA + (BESIDE if tuned.trials[0].knobs else 0) - begun[label]
            going[label] = tuned.beside() if left > 0 else []
            begun[label] += len(going[label])
    return found


def merit(history: History) -> float:
    """What tuning maximises at the end: the dev score (minus the probe loss where there is no dev)."""
    if "dev" in history.scores:
        value = history.scores["dev"] * (1 if history.settings.greater_is_better else -1)
    else:
        value = -history[-1].probe_after if len(history) else math.nan
    return value if math.isfinite(value) else -math.inf


def _early(history: History | None) -> float:
    """What a rung judges by: minus the dev loss, which early tells more than a count of right answers."""
    value = -history.scores.get("early_loss", math.nan) if history is not None else math.nan
    return value if math.isfinite(value) else -math.inf


def _better(runs: Mapping[int, History | None], count: int) -> list[int]:
    """The `count` trials that did best so far, in their own order."""
    ranked = sorted(runs, key=lambda i: -_early(runs[i]))  # stable: the earlier of two equal ones
    return sorted(ranked[:count])


def _each(
    found: Mapping[str, Tuned], which: Mapping[str, Sequence[int]], run: Run, share: float
) -> dict[str, dict[int, History | None]]:
    """Run these trials of every label together."""
    flat = [(label, i) for label, indices in which.items() for i in indices]
    histories = run([found[label].trials[i] for label, i in flat], share) if flat else []
    results: dict[str, dict[int, History | None]] = {label: {} for label in which}
    for (label, i), history in zip(flat, histories, strict=True):
        results[label][i] = history
    return results


def _round(lr: float) -> float:
    return float(f"{lr:.6g}")
