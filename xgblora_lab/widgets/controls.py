"""The stepper's controls: what they are called, where they stand, and when they can be pressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets

from xgblora_lab.figures._read import natural
from xgblora_lab.widgets.canvas import Canvas, Live
from xgblora_lab.widgets.knobs import Knobs
from xgblora_lab.widgets.panel import LABEL, Panel, button, round_slider, row

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

HEIGHT = 350  # pixels of the figure: with words and controls, a screen of 720 has room for all
ROUNDS = 10  # to run, where as many are left
HINTS = {
    "next": "Train one round",
    "run": "Train several rounds; Pause stops after the present one",
    "pause": "Stop after the present round",
    "reset": "Go back to the base model and forget all rounds",
    "rewind": "Forget the rounds after this one",
    "drop": "Take this round's boosters out of the model",
    "keep": "Draw this run beside the ones that follow",
    "undo": "Make the run what it was before that",
}


class Controls(Panel):
    """Every control of the stepper, which calls the method of its name.

    Parameters
    ----------
    bench : Bench
        What is stepped.
    module : str or None
        Whose spectrum is drawn at first; None: the one with the largest update.
    live : bool or "auto"
        As for `Canvas`.
    """

    bench: Bench
    training: bool  # whether a round is being trained just now

    @property
    def undoing(self) -> str:
        """What could be undone, e.g. "reset"; empty where there is nothing."""
        return ""

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return False

    def __init__(self, bench: Bench, module: str | None, live: Live) -> None:
        self.canvas = Canvas(live, HEIGHT)
        self.knobs = Knobs(bench.method, len(bench.modules))
        if len(bench.history):
            self.knobs.take(bench.history[-1])
        self.next_button = button("Next round", HINTS["next"], "primary")
        self.run_button = button("Run", HINTS["run"])
        self.pause_button = button("Pause", HINTS["pause"])
        self.reset_button = button("Reset", HINTS["reset"])
        self.undo_button = button("Undo", HINTS["undo"])
        self.count = ipywidgets.BoundedIntText(
            ROUNDS, min=0, max=100_000, description="rounds to run", style=LABEL, layout={"width": "11em"}
        )
        self.busy = ipywidgets.HTML()
        self.slider, field = round_slider(self.canvas.live)
        self.rewind_button = button("Rewind to here", HINTS["rewind"])
        self.drop_button = button("Drop its boosters", HINTS["drop"])
        self.keep_button = button("Keep to compare", HINTS["keep"])
        names = sorted(bench.modules, key=natural)
        self.module = ipywidgets.Dropdown(
            options=[("the one with the largest update", ""), *((n, n) for n in names)], value=module or "",
            description="Spectrum of module", style=LABEL, layout={"width": "auto"},
        )  # fmt: skip
        self._listen()
        run = (self.next_button, self.run_button, self.count, self.pause_button, self.reset_button)
        look = (field, self.slider, self.rewind_button, self.drop_button, self.keep_button)
        following = ipywidgets.HTML("<strong>Next round:</strong>", layout={"margin": "0 .5em 0 .2em"})
        chosen = (following, *self.knobs.controls.values(), *([self.module] if len(names) > 1 else []))
        super().__init__([row(*run, self.undo_button, self.busy), row(*look), row(*chosen)], [self.canvas])

    def _listen(self) -> None:
        """Let every control call the method of the piece that has its name."""
        for control, name in (
            (self.next_button, "next_round"),
            (self.run_button, "run"),
            (self.pause_button, "pause"),
            (self.reset_button, "reset"),
            (self.undo_button, "undo"),
            (self.rewind_button, "rewind"),
            (self.drop_button, "drop"),
            (self.keep_button, "keep"),
            (self.slider, "_look"),
            (self.module, "refresh"),
            (self.count, "_ask"),
            *((control, "_change") for control in self.knobs.controls.values()),
        ):
            self._on(control, getattr(self, name))

    def _enable(self) -> None:
        """Which buttons can be pressed now, and in a tooltip why not."""
        method, running = self.bench.method, self.running
        done = len(self.bench.history)
        wait = "A run is under way: pause it first" if running else ""
        wait = wait or ("A round is being trained" if self.training else "")
        none = "" if done else "There is no round yet"
        fixed = "" if method.rewindable else f"{method.name} keeps no earlier rounds, so it cannot go back"
        single = "" if method.additive else f"{method.name} has no separate boosters; boosting does"
        undo = "" if self.undoing else "Nothing was dropped, rewound or reset"
        for control, hint, why in (
            (self.next_button, "next", wait),
            (self.run_button, "run", wait),
            (self.pause_button, "pause", "" if running else "Nothing is running"),
            (self.reset_button, "reset", fixed or wait or none),
            (self.rewind_button, "rewind", fixed or wait or none),
            (self.drop_button, "drop", single or wait or none),
            (self.keep_button, "keep", wait or none),
            (self.undo_button, "undo", wait or undo),
        ):
            control.disabled, control.tooltip = bool(why), why or HINTS[hint]
        self.undo_button.description = f"Undo {self.undoing}".strip()
        self.count.disabled = running
        self.slider.disabled = done < 2
