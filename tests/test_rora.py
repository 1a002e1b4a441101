"""RoRA is LoRA with alpha/√r: the same at a matching alpha, and steady where the rank grows."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.booster import LowRank, init_A
from xgblora_lab.methods import LoRA, RoRA


def run(method):
    bench = Bench(tiny.tiny_llama(), ToyTask(), method, steps=8, batch_size=8)
    bench.run(progress=False)
    return [loss for r in bench.history for loss in r.losses], {n: bench.update(n) for n in bench.modules}


def test_the_scale_is_alpha_over_the_root_of_the_rank():
    assert RoRA(rank=64, alpha=16).scale_of(64) == 2.0
    assert RoRA(rank=16, alpha=16).scale_of(16) == 4.0
    assert LoRA(rank=64, alpha=16).scale_of(64) == 0.25


@pytest.mark.parametrize("rank", [4, 16])
def test_it_is_lora_at_the_matching_alpha_bit_for_bit(rank):
    common = {"rank": rank, "lr": 3e-3, "steps_per_round": 4}
    losses, updates = run(RoRA(alpha=2, **common))
    same_losses, same_updates = run(LoRA(alpha=2 * rank**0.5, **common))
    assert losses == same_losses
    assert all(torch.equal(updates[n], same_updates[n]) for n in updates)
    other_losses, _ = run(LoRA(alpha=2, **common))  # the same alpha is another method
    assert losses[0] == other_losses[0]
    assert losses[-1] != other_losses[-1]


def test_every_module_counts_its_own_rank():
    scales = {}
    for method in (RoRA(rank=4, alpha=8), LoRA(rank=4, alpha=8)):
        bench = Bench(tiny.tiny_llama(), ToyTask(), method, steps=4)
        name = next(iter(bench.modules))
        state = bench.method.state()
        state |= {f"{name}.A": state[f"{name}.A"][:1], f"{name}.B": state[f"{name}.B"][:, :1]}
        bench.method.load_state(state)
        scales[method.name] = [b.scale for b in bench.method.boosters.values()]
    assert scales["rora"] == [8.0] + [4.0] * 13
    assert scales["lora"] == [8.0] + [2.0] * 13


def test_the_first_sgd_step_does_not_fade_with_the_rank():
    def change(method, rank, seed):
        generator = torch.Generator().manual_seed(seed)
        layer = nn.Linear(64, 8, bias=False)
        booster = LowRank.fresh(layer, init_A("kaiming", rank, 64, generator), method.scale_of(rank))
        x = torch.randn(1, 64, generator=generator)
        booster(x).sum().backward()
        with torch.no_grad():
            booster.B -= 0.1 * booster.B.grad
            return float(booster(x).norm())

    def ratio(kind):
        wide, narrow = (sum(change(kind(rank=r, alpha=16), r, s) for s in range(20)) for r in (256, 4))
        return wide / narrow

    assert 0.7 < ratio(RoRA) < 1.3
    assert ratio(LoRA) < 0.05
