"""`planted`: a task whose right answer is known, on a transformer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xgblora_lab.lowrank.linear import can_merge, dense_weight, find_modules, weight_shape
from xgblora_lab.stored import refuse_packed
from xgblora_lab.tasks.limits import shown, whole
from xgblora_lab.tasks.matrix import random_update, singular_values
from xgblora_lab.tasks.task import Batch, evaluating

EVALUATION_BATCH = 32  # sequences
LARGEST = 100_000_000  # tokens


class PlantedTask:
    """Find the update planted in a teacher: KL(teacher ‖ student) on random tokens, in nats a position.

    The members are those of `task.Task`.

    Parameters
    ----------
    model : nn.Module
        The base. It is copied and left as it is.
    truth : dict of str to tuple of Tensor
        By module name, B (d, r) and A (r, k) in float32. The planted update is B @ A.
    inputs : dict of str to Batch
        By split, "input_ids" (n, S), for encoder-decoders also "decoder_input_ids" (n, S).

    Attributes
    ----------
    truth : dict of str to tuple of Tensor
        As given.
    teacher : nn.Module
        The frozen copy with the update in its weights. The student shares no weight with it.
    """

    kind = "planted"
    metric = "relative"
    greater_is_better = False

    def __init__(
        self, model: nn.Module, truth: dict[str, tuple[Tensor, Tensor]], inputs: dict[str, Batch]
    ) -> None:
        self.name = "planted"
        self.truth = truth
        self._inputs = inputs
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        modules = dict(self.teacher.named_modules())
        self._base: dict[str, Tensor] = {}  # the teacher's weights before planting
        for name, (B, A) in truth.items():
            self._base[f"{name}.weight"] = modules[name].weight.detach().clone()
            add_update_(modules[name], B, A)
        self._initial: dict[str, np.ndarray] = {}  # split -> the first sequences' divergence of the base

    def size(self, split: str = "train") -> int:
        """Number of sequences. ValueError where there is no such split."""
        return len(self._of(split)["input_ids"])

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """Make a batch.

        Parameters
        ----------
        split : str
            "train", "dev" or "test".
        indices : sequence of int
            Sequences of the split.

        Returns
        -------
        dict of str to Tensor
            input_ids and attention_mask (N, S); decoder_input_ids (N, S) for encoder-decoders. On the CPU.

        Raises
        ------
        ValueError
            Where there is no such split.
        """
        rows = torch.as_tensor(list(indices))
        batch = {name: ids[rows] for name, ids in self._of(split).items()}
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    def weight(self, batch: Batch) -> int:
        """Positions that the student predicts at."""
        return batch.get("decoder_input_ids", batch["input_ids"]).numel()

    def tokens(self, batch: Batch) -> int:
        """Tokens that encoder and decoder read; there is no padding."""
        return sum(ids.numel() for name, ids in batch.items() if name.endswith("input_ids"))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean divergence from the teacher, in nats a position."""
        return self._divergence(model(**batch).logits, batch).mean()

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """Score a model.

        Parameters
        ----------
        model : nn.Module
            Of the base's class; left in the mode it was in.
        split : str, default "dev"
            "train", "dev" or "test".
        limit : int, optional
            Only the first sequences; default: all.

        Returns
        -------
        dict of str to float
            "loss", the divergence in nats a position, and "relative", the same over the base's.

        Raises
        ------
        ValueError
            Where there is no such split.
        """
        loss = float(self.predict(model, split, limit).mean())
        return {"loss": loss, "relative": loss / float(self._initial_divergence(split, limit).mean())}

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """Each sequence's mean divergence from the teacher, (n,), in nats; arguments as in `evaluate`."""
        count = self.size(split) if limit is None else min(limit, self.size(split))
        parts = []
        with evaluating(model) as device:
            for start in range(0, count, EVALUATION_BATCH):
                batch = self.batch(split, range(start, min(count, start + EVALUATION_BATCH)))
                batch = {name: ids.to(device) for name, ids in batch.items()}
                parts.append(self._divergence(model(**batch).logits, batch).mean(1).double().cpu())
        return torch.cat(parts).numpy()

    def _of(self, split: str) -> Batch:
        if split not in self._inputs:
            raise ValueError(f"The planted task has no {split} split; it has {', '.join(self._inputs)}.")
        return self._inputs[split]

    def _divergence(self, logits: Tensor, batch: Batch) -> Tensor:
        """KL(teacher ‖ student) at every position, (N, S)."""
        if next(self.teacher.parameters()).device != logits.device:
            self.teacher.to(logits.device)
        with torch.no_grad():
            target = self.teacher(**batch).logits.float()
        student = F.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)
        target = F.log_softmax(target.to(student.dtype), -1)
        return F.kl_div(student, target, reduction="none", log_target=True).sum(-1)

    def _initial_divergence(self, split: str, limit: int | None) -> np.ndarray:
        count = self.size(split) if limit is None else min(limit, self.size(split))
        if split not in self._initial or len(self._initial[split]) < count:
            self._initial[split] = self.predict(_WithWeights(self.teacher, self._base), split, limit)
        return self._initial[split][:count]


