"""`SpectrumExplorer`: module × round × reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets

from .. import figures
from ..figures.data import brief, measured, natural, number, single, spectra
from ..records import History
from .canvas import Canvas, Live
from .panel import LABEL, Panel


class SpectrumExplorer(Panel):
    """The spectrum of any module's accumulated update after any round, beside a reference.

    history: a `History`, or a bench, whose history is read anew at every change. references: name → the
    `History` of another run, full fine-tuning for example, whose last spectrum is the reference; the planted
    truth is offered where the task knows it. live: as for `Canvas`. Raises ValueError where no spectrum was
    measured.

    Where the run measured how its leading singular directions align with the truth's, the words give it for
    the module and round shown, and a second figure for all of them.
    """

    def __init__(
        self, history: Any, references: Mapping[str, History] | None = None, live: Live = "auto"
    ) -> None:
        self._source = history
        names = sorted(spectra(self.history)[1], key=natural)
        if not names:
            raise ValueError(figures.spectrum(self.history).text)
        self._references: dict[str, Any] = {}
        if self.history.settings.get("truth_spectrum"):
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
        self.slider = ipywidgets.SelectionSlider(
            options=[0], description="Round", style=LABEL, continuous_update=self.canvas.live, layout=wide
        )
        self._on(self.module, self.refresh)
        self._on(self.reference, self.refresh)
        self._on(self.slider, self._look)
        super().__init__([self.module, self.reference, self.slider], [self.canvas, self.aligned])
        self.refresh()

    @property
    def history(self) -> History:
        return single(getattr(self._source, "history", self._source))

    def refresh(self) -> None:
        """Draw the chosen module against the chosen reference."""
        rounds = spectra(self.history)[0]
        with self.quietly():
            known = list(self.slider.options)
            if known != rounds:
                follow = self.slider.value == known[-1]
                kept = rounds[-1] if follow or self.slider.value not in rounds else self.slider.value
                self.slider.options, self.slider.value = rounds, kept
                if measured(self.history, "alignment"):
                    self.aligned.draw(figures.alignment(self.history))
        target = self._references[self.reference.value]
        self.canvas.draw(figures.spectrum(self.history, self.module.value, target=target))
        self._look()

    def _look(self) -> None:
        t, name = self.slider.value, self.module.value
        sentence = self.canvas.scrub(list(self.slider.options).index(t))
        record = next(r for r in self.history if r.index == t)
        words = []
        for key, what in (
            ("alignment", "mean squared cosine of the leading singular directions with the truth's"),
            ("distance", "relative distance to the truth"),
        ):
            value = number((record.measurements.get(key) or {}).get(name))
            if value == value:
                words.append(f"{what} {brief(value)}")
        aligned = "; ".join(words)
        drawn = self.canvas.figure
        assert drawn is not None
        self.say(
            f"{name}. {sentence}", aligned[:1].upper() + aligned[1:] + "." if aligned else "", drawn.text
        )
