"""Boosting rounds inside transformers' Trainer, with its data collator, evaluation and checkpoints."""

import builtins
import collections
import inspect
import json
import math

import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from xgblora_lab import Spectrum, XGBLoRA, XGBLoRACallback, figures, load_model, load_tokenizer

torch.set_num_threads(1)
tokenizer = load_tokenizer()
documented = [v for m in (builtins, collections, json, math) for v in vars(m).values() if inspect.getdoc(v)]
rows = [tokenizer(inspect.getdoc(v), truncation=True, max_length=48) for v in documented]

callback = XGBLoRACallback(XGBLoRA(lr=1e-2, steps_per_round=4), hooks=[Spectrum()])
arguments = TrainingArguments(
    "runs/trainer",
    max_steps=16,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    eval_strategy="steps",
    eval_steps=8,
    save_steps=8,
    logging_steps=8,
    report_to="none",
    use_cpu=True,
)


def trainer(callback):
    return Trainer(
        load_model(),
        arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows[8:],
        eval_dataset=rows[:8],
        callbacks=[callback],
    )


first = trainer(callback)
first.train()
for record in callback.history:
    print(record)
evaluations = [entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry]
print(f"Trainer's own evaluation: {evaluations[0]:.3f} after 2 rounds, {evaluations[-1]:.3f} after 4")

# What came out is what a bench leaves: spectra, figures, any earlier round, a PEFT adapter.
name = next(iter(callback.bench.modules))
print(f"singular values that the rounds added to {name}: {callback.ensemble.spectrum(name)[:4].tolist()}")
figures.loss(callback.history)
callback.bench.export_peft("runs/adapter")

# A run that was stopped goes on to the same curve: the rounds lie in the checkpoint.
again = XGBLoRACallback(callback.method)
trainer(again).train(resume_from_checkpoint="runs/trainer/checkpoint-8")
assert [r.losses for r in again.history] == [r.losses for r in callback.history]
assert callback.history[-1].probe_after < callback.history[0].probe_before
