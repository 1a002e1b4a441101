"""`SpectrumExplorer`: module × round × reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ipywidgets

from xgblora_lab import figures
from xgblora_lab.bench.records import History
from xgblora_lab.figures._read import brief, measured, natural, number, single, spectra
from xgblora_lab.widgets.canvas import Canvas, Live
from xgblora_lab.widgets.panel import LABEL, Panel, round_slider, row


class SpectrumExplorer(Panel):
    """The spectrum of any module's accumulated update after any round, beside a reference.

    Where the run measured how its leading singular directions align with the truth's, the words give it for
    the module and round shown, and a second figure for all of them.

    Parameters
    ----------
    history : History or Bench
        A bench's history is read anew at every change.
    references : mapping of str to History, optional
        Name to another run, full fine-tuning for example, whose last spectrum is the reference. The planted
        truth is offered where the task knows it.
    live : bool or "auto", default "auto"
        As for `Canvas`.

    Raises
    ------
    ValueError
        Where no spectrum was measured.
    """

    def __init__(
        self, history: Any, references: Mapping[str, History] | None = None, live: Live = "auto"
    ) -> None:
        self._source = history
        names = sorted(spectra(self.history)[1], key=natural)
        if not names:
            raise ValueError(figures.spectrum(self.history).text)
        self._frames: dict[int, int] = {}  # round -> frame of the figure
        self._references: dict[str, Any] = {}
        if self.history.settings.truth_spectrum:
            self._references["the planted truth"] = None
        self._references |= dict(references or {}) | {"none": {}}

        self.canvas = Canvas(live)
        self.aligned = Canvas(live=False)
        largest = figures.spectrum(self.history).plot.layout.title.subtitle.text.partition(" · ")[0]
        wide = {"width": "auto"}
        self.module = ipywidgets.Dropdown(
            options=names, value=largest, description="Module", style=LABEL, layout=wide
        )
        self.reference = ipywidgets.Dropdown(
            options=list(self._references), description="Reference", style=LABEL, layout=wide
        )
        self.slider, field = round_slider(self.canvas.live)
        self._on(self.module, self.refresh)
        self._on(self.reference, self.refresh)
        self._on(self.slider, self._look)
        super().__init__([self.module, self.reference, row(field, self.slider)], [self.canvas, self.aligned])
        self.refresh()

    @property
    def history(self) -> History:
        """The run that is shown."""
        return single(getattr(self._source, "history", self._source))

    def refresh(self) -> None:
        """Draw the chosen module against the chosen reference."""
        target = self._references[self.reference.value]
        drawn = figures.spectrum(self.history, self.module.value, target=target)
        frames = {int(frame.name): i for i, frame in enumerate(drawn.plot.frames)}
        if frames != self._frames:
            with self.quietly():
                follow = self.slider.value == self.slider.max
                self.slider.max = max(frames)
                self.slider.value = self.slider.max if follow else self.slider.value
            if measured(self.history, "alignment") or measured(self.history, "distance"):
                self.aligned.draw(figures.alignment(self.history))
        self._frames = frames
        self.canvas.draw(drawn)
        self._look()

    def _look(self) -> None:
        t, name = self.slider.value, self.module.value
        if t not in self._frames:
            self.say(f"{name}. No spectrum was measured in round {t}.")
            return
        sentence = self.canvas.scrub(self._frames[t])
        assert self.canvas.figure is not None
        self.say(f"{name}. {sentence}", self._alignment(t, name), self.canvas.figure.text)

    def _alignment(self, t: int, name: str) -> str:
        """How near the module's update has come to the truth; empty where it was not measured."""
        record = next(r for r in self.history if r.index == t)
        known = []
        for key, what in (
            ("alignment", "mean squared cosine of its leading singular directions with the truth's"),
            ("distance", "relative distance to the truth"),
        ):
            value = number((record.measurements.get(key) or {}).get(name))
            if not math.isnan(value):
                known.append(f"{what} {brief(value)}")
        return f"Alignment: {'; '.join(known)}." if known else ""
