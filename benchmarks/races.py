"""The races behind what the README says of boosting: `python -m benchmarks.races NAME --data FOLDER`.

Each race goes on where it was interrupted, also with more methods or seeds: finished runs lie in
`benchmarks/NAME/runs`, which is not committed. Once all are there, the result is `race.json` with the tables
beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xgblora_lab.methods import Full, LoRA, Method, XGBLoRA
from xgblora_lab.racing.race import race

ROOT = Path(__file__).resolve().parent


# a row of its own: is merging at a plateau ever worse than LoRA?
PLATEAU = "xgblora:merge=plateau:steps_per_round=25:round_warmup=5:schedule=trapezoid"


def field(**rates: float) -> list[str | Method]:
    """The methods of a race, each with the middle of the rates that it is tuned over."""
    made: dict[str, Method] = {
        "lora1": LoRA(rank=1),
        "xgblora1": XGBLoRA(round_warmup=5),
        "lora8": LoRA(rank=8),
        "xgblora8": XGBLoRA(rank=8, round_warmup=5),
        "full": Full(),
        "lora64": LoRA(rank=64),
    }
    for name, lr in rates.items():
        made[name].lr, made[name].schedule = lr, "trapezoid"
    methods: list[str | Method] = [made[name] for name in rates]
    return [*methods[:2], PLATEAU, *methods[2:]] if "xgblora1" in rates else methods


def races(data: Path) -> dict[str, dict[str, Any]]:
    """Name → the arguments of `race`; `data`: where models and data lie that are not in this repository."""
    stories, books = data / "models" / "TinyStories-656K", data / "data" / "books" / "valid.txt"
    common = {"schedule": "trapezoid", "trials": 6, "seeds": 5}
    planted = {**common, "data": "planted", "batch_size": 8, "limit": 256, "steps": 480}
    capacity = {
        **common,
        "model": stories,
        "data": books,
        "kind": "causal-lm",
        "max_length": 128,
        "steps": 1000,
        "batch_size": 16,
        "limit": 400,
    }
    real = {
        **common,
        "model": data / "models" / "all-MiniLM-L6-v2",
        "max_length": 48,
        "steps": 400,
        "batch_size": 8,
        "limit": 1000,
    }
    longer = [
        LoRA(rank=1, lr=3e-2, schedule="trapezoid"),
        XGBLoRA(lr=1.68702e-2, schedule="trapezoid", round_warmup=5, steps_per_round=100),
        LoRA(rank=8, lr=9.42488e-3, schedule="trapezoid"),
    ]
    sst2 = data / "data" / "sst2_sent"
    ones, larger = {"lora1": 3e-3, "xgblora1": 3e-3}, {"lora8": 3e-3, "full": 3e-4}
    return {
        "sst2": {**real, "data": sst2, "methods": field(**ones)},
        "sst2_larger": {**real, "data": sst2, "methods": field(**larger)},
        "trec": {**real, "data": data / "data" / "trec", "methods": field(**ones)},
        "planted": {**planted, "methods": field(lora1=1e-2, xgblora1=5.6e-3)},
        "planted_larger": {**planted, "methods": field(lora8=1e-2, full=1e-3)},
        "capacity": {**capacity, "methods": field(lora1=3e-2, xgblora1=3e-2)},
        "capacity8": {**capacity, "methods": field(lora8=5.3e-3, xgblora8=9.5e-3)},
        "capacity4000": {**capacity, "methods": longer, "steps": 4000, "trials": 1, "seeds": 3},
        "capacity_full": {**capacity, "methods": field(full=3e-3, lora64=1e-2)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one race, here, on one thread."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.races", description=__doc__)
    parser.add_argument("name", choices=sorted(races(Path())))
    parser.add_argument("--data", type=Path, default=Path(), help="folder with models/ and data/")
    parser.add_argument("--seeds", type=int, help="of the chosen knobs; more can follow later")
    parser.add_argument("--first", type=int, help="only so many of the methods; the others can follow later")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = races(options.data)[options.name]
    if options.seeds is not None:
        chosen["seeds"] = options.seeds
    chosen["methods"] = chosen["methods"][: options.first]
    print(race(**chosen, out=ROOT / options.name, progress=True))  # noqa: T201


if __name__ == "__main__":
    main()
