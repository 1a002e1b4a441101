"""Several processes: the same ensemble as one process with all their examples in its batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_trainer
import tiny
import torch
from accelerate import Accelerator
from test_family import options_of
from toy import ToyTask

from xgblora_lab import XGBLoRACallback
from xgblora_lab.bench import Bench, Checkpoint, Gain, History, resume
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import METHODS, DoRA, Full, GoRA, LoRAGA, Method, PiSSA, XGBLoRA, make_method
from xgblora_lab.stored import part

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
    sharded_in_two_processes(folder)


def sharded_by_hand() -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = model_of("causal-lm")
    for block in model.transformer.h:
        fully_shard(block)
    return fully_shard(model)


def sharded_by_accelerate(accelerator: Accelerator) -> torch.nn.Module:
    """What `accelerator.prepare(model)` does on GPUs; on CPUs accelerate leaves its plugin aside."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
    )
    return fsdp2_prepare_model(accelerator, model_of("causal-lm"))


def sharded_in_two_processes(folder: Path) -> None:
    def bench_of(model: torch.nn.Module, method: Method | None = None, **options: Any) -> Bench:
        method = method or method_of("causal-lm")
        return Bench(model, ToyTask(), method, steps=9, batch_size=4, **options)

    bench = bench_of(sharded_by_hand(), hooks=[Gain(), Checkpoint(folder / "sharded")])
    bench.run(progress=False)
    for module in bench.modules.values():
        assert part(module.weight).numel() == module.weight.numel() / 2  # the other half lies elsewhere
    bench.export_merged(folder / "merged")
    main = bench.accelerator.is_main_process
    if main:
        bench.export_peft(folder / "adapter")
        bench.ensemble.save(folder / "sharded-by-hand")
    losses = {"after": bench.evaluate()["loss"]}
    bench.accelerator.wait_for_everyone()
    again = resume(folder / "sharded", sharded_by_hand(), ToyTask())
    losses["resumed"] = again.evaluate()["loss"]
    again.rewind(1)
    losses["rewound"] = again.evaluate()["loss"]
    again.close()
    losses["base"] = ToyTask().evaluate(again.model)["loss"]

    for name, method in {"pissa": PiSSA(rank=2, lr=1e-3), "accelerate": None}.items():
        model = sharded_by_hand() if method else sharded_by_accelerate(bench.accelerator)
        other = bench_of(model, method, hooks=[Checkpoint(folder / f"sharded-{name}")])
        other.run(progress=False)
    for method in (Full(), DoRA()):
        with pytest.raises(ValueError, match=r"is sharded over processes: .* use lora"):
            bench_of(sharded_by_hand(), method)
    with pytest.raises(ValueError, match="DistributedDataParallel stands around the model"):
        bench_of(bench.accelerator.prepare(model_of("causal-lm")))
    if main:
        (folder / "losses.json").write_text(json.dumps(losses))


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


def test_a_sharded_base_gives_what_one_process_gives(by_two_processes):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def one(method: Method, batch_size: int = 8) -> Bench:
        bench = Bench(model_of("causal-lm"), ToyTask(), method, steps=9, batch_size=batch_size)
        bench.run(progress=False)
        return bench

    alone, half = one(method_of("causal-lm")), one(method_of("causal-lm"), 4)
    pissa = one(PiSSA(rank=2, lr=1e-3))
    for folder, bench in {
        "sharded-by-hand": alone,
        "sharded-accelerate": alone,
        "sharded-pissa": pissa,
    }.items():
        together = Ensemble.load(by_two_processes / folder)
        for name in bench.modules:
            torch.testing.assert_close(together.update(name), bench.ensemble.update(name), atol=1e-9, rtol=0)
    assert max(float((half.update(n) - alone.update(n)).abs().max()) for n in alone.modules) > 1e-6

    losses = json.loads((by_two_processes / "losses.json").read_text())
    after = alone.evaluate()["loss"]
    merged = AutoModelForCausalLM.from_pretrained(by_two_processes / "merged")
    adapted = PeftModel.from_pretrained(model_of("causal-lm"), by_two_processes / "adapter")
    assert ToyTask().evaluate(merged)["loss"] == pytest.approx(after, abs=1e-9)
    assert ToyTask().evaluate(adapted.eval())["loss"] == pytest.approx(
        after, abs=1e-6
    )  # its factors are float32
    assert losses["after"] == pytest.approx(after, abs=1e-9)
    assert losses["resumed"] == losses["after"]
    alone.rewind(1)
    assert losses["rewound"] == pytest.approx(alone.evaluate()["loss"], abs=1e-9)
    alone.close()
    assert losses["base"] == pytest.approx(ToyTask().evaluate(alone.model)["loss"], abs=1e-9)
    assert len({round(loss, 6) for loss in losses.values()}) == 3
