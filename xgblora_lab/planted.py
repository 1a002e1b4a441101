"""`planted`: tasks whose right answer is known, on a transformer and on a single matrix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xgblora_lab.adapters import add_update_, dense_weight, find_modules, weight_shape
from xgblora_lab.tasks import Batch, evaluating

SPECTRA = {  # the i-th singular value, i from 1, before scaling
    "1/i": lambda i: 1 / i,
    "exponential": lambda i: torch.exp(-(i - 1) / 2),
    "flat": torch.ones_like,
}
EVALUATION_BATCH = 32  # sequences


class PlantedTask:
    """Find the update planted in a teacher: KL(teacher ‖ student) on random tokens, in nats a position.

    truth: module name -> (B (d, r), A (r, k)) in float32, the planted update being B @ A.
    teacher: the frozen model with the update in its weights; the student's weights are never shared with it.
    """

    kind = "planted"
    metric = "relative"
    greater_is_better = False

    def __init__(
        self, model: nn.Module, truth: dict[str, tuple[Tensor, Tensor]], inputs: dict[str, Batch]
    ) -> None:
        self.name = "planted"
        self.truth = truth
        self._inputs = inputs  # split -> {"input_ids": (n, S), …}
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        modules = dict(self.teacher.named_modules())
        self._base: dict[str, Tensor] = {}  # the teacher's weights before planting
        for name, (B, A) in truth.items():
            self._base[f"{name}.weight"] = modules[name].weight.detach().clone()
            add_update_(modules[name], B, A)
        self._initial: dict[str, np.ndarray] = {}  # split -> each sequence's divergence of the base

    def size(self, split: str = "train") -> int:
        return len(self._of(split)["input_ids"])

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """input_ids and attention_mask (N, S), and decoder_input_ids (N, S) for encoder-decoders."""
        rows = torch.as_tensor(list(indices))
        batch = {name: ids[rows] for name, ids in self._of(split).items()}
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    def weight(self, batch: Batch) -> int:
        """Positions that the student predicts at."""
        return batch.get("decoder_input_ids", batch["input_ids"]).numel()

    def tokens(self, batch: Batch) -> int:
        return sum(ids.numel() for name, ids in batch.items() if name.endswith("input_ids"))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._divergence(model(**batch).logits, batch).mean()

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """`loss`, the divergence in nats a position, and `relative`, the same over the base model's."""
        loss = float(self.predict(model, split, limit).mean())
        return {"loss": loss, "relative": loss / float(self._initial_divergence(split)[:limit].mean())}

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """(n,): each sequence's mean divergence from the teacher, in nats."""
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
        self.teacher.to(logits.device)
        with torch.no_grad():
            target = self.teacher(**batch).logits.float()
        student = F.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)
        target = F.log_softmax(target.to(student.dtype), -1)
        return F.kl_div(student, target, reduction="none", log_target=True).sum(-1)

    def _initial_divergence(self, split: str) -> np.ndarray:
        if split not in self._initial:
            self._initial[split] = self.predict(_WithWeights(self.teacher, self._base), split)
        return self._initial[split]


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
    """Plant an update in a copy of `model` and make it the teacher.

    model: a causal, masked or sequence-to-sequence language model of transformers, without boosters attached.
    modules: where, as in `adapters.find_modules`. spectrum: the update's singular values up to scale: "1/i",
    "exponential" (e^(-(i-1)/2)), "flat", or the values themselves (then `rank` is their number).
    strength: Frobenius norm of each update over that of its weight. sequences: train rows of `length` uniform
    random tokens; dev and test have an eighth of that, at most 256 each. seed: of update and tokens.
    """
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocabulary is None:
        raise ValueError(f"{type(model).__name__} is no language model; plant in one loaded by load_model.")
    if strength <= 0 or sequences < 1 or length < 1:
        raise ValueError(f"strength {strength}, sequences {sequences} and length {length} must be positive.")
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    truth = {}
    for name, module in find_modules(model, modules).items():
        norm = float(torch.linalg.matrix_norm(dense_weight(module).detach().double()))
        values = singular_values(spectrum, rank)
        values *= strength * norm / values.norm()
        truth[name] = _random_update(values, *weight_shape(module), generator, name)

    pad = config.pad_token_id
    held_out = max(1, min(256, sequences // 8))
    inputs = {}
    for split, count in {"train": sequences, "dev": held_out, "test": held_out}.items():
        names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
        inputs[split] = {name: _random_tokens((count, length), vocabulary, pad, generator) for name in names}
    return PlantedTask(model, truth, inputs)


class MatrixTask:
    """½‖W − W*‖²_F of a bias-free linear map, seen through its outputs on the identity (whitened inputs).

    truth: {"matrix": (B (d, r), A (r, k))}, W* = B @ A. One example; train, dev and test are the same.
    """

    name = "matrix"
    kind = "matrix"
    metric = "loss"
    greater_is_better = False

    def __init__(self, B: Tensor, A: Tensor, values: Tensor) -> None:
        self.truth = {"matrix": (B, A)}
        self.values = values  # (r,), singular values of W*, float64
        self._inputs = torch.eye(A.shape[1])  # (k, k)
        self._target = (B.double() @ A.double()).T  # (k, d)

    def size(self, split: str = "train") -> int:
        return 1

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The identity (k, k), however often its one row is asked for."""
        return {"inputs": self._inputs}

    def weight(self, batch: Batch) -> int:
        return 1

    def tokens(self, batch: Batch) -> int:
        return len(batch["inputs"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch["inputs"].to(next(model.parameters()).dtype))  # (k, d)
        return 0.5 * (outputs - self._target.to(outputs)).square().sum()

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """`loss`, and `relative`: the same over ½‖W*‖²."""
        with evaluating(model) as device:
            loss = float(self.loss(model, {"inputs": self._inputs.to(device)}))
        return {"loss": loss, "relative": loss / self.floor(0)}

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """(1, d, k): the live W."""
        with evaluating(model) as device:
            return model(self._inputs.to(device, next(model.parameters()).dtype)).T[None].cpu().numpy()

    def floor(self, rank: int) -> float:
        """The least loss at this rank: ½ Σ_{i>rank} σ_i² (Eckart & Young 1936)."""
        return 0.5 * float(self.values[rank:].square().sum())


class Matrix(nn.Module):
    """A model that is one linear map, `matrix`, of weight (d, k), 0 at the start."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(k, d, bias=False)
        nn.init.zeros_(self.matrix.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, k) -> (N, d)."""
        return self.matrix(inputs)


def matrix(
    spectrum: str | Sequence[float] = "1/i", d: int = 32, k: int = 32, seed: int = 0
) -> tuple[Matrix, MatrixTask]:
    """The smallest model and task: one d × k matrix at 0, and a target with this spectrum.

    spectrum: "1/i", "exponential" or "flat" (all min(d, k) values), or the singular values themselves.
    """
    values = singular_values(spectrum, min(d, k))
    generator = torch.Generator().manual_seed(seed)
    B, A = _random_update(values, d, k, generator, "matrix")
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws weights that are then zeroed
        return Matrix(d, k), MatrixTask(B, A, values)


def singular_values(spectrum: str | Sequence[float], rank: int) -> Tensor:
    """(rank,) or, for given values, (their number,): float64, descending."""
    if isinstance(spectrum, str):
        if spectrum not in SPECTRA:
            raise ValueError(
                f"Unknown spectrum {spectrum!r}; accepted are {', '.join(SPECTRA)} and a list of numbers."
            )
        if rank < 1:
            raise ValueError(f"rank is {rank}; an update has rank 1 or more.")
        return SPECTRA[spectrum](torch.arange(1, rank + 1, dtype=torch.float64))
    values = torch.tensor([float(v) for v in spectrum], dtype=torch.float64)
    if not len(values) or not bool((values > 0).all()) or not bool(values.isfinite().all()):
        raise ValueError(f"A spectrum is one or more positive numbers; got {list(spectrum)}.")
    return values.sort(descending=True).values


class _WithWeights(nn.Module):
    """A model called with some of its weights replaced; the model itself is left alone."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, **inputs: Any) -> Any:
        device = next(self.model.parameters()).device
        weights = {name: weight.to(device) for name, weight in self.weights.items()}
        return torch.func.functional_call(self.model, weights, (), inputs)


def _random_update(
    values: Tensor, d: int, k: int, generator: torch.Generator, name: str
) -> tuple[Tensor, Tensor]:
    """B (d, r) and A (r, k) in float32 with orthogonal columns and rows; B @ A has these singular values."""
    if len(values) > min(d, k):
        raise ValueError(
            f"A spectrum of {len(values)} values does not fit {name} ({d} × {k}); use a smaller rank."
        )
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64)).Q
        for n in (d, k)
    )
    root = values.sqrt()
    return (left * root).float(), (right * root).T.contiguous().float()


def _random_tokens(
    shape: tuple[int, int], vocabulary: int, pad: int | None, generator: torch.Generator
) -> Tensor:
    """Uniform over the vocabulary without the pad token, which some models would treat as absent."""
    if pad is None or pad >= vocabulary:
        return torch.randint(vocabulary, shape, generator=generator)
    ids = torch.randint(vocabulary - 1, shape, generator=generator)
    return ids + (ids >= pad)