def planted(
    model: nn.Module,
    *,
    modules: str | Sequence[str] = "attention",
    spectrum: str | Sequence[float] = "1/i",
    rank: int = 16,
    strength: float = 0.5,
    sequences: int = 2048,
    length: int = 32,
    seed: int = 0,
) -> PlantedTask:
    """Plant an update in a copy of a model, and make the copy the teacher.

    Parameters
    ----------
    model : nn.Module
        A causal, masked or sequence-to-sequence language model of transformers, without boosters attached.
    modules : str or sequence of str, default "attention"
        Where to plant, as in `lowrank.linear.find_modules`.
    spectrum : str or sequence of float, default "1/i"
        The update's singular values up to scale: "1/i", "exponential" (e^(-(i-1)/2)), "flat", or the values
        themselves (then `rank` has no effect).
    rank : int, default 16
        Of the update in each module.
    strength : float, default 0.5
        Frobenius norm of each update over that of its weight.
    sequences : int, default 2048
        Train rows; dev and test have an eighth of that, at least 1 and at most 256 each.
    length : int, default 32
        Uniform random tokens a row.
    seed : int, default 0
        Of update and tokens.

    Returns
    -------
    PlantedTask
        With the update as `truth`.

    Raises
    ------
    ValueError
        Where the model is no language model, no module matches, a weight is packed, a number is not positive,
        or the spectrum is unknown or does not fit a module.
    """
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocabulary is None:
        raise ValueError(f"{type(model).__name__} is no language model; plant in one loaded by load_model.")
    whole("sequences", sequences, 1, LARGEST)
    whole("length", length, 1, LARGEST)
    whole("rank", rank, 0, LARGEST)  # `singular_values` refuses 0
    if sequences * length > LARGEST:
        raise ValueError(f"sequences × length is {sequences * length}; accepted are up to {LARGEST} tokens.")
    if not isinstance(strength, int | float) or not 0 < strength < math.inf:
        raise ValueError(f"strength must be positive and finite; got {shown(strength)}.")
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    truth = {}
    for name, module in find_modules(model, modules).items():
        if not can_merge(module):
            refuse_packed([name], "nothing can be planted in it; plant in the model before it is quantised.")
        norm = float(torch.linalg.matrix_norm(dense_weight(module).detach().double()))
        values = singular_values(spectrum, rank)
        values *= strength * norm / values.norm()
        truth[name] = random_update(values, *weight_shape(module), generator, name)

    pad = config.pad_token_id
    held_out = max(1, min(256, sequences // 8))
    inputs = {}
    for split, count in {"train": sequences, "dev": held_out, "test": held_out}.items():
        names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
        inputs[split] = {name: _random_tokens((count, length), vocabulary, pad, generator) for name in names}
    return PlantedTask(model, truth, inputs)


def add_update_(module: nn.Module, B: Tensor, A: Tensor) -> None:
    """Add a product of factors to a weight: in place, in the weight's own dtype.

    Parameters
    ----------
    module : nn.Module
        Its weight is one that `can_merge`.
    B, A : Tensor
        (d, r) and (r, k).
    """
    weight = dense_weight(module).data
    weight.addmm_(B.to(weight), A.to(weight))


class _WithWeights(nn.Module):
    """A model called with some of its weights replaced; the model itself is left alone."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, **inputs: Any) -> Any:
        device = next(self.model.parameters()).device
        weights = {name: weight.to(device) for name, weight in self.weights.items()}
        return torch.func.functional_call(self.model, weights, (), inputs)


def _random_tokens(
    shape: tuple[int, int], vocabulary: int, pad: int | None, generator: torch.Generator
) -> Tensor:
    """Uniform over the vocabulary without the pad token, which some models would treat as absent."""
    if pad is None or pad >= vocabulary:
        return torch.randint(vocabulary, shape, generator=generator)
    ids = torch.randint(vocabulary - 1, shape, generator=generator)
    return ids + (ids >= pad)
