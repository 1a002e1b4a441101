"""A race as one writes it with PEFT and transformers' Trainer alone: every rate, then more seeds of the best.

Boosting is done by merging: each round has a pair and a Trainer of its own, and `merge_and_unload` ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from xgblora_lab.tasks import pydocs
from xgblora_lab.tasks.models import _quiet

MODEL = Path(pydocs.__file__).parents[1] / "lab_model"
RANKS = {"xgblora": 1, "lora:r=1": 1, "lora:r=8": 8, "full": 0}


def plain_race(
    methods: Sequence[str],
    rates: Sequence[float],
    seeds: int,
    steps: int,
    kappa: int,
    limit: int,
    max_length: int,
    rows: int | None = None,
) -> dict[str, float]:
    """The test accuracy of every method at its best rate, averaged over the further seeds.

    limit: rows of dev and of test that are scored; rows: of train.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    labels = sorted(set(pydocs.read().splits["train"]["label"]))
    counts = {"train": rows, "dev": limit, "test": limit}
    data = {split: _tokenized(tokenizer, split, labels, count, max_length) for split, count in counts.items()}
    run = partial(_run, steps=steps, kappa=kappa, data=data, tokenizer=tokenizer, labels=labels)
    found = {}
    with _quiet():
        for method in methods:
            best = max(rates, key=lambda lr: run(method, lr, 0)["dev"])
            runs = [run(method, best, seed)["test"] for seed in range(1, seeds)]
            found[method] = float(np.mean(runs)) if runs else float("nan")
    return found


def _tokenized(
    tokenizer: Any, split: str, labels: list[str], count: int | None, max_length: int
) -> list[dict[str, Any]]:
    table = pydocs.read().splits[split]
    ids = tokenizer(table["text"][:count], truncation=True, max_length=max_length)["input_ids"]
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": labels.index(label)}
        for row, label in zip(ids, table["label"][:count], strict=True)
    ]


def _run(
    method: str,
    lr: float,
    seed: int,
    *,
    steps: int,
    kappa: int,
    data: dict[str, list[dict[str, Any]]],
    tokenizer: Any,
    labels: list[str],
) -> dict[str, float]:
    """One run; accuracy on dev and test."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=len(labels), dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    rounds = steps // kappa if method == "xgblora" else 1
    for index in range(rounds):
        if rank := RANKS[method]:
            config = LoraConfig(
                TaskType.SEQ_CLS,
                r=rank,
                lora_alpha=rank,
                target_modules="all-linear",
                modules_to_save=["score"],
            )
            model = get_peft_model(model, config)
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                max_steps=steps // rounds,
                per_device_train_batch_size=8,
                learning_rate=lr,
                seed=seed * 1000 + index,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = Trainer(
                model,
                arguments,
                data_collator=DataCollatorWithPadding(tokenizer),
                train_dataset=data["train"],
                compute_metrics=lambda told: {
                    "accuracy": (told.predictions.argmax(-1) == told.label_ids).mean()
                },
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            if index == rounds - 1:
                return {split: trainer.evaluate(data[split])["eval_accuracy"] for split in ("dev", "test")}
        model = model.merge_and_unload()
    raise AssertionError("a run has at least one round")
