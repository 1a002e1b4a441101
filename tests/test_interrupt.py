"""Ctrl-C at any line, and operations in any order: the bench is always the one of its complete rounds."""

from __future__ import annotations

import pytest
import tiny
import torch
from faults.faulty import Lines
from faults.interrupt import OPERATIONS, Trials, possible
from faults.machine import Machine, play
from faults.small import METHODS, STEP, Reference, bench_of, differences, seen
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench import Bench
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.bench.rewind import Past
from xgblora_lab.methods import LoRA, make_method

every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_an_interrupt_leaves_the_old_model_or_the_new_one(name):
    reference, done = Reference(name), 0
    for operation in OPERATIONS:
        if possible(name, operation):
            every = (
                40 if operation in ("close", "new bench") else 170
            )  # all: python tests/faults/interrupt.py
            for left, lines, wrong in Trials(name, operation, reference).all(every):
                assert left != "wrong", (operation, lines.stop, lines.where, wrong)
                done += 1
    assert done > 20


@pytest.mark.parametrize(("operation", "line"), [("step", 700), ("rewind", 10_000), ("drop", 10_000)])
def test_the_harness_sees_a_model_that_is_not_recovered(operation, line, monkeypatch):
    trials = Trials("xgblora", operation, Reference("xgblora"))
    trials.prepare()
    for trail in (trials.before, trials.after):
        trials.reference.after(trail)
    monkeypatch.setattr(Past, "recover", lambda past: setattr(past, "stale", False))
    left, _, wrong = trials.at(line)
    assert left == "wrong"
    assert any(piece.startswith("weight") for piece in wrong) or operation == "step"


@every_method
def test_operations_in_any_order_change_nothing_else(name):
    before = Machine.operations
    assert play(name, examples=3, steps=14) == Machine.operations - before > 10


def test_two_interrupts_leave_a_whole_bench():
    """The second comes while the bench recovers from the first."""
    reference, twice = Reference("xgblora"), 0
    for first, second in ((300, 5), (500, 60), (800, 150), (900, 200)):
        bench = bench_of("xgblora")
        bench.step()
        recover = bench._past.recover

        def cut(recover=recover, second=second) -> None:
            with Lines(second) as lines:
                recover()
            if lines.where:
                raise KeyboardInterrupt

        bench._past.recover = cut
        with Lines(first) as lines:
            bench.step()
        assert lines.where
        del bench._past.recover
        twice += bench._past.stale
        bench.check_open()
        assert not differences(seen(bench), reference.after((STEP,)))
        bench.step()
        assert not differences(seen(bench), reference.after((STEP, STEP)))
    assert twice >= 2


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("adalora:tinit=3:tfinal=5", tiny.tiny_llama),  # refused after its pairs were attached
        ("pissa:r=99", tiny.tiny_llama),  # refused before
        ("lora-ga:r=99", tiny.tiny_llama),
    ],
)
def test_after_a_method_that_did_not_start_the_next_bench_works(method, model):
    model, task = model(), ToyTask()
    base = snapshot(model)
    with pytest.raises(ValueError, match=r"tinit|rank"):
        Bench(model, task, make_method(method), steps=8)
    assert equal(snapshot(model), base)
    assert not any(m._forward_hooks for m in model.modules())
    with Bench(model, task, LoRA(rank=2), steps=8, batch_size=8) as bench:
        curve = bench.step().losses
    with Bench(tiny.tiny_llama(), task, LoRA(rank=2), steps=8, batch_size=8) as fresh:
        assert fresh.step().losses == curve
    assert equal(snapshot(model), base)


def test_a_large_model_that_full_fine_tuning_left_inside_a_round_is_refused(monkeypatch):
    monkeypatch.setattr("xgblora_lab.bench.rewind.IN_MEMORY", 0)
    bench = bench_of("full")
    with Lines(200) as lines:
        bench.step()
    assert lines.where
    for use in (bench.step, bench.evaluate, lambda: bench.update(next(iter(bench.modules)))):
        with pytest.raises(RuntimeError, match="interrupted inside a round and cannot go back; make a new"):
            use()
    again = bench_of("full", bench.model)
    again.step()
    assert not differences(seen(again), Reference("full").after((STEP,)))


def test_what_would_change_a_round_under_way_is_refused():
    refused = []

    class Meddle(Hook):
        def on_step(self, bench, step, loss):
            for change in (bench.step, lambda: bench.rewind(0), lambda: bench.drop(0)):
                with pytest.raises(RuntimeError, match="inside a round or a look back") as error:
                    change()
                refused.append(error)

    bench = bench_of("xgblora")
    bench.step()
    with bench.hooked(Meddle()):
        bench.step()
    with bench.at(1), pytest.raises(RuntimeError, match="inside a round or a look back"):
        bench.step()
    assert len(refused) == 6
    assert not differences(seen(bench), Reference("xgblora").after((STEP, STEP)))


def test_looks_back_inside_each_other_lead_back_one_by_one():
    for name in ("xgblora", "pissa"):
        bench, models = bench_of(name), []
        for _ in range(3):
            bench.step()
            models.append(snapshot(bench.model))
        with bench.at(2):
            with bench.at(1):
                assert equal(snapshot(bench.model), models[0])
            assert equal(snapshot(bench.model), models[1])
            with bench.merged():
                pass
            assert equal(snapshot(bench.model), models[1])
            with pytest.raises(ZeroDivisionError), bench.at(1):
                _ = 1 / 0
            assert equal(snapshot(bench.model), models[1])
        assert equal(snapshot(bench.model), models[2])
        assert torch.equal(*(s["head/score.weight"] for s in (bench.state(), bench._past.states[3])))


def test_a_bench_that_is_closed_while_it_looks_back_leaves_the_base():
    for method in ("xgblora", "lora"):
        bench = bench_of(method)
        base = snapshot(bench.model)
        bench.step()
        with bench.at(0):
            bench.close()
        assert equal(snapshot(bench.model), base)
        assert not any(m._forward_hooks for m in bench.model.modules())
