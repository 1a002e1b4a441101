"""The recorded run of the lab model that the playground scrubs, and how it was made."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.bench.records import History, Round
from xgblora_lab.files import write_text
from xgblora_lab.lowrank import spectra
from xgblora_lab.methods.base import Method
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.xgblora import XGBLoRA
from xgblora_lab.tasks.models import load_model
from xgblora_lab.tasks.planted import planted

NAME = "lab_run.json"
PLANNED, ROUNDS, KAPPA = 16, 10, 15  # the rates decay over the planned rounds; the first are recorded
TARGETS = (
    "layers.2.self_attn.o_proj",
    "layers.2.mlp.down_proj",
    "layers.3.self_attn.o_proj",
    "layers.3.mlp.down_proj",
)
CHANGED = TARGETS[1:]
SHOWN = 8  # singular values of a map, at most
DIGITS = 4  # of a recorded number
METHODS: dict[str, Method] = {
    "boosting": XGBLoRA(steps_per_round=KAPPA, lr=0.02, selection="random", modules_per_round=2),
    "lora": LoRA(rank=1, steps_per_round=KAPPA, lr=0.01),
}


def read() -> dict[str, Any]:
    """The run that comes with the package, as `record` made it."""
    text = (files("xgblora_lab.report") / "templates" / "playground" / NAME).read_text(encoding="utf-8")
    run: dict[str, Any] = json.loads(text)
    return run


def record(rounds: int = ROUNDS) -> dict[str, Any]:
    """Train the lab model on a planted update, by boosting and by LoRA, and note what the page shows.

    An update of rank 4 is planted in three linear maps of the lab model. Boosting gives a booster of rank 1
    to two of four maps a round, drawn at random; LoRA of rank 1 trains on all four all the time. Both make
    the same number of steps on the same batches. The learning rates are not tuned: the run shows what rounds
    do, not which method is better.

    Parameters
    ----------
    rounds : int, default 10
        How many of the 16 planned rounds to train. Fewer give the beginning of the same run.

    Returns
    -------
    dict
        `steps_per_round`, `modules`, `truth` (by module, the planted singular values, empty where there are
        none), and for `boosting` and `lora` each `rank`, `lr`, `loss` (over that of the base, at every round
        from 0) and `spectra` (by round, the singular values of each module that the round trained, under the
        module's number).
    """
    run: dict[str, Any] = {"steps_per_round": KAPPA}
    for name, method in METHODS.items():
        model = load_model("lab")
        task = planted(model, modules=CHANGED, rank=4, strength=1.0, length=16)
        steps, hooks = PLANNED * KAPPA, [Spectrum(limit=SHOWN)]
        with Bench(model, task, method, steps=steps, batch_size=8, targets=TARGETS, hooks=hooks) as bench:
            modules = list(bench.modules)
            run[name] = _told(bench.run(rounds, progress=False), modules, method)
        truth = {m: spectra.singular_values(*factors).tolist() for m, factors in task.truth.items()}
        run["modules"] = [module.removeprefix("model.layers.") for module in modules]
        run["truth"] = [_rounded(truth.get(module, [])) for module in modules]
    return run


def _told(history: History, modules: list[str], method: Method) -> dict[str, Any]:
    base = history[0].probe_before
    return {
        "rank": method.rank_bound(len(modules)),
        "lr": method.lr,
        "loss": _rounded([1.0, *(r.probe_after / base for r in history)]),
        "spectra": [_spectra(r, modules) for r in history],
    }


def _spectra(r: Round, modules: list[str]) -> dict[str, list[float]]:
    found = r.measurements["spectrum"]
    return {str(modules.index(m)): _rounded(found[m]) for m in r.modules}


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{v:.{DIGITS}g}") for v in values]


if __name__ == "__main__":
    path = Path(__file__).parent / "templates" / "playground" / NAME
    write_text(path, json.dumps(record(), separators=(",", ":")) + "\n")
