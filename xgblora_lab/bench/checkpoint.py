"""Saving a run after every round, and going on with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook, Run
from xgblora_lab.bench.records import History, Round
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import make_method
from xgblora_lab.store import LOG, Store, Tensors, store_of
from xgblora_lab.tasks.identity import check_digests, digest_of_base, digest_of_task

if TYPE_CHECKING:
    from accelerate import Accelerator

    from xgblora_lab.tasks.task import Task


class Checkpoint(Hook):
    """Save the run after every round; `resume(folder, model, task)` goes on with the same curve.

    The first line of `history.jsonl` holds the settings, each further one a round and the names of its files:
    boosters, and the state of head and optimizers (of the last round only where the method cannot be
    rewound). Rounds taken back or dropped are so on the disk at once; a failed save is made up for by the
    next. `PROMISES.md` says what holds after a kill, a power loss, or on a full disk.

    The folder is new or empty, unless the run comes from it; a run's start raises FileExistsError where it
    holds something else, or where another run is writing into it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._known: tuple[Any, dict[str, str]] = (None, {})

    def on_run_start(self, bench: Run) -> None:
        self._digests(bench)
        if bench.accelerator.is_main_process:
            store_of(bench, self.folder).open()
            self._save(bench)

    def on_round_end(self, bench: Run, record: Round) -> None:
        self._save(bench)

    def on_rewind(self, bench: Run) -> None:
        self._digests(bench)
        if bench.accelerator.is_main_process:
            with store_of(bench, self.folder).opened():
                self._save(bench)

    def on_run_end(self, bench: Run) -> None:
        try:  # what an interrupt or another hook's exception has kept from being saved
            if bench.method.rewindable:
                self._save(bench)
        finally:
            store_of(bench, self.folder).close()

    def _digests(self, bench: Run) -> dict[str, str]:
        """Of base and data; every process asks once, as all of them gather a sharded base together."""
        if self._known[0] is not bench.weights:
            found = {"base": _base(bench), "data": digest_of_task(bench.task)}
            self._known = (bench.weights, found)
        return self._known[1]

    def _save(self, bench: Run) -> None:
        """Save what is new, where this process's store is open: not where the start was refused."""
        history, ensemble, rewindable = bench.history, bench.ensemble, bench.method.rewindable

        def tensors(t: int) -> Tensors:
            state = bench.state(t + 1) if rewindable or t == len(history) - 1 else {}
            return {
                "boosters": (f"rounds/{t:05d}", ensemble.tensors(t)),
                "state": (f"state-{t + 1:05d}", state),
            }

        def head() -> dict[str, Any]:
            return {**history.common(), "ensemble": ensemble.common(), **self._digests(bench)}

        store, last_only = store_of(bench, self.folder), "" if rewindable else "state"
        store.save(ensemble.version, history.rounds, ensemble.dropped, tensors, head, last_only)


def resume(
    folder: str | Path,
    model: nn.Module,
    task: Task,
    *,
    hooks: Sequence[Hook] = (),
    accelerator: Accelerator | None = None,
) -> Bench:
    """Go on with a run that `Checkpoint(folder)` saved, from its last complete round, to the same curve.

    Parameters
    ----------
    folder : str or Path
        The method and every option come from there; a `Checkpoint` on it is among the new bench's hooks.
        FileNotFoundError where it holds no run or lacks a file, ValueError where a file was changed or the
        run adapted other modules, had other data or another base, FileExistsError where it is being written.
    model : nn.Module
        The base that the run began with, freshly loaded.
    task, hooks, accelerator
        As in `Bench`; the default is the precision that the run had.
    """
    store, _, history = saved = read(folder)
    settings = history.settings
    options = ("steps", "batch_size", "accumulation", "targets", "seed", "data_seed", "probe_size")
    bench = Bench(
        model,
        task,
        make_method(history.method, **settings.options),
        **{name: getattr(settings, name) for name in options},
        hooks=[*hooks, Checkpoint(folder)],
        accelerator=accelerator or settings.precision or None,
    )
    try:
        take_over(bench, *saved)
        store.adopt(bench, bench.history.rounds, bench.ensemble.dropped)
    except BaseException:
        bench.close()
        raise
    return bench


def read(folder: str | Path) -> tuple[Store, dict[str, Any], History]:
    """What `Checkpoint` saved: its store, the log's first line, and the history; raises as `resume`."""
    store = Store(Path(folder))
    return store, store.read(), History.load(store.folder / LOG)


def take_over(bench: Bench, store: Store, head: dict[str, Any], history: History) -> None:
    """Give the rounds that were read to a bench on the same base that has none; raises as `resume`."""
    ensemble, where = Ensemble.load(store.folder), f"The run in {store.folder}"
    if ensemble.shapes != bench.ensemble.shapes:
        raise ValueError(f"{where} adapted other modules than this bench; use its own model.")
    check_digests(head, _base(bench), digest_of_task(bench.task), where)
    first = 1 if bench.method.rewindable else max(len(store.files), 1)
    states = ((t, store.load(n.get("state"))) for t, n in enumerate(store.files[first - 1 :], first))
    bench.restore(history, ensemble, states)


def _base(bench: Run) -> str:
    return digest_of_base(bench.model, bench.modules, bench.weights.base, bench.head)
