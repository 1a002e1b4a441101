"""`RaceView`: methods on and off, any budget, every learning rate of the sweep."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ipywidgets
from traitlets import link

from xgblora_lab import figures
from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import blank
from xgblora_lab.figures._lanes import AXES, cost, learning_rate
from xgblora_lab.figures._read import number, plural
from xgblora_lab.report.contents import histories
from xgblora_lab.widgets.canvas import Canvas
from xgblora_lab.widgets.panel import LABEL, Panel, row

TUNED = "tuned: each method's chosen one"


class RaceView(Panel):
    """A race, seen from any side.

    The learning-rate slider goes over the sweep that was run. Every method is then shown at that rate, not at
    the one it was tuned to; a method that was not tried there keeps its own. Figures are plain ones: the
    notebook's one live figure is left to the piece that scrubs.

    Parameters
    ----------
    race : Race, iterable of History, or path
        A race, its histories, or its folder, as for `report`.

    Raises
    ------
    ValueError
        Where no history has a round, or `race` is something else.
    FileNotFoundError
        Where the folder holds no run.
    """

    def __init__(self, race: Any) -> None:
        self._runs = [h for h in histories(race) if len(h)]
        if not self._runs:
            raise ValueError("No history in this race has a round yet: run the race first.")
        labels = list(dict.fromkeys(h.label for h in self._runs))
        rates = sorted({r for h in self._runs if (r := learning_rate(h)) > 0})
        known = [axis for axis in AXES if any(math.isfinite(number(cost(h, axis)[-1])) for h in self._runs)]
        self.canvas = Canvas(live=False)
        self.methods = {
            name: ipywidgets.Checkbox(
                True, description=name, indent=False, tooltip=f"Show {name}",
                layout={"width": "auto", "margin": "0 1.5em 0 0"},
            )
            for name in labels
        }  # fmt: skip
        self.axis = ipywidgets.Dropdown(
            options=[(AXES[axis], axis) for axis in known], description="Budget", style=LABEL,
            layout={"width": "auto"},
        )  # fmt: skip
        options = [(TUNED, 0.0), *((f"{rate:g}", rate) for rate in rates)]
        self.rate = ipywidgets.SelectionSlider(
            options=options, readout=False, continuous_update=False, disabled=len(rates) < 2,
            layout={"flex": "1 1 16em", "width": "auto"},
        )  # fmt: skip
        named = ipywidgets.Dropdown(  # for screen readers: see `panel.round_slider`
            options=options, description="Learning rate", style=LABEL, disabled=len(rates) < 2,
            layout={"width": "22em"},
        )  # fmt: skip
        link((self.rate, "index"), (named, "index"))
        for control in (*self.methods.values(), self.axis, self.rate):
            self._on(control, self.refresh)
        shown = ipywidgets.HTML("<span>Methods shown:</span>", layout={"margin": "0 1em 0 0"})
        super().__init__(
            [row(shown, *self.methods.values()), self.axis, row(named, self.rate)], [self.canvas]
        )
        self.refresh()

    def refresh(self) -> None:
        """Draw the methods that are switched on, at the chosen learning rate, against the chosen budget."""
        runs = [h for h in self._runs if self.methods[h.label].value]
        if not runs:
            self.canvas.draw(blank("Convergence race", "No method is switched on."))
            self.say("No method is switched on.", "Switch one on to see it.")
            return
        rate, kept = self.rate.value, []
        if rate:
            tried = {h.label for h in runs if learning_rate(h) == rate}
            kept = [name for name in self.methods if name in {h.label for h in runs} - tried]
            runs = [_marked(h, rate) if h.label in tried else h for h in runs]
        drawn = figures.race(runs, x=self.axis.value, menu=False)
        self.canvas.draw(drawn)
        heading = f"{plural(len({h.label for h in runs}), 'method')} against {AXES[self.axis.value]}, "
        heading += "each at its chosen learning rate." if not rate else f"learning rate {rate:g} for all."
        if kept:
            heading += f" It was not tried for {', '.join(kept)}, shown at the chosen one."
        self.say(heading, drawn.text)


def _marked(history: History, rate: float) -> History:
    """A copy of the run, counted as chosen where it has this learning rate."""
    settings = replace(history.settings, chosen=learning_rate(history) == rate)
    return replace(history, settings=settings)
