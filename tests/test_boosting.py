"""Boosting's own options: when to merge, what to select, what is kept across merges, when to stop."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench import Bench, Checkpoint, resume
from xgblora_lab.bench.hooks import Hook, Stop
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import LoRA, XGBLoRA
from xgblora_lab.methods.base import Method
from xgblora_lab.methods.schedules import SCHEDULES
from xgblora_lab.methods.weak_learner import has_stopped_falling, merged_boosters


def bench_of(method, **options):
    options = {"steps": 24, "batch_size": 8, **options}
    return Bench(tiny.tiny_llama(), ToyTask(), method, **options)


def lengths(bench):
    return [len(record.losses) for record in bench.history]


# Merge when fitted


def test_a_plateau_that_never_comes_is_lora_of_rank_one_bit_for_bit():
    boosted = bench_of(XGBLoRA(merge="plateau", steps_per_round=20, lr=0.01))
    lora = bench_of(LoRA(rank=1, steps_per_round=24, lr=0.01))
    boosted.run(progress=False), lora.run(progress=False)
    assert lengths(boosted) == [24]
    assert boosted.history[0].losses == lora.history[0].losses
    assert all(torch.equal(boosted.update(name), lora.update(name)) for name in boosted.modules)
    eager = bench_of(XGBLoRA(merge="plateau", steps_per_round=2, lr=0.01))
    eager.run(progress=False)
    assert len(eager.history) > 1  # it does fire where the stretches are short
    assert eager.history[-1].losses[-1] != lora.history[0].losses[-1]


def test_a_round_ends_at_the_first_look_that_sees_no_fall():
    bench = bench_of(XGBLoRA(merge="plateau", steps_per_round=3, lr=0.02), steps=60)
    bench.run(progress=False)
    assert len(bench.history) > 2
    for record in list(bench.history)[:-1]:  # the last one may end with the plan
        losses = torch.tensor(record.losses, dtype=torch.float64)
        looks = range(6, len(losses) + 1, 3)
        assert [has_stopped_falling(losses[n - 6 : n]) for n in looks] == [False] * (len(looks) - 1) + [True]


def test_a_fall_beyond_the_noise_goes_on_and_noise_alone_does_not():
    noise = torch.tensor([0.1, -0.1, 0.05, -0.05]).double()
    assert has_stopped_falling(torch.cat([1 + noise, 1 - noise]))
    assert not has_stopped_falling(torch.cat([1 + noise, 0.5 + noise]))
    assert has_stopped_falling(torch.cat([1 + noise, 1.5 + noise]))
    assert has_stopped_falling(torch.tensor([1.0, 1.0]))


def test_the_longest_round_is_bounded_and_the_shortest_too():
    bench = bench_of(XGBLoRA(merge="plateau", steps_per_round=5, max_steps_per_round=7, lr=1e-6))
    bench.run(progress=False)
    assert lengths(bench) == [7, 7, 7, 3]
    bench = bench_of(XGBLoRA(merge="plateau", steps_per_round=4, lr=0.05))
    bench.run(progress=False)
    assert min(lengths(bench)[:-1], default=8) >= 8


def test_plateau_rounds_rewind_and_resume_to_the_same_decisions(tmp_path):
    method = XGBLoRA(merge="plateau", steps_per_round=2, lr=0.02)
    whole = bench_of(method, steps=40)
    whole.run(progress=False)
    assert len(set(lengths(whole))) > 1, "a run whose rounds are all alike would prove nothing"
    curve = [record.losses for record in whole.history]
    whole.rewind(2)
    whole.run(progress=False)
    assert [record.losses for record in whole.history] == curve
    first = bench_of(method, steps=40, hooks=[Checkpoint(tmp_path / "run")])
    first.run(2, progress=False)
    again = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    again.run(progress=False)
    assert [record.losses for record in again.history] == curve


# Schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_ever_reaches_zero_and_none_rises(schedule):
    method = Method(schedule=schedule)
    rates = [method.rate(step, 0, 50) for step in range(80)]
    assert min(rates) > 0
    assert rates == sorted(rates, reverse=True)
    assert rates[50:] == [rates[49]] * 30, "a step past the plan keeps the last rate"
    assert (rates[49] < 0.5) == (schedule != "constant")


def test_a_trapezoid_is_constant_and_then_decays_over_the_last_three_tenths():
    method = Method(schedule="trapezoid")
    assert [method.rate(step, 0, 100) for step in (0, 35, 70)] == [1, 1, 1]
    assert method.rate(85, 0, 100) == pytest.approx(0.5)
    assert Method(schedule="sqrt").rate(75, 0, 100) == pytest.approx(0.5)


def test_a_round_past_the_plan_trains():
    bench = bench_of(XGBLoRA(steps_per_round=12, lr=0.05))
    bench.run(progress=False)
    before = snapshot(bench.model)
    record = bench.step()
    assert min(record.learning_rates) > 0
    assert not equal(before, snapshot(bench.model))


# Selection

NAMES = [f"layers.{layer}.{name}" for layer in range(4) for name in ("q", "v", "up")]


def blocks_of(names):
    return sorted({int(name.split(".")[1]) for name in names})


def test_blocks_are_chosen_whole():
    for selection in ("random", "cyclic", "contiguous", "top"):
        method = XGBLoRA(selection=selection, unit="block", modules_per_round=2)
        for index in range(12):
            chosen = method.choose(NAMES, 0, index)
            assert chosen == [name for name in NAMES if int(name.split(".")[1]) in blocks_of(chosen)]
            assert len(blocks_of(chosen)) == 2
    matrices = XGBLoRA(selection="random", modules_per_round=3)
    assert any(len(blocks_of(matrices.choose(NAMES, 0, t))) == 3 for t in range(12))


def test_neighbours_the_top_and_turns():
    contiguous = XGBLoRA(selection="contiguous", unit="block", modules_per_round=2)
    found = [tuple(blocks_of(contiguous.choose(NAMES, 0, t))) for t in range(40)]
    assert set(found) == {(0, 1), (1, 2), (2, 3)}
    top = XGBLoRA(selection="top", unit="block", modules_per_round=0.25)
    assert {tuple(blocks_of(top.choose(NAMES, seed, t))) for seed in range(3) for t in range(5)} == {(3,)}
    cyclic = XGBLoRA(selection="cyclic", unit="block", modules_per_round=1)
    assert [blocks_of(cyclic.choose(NAMES, 0, t)) for t in range(5)] == [[0], [1], [2], [3], [0]]


def test_the_record_says_how_deep_backward_went():
    top = bench_of(XGBLoRA(selection="top", unit="block", modules_per_round=1, steps_per_round=2))
    seen = []

    class Below(Hook):
        """Whether the lowest block's output carries a graph."""

        def on_round_start(self, bench, index):
            layer = bench.model.model.layers[0]
            self.handle = layer.register_forward_hook(
                lambda _m, _a, output: seen.append(
                    (output[0] if isinstance(output, tuple) else output).requires_grad
                )
            )

        def on_step(self, bench, step, loss):
            self.handle.remove()

    with top.hooked(Below()):
        assert top.step().lowest_block == 1
    assert seen == [False], "nothing below the lowest chosen block takes part in backward"
    whole = bench_of(XGBLoRA(steps_per_round=2))
    with whole.hooked(Below()):
        assert whole.step().lowest_block == 0
    assert seen == [False, True]


