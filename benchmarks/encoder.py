"""The encoder that steps are timed on: the size of MiniLM, with random weights and random tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import DEVICE
from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.linear import find_modules
from xgblora_lab.methods.base import Method
from xgblora_lab.methods.optimizers import adamw


@dataclass(frozen=True)
class Size:
    """Of the encoder and of a batch."""

    width: int = 384
    layers: int = 6
    batch: int = 16
    length: int = 48


MINILM = Size()
TINY = Size(width=32, layers=2, batch=4, length=8)


class RandomSentences:
    """Two classes of random tokens, in the form of a task."""

    name, kind, metric, greater_is_better = "random tokens", "classification", "loss", False

    def __init__(self, size: Size) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 1000, (256, size.length), generator=generator)
        self.labels = torch.randint(0, 2, (256,), generator=generator)

    def size(self, split: str = "train") -> int:
        return {"train": 192, "dev": 64}.get(split, 0)

    def batch(self, split: str, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(list(indices)) + (192 if split == "dev" else 0)
        ids = self.ids[rows]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.labels[rows]}

    def weight(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"])

    def tokens(self, batch: dict[str, Tensor]) -> int:
        return batch["input_ids"].numel()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = model(**batch).loss
        return loss

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        raise NotImplementedError

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        raise NotImplementedError


def encoder(size: Size) -> nn.Module:
    """A frozen BERT classifier of this size, the same for the same size, without dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // 32),
        intermediate_size=4 * size.width,
        vocab_size=30_522 if size == MINILM else 1000,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    # The head is the same for all and small: without it a step is the adapters' alone.
    return model.eval().requires_grad_(False).to(DEVICE)  # type: ignore[no-any-return]


def bench_of(method: Method, size: Size, model: nn.Module | None = None, **options: Any) -> Bench:
    """A bench on the encoder; measuring beside the steps is left out unless asked for."""
    options = {"steps": 100_000, "batch_size": size.batch, "probe_size": 0, **options}
    bench = Bench(model or encoder(size), RandomSentences(size), method, **options)
    for parameter in bench.head.values():
        parameter.requires_grad_(False)
    bench.head.clear()
    bench._head.optimizer = None
    return bench


def our_step(bench: Bench, index: int = 0, fresh: bool = False) -> Callable[[], None]:
    """One optimizer step of the bench's own loop, on round `index`, which has begun.

    fresh: each on the plan's next batch; else all on the first one.
    """
    batches = bench.trainer.batches(0)
    bench._measure.begin_round(0)  # from here on gradients may be probed
    bench.method.begin_round(bench, index)
    parameters = list(bench.method.trainable().values())
    optimizer = bench.method.make_optimizer(parameters)
    bench.model.train()

    def step() -> None:
        bench.method.before_backward(bench)
        given = bench.trainer.batches(bench.trained_steps) if fresh else batches
        bench.trainer.backward(given, parameters)
        bench._fit.one_step(1, optimizer, parameters)

    return step


def pefts_step(
    size: Size,
    base: nn.Module | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Callable[[], None], nn.Module]:
    """One optimizer step of PEFT's LoRA, r=8, on all linear maps in a plain loop; with its model.

    context: of the forward pass.
    """
    from peft import LoraConfig, get_peft_model

    base = base or encoder(size)
    config = LoraConfig(r=8, lora_alpha=8, target_modules=list(find_modules(base)))
    model = get_peft_model(base, config).train()
    return plain_step(model, [p for p in model.parameters() if p.requires_grad], size, context), model


def plain_step(
    model: nn.Module,
    parameters: list[nn.Parameter],
    size: Size,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[], None]:
    """Forward, backward and (where there is something to train) a fused AdamW step, as a user writes them."""
    batch = {k: v.to(DEVICE) for k, v in RandomSentences(size).batch("train", range(size.batch)).items()}
    optimizer = adamw(parameters, 1e-4, (0.9, 0.999)) if parameters else None

    def step() -> None:
        with context():
            loss = model(**batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def activations_only(size: Size, lowest: int = 0) -> Callable[[], None]:
    """Forward, and backward through the activations down to the inputs of linear map `lowest`: what any
    adapter on that map has to pay.
    """
    model = copy.deepcopy(encoder(size)).train()
    module = list(find_modules(model).values())[lowest]
    module.register_forward_hook(lambda _m, _a, output: output.detach().requires_grad_())
    return plain_step(model, [], size)
