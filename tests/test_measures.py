"""Intruder dimensions, forgetting and sharpness, each against a dense computation in float64."""

from __future__ import annotations

import re

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench import Bench
from xgblora_lab.methods import LoRA, XGBLoRA
from xgblora_lab.racing.measures import Forgetting, Intruders, Sharpness, intruders, top_eigenvalue
from xgblora_lab.tasks.written import written


def bench_of(method, model=None, **options):
    options = {"steps": 12, "batch_size": 8, **options}
    return Bench(model if model is not None else tiny.tiny_llama(), ToyTask(), method, **options)


def dense_count(W, dW, top_k, threshold):
    """By the definition, one singular vector after the other."""
    base = torch.linalg.svd(W.double())[0]
    tuned = torch.linalg.svd(W.double() + dW.double())[0]
    return sum(max(abs(float(tuned[:, j] @ u)) for u in base.T) < threshold for j in range(top_k))


def test_intruders_are_those_of_a_dense_computation_round_by_round():
    base = {n: m.weight.detach().clone() for n, m in bench_of(XGBLoRA()).modules.items()}
    bench = bench_of(XGBLoRA(lr=0.3, steps_per_round=3), hooks=[Intruders(top_k=4, threshold=0.6)])
    found = 0
    for record in bench.rounds():
        expected = {n: dense_count(W, bench.update(n), 4, 0.6) for n, W in base.items()}
        assert record.measurements["intruders"] == expected
        found += sum(expected.values())
    assert found > 0, "a run without intruders would prove nothing"


def test_a_planted_direction_intrudes_and_a_familiar_one_does_not():
    torch.manual_seed(0)
    W = torch.randn(12, 20).double()
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    mixed = (U @ torch.ones(12).double()) / 12**0.5  # equally far from all of them
    planted = W + 20 * s[0] * torch.outer(mixed, Vh.mean(0) / Vh.mean(0).norm())
    assert intruders(U, planted, top_k=1, threshold=0.5) == 1
    assert intruders(U, W + 20 * s[0] * torch.outer(U[:, 3], Vh[3]), top_k=1, threshold=0.5) == 0
    assert intruders(U, W, top_k=10) == 0


def test_intruders_are_those_of_peft():
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    bench = bench_of(LoRA(rank=2, lr=0.3, steps_per_round=12), hooks=[Intruders(top_k=6, threshold=0.6)])
    ours = bench.step().measurements["intruders"]
    theirs = get_peft_model(
        tiny.tiny_llama(), LoraConfig(r=2, lora_alpha=2, target_modules=list(bench.modules))
    )
    for name, booster in bench.method.boosters.items():
        layer = theirs.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(booster.A)
        layer.lora_B["default"].weight.data.copy_(booster.B)
    said: list[str] = []
    reduce_intruder_dimension(theirs, top_k=6, threshold_epsilon=0.6, logging_sink=said.append)
    counts = {}
    for line in said:
        found = re.fullmatch(r"base_model\.model\.(.+): (?:Intruders: (\d+)|No intruders)", line)
        if found:
            counts[found[1]] = int(found[2] or 0)
    assert counts == ours
    assert sum(ours.values()) > 0


def test_forgetting_is_the_change_of_the_loss_on_the_old_text():
    old = ToyTask(rows=40, vocabulary=30)
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=3), hooks=[Forgetting(old, every=2)])
    before = old.evaluate(bench.model)["loss"]
    records = list(bench.rounds())
    assert "forgetting" not in records[0].measurements
    assert records[3].measurements["forgetting"] == pytest.approx(old.evaluate(bench.model)["loss"] - before)
    assert abs(records[3].measurements["forgetting"]) > 1e-3
    late = bench_of(XGBLoRA(lr=0.05, steps_per_round=3))
    late.step()
    with pytest.raises(ValueError, match="before the run's first round"), late.hooked(Forgetting(old)):
        late.step()


def test_without_a_text_forgetting_is_measured_on_what_the_base_writes():
    model = tiny.tiny_llama()
    text = written(model, rows=40, length=12, seed=3)
    rows = torch.tensor([e.ids for e in text.splits["dev"]])
    assert rows.shape == (40, 12)
    assert len(rows.unique(dim=0)) == 40  # samples, not one sentence
    assert torch.equal(rows, torch.tensor([e.ids for e in written(model, 40, 12, seed=3).splits["dev"]]))
    assert not torch.equal(rows, torch.tensor([e.ids for e in written(model, 40, 12, seed=4).splits["dev"]]))
    with torch.no_grad():  # what was sampled one token at a time is what the model gives the whole row
        logits = model(rows).logits.double().log_softmax(-1)
    dense = -logits[:, :-1].gather(-1, rows[:, 1:, None]).mean()
    assert text.evaluate(model)["loss"] == pytest.approx(float(dense), rel=1e-5)
    assert float(dense) < float(-logits[:, :-1].mean())  # likelier than tokens at random
    bench = Bench(model, ToyTask(), XGBLoRA(lr=0.2, steps_per_round=4), hooks=[Forgetting()], steps=12)
    measured = [r.measurements["forgetting"] for r in bench.rounds()]
    assert measured[-1] > 1e-3
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification writes no text"):
        written(tiny.tiny_gpt2(num_labels=2))


def test_the_top_eigenvalue_is_that_of_the_dense_hessian():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    X, Y = torch.randn(16, 3).double(), torch.randn(16, 2).double()
    parameters = list(model.parameters())

    def loss_of(flat):
        parts = torch.split(flat, [p.numel() for p in parameters])
        named = {n: q.view_as(p) for (n, p), q in zip(model.named_parameters(), parts, strict=True)}
        return (torch.func.functional_call(model, named, (X,)) - Y).square().mean()

    flat = torch.cat([p.detach().flatten() for p in parameters])
    dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss_of, flat))
    loss = (model(X) - Y).square().mean()
    assert top_eigenvalue(loss, parameters, len(flat)) == pytest.approx(float(dense[-1]), rel=1e-9)
    loss = (model(X) - Y).square().mean()
    assert top_eigenvalue(loss, parameters, 2) < float(dense[-1]) - 1e-9, "two steps do not reach it"


def test_sharpness_is_measured_and_changes_nothing():
    watched = bench_of(LoRA(rank=2, lr=0.05, steps_per_round=3), hooks=[Sharpness(iterations=8)])
    plain = bench_of(LoRA(rank=2, lr=0.05, steps_per_round=3))
    watched.run(progress=False), plain.run(progress=False)
    assert [r.losses for r in watched.history] == [r.losses for r in plain.history]
    values = [r.measurements["sharpness"] for r in watched.history]
    assert all(value > 0 for value in values[1:])
    assert len(set(values)) == 4
