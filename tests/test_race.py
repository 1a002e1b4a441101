"""Races: the same budget for all, the learning rate chosen by dev, nothing done twice."""

from __future__ import annotations

import sys

import pytest
import tiny
from toy import ToyTask, equal, snapshot

from xgblora_lab.methods import LoRA
from xgblora_lab.race import Race, race, spread

METHODS = ["xgblora:k=2", "lora:r=1", LoRA(rank=2), "full:lr=1e-3"]


def run(out=None, **options):
    task = options.pop("task", None) or ToyTask()
    options = {"lrs": (1e-3, 1e-2), "seeds": 2, "steps": 6, "batch_size": 4, "progress": False, **options}
    return race(
        options.pop("model", None) or tiny.tiny_llama(),
        task,
        options.pop("methods", METHODS),
        out=out,
        **options,
    )


def test_a_race_gives_one_row_per_method_and_leaves_the_model_as_it_was(tmp_path):
    model = tiny.tiny_llama()
    base = snapshot(model)
    result = run(tmp_path / "race", model=model)
    table = result.table
    assert list(table.index) == ["xgblora:steps_per_round=2", "lora:rank=1", "lora:rank=2", "full"]
    assert equal(snapshot(model), base)
    assert list(table["seeds"]) == [2] * 4
    assert table.loc["lora:rank=2", "peak parameters"] == 2 * table.loc["lora:rank=1", "peak parameters"]
    boosted = table.loc["xgblora:steps_per_round=2"]
    assert boosted["total parameters"] > boosted["peak parameters"]
    assert len(result.histories) == 3 * 3 + 2  # full's learning rate was given
    for label in result.labels:
        sweep = [h for h in result.histories if h.settings["label"] == label and h.settings["seed"] == 0]
        best = min(sweep, key=lambda h: h.scores["dev"])
        assert {h.settings["lr"] for h in result.chosen(label)} == {best.settings["lr"]}
    orders = {label: [h[0].losses[0] for h in result.chosen(label)] for label in result.labels}
    assert len({tuple(v) for v in orders.values()}) == 1  # the same first batches for every method
    assert len({h.settings["seed"] for h in result.chosen("full")}) == 2
    loaded = Race.load(tmp_path / "race")
    assert str(loaded) == str(result)
    assert (tmp_path / "race" / "table.md").read_text().count("\n") == 6


def test_an_interrupted_race_goes_on(tmp_path, monkeypatch):
    module = sys.modules["xgblora_lab.race"]

    out = tmp_path / "race"
    trained = []
    original = module._Runs._train

    def train(self, method, seed):
        if len(trained) == 4 and seed >= 0:
            raise KeyboardInterrupt
        trained.append(method.label())
        return original(self, method, seed)

    monkeypatch.setattr(module._Runs, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    monkeypatch.setattr(module._Runs, "_train", lambda *a: (trained.append("more"), original(*a))[1])
    resumed = run(out)
    assert len(trained) == 11
    fresh = run()
    columns = [c for c in fresh.table.columns if c != "seconds"]
    assert resumed.table[columns].equals(fresh.table[columns])
    with pytest.raises(ValueError, match="other settings"):
        run(out, steps=7)


def test_a_diverged_run_is_never_chosen():
    result = run(lrs=(1e-3, 1e30), methods=["lora:r=1"], seeds=1)
    assert result.chosen("lora:rank=1")[0].settings["lr"] == 1e-3
    assert "edge" in result.table["lr"].iloc[0]


def test_bad_races_are_refused():
    with pytest.raises(ValueError, match="are the same"):
        run(methods=["lora:r=1", "lora:rank=1"])
    with pytest.raises(ValueError, match="at least one seed"):
        run(seeds=0)
    with pytest.raises(ValueError, match="both by name"):
        race(tiny.tiny_llama(), "pydocs")
    with pytest.raises(ValueError, match="Unknown method"):
        run(methods=["lora", "gradient descent"])


def test_spreads_in_words():
    assert spread([0.5]) == "0.5"
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
