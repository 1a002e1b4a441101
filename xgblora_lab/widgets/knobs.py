"""`Knobs`: what the next round is trained with; it is recorded in the round and rewound with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ipywidgets

from xgblora_lab.bench.hooks import Hook, Run
from xgblora_lab.bench.records import Round
from xgblora_lab.figures._read import brief
from xgblora_lab.methods.base import Method
from xgblora_lab.methods.xgblora import SELECTIONS
from xgblora_lab.widgets.panel import LABEL

OPTIONS = "options"  # the measurement's name
NAMES = {"lr": "learning rate", "steps_per_round": "κ, steps", "rank": "rank", "selection": "modules"}


class Options(Hook):
    """Record what each round was trained with: `{"options": {"lr": …, "steps_per_round": …}}`."""

    def measure(self, bench: Run) -> Mapping[str, Any]:
        return {OPTIONS: {name: getattr(bench.method, name) for name in changeable(bench.method)}}


def changeable(method: Method) -> list[str]:
    """The options that may change between two rounds.

    The learning rate and κ of every method. Rank and selection only where each round has boosters of its own.
    """
    own = {f.name for f in dataclasses.fields(method)}
    return [name for name in NAMES if name in own and (method.additive or name in ("lr", "steps_per_round"))]


def change(method: Method, **options: Any) -> None:
    """Change options of a method between two rounds; all or none.

    Raises
    ------
    ValueError
        For a value that the method does not accept.
    """
    checked = dataclasses.replace(method, **options)
    for name in options:
        setattr(method, name, getattr(checked, name))


class Knobs:
    """The controls.

    Parameters
    ----------
    method : Method
        That of the bench; its options are changed.
    modules : int
        How many modules the bench adapts. A selection among one is not offered.
    """

    def __init__(self, method: Method, modules: int) -> None:
        self.method = method
        self.begun = {name: getattr(method, name) for name in changeable(method)}
        self.controls: dict[str, Any] = {}
        for name, value in self.begun.items():
            if name != "selection" or modules > 1:
                self.controls[name] = _control(name, value)

    def apply(self) -> None:
        """Give the method what the controls say; where it refuses, they go back."""
        try:
            change(self.method, **{name: control.value for name, control in self.controls.items()})
        except ValueError:
            self.show()
            raise

    def take(self, record: Round | None) -> None:
        """Go back to what a round was trained with; None: to what the run began with."""
        recorded = {} if record is None else record.measurements.get(OPTIONS) or {}
        change(self.method, **{name: recorded.get(name, value) for name, value in self.begun.items()})
        self.show()

    def show(self) -> None:
        """Let the controls say what the method has."""
        for name, control in self.controls.items():
            control.value = getattr(self.method, name)


def in_words(record: Round) -> str:
    """What a round was trained with."""
    options = record.measurements.get(OPTIONS) or {}
    said = [f"{NAMES[n]} {v if isinstance(v, str) else brief(v)}" for n, v in options.items() if n in NAMES]
    return f"Trained with {', '.join(said)}." if said else ""


def _control(name: str, value: Any) -> Any:
    common = {"description": NAMES[name], "style": LABEL, "value": value}
    if name == "selection":
        return ipywidgets.Dropdown(options=SELECTIONS, layout={"width": "13em"}, **common)
    if name == "lr":
        return ipywidgets.FloatText(step=0.01, layout={"width": "12em"}, **common)
    return ipywidgets.BoundedIntText(
        min=1, max=100_000 if name == "steps_per_round" else 1024, layout={"width": "9em"}, **common
    )
