"""Several methods on one task, fairly: the same data order, budget and number of trials for all.

Each method's knobs are tuned by the dev score; the chosen ones run with several seeds. The test score takes
part in no choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from xgblora_lab.bench.hooks import Hook
from xgblora_lab.bench.records import History, short_name
from xgblora_lab.methods import ALIASES, METHODS, Method, make_method
from xgblora_lab.racing.cells import Cell, Cells, load_cell
from xgblora_lab.racing.identity import data_digest, hook_names, model_digest, precision_of
from xgblora_lab.racing.processes import refuse_launched
from xgblora_lab.racing.progress import Bar, Progress
from xgblora_lab.racing.result import Race
from xgblora_lab.racing.ties import majority_score
from xgblora_lab.racing.tuning import Trial, Tuned, ahead, plan, tune
from xgblora_lab.tasks.limits import whole

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Task

__all__ = ["Race", "race"]

FIELD = ("xgblora", "lora:r=1", "lora:r=8", "full")
TRIALS = 8
LARGEST = {"seeds": 10_000, "trials": 10_000, "steps": 100_000_000, "batch_size": 1_000_000}
OPEN = ("trials", "lrs", "seeds")  # settings that may grow when a race goes on in its folder


def race(
    model: str | Path | nn.Module = "lab",
    data: str | Path | Task = "pydocs",
    methods: str | Sequence[str | Method] = FIELD,
    *,
    trials: int = TRIALS,
    lrs: Sequence[float] | None = None,
    seeds: int = 3,
    steps: int = 200,
    steps_per_round: int = 20,
    schedule: str = "linear",
    warmup: int = 0,
    batch_size: int = 16,
    targets: str | Sequence[str] = "all-linear",
    limit: int | None = None,
    hooks: Callable[[], Sequence[Hook]] = tuple,
    watch: Callable[[], Sequence[Hook]] | None = None,
    precision: str | None = None,
    out: str | Path | None = None,
    executor: Executor | None = None,
    progress: bool | Progress = True,
    **task_options: Any,
) -> Race:
    """Race methods against each other.

    Parameters
    ----------
    model, data : str, Path, or objects made already
        Names as in `load`, with its task options; or a model and a task (the same objects serve every run,
        since a bench puts the model back to its base).
    methods : str or sequence of str and Method
        `Method` objects or texts such as "lora:r=8". An option in a text is not tuned; an object's `lr` is
        the middle of the rates tried, and its other knobs are tuned. "all": every method there is.
    trials : int, default 8
        Trials of every method over its own knobs (`Method.knobs`) and learning rates a quarter decade apart
        around its default; with the first seed, chosen by the dev score. After half of the steps the worse
        two thirds end, or all but three. While the rates beside the best one have not been tried, up to four
        further ones are.
        With 1, every method runs with its defaults.
    lrs : sequence of float, optional
        Try exactly these learning rates, the same for every method, over the whole run, and no other knob.
    seeds : int, default 3
        How many the chosen knobs run with; a seed decides data order, head and boosters.
    steps, steps_per_round, schedule, warmup, batch_size, targets
        As in `Bench` and `Method`, for all alike; an option in a method's text wins, and a `Method` object
        keeps its own. `steps_per_round` is the length of a record for methods that do not merge; the others
        tune it.
    limit : int, optional
        Score at most so many rows of dev and of test.
    hooks : callable
        Makes fresh hooks for a run over the whole plan, e.g. `lambda: [Probe()]`.
    watch : callable, optional
        Makes further hooks for one run of each method, that of the chosen knobs with the first seed, e.g.
        `lambda: [Spectrum()]`. Which run that is turns out at the end, so it is run once more with them:
        where a hook costs much, that is cheaper than watching every trial.
    precision : str, optional
        accelerate's mixed precision, "no", "bf16" or "fp16"; or "auto", the faster one here for every run
        (see `precision.fastest`), which `Race.settings` names.
    out : str or Path, optional
        Folder for the finished runs, the table and the result; an interrupted race goes on there. It belongs
        to one race: the same contents of model and data, the same settings and hooks.
    executor : Executor, optional
        Where the runs happen, any `concurrent.futures.Executor`: a `ProcessPoolExecutor`, or a Dask cluster's
        `Client.get_executor()`. Default: here, one after another. (Threads share torch's random generator, so
        that dropout is not repeatable in a `ThreadPoolExecutor`.)
    progress : bool or Progress, default True
        Show a bar, and a line for every finished run; or who is told of the runs instead.
    **task_options
        Of data given by name.

    Returns
    -------
    Race
        A run that failed is named in `Race.failures`; the race goes on without it.

    Raises
    ------
    ValueError
        An option that cannot be used, or is above `LARGEST`; a folder that holds another race.
    OSError
        A model or data that is not there; a folder that cannot be written.
    RuntimeError
        Every run failed.
    """
    refuse_launched()
    sizes = {"seeds": seeds, "trials": trials, "steps": steps, "batch_size": batch_size}
    for name, value in sizes.items():
        whole(name, value, 0 if name in OPEN else 1, LARGEST[name])
    if limit is not None:
        whole("limit", limit)
    if seeds < 1 or trials < 1 or (lrs is not None and not lrs):
        raise ValueError(
            "A race needs at least one seed, one trial and one learning rate; "
            f"got seeds={seeds}, trials={trials}, lrs={lrs}."
        )
    options = {"steps_per_round": steps_per_round, "schedule": schedule, "warmup": warmup}
    if isinstance(methods, str):
        methods = list(METHODS) if methods == "all" else [methods]
    plans, adapt = _plans(methods, options, lrs, trials, steps)
    if isinstance(model, nn.Module) != (not isinstance(data, str | Path)):
        raise ValueError("Give the model and the data both by name, or both as objects made already.")
    if isinstance(model, nn.Module) and task_options:
        raise ValueError(f"{next(iter(task_options))!r} is an option for data given by name.")
    folder = Path(out) if out is not None else None
    chosen = precision_of(precision, model, folder)
    settings = {
        "model": short_name(model) if isinstance(model, str | Path) else type(model).__name__,
        "data": short_name(data) if isinstance(data, str | Path) else data.name,
        "trials": trials,
        "lrs": list(lrs) if lrs is not None else None,
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "targets": targets if isinstance(targets, str) else list(targets),
        "limit": limit,
        "precision": chosen,
        **options,
        **task_options,
    }
    fixed = {k: v for k, v in settings.items() if k not in OPEN}
    if folder is not None:
        fixed |= {"model's contents": model_digest(model), "data's contents": data_digest(data)}
        fixed["hooks"] = hook_names(hooks)
    cells = Cells(folder, fixed, executor)

    def cell(trial: Trial, seed: int, share: float = 1.0) -> Cell:
        return Cell(model, data, task_options, settings, hooks, trial, seed, share)

    def watched(trial: Trial) -> Cell:
        return dataclasses.replace(cell(trial, 0), watch=watch)

    bar = closing(Bar(progress)) if isinstance(progress, bool) else nullcontext(progress)
    with bar as shown:
        again = seeds - 1 + (watch is not None)
        shown.expects(ahead(plans, adapt) + again * len(plans))

        def run(chosen: Sequence[Trial], share: float) -> list[History | None]:
            return cells.finish([cell(trial, 0, share) for trial in chosen], shown)

        tuned = tune(plans, run, adapt)
        best = [found.trials[found.best] for found in tuned.values() if found.best is not None]
        if not best:
            raise RuntimeError(f"Every run of the race failed. {_grouped(cells.failures)}")
        # Seed by seed, because a model that is given by name is loaded once for each.
        further = cells.finish([cell(trial, seed) for seed in range(1, seeds) for trial in best], shown)
        if watch is not None:
            seen = cells.finish([watched(trial) for trial in best], shown)
            for label, history in zip([trial.label for trial in best], seen, strict=True):
                if history is not None:
                    tuned[label].runs[tuned[label].best or 0] = history
    found = _found(tuned, [h for h in further if h is not None])
    found.settings = {**settings, "methods": list(plans)}
    if found.histories[0].settings.kind == "classification":
        _, task = load_cell(cell(best[0], 0))
        scores = {split: majority_score(task, split, limit) for split in ("dev", "test")}
        found.settings["majority"] = {k: v for k, v in scores.items() if v is not None}
    found.failures = cells.failures
    if folder is not None:
        found.save(folder)
    return found


def _plans(
    methods: Sequence[str | Method],
    options: dict[str, Any],
    lrs: Sequence[float] | None,
    trials: int,
    steps: int,
) -> tuple[dict[str, list[Trial]], list[str]]:
    """Every method's trials by label, and the labels whose trials are pruned and extended."""
    plans: dict[str, list[Trial]] = {}
    adapt = []
    for given in methods:
        method = given if isinstance(given, Method) else make_method(given, **options)
        label = method.label(options)
        if label in plans:
            raise ValueError(f"Two methods of the race are the same: {label}.")
        parts = given.split(":")[1:] if isinstance(given, str) else []
        said = {ALIASES.get(key, key) for key in (part.partition("=")[0] for part in parts)}
        if "lr" in said or (lrs is None and trials == 1):
            plans[label] = [Trial(label, method)]
        elif lrs is not None:
            plans[label] = [Trial(label, dataclasses.replace(method, lr=lr)) for lr in lrs]
        else:
            plans[label] = plan(label, method, _free(method, steps, said), trials)
            adapt.append(label)
    return plans, adapt


