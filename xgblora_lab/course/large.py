"""Races that take hours: computed beforehand, they lie in one small file that a lesson reads beside its own.

`python -m xgblora_lab.course.large` writes `races.json` from every `benchmarks/*/race.json` of a clone. It
keeps what comparisons need: the test score of every seed, the trials, and what was trained at one moment and
in total. A race that is committed later is in every table and figure from the next build on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.course.board import forest as drawn
from xgblora_lab.files import plain, write_text
from xgblora_lab.methods import METHODS
from xgblora_lab.racing.result import Race
from xgblora_lab.racing.summary import Difference, compare, median

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = Path(__file__).with_name("races.json")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"  # of a clone
TASKS = {"valid.txt": "ten books", "planted": "planted update", "sst2_sent": "SST-2", "trec": "TREC"}


@dataclass(frozen=True)
class Large:
    """A race that was computed beforehand.

    Parameters
    ----------
    name : str
        Of its folder under `benchmarks`.
    task, model, metric : str
        In words; the metric is that of the scores.
    greater_is_better : bool
        Of the scores.
    steps : int
        Optimizer steps of every run.
    reference : str or None
        The method that the others are compared with: the LoRA of the highest rank.
    scores : dict of str to list of float
        Method → test score (dev's, where there is no test split) by seed, nan where a run failed.
    peak, total : dict of str to int
        Method → numbers trained at one moment, and in total.
    trials : list of dict
        Every trial: `method`, `lr`, `knobs`, whether it was `chosen`, and its `dev` score, None where it was
        ended early.
    """

    name: str
    task: str
    model: str
    metric: str
    greater_is_better: bool
    steps: int
    reference: str | None
    scores: dict[str, list[float]]
    peak: dict[str, int]
    total: dict[str, int]
    trials: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """For example "ten books, 1,000 steps"."""
        return f"{self.task}, {self.steps:,} steps"

    def differences(self, reference: str | None = None) -> dict[str, Difference]:
        """Subtract the reference's scores from every other method's, paired by seed.

        Parameters
        ----------
        reference : str, optional
            The method to compare with; default the race's own.

        Returns
        -------
        dict of str to Difference
            Method → difference; all are corrected together by Holm's rule. Empty without a reference.
        """
        reference = reference or self.reference
        if reference is None:
            return {}
        theirs = self.scores[reference]
        return compare(
            {
                method: [a - b for a, b in zip(mine, theirs, strict=True)]
                for method, mine in self.scores.items()
                if method != reference
            }
        )

    def gains(self) -> dict[str, Difference]:
        """The differences in per cent of the reference's mean score; above 0 the method is better."""
        unit = statistics.fmean(self.scores[self.reference]) / 100 if self.reference is not None else math.nan
        sign = 1 if self.greater_is_better else -1
        gains = {}
        for method, d in self.differences().items():
            low, high = sorted((sign * d.low / unit, sign * d.high / unit))
            gains[method] = dataclasses.replace(d, mean=sign * d.mean / unit, low=low, high=high)
        return gains


def races(path: Path = FILE) -> dict[str, Large]:
    """Return the races computed beforehand, by name.

    Parameters
    ----------
    path : Path, optional
        The file that `build` has written; default the package's own.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    for race in found.values():
        race["scores"] = {
            method: [math.nan if score is None else float(score) for score in scores]
            for method, scores in race["scores"].items()
        }
    return {name: Large(name=name, **race) for name, race in found.items()}


def table(found: dict[str, Large]) -> pd.DataFrame:
    """Return one row for each comparison: scores, difference with its interval, verdict, peak and total.

    Parameters
    ----------
    found : dict of str to Large
        As `races` returns them.
    """
    import pandas as pd

    rows = []
    for race in found.values():
        for method, d in race.differences().items():
            reference = str(race.reference)
            mine, theirs = (median(race.scores[m], race.greater_is_better) for m in (method, reference))
            row: dict[str, Any] = {"race": race.title, "method": method, "against": reference}
            row |= {"score": race.metric, "the method's": f"{mine:.3f}", "the other's": f"{theirs:.3f}"}
            row |= {"difference (95 %)": str(d), "verdict": d.verdict(race.greater_is_better)}
            row |= {"seeds": d.count, "seeds to tell": d.seeds_in_words}
            row |= {"peak, times": race.peak[method] / race.peak[reference]}
            row |= {"total, times": race.total[method] / race.total[reference]}
            rows.append(row)
    return pd.DataFrame(rows).set_index(["race", "method", "against"])


def forest(found: dict[str, Large]) -> go.Figure:
    """Draw every comparison: its gain over the reference with its interval.

    Parameters
    ----------
    found : dict of str to Large
        As `races` returns them.
    """
    gains = {
        f"{race.title}<br>{method} against {race.reference}": (gain, race)
        for race in found.values()
        for method, gain in race.gains().items()
    }
    return drawn(
        "Races computed beforehand",
        "gain over the reference (% of its score; right: better)",
        {name: gain for name, (gain, _) in gains.items()},
        {name: gain.verdict(greater_is_better=True) for name, (gain, _) in gains.items()},
        note="mean and 95 % interval; verdicts after Holm's correction",
    )


def build(benchmarks: Path = BENCHMARKS) -> str:
    """Return what the file should hold.

    Parameters
    ----------
    benchmarks : Path, optional
        The folder whose folders hold a `race.json` each; default the clone's.
    """
    folders = sorted(path.parent for path in benchmarks.glob("*/race.json"))
    lines = (
        f"{json.dumps(f.name)}: {json.dumps(plain(_kept(Race.load(f))), ensure_ascii=False)}" for f in folders
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _kept(race: Race) -> dict[str, Any]:
    names = _names(race)
    runs = {names[label]: race.chosen(label) for label in race.labels}
    first = next(iter(runs.values()))[0].settings
    by_seed = {
        m: {h.settings.seed: h.scores.get("test", h.scores["dev"]) for h in hs} for m, hs in runs.items()
    }
    seeds = list(dict.fromkeys(seed for scores in by_seed.values() for seed in scores))
    return {
        "task": TASKS.get(race.settings["data"], race.settings["data"]),
        "model": race.settings["model"],
        "metric": first.metric,
        "greater_is_better": first.greater_is_better,
        "steps": race.settings["steps"],
        "reference": names[race.reference] if race.reference is not None else None,
        "scores": {m: [scores.get(seed) for seed in seeds] for m, scores in by_seed.items()},
        "peak": {m: max(r.peak_parameters for r in hs[0]) for m, hs in runs.items()},
        "total": {m: hs[0][-1].total_parameters for m, hs in runs.items()},
        "trials": [
            {"method": names[t["label"]], **{k: v for k, v in t.items() if k != "label"}}
            for t in race.trials
            if t["label"] in names
        ],
    }


def _names(race: Race) -> dict[str, str]:
    """Label → the method's name in words, where no two methods share it; else the label."""
    names = {}
    for label in race.labels:
        run = race.chosen(label)[0]
        rank = run.settings.options.get("rank")
        name = "full fine-tuning" if run.method == "full" else METHODS[run.method].__name__
        name = f"{name}, rank {rank}" if rank else name
        names[label] = f"{name}, plateau" if "merge=plateau" in label else name  # not where tuning chose it
    shared = {label for label, name in names.items() if list(names.values()).count(name) > 1}
    return {label: label if label in shared else name for label, name in names.items()}


def main() -> int:
    """Write the file, from a clone."""
    write_text(FILE, build())
    sys.stdout.write(f"written: {FILE.name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
