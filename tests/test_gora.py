"""GoRA: ranks by importance, a first step against the gradient, and a base that stays as it is."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from test_adapters import PackedLinear
from torch import nn
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench import Bench
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.lowrank.linear import dense_weight
from xgblora_lab.methods import GoRA, LoRA
from xgblora_lab.methods.family.gradient import mean_gradients


class Uphill(GoRA):
    """The essential sign turned over, as in a later release of the authors' code."""

    def first_step(self, G, A):
        return -super().first_step(G, A)


class OneRank(GoRA):
    """The essential line left out: importance decides nothing."""

    def share(self, importance, shapes):
        return dict.fromkeys(importance, self.rank)


def run(method, model=None, steps=8, **options):
    bench = Bench(model or tiny.tiny_llama(), ToyTask(), method, steps=steps, batch_size=8, **options)
    bench.run(progress=False)
    return bench


def in_round(bench):
    """As at the beginning of round 0, where gradients may be probed."""
    bench._measure.begin_round(0)


def first_round(method, make, kind="causal-lm"):
    """A bench after begin_round(0), and the gradients that it saw."""
    model = (make(num_labels=2) if kind == "classification" else make()).double()
    bench = Bench(model, ToyTask(kind), method, steps=8, batch_size=8)
    in_round(bench)
    gradients = mean_gradients(bench, bench.modules, method.passes)
    bench.method.begin_round(bench, 0)
    return bench, gradients


def test_without_a_first_step_and_with_one_rank_it_is_rslora_bit_for_bit():
    common = {"rank": 4, "lr": 3e-3, "steps_per_round": 4}
    still = run(GoRA(gamma=0, r_min=4, r_max=4, passes=2, **common))
    lora = run(LoRA(scaling="rslora", **common))
    moved = run(GoRA(gamma=0.05, r_min=4, r_max=4, passes=2, **common))
    spread = run(GoRA(gamma=0, r_min=1, r_max=8, passes=2, **common))
    assert [r.losses for r in still.history] == [r.losses for r in lora.history]
    assert all(torch.equal(still.update(n), lora.update(n)) for n in still.modules)
    assert moved.history[0].losses[0] != lora.history[0].losses[0]
    assert spread.history[0].losses[0] == lora.history[0].losses[0]
    assert spread.history[0].losses[-1] != lora.history[0].losses[-1]
    assert [r.extra_passes for r in still.history] == [2, 0]


def test_ranks_share_the_budget_by_importance():
    shapes = {"a": (60, 40), "b": (60, 40), "c": (300, 100), "d": (3, 97)}
    method = GoRA(rank=4, r_min=2, r_max=12)
    budget = 4 * (10 + 10 + 20 + 10)
    assert method.share({"a": 1, "b": 2, "c": 4, "d": 1}, shapes) == {
        "a": 2,  # budget · 1/8 / 10 = 2.5, rounded to the even one
        "b": budget * 2 / 8 / 10,
        "c": budget * 4 / 8 / 20,
        "d": 2,
    }
    assert method.share({"a": 1, "b": 0, "c": 0, "d": 0}, shapes) == {"a": 12, "b": 2, "c": 2, "d": 2}
    assert method.share({"a": 0, "b": 0, "c": 0, "d": 1}, shapes)["d"] == 3  # no more than the smaller side
    assert GoRA(rank=8).bounds() == (4, 32)
    with pytest.raises(ValueError, match="found no gradient"):
        method.share(dict.fromkeys("abcd", 0.0), shapes)


def test_ranks_are_rounded_or_floored():
    shapes = {"a": (60, 40), "b": (60, 40), "c": (300, 100)}  # √(d+k): 10, 10, 20; budget 8 · 40 = 320
    planted = {"a": 58, "b": 62, "c": 200}  # parts of the budget: 5.8, 6.2 and 10 ranks
    nearest, floor = (GoRA(rank=8, r_min=1, rounding=r).share(planted, shapes) for r in ("nearest", "floor"))
    assert nearest == {"a": 6, "b": 6, "c": 10}
    assert floor == {"a": 5, "b": 6, "c": 10}
    assert GoRA().rounding == "nearest"
    # The released code rounds the part itself first: 69.6 of 70 is enough for a seventh rank, 69.4 is not.
    method = GoRA(rank=8, r_min=1, rounding="floor")
    for part, rank in ((69.6, 7), (69.4, 6)):
        importance = {"a": part, "b": 160 - part}
        assert method.share(importance, dict.fromkeys("ab", (60, 40)))["a"] == rank


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
@pytest.mark.parametrize("kind", ["causal-lm", "classification"])
def test_ranks_come_from_mean_weight_times_gradient(make, kind):
    def check(method):
        bench, gradients = first_round(method, make, kind)
        importance = {
            n: float((dense_weight(bench.modules[n]) * G).abs().mean()) for n, G in gradients.items()
        }
        size = {n: math.sqrt(sum(G.shape)) for n, G in gradients.items()}
        budget = 4 * sum(size.values())
        for name, booster in bench.method.boosters.items():
            share = budget * importance[name] / sum(importance.values()) / size[name]
            assert booster.rank == min(max(1, round(share)), 12)
            assert booster.scale == pytest.approx(8 / math.sqrt(booster.rank))
        assert len({b.rank for b in bench.method.boosters.values()}) > 1

    options = {"rank": 4, "alpha": 8, "r_min": 1, "r_max": 12, "passes": 2}
    check(GoRA(**options))
    with pytest.raises(AssertionError):
        check(OneRank(**options))


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
@pytest.mark.parametrize("scaling", ["rslora", "lora"])
def test_the_first_step_is_least_squares_against_the_gradient(make, scaling):
    def check(kind):
        bench, gradients = first_round(kind(rank=4, alpha=6, scaling=scaling, passes=1), make)
        for name, G in gradients.items():
            booster = bench.method.boosters[name]
            B, A = booster.factors()
            length = 0.05 * math.sqrt(A.shape[1] / booster.rank)
            best = torch.linalg.lstsq(A.T, -length * G.T).solution.T  # argmin ‖BA + length·G‖
            torch.testing.assert_close(B, best, atol=1e-6 * float(best.abs().max()), rtol=1e-5)
            assert (B @ A * G).sum() < 0

    check(GoRA)
    with pytest.raises(AssertionError):
        check(Uphill)