# Kept across merges


def test_the_next_booster_starts_along_the_last_ones_direction():
    bench = bench_of(XGBLoRA(init="previous", steps_per_round=3, lr=0.05))
    bench.step()
    seen = {}

    class Look(Hook):
        def on_round_start(self, bench, index):
            seen.update({n: b.A.detach().clone() for n, b in bench.method.boosters.items()})

    with bench.hooked(Look()):
        bench.step()
    for name, A in seen.items():
        last = bench.ensemble[0][name][1]
        assert float(torch.cosine_similarity(A, last)) == pytest.approx(1, abs=1e-6)
        assert float(A.norm()) == pytest.approx(1 / math.sqrt(3), rel=1e-5)
    fresh = bench_of(XGBLoRA(steps_per_round=3, lr=0.05))
    fresh.step()
    with fresh.hooked(Look()):
        fresh.step()
    assert all(abs(torch.cosine_similarity(A, fresh.ensemble[0][n][1])) < 0.99 for n, A in seen.items())


def test_moments_of_B_are_carried_and_those_of_A_are_not(tmp_path):
    kept = XGBLoRA(init="previous", optimizer_state="keep_B", steps_per_round=3, lr=0.02)
    bench = bench_of(kept)
    bench.step()
    carried = bench.method.carried
    assert {key.split("/")[0].rsplit(".", 1)[1] for key in carried} == {"B"}
    assert all(float(value) == 3 for key, value in carried.items() if key.endswith("/step"))
    bench.run(progress=False)
    curve = [record.losses for record in bench.history]
    fresh = bench_of(XGBLoRA(init="previous", steps_per_round=3, lr=0.02))
    fresh.run(progress=False)
    assert fresh.history[0].losses == curve[0]
    assert fresh.history[1].losses != curve[1]
    bench.rewind(2)
    bench.run(progress=False)
    assert [record.losses for record in bench.history] == curve
    saved = bench_of(kept, hooks=[Checkpoint(tmp_path / "run")])
    saved.run(3, progress=False)
    again = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    again.run(progress=False)
    assert [record.losses for record in again.history] == curve


