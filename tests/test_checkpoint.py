"""Saving after every round: its cost does not grow, and a kill at any byte loses no complete round."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench import Bench, Checkpoint, History, resume
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import Full, LoRA, XGBLoRA
from xgblora_lab.tasks.identity import digest_of_task


def bench_of(**options):
    method = XGBLoRA(lr=0.05, steps_per_round=1, selection="random", modules_per_round=1)
    return Bench(tiny.tiny_llama(), ToyTask(), method, steps=200, batch_size=2, probe_size=4, **options)


def test_what_a_round_writes_does_not_grow_with_the_rounds(tmp_path, monkeypatch):
    written = []
    original = type(tmp_path).open

    def counting(self, mode="r", *arguments, **options):
        file = original(self, mode, *arguments, **options)
        if self.name == "history.jsonl" and mode == "a":
            write = file.write
            file.write = lambda text: (written.append(len(text)), write(text))[1]
        return file

    monkeypatch.setattr(type(tmp_path), "open", counting)
    bench = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    bench.run(40, progress=False)
    assert len(written) == 39  # the first round writes the whole file
    assert max(written) < 1.5 * min(written)
    whole = (tmp_path / "run" / "history.jsonl").read_text()
    read = History.load(tmp_path / "run" / "history.jsonl")
    assert read.to_lines() == bench.history.to_lines(), "appended line by line it is what is written at once"
    assert len(whole) > 20 * max(written), "to write it whole every time would cost more with every round"


def test_a_kill_inside_the_last_line_loses_that_round_alone(tmp_path):
    bench = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    bench.run(3, progress=False)
    curve = [record.losses for record in bench.history]
    path = tmp_path / "run" / "history.jsonl"
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, last // 2, last - 1):
        path.write_bytes(whole[:-cut])
        assert len(History.load(path)) == 2
    again = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    again.run(1, progress=False)
    assert [record.losses for record in again.history] == curve
    assert len(History.load(path)) == 3
    path.write_bytes(whole[: len(whole) // 2] + b"\n" + whole[len(whole) // 2 :])
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|Extra|delimiter"):
        History.load(path)  # damage in the middle is no kill


def test_a_round_whose_save_failed_is_saved_with_the_next(tmp_path):
    class Fails(Hook):
        def on_round_end(self, bench, record):
            if record.index == 1:
                raise OSError("the disk is full")

    bench = bench_of(hooks=[Fails(), Checkpoint(tmp_path / "run")])
    bench.step()
    with pytest.raises(OSError, match="disk is full"):
        bench.step()
    bench.run(2, progress=False)
    again = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    assert [r.losses for r in again.history] == [r.losses for r in bench.history]
    again.rewind(1)


def lora_bench(folder=None, **options):
    method = LoRA(rank=2, lr=0.05, steps_per_round=1)
    hooks = [Checkpoint(folder)] if folder is not None else []
    return Bench(tiny.tiny_llama(), ToyTask(), method, steps=9, batch_size=2, hooks=hooks, **options)


def curve_of(bench):
    return [r.losses for r in bench.history]


def again(folder, **options):
    return resume(folder, tiny.tiny_llama(), ToyTask(), **options)


def test_rounds_taken_back_are_gone_from_the_disk_at_once(tmp_path):
    bench = lora_bench(tmp_path / "run")
    bench.run(5, progress=False)
    assert len(list((tmp_path / "run").glob("state-*"))) == 5
    bench.rewind(2)
    assert len(History.load(tmp_path / "run" / "history.jsonl")) == 2
    assert len(list((tmp_path / "run").glob("state-*"))) == 2
    bench.step()
    assert curve_of(again(tmp_path / "run")) == curve_of(bench)
    assert sorted(p.name for p in (tmp_path / "run").glob("state-*"))[-1].startswith("state-00003-")
    bench.rewind(0)
    assert len(again(tmp_path / "run").history) == 0


def test_a_dropped_round_is_dropped_on_the_disk_at_once(tmp_path):
    bench = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    bench.run(3, progress=False)
    bench.drop(1)
    found = Ensemble.load(tmp_path / "run")
    assert [found.dropped(t) for t in range(3)] == [False, True, False]
    resumed = again(tmp_path / "run")
    assert equal(snapshot(resumed.model), snapshot(bench.model))
    unsaved = bench_of()
    unsaved.run(3, progress=False)
    assert not equal(snapshot(unsaved.model), snapshot(bench.model)), "the drop counts"


def test_what_happened_while_it_was_off_is_saved_when_it_is_on_again(tmp_path):
    bench = lora_bench()
    bench.run(2, progress=False)
    with bench.hooked(Checkpoint(tmp_path / "run")):  # attached late: the earlier states are saved, too
        bench.step()
    bench.rewind(2)
    bench.run(2, progress=False)
    assert len(History.load(tmp_path / "run" / "history.jsonl")) == 3, "it was off"
    with bench.hooked(Checkpoint(tmp_path / "run")):
        bench.step()
    resumed = again(tmp_path / "run")
    assert curve_of(resumed) == curve_of(bench)
    resumed.rewind(1)
    resumed.run(4, progress=False)
    assert curve_of(resumed) == curve_of(bench)


def test_another_hooks_error_does_not_keep_a_round_from_the_disk(tmp_path):
    class Fails(Hook):
        def on_round_end(self, bench, record):
            raise OSError("not mine")

    bench = bench_of(hooks=[Fails(), Checkpoint(tmp_path / "run")])
    with pytest.raises(OSError, match="not mine"):
        bench.step()
    assert curve_of(again(tmp_path / "run")) == curve_of(bench)


def test_a_folder_belongs_to_one_run(tmp_path):
    first = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    rounds = first.rounds(3)
    next(rounds)
    with pytest.raises(FileExistsError, match="being written by another run"):
        bench_of(hooks=[Checkpoint(tmp_path / "run")]).step()
    with pytest.raises(FileExistsError, match="being written by another run"):
        again(tmp_path / "run").step()
    rounds.close()
    other = bench_of()
    other.step()  # rounds of its own do not make the folder its own
    with (
        pytest.raises(FileExistsError, match="holds a run already"),
        other.hooked(Checkpoint(tmp_path / "run")),
    ):
        other.step()
    assert len(other.history) == 1, "it was refused before any work"
    again(tmp_path / "run").step()
    with pytest.raises(FileExistsError, match="went on elsewhere"):
        first.step()
    assert len(History.load(tmp_path / "run" / "history.jsonl")) == 2
    assert len(again(tmp_path / "run").history) == 2


@pytest.mark.parametrize("put", ["letter.txt", "rounds/00000.safetensors", "ensemble.json"])
def test_a_folder_that_holds_something_else_is_refused_before_any_work(tmp_path, put):
    (tmp_path / "own" / "rounds").mkdir(parents=True)
    (tmp_path / "own" / put).write_text("dear")
    bench = bench_of(hooks=[Checkpoint(tmp_path / "own")])
    with pytest.raises(FileExistsError, match=f"holds something else.*{put.split('/')[-1]}"):
        bench.step()
    assert len(bench.history) == 0
    assert (tmp_path / "own" / put).read_text() == "dear"
    (tmp_path / "own" / put).unlink()
    bench.step()
    assert len(History.load(tmp_path / "own" / "history.jsonl")) == 1
    (tmp_path / "file").write_text("dear")
    with pytest.raises(NotADirectoryError, match="is a file"):
        bench_of(hooks=[Checkpoint(tmp_path / "file")]).step()


class OtherTask(ToyTask):
    """One token of one row is another."""

    def batch(self, split, indices):
        batch = super().batch(split, indices)
        if split == "dev" and 3 in indices:
            batch["input_ids"][list(indices).index(3), 0] += 1
        return batch


def test_a_run_goes_on_with_its_own_base_and_data_only(tmp_path):
    bench = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    bench.step()
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):  # frozen, and adapted
        model = tiny.tiny_llama()
        model.get_parameter(name).data[0, 0] += 1e-3
        changed = snapshot(model)
        with pytest.raises(ValueError, match="other weights"):
            resume(tmp_path / "run", model, ToyTask())
        assert equal(snapshot(model), changed)
    with pytest.raises(ValueError, match="other data"):
        resume(tmp_path / "run", tiny.tiny_llama(), OtherTask())
    resume(tmp_path / "run", tiny.tiny_llama(), ToyTask()).step()


def test_every_row_counts_in_the_digest_of_a_task():
    task, same, other = ToyTask(rows=3000), ToyTask(rows=3000), ToyTask(rows=3000)
    other.tokens_[2999, 0] += 1
    assert digest_of_task(task) == digest_of_task(same) != digest_of_task(other)
    other.tokens_[2999, 0] -= 1
    other.tokens_[[1234, 1235]] = other.tokens_[[1235, 1234]]
    assert digest_of_task(task) != digest_of_task(other)


@pytest.mark.parametrize("change", ["nan", "complex", "missing", "cut", "gone"])
def test_a_file_that_was_changed_is_refused_by_its_name(tmp_path, change):
    bench = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    bench.run(2, progress=False)
    path = sorted((tmp_path / "run" / "rounds").iterdir())[1]
    tensors = load_file(path)
    name = next(iter(tensors))
    if change == "nan":
        tensors[name][0, 0] = float("nan")
    elif change == "complex":
        tensors[name] = tensors[name].to(torch.complex64)
    elif change == "missing":
        del tensors[name]
    save_file(tensors, path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    if change == "gone":
        path.unlink()
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"{path.name} is (not as it was written|missing)"
    ):
        again(tmp_path / "run")


def test_an_older_log_is_refused_with_a_sentence(tmp_path):
    bench = bench_of()
    bench.step()
    bench.history.save(tmp_path / "history.jsonl")
    with pytest.raises(ValueError, match="older version"):
        again(tmp_path)


def test_a_diverged_run_can_be_taken_up_again(tmp_path):
    bench = bench_of(hooks=[Checkpoint(tmp_path / "run")])
    bench.step()
    bench.method.lr = float("inf")
    bench.step()
    assert not all(f.isfinite().all() for f in bench.ensemble.tensors(1).values())
    resumed = again(tmp_path / "run")
    resumed.rewind(1)
    assert all(p.isfinite().all() for p in resumed.model.parameters())


def test_a_saved_history_that_is_cut_is_refused_wherever_the_cut_is(tmp_path):
    bench = bench_of()
    bench.run(2, progress=False)
    path = tmp_path / "history.jsonl"
    bench.history.save(path)
    whole = path.read_bytes()
    for cut in (1, 100, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        with pytest.raises(ValueError, match=r"history\.jsonl is cut: 2 rounds were saved, 1 are whole"):
            History.load(path)
    for nothing in (b"", b"null\n", b"[1]\n", b"{"):
        path.write_bytes(nothing)
        with pytest.raises(ValueError, match=r"history\.jsonl"):
            History.load(path)
    path.write_bytes(whole)
    assert [r.losses for r in History.load(path)] == [r.losses for r in bench.history]


def test_a_method_that_cannot_be_rewound_keeps_its_last_state_only(tmp_path):
    def full(model):
        return Bench(model, ToyTask(), Full(steps_per_round=1), steps=9, batch_size=2)

    bench = full(tiny.tiny_llama())
    with bench.hooked(Checkpoint(tmp_path / "run")):
        bench.run(3, progress=False)
    assert len(list((tmp_path / "run").glob("state-*"))) == 1
    resumed = again(tmp_path / "run")
    assert equal(snapshot(resumed.model), snapshot(bench.model))
    resumed.step()
    assert len(list((tmp_path / "run").glob("state-*"))) == 1
    assert len(again(tmp_path / "run").history) == 4
