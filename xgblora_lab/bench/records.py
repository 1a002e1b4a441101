"""What a run leaves behind: its settings, one frozen `Round` per round, and the `History` of both.

A `Round` is the only currency between the loop, hooks, figures, files and tests.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xgblora_lab.files import plain, read_lines, write_text

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self


@dataclass(frozen=True)
class Record:
    """A frozen dataclass whose mappings are read-only, and that JSON can hold."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if isinstance(value := getattr(self, f.name), Mapping):
                object.__setattr__(self, f.name, MappingProxyType(dict(value)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)  # read-only views of mappings cannot be pickled

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` inverts it."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record that `to_dict` wrote."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunSettings(Record):
    """What a run was made of. Every field may be left out; its default then says that nothing is known.

    The source says beside each field what it holds. A changed copy is `dataclasses.replace(settings, …)`.
    """

    label: str = ""  # name in figures and tables; tells variants of one method apart
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method, see `make_method`
    lr: float = math.nan  # peak learning rate
    model: str = ""
    data: str = ""
    kind: str = ""  # of the task, e.g. "causal-lm"
    metric: str = ""  # the task's main score, e.g. "accuracy"
    greater_is_better: bool = False  # of the metric
    steps: int | None = None  # K, the planned optimizer steps
    batch_size: int | None = None  # examples per step and process
    accumulation: int | None = None  # micro-batches that a batch is split into
    targets: str | Sequence[str] = ""  # the linear maps that were adapted, as in `find_modules`
    seed: int | None = None  # of initialisations, module choice and dropout
    data_seed: int | None = None  # of the order of the data
    probe_size: int | None = None  # examples of the probe batch
    precision: str = ""  # accelerate's mixed precision: "no", "bf16" or "fp16"
    processes: int | None = None  # that trained together
    device: str = ""  # its type, e.g. "cpu"
    flops_per_token: int | None = None  # floating-point operations per token trained on
    truth_spectrum: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of the update to find
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages
    chosen: bool = False  # whether the run has the tuned options of a race
    merges: bool = False  # whether a module's update gains a factor each time that the module is chosen
    rank_bound: int | None = None  # see `Method.rank_bound`

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """The settings that `to_dict` wrote; a field that is missing, as in an older file, keeps its default.

        ValueError where there is a key that is no field.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            raise ValueError(
                f"Unknown setting {', '.join(unknown)} of a run; accepted: {', '.join(known)}. Read the file "
                "with the version of xgblora_lab that wrote it."
            )
        return cls(**{**values, "lr": float(values.get("lr", math.nan))})  # "nan" comes back as a float


@dataclass(frozen=True)
class Round(Record):
    """The record of one round: κ optimizer steps, and what they did.

    Losses are means in the task's own unit (nats for language models and classifiers). *Own batch* is the
    round's first training batch, *probe* the bench's fixed probe batch; nan where not measured. The source
    says beside each field what it holds.
    """

    index: int  # t, from 0
    method: str
    step: int  # optimizer steps done at the round's end, counted from the run's start
    modules: tuple[str, ...]  # trained in this round
    losses: tuple[float, ...]  # κ long: the training loss before each step's update
    learning_rates: tuple[float, ...]  # κ long
    gradient_norms: tuple[float, ...]  # κ long: global 2-norm over the round's trainable parameters
    loss_before: float  # on the own batch
    loss_after: float  # on the own batch, merged
    probe_before: float
    probe_after: float  # merged
    tokens: int  # real (unpadded) ones trained on in this round, by all processes
    seconds: float  # wall time
    peak_parameters: int  # trainable numbers at one moment of this round: boosters and head
    total_parameters: int  # distinct numbers trained since the run's start, boosters of all rounds summed
    optimizer_bytes: int  # the optimizers' state at the round's end
    gradient_bytes: int  # held at one moment
    extra_passes: int = 0  # forward-backward passes beside the steps, e.g. for an initialisation
    extra_forwards: int = 0  # forward passes alone, of a method that looks before it changes itself
    lowest_block: int = 0  # lowest transformer block trained, from 0: so deep does backward go
    measurements: Mapping[str, Any] = field(default_factory=dict)  # JSON-ready, what hooks added by name

    @property
    def gain(self) -> float:
        """Decrease of the probe loss in this round (of the own batch's loss where no probe was measured)."""
        gain = self.probe_before - self.probe_after
        return self.loss_before - self.loss_after if math.isnan(gain) else gain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        """The round that `to_dict` wrote; KeyError or TypeError where a field is missing or not known."""
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

    method: str = ""
    settings: RunSettings = field(default_factory=RunSettings)
    rounds: list[Round] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # e.g. {"dev_accuracy": 0.83}

    @property
    def label(self) -> str:
        """The run's name in figures and tables: its settings' label, else its method. It may be set."""
        return self.settings.label or self.method or "run"

    @label.setter
    def label(self, label: str) -> None:
        self.settings = dataclasses.replace(self.settings, label=label)

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

    def common(self) -> dict[str, Any]:
        """What is common to all rounds, JSON-ready."""
        return {"method": self.method, "settings": self.settings.to_dict(), "scores": plain(self.scores)}

    def facts(self) -> dict[str, str]:
        """What a model card says about the run, in words."""
        if not self.rounds:
            return {}
        settings, last = self.settings, self.rounds[-1]
        steps = f"{last.step} optimizer steps of {settings.batch_size} examples"
        return {
            "method": f"{self.label}, learning rate {settings.lr:g}",
            "data": settings.data or "unknown",
            "rounds": f"{len(self)}, {steps}",
            "trained": f"{last.peak_parameters:,} numbers at a moment, {last.total_parameters:,} in all",
            "made with": ", ".join(["xgblora_lab", *(f"{n} {v}" for n, v in settings.versions.items())]),
        }

    def measured(self) -> dict[str, tuple[float | None, float]]:
        """What was measured, by name: before the first round (None: not measured) and after the last."""
        if not self.rounds:
            return {}
        first, last = self.rounds[0], self.rounds[-1]
        found: dict[str, tuple[float | None, float]] = {}
        if math.isfinite(last.probe_after):
            found["probe loss"] = first.probe_before, last.probe_after
        found |= {n: (None, float(v)) for n, v in last.measurements.items() if isinstance(v, int | float)}
        return found | {name: (None, value) for name, value in self.scores.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `History.from_dict` inverts it."""
        return {**self.common(), "rounds": [r.to_dict() for r in self.rounds]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """The history that `to_dict` wrote; KeyError, TypeError or ValueError where it is none."""
        scores = {k: float(v) for k, v in values["scores"].items()}
        rounds = [Round.from_dict(r) for r in values["rounds"]]
        return cls(values["method"], RunSettings.from_dict(values["settings"]), rounds, scores)

    def to_lines(self) -> str:
        """The history as JSON lines: what is common to all rounds, then a line for each round."""
        lines = [{**self.common(), "rounds": len(self)}, *(r.to_dict() for r in self.rounds)]
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    def save(self, path: str | Path) -> None:
        """Write the history as JSON lines, whole or not at all."""
        write_text(Path(path), self.to_lines())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote, or what `Checkpoint` appends to.

        A last line that is not whole (its writer was killed) is no round and is left out.

        FileNotFoundError where there is no such file; where it is no history, see `from_dict`.
        """
        head, *lines = read_lines(path)
        rounds = [{k: v for k, v in line.items() if k != "files"} for line in lines]  # a Checkpoint's
        if head.get("rounds", len(rounds)) != len(rounds):  # a Checkpoint's first line cannot know
            raise ValueError(f"{path} is cut: {head['rounds']} rounds were saved, {len(rounds)} are whole.")
        return cls.from_dict({**head, "rounds": rounds})


def short_name(name: str | Path) -> str:
    """What a record calls a model or data: the last part of a path that exists, anything else as it is."""
    path = Path(name)
    return Path(os.path.abspath(path)).name if str(name) and path.exists() else str(name)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else math.nan
