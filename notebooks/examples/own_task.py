"""A task of your own is any object with the members of `xgblora_lab.tasks.task.Task`: here, six letters."""

import torch
from torch import nn

from xgblora_lab import Bench, XGBLoRA, load_model, load_tokenizer

torch.set_num_threads(1)


class Repeat:
    """Six letters, and the same six again: only the second six are scored."""

    name, kind, metric, greater_is_better = "repeat", "repeat", "accuracy", True

    def __init__(self, tokenizer, letters="abcdefgh", rows=320, length=6):
        alphabet = torch.tensor([tokenizer.encode(" " + letter)[-1] for letter in letters])
        drawn = torch.randint(len(letters), (rows, length), generator=torch.Generator().manual_seed(0))
        tokens = alphabet[drawn].repeat(1, 2)  # (N, 2 · length)
        self.splits, self.length = {"train": tokens[64:], "dev": tokens[:64]}, length

    def size(self, split="train"):
        return len(self.splits.get(split, ()))

    def batch(self, split, indices):
        return {"input_ids": self.splits[split][list(indices)]}

    def weight(self, batch):  # terms that the loss averages over
        return len(batch["input_ids"]) * self.length

    def tokens(self, batch):
        return batch["input_ids"].numel()

    def _scored(self, model, batch):
        """Logits (N, length, V) of the second six letters, and the letters."""
        ids = batch["input_ids"]
        return model(ids).logits[:, self.length - 1 : -1], ids[:, self.length :]

    def loss(self, model, batch):
        logits, letters = self._scored(model, batch)
        return nn.functional.cross_entropy(logits.flatten(0, 1), letters.flatten())

    @torch.no_grad()
    def evaluate(self, model, split="dev", limit=None):
        batch = self.batch(split, range(self.size(split))[:limit])
        logits, letters = self._scored(model, batch)
        right = (logits.argmax(-1) == letters).float().mean()
        return {"accuracy": float(right), "loss": float(self.loss(model, batch))}

    @torch.no_grad()
    def predict(self, model, split="dev", limit=None):
        batch = self.batch(split, range(self.size(split))[:limit])
        return self._scored(model, batch)[0].argmax(-1).numpy()


task = Repeat(load_tokenizer())
with Bench(load_model(), task, XGBLoRA(lr=1e-2, steps_per_round=10), steps=40) as bench:
    bench.run(progress=False)
    scores = list(bench.staged_evaluate())
for t, score in enumerate(scores):
    print(f"after {t} rounds: loss {score['loss']:.2f}, {score['accuracy']:.0%} of the letters right")
assert scores[-1]["loss"] < 0.8 * scores[0]["loss"]
