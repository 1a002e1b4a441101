"""Several methods on one task, fairly.

All see the same data order and budget. Each method's learning rate is tuned on the same grid by the dev
score; the chosen one runs with several seeds. The test score takes part in no choice.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook, Stop
from xgblora_lab.bench.records import History, short_name
from xgblora_lab.files import write_json, write_text
from xgblora_lab.methods import METHODS, Method, make_method

if TYPE_CHECKING:
    import pandas as pd

    from xgblora_lab.tasks.task import Task

# Times a method's own default learning rate: useful rates lie a factor of ten and more apart between methods,
# because a step of one size changes the weights by very different amounts.
# Small models want larger ones: on the lab model the best rates lie near the upper end.
GRID = (0.3, 1.0, 3.0, 10.0, 30.0)
FIELD = ("xgblora", "lora:r=1", "lora:r=8", "full")


@dataclass
class Race:
    """What a race found.

    histories: of every run, the sweep's too; `history.settings.chosen` marks those at the chosen learning
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
        return list(dict.fromkeys(h.label for h in self.histories))

    def chosen(self, label: str) -> list[History]:
        """A method's runs at its chosen learning rate, one per seed."""
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
        return statistics.median(h[-1].probe_after for h in self.chosen(self.reference))

    def differences(self, label: str) -> list[float]:
        """Test score (dev's, without a test split) minus the reference's of the same seed, for every seed."""
        if self.reference is None:
            return []
        theirs = {h.settings.seed: _score(h) for h in self.chosen(self.reference)}
        return [_score(h) - theirs[h.settings.seed] for h in self.chosen(label)]

    def steps_to_target(self, label: str) -> list[float]:
        """Steps until the probe loss first was at or below `target`, by seed; inf where it never was."""
        target = self.target
        return [
            next((float(r.step) for r in h if r.probe_after <= target), math.inf) for h in self.chosen(label)
        ]

    def _row(self, label: str) -> dict[str, Any]:
        runs = self.chosen(label)
        tried = sorted({h.settings.lr for h in self.histories if h.label == label})
        lr, last = runs[0].settings.lr, runs[0][-1]
        edge = len(tried) > 1 and lr in (tried[0], tried[-1])
        row: dict[str, Any] = {"method": label, "lr": f"{lr:g}{' (edge of the grid)' if edge else ''}"}
        metric = runs[0].settings.metric
        for split in ("dev", "test"):
            values = [h.scores[split] for h in runs if split in h.scores]
            if values:
                row[f"{split} {metric}"] = spread(values)
        if self.reference is not None:
            row[f"minus {self.reference}"] = (
                interval(self.differences(label)) if label != self.reference else ""
            )
            reached = statistics.median(self.steps_to_target(label))
            row["steps to its loss"] = f"{reached:g}" if math.isfinite(reached) else "not reached"
        row["train loss"] = spread([statistics.fmean(h[-1].losses) for h in runs])
        row["peak parameters"] = max(r.peak_parameters for r in runs[0])
        row["total parameters"] = last.total_parameters
        row["optimizer bytes"] = max(r.optimizer_bytes for r in runs[0])
        row["extra passes"] = sum(r.extra_passes for r in runs[0])
        row["extra forwards"] = sum(r.extra_forwards for r in runs[0])
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
    methods: str | Sequence[str | Method] = FIELD,
    *,
    lrs: Sequence[float] | None = None,
    factors: Sequence[float] = GRID,
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
    executor: Executor | None = None,
    progress: bool = True,
    **task_options: Any,
) -> Race:
    """Race methods against each other.

    model, data: names as in `load`, with its task options; or a model and a task made already (the same
        object serves every run, since a bench puts it back to its base).
    methods: `Method` objects or texts such as "lora:r=8". One with an `lr` in its text is not tuned. "all":
        every method there is, with its defaults.
    lrs: learning rates to try, the same for every method. Default: the same number of rates for every method,
        `factors` times its own default `lr`. Tried with the first seed and chosen by the dev score.
    seeds: how many seeds the chosen learning rate runs with; a seed decides data order, head and boosters.
    steps, steps_per_round, schedule, warmup, batch_size, targets: as in `Bench` and `Method`, for all alike;
        an option in a method's text wins, and a `Method` object keeps its own.
    limit: score at most so many rows of dev and of test.
    hooks: makes fresh hooks for a run, e.g. `lambda: [Spectrum()]`.
    precision: accelerate's mixed precision, "no", "bf16" or "fp16".
    out: folder for the finished runs, the table and the histories; a race that was interrupted goes on there.
    executor: where the runs happen, any `concurrent.futures.Executor`: a `ProcessPoolExecutor`, or a Dask
        cluster's `Client.get_executor()`. Default: here, one after another. (Threads share torch's random
        generator, so that dropout is not repeatable in a `ThreadPoolExecutor`.)
    """
    if seeds < 1 or not (factors if lrs is None else lrs):
        raise ValueError(f"A race needs at least one seed and one learning rate; got {seeds} and {lrs}.")
    options = {"steps_per_round": steps_per_round, "schedule": schedule, "warmup": warmup}
    if isinstance(methods, str):
        methods = list(METHODS) if methods == "all" else [methods]
    entries = [_entry(method, options, lrs, factors) for method in methods]
    labels = [method.label(options) for method, _ in entries]
    if len(set(labels)) < len(labels):
        raise ValueError(f"Two methods of the race are the same: {', '.join(labels)}.")
    settings = {
        "model": short_name(model) if isinstance(model, str | Path) else type(model).__name__,
        "data": short_name(data) if isinstance(data, str | Path) else data.name,
        "lrs": list(lrs) if lrs is not None else None,
        "factors": list(factors),
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "targets": targets if isinstance(targets, str) else list(targets),
        "limit": limit,
        "precision": precision,
        **options,
        **task_options,
    }
    if isinstance(model, nn.Module) != (not isinstance(data, str | Path)):
        raise ValueError("Give the model and the data both by name, or both as objects made already.")
    if isinstance(model, nn.Module) and task_options:
        raise ValueError(f"{next(iter(task_options))!r} is an option for data given by name.")
    runs = _Runs(Path(out) if out is not None else None, settings, executor)

    def cell(method: Method, lr: float, seed: int) -> _Cell:
        method = dataclasses.replace(method, lr=lr)
        return _Cell(model, data, task_options, settings, hooks, method, method.label(options), seed)

    with _bar(sum(len(tried) + seeds - 1 for _, tried in entries), progress) as bar:
        sweep = runs.finish([cell(m, lr, 0) for m, tried in entries for lr in tried], bar)
        best = {
            label: max((h for h in sweep if h.label == label), key=_merit).settings.lr for label in labels
        }
        chosen = [(method, best[label]) for (method, _), label in zip(entries, labels, strict=True)]
        # Seed by seed, because a model that is given by name is loaded once for each.
        further = runs.finish([cell(m, lr, seed) for seed in range(1, seeds) for m, lr in chosen], bar)
    found = Race(settings={**settings, "methods": labels})
    for label in labels:
        found.histories += [h for h in [*sweep, *further] if h.label == label]
    for history in found.histories:
        marked = history.settings.lr == best[history.label]
        history.settings = dataclasses.replace(history.settings, chosen=marked)
    if out is not None:
        found.save(out)
    return found


