"""Several methods on one task, fairly.

All see the same data order and budget. Each method's learning rate is tuned on the same grid by the dev
score; the chosen one runs with several seeds. The test score takes part in no choice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from xgblora_lab.bench import Bench
from xgblora_lab.hooks import Hook, Stop
from xgblora_lab.methods import Method, make_method
from xgblora_lab.records import History, short_name, write_json

if TYPE_CHECKING:
    import pandas as pd

    from xgblora_lab.tasks import Task

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
METHODS = ("xgblora", "lora:r=1", "lora:r=8", "full")


@dataclass
class Race:
    """What a race found.

    histories: of every run, the sweep's too; `history.settings["chosen"]` marks those at the chosen learning
    rate, which are the ones the table counts.
    """

    histories: list[History] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row per method: chosen learning rate, scores as median (range over seeds), costs."""
        import pandas as pd

        return pd.DataFrame([self._row(label) for label in self.labels]).set_index("method")

    @property
    def labels(self) -> list[str]:
        """The methods in the order they were given."""
        return list(dict.fromkeys(h.settings["label"] for h in self.histories))

    def chosen(self, label: str) -> list[History]:
        """A method's runs at its chosen learning rate, one per seed."""
        return [h for h in self.histories if h.settings["label"] == label and h.settings["chosen"]]

    def _row(self, label: str) -> dict[str, Any]:
        runs = self.chosen(label)
        tried = sorted({h.settings["lr"] for h in self.histories if h.settings["label"] == label})
        lr, last = runs[0].settings["lr"], runs[0][-1]
        edge = len(tried) > 1 and lr in (tried[0], tried[-1])
        row: dict[str, Any] = {"method": label, "lr": f"{lr:g}{' (edge of the grid)' if edge else ''}"}
        metric = runs[0].settings["metric"]
        for split in ("dev", "test"):
            values = [h.scores[split] for h in runs if split in h.scores]
            if values:
                row[f"{split} {metric}"] = spread(values)
        row["train loss"] = spread([statistics.fmean(h[-1].losses) for h in runs])
        row["peak parameters"] = max(r.peak_parameters for r in runs[0])
        row["total parameters"] = last.total_parameters
        row["optimizer bytes"] = max(r.optimizer_bytes for r in runs[0])
        row["extra passes"] = sum(r.extra_passes for r in runs[0])
        row["seconds"] = round(statistics.median(sum(r.seconds for r in h) for h in runs), 1)
        row["seeds"] = len(runs)
        return row

    def __str__(self) -> str:
        return self.table.to_string()

    def save(self, folder: str | Path) -> None:
        """Write `race.json` (settings and every history) and the table as `table.csv` and `table.md`."""
        folder = Path(folder)
        histories = [h.to_dict() for h in self.histories]
        write_json(folder / "race.json", {"settings": self.settings, "histories": histories})
        table = self.table.reset_index()
        write_text(folder / "table.csv", table.to_csv(index=False))
        write_text(folder / "table.md", markdown(table))

    @classmethod
    def load(cls, folder: str | Path) -> Race:
        """Read what `save` wrote."""
        path = Path(folder) / "race.json"
        if not path.is_file():
            raise FileNotFoundError(f"No finished race in {folder}: race.json is missing.")
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls([History.from_dict(h) for h in values["histories"]], values["settings"])


def race(
    model: str | Path | nn.Module = "lab",
    data: str | Path | Task = "pydocs",
    methods: Sequence[str | Method] = METHODS,
    *,
    lrs: Sequence[float] = GRID,
    seeds: int = 3,
    steps: int = 200,
    steps_per_round: int = 20,
    schedule: str = "linear",
    warmup: int = 0,
    batch_size: int = 16,
    targets: str | Sequence[str] = "all-linear",
    limit: int | None = None,
    hooks: Callable[[], Sequence[Hook]] = tuple,
    precision: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **task_options: Any,
) -> Race:
    """Race methods against each other.

    model, data: names as in `load`, with its task options; or a model and a task made already (the same
        object serves every run, since a bench puts it back to its base).
    methods: `Method` objects or texts such as "lora:r=8". One with an `lr` in its text is not tuned.
    lrs: the grid of learning rates, the same for every method, tried with the first seed.
    seeds: how many seeds the chosen learning rate runs with; a seed decides data order, head and boosters.
    steps, steps_per_round, schedule, warmup, batch_size, targets: as in `Bench` and `Method`, for all alike;
        an option in a method's text wins, and a `Method` object keeps its own.
    limit: score at most so many rows of dev and of test.
    hooks: makes fresh hooks for a run, e.g. `lambda: [Spectrum()]`.
    precision: accelerate's mixed precision, "no", "bf16" or "fp16".
    out: folder for the finished runs, the table and the histories; a race that was interrupted goes on there.
    """
    if seeds < 1 or not lrs:
        raise ValueError(
            f"A race needs at least one seed and one learning rate; got {seeds} and {list(lrs)}."
        )
    options = {"steps_per_round": steps_per_round, "schedule": schedule, "warmup": warmup}
    entries = [_entry(method, options, lrs) for method in methods]
    labels = [method.label(options) for method, _ in entries]
    if len(set(labels)) < len(labels):
        raise ValueError(f"Two methods of the race are the same: {', '.join(labels)}.")
    settings = {
        "model": short_name(model) if isinstance(model, str | Path) else type(model).__name__,
        "data": short_name(data) if isinstance(data, str | Path) else data.name,
        "lrs": list(lrs),
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "targets": targets if isinstance(targets, str) else list(targets),
        "limit": limit,
        "precision": precision,
        **options,
        **task_options,
    }
    runs = _Runs(_maker(model, data, task_options), settings, hooks, Path(out) if out is not None else None)
    total = sum(len(tried) + seeds - 1 for _, tried in entries)
    found = Race(settings={**settings, "methods": labels})
    with _bar(total, progress) as bar:
        for method, tried in entries:

            def run(lr: float, seed: int, method: Method = method) -> History:
                bar.set_description(f"{method.label(options)} lr {lr:g} seed {seed}")
                history = runs.run(dataclasses.replace(method, lr=lr), method.label(options), seed)
                bar.update()
                return history

            sweep = [run(lr, 0) for lr in tried]
            best = max(sweep, key=_merit)
            further = [run(best.settings["lr"], seed) for seed in range(1, seeds)]
            for history in [*sweep, *further]:
                history.settings["chosen"] = history.settings["lr"] == best.settings["lr"]
            found.histories += [*sweep, *further]
    if out is not None:
        found.save(out)
    return found


