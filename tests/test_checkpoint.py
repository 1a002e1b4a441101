"""Saving after every round: its cost does not grow, and a kill at any byte loses no complete round."""

from __future__ import annotations

import pytest
import tiny
from toy import ToyTask

from xgblora_lab.bench import Bench, Checkpoint, History, resume
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.methods import LoRA, XGBLoRA


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
    assert whole == bench.history.to_lines(), "appended line by line it is the file that is written at once"
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


def test_rounds_taken_back_are_gone_from_the_disk_with_the_next_save(tmp_path):
    bench = Bench(
        tiny.tiny_llama(),
        ToyTask(),
        LoRA(rank=2, lr=0.05, steps_per_round=1),
        steps=9,
        batch_size=2,
        hooks=[Checkpoint(tmp_path / "run")],
    )
    bench.run(5, progress=False)
    bench.rewind(2)
    bench.step()
    again = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    assert [r.losses for r in again.history] == [r.losses for r in bench.history]
    assert sorted(p.name for p in (tmp_path / "run").glob("state-*"))[-1] == "state-00003.safetensors"
