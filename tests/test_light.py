"""Boosting on one matrix needs torch, numpy, scipy, pandas and plotly; heavier packages serve their users."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HEAVY = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "peft",
    "pyarrow",
    "sklearn",
    "tokenizers",
    "transformers",
)


class Without:
    """A finder of modules that does not find the heavy packages."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in HEAVY else self.finder.find_spec(name, path, target)


def rounds_of_one_matrix() -> dict[str, Any]:
    """What a reader of the first lesson does."""
    from xgblora_lab import Bench, LoRA, Spectrum, XGBLoRA, figures, matrix, widgets

    found = {}
    for method in (XGBLoRA(lr=0.1, steps_per_round=5), LoRA(rank=2, lr=0.1, steps_per_round=5)):
        bench = Bench(*matrix(d=12, k=12), method, steps=15, hooks=[Spectrum()])
        bench.run(progress=False)
        bench.rewind(2)
        record = bench.step()
        drawn = figures.loss(bench.history)
        assert figures.spectrum(bench.history).plot.data
        found[method.name] = [*record.losses, *bench.spectrum(next(iter(bench.modules))).tolist()]
        found[f"{method.name} drawn"] = len(drawn.plot.data)
    stepper = widgets.Stepper(Bench(*matrix(d=12, k=12), XGBLoRA(lr=0.1, steps_per_round=5), steps=15))
    stepper.next_round()
    found["stepped"] = [r.probe_after for r in stepper.bench.history]
    return found


def test_the_first_lesson_needs_none_of_the_heavy_packages():
    folder = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import json, test_light;"
        "sys.meta_path[:] = map(test_light.Without, sys.meta_path);"
        "found = test_light.rounds_of_one_matrix();"
        "assert not set(test_light.HEAVY) & set(sys.modules); print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    light = json.loads(done.stdout.splitlines()[-1])
    assert light == rounds_of_one_matrix()  # with all of them installed
    assert len(light["stepped"]) == 1
    assert "accelerate" in sys.modules  # here it was used


def test_what_is_absent_is_really_absent(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [Without(finder) for finder in sys.meta_path])
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    assert importlib.util.find_spec("pyarrow") is None
    assert importlib.util.find_spec("torch") is not None