def spread(values: Sequence[float]) -> str:
    """Median and range in words: "0.823 (0.811 to 0.829)"."""
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.4g} to {max(values):.4g})"


def interval(differences: Sequence[float], confidence: float = 0.95) -> str:
    """Mean of paired differences with Student's interval: "+0.012 (-0.003 to +0.027)"; one alone has none."""
    from scipy import stats

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return f"{mean:+.3g}"
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return f"{mean:+.3g} ({mean - half:+.3g} to {mean + half:+.3g})"


def markdown(table: pd.DataFrame) -> str:
    """The table as GitHub's markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _entry(
    method: str | Method, options: dict[str, Any], lrs: Sequence[float] | None, factors: Sequence[float]
) -> tuple[Method, list[float]]:
    """The method with the race's common options, and the learning rates to try."""
    made = method if isinstance(method, Method) else make_method(method, **options)
    if isinstance(method, str) and any(part.startswith("lr=") for part in method.split(":")):
        return made, [made.lr]
    if lrs is not None:
        return made, list(lrs)
    unit = type(made)().lr
    return made, [float(f"{factor * unit:.6g}") for factor in factors]


def _score(history: History) -> float:
    scores = history.scores
    return scores.get("test", scores.get("dev", math.nan))


def _merit(history: History) -> float:
    """What tuning maximises: the dev score (the probe loss where the task has no dev split)."""
    score = history.scores.get("dev", math.nan)
    sign = 1 if history.settings.greater_is_better else -1
    if "dev" not in history.scores:
        score, sign = history[-1].probe_after, -1
    return sign * score if math.isfinite(score) else -math.inf


