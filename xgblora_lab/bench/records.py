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

from xgblora_lab.files import plain, write_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunSettings:
    """What a run was made of. Every field may be left out; its default then says that nothing is known.

    A changed copy is `dataclasses.replace(settings, …)`.

    Parameters
    ----------
    label : str
        Name in figures and tables; tells variants of one method apart.
    options : mapping of str to JSON value
        The method's options, with which `make_method` makes it again.
    lr : float
        Peak learning rate; nan where it is not known.
    model, data : str
        What was trained, and on what.
    kind, metric, greater_is_better : str, str, bool
        Kind of task, e.g. "causal-lm"; name of its main score, e.g. "accuracy"; whether more of it is better.
    steps, batch_size, accumulation, probe_size : int or None
        K, the planned optimizer steps; examples per step and process; micro-batches that these are split
        into; examples of the probe batch.
    targets : str or sequence of str
        The linear maps that were adapted, as in `find_modules`.
    seed, data_seed : int or None
        The seeds of initialisations and module choice, and of the order of the data.
    precision, device : str
        accelerate's mixed precision ("no", "bf16" or "fp16"); type of the device, e.g. "cpu".
    processes : int or None
        How many processes trained together.
    flops_per_token : int or None
        Floating-point operations per token trained on.
    truth_spectrum : mapping of str to sequence of float
        Module to the singular values of the update to find, where the task knows it.
    versions : mapping of str to str
        Package to version.
    chosen : bool
        Whether the run has the tuned options of a race.
    merges : bool
        Whether a module's update gains a factor each time that the module is chosen.
    rank_bound : int or None
        The most that one choice of a module can add to the rank of its update (where the method does not
        merge: the largest rank at any time). None where the shape alone is a bound.
    """

    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float = math.nan
    model: str = ""
    data: str = ""
    kind: str = ""
    metric: str = ""
    greater_is_better: bool = False
    steps: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    targets: str | Sequence[str] = ""
    seed: int | None = None
    data_seed: int | None = None
    probe_size: int | None = None
    precision: str = ""
    processes: int | None = None
    device: str = ""
    flops_per_token: int | None = None
    truth_spectrum: Mapping[str, Sequence[float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    chosen: bool = False
    merges: bool = False
    rank_bound: int | None = None

    def __post_init__(self) -> None:
        for name in ("options", "truth_spectrum", "versions"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        return RunSettings.from_dict, (self.to_dict(),)  # read-only views of mappings cannot be pickled

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `RunSettings.from_dict` inverts it."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """The settings that `to_dict` wrote.

        Parameters
        ----------
        values : mapping
            Field to value. A field that is missing, as in an older file, keeps its default.

        Raises
        ------
        ValueError
            Where there is a key that is no field.
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
class Round:
    """The record of one round: κ optimizer steps, and what they did.

    Losses are means in the task's own unit (nats for language models and classifiers). *Own batch* is the
    round's first training batch, *probe* the bench's fixed probe batch; nan where not measured.

    Parameters
    ----------
    index, method : int, str
        t, from 0; name of the method, e.g. "xgblora".
    step : int
        Optimizer steps done at the round's end, counted from the run's start.
    modules : tuple of str
        Modules trained in this round.
    losses, learning_rates, gradient_norms : tuple of float, κ long
        At every step: the training loss before that step's update, the learning rate, and the global 2-norm
        of the gradient over the round's trainable parameters.
    loss_before, loss_after : float
        Loss on the own batch before the round and after it (merged).
    probe_before, probe_after : float
        Loss on the probe batch before the round and after it (merged).
    tokens : int
        Real (unpadded) tokens trained on in this round, by all processes.
    seconds : float
        Wall time of the round.
    peak_parameters, total_parameters : int
        Trainable numbers at one moment of this round (boosters and head), and distinct numbers trained since
        the run's start, the boosters of all rounds summed.
    optimizer_bytes, gradient_bytes : int
        Optimizer state at the round's end, and gradients held at one moment.
    extra_passes, extra_forwards : int, default 0
        Beyond the κ steps: forward-backward passes, e.g. of an initialisation that looks at the gradient, and
        forward passes without backward, of a method that looks before it changes itself.
    lowest_block : int, default 0
        The lowest transformer block that was trained, from 0: so deep does backward go.
    measurements : mapping of str to JSON value
        What hooks added, by name.
    """

    index: int
    method: str
    step: int
    modules: tuple[str, ...]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    loss_before: float
    loss_after: float
    probe_before: float
    probe_after: float
    tokens: int
    seconds: float
    peak_parameters: int
    total_parameters: int
    optimizer_bytes: int
    gradient_bytes: int
    extra_passes: int = 0
    extra_forwards: int = 0
    lowest_block: int = 0
    measurements: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "measurements", MappingProxyType(dict(self.measurements)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Round.from_dict, (self.to_dict(),)  # the read-only view of the measurements cannot be pickled

    @property
    def gain(self) -> float:
        """Decrease of the probe loss in this round (of the own batch's loss where no probe was measured)."""
        gain = self.probe_before - self.probe_after
        return self.loss_before - self.loss_after if math.isnan(gain) else gain

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `Round.from_dict` inverts it."""
        names = [f.name for f in dataclasses.fields(self)]
        return {name: plain(getattr(self, name)) for name in names}

    def to_line(self) -> str:
        """The record as a line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        """The round that `to_dict` wrote.

        Raises
        ------
        KeyError
            Where a field without a default is missing.
        TypeError
            Where there is a key that is no field.
        """
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
    """The rounds of one run, its settings, and the scores it ended with.

    Parameters
    ----------
    method : str
        Name of the method.
    settings : RunSettings
        Options, seeds, model, data and versions.
    rounds : list of Round
        In order.
    scores : dict of str to float
        Scores at the end, e.g. ``{"dev_accuracy": 0.83, "test_accuracy": 0.82}``.
    """

    method: str = ""
    settings: RunSettings = field(default_factory=RunSettings)
    rounds: list[Round] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

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

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `History.from_dict` inverts it."""
        return {
            "method": self.method,
            "settings": self.settings.to_dict(),
            "scores": plain(self.scores),
            "rounds": [r.to_dict() for r in self.rounds],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """The history that `to_dict` wrote.

        Raises
        ------
        KeyError
            Where a part is missing.
        TypeError
            Where a round holds a key that is no field.
        ValueError
            Where the settings hold a key that is no field.
        """
        scores = {k: float(v) for k, v in values["scores"].items()}
        rounds = [Round.from_dict(r) for r in values["rounds"]]
        return cls(values["method"], RunSettings.from_dict(values["settings"]), rounds, scores)

    def to_lines(self) -> str:
        """The history as JSON lines: what is common to all rounds, then a line for each round."""
        common = {k: v for k, v in self.to_dict().items() if k != "rounds"}
        return json.dumps(common, allow_nan=False) + "\n" + "".join(r.to_line() for r in self.rounds)

    def save(self, path: str | Path) -> None:
        """Write the history as JSON lines, whole or not at all."""
        write_text(Path(path), self.to_lines())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote, or what `Checkpoint` appends to.

        A last line that is not whole (its writer was killed) is no round and is left out.

        Raises
        ------
        FileNotFoundError
            Where there is no such file.
        KeyError, TypeError, ValueError
            Where the file is no history: see `from_dict`.
        """
        first, *lines = Path(path).read_text(encoding="utf-8").split("\n")
        rounds = [json.loads(line) for line in lines[:-1]]
        return cls.from_dict({**json.loads(first), "rounds": rounds})


def short_name(name: str | Path) -> str:
    """What a record calls a model or data.

    Parameters
    ----------
    name : str or Path
        A hub id, or the path of a folder or file.

    Returns
    -------
    str
        A path's last part; anything else as it is.
    """
    path = Path(name)
    return Path(os.path.abspath(path)).name if str(name) and path.exists() else str(name)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else math.nan
