"""The runs of a race: trained here or elsewhere, each kept on disk, a failed one recorded."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook, Run, Stop
from xgblora_lab.bench.records import History
from xgblora_lab.files import plain, write_json
from xgblora_lab.racing.identity import hook_names, short_digest
from xgblora_lab.racing.progress import Progress
from xgblora_lab.racing.tuning import Trial

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Task


REFUSALS = (ValueError, OSError, TypeError, ImportError)  # what a run is refused with that cannot begin


@dataclass
class Cell:
    """One run of a race: all that a process somewhere else needs for it.

    Parameters
    ----------
    model, data : str, Path, or the objects
        As in `race`.
    task_options, settings : dict
        Options of the data by name; the settings of the race.
    hooks : callable
        Makes fresh hooks.
    trial : Trial
        The method with its knobs.
    seed : int
        Of data order, head and boosters.
    share : float
        How much of the plan to run; below 1 the schedule is still that of the whole plan.
    watch : callable or None
        Makes further hooks, for this run alone.
    """

    model: str | Path | nn.Module
    data: str | Path | Task
    task_options: dict[str, Any]
    settings: dict[str, Any]
    hooks: Callable[[], Sequence[Hook]]
    trial: Trial
    seed: int
    share: float = 1.0
    watch: Callable[[], Sequence[Hook]] | None = None

    @property
    def name(self) -> str:
        """The name of the cell's file."""
        trial = self.trial
        knobs = "".join(f"_{name}={value}" for name, value in trial.knobs.items())
        watch = f"_watch={short_digest(hook_names(self.watch))}_watched" if self.watch else ""
        part = f"_first={self.stop}" if self.share < 1 else watch
        name = f"{trial.label}_lr={trial.lr:g}{knobs}_seed={self.seed}{part}"
        return name.replace("/", "-").replace(":", "_")

    @property
    def stop(self) -> int:
        """Steps after which the run ends."""
        return math.ceil(self.settings["steps"] * self.share)

    def __str__(self) -> str:
        part = f", first {self.stop} steps" if self.share < 1 else ", watched" if self.watch else ""
        return f"{self.trial.label}, {self.trial}, seed {self.seed}{part}"


class _Reached(Exception):
    """A run of a part of the plan is at its end."""


class _Until(Hook):
    """Score the model on dev after so many steps, be it inside a round, and end the run there."""

    def __init__(self, step: int, limit: int | None) -> None:
        self.step, self.limit = step, limit

    def on_step(self, bench: Run, step: int, loss: Tensor) -> None:
        if bench.trained_steps >= self.step:
            bench.history.scores["early_loss"] = (
                bench.evaluate("dev", self.limit)["loss"] if bench.task.size("dev") else bench.probe_loss()
            )
            raise _Reached


_made = threading.local()  # the model and task last loaded by name, in this thread


def load_cell(cell: Cell) -> tuple[nn.Module, Task]:
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


def train(cell: Cell, own_copy: bool = False) -> History:
    """Run a cell. own_copy: of a model given as an object, which other threads may be using."""
    model, task = load_cell(cell)
    if own_copy and isinstance(cell.model, nn.Module):
        model = copy.deepcopy(model)
    s = cell.settings
    # Only a run of the whole plan is measured further: a rung asks for a loss and nothing else.
    hooks: list[Hook] = [*cell.hooks()] if cell.share == 1 else [_Until(cell.stop, s["limit"])]
    if cell.watch is not None:
        hooks += cell.watch()
    with Bench(
        model,
        task,
        cell.trial.method,
        steps=s["steps"],
        batch_size=s["batch_size"],
        targets=s["targets"],
        seed=cell.seed,
        data_seed=cell.seed,
        hooks=[Stop(n_iter_no_change=math.inf), *hooks],
        accelerator=s["precision"] or None,
    ) as bench:
        with contextlib.suppress(_Reached):
            bench.run(progress=False)
        for split in ("dev", "test"):
            if cell.share == 1 and task.size(split):
                scores = bench.evaluate(split, s["limit"])
                bench.history.scores |= {f"{split}_{k}": v for k, v in scores.items()}
                bench.history.scores[split] = scores[task.metric]
        bench.history.label = cell.trial.label
        return bench.history


