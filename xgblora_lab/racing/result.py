"""What a race found: its runs, its table, and one small file that holds both."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.bench.records import History
from xgblora_lab.files import plain, write_text
from xgblora_lab.racing.summary import Difference, compare, median, spread, steps_in_words, steps_to
from xgblora_lab.racing.ties import tie
from xgblora_lab.tasks.limits import whole

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 10_000_000  # steps of a round
STEPWISE = ("losses", "learning_rates", "gradient_norms")


@dataclass
class Race:
    """What a race found.

    Parameters
    ----------
    histories : list of History
        The runs over the whole plan: of the chosen knobs with every seed (`history.settings.chosen`, the ones
        that the table counts), and the trials that differ from them in the learning rate alone.
    settings : dict
        Of the race. `methods`: the labels; `majority`: the score of the majority class by split.
    trials : list of dict
        Every trial: `label`, `lr`, `knobs`, whether it was `chosen`, and its `dev` score, None where it was
        pruned or failed.
    edges : dict of str to str
        Label → the edge of the rates tried on which its best one still lies.
    failures : dict of str to str
        Which runs failed, and of what.
    """

    histories: list[History] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    edges: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row per method: chosen knobs, scores as median (range over seeds), verdict, costs."""
        import pandas as pd

        compared = self.differences_by_label()
        return pd.DataFrame([self._row(label, compared) for label in self.labels]).set_index("method")

    @property
    def note(self) -> str:
        """What stands above the table: why the race says nothing, and which runs failed; often empty."""
        runs = {label: [_score(h) for h in self.chosen(label)] for label in self.labels}
        every = [h for label in self.labels for h in self.chosen(label)]
        split = "test" if every and all("test" in h.scores for h in every) else "dev"
        majority = (self.settings.get("majority") or {}).get(split)
        greater = bool(every) and every[0].settings.greater_is_better
        reference = self.chosen(self.reference) if self.reference is not None else []
        lines = [tie(runs, greater, majority, reference)]
        lines += [f"Failed: {cell} ({error})." for cell, error in self.failures.items()]
        return "\n".join(line for line in lines if line)

    @property
    def labels(self) -> list[str]:
        """The methods with a finished run, in the order they were given."""
        return list(dict.fromkeys(h.label for h in self.histories))

    def chosen(self, label: str) -> list[History]:
        """A method's runs with its chosen knobs, one per seed."""
        return [h for h in self.histories if h.label == label and h.settings.chosen]

    @property
    def reference(self) -> str | None:
        """The label that the others are compared with: the race's LoRA of the highest rank."""
        loras = [label for label in self.labels if self.chosen(label)[0].method == "lora"]
        ranks = {label: self.chosen(label)[0].settings.options["rank"] for label in loras}
        return max(loras, key=lambda label: ranks[label], default=None)

    @property
    def target(self) -> float:
        """The probe loss to reach: the reference's at its end, median over seeds; nan without a reference."""
        if self.reference is None:
            return math.nan
        return median([h[-1].probe_after for h in self.chosen(self.reference)])

    def differences(self, label: str) -> list[float]:
        """Test score (dev's, without a test split) minus the reference's of the same seed, for every seed.

        nan where the reference's run of that seed failed.
        """
        if self.reference is None:
            return []
        theirs = {h.settings.seed: _score(h) for h in self.chosen(self.reference)}
        return [_score(h) - theirs.get(h.settings.seed, math.nan) for h in self.chosen(label)]

    def differences_by_label(self) -> dict[str, Difference]:
        """All comparisons with the reference, corrected together."""
        return compare({label: self.differences(label) for label in self.labels if label != self.reference})

    def steps_to_target(self, label: str) -> list[float]:
        """Steps until the probe loss first was at or below `target`, by seed; inf where it never was."""
        return [steps_to(h, self.target) for h in self.chosen(label)]

    def _row(self, label: str, compared: Mapping[str, Difference]) -> dict[str, Any]:
        runs = self.chosen(label)
        first, greater = runs[0].settings, runs[0].settings.greater_is_better
        row: dict[str, Any] = {"method": label, "chosen": self._knobs(label)}
        for split in ("dev", "test"):
            values = [h.scores[split] for h in runs if split in h.scores]
            if values:
                row[f"{split} {first.metric}"] = str(spread(values, greater))
        if self.reference is not None:
            difference = compared.get(label)
            told = difference is not None
            row[f"minus {self.reference}"] = str(difference) if told else ""
            row["verdict (Holm)"] = difference.verdict(greater) if difference else "reference"
            row["seeds to tell"] = difference.seeds_in_words if difference else ""
            row["steps to its loss"] = steps_in_words(self.steps_to_target(label))
        row["train loss"] = str(spread([statistics.fmean(h[-1].losses) for h in runs]))
        row["peak parameters"] = max(r.peak_parameters for r in runs[0])
        row["total parameters"] = runs[0][-1].total_parameters
        row["optimizer bytes"] = max(r.optimizer_bytes for r in runs[0])
        row["extra passes"] = sum(r.extra_passes for r in runs[0])
        row["extra forwards"] = sum(r.extra_forwards for r in runs[0])
        row["seconds"] = float(f"{statistics.median(sum(r.seconds for r in h) for h in runs):.3g}")
        row["seeds"] = len(runs)
        return row

    def _knobs(self, label: str) -> str:
        lr = self.chosen(label)[0].settings.lr
        mine = [t for t in self.trials if t["label"] == label]
        knobs: dict[str, Any] = next((t["knobs"] for t in mine if t["chosen"]), {})
        words = [f"lr {lr:.4g}", *(f"{name} {value}" for name, value in knobs.items())]
        if self.edges.get(label):
            words[0] += f" (edge: the {self.edges[label]} tried)"
        return ", ".join(words)

    def __str__(self) -> str:
        return "\n".join(part for part in (self.note, self.table.to_string()) if part)

    def save(self, folder: str | Path) -> None:
        """Write `race.json`, and the table as `table.csv` and `table.md`.

        `race.json` is small. All numbers but the scores have 6 significant digits. Of the three per-step
        series a round keeps the mean. What hooks measured beyond plain numbers is kept for the first chosen
        run of each method. Rounds stand in columns, so that no name is repeated.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        whole = {id(self.chosen(label)[0]) for label in self.labels}
        head = {
            "settings": self.settings,
            "trials": self.trials,
            "edges": self.edges,
            "failures": self.failures,
        }
        parts = [f"{json.dumps(key)}: {_json(value)}" for key, value in head.items()]
        sets: dict[tuple[str, ...], int] = {}  # which modules, each set once
        runs = ",\n".join(_json(_compact(h, id(h) in whole, sets)) for h in self.histories)
        parts.append(f'"modules": {_json(list(sets))}')
        write_text(folder / "race.json", "{" + ",\n".join([*parts, f'"histories": [\n{runs}\n]']) + "}\n")
        table = self.table.reset_index()
        write_text(folder / "table.csv", table.to_csv(index=False))
        note = f"{self.note}\n\n" if self.note else ""
        write_text(folder / "table.md", note + markdown(table))

    @classmethod
    def load(cls, folder: str | Path) -> Race:
        """Read what `save` wrote.

        A loaded round's per-step series repeat the round's mean.

        Raises
        ------
        FileNotFoundError
            There is no finished race in the folder.
        ValueError
            It was written by a version that kept races in another form, or is damaged.
        """
        path = Path(folder) / "race.json"
        if not path.is_file():
            raise FileNotFoundError(f"No finished race in {folder}: race.json is missing.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON file; run the race again in its folder.") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Race:
        """A race from the contents of its `race.json`.

        Raises
        ------
        ValueError
            They were written by a version that kept races in another form, or are no race's contents.
        """
        if isinstance(values, dict) and "trials" not in values and "histories" in values:
            raise ValueError("this race was written by an older version; run it again to read it")
        try:
            histories = [History.from_dict(_whole(h, values["modules"])) for h in values["histories"]]
            race = cls(histories, values["settings"], values["trials"], values["edges"], values["failures"])
            if histories:
                str(race)  # every number of the table is one
        except Exception as error:  # of many classes, by what has the wrong type
            raise ValueError(
                f"this is no race that `save` wrote, or a damaged one ({type(error).__name__}: {error}); "
                "run the race again in its folder"
            ) from error
        return race


def _whole(history: Mapping[str, Any], sets: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The history's dict as `History.to_dict` gives it: what `_compact` left out is put back."""
    rounds = []
    columns = history["rounds"]
    for values in zip(*columns.values(), strict=True):
        kept = dict(zip(columns, values, strict=True))
        steps = whole("steps", kept["steps"], 0, LONGEST)
        series = {name: [kept[name]] * steps for name in STEPWISE}
        r = {**kept, **series, "modules": sets[kept["modules"]]}
        del r["steps"]
        rounds.append(r)
    return {**history, "rounds": rounds}


def markdown(table: pd.DataFrame) -> str:
    """The table as GitHub's markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _score(history: History) -> float:
    scores = history.scores
    return scores.get("test", scores.get("dev", math.nan))


def _compact(history: History, whole: bool, sets: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """A history's dict with means of the per-step series, and plain measurements alone unless `whole`.

    sets: module names by round → their number in the file; new ones are added.
    """
    made = history.to_dict()
    made["scores"] = {
        name: repr(value) for name, value in history.scores.items()
    }  # differences need all digits
    if not whole:
        made["settings"]["truth_spectrum"] = {}
    for r, record in zip(made["rounds"], history, strict=True):
        r["steps"] = len(record.losses)
        r["modules"] = sets.setdefault(record.modules, len(sets))
        r |= {name: _mean(getattr(record, name)) for name in STEPWISE}
        if not whole:
            scalars = {k: v for k, v in record.measurements.items() if isinstance(v, int | float | str)}
            r["measurements"] = scalars
    rounds = made["rounds"]
    made["rounds"] = {name: [r[name] for r in rounds] for name in (rounds[0] if rounds else ())}
    return made


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _json(value: Any) -> str:
    return json.dumps(plain(_rounded(value)), separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
