"""What a run leaves behind: one frozen `Round` per round, and the `History` of a run.

A `Round` is the only currency between the loop, hooks, figures, files and tests.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xgblora_lab.files import plain, write_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Round:
    """The record of one round: κ optimizer steps, and what they did.

    Losses are means in the task's own unit (nats for language models and classifiers). *Own batch* is the
    round's first training batch, *probe* the bench's fixed probe batch; `nan` where not measured.
    """

    index: int  # t, from 0
    method: str  # name of the method, e.g. "xgblora"
    step: int  # optimizer steps done at the round's end, counted from the run's start
    modules: tuple[str, ...]  # modules trained in this round
    losses: tuple[float, ...]  # training loss at every step of the round, before that step's update
    learning_rates: tuple[float, ...]  # at every step
    gradient_norms: tuple[float, ...]  # global 2-norm over the round's trainable parameters, at every step
    loss_before: float  # own batch, before the round
    loss_after: float  # own batch, after the round (merged)
    probe_before: float  # probe batch, before the round
    probe_after: float  # probe batch, after the round (merged)
    tokens: int  # real (unpadded) tokens trained on in this round, all processes
    seconds: float  # wall time of the round
    peak_parameters: int  # trainable numbers at one moment of this round (boosters and head)
    total_parameters: int  # distinct numbers trained since the run's start, boosters of all rounds summed
    optimizer_bytes: int  # optimizer state at the round's end
    gradient_bytes: int  # gradients held at one moment
    # Beyond the κ training steps: forward-backward passes (an initialisation's probe, …), and forward passes
    # without backward (of a method that looks before it changes itself)
    extra_passes: int = 0
    extra_forwards: int = (
        0  # forward passes without backward, of a method that looks before it changes itself
    )
    measurements: Mapping[str, Any] = field(default_factory=dict)  # what hooks added; JSON values

    def __post_init__(self) -> None:
        object.__setattr__(self, "measurements", MappingProxyType(dict(self.measurements)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Round.from_dict, (self.to_dict(),)  # the read-only view of the measurements cannot be pickled

    @property
    def gain(self) -> float:
        """Decrease of the probe loss in this round (of the own batch's where no probe was measured)."""
        gain = self.probe_before - self.probe_after
        return self.loss_before - self.loss_after if math.isnan(gain) else gain

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `Round.from_dict` inverts it."""
        names = [f.name for f in dataclasses.fields(self)]
        return {name: plain(getattr(self, name)) for name in names}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        fixed: dict[str, Any] = {"modules": tuple(values["modules"])}
        for name in ("losses", "learning_rates", "gradient_norms"):
            fixed[name] = tuple(float(v) for v in values[name])
        for name in ("loss_before", "loss_after", "probe_before", "probe_after"):
            fixed[name] = float(values[name])  # "nan" and "inf" come back as floats
        return cls(**{**values, **fixed})

    def __str__(self) -> str:
        return (
            f"round {self.index}: loss {self.loss_before:.4f} -> {self.loss_after:.4f}, "
            f"probe {self.probe_before:.4f} -> {self.probe_after:.4f}, "
            f"{len(self.modules)} module{'s' if len(self.modules) != 1 else ''}, {self.seconds:.2f} s"
        )


@dataclass
class History:
    """The rounds of one run, its settings, and the scores it ended with."""

    method: str = ""  # name of the method
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # the method's options, seeds, model, data, versions
    rounds: list[Round] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # e.g. {"dev_accuracy": .83, "test_accuracy": .82}

    def __len__(self) -> int:
        return len(self.rounds)

    def __iter__(self) -> Iterator[Round]:
        return iter(self.rounds)

    def __getitem__(self, index: int) -> Round:
        return self.rounds[index]

    def to_frame(self) -> pd.DataFrame:
        """One row per round, one column per scalar of the record (means for the per-step tuples)."""
        import pandas as pd

        rows = []
        for r in self.rounds:
            row = {k: v for k, v in r.to_dict().items() if isinstance(v, int | float | str) or v is None}
            row |= {
                "loss": _mean(r.losses),
                "learning_rate": _mean(r.learning_rates),
                "gradient_norm": _mean(r.gradient_norms),
                "modules": len(r.modules),
                "gain": r.gain,
            }
            row |= {k: v for k, v in r.measurements.items() if isinstance(v, int | float | str)}
            rows.append(row)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "settings": plain(self.settings),
            "scores": plain(self.scores),
            "rounds": [r.to_dict() for r in self.rounds],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        scores = {k: float(v) for k, v in values["scores"].items()}
        rounds = [Round.from_dict(r) for r in values["rounds"]]
        return cls(values["method"], dict(values["settings"]), rounds, scores)

    def save(self, path: str | Path) -> None:
        """Write the history as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def short_name(name: str | Path) -> str:
    """What a record calls a model or data: the name of a folder or file without its path; a hub id whole."""
    path = Path(name)
    return Path(os.path.abspath(path)).name if str(name) and path.exists() else str(name)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else math.nan