def spread(values: Sequence[float]) -> str:
    """Median and range in words: "0.823 (0.811 to 0.829)"."""
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.4g} to {max(values):.4g})"


def markdown(table: pd.DataFrame) -> str:
    """The table as GitHub's markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _entry(method: str | Method, options: dict[str, Any], lrs: Sequence[float]) -> tuple[Method, list[float]]:
    """The method with the race's common options, and the learning rates to try."""
    if isinstance(method, Method):
        return method, list(lrs)
    made = make_method(method, **options)
    fixed = any(part.startswith("lr=") for part in method.split(":"))
    return made, [made.lr] if fixed else list(lrs)


def _merit(history: History) -> float:
    """What tuning maximises: the dev score (the probe loss where the task has no dev split)."""
    score = history.scores.get("dev", math.nan)
    sign = 1 if history.settings["greater_is_better"] else -1
    if "dev" not in history.scores:
        score, sign = history[-1].probe_after, -1
    return sign * score if math.isfinite(score) else -math.inf


def _maker(
    model: str | Path | nn.Module, data: str | Path | Task, task_options: dict[str, Any]
) -> Callable[[int], tuple[nn.Module, Task]]:
    """seed -> (model, task): loaded anew for every seed by name, or the objects given."""
    if isinstance(model, nn.Module) != (not isinstance(data, str | Path)):
        raise ValueError("Give the model and the data both by name, or both as objects made already.")
    if isinstance(model, nn.Module):
        if task_options:
            raise ValueError(f"{next(iter(task_options))!r} is an option for data given by name.")
        return lambda seed: (model, data)  # type: ignore[return-value]
    from xgblora_lab.models import load, load_model

    made: dict[int, tuple[nn.Module, Task]] = {}

    def make(seed: int) -> tuple[nn.Module, Task]:
        if seed not in made:
            text = next((task for _, task in made.values() if data != "planted"), None)  # tokenised once
            made.clear()  # one model at a time: it may be large
            if text is None:
                made[seed] = load(model, data, seed=seed, **task_options)  # type: ignore[arg-type]
            else:
                made[seed] = load_model(model, text, seed=seed), text
        return made[seed]

    return make


class _Runs:
    """Trains one cell (method, learning rate, seed) of the race, or reads it where it was finished before."""

    def __init__(
        self,
        make: Callable[[int], tuple[nn.Module, Task]],
        settings: dict[str, Any],
        hooks: Callable[[], Sequence[Hook]],
        out: Path | None,
    ) -> None:
        self.make, self.settings, self.hooks, self.out = make, settings, hooks, out
        if out is not None:
            # A folder belongs to one race; more learning rates or seeds may be added to it later.
            common = json.loads(
                json.dumps({k: v for k, v in settings.items() if k not in ("lrs", "seeds")}, default=str)
            )
            kept = out / "settings.json"
            if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != common:
                raise ValueError(
                    f"{out} holds a race with other settings; choose another folder for this one."
                )
            write_json(kept, common)

    def run(self, method: Method, label: str, seed: int) -> History:
        name = f"{label}_lr={method.lr:g}_seed={seed}".replace("/", "-").replace(":", "_")
        path = self.out / "runs" / f"{name}.json" if self.out is not None else None
        if path is not None and path.exists():
            return History.load(path)
        history = self._train(method, seed)
        history.settings["label"] = label
        if path is not None:
            history.save(path)
        return history

    def _train(self, method: Method, seed: int) -> History:
        from accelerate import Accelerator

        model, task = self.make(seed)
        s = self.settings
        with Bench(
            model,
            task,
            method,
            steps=s["steps"],
            batch_size=s["batch_size"],
            targets=s["targets"],
            seed=seed,
            data_seed=seed,
            hooks=[Stop(patience=math.inf), *self.hooks()],
            accelerator=Accelerator(mixed_precision=s["precision"]) if s["precision"] else None,
        ) as bench:
            bench.run(progress=False)
            for split in ("dev", "test"):
                if task.size(split):
                    scores = bench.evaluate(split, s["limit"])
                    bench.history.scores |= {f"{split}_{k}": v for k, v in scores.items()}
                    bench.history.scores[split] = scores[task.metric]
            return bench.history


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="run", disable=not progress)
