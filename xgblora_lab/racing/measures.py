"""What a race measures beside the score: intruder dimensions, forgetting, sharpness. All are hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xgblora_lab import seeds
from xgblora_lab.bench.hooks import Hook, Run
from xgblora_lab.tasks.written import written

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Task


class Intruders(Hook):
    """Intruder dimensions of W + ΔW after a round: `{"intruders": {module: count}}`.

    A singular vector among the leading `top_k` left ones of W + ΔW intrudes where its |cosine| with every
    left singular vector of W is below `threshold`. They go with forgetting. Two dense SVDs a module, in
    float64: that of W once, that of W + ΔW every time.

    Parameters
    ----------
    modules : sequence of str, optional
        Names to watch; default: all.
    top_k : int
        Leading singular vectors that are looked at.
    threshold : float
        On |cosine|, from 0 to 1.
    every : int
        Measure after every so many rounds.

    References
    ----------
    Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228.
    """

    def __init__(
        self,
        modules: Sequence[str] | None = None,
        top_k: int = 10,
        threshold: float = 0.5,
        every: int = 1,
    ) -> None:
        self.modules, self.top_k, self.threshold, self.every = modules, top_k, threshold, every
        self._base: dict[str, tuple[Tensor, Tensor]] = {}  # module -> W and its left singular vectors

    def on_run_start(self, bench: Run) -> None:
        self._base = {}

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        if len(bench.ensemble) % self.every:
            return None
        counts = {}
        for name in self.modules if self.modules is not None else bench.modules:
            if name not in self._base:
                W = bench.weights.base(name).double()
                self._base[name] = W, torch.linalg.svd(W, full_matrices=False).U
            W, U = self._base[name]
            B, A = bench.factors(name)
            counts[name] = intruders(U, W + B.double() @ A.double(), self.top_k, self.threshold)
        return {"intruders": counts}


def intruders(U: Tensor, tuned: Tensor, top_k: int = 10, threshold: float = 0.5) -> int:
    """Count the intruder dimensions of a tuned weight.

    Parameters
    ----------
    U : Tensor (d, n)
        Left singular vectors of the base weight.
    tuned : Tensor (d, k)
        The weight after tuning.
    top_k : int
        Its leading singular vectors that are looked at.
    threshold : float
        Below it, the largest |cosine| with a column of U makes an intruder.
    """
    leading = torch.linalg.svd(tuned, full_matrices=False).U[:, :top_k]
    return int(((leading.T @ U).abs().amax(1) < threshold).sum())


class Forgetting(Hook):
    """The loss on text that the base was made for: `{"forgetting": loss now − loss of the base}`, in nats.

    Parameters
    ----------
    task : Task, optional
        On that text, for the same model; what it measures must need no head of its own. Default: text that
        the base itself writes, see `tasks.written`, for a decoder with a language-modelling head.
    split : str
        Its split.
    limit : int, optional
        Examples that are scored.
    every : int
        Measure after every so many rounds.
    """

    def __init__(
        self, task: Task | None = None, split: str = "dev", limit: int | None = None, every: int = 1
    ) -> None:
        self.task, self.split, self.limit, self.every = task, split, limit, every
        self._before: float | None = None

    def on_run_start(self, bench: Run) -> None:
        if len(bench.history) == 0:
            self._text = self.task if self.task is not None else written(bench.model)
            self._before = self._loss(bench)

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        if len(bench.ensemble) % self.every:
            return None
        if self._before is None:
            raise ValueError("Forgetting counts from the base: attach it before the run's first round.")
        return {"forgetting": self._loss(bench) - self._before}

    def _loss(self, bench: Run) -> float:
        with bench.accelerator.autocast():
            return self._text.evaluate(bench.model, self.split, limit=self.limit)["loss"]


class Sharpness(Hook):
    """Top eigenvalue of the Hessian in what the round trains, on one batch: `{"sharpness": λ}`.

    Measured at the round's first step, on its batch, before the update; by Lanczos with Hessian-vector
    products, each a backward pass through a backward pass.

    Parameters
    ----------
    iterations : int
        Lanczos steps; each costs about four forward passes and one vector of the trained size.
    every : int
        Measure in every so many rounds.
    """

    def __init__(self, iterations: int = 10, every: int = 1) -> None:
        self.iterations, self.every = iterations, every
        self._value: float | None = None

    def on_round_start(self, bench: Run, index: int) -> None:
        self._value = None
        if (index + 1) % self.every:
            return
        parameters = [p for p in bench.method.trainable().values() if p.requires_grad]
        rows = bench.planned_rows(bench.trained_steps)
        batch = bench.task.batch("train", rows)
        batch = {key: value.to(bench.accelerator.device) for key, value in batch.items()}
        training = bench.model.training
        bench.model.eval()  # no dropout: a Hessian of one function
        # Other kernels of attention have no second backward.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = bench.task.loss(bench.model, batch)
            self._value = top_eigenvalue(loss, parameters, self.iterations, bench.seed)
        bench.model.train(training)

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        return None if self._value is None else {"sharpness": self._value}


def top_eigenvalue(
    loss: Tensor, parameters: Sequence[nn.Parameter], iterations: int = 10, seed: int = 0
) -> float:
    """Compute the largest eigenvalue of a loss's Hessian by Lanczos, with full re-orthogonalisation.

    Parameters
    ----------
    loss : scalar Tensor
        With a graph that can be differentiated twice.
    parameters : sequence of nn.Parameter
        n numbers in all, in which the Hessian is taken.
    iterations : int
        Steps; with n of them the value is exact.
    seed : int
        Of the first vector.

    References
    ----------
    Lanczos 1950; Golub and Van Loan, "Matrix Computations", chapter 10.
    """
    unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    slopes = torch.autograd.grad(loss, parameters, create_graph=True, **unused)
    gradient = torch.cat([g.flatten() for g in slopes])
    n = len(gradient)
    start = torch.randn(n, generator=seeds.generator("lanczos", seed), dtype=torch.float64).to(gradient)
    basis = [start / start.norm()]
    core = torch.zeros(min(iterations, n), min(iterations, n), dtype=torch.float64)
    for j in range(len(core)):
        product = torch.autograd.grad(gradient @ basis[j], parameters, retain_graph=True, **unused)
        w = torch.cat([p.flatten() for p in product]).detach()
        for i, q in enumerate(basis):
            core[i, j] = core[j, i] = float(w @ q)
        for _ in range(2):  # once is not enough in floating point
            for q in basis:
                w = w - (w @ q) * q
        if j + 1 == len(core) or float(w.norm()) < 1e-10:
            core = core[: j + 1, : j + 1]
            break
        basis.append(w / w.norm())
    return float(torch.linalg.eigvalsh(core)[-1])
