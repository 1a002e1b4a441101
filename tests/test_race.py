"""Races: the same budget for all, the learning rate chosen by dev, nothing done twice."""

from __future__ import annotations

import math
import os
import pickle
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
from scipy import stats
from toy import ToyTask, equal, snapshot

from xgblora_lab.methods import Full, LoRA, XGBLoRA
from xgblora_lab.racing.race import GRID, Race, interval, race, spread
from xgblora_lab.tasks.text import load_task

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
        sweep = [h for h in result.histories if h.label == label and h.settings.seed == 0]
        best = min(sweep, key=lambda h: h.scores["dev"])
        assert {h.settings.lr for h in result.chosen(label)} == {best.settings.lr}
    orders = {label: [h[0].losses[0] for h in result.chosen(label)] for label in result.labels}
    assert len({tuple(v) for v in orders.values()}) == 1  # the same first batches for every method
    assert len({h.settings.seed for h in result.chosen("full")}) == 2
    loaded = Race.load(tmp_path / "race")
    assert str(loaded) == str(result)
    assert (tmp_path / "race" / "table.md").read_text().count("\n") == 6


def test_an_interrupted_race_goes_on(tmp_path, monkeypatch):
    module = sys.modules["xgblora_lab.racing.race"]

    out = tmp_path / "race"
    trained = []
    original = module._train

    def train(cell):
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(cell.label)
        return original(cell)

    monkeypatch.setattr(module, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    monkeypatch.setattr(module, "_train", lambda cell: (trained.append("more"), original(cell))[1])
    resumed = run(out)
    assert len(trained) == 11
    fresh = run()
    columns = [c for c in fresh.table.columns if c != "seconds"]
    assert resumed.table[columns].equals(fresh.table[columns])
    with pytest.raises(ValueError, match="other settings"):
        run(out, steps=7)


def test_each_method_has_the_same_number_of_rates_in_its_own_unit():
    result = run(lrs=None, methods=["xgblora", "lora:r=1", "full"], seeds=1)
    tried = {
        label: sorted({h.settings.lr for h in result.histories if h.label == label})
        for label in result.labels
    }
    for label, kind in zip(result.labels, (XGBLoRA, LoRA, Full), strict=True):
        assert tried[label] == pytest.approx([factor * kind().lr for factor in GRID])


def test_seeds_are_compared_in_pairs_and_the_steps_to_loras_loss_are_counted():
    result = run(methods=["lora:r=1", "lora:r=4", "full"], seeds=3)
    assert result.reference == "lora:rank=4"
    theirs = {h.settings.seed: h.scores["dev"] for h in result.chosen("lora:rank=4")}
    mine = {h.settings.seed: h.scores["dev"] for h in result.chosen("full")}
    pairs = [mine[seed] - theirs[seed] for seed in sorted(mine)]
    assert result.differences("full") == pytest.approx(pairs)
    found = stats.ttest_rel([mine[s] for s in sorted(mine)], [theirs[s] for s in sorted(mine)])
    low, high = found.confidence_interval(0.95)
    assert interval(pairs) == f"{statistics.fmean(pairs):+.3g} ({low:+.3g} to {high:+.3g})"
    assert result.table.loc["full", "minus lora:rank=4"] == interval(pairs)
    assert result.table.loc["lora:rank=4", "minus lora:rank=4"] == ""
    for label in result.labels:
        for history, steps in zip(result.chosen(label), result.steps_to_target(label), strict=True):
            reached = [r.step for r in history if r.probe_after <= result.target]
            assert steps == (reached[0] if reached else math.inf)
    assert any(math.isfinite(s) for label in result.labels for s in result.steps_to_target(label))
    alone = run(methods=["full"], seeds=1)
    assert alone.reference is None
    assert "steps to its loss" not in alone.table.columns


def same(left: Race, right: Race) -> bool:
    columns = [c for c in left.table.columns if c != "seconds"]
    return left.table[columns].equals(right.table[columns])


def test_any_executor_gives_the_same_race():
    with ThreadPoolExecutor(2) as executor:
        assert same(run(executor=executor), run())


@pytest.mark.filterwarnings("default")  # dask's own, at its start and end
def test_a_dask_cluster_takes_over(tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"methods": ["xgblora:k=2", "lora:r=1"], "lrs": (1e-2,)}
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, processes=True
    )
    with cluster, distributed.Client(cluster) as client:
        far = run(tmp_path / "race", executor=client.get_executor(), **options)
        assert len({w["pid"] for w in client.run(lambda: {"pid": os.getpid()}).values()} - {os.getpid()}) == 2
    assert same(far, run(**options))
    assert len(list((tmp_path / "race" / "runs").glob("*.json"))) == 4


def test_a_failed_run_in_an_executor_is_the_races_failure_and_what_is_done_is_kept(tmp_path):
    class Broken(LoRA):
        def start(self, bench):
            raise RuntimeError("no start")

    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="no start"):
        run(tmp_path / "race", executor=executor, methods=["lora:r=1", Broken(rank=2)], seeds=1)
    assert len(list((tmp_path / "race" / "runs").glob("*.json"))) == 2


def test_a_diverged_run_is_never_chosen():
    result = run(lrs=(1e-3, 1e30), methods=["lora:r=1"], seeds=1)
    assert result.chosen("lora:rank=1")[0].settings.lr == 1e-3
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


def test_histories_travel_between_processes():
    history = run(methods=["lora:r=1"], seeds=1, lrs=[1e-2]).histories[0]
    assert pickle.loads(pickle.dumps(history)).to_dict() == history.to_dict()


def test_a_task_without_a_test_split_is_scored_on_dev_alone():
    rows = {"text": [f"{i} is {'even' if i % 2 == 0 else 'odd'}" for i in range(24)], "label": [0, 1] * 12}
    task = load_task(
        {"train": rows, "dev": rows}, tiny.tiny_tokenizer(), kind="classification", max_length=16
    )
    model = tiny.tiny_llama(num_labels=2)
    table = run(model=model, task=task, methods=["lora:r=1", "full"], seeds=1, lrs=[1e-2]).table
    assert "dev accuracy" in table.columns
    assert "test accuracy" not in table.columns
    with pytest.raises(ValueError, match="has no test split"):
        task.evaluate(model, "test")