@dataclass
class _Cell:
    """One run of the race: all that a process somewhere else needs for it."""

    model: str | Path | nn.Module
    data: str | Path | Task
    task_options: dict[str, Any]
    settings: dict[str, Any]
    hooks: Callable[[], Sequence[Hook]]
    method: Method
    label: str
    seed: int

    @property
    def name(self) -> str:
        name = f"{self.label}_lr={self.method.lr:g}_seed={self.seed}"
        return name.replace("/", "-").replace(":", "_")


_made = threading.local()  # the model and task last loaded by name, in this thread


def _load(cell: _Cell) -> tuple[nn.Module, Task]:
    """The cell's model and task: the objects given, or loaded by name once for every seed."""
    if isinstance(cell.model, nn.Module):
        return cell.model, cell.data  # type: ignore[return-value]
    from xgblora_lab.tasks.models import load, load_model

    what = (str(cell.model), str(cell.data), cell.task_options)
    last = getattr(_made, "last", None)
    if last is None or last[0] != what or (last[1] != cell.seed and cell.data == "planted"):
        _made.last = None  # one model at a time: it may be large
        model, task = load(cell.model, cell.data, seed=cell.seed, **cell.task_options)  # type: ignore[arg-type]
    elif last[1] != cell.seed:
        task = last[3]  # the text is tokenised once
        _made.last = None
        model = load_model(cell.model, task, seed=cell.seed)
    else:
        return last[2], last[3]
    _made.last = (what, cell.seed, model, task)
    return model, task


def _train(cell: _Cell, own_copy: bool = False) -> History:
    """Run a cell. own_copy: of a model given as an object, which other threads may be using."""
    from accelerate import Accelerator

    model, task = _load(cell)
    if own_copy and isinstance(cell.model, nn.Module):
        model = copy.deepcopy(model)
    s = cell.settings
    with Bench(
        model,
        task,
        cell.method,
        steps=s["steps"],
        batch_size=s["batch_size"],
        targets=s["targets"],
        seed=cell.seed,
        data_seed=cell.seed,
        hooks=[Stop(patience=math.inf), *cell.hooks()],
        accelerator=Accelerator(mixed_precision=s["precision"]) if s["precision"] else None,
    ) as bench:
        bench.run(progress=False)
        for split in ("dev", "test"):
            if task.size(split):
                scores = bench.evaluate(split, s["limit"])
                bench.history.scores |= {f"{split}_{k}": v for k, v in scores.items()}
                bench.history.scores[split] = scores[task.metric]
        bench.history.label = cell.label
        return bench.history


class _Runs:
    """Trains cells, here or in an executor, and keeps every finished one on disk."""

    def __init__(self, out: Path | None, settings: dict[str, Any], executor: Executor | None) -> None:
        self.out, self.executor = out, executor
        if out is not None:
            # A folder belongs to one race; more learning rates or seeds may be added to it later.
            common = json.loads(
                json.dumps(
                    {k: v for k, v in settings.items() if k not in ("lrs", "factors", "seeds")}, default=str
                )
            )
            kept = out / "settings.json"
            if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != common:
                raise ValueError(
                    f"{out} holds a race with other settings; choose another folder for this one."
                )
            write_json(kept, common)

    def finish(self, cells: Sequence[_Cell], bar: Any) -> list[History]:
        """The histories of these cells, in their order; those finished before are read."""
        found: dict[str, History] = {}
        waiting = []
        for cell in cells:
            path = self._path(cell)
            if path is not None and path.exists():
                found[cell.name] = History.load(path)
                bar.update()
            else:
                waiting.append(cell)
        for cell, history in self._trained(waiting, bar):
            found[cell.name] = history
            if (path := self._path(cell)) is not None:
                history.save(path)
            bar.update()
        return [found[cell.name] for cell in cells]

    def _trained(self, cells: Sequence[_Cell], bar: Any) -> Iterator[tuple[_Cell, History]]:
        if self.executor is None:
            for cell in cells:
                bar.set_description(f"{cell.label} lr {cell.method.lr:g} seed {cell.seed}")
                yield cell, _train(cell)
            return
        futures: dict[Future[History], _Cell] = {}
        try:
            for cell in cells:
                futures[self.executor.submit(_train, cell, True)] = cell
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()  # those not begun, where something went wrong

    def _path(self, cell: _Cell) -> Path | None:
        return self.out / "runs" / f"{cell.name}.json" if self.out is not None else None


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="run", disable=not progress)
