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

from xgblora_lab.tasks import models
from xgblora_lab.tasks.text import TextTask

MODEL = Path(models.__file__).parents[1] / "lab_model"
RANKS = {"xgblora": 1, "lora:r=1": 1, "lora:r=8": 8, "full": 0}
Rows = list[dict[str, Any]]


def plain_race(
    task: TextTask,
    methods: Sequence[str],
    rates: Sequence[float],
    seeds: int,
    steps: int,
    kappa: int,
    limit: int,
) -> dict[str, float]:
    """The test accuracy of every method at its best rate, averaged over the seeds after the first.

    limit: rows of dev and of test that are scored.
    """
    counts = {"train": None, "dev": limit, "test": limit}
    data = {
        split: [{"input_ids": row.ids, "labels": row.label} for row in task.splits[split][:count]]
        for split, count in counts.items()
    }
    run = partial(_run, steps=steps, kappa=kappa, data=data, labels=len(task.labels))
    found = {}
    with models._quiet():
        for method in methods:
            best = max(rates, key=lambda lr: run(method, lr, 0)["dev"])
            runs = [run(method, best, seed)["test"] for seed in range(1, seeds)]
            found[method] = float(np.mean(runs)) if runs else float("nan")
    return found


def _run(
    method: str, lr: float, seed: int, *, steps: int, kappa: int, data: dict[str, Rows], labels: int
) -> dict[str, float]:
    """One run; accuracy on dev and test."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=labels, dtype="float32")
    rounds = steps // kappa if method == "xgblora" else 1
    for index in range(rounds):
        if rank := RANKS[method]:
            config = LoraConfig(TaskType.SEQ_CLS, r=rank, lora_alpha=rank, target_modules="all-linear")
            model = get_peft_model(model, config)
        with TemporaryDirectory() as folder:
            length, order = steps // rounds, 1000 * seed + index
            trainer = _trainer(model, tokenizer, data["train"], folder, length, lr, order)
            trainer.train()
        if index < rounds - 1:
            model = model.merge_and_unload()
    return {split: trainer.evaluate(data[split])["eval_accuracy"] for split in ("dev", "test")}  # type: ignore[arg-type]


def _trainer(
    model: Any, tokenizer: Any, rows: Rows, folder: str, steps: int, lr: float, seed: int
) -> Trainer:
    """As its documentation sets it up, on 8 rows a step, with nothing saved or logged."""
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=lr,
        seed=seed,
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
        train_dataset=rows,  # type: ignore[arg-type]
        compute_metrics=lambda told: {"accuracy": (told.predictions.argmax(-1) == told.label_ids).mean()},
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
