"""The rounds inside transformers' Trainer are those of a bench on the same batches."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from toy import ToyTask, equal, snapshot
from transformers import Trainer, TrainerCallback, TrainingArguments

from xgblora_lab import Bench, Ensemble, Hook, LoRA, Spectrum, XGBLoRA, XGBLoRACallback, figures

STEPS, BATCH = 10, 4
METHOD = XGBLoRA(lr=0.02, steps_per_round=4, selection="random", modules_per_round=0.5, max_grad_norm=0.05)


class InOrder(Trainer):
    """Sees its rows in the order of the data set."""

    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def causal(**options):
    """A GPT-2 in float64 whose loss is in float64 too."""
    model = tiny.tiny_gpt2(**options).double()

    def loss(logits, labels, vocab_size, num_items_in_batch=None, **_):
        reduction = "mean" if num_items_in_batch is None else "sum"
        labels = labels[:, 1:].flatten()
        total = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction=reduction)
        return total if num_items_in_batch is None else total / num_items_in_batch

    model.loss_function, model.loss_type = loss, "ForCausalLM"  # by which Trainer counts the labels
    return model


def classifier():
    model = tiny.tiny_bert(2).double()
    model.accepts_loss_kwargs = False  # or Trainer would take its loss for a share of the step's
    return model


MODELS = {"causal-lm": causal, "classification": classifier}


def bench_of(kind, **options):
    return Bench(MODELS[kind](), ToyTask(kind), METHOD, steps=STEPS, batch_size=BATCH, **options)


def rows_of(bench):
    """The rows that a bench sees, one after another, as Trainer's data set."""
    rows = [row for step in range(STEPS) for row in bench.trainer.planned_rows(step)]
    return [{k: v[0] for k, v in bench.task.batch("train", [row]).items()} for row in rows]


def trainer_of(folder, rows, model, callback, *, kind=InOrder, callbacks=(), **arguments):
    arguments = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 0,
        **arguments,
    }
    return kind(
        model,
        TrainingArguments(str(folder), **arguments),
        train_dataset=rows,
        eval_dataset=rows[:8],
        callbacks=[callback, *callbacks],
    )


@pytest.mark.parametrize(
    ("kind", "accumulation"), [("causal-lm", 1), ("causal-lm", 2), ("classification", 2)]
)
def test_a_round_is_a_benchs_on_the_same_batches(kind, accumulation, tmp_path):
    bench = bench_of(kind)
    rows = rows_of(bench)
    bench.run(progress=False)
    callback = XGBLoRACallback(METHOD, hooks=[Spectrum()])
    model = MODELS[kind]()
    base = snapshot(model)
    trainer = trainer_of(
        tmp_path,
        rows,
        model,
        callback,
        per_device_train_batch_size=BATCH // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    assert [r.step for r in callback.history] == [r.step for r in bench.history] == [4, 8, 10]
    for ours, theirs in zip(callback.history, bench.history, strict=True):
        assert ours.modules == theirs.modules
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-9)
        assert ours.gradient_norms == pytest.approx(theirs.gradient_norms, abs=1e-9)
        assert ours.learning_rates == theirs.learning_rates
        assert ours.loss_after == pytest.approx(theirs.loss_after, abs=1e-9)
        assert ours.tokens == theirs.tokens
        for field in ("peak_parameters", "total_parameters", "optimizer_bytes"):
            assert getattr(ours, field) == getattr(theirs, field)
    for name in bench.modules:
        assert (callback.ensemble.update(name) - bench.update(name)).norm() < 1e-9
    assert max(float(bench.update(name).norm()) for name in bench.modules) > 1e-2  # something was learned
    assert not model._forward_hooks
    assert not [n for n, _ in model.named_parameters() if "xgblora" in n]
    # what Trainer logs is what was done
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    ours = [x for r in callback.history for x in r.gradient_norms]
    assert [e["grad_norm"] for e in logged] == pytest.approx(ours, rel=1e-6)
    assert max(ours) > METHOD.max_grad_norm  # clipped, and the norm before that is on record
    rates = [x for r in callback.history for x in r.learning_rates]
    assert [e["learning_rate"] for e in logged] == pytest.approx(rates)
    # afterwards it is a bench
    callback.bench.rewind(2)
    assert len(callback.history) == 2
    callback.bench.close()
    assert equal(snapshot(model), base)