def _free(method: Method, steps: int, said: set[str]) -> list[dict[str, Any]]:
    """The sets of knobs to try: none where one of them was said, and none that the method refuses."""
    free = method.knobs(steps)
    if any(said & set(knobs) for knobs in free):
        return [{}]
    found = []
    for knobs in free:
        with suppress(ValueError):
            dataclasses.replace(method, **knobs)
            found.append(knobs)
    return found or [{}]


def _found(tuned: dict[str, Tuned], further: Sequence[History]) -> Race:
    """Of every method: the chosen runs, those that differ in the rate alone, and a line for each trial."""
    found = Race()
    for label, t in tuned.items():
        for i, trial in enumerate(t.trials):
            run = t.runs.get(i)
            told = {"label": label, "lr": trial.lr, "knobs": dict(trial.knobs), "chosen": i == t.best}
            found.trials.append({**told, "dev": run.scores.get("dev") if run else None})
            if run is None or t.best is None or trial.knobs != t.trials[t.best].knobs:
                continue
            run.settings = dataclasses.replace(run.settings, chosen=i == t.best)
            found.histories.append(run)
        for run in further:
            if run.label == label:
                run.settings = dataclasses.replace(run.settings, chosen=True)
                found.histories.append(run)
        if t.edge:
            found.edges[label] = t.edge
    return found


def _grouped(failures: Mapping[str, str]) -> str:
    """Every reason once, with the run that met it first."""
    first: dict[str, tuple[str, int]] = {}
    for cell, reason in failures.items():
        named, count = first.get(reason, (cell, 0))
        first[reason] = named, count + 1
    told = [
        f"{cell}{f' and {count - 1} more' if count > 1 else ''}: {reason}"
        for reason, (cell, count) in first.items()
    ]
    return "; ".join(told)
