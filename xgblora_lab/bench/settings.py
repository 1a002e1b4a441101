"""What a bench writes into its history about itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from xgblora_lab.bench.hooks import Run
from xgblora_lab.bench.records import RunSettings, short_name
from xgblora_lab.bench.step import Trainer
from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.linear import is_linear, weight_shape


def settings_of(run: Run, trainer: Trainer, targets: str | Sequence[str], probe_size: int) -> RunSettings:
    """The settings of a run that begins."""
    model, method, task, accelerator = run.model, run.method, run.task, run.accelerator
    truth: Mapping[str, tuple[Tensor, Tensor]] = getattr(task, "truth", {})
    weights = sum(math.prod(weight_shape(m)) for m in model.modules() if is_linear(m))
    return RunSettings(
        label=method.label(),
        options=method.options(),
        lr=method.lr,
        model=short_name(getattr(model, "name_or_path", "")) or type(model).__name__,
        data=task.name,
        kind=task.kind,
        metric=task.metric,
        greater_is_better=task.greater_is_better,
        steps=run.steps,
        batch_size=trainer.batch_size,
        accumulation=trainer.accumulation,
        targets=targets,
        seed=run.seed,
        data_seed=trainer.data_seed,
        probe_size=probe_size,
        precision=str(accelerator.mixed_precision),
        processes=accelerator.num_processes,
        device=accelerator.device.type,
        flops_per_token=method.flops_per_weight * weights,
        truth_spectrum={n: spectra.singular_values(B, A).tolist() for n, (B, A) in truth.items()},
        versions={n: found for n in ("torch", "transformers", "accelerate") if (found := _version(n))},
        merges=method.additive,
        rank_bound=method.rank_bound(len(run.modules)),
    )


@cache  # a lesson makes dozens of benches, and each look takes as long as a step
def _version(package: str) -> str:
    """Of an installed package, which need not be imported for it; else empty."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
