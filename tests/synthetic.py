"""Histories that look like a run's, made without training, and the smallest board of a teacher's deck."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from xgblora_lab.bench.records import History, Round, RunSettings

MODULES = tuple(
    f"model.layers.{layer}.{part}" for layer in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")
)
TRUTH = {name: [4.0 / (1 + i) ** 1.5 for i in range(8)] for name in MODULES}


def history(
    method: str = "xgblora",
    rounds: int = 20,
    *,
    steps: int = 20,
    hooks: bool = True,
    measures: bool = False,
    diverged_at: int | None = None,
    speed: float = 0.2,
    seed: int = 0,
    rank: int = 1,
    peak: int = 512,
    **settings: Any,
) -> History:
    """A run whose loss decays from 3 towards 0.5; two of six modules per round (all for other methods)."""
    noise = np.random.default_rng(seed)
    boosting = method == "xgblora"
    times = dict.fromkeys(MODULES, 0)
    found, loss = [], 3.0
    for t in range(rounds):
        modules = (MODULES[(2 * t) % 6], MODULES[(2 * t + 1) % 6]) if boosting else MODULES
        after = 0.5 + (loss - 0.5) * math.exp(-speed * float(noise.uniform(0.7, 1.3)))
        if diverged_at is not None and t >= diverged_at:
            after = math.nan
        for name in modules:
            times[name] += 1
        measurements: dict[str, Any] = {}
        if hooks:
            close = 1 - math.exp(-0.2 * (t + 1))
            measurements = {
                "spectrum": {m: _spectrum(n if boosting else rank, close) for m, n in times.items()},
                "alignment": {m: min(0.98, close * (0.8 + 0.03 * i)) for i, m in enumerate(MODULES)},
                "distance": {m: 1 - 0.9 * close * (0.8 + 0.03 * i) for i, m in enumerate(MODULES)},
            }
        if measures:
            many = {"xgblora": 1, "lora": 3, "full": 0}.get(method, 2) * (t + 1) / rounds
            measurements |= {
                "intruders": {m: int(many * (1 + i % 2) + noise.random()) for i, m in enumerate(MODULES)},
                "forgetting": (0.3 if boosting else 0.5) * (t + 1) / rounds + noise.normal(0, 0.01),
            }
        inside = np.linspace(loss, after, steps) + noise.normal(0, 0.04, steps)
        found.append(
            Round(
                index=t,
                method=method,
                step=(t + 1) * steps,
                modules=modules,
                losses=tuple(float(v) for v in inside),
                learning_rates=(float(settings.get("lr", 1e-2)),) * steps,
                gradient_norms=(1.0,) * steps,
                loss_before=loss + 0.05,
                loss_after=after + 0.05,
                probe_before=loss,
                probe_after=after,
                tokens=1000 * steps,
                seconds=0.5 if boosting else 0.8,
                peak_parameters=peak,
                total_parameters=peak * (t + 1) if boosting else peak,
                optimizer_bytes=8 * peak,
                gradient_bytes=4 * peak,
                measurements=measurements,
            )
        )
        loss = after
    made = RunSettings(
        label=method,
        options={"rank": rank, "steps_per_round": steps},
        lr=1e-2,
        data="planted",
        kind="causal-lm",
        metric="loss",
        seed=seed,
        truth_spectrum=TRUTH,
        merges=boosting,
        rank_bound=None if method == "full" else rank,
    )
    return History(method, replace(made, **settings), found, {"dev_accuracy": 0.8})


def _spectrum(count: int, close: float) -> list[float]:
    return [close * s for s in TRUTH[MODULES[0]][:count]]


def race(
    seeds: int = 3, grid: tuple[float, ...] = (1e-3, 1e-2, 1e-1), measures: bool = False
) -> list[History]:
    """Three methods × learning rates × seeds; the middle learning rate is the best, and marked as chosen."""
    found = []
    for method, speed, peak in (("xgblora", 0.15, 512), ("lora", 0.2, 4096), ("full", 0.3, 262_144)):
        for i, lr in enumerate(grid):
            for seed in range(seeds):
                pace = speed * (1 - 0.5 * abs(i - len(grid) // 2))
                more = {"lr": lr, "chosen": i == len(grid) // 2, "hooks": False, "measures": measures}
                found.append(history(method, speed=pace, seed=seed, peak=peak, **more))
    return found


def cells() -> list[dict[str, float]]:
    """Ratios that fall with steepness and rise with the budget."""
    rows = [(s, b) for s in (0.5, 1.0, 2.0) for b in (100, 400, 1600)]
    return [{"steepness": s, "budget": b, "ratio": (b / 400) ** 0.4 / s**0.7} for s, b in rows]


@cache
def small_board() -> Any:
    """What the teacher's deck shows, from runs of 120 steps on a matrix of eight rows."""
    from xgblora_lab.course.deck import board

    return board(size=8, rounds=2, kappa=60, lrs=(0.1,))
