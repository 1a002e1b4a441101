"""Saving a run after every round, and going on with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook, Run
from xgblora_lab.bench.records import History, Round
from xgblora_lab.files import save_tensors, write_text
from xgblora_lab.methods import make_method

if TYPE_CHECKING:
    from accelerate import Accelerator

    from xgblora_lab.tasks.task import Task

HISTORY = "history.jsonl"


class Checkpoint(Hook):
    """Save the run after every round; `resume(folder, model, task)` goes on with the same curve.

    Files: `ensemble.json`, `rounds/NNNNN.safetensors` (boosters), `state-NNNNN.safetensors` (head and
    optimizers, of every round where the method can be rewound, else of the last) and `history.jsonl`: the
    settings in its first line and a round in each further one. A round is complete when its line is whole,
    and that line is written last. What a round costs does not grow with the number of rounds.

    The folder is new or empty, unless the run comes from it; a run's start raises FileExistsError where it
    holds another one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._version = -1  # the ensemble's version whose rounds are on disk
        self._saved = 0  # rounds on disk

    def on_run_start(self, bench: Run) -> None:
        foreign = self._version == -1  # else it is this bench's own run, taken back to its start
        if foreign and len(bench.history) == 0 and (self.folder / HISTORY).exists():
            raise FileExistsError(
                f"{self.folder} holds a run already: go on with resume({str(self.folder)!r}, model, task), "
                "or choose another folder."
            )

    def on_round_end(self, bench: Run, record: Round) -> None:
        if not bench.accelerator.is_main_process:
            return
        done = len(bench.history)
        # A first call, rounds dropped or taken back, or a save that failed: what is on disk is not known.
        all_again = self._version != bench.ensemble.version or self._saved != done - 1
        self._version = -1
        for index in range(done) if all_again else [done - 1]:
            bench.ensemble.save_round(self.folder, index)
        bench.ensemble.save_index(self.folder)
        save_tensors(self._state(done), bench.state())
        if all_again:
            write_text(self.folder / HISTORY, bench.history.to_lines())
            for path in self.folder.glob("state-*.safetensors"):
                if int(path.stem.removeprefix("state-")) > done:
                    path.unlink()
        else:
            with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
                file.write(bench.history[-1].to_line())
                file.flush()
                os.fsync(file.fileno())
        if not bench.method.rewindable:
            self._state(done - 1).unlink(missing_ok=True)
        self._version, self._saved = bench.ensemble.version, done

    def _state(self, rounds: int) -> Path:
        return self.folder / f"state-{rounds:05d}.safetensors"


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
        FileNotFoundError where it holds no run, ValueError where that run adapted other modules.
    model : nn.Module
        The base that the run began with, freshly loaded.
    task, hooks, accelerator
        As in `Bench`.
    """
    path = Path(folder) / HISTORY
    if not path.is_file():
        raise FileNotFoundError(f"No run to resume in {folder}: {HISTORY} is missing.")
    history = History.load(path)
    settings = history.settings
    options = ("steps", "batch_size", "accumulation", "targets", "seed", "data_seed", "probe_size")
    bench = Bench(
        model,
        task,
        make_method(history.method, **settings.options),
        **{name: getattr(settings, name) for name in options},
        hooks=[*hooks, Checkpoint(folder)],
        accelerator=accelerator,
    )
    bench.restore(folder)
    return bench
