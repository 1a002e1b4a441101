"""Hooks: called in order, as often as they should be, and gone when they should be."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Gain, Gradient, Hook, Probe, Spectrum, Stop
from xgblora_lab.bench.records import History, Round
from xgblora_lab.lowrank import spectra
from xgblora_lab.methods import Full, LoRA, XGBLoRA


class Counter(Hook):
    def __init__(self):
        self.calls = []

    def on_run_start(self, bench):
        self.calls.append("run")

    def on_round_start(self, bench, index):
        self.calls.append(f"round {index}")

    def on_step(self, bench, step, loss):
        self.calls.append("step")

    def measure(self, bench):
        self.calls.append("measure")
        return {"count": len(self.calls)}

    def on_round_end(self, bench, record):
        self.calls.append(f"end {record.index}")

    def on_run_end(self, bench):
        self.calls.append("over")


def bench_of(method=None, **options):
    method = method or XGBLoRA(lr=0.05, steps_per_round=2)
    return Bench(tiny.tiny_llama(), ToyTask(), method, **{"steps": 8, "batch_size": 8, **options})


def test_hooks_are_called_in_order():
    counter = Counter()
    bench = bench_of()
    with bench.hooked(counter):
        bench.run(2, progress=False)
    one = ["round 0", "step", "step", "measure", "end 0"]
    assert counter.calls == ["run", *one, *[c.replace("0", "1") for c in one], "over"]
    assert bench.history[0].measurements == {"count": 5}
    assert bench.hooks == []
    bench.step()
    assert counter.calls[-1] == "over"
    assert bench.history[2].measurements == {}


def test_hooks_are_released_after_an_exception_and_a_closed_generator():
    class Broken(Counter):
        def on_round_end(self, bench, record):
            raise ZeroDivisionError

    broken, fine = Broken(), Counter()
    bench = bench_of()
    with pytest.raises(ZeroDivisionError), bench.hooked(fine, broken):
        bench.step()
    assert bench.hooks == []
    assert fine.calls[-1] == broken.calls[-1] == "over"
    with bench.hooked(fine):
        for _ in bench.rounds():
            break
    assert fine.calls[-1] == "over"
    assert len(bench.history) == 2


def test_a_true_answer_stops_the_run():
    class Enough(Hook):
        def on_round_end(self, bench, record):
            return record.index == 1

    bench = bench_of(hooks=[Enough()])
    assert len(bench.run(progress=False)) == 2
    stop = Stop(n_iter_no_change=3)
    still = bench_of(XGBLoRA(lr=1e-12, steps_per_round=2), steps=40, hooks=[stop])
    assert len(still.run(progress=False)) == stop.best_round == 1
    assert len(stop.losses) == 4
    watched = [Stop(n_iter_no_change=math.inf), Spectrum()]
    diverged = bench_of(LoRA(lr=1e30, steps_per_round=2), hooks=watched)
    assert len(diverged.run(progress=False)) < 4
    assert "spectrum" not in diverged.history[-1].measurements


@pytest.mark.parametrize(
    "method", [XGBLoRA(lr=0.05, steps_per_round=2), LoRA(rank=2, steps_per_round=2), Full()]
)
def test_spectra_equal_the_dense_ones_for_every_method(method):
    bench = bench_of(method, hooks=[Spectrum()])
    bench.run(progress=False)
    for name in bench.modules:
        dense = torch.linalg.svdvals(bench.update(name).double())
        measured = torch.tensor(bench.history[-1].measurements["spectrum"][name], dtype=torch.float64)
        torch.testing.assert_close(measured, dense[: len(measured)], atol=1e-6, rtol=1e-4)
        assert len(measured) == 32 or float(dense[len(measured) :].sum()) < 1e-5


def test_spectra_follow_rewinding_and_dropping():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=2, selection="all"), hooks=[Spectrum()], steps=20)
    rounds = bench.rounds()
    for _ in range(4):
        next(rounds)
    bench.rewind(2)
    bench.drop(0)
    record = next(rounds)  # the same generator goes on
    name = next(iter(bench.modules))
    dense = torch.linalg.svdvals(bench.update(name).double())
    assert record.index == 2
    assert len(record.measurements["spectrum"][name]) == 2
    assert record.measurements["spectrum"][name] == pytest.approx(dense[:2].tolist(), rel=1e-5)


def test_a_spectrum_takes_in_every_booster_once_however_the_rounds_are_asked_for(monkeypatch):
    taken, append = [], spectra.GrowingSpectrum.append
    monkeypatch.setattr(spectra.GrowingSpectrum, "append", lambda *a: taken.append(a) or append(*a))
    method, hook = XGBLoRA(lr=0.05, steps_per_round=1), Spectrum()
    whole = bench_of(method, hooks=[Spectrum()], steps=4, probe_size=0, targets="q_proj").run(progress=False)
    assert len(taken) == 8  # 4 rounds on 2 modules
    stepped = bench_of(method, hooks=[hook], steps=4, probe_size=0, targets="q_proj")
    measured = [stepped.step().measurements for _ in range(4)]
    assert measured == [record.measurements for record in whole]
    assert len(taken) == 16
    stepped.drop(1)
    dropped = stepped.step().measurements
    assert len(taken) == 24  # after a drop it begins again
    other = bench_of(method, hooks=[hook], steps=4, probe_size=0, targets="q_proj")
    assert other.step().measurements == measured[0]  # and in another run
    assert dropped != measured[0]


def test_the_truth_gives_alignment_and_distance():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=2, selection="all"), targets="q_proj")
    names = list(bench.modules)
    target = (torch.randn(32, 2), torch.randn(2, 32))
    bench.task.truth = {names[0]: target}
    with bench.hooked(Spectrum()):
        first = bench.step()
    update, truth = bench.update(names[0]), target[0] @ target[1]
    expected = float((update - truth).norm() / truth.norm())
    assert first.measurements["distance"][names[0]] == pytest.approx(expected, rel=1e-5)
    assert 0 <= first.measurements["alignment"][names[0]] < 0.5
    bench.task.truth = {names[0]: bench.ensemble.factors(names[0])}
    with bench.hooked(Spectrum()):
        bench.ensemble.append({})  # nothing new: the update is the truth
        measured = bench.hooks[0].measure(bench)
    assert measured["alignment"][names[0]] == pytest.approx(1)
    assert measured["distance"][names[0]] < 1e-6


def test_gradient_alignment_is_one_for_the_steepest_booster():
    class Steepest(XGBLoRA):
        """Sets each booster to the leading singular pair of its module's gradient."""

        def end_round(self, bench, index):
            for name, (u, v) in gradient._directions.items():
                self.boosters[name].B.data.copy_(-u[:, None])
                self.boosters[name].A.data.copy_(v[None])
            return super().end_round(bench, index)

    gradient = Gradient()
    record = bench_of(Steepest(selection="all", steps_per_round=2), hooks=[gradient]).step()
    aligned = record.measurements["gradient_alignment"]
    assert len(aligned) == 14
    assert min(aligned.values()) > 0.999
    assert record.extra_passes == 1
    ordinary = bench_of(XGBLoRA(selection="all", steps_per_round=2), hooks=[Gradient()]).step()
    assert max(ordinary.measurements["gradient_alignment"].values()) < 0.9


