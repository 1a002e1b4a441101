"""LoRA+ is LoRA with a faster B, as PEFT's optimizer makes it."""

from __future__ import annotations

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import LoRA, LoRAPlus, make_method


def run(method, model=None, steps=10):
    bench = Bench(model or tiny.tiny_llama().double(), ToyTask(), method, steps=steps, batch_size=8)
    bench.run(progress=False)
    return bench


def updates(bench):
    return torch.cat([bench.update(name).flatten() for name in bench.modules])


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_it_equals_peft_with_its_loraplus_optimizer(make):
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    common = {"rank": 4, "alpha": 8, "lr": 1e-3, "schedule": "constant"}
    fresh = Bench(make().double(), ToyTask(), LoRA(**common), batch_size=8)  # the same first A
    start = {name: booster.A.detach().clone() for name, booster in fresh.method.boosters.items()}
    names = list(start)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, fan_in_fan_out=make is tiny.tiny_gpt2)
    theirs = get_peft_model(make().double(), config).double()
    layers = {name: theirs.base_model.model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(start[name])
    optimizer = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8)
    for step in range(10):
        batch = fresh.task.batch("train", fresh.trainer.batch_indices(step))
        fresh.task.loss(theirs, batch).backward()
        optimizer.step(), optimizer.zero_grad()
    deltas = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    if make is tiny.tiny_gpt2:
        deltas = {name: delta.T for name, delta in deltas.items()}  # Conv1D stores its weight transposed
    expected = torch.cat([deltas[name].flatten() for name in names])

    ours = updates(run(LoRAPlus(ratio=8, **common), make().double()))
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
    slower = updates(run(LoRA(**common), make().double()))
    assert (slower - expected).abs().max() > 1e-3


def test_ratio_one_is_lora_bit_for_bit():
    one, lora = run(LoRAPlus(ratio=1, lr=3e-3, rank=4)), run(LoRA(lr=3e-3, rank=4))
    assert one.history[0].losses == lora.history[0].losses
    assert torch.equal(updates(one), updates(lora))
    assert not torch.equal(updates(run(LoRAPlus(ratio=2, lr=3e-3, rank=4))), updates(lora))


def test_only_b_is_faster_and_stays_so_after_a_rewind():
    bench = run(LoRAPlus(ratio=16, lr=1e-3, rank=2, steps_per_round=4, schedule="constant"), steps=12)
    curve = [r.losses for r in bench.history]
    bench.rewind(1)
    start = {n: p.detach().clone() for n, p in bench.method.trainable().items()}
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == curve
    moved = {"A": 0.0, "B": 0.0}
    for name, parameter in bench.method.trainable().items():
        change = float((parameter.detach() - start[name]).abs().max())
        moved[name[-1]] = max(moved[name[-1]], change)
    assert moved["A"] < 8 * 2e-3 < moved["B"]  # 8 steps of AdamW at 1e-3 and 16e-3


def test_a_slower_b_is_refused():
    assert make_method("lora+:ratio=4") == LoRAPlus(ratio=4)
    with pytest.raises(ValueError, match=r"ratio must be a number from 1; got 0\.5"):
        LoRAPlus(ratio=0.5)
