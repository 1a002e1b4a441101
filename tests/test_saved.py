"""What a lesson trains is saved: a fresh kernel goes on where the last one was, and trains nothing twice."""

from __future__ import annotations

import linecache
from pathlib import Path

import pytest
import tiny
from toy import ToyTask

from xgblora_lab.bench.hooks import Hook, Probe
from xgblora_lab.course import saved
from xgblora_lab.course.kernel import RUNS, kernel_manager
from xgblora_lab.methods import LoRA, XGBLoRA
from xgblora_lab.racing import cells

METHOD = XGBLoRA(lr=0.05, steps_per_round=1)
OPTIONS = {"steps": 4, "batch_size": 2, "probe_size": 4}


@pytest.fixture(autouse=True)
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A notebook's folder to work in, and what the reader is told there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUNS, raising=False)
    sentences: list[str] = []
    monkeypatch.setattr(saved, "say", sentences.append)
    return sentences


def bench(method=METHOD, model=None, task=None, **options):
    """A bench as a fresh kernel makes it."""
    return saved.bench(model or tiny.tiny_llama(), task or ToyTask(), method, **OPTIONS | options)


def test_rounds_go_on_where_they_were(told):
    whole = bench(seed=7)
    whole.run(progress=False)
    first = bench()
    first.run(2, progress=False)
    assert told == []
    again = bench()
    assert again.history.rounds == first.history.rounds, "their seconds too: nothing was trained again"
    assert told[0].startswith("2 of 4 rounds of this run were trained before and lie in `runs/saved/xgblora-")
    again.run(progress=False)
    assert len(again.history) == 4
    alone = saved.Bench(tiny.tiny_llama(), ToyTask(), METHOD, **OPTIONS)
    alone.run(progress=False)
    curve = [r.losses for r in again.history]
    assert curve == [r.losses for r in alone.history]
    assert curve != [r.losses for r in whole.history], "the comparison can fail"
    assert len(bench().history) == 4
    assert told[1].startswith("4 of 4 rounds")


class Watch(Hook):
    """Changes nothing but what is on record."""


def written(code: str, cell: str) -> Hook:
    """A hook whose class stands in a cell of the notebook."""
    lines = f"class Note(Hook):\n    def measure(self, bench):\n        return {{'note': {code}}}\n"
    linecache.cache[cell] = (len(lines), None, lines.splitlines(keepends=True), cell)
    names = {"__name__": "__main__", "Hook": Hook}
    exec(compile(lines, cell, "exec"), names)
    return names["Note"]()


def test_a_hook_that_was_corrected_is_measured_again():
    bench(hooks=[written("1.0", "<cell 1>")]).run(progress=False)
    assert len(bench(hooks=[written("1.0", "<cell 2>")]).history) == 4
    assert len(bench(hooks=[written("2.0", "<cell 3>")]).history) == 0


def test_whoever_changes_something_begins_anew(told, monkeypatch):
    bench().run(progress=False)
    other = ToyTask(rows=32)
    for changed in (
        {"seed": 1},
        {"steps": 5},
        {"method": XGBLoRA(lr=0.02, steps_per_round=1)},
        {"method": LoRA(rank=1, steps_per_round=1)},
        {"hooks": [Watch()]},
        {"model": tiny.tiny_llama(seed=1)},
        {"task": other},
    ):
        assert len(bench(**changed).history) == 0, changed
    monkeypatch.setenv(RUNS, "elsewhere")
    assert len(bench().history) == 0
    monkeypatch.delenv(RUNS)
    assert told == []
    assert len(bench().history) == 4


def test_files_that_were_changed_are_refused_with_a_sentence():
    bench().run(2, progress=False)
    (boosters,) = Path("runs/saved").glob("*/rounds/00001-*")
    boosters.write_bytes(boosters.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not as it was written"):
        bench()


def test_where_nothing_can_be_written_the_training_goes_on_unsaved(told):
    Path("runs").write_text("a file in the way")
    made = bench()
    made.run(progress=False)
    assert len(made.history) == 4
    assert made.hooks == []
    assert Path("runs").read_text() == "a file in the way"


def test_a_race_runs_what_is_missing_alone(told, monkeypatch):
    trained = []
    original = cells.train

    def counting(cell, own_copy=False):
        trained.append(cell.name)
        return original(cell, own_copy)

    monkeypatch.setattr(cells, "train", counting)

    def contest(methods=(METHOD,), seeds=1, batch_size=2):
        options = {
            "steps": 2,
            "steps_per_round": 1,
            "lrs": (0.02,),
            "batch_size": batch_size,
            "progress": False,
        }
        options |= {"hooks": lambda: [Probe()], "seeds": seeds}
        return saved.race(tiny.tiny_llama(), ToyTask(), methods, **options)

    first = contest()
    assert (len(trained), told) == (1, [])
    again = contest()
    assert len(trained) == 1
    assert [h.to_dict() for h in again.histories] == [h.to_dict() for h in first.histories]
    assert told[0].startswith("1 of this race's runs were trained before")
    contest(seeds=2)
    assert len(trained) == 2, "the second seed alone"
    contest(batch_size=3)
    contest(methods=["lora:r=1"])
    assert len(trained) == 4, "other races"
    assert len(told) == 2


def test_the_runner_gives_every_run_a_folder_of_its_own(tmp_path):
    env = kernel_manager({}, tmp_path)().kernel_spec.env
    assert Path(env[RUNS]).parent == tmp_path