def test_the_gradient_hook_changes_no_curve():
    curves = []
    for hooks in ([], [Gradient(), Spectrum(), Probe()]):
        bench = bench_of(hooks=hooks)
        curves.append([r.losses for r in bench.run(progress=False)])
    assert curves[0] == curves[1]


def test_gradients_outside_a_round_are_refused():
    seen = []

    class Look(Hook):
        def on_round_start(self, bench, index):
            bench.probe_gradients(2)
            seen.append(index)

    bench = bench_of(hooks=[Look()])
    for index in range(2):  # before the first round and between two
        with pytest.raises(RuntimeError, match="inside a round only"):
            bench.probe_gradients()
        assert bench.step().extra_passes == 2
        assert seen[-1] == index


def test_the_probe_hook_scores_every_nth_round():
    bench = bench_of(hooks=[Probe(every=2)])
    bench.run(progress=False)
    assert ["dev_loss" in r.measurements for r in bench.history] == [False, True, False, True]
    assert bench.history[3].measurements["dev_loss"] == bench.evaluate()["loss"]


def test_records_survive_files(tmp_path):
    bench = bench_of(hooks=[Spectrum()], probe_size=0)
    history = bench.run(progress=False)
    history.scores["dev"] = float("inf")
    history.save(tmp_path / "history.jsonl")
    loaded = History.load(tmp_path / "history.jsonl")
    assert str(loaded.to_dict()) == str(history.to_dict())
    assert loaded.scores["dev"] == float("inf")
    assert isinstance(loaded[0], Round)
    assert loaded[0].losses == history[0].losses
    for line in (tmp_path / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    frame = loaded.to_frame()
    assert len(frame) == 4
    assert frame["loss"].iloc[0] == pytest.approx(sum(history[0].losses) / 2)
    with pytest.raises(TypeError, match="not a JSON value"):
        Round.to_dict(
            bench.history[0].__class__(**{**bench.history[0].__dict__, "measurements": {"x": object()}})
        )


def test_a_gain_is_what_is_lost_without_the_booster():
    bench = bench_of(
        XGBLoRA(lr=0.05, steps_per_round=4, selection="random", modules_per_round=1), steps=12, hooks=[Gain()]
    )
    records = list(bench.rounds())
    plain = bench_of(XGBLoRA(lr=0.05, steps_per_round=4, selection="random", modules_per_round=1), steps=12)
    assert [r.losses for r in plain.run(progress=False)] == [r.losses for r in records]  # it only looks
    left_out = dict(bench.left_out())[2]["loss"] - bench.evaluate()["loss"]
    (gain,) = records[2].measurements["gain"].values()
    assert gain == pytest.approx(left_out, abs=5e-6)  # float32 losses
    assert abs(gain) > 1e-4
    lora = bench_of(LoRA(rank=2, steps_per_round=2), hooks=[Gain()], steps=2)
    assert "gain" not in lora.step().measurements