@pytest.mark.parametrize("scaling", ["rslora", "lora"])
def test_the_first_step_has_gamma_times_the_gradients_length(scaling):
    method = GoRA(rank=8, alpha=20, scaling=scaling, gamma=0.05)

    def length(step_scale):
        total = 0.0
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            G = torch.randn(48, 96, generator=generator)
            A = (torch.rand(5, 96, generator=generator) * 2 - 1) / math.sqrt(96)
            total += float((step_scale * method.first_step(G, A) @ A).square().sum() / G.square().sum())
        return math.sqrt(total / 40)

    assert length(method.scale_of(5)) == pytest.approx(0.05, rel=0.05)
    other = LoRA(rank=8, alpha=20, scaling="lora" if scaling == "rslora" else "rslora")
    assert length(other.scale_of(5)) != pytest.approx(0.05, rel=0.05)


def test_the_first_step_goes_downhill():
    def gain(kind):
        bench = Bench(tiny.tiny_llama().double(), ToyTask(), kind(rank=4, passes=4), steps=8, batch_size=8)
        before = bench.task.loss(bench.model, bench.trainer.batches(0)[0])
        in_round(bench)
        bench.method.begin_round(bench, 0)
        return float((before - bench.task.loss(bench.model, bench.trainer.batches(0)[0])).detach())

    assert gain(GoRA) > 0
    assert gain(Uphill) < 0


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_the_base_stays_and_the_rounds_come_back(make, tmp_path):
    from peft import PeftModel

    model = make()
    base = snapshot(model)
    method = GoRA(rank=4, r_min=1, r_max=10, passes=2, lr=3e-3, steps_per_round=3, ratio=4)
    bench = Bench(model, ToyTask(), method, steps=9, batch_size=8)
    staged = [torch.tensor(bench.predict())]
    staged += [torch.tensor(bench.predict()) for _ in bench.rounds()]
    curve = [r.losses for r in bench.history]
    ranks = {name: booster.rank for name, booster in bench.method.boosters.items()}
    assert len(set(ranks.values())) > 1
    trained = sum(r * sum(bench.ensemble.shapes[n]) for n, r in ranks.items())
    assert bench.history[0].peak_parameters == bench.history[-1].total_parameters == trained
    assert equal(snapshot(model), base)
    for t in (0, 1, 3):
        with bench.at(t):
            assert torch.equal(torch.tensor(bench.predict()), staged[t])
    assert {name: booster.rank for name, booster in bench.method.boosters.items()} == ranks
    bench.export_peft(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == ranks
    theirs = PeftModel.from_pretrained(make(), tmp_path / "peft").eval()
    torch.testing.assert_close(torch.tensor(bench.task.predict(theirs)), staged[3], atol=1e-5, rtol=0)
    for rounds in (1, 0):
        bench.rewind(rounds)
        assert torch.equal(torch.tensor(bench.predict()), staged[rounds])
        bench.run(progress=False)
        assert [r.losses for r in bench.history] == curve
    bench.close()
    assert equal(snapshot(model), base)
    assert not torch.equal(staged[0], staged[1])


def test_bad_options_get_one_clear_sentence():
    with pytest.raises(ValueError, match="r_min must be at most r_max; got 9 and 8"):
        GoRA(r_min=9, r_max=8)
    with pytest.raises(ValueError, match="r_min must be at most r_max; got 4 and 3"):
        GoRA(rank=8, r_max=3)
    with pytest.raises(ValueError, match="r_min must be a whole number from 1 or none; got 0"):
        GoRA(r_min=0)
    with pytest.raises(ValueError, match=r"r_max must be a whole number from 1 or none; got 8\.0"):
        GoRA(r_max=8.0)
    with pytest.raises(ValueError, match="gamma must be a number from 0; got -1"):
        GoRA(gamma=-1)
    with pytest.raises(ValueError, match="passes must be a whole number from 1"):
        GoRA(passes=True)
    with pytest.raises(ValueError, match="rounding must be one of nearest, floor; got 'up'"):
        GoRA(rounding="up")
    with pytest.raises(ValueError, match="packed"):
        Bench(nn.Sequential(PackedLinear(6, 4)), ToyTask(), GoRA(rank=2))


def test_the_gradient_pass_leaves_nothing_behind():
    class Look(Hook):
        def on_round_start(self, bench, index):
            assert all(p.grad is None for p in bench.model.parameters())
            assert all(p.grad is None for p in bench.method.trainable().values())
            assert all(len(m._forward_hooks) == 1 for m in bench.modules.values())

    bench = run(GoRA(rank=4, passes=2), hooks=[Look()])
    assert bench.history[0].extra_passes == 2
