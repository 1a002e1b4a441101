"""What holds for every method of the family, on every kind of model."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from toy import ToyTask, equal, snapshot
from transformers import AutoModelForSequenceClassification

from xgblora_lab.bench import Bench, Checkpoint, resume
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.lowrank.linear import dense_weight
from xgblora_lab.methods import METHODS, make_method

STEPS, KAPPA = 8, 2
# Whatever happens only now and then must happen within these few steps.
SMALL: dict[str, dict] = {
    "lora-ga": {"passes": 2},
    "gora": {"passes": 2, "r_min": 1, "r_max": 4},
    "adalora": {"target_rank": 1, "lr": 0.1},
    "alora": {"every": 2, "score_rows": 4},
    "beamlora": {"beam_every": 0.25, "lr": 0.01},
}


def options_of(name: str) -> dict:
    fields = {f.name for f in dataclasses.fields(METHODS[name])}
    return {"steps_per_round": KAPPA, **({"rank": 2} if "rank" in fields else {}), **SMALL.get(name, {})}


def bench_of(name, model, kind="classification", hooks=(), **options):
    method = make_method(name, **{**options_of(name), **options})
    return Bench(model, ToyTask(kind), method, steps=STEPS, batch_size=4, hooks=hooks)


MODELS = {
    "classifier": lambda: (tiny.tiny_gpt2(num_labels=2), "classification"),  # Conv1D, and a head
    "language": lambda: (tiny.tiny_llama(), "causal-lm"),  # nn.Linear
}
every_method = pytest.mark.parametrize("name", list(METHODS))


@pytest.fixture(params=list(MODELS))
def model_and_kind(request):
    return MODELS[request.param]()


def logits(bench) -> torch.Tensor:
    return torch.tensor(bench.predict())


def scores(bench) -> float:
    return bench.evaluate("dev")["loss"]


@every_method
def test_it_learns_keeps_the_same_record_and_leaves_the_base_as_it_was(name, model_and_kind):
    model, kind = model_and_kind
    base = snapshot(model)
    bench = bench_of(name, model, kind)
    before = scores(bench)
    bench.run(progress=False)
    assert scores(bench) != before
    assert [r.step for r in bench.history] == [2, 4, 6, 8]
    for record in bench.history:
        assert record.method == name
        assert len(record.losses) == KAPPA
        assert record.peak_parameters > 0
        assert record.gradient_bytes == 4 * record.peak_parameters
        assert record.optimizer_bytes > 0
    update = {n: bench.update(n) for n in bench.modules}
    assert any(float(u.norm()) > 0 for u in update.values())
    bench.close()
    assert equal(snapshot(model), base)


@every_method
def test_its_update_is_what_the_model_computes(name):
    """The live model, beside a fresh base with the update added to its weights."""
    bench = bench_of(name, tiny.tiny_gpt2())
    bench.task = bench.trainer.task = ToyTask("causal-lm")
    bench.run(progress=False)
    live = logits(bench)
    updates = {n: bench.update(n) for n in bench.modules}
    everything = None
    if name == "full":  # it also trains what is no linear map
        everything = {n: p.clone() for n, p in bench.model.named_parameters()}
    bench.close()
    fresh = tiny.tiny_gpt2()
    if everything is not None:
        fresh.load_state_dict(everything, strict=False)
        for n in updates:
            dense_weight(fresh.get_submodule(n)).data.copy_(dense_weight(tiny.tiny_gpt2().get_submodule(n)))
    assert (torch.tensor(ToyTask().predict(fresh)) - live).abs().max() > 1e-4  # the update counts
    for n, update in updates.items():
        dense_weight(fresh.get_submodule(n)).data.add_(update)
    torch.testing.assert_close(torch.tensor(ToyTask().predict(fresh)), live, atol=2e-5, rtol=1e-4)


@every_method
def test_rewinding_and_resuming_give_the_same_curve(name, model_and_kind, tmp_path):
    model, kind = model_and_kind
    bench = bench_of(name, model, kind)
    seen = []
    for _ in bench.rounds():
        seen.append(logits(bench))
    curve = [r.losses for r in bench.history]
    if bench.method.rewindable:
        for t in (3, 1):
            with bench.at(t):
                assert torch.equal(logits(bench), seen[t - 1])
        assert torch.equal(logits(bench), seen[-1])
        bench.rewind(1)
        assert torch.equal(logits(bench), seen[0])
        bench.run(progress=False)
        assert [r.losses for r in bench.history] == curve
        assert torch.equal(logits(bench), seen[-1])
        bench.rewind(0)
        bench.run(progress=False)
        assert [r.losses for r in bench.history] == curve
    bench.close()

    half = bench_of(name, model, kind, hooks=[Checkpoint(tmp_path / "run")])
    half.run(2, progress=False)
    half.close()
    resumed = resume(tmp_path / "run", model, ToyTask(kind))
    resumed.run(progress=False)
    assert [r.losses for r in resumed.history] == curve
    assert torch.equal(logits(resumed), seen[-1])


@every_method
def test_what_it_exports_is_the_live_model(name, tmp_path):
    from peft import PeftModel

    bench = bench_of(name, tiny.tiny_llama(num_labels=2))
    bench.run(progress=False)
    live = logits(bench)
    bench.export_merged(tmp_path / "merged")
    assert torch.equal(logits(bench), live)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    task = ToyTask("classification")
    torch.testing.assert_close(torch.tensor(task.predict(merged)), live, atol=1e-5, rtol=1e-4)
    if not bench.method.low_rank:
        with pytest.raises(ValueError, match="export_merged"):
            bench.export_peft(tmp_path / "adapter")
        return
    bench.export_peft(tmp_path / "adapter")
    bench.close()
    base = tiny.tiny_llama(num_labels=2)
    assert (torch.tensor(task.predict(base)) - live).abs().max() > 1e-4
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(torch.tensor(task.predict(adapted)), live, atol=1e-5, rtol=1e-4)


@every_method
def test_factors_gradients_and_moments_are_float32_on_a_half_precision_base(name):
    if name == "full":
        pytest.skip("full fine-tuning trains the base's own weights, in the base's own precision")
    found = set()

    class Look(Hook):
        def on_step(self, bench, step, loss):
            found.update(p.dtype for p in bench.method.trainable().values())

    seen = set()

    class Gradients(METHODS[name]):  # type: ignore[misc, valid-type]
        def after_step(self, bench):
            seen.update(p.grad.dtype for p in self.trainable().values() if p.grad is not None)
            super().after_step(bench)

    method = Gradients(**{**options_of(name), "steps_per_round": STEPS})
    bench = Bench(tiny.tiny_llama().bfloat16(), ToyTask(), method, steps=STEPS, batch_size=4, hooks=[Look()])
    record = bench.step()
    assert record.losses[-1] == record.losses[-1]
    assert found == seen == {torch.float32}
    optimizer = getattr(bench.method, "optimizer", None)
    if optimizer is not None:
        moments = [t for entry in optimizer.state.values() for t in entry.values() if t.numel() > 1]
        assert {t.dtype for t in moments} == {torch.float32}


@every_method
def test_several_micro_batches_are_one_batch(name):
    def losses(accumulation: int) -> list[float]:
        method = make_method(name, **options_of(name))
        model = tiny.tiny_gpt2().double()
        bench = Bench(model, ToyTask(), method, steps=6, batch_size=4, accumulation=accumulation)
        bench.run(progress=False)
        return [loss for record in bench.history for loss in record.losses]

    once, twice = losses(1), losses(2)
    assert twice == pytest.approx(once, abs=1e-8)
    assert once[0] != once[-1]
