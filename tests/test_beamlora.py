"""BeamLoRA's promises: its gates, who is weak, and what an event writes where."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import BeamLoRA, LoRA, make_method
from xgblora_lab.methods.family.beamlora import Competing, overwrite, weak_counts


def bench_of(method, model=None, **options):
    options = {"steps": 24, "batch_size": 8, **options}
    return Bench(model if model is not None else tiny.tiny_llama().double(), ToyTask(), method, **options)


class Recording(BeamLoRA):
    """Keeps what every restart began with and found, by (steps done, module)."""

    def start(self, bench):
        super().start(bench)
        self.events = []

    def compete(self, bench, done):
        self.done = done
        super().compete(bench, done)

    def restart(self, name, weak, strong):
        def now():
            booster, moments = self.boosters[name], {}
            for factor, p in booster.named_parameters():
                entry = self.optimizer.state[p]
                moments[factor] = (
                    entry["exp_avg"].clone(),
                    entry["exp_avg_sq"].clone(),
                    float(entry["step"]),
                )
            values = {n: p.detach().clone() for n, p in booster.named_parameters()}
            return values, moments

        before = now()
        super().restart(name, weak, strong)
        self.events.append((self.done, name, weak, strong, before, now()))


OPTIONS = {"rank": 6, "lr": 0.02, "beam_every": 6, "top_p": 0.6, "steps_per_round": 4}


def test_gates_start_at_one_and_always_sum_to_the_rank():
    A, B = torch.randn(5, 4), torch.randn(3, 5)
    booster = Competing(A, B, 1.0, torch.zeros(5))
    assert torch.equal(booster.gates(), torch.ones(5))
    x = torch.randn(2, 4)
    torch.testing.assert_close(booster(x), x @ A.T @ B.T)
    booster.gate.data = torch.tensor([0.1, -0.1, 0.0, 0.05, 0.2])
    gates = booster.gates().detach()
    assert float(gates.sum()) == pytest.approx(5)
    torch.testing.assert_close(gates, 5 * torch.softmax(booster.gate.detach() / 0.05, 0))
    torch.testing.assert_close(booster(x), x @ (B @ gates.diag() @ A).T)
    merged_B, merged_A = booster.factors()
    torch.testing.assert_close(merged_B @ merged_A, B @ gates.diag() @ A)
    with pytest.raises(AssertionError):  # the gates matter
        torch.testing.assert_close(booster(x), x @ A.T @ B.T)


def test_the_first_step_is_loras():
    beam = bench_of(BeamLoRA(rank=4, lr=0.01), steps=1).step()
    lora = bench_of(LoRA(rank=4, lr=0.01), steps=1).step()
    assert beam.losses == lora.losses
    assert beam.loss_after == pytest.approx(lora.loss_after, abs=1e-12)  # no gate has a gradient yet
    more = [
        bench_of(m, steps=4).run(progress=False) for m in (BeamLoRA(rank=4, lr=0.01), LoRA(rank=4, lr=0.01))
    ]
    assert more[0][0].losses != more[1][0].losses


@pytest.mark.parametrize(
    ("gates", "p", "wanted"),
    [
        ([[2.0, 1.0, 0.6, 0.4]], 0.7, [3]),  # 2, 3 > 2.8: the rank that crosses is weak too
        ([[2.0, 1.0, 0.6, 0.4]], 0.75, [2]),  # 3 is not above 3; 3.6 is
        ([[2.0, 1.0, 0.6, 0.4]], 0.95, [1]),
        ([[2.0, 1.0, 0.6, 0.4]], 1.0, [0]),
        ([[3.4, 0.3, 0.2, 0.1], [1.1, 1.0, 0.95, 0.95]], 0.93, [3, 0]),
        ([[1.0, 1.0], [1.0, 1.0]], 0.5, [0, 2]),  # ties in the order of the modules
    ],
)
def test_the_weak_ranks_by_hand(gates, p, wanted):
    assert weak_counts([torch.tensor(g, dtype=torch.float64) for g in gates], p) == wanted


def test_no_rank_is_weak_at_a_share_of_one_whatever_the_rounding():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 64, generator=generator)
    gates = [64 * torch.softmax(row / 0.3, 0) for row in rows]
    assert any(float(g.double().sum()) > 64 for g in gates)  # rounding would find one
    assert all(weak_counts([g], 1.0) == [0] for g in gates)
    assert all(weak_counts([g], 1 - 1e-6)[0] >= 0 for g in gates)
    assert sum(weak_counts(gates, 0.9)) > 0


def test_the_share_rises_as_the_released_schedule():
    method = BeamLoRA(top_p=0.95, top_p_until=24688 / 37030)
    at = [method.share(t, 37030) for t in (0, 3000, 6000, 12000, 18000, 24688, 30000)]
    assert at[:5] == pytest.approx([0.95, 0.952, 0.957, 0.974, 0.992], abs=6e-4)
    assert at[5:] == [1.0, 1.0]
    assert method.share(12344, 37030) == pytest.approx(0.975, abs=1e-9)
    assert BeamLoRA().period(37030) == 2962
    assert BeamLoRA(beam_every=3000).period(37030) == 3000
    assert BeamLoRA().period(3) == 2


def test_events_come_when_planned_and_look_half_a_period_back():
    class Watch(Recording):
        def start(self, bench):
            super().start(bench)
            self.taken, self.fired = [], []

        def after_step(self, bench):
            before = self.snapshot
            super().after_step(bench)
            if self.snapshot is not before:
                self.taken.append(bench.trained_steps + 1)

        def compete(self, bench, done):
            self.fired.append(done)

    def times(T, steps):
        bench = bench_of(Watch(**{**OPTIONS, "beam_every": T}), steps=steps)
        bench.run(progress=False)
        return bench.method.taken, bench.method.fired

    assert times(6, 24) == ([3, 9, 15, 21], [6, 12, 18])  # none in the last 6 steps
    assert times(5, 13) == ([2, 7, 12], [5])
    assert times(6, 11) == ([3, 9], [])


@pytest.mark.parametrize("moments", ["inherit", "keep", "zero"])
def test_an_event_rewrites_the_weak_and_nothing_else(moments):
    bench = bench_of(Recording(**OPTIONS, moments=moments))
    snapshots = {}

    method = bench.method
    original = method.compete

    def compete(bench, done):
        snapshots[done] = dict(method.snapshot)
        original(bench, done)

    method.compete = compete
    bench.run(progress=False)
    assert method.events
    for done, name, weak, strong, (before, moments_before), (after, moments_after) in method.events:
        history = snapshots[done]
        others = torch.tensor([i for i in range(6) if i not in set(weak.tolist())])
        assert not set(weak.tolist()) & set(strong.tolist())
        assert len(set(strong.tolist())) == len(weak) <= 3
        for factor, rows in (("A", lambda x: x), ("B", lambda x: x.T)):
            old = history[f"{name}.{factor}"]
            assert torch.equal(rows(after[factor])[weak], rows(old)[strong])
            assert torch.equal(rows(after[factor])[others], rows(before[factor])[others])
            # The older copy, not the present one, or twins would have equal gradients for good.
            assert not torch.equal(rows(after[factor])[weak], rows(before[factor])[strong])
            for which, key in enumerate(("exp_avg", "exp_avg_sq")):
                then = rows(history[f"optimizer/{name}.{factor}/{key}"])[strong]
                was, now = rows(moments_before[factor][which]), rows(moments_after[factor][which])
                wanted = {"inherit": then, "keep": was[weak], "zero": 0 * then}
                assert torch.equal(now[weak], wanted[moments])
                assert not any(torch.equal(now[weak], v) for m, v in wanted.items() if m != moments)
                assert torch.equal(now[others], was[others])
            assert moments_after[factor][2] == moments_before[factor][2] == done
        mean = (before["gate"][weak] + before["gate"][strong]) / 2
        assert torch.equal(after["gate"][weak], mean)
        assert torch.equal(after["gate"][strong], mean)
        assert not moments_after["gate"][0].any()
        assert moments_before["gate"][0].any()


def test_a_write_through_a_masked_slice_is_lost_and_ours_is_not():
    target, source = torch.zeros(3, 4), torch.arange(12.0).view(3, 4)
    weak, strong = torch.tensor([3, 0]), torch.tensor([1, 2])
    target[:, weak].copy_(source[:, strong])  # the released code's way: into a temporary
    assert not target.any()
    overwrite("B", target, weak, source, strong)
    assert torch.equal(target[:, weak], source[:, strong])
    overwrite("A", target, torch.tensor([2]), source, torch.tensor([0]))
    assert torch.equal(target[2], source[0])


def test_the_weak_of_an_event_have_the_smallest_gates_of_their_module():
    counts = {}
    for scope in ("global", "module"):
        bench = bench_of(Recording(**OPTIONS, scope=scope), steps=12)
        bench.run(progress=False)
        counts[scope] = [len(weak) for _, _, weak, *_ in bench.method.events]
        for _, _, weak, strong, (before, _), _ in bench.method.events:
            gates = before["gate"]
            others = [i for i in range(6) if i not in set(weak.tolist())]
            assert gates[weak].max() <= gates[others].min()
            assert gates[strong].min() >= gates[[i for i in range(6) if i not in set(strong.tolist())]].max()
    assert counts["global"] != counts["module"]


def test_events_change_the_run_and_the_pairing_follows_the_seed():
    def losses(seed=0, **options):
        bench = bench_of(Recording(**{**OPTIONS, **options}), seed=seed, steps=12)
        bench.run(progress=False)
        pairs = [(name, weak.tolist(), strong.tolist()) for _, name, weak, strong, *_ in bench.method.events]
        return [loss for r in bench.history for loss in r.losses], pairs

    first, pairs = losses()
    assert losses() == (first, pairs)
    quiet, none = losses(top_p=1.0)
    assert none == []
    assert quiet[:6] == first[:6]  # the first event follows the sixth step
    assert quiet[6:] != first[6:]
    assert losses(seed=1)[1] != pairs


def test_a_rewind_between_snapshot_and_event_is_exact():
    class Forgetful(BeamLoRA):
        def load_state(self, state):
            super().load_state(state)
            self.snapshot = {k: 0 * v for k, v in self.snapshot.items()}

    def again(method, rounds):
        bench = bench_of(method, steps=12)
        first = [r.losses for r in bench.run(progress=False)]
        state = bench.state()
        bench.rewind(rounds)
        same = [r.losses for r in bench.run(progress=False)] == first
        return same and all(torch.equal(v, state[k]) for k, v in bench.state().items())

    assert again(BeamLoRA(**OPTIONS), 1)  # 4 steps: the event of step 6 needs the snapshot of step 3
    assert again(BeamLoRA(**OPTIONS), 2)
    assert not again(Forgetful(**OPTIONS), 1)


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_the_result_is_a_plain_lora(make):
    bench = bench_of(BeamLoRA(**OPTIONS), make().double(), steps=12)
    bench.run(progress=False)
    live = torch.tensor(bench.predict())
    with bench.merged():
        merged = torch.tensor(bench.predict())
    assert (merged - live).abs().max() < 1e-6
    bench.rewind(0)
    assert (torch.tensor(bench.predict()) - live).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scope": "layer"}, "scope must be one of global, module; got 'layer'"),
        ({"moments": "copy"}, "moments must be one of inherit, keep, zero; got 'copy'"),
        ({"tau": 0}, "tau must be a number above 0; got 0"),
        ({"top_p": 0}, "top_p must be a number above 0 to 1; got 0"),
        ({"top_p_until": 2}, "top_p_until must be a number above 0 to 1; got 2"),
        ({"beam_every": 0}, "beam_every must be a number above 0; got 0"),
        ({"beam_every": 1}, "whole number of steps from 2 or a fraction"),
        ({"beam_every": 2.5}, "whole number of steps from 2 or a fraction"),
    ],
)
def test_bad_options_get_one_clear_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        BeamLoRA(**options)
    assert make_method("beamlora:r=4:tau=0.03") == BeamLoRA(rank=4, tau=0.03)
    assert math.isclose(BeamLoRA().scale_of(8), 1.0)
