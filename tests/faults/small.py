"""A bench that is small enough to be run ten thousand times, and what it must be after any operations.

A path says which operations count: `STEP` for a round, a number for the drop of that round. What a bench must
be after a path comes from a fresh bench that trains and drops in that order, once, and never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toy import ToyTask

from xgblora_lab.bench import Bench
from xgblora_lab.methods import make_method

STEP = -1
ROUNDS = 40  # planned
METHODS = {
    "xgblora": "xgblora:k=2:optimizer_state=keep:selection=random:modules_per_round=1:lr=0.05",
    "lora": "lora:r=2:k=2:lr=0.05",
    "full": "full:k=2:lr=0.01",
    "pissa": "pissa:r=2:k=2:lr=0.02",  # changes the weights at its first round, and keeps by how much
}
Trail = tuple[int, ...]


class Small(nn.Module):
    """A classifier of two tokens' worth of linear maps, with dropout and a head."""

    base_model_prefix = "body"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Embedding(20, 6), nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 6)
            )
            self.score = nn.Linear(6, 2)
        self.to(dtype).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        logits = self.score(self.body(input_ids).mean(1))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

    def save_pretrained(self, folder: Path) -> None:
        save_file({n: t.clone() for n, t in self.state_dict().items()}, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text("{}", encoding="utf-8")


TASK = ToyTask("classification", rows=14, length=4, vocabulary=20)
TASK.dev = 4


def bench_of(name: str, model: nn.Module | None = None, **options: Any) -> Bench:
    """A bench of one of `METHODS`, on a fresh model unless there is one."""
    method, options = make_method(METHODS[name]), {"steps": 2 * ROUNDS, "batch_size": 4, **options}
    return Bench(Small() if model is None else model, TASK, method, probe_size=4, **options)


def advance(bench: Bench, trail: Trail) -> Bench:
    """Train and drop."""
    for operation in trail:
        if operation == STEP:
            bench.step()
        else:
            bench.drop(operation)
    return bench


def rewound(trail: Trail, rounds: int) -> Trail:
    """What of a path counts after going back to `rounds` rounds."""
    kept, done = [], 0
    for operation in trail:
        if operation != STEP:
            kept += [operation] * (operation < rounds)
        elif done < rounds:
            kept.append(STEP)
            done += 1
    return tuple(kept)


def seen(bench: Bench) -> dict[str, Any]:
    """All that a bench is: weights, what is attached, optimizers, boosters, records."""
    pieces: dict[str, Any] = {f"weight {n}": p.detach().clone() for n, p in bench.model.named_parameters()}
    pieces |= {f"state {n}": t for n, t in bench.state().items()}
    for t in range(len(bench.ensemble)):
        pieces |= {
            f"round {t} {n} {i}": f for n, pair in bench.ensemble[t].items() for i, f in enumerate(pair)
        }
    gradients = [n for n, p in bench.model.named_parameters() if p.grad is not None]
    return pieces | {
        "curve": [(r.losses, r.modules, r.probe_before, r.probe_after, r.step) for r in bench.history],
        "rounds": len(bench.ensemble),
        "steps": bench.trained_steps,
        "hooks": [len(m._forward_hooks) for m in bench.model.modules()],
        "gradients": gradients,
        "trains": [n for n, p in bench.model.named_parameters() if p.requires_grad],
        "training": bench.model.training,
    }


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Names of the pieces that are not the same, bit for bit."""
    return sorted(n for n in left.keys() | right.keys() if not _same(left.get(n), right.get(n)))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and not isinstance(left, Tensor) and left == right


class Reference:
    """What a bench must be after a path, for one method."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._known: dict[Trail, dict[str, Any]] = {}
        self._bench, self._trail = bench_of(name), ()

    def after(self, trail: Trail) -> dict[str, Any]:
        """The pieces of `seen` after a path."""
        if trail not in self._known:
            if trail[: len(self._trail)] != self._trail:
                self._bench, self._trail = bench_of(self.name), ()
            for i in range(len(self._trail), len(trail) + 1):
                advance(self._bench, trail[len(self._trail) : i])
                self._trail = trail[:i]
                self._known[self._trail] = seen(self._bench)
                self._check_sum()
            self._known.setdefault(trail, seen(self._bench))
        return self._known[trail]

    def _check_sum(self) -> None:
        """The weights are the base plus the boosters, added here by other code than the bench's."""
        if not self._bench.method.additive:
            return
        fresh = Small()
        for t in range(len(self._bench.ensemble)):
            for name, (B, A) in self._bench.ensemble[t].items():
                fresh.get_submodule(name).weight.data.addmm_(B, A)
        for name in self._bench.modules:
            assert torch.equal(
                fresh.get_submodule(name).weight, self._bench.model.get_submodule(name).weight
            ), name
