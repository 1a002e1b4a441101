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

    One example; train, dev and test are the same. The members are those of `task.Task`.

    Parameters
    ----------
    B : Tensor, (d, r)
        Output factor of the target W* = B @ A.
    A : Tensor, (r, k)
        Its input factor.
    values : Tensor, (r,)
        Singular values of W*, descending, float64.

    Attributes
    ----------
    truth : dict of str to tuple of Tensor
        {"matrix": (B, A)}.
    values : Tensor, (r,)
        As given.
    """

    name = "matrix"
    kind = "matrix"
    metric = "loss"
    greater_is_better = False

    def __init__(self, B: Tensor, A: Tensor, values: Tensor) -> None:
        self.truth = {"matrix": (B, A)}
        self.values = values
        self._inputs = torch.eye(A.shape[1])  # (k, k)
        self._target = (B.double() @ A.double()).T  # (k, d)

    def size(self, split: str = "train") -> int:
        """1, whatever the split."""
        return 1

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The identity (k, k), however often its one row is asked for."""
        return {"inputs": self._inputs}

    def weight(self, batch: Batch) -> int:
        """1, as the loss is one sum."""
        return 1

    def tokens(self, batch: Batch) -> int:
        """k, the rows of the identity."""
        return len(batch["inputs"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """½‖W − W*‖²_F, in the model's dtype."""
        outputs = model(batch["inputs"].to(next(model.parameters()).dtype))  # (k, d)
        return 0.5 * (outputs - self._target.to(outputs)).square().sum()

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """Score a model.

        Parameters
        ----------
        model : nn.Module
            A linear map from k to d.
        split, limit
            Without effect: there is one example.

        Returns
        -------
        dict of str to float
            "loss", and "relative", the same over ½‖W*‖².
        """
        with evaluating(model) as device:
            loss = float(self.loss(model, {"inputs": self._inputs.to(device)}))
        return {"loss": loss, "relative": loss / self.floor(0)}

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """The live W, (1, d, k)."""
        with evaluating(model) as device:
            return model(self._inputs.to(device, next(model.parameters()).dtype)).T[None].cpu().numpy()

    def floor(self, rank: int) -> float:
        """The least loss at a rank.

        Parameters
        ----------
        rank : int
            0 or more.

        Returns
        -------
        float
            ½ Σ_{i>rank} σ_i².

        References
        ----------
        Eckart & Young (1936). The approximation of one matrix by another of lower rank.
        """
        return 0.5 * float(self.values[rank:].square().sum())


class Matrix(nn.Module):
    """A model that is one linear map, `matrix`, 0 at the start.

    Parameters
    ----------
    d, k : int
        Outputs and inputs: its weight is (d, k).
    """

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
    """Make the smallest model and task: one matrix at 0, and a target whose spectrum is known.

    Parameters
    ----------
    spectrum : str or sequence of float, default "1/i"
        Of the target: "1/i", "exponential" or "flat" (min(d, k) values), or the singular values themselves.
    d, k : int, default 32
        Rows and columns.
    seed : int, default 0
        Of the target's singular directions. The global random state is left as it was.

    Returns
    -------
    model : Matrix
        In float32.
    task : MatrixTask
        With the target as `truth`.

    Raises
    ------
    ValueError
        Where the spectrum is unknown, not positive, or longer than min(d, k).
    """
    values = singular_values(spectrum, min(d, k))
    generator = torch.Generator().manual_seed(seed)
    B, A = random_update(values, d, k, generator, "matrix")
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws weights that are then zeroed
        return Matrix(d, k), MatrixTask(B, A, values)


def singular_values(spectrum: str | Sequence[float], rank: int) -> Tensor:
    """The singular values of an update.

    Parameters
    ----------
    spectrum : str or sequence of float
        "1/i", "exponential" (e^(-(i-1)/2)), "flat" (all 1), or the values themselves.
    rank : int
        How many, where `spectrum` is a name.

    Returns
    -------
    Tensor, (rank,) or (number of the given values,)
        Descending, float64.

    Raises
    ------
    ValueError
        Where the name is unknown, the rank below 1, or a value not positive and finite.
    """
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
    """Draw an update with these singular values.

    Parameters
    ----------
    values : Tensor, (r,)
        Singular values, float64.
    d, k : int
        Shape of the update.
    generator : torch.Generator
        Draws the singular directions.
    name : str
        Of the module, for the message.

    Returns
    -------
    B : Tensor, (d, r)
        With orthogonal columns, float32.
    A : Tensor, (r, k)
        With orthogonal rows, float32. B @ A is the update.

    Raises
    ------
    ValueError
        Where r exceeds min(d, k).
    """
    if len(values) > min(d, k):
        raise ValueError(
            f"A spectrum of {len(values)} values does not fit {name} ({d} × {k}); use a smaller rank."
        )
    left, right = singular_directions(d, k, len(values), generator)
    root = values.sqrt()
    return (left * root).float(), (right * root).T.contiguous().float()


def singular_directions(d: int, k: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the singular directions of an update.

    Parameters
    ----------
    d, k : int
        Shape of the update.
    rank : int
        How many, at most min(d, k).
    generator : torch.Generator
        Of the draw.

    Returns
    -------
    left : Tensor, (d, rank)
        With orthonormal columns, float64.
    right : Tensor, (k, rank)
        The same.
    """
    left, right = (
        torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q for n in (d, k)
    )
    return left, right
