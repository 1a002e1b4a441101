"""DoRA against PEFT's and against a dense computation."""

from __future__ import annotations

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import DoRA
from xgblora_lab.methods.family.dora import Decomposed


def run(make, **options):
    bench = Bench(
        make().double(), ToyTask(), DoRA(rank=3, alpha=6, lr=0.01, **options), steps=20, batch_size=8
    )
    start = {n: b.A.detach().clone() for n, b in bench.method.boosters.items()}
    bench.run(progress=False)
    return bench, start, [loss for record in bench.history for loss in record.losses]


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_it_equals_pefts_dora(make):
    from peft import LoraConfig, get_peft_model

    bench, start, mine = run(make, schedule="constant")
    conv = make is tiny.tiny_gpt2
    names = list(bench.modules)
    config = LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=names, fan_in_fan_out=conv)
    theirs = get_peft_model(make().double(), config).double()
    for name in names:
        theirs.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(start[name])
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], 0.01, weight_decay=0.0)
    losses = []
    for step in range(20):
        loss = bench.task.loss(theirs, bench.task.batch("train", bench.trainer.batch_indices(step)))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert mine == pytest.approx(losses, abs=1e-8)
    assert losses[0] - losses[-1] > 0.05


def test_without_the_magnitudes_gradient_it_is_another_method(monkeypatch):
    _, _, trained = run(tiny.tiny_gpt2)
    monkeypatch.setattr(Decomposed, "ratio", lambda self, module: self.magnitude.detach() * 0 + 1)
    _, _, frozen = run(tiny.tiny_gpt2)
    assert frozen[0] == pytest.approx(trained[0], abs=1e-12)  # the start changes nothing
    assert abs(frozen[-1] - trained[-1]) > 1e-6


def test_its_update_is_what_the_model_computes_and_has_more_rank_than_the_pair():
    bench, _, _ = run(tiny.tiny_llama)
    name = next(iter(bench.modules))
    module = bench.modules[name]
    x = torch.randn(50, module.in_features).double()
    with torch.no_grad():
        live = module(x)
    W = bench.weights.base(name) + bench.update(name)
    torch.testing.assert_close(live, x @ W.T)
    assert int(torch.linalg.matrix_rank(bench.update(name))) > 3
    assert not torch.equal(bench.update(name, 0), bench.update(name))
    with pytest.raises(ValueError, match="export_merged"):
        bench.export_peft("unused")