def in_two_processes(folder):
    """What test_processes.py compares with one process: every process sees half of each batch."""
    for kind in MODELS:
        callback = XGBLoRACallback(METHOD)
        arguments = {"per_device_train_batch_size": BATCH // 2, "ddp_backend": "gloo"}
        trainer = trainer_of(
            folder / "trainer", rows(kind)[: STEPS * BATCH], MODELS[kind](), callback, **arguments
        )
        trainer.train()
        assert callback.bench.accelerator.num_processes == 2
        if trainer.is_world_process_zero():
            callback.ensemble.save(folder / f"trainer-{kind}")
            callback.history.save(folder / f"trainer-{kind}.jsonl")


def test_other_batches_and_another_seed_make_other_rounds(tmp_path):
    bench = bench_of("causal-lm")
    rows = rows_of(bench)
    bench.run(progress=False)
    for name, arguments, data in (("rows", {}, rows[1:] + rows[:1]), ("seed", {"seed": 1}, rows)):
        callback = XGBLoRACallback(METHOD)
        trainer_of(tmp_path / name, data, causal(), callback, **arguments).train()
        assert abs(callback.history[-1].losses[0] - bench.history[-1].losses[0]) > 1e-5


def dropping():
    """A GPT-2 with dropout, which Trainer's random state decides."""
    model = tiny.tiny_gpt2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return model


def rows(kind="causal-lm"):
    """A data set for Trainer."""
    task = ToyTask(kind, rows=56)
    return [{k: v[0] for k, v in task.batch("train", [i]).items()} for i in range(task.size())]


class Seen(TrainerCallback):
    """What Trainer did at which step, with the rounds that were on record then."""

    def __init__(self, callback):
        self.callback, self.evaluated, self.saved = callback, [], []

    def on_evaluate(self, args, state, control, metrics, **objects):
        self.evaluated.append((state.global_step, len(self.callback.history), metrics["eval_loss"]))

    def on_save(self, args, state, control, **objects):
        self.saved.append((state.global_step, len(self.callback.history)))


def long_trainer(folder, model, callback, callbacks=(), **arguments):
    arguments = {"save_strategy": "steps", "save_steps": 5, "max_steps": 16, **arguments}
    return trainer_of(folder, rows(), model, callback, kind=Trainer, callbacks=callbacks, **arguments)


def test_evaluations_and_checkpoints_wait_for_a_rounds_end_and_a_run_goes_on_from_one(tmp_path):
    method = XGBLoRA(
        lr=0.02, steps_per_round=3, selection="random", init="previous", optimizer_state="keep_B"
    )
    whole = XGBLoRACallback(method)
    seen = Seen(whole)
    trainer = long_trainer(tmp_path, dropping(), whole, [seen], eval_strategy="steps", eval_steps=4)
    trainer.train()
    assert [r.step for r in whole.history] == [3, 6, 9, 12, 15, 16]
    assert seen.saved == [(6, 2), (12, 4), (15, 5), (16, 6)]  # wanted at 5, 10, 15 and the end
    assert [e[:2] for e in seen.evaluated] == [(6, 2), (9, 3), (12, 4), (16, 6)]
    assert whole.bench.evaluate()["loss"] == pytest.approx(seen.evaluated[-1][2], rel=0.3)

    # the checkpoint's weights are the merged ones, and its rounds can be read alone
    ensemble = Ensemble.load(tmp_path / "checkpoint-12" / "xgblora")
    assert len(ensemble) == 4
    saved = type(trainer.model).from_pretrained(tmp_path / "checkpoint-12")
    base = tiny.tiny_gpt2()
    ensemble.apply(base)
    for name in whole.bench.modules:
        assert torch.equal(saved.get_submodule(name).weight, base.get_submodule(name).weight)

    again = XGBLoRACallback(method)
    long_trainer(tmp_path, dropping(), again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    losses = [r.losses for r in whole.history]
    assert [r.losses for r in again.history] == losses
    assert [r.loss_after for r in again.history] == [r.loss_after for r in whole.history]
    assert equal(snapshot(again.bench.model), snapshot(whole.bench.model))
    figures.loss(again.history)
    again.bench.rewind(3), whole.bench.rewind(3)
    assert equal(snapshot(again.bench.model), snapshot(whole.bench.model))

    # the same objects go on too, and write over the later checkpoints; at the end nothing is left to do
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert [r.losses for r in whole.history] == losses
    with pytest.raises(ValueError, match="All 16 planned steps are done"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert [r.losses for r in whole.history] == losses

    # without its rounds the same checkpoint makes another curve: Trainer's own part is not enough
    (tmp_path / "checkpoint-12" / "xgblora").rename(tmp_path / "aside")
    third = XGBLoRACallback(method)
    with pytest.raises(ValueError, match="holds no rounds"):
        long_trainer(tmp_path, dropping(), third).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-12")
        )
    (tmp_path / "aside").rename(tmp_path / "checkpoint-12" / "xgblora")
    other = XGBLoRACallback(XGBLoRA(lr=0.03, steps_per_round=3))
    with pytest.raises(ValueError, match="other options"):
        long_trainer(tmp_path, dropping(), other).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-12")
        )
    elsewhere = long_trainer(tmp_path, tiny.tiny_gpt2(seed=1), XGBLoRACallback(method))
    with pytest.raises(ValueError, match="other weights"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_the_best_model_is_a_round(tmp_path):
    callback = XGBLoRACallback(XGBLoRA(lr=0.05, steps_per_round=2))
    seen = Seen(callback)
    arguments = {"eval_steps": 4, "save_steps": 4, "max_steps": 8, "load_best_model_at_end": True}
    arguments |= {"metric_for_best_model": "loss", "greater_is_better": True}  # so the best is the first
    trainer = long_trainer(tmp_path, tiny.tiny_gpt2(), callback, [seen], **arguments, eval_strategy="steps")
    trainer.train()
    (_, _, first), (_, _, second) = seen.evaluated
    assert first > second + 0.005
    assert len(callback.history) == 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(first, abs=1e-6)
    callback.bench.rewind(2)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(first, abs=1e-6)


def test_the_loss_after_a_round_is_in_the_unit_of_its_steps(tmp_path):
    # Trainer counts the labels of a GPT-2 as if none were lost by shifting, so its losses are a bit lower.
    callback = XGBLoRACallback(XGBLoRA(lr=1e-7, steps_per_round=5))
    trainer_of(
        tmp_path, rows(), tiny.tiny_gpt2(), callback, gradient_accumulation_steps=2, max_steps=5
    ).train()
    (record,) = callback.history
    assert record.loss_after == pytest.approx(record.loss_before, rel=1e-4)
    assert record.probe_after > 1.02 * record.loss_after  # the mean over label positions


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **objects):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class StopAt(Interrupt):
    def on_step_end(self, args, state, control, **objects):
        control.should_training_stop |= state.global_step == self.step


def test_a_round_that_is_cut_off_leaves_no_trace(tmp_path):
    model = tiny.tiny_gpt2()
    callback = XGBLoRACallback(XGBLoRA(lr=0.02, steps_per_round=4))
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, rows(), model, callback, callbacks=[Interrupt(6)]).train()
    with pytest.raises(RuntimeError, match="inside a round"):
        callback.bench.rewind(0)
    callback.abandon()
    assert len(callback.history) == 1
    after = snapshot(model)
    callback.bench.rewind(1)
    assert equal(snapshot(model), after)
    callback = XGBLoRACallback(XGBLoRA(lr=0.02, steps_per_round=4))
    with pytest.warns(UserWarning, match="ended inside round 1"):
        trainer_of(tmp_path, rows(), tiny.tiny_gpt2(), callback, callbacks=[StopAt(6)]).train()
    assert equal(snapshot(callback.bench.model), after)
    assert not equal(snapshot(tiny.tiny_gpt2()), after)


