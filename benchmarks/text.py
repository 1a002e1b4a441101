"""Steps and races on text: what padding costs, and a race beside the same one by PEFT and Trainer."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.encoder import our_step
from benchmarks.measure import Row, compared, interleaved, quartiles, quotients
from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import XGBLoRA
from xgblora_lab.racing.processes import workers
from xgblora_lab.racing.race import FIELD, race
from xgblora_lab.tasks.models import load, load_model

BATCH = 8
LONGER = 10  # times the steps, where wall time counts: those of a default race; processes take time to start


@cache
def pydocs(quick: bool, max_length: int = 128) -> Any:
    """The task that the command line races on by default; few and short rows where `quick`."""
    options = {"max_length": 16, "limit": 32} if quick else {"max_length": max_length}
    return load("lab", "pydocs", **options)[1]  # type: ignore[arg-type]


def padding(quick: bool) -> Iterator[Row]:
    """Steps on pydocs, with batches of similar length and with batches as they fall."""
    chunk, times = (2, 2) if quick else (8, 8)
    grouped = pydocs(quick)
    mixed = dataclasses.replace(grouped)
    mixed.lengths = None  # as a task that does not say how long its rows are
    lengths = np.asarray(grouped.lengths("train"))
    works: dict[str, Callable[[], Any]] = {}
    padded = {}
    for name, task in (("grouped", grouped), ("mixed", mixed)):
        model = load_model("lab", task)
        bench = Bench(model, task, XGBLoRA(), steps=100_000, batch_size=BATCH, probe_size=0)
        step = our_step(bench, fresh=True)
        works[name] = lambda step=step: [step() for _ in range(chunk)]
        epoch = range(len(lengths) // BATCH)
        padded[name] = sum(BATCH * lengths[bench.trainer.planned_rows(i)].max() for i in epoch)
    found = interleaved(works, times, warmup=0 if quick else 1)
    yield Row(
        "a step on pydocs, batches of similar length",
        "batches as they fall",
        sum(found["grouped"]) / sum(found["mixed"]),
        0.65,
        spread=quartiles(quotients(found["grouped"], found["mixed"])),
        limit=f"tokens with padding, over an epoch: {padded['grouped'] / padded['mixed']:.2f}",
    )


def whole_race(quick: bool) -> Iterator[Row]:
    """All runs of a small race: in processor time, one after the other in this process; then longer ones in
    wall time, ours in as many processes as the command line takes, theirs in as many threads as torch takes.
    """
    from benchmarks.plain_race import plain_race

    methods, rates, seeds, steps, kappa, limit, times = (
        (("lora:r=1",), (3e-3,), 1, 1, 1, 4, 1) if quick else (FIELD, (1e-3, 1e-2), 2, 20, 10, 100, 2)
    )
    task = pydocs(quick)
    options = {"lrs": rates, "seeds": seeds, "batch_size": BATCH, "limit": limit, "progress": False}

    def ours(length: int, executor: Executor | None = None) -> None:
        plan = options | {"steps": length * steps, "steps_per_round": length * kappa}
        race(load_model("lab", task), task, methods, executor=executor, **plan)

    def theirs(length: int) -> None:
        plain_race(task, methods, rates, seeds, length * steps, length * kappa, limit)

    def ours_in_processes() -> None:
        with workers(1 if quick else None) as executor:
            ours(LONGER, executor)

    def theirs_in_threads() -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        theirs(LONGER)
        torch.set_num_threads(1)

    found = interleaved({"ours": lambda: ours(1), "theirs": lambda: theirs(1)}, times, warmup=0)
    runs = len(methods) * (len(rates) + seeds - 1)
    what = f"a race of {runs} runs of {{}} steps on pydocs, in {{}} time"
    rival = "the same methods, rates, seeds and steps by PEFT and Trainer"
    yield compared(
        what.format(steps, "processor"),
        rival,
        quotients(found["ours"], found["theirs"]),
        0.5,
        counted=False,
        detail={name: round(statistics.median(spent), 1) for name, spent in found.items()},
    )
    waited = {}
    for name, work in {"ours": ours_in_processes, "theirs": theirs_in_threads}.items():
        began = time.perf_counter()
        work()
        waited[name] = round(time.perf_counter() - began, 1)
    yield Row(
        what.format(LONGER * steps, "wall"), rival, waited["ours"] / waited["theirs"], 0.5, detail=waited
    )