# Boosters trained further


def backfitting(**options):
    return XGBLoRA(backfit=2, steps_per_round=3, lr=0.02, schedule="constant", **options)


def test_backfitting_is_training_two_dense_pairs_in_turn():
    model = tiny.tiny_llama().double()
    bench = Bench(model, ToyTask(), backfitting(alpha=2.0), steps=18, batch_size=8)
    bench.step(), bench.step()
    modules, weights = dict(model.named_modules()), {n: bench.weights.base(n).clone() for n in bench.modules}
    pairs = [{n: bench.ensemble[t][n] for n in bench.modules} for t in range(2)]
    bench.run(progress=False)
    for turn in range(4):  # rounds 2 to 5 as dense sums, each with an optimizer of its own
        fixed = {n: weights[n] + pairs[1 - turn % 2][n][0] @ pairs[1 - turn % 2][n][1] for n in weights}
        # alpha 2: the trained factor is half of the merged one
        trained = {
            n: [(B / 2).requires_grad_(), A.clone().requires_grad_()] for n, (B, A) in pairs[turn % 2].items()
        }
        optimizer = torch.optim.AdamW(
            [f for both in trained.values() for f in both], lr=0.02, weight_decay=0.0
        )
        for step in range(6 + 3 * turn, 9 + 3 * turn):
            now = {f"{n}.weight": fixed[n] + 2 * B @ A for n, (B, A) in trained.items()}
            batch = ToyTask().batch("train", bench.planned_rows(step))
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            logits = torch.func.functional_call(tiny.tiny_llama().double(), now, kwargs=inputs).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
            assert bench.history[2 + turn].losses[step % 3] == pytest.approx(float(loss.detach()), rel=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pairs[turn % 2] = {n: ((2 * B).detach(), A.detach()) for n, (B, A) in trained.items()}
    for name in modules.keys() & weights.keys():
        dense = sum(pair[name][0] @ pair[name][1] for pair in pairs)
        assert torch.allclose(bench.update(name), dense, rtol=0, atol=1e-10)


def test_a_booster_with_a_start_adds_the_change_since_then_on_both_paths():
    torch.manual_seed(0)
    x, (B0, A0), (B, A) = (
        torch.randn(4, 6),
        (torch.randn(5, 1), torch.randn(1, 6)),
        (torch.randn(5, 1), torch.randn(1, 6)),
    )
    linear = torch.nn.Linear(6, 5)
    booster = LowRank(A, B, scale=2.0)
    booster.start = B0, A0
    dense = x @ (2 * B @ A - B0 @ A0).T
    torch.testing.assert_close(booster(x), dense)
    before = linear(x)
    booster.attach(linear)
    torch.testing.assert_close(linear(x), before + dense)  # the fused path
    merged = booster.factors()
    torch.testing.assert_close(x @ (merged[0] @ merged[1]).T, dense)


def test_backfitting_keeps_the_rank_the_parameters_and_the_peak():
    bench = bench_of(backfitting())
    bench.run(progress=False)
    free = bench_of(XGBLoRA(steps_per_round=3, lr=0.02, schedule="constant"))
    free.run(progress=False)
    assert len(bench.history) == len(free.history) == 8
    assert [a.losses == b.losses for a, b in zip(bench.history, free.history, strict=True)][:3] == [
        True,
        True,
        False,
    ]
    name = next(iter(bench.modules))
    assert [int((run.spectrum(name) > 1e-5).sum()) for run in (bench, free)] == [2, 8]
    peaks = {record.peak_parameters for record in [*bench.history, *free.history]}
    assert len(peaks) == 1
    (peak,) = peaks
    assert [record.total_parameters // peak for record in bench.history] == [1, 2, 2, 2, 2, 2, 2, 2]
    assert free.history[-1].total_parameters == 8 * peak


def test_backfitting_goes_back_goes_on_and_survives_a_drop(tmp_path):
    method = backfitting(selection="random", modules_per_round=0.7)
    bench, saved = bench_of(method), bench_of(method, hooks=[Checkpoint(tmp_path / "run")])
    saved.run(6, progress=False)
    again = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    bench.run(progress=False), again.run(progress=False)
    curve = [record.losses for record in bench.history]
    assert [record.losses for record in again.history] == curve
    bench.rewind(3)
    bench.run(progress=False)
    assert [record.losses for record in bench.history] == curve
    assert equal(snapshot(bench.model), snapshot(again.model))
    before = bench.evaluate()["loss"]
    bench.drop(0)
    assert bench.evaluate()["loss"] != before
    bench.step()  # goes on from what is left


def test_the_booster_trained_longest_ago_is_the_next(monkeypatch):
    bench = bench_of(backfitting())
    bench.run(5, progress=False)
    name = next(iter(bench.modules))
    oldest, newest = merged_boosters(bench.ensemble, name, 1)
    assert torch.equal(oldest[1], bench.ensemble[3][name][1][:1])
    assert torch.equal(newest[1], bench.ensemble[4][name][1][:1])
    assert torch.equal(bench.ensemble[4][name][1][1:], bench.ensemble[2][name][1][:1])
    bench.drop(4)  # its start is merged no more, so round 2's booster counts again
    assert [
        torch.equal(pair[1], bench.ensemble[t][name][1][:1])
        for t, pair in zip((2, 3), merged_boosters(bench.ensemble, name, 1), strict=True)
    ] == [True, True]
    seen, get = [], Ensemble.__getitem__
    monkeypatch.setattr(Ensemble, "__getitem__", lambda self, index: seen.append(index) or get(self, index))
    merged_boosters(bench.ensemble, name, 1)
    assert seen == []  # what was seen is not looked at again
    bench.ensemble.append(bench.ensemble[3])
    assert len(merged_boosters(bench.ensemble, name, 1)) == 3
    assert seen == [3, 5]
    bench.rewind(5)
    assert len(merged_boosters(bench.ensemble, name, 1)) == 2
    assert seen[2:] == [0, 1, 2, 3, 4]  # unless a round was dropped or taken back


@pytest.mark.parametrize("options", [{"shrinkage": 0.5}, {"subspace": "orthogonal"}])
def test_backfitting_refuses_what_changes_the_boosters_themselves(options):
    with pytest.raises(ValueError, match="backfit needs shrinkage=1, subspace='free'"):
        backfitting(**options)


# When to stop


def overfitting(**options):
    """Random labels in a classification of random tokens: what is learned by heart helps nobody."""
    task = ToyTask("classification", rows=32)
    generator = torch.Generator().manual_seed(3)
    flips = torch.randint(0, 2, (len(task.tokens_),), generator=generator)
    task.tokens_[:, 0] = task.tokens_[:, 0] // 2 * 2 + flips
    method = XGBLoRA(rank=4, steps_per_round=4, lr=0.03, schedule="constant", head_lr=0.03)
    return Bench(tiny.tiny_llama(num_labels=2), task, method, steps=80, batch_size=8, **options)


def test_early_stopping_restores_the_best_round_bit_for_bit():
    stop = Stop(n_iter_no_change=4, split="dev")
    stopped = overfitting(hooks=[stop])
    stopped.run(progress=False)
    assert len(stop.losses) == stop.best_round + 4 < 20
    assert len(stopped.history) == stop.best_round
    best = overfitting()
    best.run(stop.best_round, progress=False)
    assert equal(snapshot(stopped.model), snapshot(best.model))
    assert stopped.evaluate()["loss"] == min(stop.losses)
    whole = overfitting()
    whole.run(progress=False)
    assert whole.evaluate()["loss"] > stopped.evaluate()["loss"] + 0.05, "without it the run overfits"


def test_at_the_plans_end_the_best_round_is_restored_too_and_never_by_a_patient_one():
    stop = Stop(n_iter_no_change=1000, split="dev")
    bench = overfitting(hooks=[stop])
    bench.run(progress=False)
    assert len(stop.losses) == 20
    assert len(bench.history) == stop.best_round < 20
    patient = overfitting(hooks=[Stop(n_iter_no_change=math.inf, split="dev")])
    patient.run(progress=False)
    assert len(patient.history) == 20


def test_a_run_that_goes_on_improving_is_not_stopped():
    stop = Stop(n_iter_no_change=3, tol=0.0)
    bench = bench_of(LoRA(rank=2, lr=0.02, steps_per_round=4, schedule="constant"), hooks=[stop], steps=16)
    bench.run(progress=False)
    assert len(bench.history) == stop.best_round == 4
