"""Several processes: the same ensemble as one process with all their examples in its batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_trainer
import tiny
import torch
from test_family import options_of
from toy import ToyTask

from xgblora_lab import XGBLoRACallback
from xgblora_lab.bench import Bench, Checkpoint, History
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import METHODS, GoRA, LoRAGA, Method, XGBLoRA, make_method

CASES = {"causal-lm": "kaiming", "classification": "residual"}


def method_of(kind: str) -> XGBLoRA:
    options = {"selection": "random", "modules_per_round": 0.5}
    return XGBLoRA(lr=0.05, steps_per_round=3, init=CASES[kind], **options)


def model_of(kind: str) -> torch.nn.Module:
    # GPT-2 computes in float64 throughout (Llama's norms and rotations are float32 whatever the model is).
    return tiny.tiny_gpt2(num_labels=2 if kind == "classification" else None).double()


def lookers() -> tuple[Method, ...]:
    """Methods whose start looks at the gradient of all processes' rows."""
    return GoRA(rank=4, r_min=1, passes=2, lr=3e-3), LoRAGA(rank=4, passes=2, lr=3e-3)


def in_two_processes(folder: Path) -> None:
    the_family_in_two_processes(folder / "family")
    test_trainer.in_two_processes(folder)
    for method in lookers():
        hooks = [Checkpoint(folder / method.name)]
        bench = Bench(tiny.tiny_gpt2().double(), ToyTask(), method, steps=4, batch_size=4, hooks=hooks)
        assert bench.accelerator.num_processes == 2
        bench.run(progress=False)
    for kind in CASES:
        hooks = [Checkpoint(folder / kind)]
        bench = Bench(model_of(kind), ToyTask(kind), method_of(kind), steps=9, batch_size=4, hooks=hooks)
        assert bench.accelerator.num_processes == 2
        bench.run(progress=False)


def the_family_in_two_processes(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in METHODS:
        method = make_method(name, **options_of(name))
        model = tiny.tiny_gpt2().double()
        bench = Bench(model, ToyTask(), method, steps=6, batch_size=4, hooks=[Checkpoint(folder / name)])
        assert bench.accelerator.num_processes == 2
        bench.run(progress=False)
        decided = [[len(r.modules), r.peak_parameters, r.total_parameters] for r in bench.history]
        mine = torch.tensor(decided, dtype=torch.float64)
        updates = torch.cat([bench.update(n).flatten() for n in bench.modules])
        for tensor in (mine, updates):
            other = tensor.clone()
            torch.distributed.broadcast(other, 0)
            assert torch.equal(tensor, other), name
        torch.save(updates, folder / f"{name}.pt")
        bench.close()


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_equal_one_with_twice_the_batch(by_two_processes, kind):
    def one(batch_size: int) -> Bench:
        bench = Bench(model_of(kind), ToyTask(kind), method_of(kind), steps=9, batch_size=batch_size)
        bench.run(progress=False)
        return bench

    together, half = Ensemble.load(by_two_processes / kind), one(4)
    alone = one(8)
    for t in range(3):
        assert together[t].keys() == alone.ensemble[t].keys() == set(alone.history[t].modules)
    for name in alone.modules:
        torch.testing.assert_close(together.update(name), alone.ensemble.update(name), atol=1e-9, rtol=0)
    assert {B.dtype for t in range(3) for B, _ in together[t].values()} == {torch.float64}
    changed = max(float((half.update(n) - alone.update(n)).abs().max()) for n in alone.modules)
    assert changed > 1e-6  # half the batch is another run


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_under_trainer_equal_one_with_twice_the_batch(by_two_processes, kind, tmp_path):
    callback = XGBLoRACallback(test_trainer.METHOD)
    data = test_trainer.rows(kind)[: test_trainer.STEPS * test_trainer.BATCH]
    test_trainer.trainer_of(tmp_path, data, test_trainer.MODELS[kind](), callback).train()
    together = Ensemble.load(by_two_processes / f"trainer-{kind}")
    for name in callback.bench.modules:
        update = callback.ensemble.update(name)
        torch.testing.assert_close(together.update(name), update, atol=1e-9, rtol=0)
    records = History.load(by_two_processes / f"trainer-{kind}.jsonl")
    for seen, alone in zip(records, callback.history, strict=True):
        assert seen.losses == pytest.approx(alone.losses, abs=1e-9)
        assert seen.loss_after == pytest.approx(alone.loss_after, abs=1e-9)
        assert seen.gradient_norms == pytest.approx(alone.gradient_norms, abs=1e-9)
    half = XGBLoRACallback(test_trainer.METHOD)
    arguments = {"per_device_train_batch_size": test_trainer.BATCH // 2}
    test_trainer.trainer_of(tmp_path, data, test_trainer.MODELS[kind](), half, **arguments).train()
    changed = [half.ensemble.update(n) - callback.ensemble.update(n) for n in half.bench.modules]
    assert max(float(c.abs().max()) for c in changed) > 1e-5  # half the batch is another run


def test_two_processes_look_at_one_gradient(by_two_processes):
    for method in lookers():
        together = Ensemble.load(by_two_processes / method.name)
        options = {"steps": 4, "probe_size": 0}
        alone, half = (
            Bench(tiny.tiny_gpt2().double(), ToyTask(), method, batch_size=n, **options) for n in (8, 4)
        )
        alone.run(progress=False), half.run(progress=False)
        for name in alone.modules:
            assert together.factors(name)[0].shape == alone.factors(name)[0].shape
            torch.testing.assert_close(together.update(name), alone.update(name), atol=1e-7, rtol=0)
        changed = max(float((half.update(n) - alone.update(n)).abs().max()) for n in alone.modules)
        assert changed > 1e-5  # half the batch is another run


def test_every_method_decides_alike_in_two_processes(by_two_processes):
    left = by_two_processes / "family"
    for name in METHODS:
        bench = Bench(
            tiny.tiny_gpt2().double(), ToyTask(), make_method(name, **options_of(name)), steps=6, batch_size=8
        )
        bench.run(progress=False)
        alone = torch.cat([bench.update(n).flatten() for n in bench.modules])
        together = torch.load(left / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, atol=1e-7, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert float(alone.norm()) > 1e-3
    assert Ensemble.load(left / "lora").shapes
