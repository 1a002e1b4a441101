"""The worked example of CONTRIBUTING: a new method in one file and one registry line."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import METHODS, LoRA, make_method
from xgblora_lab.racing.race import race

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"<!-- method: (\S+) -->\n```python\n(.*?)```\n<!-- /method -->", TEXT, re.DOTALL)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The example's method, in the registry."""
    assert EXAMPLE is not None
    path = tmp_path / Path(EXAMPLE[1]).name
    path.write_text(EXAMPLE[2])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    method = next(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == path.stem)
    assert Path(EXAMPLE[1]).parent.as_posix() == "xgblora_lab/methods/family"
    assert not (Path(__file__).parent.parent / EXAMPLE[1]).exists()  # else it is no new one
    monkeypatch.setitem(METHODS, method.name, method)
    return method


def moved(method) -> tuple[float, float]:
    """How far A and B went in a short run."""
    bench = Bench(tiny.tiny_llama(), ToyTask(), method, steps=6, batch_size=4)
    start = {n: (b.A.detach().clone(), b.B.detach().clone()) for n, b in bench.method.boosters.items()}
    bench.run(progress=False)
    now = bench.method.boosters
    return tuple(
        sum(float((getattr(now[n], f).detach() - pair[i]).norm()) for n, pair in start.items())
        for i, f in enumerate("AB")
    )


def test_the_example_does_what_it_says(added):
    A, B = moved(make_method("lora-fa:r=2", lr=1e-2, steps_per_round=2))
    assert A == 0
    assert B > 0
    assert moved(LoRA(rank=2, lr=1e-2, steps_per_round=2))[0] > 0  # LoRA's A does move


def test_the_rest_of_the_library_knows_it(added, tmp_path):
    bench = Bench(tiny.tiny_llama(), ToyTask(), added(rank=2, steps_per_round=2), steps=6, batch_size=4)
    bench.run(progress=False)
    curve = [r.losses for r in bench.history]
    bench.rewind(1)
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == curve
    bench.export_peft(tmp_path / "adapter")
    options = {"lrs": [1e-2], "seeds": 1, "steps": 4, "batch_size": 4, "progress": False}
    table = race(tiny.tiny_llama(), ToyTask(), ["lora:r=2", "lora-fa:r=2"], **options).table
    assert table.loc["lora-fa:rank=2", "optimizer bytes"] < table.loc["lora:rank=2", "optimizer bytes"]
    assert torch.isfinite(torch.tensor(curve)).all()
