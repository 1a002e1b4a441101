"""`matrix`: the smallest task, one matrix whose target and its spectrum are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from xgblora_lab.tasks.task import Batch, evaluating

SPECTRA = {  # the i-th singular value, i from 1, before scaling
    "1/i": lambda i: 1 / i,
    "exponential": lambda i: torch.exp(-(i - 1) / 2),
    "flat": torch.ones_like,
}


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
    B, A = random_update(values, d, k, generator, "matrix")
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


def random_update(
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
