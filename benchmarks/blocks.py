"""Rounds by block, whose backward pass stops early: what a step costs, and what a second teaches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np

from benchmarks.encoder import MINILM, TINY, Size, activations_only, bench_of, our_step, pefts_step
from benchmarks.measure import Row, compared, interleaved, quotients, timed
from benchmarks.steps import PEFT
from benchmarks.text import BATCH, pydocs
from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.linear import block_name
from xgblora_lab.methods import LoRA, Method, XGBLoRA
from xgblora_lab.tasks.models import load_model

LAYERS = "bert.encoder.*"  # the pooler is no block
RATES = (1e-3, 3e-3, 1e-2)  # tried for each method with the first seed


def block_rounds(quick: bool) -> Iterator[Row]:
    """A third of the blocks, neighbours at a random place: every place is as likely, so all are measured."""
    size, times = (TINY, 2) if quick else (MINILM, 8)
    works: dict[str, Callable[[], Any]] = {"peft": pefts_step(size)[0]}
    method = XGBLoRA(selection="contiguous", unit="block", modules_per_round=1 / 3)
    places = size.layers - max(1, round(size.layers / 3)) + 1
    for place in range(places):
        works[f"from {place}"], lowest = _at_place(method, size, place)
        works[f"floor {place}"] = activations_only(size, lowest)
    found = interleaved(works, times)

    def over_places(name: str) -> list[float]:
        each = [quotients(found[f"{name} {place}"], found["peft"]) for place in range(places)]
        return [statistics.mean(values) for values in zip(*each, strict=True)]

    ends = {
        f"{where} / PEFT": round(statistics.median(quotients(found[f"from {place}"], found["peft"])), 3)
        for where, place in (("lowest blocks", 0), ("top blocks", places - 1))
    }
    yield compared(
        "optimizer step, rank 1 on a third of the blocks, contiguous, averaged over rounds",
        PEFT,
        over_places("from"),
        0.62,
        limit="forward and backward through activations down to the lowest chosen block: "
        f"{statistics.median(over_places('floor')):.2f}",
        detail=ends,
    )


def _at_place(method: XGBLoRA, size: Size, place: int) -> tuple[Callable[[], None], int]:
    """A step of a round whose lowest block is this one, and its lowest linear map."""
    bench = bench_of(method, size, targets=LAYERS)
    names = list(bench.modules)
    blocks = list(dict.fromkeys(map(block_name, names)))
    index = next(i for i in count() if block_name(method.choose(names, 0, i)[0]) == blocks[place])
    return our_step(bench, index), names.index(method.choose(names, 0, index)[0])


def learning(quick: bool) -> Iterator[Row]:
    """What block rounds have learned by the time that LoRA r=8 has done its steps, on pydocs."""
    rounds, kappa, seeds, rows = (1, 1, 1, 4) if quick else (5, 8, 3, 100)
    common = {"schedule": "constant", "steps_per_round": kappa}
    blocks = {"unit": "block", "modules_per_round": 1, **common}
    field: dict[str, Callable[..., Method]] = {
        "top": lambda lr: XGBLoRA(lr=lr, selection="top", **blocks),
        "contiguous": lambda lr: XGBLoRA(lr=lr, selection="contiguous", **blocks),
        "lora": lambda lr: LoRA(lr=lr, rank=8, **common),
    }
    task = pydocs(quick, max_length=64)
    best = dict.fromkeys(field, RATES[1])
    if not quick:
        tried = [_curves(field, dict.fromkeys(field, lr), task, rounds, 0, rows) for lr in RATES]
        for name in field:
            at_end = [_learned(curves[name], curves["lora"][0][-1]) for curves in tried]
            best[name] = RATES[int(np.argmax(at_end))]
    runs = [_curves(field, best, task, rounds, seed, rows) for seed in range(seeds)]
    for name in ("top", "contiguous"):
        parts = {}
        for share in (0.25, 0.5, 1.0):
            until = [share * curves["lora"][0][-1] for curves in runs]
            parts[share] = [
                _learned(curves[name], end) / _learned(curves["lora"], end)
                for curves, end in zip(runs, until, strict=True)
            ]
        early, half = (statistics.median(parts[share]) for share in (0.25, 0.5))
        yield compared(
            f"learning per second, rank 1 on a quarter of the blocks, {name}",
            f"LoRA r=8 on all, {rounds * kappa} steps; decrease of the dev loss in the same time",
            parts[1.0],
            1.0,
            faster=True,
            limit=f"after a quarter of that time {early:.2f}, after half of it {half:.2f}",
            detail={"rate": best[name], "LoRA's rate": best["lora"]},
        )


Curve = tuple[list[float], list[float]]  # seconds of training so far, and the loss on dev


def _curves(
    field: dict[str, Callable[..., Method]],
    rates: dict[str, float],
    task: Any,
    rounds: int,
    seed: int,
    rows: int,
) -> dict[str, Curve]:
    """A run of every method, round by round in turn, each until it has trained as long as LoRA.

    rows: of dev, on which the loss is measured.
    """
    found: dict[str, Curve] = {}
    options = {"steps": 100_000, "batch_size": BATCH, "seed": seed, "data_seed": seed, "probe_size": 0}
    benches = {
        name: Bench(load_model("lab", task, seed=seed), task, make(rates[name]), **options)
        for name, make in field.items()
    }
    for name, bench in benches.items():
        found[name] = [0.0], [bench.evaluate("dev", rows)["loss"]]
    while True:
        done = len(benches["lora"].history) >= rounds
        until = found["lora"][0][-1]
        going = [name for name in field if not done or (name != "lora" and found[name][0][-1] < until)]
        if not going:
            return found
        for name in going:
            seconds, losses = found[name]
            seconds.append(seconds[-1] + timed(benches[name].step))
            losses.append(benches[name].evaluate("dev", rows)["loss"])


def _learned(curve: Curve, until: float) -> float:
    """The decrease of the loss up to a moment, between two rounds along a line."""
    return curve[1][0] - float(np.interp(until, *curve))