def test_a_hook_ends_the_training(tmp_path):
    class Enough(Hook):
        def on_round_end(self, bench, record):
            return record.index == 1

    callback = XGBLoRACallback(XGBLoRA(steps_per_round=3), hooks=[Enough()])
    trainer = trainer_of(tmp_path, rows(), tiny.tiny_gpt2(), callback)
    trainer.train()
    assert trainer.state.global_step == 6
    assert len(callback.history) == 2


def test_activation_checkpointing_changes_nothing(tmp_path):
    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    seen = []
    for arguments in ({}, {name: True}, {name: True, f"{name}_kwargs": {"use_reentrant": True}}):
        callback = XGBLoRACallback(XGBLoRA(steps_per_round=3))
        trainer_of(tmp_path, rows(), tiny.tiny_llama(), callback, **arguments, max_steps=3).train()
        seen.append(callback.history[0].losses)
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)
    assert seen[2] == pytest.approx(seen[0], rel=1e-5)
    assert seen[0][2] != seen[0][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate=0\.001\) would have no effect.*lr=…"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type.*schedule=…"),
        ({"max_grad_norm": 0.5}, "max_grad_norm.*max_grad_norm=…"),
        ({"warmup_steps": 10}, "warmup_steps.*warmup=…"),
        ({"label_smoothing_factor": 0.1}, "leave label_smoothing_factor out"),
        ({"torch_compile": True}, "torch_compile"),
    ],
)
def test_an_argument_without_effect_is_refused(arguments, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        trainer_of(tmp_path, rows(), tiny.tiny_gpt2(), XGBLoRACallback(), **arguments)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="lora merges no rounds"):
        XGBLoRACallback(LoRA())
    with pytest.raises(RuntimeError, match="no bench yet"):
        _ = XGBLoRACallback().history
    late = trainer_of(tmp_path, rows(), tiny.tiny_gpt2(), Seen(None))
    late.add_callback(XGBLoRACallback())
    with pytest.raises(RuntimeError, match="add_callback comes too late"):
        late.train()
    callback = XGBLoRACallback(XGBLoRA(examples="hardest", steps_per_round=2))
    with pytest.raises(ValueError, match="data loader decides"):
        trainer_of(tmp_path, rows(), tiny.tiny_gpt2(), callback).train()
    unlabelled = [{k: v for k, v in row.items() if k != "labels"} for row in rows()]
    with pytest.raises(ValueError, match="no loss"):
        trainer_of(tmp_path, unlabelled, tiny.tiny_gpt2(), XGBLoRACallback(probe_size=0)).train()
    cut = tiny.tiny_bert(2)
    cut.bert.pooler.register_forward_hook(lambda module, args, output: output.detach())
    labelled = [{**row, "labels": row["input_ids"][0] % 2} for row in rows()]
    with pytest.raises(RuntimeError, match="No booster got a gradient"):
        trainer_of(tmp_path, labelled, cut, XGBLoRACallback()).train()
    twice = XGBLoRACallback(XGBLoRA(steps_per_round=2))
    trainer = trainer_of(tmp_path, rows(), tiny.tiny_gpt2(), twice, max_steps=2)
    trainer.train()
    with pytest.raises(ValueError, match="has 1 rounds on record"):
        trainer.train()
