"""PiSSA starts as the weight's leading part, changes nothing by it, and trains as PEFT's does."""

from __future__ import annotations

import pytest
import tiny
import torch
from test_adapters import PackedLinear
from torch import nn
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.linear import dense_weight
from xgblora_lab.methods import LoRA, PiSSA
from xgblora_lab.methods.family.offset import leading


class NotTakenOut(PiSSA):
    """The essential line left out: the weight keeps what the pair starts with."""

    def take_out(self, offset):
        self.offset = dict(offset)


def first_round(method, model):
    """A bench after begin_round(0), and the logits before it."""
    bench = Bench(model, ToyTask(), method, steps=8, batch_size=8)
    logits = torch.tensor(bench.predict())
    bench.method.begin_round(bench, 0)
    return bench, logits


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_the_pair_is_the_best_rank_r_part_of_the_weight(make, scaling):
    bench, before = first_round(PiSSA(rank=4, alpha=6, scaling=scaling), make().double())
    for name, (B, A) in {n: b.factors() for n, b in bench.method.boosters.items()}.items():
        W = bench.weights.base(name)
        s = torch.linalg.svdvals(W)
        torch.testing.assert_close((W - B @ A).norm(), s[4:].norm())
        torch.testing.assert_close(dense_weight(bench.modules[name]), W - B @ A)
        torch.testing.assert_close(torch.linalg.svdvals(B @ A)[:4], s[:4])
    torch.testing.assert_close(torch.tensor(bench.predict()), before, atol=1e-6, rtol=0)


def test_without_taking_it_out_the_model_changes():
    bench, before = first_round(NotTakenOut(rank=4), tiny.tiny_llama())
    assert (torch.tensor(bench.predict()) - before).abs().max() > 1e-2


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_it_trains_as_pefts_pissa(make):
    from peft import LoraConfig, get_peft_model

    common = {"rank": 4, "lr": 1e-3, "schedule": "constant"}
    ours, lora = (
        Bench(make(), ToyTask(), method(**common), steps=8, batch_size=8) for method in (PiSSA, LoRA)
    )
    names = list(ours.modules)
    ours.run(progress=False), lora.run(progress=False)
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=names,
        fan_in_fan_out=make is tiny.tiny_gpt2,
        init_lora_weights="pissa",
    )
    theirs = get_peft_model(make(), config)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], 1e-3, weight_decay=0.0)
    losses = []
    for step in range(8):
        loss = ours.task.loss(theirs, ours.task.batch("train", ours.trainer.batch_indices(step)))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    mine = [loss for r in ours.history for loss in r.losses]
    assert mine == pytest.approx(losses, abs=1e-4)
    for name in names:
        layer = theirs.base_model.model.get_submodule(name)
        stored = layer.base_layer.weight.detach() + layer.get_delta_weight("default").detach()
        stored = stored.T if make is tiny.tiny_gpt2 else stored
        update = stored - ours.weights.base(name)
        assert (ours.update(name) - update).norm() < 1e-2 * update.norm()
        assert (lora.update(name) - update).norm() > 0.5 * update.norm()


def test_directions_of_a_large_matrix_are_found_by_projection():
    generator = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(600, 40, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(700, 40, generator=generator))
    s = 2.0 ** -torch.arange(40)
    W = U * s @ V.T
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    left, values, right = leading(W, 6, seed=1)
    assert torch.equal(torch.rand(1), expected)  # the global generator was left alone
    torch.testing.assert_close(values, s[:6])
    assert (left * values @ right.T - U[:, :6] * s[:6] @ V[:, :6].T).norm() < 1e-5
    assert torch.equal(leading(W, 6, seed=1)[0], left)
    assert not torch.equal(leading(W, 6, seed=2)[0], left)  # it was a projection, not the whole SVD


def test_what_cannot_be_taken_apart_is_refused():
    with pytest.raises(ValueError, match="rank of at most 16"):
        Bench(tiny.tiny_llama(), ToyTask(), PiSSA(rank=17))
    with pytest.raises(ValueError, match="packed"):
        Bench(nn.Sequential(PackedLinear(6, 4)), ToyTask(), PiSSA(rank=2))