class Cells:
    """Trains cells and keeps every finished one in a folder.

    Parameters
    ----------
    out : Path or None
        The folder. It belongs to one race; more trials or seeds may be added to it later. Nothing is written
        before the first run has finished.
    settings : mapping
        What must be the same for all runs in the folder.
    executor : Executor or None
        Where runs happen; None: here.

    Raises
    ------
    ValueError
        The folder holds a race with other settings, or settings that cannot be read.
    NotADirectoryError, PermissionError
        Nothing can be written there.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, Any], executor: Executor | None) -> None:
        self.out, self.executor = out, executor
        self.failures: dict[str, str] = {}  # cell, in words → error
        self.settings = json.loads(json.dumps(plain(settings)))
        self._any = False
        if out is not None:
            require_writable(out)
            self._compare(out / "settings.json")

    def _compare(self, kept: Path) -> None:
        if not kept.exists():
            return
        try:
            held = dict(json.loads(kept.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{kept} does not hold the settings of a race; choose another folder for this one."
            ) from error
        other = [name for name in {**held, **self.settings} if held.get(name) != self.settings.get(name)]
        if other:
            raise ValueError(
                f"{kept.parent} holds a race with other settings ({', '.join(map(str, other))}); choose "
                "another folder for this one."
            )

    def finish(self, cells: Sequence[Cell], progress: Progress) -> list[History | None]:
        """The histories of these cells, in their order; None for a failed one.

        Those finished before are read; a file that is cut or cannot be read is run again.

        Raises
        ------
        ValueError, OSError, TypeError, ImportError
            The race's very first run was refused: every run would be.
        """
        found: dict[str, History | None] = {}
        waiting = []
        progress.planned(cells)
        for cell in cells:
            history = self._read(cell)
            if history is None:
                waiting.append(cell)
                continue
            found[cell.name], self._any = history, True
            progress.ended(cell, history, kept=True)
        for cell, result in self._trained(waiting):
            if isinstance(result, History):
                self._keep(cell, result)
                found[cell.name] = result
            else:
                if not self._any and isinstance(result, REFUSALS):
                    raise result
                found[cell.name] = None
                self.failures[str(cell)] = f"{type(result).__name__}: {result}"
            progress.ended(cell, result)
        return [found[cell.name] for cell in cells]

    def _trained(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, History | Exception]]:
        if self.executor is None:
            for cell in cells:
                yield cell, _attempt(train, cell)
            return
        again = []
        for cell, result in self._spread(cells):
            if isinstance(result, BrokenExecutor):
                again.append(cell)
            else:
                yield cell, result
        # A worker that dies takes the runs beside it along: alone, each shows whose fault it was.
        for cell in again:
            yield from self._spread([cell])

    def _spread(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, History | Exception]]:
        assert self.executor is not None
        futures: dict[Future[History], Cell] = {}
        try:
            for cell in cells:
                try:
                    futures[self.executor.submit(train, cell, True)] = cell
                except BrokenExecutor as error:
                    yield cell, error
            for future in as_completed(futures):
                yield futures[future], _attempt(future.result)
        finally:
            for future in futures:
                future.cancel()  # those not begun, where something went wrong

    def _path(self, cell: Cell) -> Path | None:
        return self.out / "runs" / f"{cell.name}.json" if self.out is not None else None

    def _read(self, cell: Cell) -> History | None:
        path = self._path(cell)
        if path is None or not path.exists():
            return None
        try:
            history = History.load(path)
            return history if _fits(history, cell) else None
        except Exception:  # of many classes: what is wrong with a damaged file does not matter
            return None

    def _keep(self, cell: Cell, history: History) -> None:
        self._any = True
        path = self._path(cell)
        if path is not None and self.out is not None:
            write_json(self.out / "settings.json", self.settings)
            history.save(path)


def _attempt(work: Callable[..., History], *arguments: Any) -> History | Exception:
    try:
        return work(*arguments)
    except Exception as error:  # whatever a run dies of, the race goes on and says so
        return error


def _fits(history: History, cell: Cell) -> bool:
    """Whether a file holds the whole run of this cell."""
    counted = [r.index for r in history] == list(range(len(history)))
    numbers = all(
        isinstance(value, int | float)
        for r in history
        for value in (r.step, r.seconds, r.peak_parameters, r.total_parameters, r.optimizer_bytes, *r.losses)
    )
    named = history.method == cell.trial.method.name and history.label == cell.trial.label
    same = history.settings.lr == cell.trial.lr and history.settings.seed == cell.seed
    if not (counted and numbers and named and same and isinstance(history.settings.options, Mapping)):
        return False
    if cell.share < 1:  # it ends inside a round, which has no record
        return "early_loss" in history.scores
    last = history[-1]
    diverged = not all(map(math.isfinite, (*last.losses, last.loss_after, last.probe_after)))
    return last.step >= cell.stop or diverged


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written into, before any work is done for it.

    Raises
    ------
    NotADirectoryError
        Where it, or what it is to lie in, is a file.
    PermissionError
        Where nothing may be written there.
    """
    place = folder.absolute()
    while True:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.lstat()  # any other error, as of a name that is too long, is the answer
            break
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(
            f"{place} is no folder, so nothing can be written there; choose another one."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"Nothing may be written into {place}; choose another folder.")
