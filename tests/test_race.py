"""Races: the same budget for all, the learning rate chosen by dev, nothing done twice."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import statistics
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import tiny
import torch
from scipy import stats
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.methods import LoRA
from xgblora_lab.racing import cells
from xgblora_lab.racing.processes import Processes
from xgblora_lab.racing.race import Race, race
from xgblora_lab.racing.summary import paired
from xgblora_lab.racing.tuning import Trial
from xgblora_lab.tasks.text import load_task

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forks")
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
    told = (tmp_path / "race" / "table.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in told) == 6
    assert told[0] == result.note  # in six steps the reference does not leave its start


def test_an_interrupted_race_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "race"
    trained = []
    original = cells.train

    def train(cell):
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(cell.trial.label)
        return original(cell)

    monkeypatch.setattr(cells, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    monkeypatch.setattr(cells, "train", lambda cell: (trained.append("more"), original(cell))[1])
    resumed = run(out)
    assert len(trained) == 11
    fresh = run()
    columns = [c for c in fresh.table.columns if c != "seconds"]
    assert resumed.table[columns].equals(fresh.table[columns])
    with pytest.raises(ValueError, match="other settings"):
        run(out, steps=7)


def test_each_method_has_the_same_number_of_trials_and_the_chosen_knobs_run_with_all_seeds(tmp_path):
    result = run(tmp_path, lrs=None, trials=6, steps=12, methods=["xgblora", "lora:r=1", "full"])
    for label in result.labels:
        mine = [t for t in result.trials if t["label"] == label]
        assert 6 <= len(mine) <= 10
        assert len(mine) == 6 or result.table.loc[label, "chosen"]
        (best,) = [t for t in mine if t["chosen"]]
        runs = result.chosen(label)
        assert [h.settings.seed for h in runs] == [0, 1]
        for h in runs:
            assert h.settings.lr == best["lr"]
            assert all(h.settings.options[name] == value for name, value in best["knobs"].items())
        assert f"lr {best['lr']:.4g}" in result.table.loc[label, "chosen"]
    assert "steps_per_round" in result.table.loc["xgblora", "chosen"]
    assert "steps_per_round" not in result.table.loc["lora:rank=1", "chosen"]
    assert len(list((tmp_path / "runs").glob("*_first=6.json"))) == 4 + 2 * 6
    assert str(Race.load(tmp_path)) == str(result)
    fixed = run(lrs=None, trials=6, steps=12, methods=["xgblora:k=3"], seeds=1)
    assert not any(t["knobs"] for t in fixed.trials)  # what the text says is not tuned


def test_seeds_are_compared_in_pairs_and_the_steps_to_loras_loss_are_counted():
    result = run(methods=["lora:r=1", "lora:r=4", "full"], seeds=3)
    assert result.reference == "lora:rank=4"
    theirs = {h.settings.seed: h.scores["dev"] for h in result.chosen("lora:rank=4")}
    mine = {h.settings.seed: h.scores["dev"] for h in result.chosen("full")}
    pairs = [mine[seed] - theirs[seed] for seed in sorted(mine)]
    assert result.differences("full") == pytest.approx(pairs)
    found = stats.ttest_rel([mine[s] for s in sorted(mine)], [theirs[s] for s in sorted(mine)])
    low, high = found.confidence_interval(0.95)
    assert str(paired(pairs)) == f"{statistics.fmean(pairs):+.3g} ({low:+.3g} to {high:+.3g})"
    assert result.table.loc["full", "minus lora:rank=4"] == str(paired(pairs))
    assert result.table.loc["lora:rank=4", "minus lora:rank=4"] == ""
    assert result.table.loc["lora:rank=4", "verdict (Holm)"] == "reference"
    compared = result.differences_by_label()
    assert [d.corrected >= d.p for d in compared.values()] == [True, True]
    assert result.table.loc["full", "verdict (Holm)"] == compared["full"].verdict(greater_is_better=False)
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


class DiesOnce(LoRA):
    """Its first run is killed with its process, between two steps; every start leaves a file."""

    def start(self, bench):
        (Path(os.environ["DIES_ONCE"]) / f"{self.lr}-{bench.seed}-{os.getpid()}").touch()
        super().start(bench)

    def after_step(self, bench):
        if bench.trained_steps == 1:
            with contextlib.suppress(FileExistsError):
                (Path(os.environ["DIES_ONCE"]) / "died").mkdir()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # dask's own, at its start and end
def test_a_dask_cluster_loses_a_worker_and_no_run(tmp_path, monkeypatch):
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    monkeypatch.setenv("DIES_ONCE", str(tmp_path))
    forked.serve()
    # On a busy machine a worker answers nobody for a while.
    patient = {"distributed.comm.timeouts.tcp": "250s", "distributed.scheduler.worker-ttl": None}
    patient["distributed.worker.multiprocessing-method"] = "forkserver"
    patient["distributed.nanny.environ"] = {"DIES_ONCE": str(tmp_path)}
    options = {"methods": ["xgblora:k=2", "lora:r=1", DiesOnce(rank=2)], "lrs": (1e-2,)}
    with (
        dask.config.set(patient),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        before = set(client.run(os.getpid).values())
        far = run(tmp_path / "race", executor=client.get_executor(), **options)
        client.wait_for_workers(2, timeout=60)
        after = set(client.run(os.getpid).values())
    assert len(before) == len(after) == 2
    assert len(before & after) == 1  # one was killed and replaced
    assert os.getpid() not in before | after
    starts = [path.name.rpartition("-")[0] for path in tmp_path.glob("0.01-*")]
    assert sorted(set(starts)) == ["0.01-0", "0.01-1"]
    assert len(starts) == 3  # the killed run once more
    assert not far.failures
    assert len({(h.label, h.settings.seed) for h in far.histories}) == len(far.histories) == 6
    assert len(list((tmp_path / "race" / "runs").glob("*.json"))) == 6
    assert same(far, run(**options))  # here, where nothing dies any more


class Broken(LoRA):
    def start(self, bench):
        if self.lr > 5e-3:
            raise torch.linalg.LinAlgError("no convergence")
        super().start(bench)


class Deadly(LoRA):
    def start(self, bench):
        os._exit(1)


@pytest.mark.parametrize("executor", [None, 1])
def test_a_run_that_fails_is_named_and_the_race_goes_on(tmp_path, executor):
    methods = ["lora:r=1", Broken(rank=2)]
    pool = ThreadPoolExecutor(executor) if executor else None
    result = run(tmp_path / "race", executor=pool, methods=methods)
    assert list(result.labels) == ["lora:rank=1", "lora:rank=2"]
    assert {h.settings.lr for h in result.chosen("lora:rank=2")} == {1e-3}
    (failed,) = result.failures.items()
    assert "lora:rank=2, lr 0.01, seed 0" in failed[0]
    assert "no convergence" in failed[1]
    assert "Failed: lora:rank=2, lr 0.01, seed 0" in result.note
    assert str(result).startswith(result.note)
    assert Race.load(tmp_path / "race").failures == result.failures
    assert "no convergence" in (tmp_path / "race" / "table.md").read_text()
    assert not run(methods=methods, lrs=[1e-3]).failures
    with pytest.raises(RuntimeError, match=r"Every run of the race failed.*no convergence"):
        run(tmp_path / "none", methods=[Broken(rank=2)], lrs=[1e-2])
    assert not (tmp_path / "none").exists()


class Forks(Processes):
    """Processes that are there at once; `test_race_command.py` has those that begin anew."""

    def _new(self):
        return ProcessPoolExecutor(self.count, multiprocessing.get_context("fork"))


@fork
def test_a_race_is_started_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"start it once, with --workers"):
        run()


@pytest.mark.filterwarnings("default")  # of the resource tracker, about the processes that died
def test_a_dead_worker_costs_its_own_run_alone():
    with Forks(2) as executor:
        methods = ["lora:r=1", Deadly(rank=2)]
        result = run(executor=executor, methods=methods, lrs=[1e-3], seeds=1, steps=2)
    assert result.labels == ["lora:rank=1"]
    assert len(result.failures) == 1
    assert "lora:rank=2" in next(iter(result.failures))


@fork
def test_pruning_is_the_same_with_any_number_of_workers(tmp_path):
    options = {"lrs": None, "trials": 6, "steps": 12, "methods": ["xgblora", "lora:r=1"], "seeds": 1}
    here = run(**options)
    with Forks(2) as executor:
        there = run(executor=executor, **options)
    assert here.trials == there.trials
    assert same(here, there)


def test_a_rung_ends_inside_a_round_with_the_schedule_of_the_whole_plan():
    trial = Trial("lora", LoRA(steps_per_round=6, lr=1e-2))
    settings = {"steps": 6, "batch_size": 4, "targets": "all-linear", "limit": None, "precision": None}
    model, task = tiny.tiny_llama(), ToyTask()
    base = snapshot(model)
    part = cells.train(cells.Cell(model, task, {}, settings, tuple, trial, 0, share=1 / 3))
    assert equal(snapshot(model), base)
    with Bench(model, task, LoRA(steps_per_round=2, lr=1e-2), steps=6, batch_size=4) as bench:
        bench.step()
        assert part.scores == {"early_loss": bench.evaluate("dev")["loss"]}


def test_a_cut_file_is_run_again_and_a_refused_race_leaves_nothing(tmp_path, monkeypatch):
    options = {"methods": ["lora:r=1"], "seeds": 1}
    whole = run(tmp_path / "race", **options)
    cut = sorted((tmp_path / "race" / "runs").glob("*.json"))[0]
    cut.write_text(cut.read_text()[:100])
    trained = []
    original = cells.train
    monkeypatch.setattr(cells, "train", lambda cell: (trained.append(cell.name), original(cell))[1])
    assert same(run(tmp_path / "race", **options), whole)
    assert [f"{name}.json" for name in trained] == [cut.name]
    with pytest.raises(ValueError, match="nowhere"):
        run(tmp_path / "refused", targets="nowhere", **options)
    assert not (tmp_path / "refused").exists()
    run(tmp_path / "refused", **options)  # the folder is free for a race that can be run


def test_the_result_is_one_small_file(tmp_path):
    result = run(tmp_path, hooks=lambda: [Spectrum()], steps=12)
    text = (tmp_path / "race.json").read_text()
    assert len(text.splitlines()) < len(result.histories) + 20
    assert len(text) < sum(p.stat().st_size for p in (tmp_path / "runs").glob("*.json")) / 2
    loaded = Race.load(tmp_path)
    for label in result.labels:
        with_spectrum = ["spectrum" in h[0].measurements for h in loaded.chosen(label)]
        assert with_spectrum == [True, False]
        for kept, made in zip(loaded.chosen(label), result.chosen(label), strict=True):
            assert kept[-1].modules == made[-1].modules
            assert kept[-1].probe_after == pytest.approx(made[-1].probe_after, rel=1e-5)
            assert len(kept[-1].losses) == len(made[-1].losses)
            assert statistics.fmean(kept[-1].losses) == pytest.approx(statistics.fmean(made[-1].losses), 1e-5)
    with pytest.raises(ValueError, match="older version"):
        Race.from_dict({"settings": {}, "histories": []})


def test_one_run_of_each_method_is_watched_and_the_race_is_the_same(tmp_path):
    watched = run(tmp_path, watch=lambda: [Spectrum()])
    assert same(watched, run())
    for history in watched.histories:
        first = history is watched.chosen(history.label)[0]
        assert ("spectrum" in history[0].measurements) == first
    assert len(list((tmp_path / "runs").glob("*_watched.json"))) == len(watched.labels)
    loaded = Race.load(tmp_path)
    assert all("spectrum" in loaded.chosen(label)[0][0].measurements for label in loaded.labels)


def test_knobs_that_a_method_refuses_or_that_are_said_are_not_tried():
    options = {"lrs": None, "trials": 6, "steps": 6, "seeds": 1}
    found = run(methods=["xgblora:examples=hardest", "xgblora:merge=plateau"], **options)
    hardest, plateau = ([t["knobs"] for t in found.trials if t["label"] == label] for label in found.labels)
    assert {"merge": "plateau"} not in hardest
    assert len({k["steps_per_round"] for k in hardest}) > 1
    assert not any(plateau)


def test_a_diverged_run_is_never_chosen():
    result = run(lrs=(1e-3, 1e30), methods=["lora:r=1"], seeds=1)
    assert result.chosen("lora:rank=1")[0].settings.lr == 1e-3
    assert "edge: the lowest tried" in result.table["chosen"].iloc[0]


def test_bad_races_are_refused():
    with pytest.raises(ValueError, match="are the same"):
        run(methods=["lora:r=1", "lora:rank=1"])
    with pytest.raises(ValueError, match="at least one seed"):
        run(seeds=0)
    with pytest.raises(ValueError, match="both by name"):
        race(tiny.tiny_llama(), "pydocs")
    with pytest.raises(ValueError, match="Unknown method"):
        run(methods=["lora", "gradient descent"])


def test_histories_travel_between_processes():
    history = run(methods=["lora:r=1"], seeds=1, lrs=[1e-2]).histories[0]
    assert pickle.loads(pickle.dumps(history)).to_dict() == history.to_dict()


def test_a_race_in_which_all_answer_with_the_majority_class_says_so_first(tmp_path):
    rows = {"text": ["the same"] * 12, "label": [0] * 3 + [1] * 9}
    task = load_task({"train": rows, "dev": rows}, tiny.tiny_tokenizer(), kind="classification", max_length=8)
    options = {"task": task, "methods": ["lora:r=1", "full"], "lrs": [1e-4], "seeds": 1}
    stuck = run(tmp_path, model=tiny.tiny_llama(num_labels=2), steps=40, **options)
    assert stuck.settings["majority"] == {"dev": 0.75}
    first = (tmp_path / "table.md").read_text().splitlines()[0]
    assert first == str(stuck).splitlines()[0]
    assert "majority class (0.75)" in first
    rows["text"] = ["no no no no"] * 3 + ["yes it is a yes"] * 9
    options["task"] = load_task(
        {"train": rows, "dev": rows}, tiny.tiny_tokenizer(), kind="classification", max_length=8
    )
    told = run(model=tiny.tiny_llama(num_labels=2), **{**options, "lrs": [1e-2]}, steps=60)
    assert "majority" not in told.note


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
