"""`Stepper`: press *next round* and see what one round did."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ipywidgets

from xgblora_lab import figures
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.bench.records import History, Round
from xgblora_lab.figures._read import brief, natural, plural, short
from xgblora_lab.widgets.canvas import Canvas, Live
from xgblora_lab.widgets.panel import LABEL, Panel, button, round_slider, row

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

# Seconds between two rounds in which the kernel takes messages. They come from another thread by way of a
# socket, so that giving way for a single turn of the event loop would often miss a click on Pause.
TURN = 0.02


class Stepper(Panel):
    """A bench under the reader's hands.

    Moving the slider looks at an earlier round: nothing is trained and nothing is forgotten. *Rewind to here*
    takes the bench back to it. *Run* trains one round per turn of the kernel's event loop, so that *Pause*
    and the slider answer between rounds. Every button is a method too (`next_round`, `run`, …).

    Parameters
    ----------
    bench : Bench
        One without a `Spectrum` hook gets one.
    module : str, optional
        Whose spectrum is drawn at first. Default: the one with the largest update.
    live : bool or "auto", default "auto"
        As for `Canvas`.

    Raises
    ------
    ValueError
        Where the bench adapts no such module.
    """

    def __init__(self, bench: Bench, module: str | None = None, live: Live = "auto") -> None:
        if module is not None and module not in bench.modules:
            raise ValueError(f"The bench adapts no module {module!r}; it has {', '.join(bench.modules)}.")
        self.bench = bench
        if not any(isinstance(hook, Spectrum) for hook in bench.hooks):
            bench.hooks.append(Spectrum())
        self.task: asyncio.Task[None] | None = None  # of the present run, where there is an event loop
        self._pausing = False
        self._note = ""
        self._dropped: dict[int, int] = {}  # dropped round -> rounds that had been recorded by then
        self._frames: dict[int, int] = {}  # round -> frame of the figure

        self.canvas = Canvas(live)
        self.next_button = button("Next round", "Train one round", "primary")
        self.run_button = button("Run", "Train several rounds; Pause stops after the present one")
        self.pause_button = button("Pause", "Stop after the present round")
        self.reset_button = button("Reset", "Go back to the base model and forget all rounds")
        self.count = ipywidgets.BoundedIntText(
            10, min=1, max=100_000, description="rounds to run", style=LABEL, layout={"width": "12em"}
        )
        self.slider, field = round_slider(self.canvas.live)
        self.rewind_button = button("Rewind to here", "Forget the rounds after this one")
        self.drop_button = button("Drop its boosters", "Take this round's boosters out of the model")
        names = sorted(bench.modules, key=natural)
        self.module = ipywidgets.Dropdown(
            options=[("the one with the largest update", ""), *((n, n) for n in names)], value=module or "",
            description="Spectrum of module", style=LABEL, layout={"width": "auto"},
        )  # fmt: skip
        self._on(self.next_button, self.next_round)
        self._on(self.run_button, self.run)
        self._on(self.pause_button, self.pause)
        self._on(self.reset_button, self.reset)
        self._on(self.rewind_button, self.rewind)
        self._on(self.drop_button, self.drop)
        self._on(self.slider, self._look)
        self._on(self.module, self.refresh)
        super().__init__(
            [
                row(self.next_button, self.run_button, self.count, self.pause_button, self.reset_button),
                row(field, self.slider, self.rewind_button, self.drop_button),
                self.module,
            ],
            [self.canvas],
        )
        with self.guard():
            self.refresh()

    # What the buttons do

    def next_round(self) -> None:
        """Train one round and look at it."""
        self._run_now(1)

    def run(self, n: int | None = None) -> None:
        """Train up to n rounds.

        Inside an event loop, as in a notebook, it returns at once and the rounds follow, one per turn;
        `await stepper.task` waits for them. Elsewhere it returns when they are done.

        Parameters
        ----------
        n : int, optional
            Default: as many as the field says.

        Raises
        ------
        RuntimeError
            Where a run is under way.
        """
        n = self.count.value if n is None else n
        if self.running:
            raise RuntimeError("A run is under way: pause it first.")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._run_now(n)
            return
        self.task = loop.create_task(self._run(n))
        self._enable()

    def pause(self) -> None:
        """Stop the run after its present round."""
        self._pausing = True

    def rewind(self) -> None:
        """Take the bench back to the end of the round under the slider, and forget the later ones."""
        self._check_idle()
        self._note = ""
        self.bench.rewind(self.slider.value + 1 if len(self.bench.history) else 0)
        self.refresh()

    def drop(self) -> None:
        """Take the boosters of the round under the slider out of the model; look at what is left now."""
        self._check_idle()
        self._note = ""
        self.bench.drop(self.slider.value)
        self.refresh(newest=True)

    def reset(self) -> None:
        """Take the bench back to its base."""
        self._check_idle()
        self._note = ""
        self.bench.rewind(0)
        self.refresh()

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.task is not None and not self.task.done()

    def refresh(self, newest: bool = False) -> None:
        """Draw the history as it is now, also after rounds that were run from a cell.

        Parameters
        ----------
        newest : bool, default False
            Look at the last round; otherwise at the one that was looked at.
        """
        done = len(self.bench.history)
        if self.bench.method.additive:
            gone = [t for t in range(len(self.bench.ensemble)) if not self.bench.ensemble[t]]
            self._dropped = {t: self._dropped.get(t, done) for t in gone}
        with self.quietly():
            follow = newest or self.slider.value >= self.slider.max
            self.slider.max = max(0, done - 1)
            self.slider.value = self.slider.max if follow else min(self.slider.value, self.slider.max)
        self._enable()
        if not done:
            self._frames = {}
            self.canvas.clear()
            planned = plural(self.bench.planned_rounds, "round")
            self.say(f"The base model: no round yet, {planned} planned.", "Press “Next round”.")
            return
        drawn = figures.spectrum(self._as_it_stands(), self.module.value or None)
        self._frames = {int(frame.name): i for i, frame in enumerate(drawn.plot.frames)}
        self.canvas.draw(drawn)
        self._look()

    # Running

    def _run_now(self, n: int) -> None:
        self._check_idle()
        for _ in self._steps(n):
            pass

    async def _run(self, n: int) -> None:
        with self.guard():
            for _ in self._steps(n):
                await asyncio.sleep(TURN)
        self.task = None
        self._enable()

    def _steps(self, n: int) -> Iterator[None]:
        """Train and show round by round until n are done, the reader pauses, or a hook ends the run."""
        self._note, self._pausing = "", False
        rounds, done = self.bench.rounds(n), 0
        try:
            for _ in rounds:
                done += 1
                self.refresh(newest=n == 1)
                yield
                if self._pausing and done < n:
                    self._note = f"Paused after {done} of {plural(n, 'round')}."
                    break
            else:
                if done < n:
                    self._note = f"A hook ended the run after {done} of {plural(n, 'round')}."
        finally:
            rounds.close()  # type: ignore[attr-defined]
            if len(self.bench.history) != self.slider.max + 1 or self._note:
                self.refresh()  # a round that failed late is on record all the same

    def _check_idle(self) -> None:
        if self.running:
            raise RuntimeError("A run is under way: pause it first.")

    # Showing

    def _look(self) -> None:
        """Show the round under the slider, from the history alone."""
        t = self.slider.value
        record, measured = self._as_it_stands()[t], self.bench.history[t]
        if t in self._frames:
            sentence = self.canvas.scrub(self._frames[t])
        else:
            sentence = "No spectrum was measured in this round."
        if record is measured:
            lines = _summary(record, self.bench.planned_rounds)
        else:
            text = f"The model as it is now: residual loss {brief(record.probe_after)}; "
            lines = [text + f"round {t} had measured {brief(measured.probe_after)}."]
        self.say(self._note, *lines, sentence, self._modules(record), self._absent())

    def _as_it_stands(self) -> History:
        """The history; where boosters were dropped after the last round, that round as the model is now."""
        history, last = self.bench.history, len(self.bench.history) - 1
        if not any(recorded > last for recorded in self._dropped.values()):
            return history
        key = (self.bench.ensemble.version, last)
        if self._now is None or self._now[0] != key:
            split = "dev" if self.bench.task.size("dev") else "train"
            loss = self.bench.evaluate(split, limit=self.bench.probe_size or None)["loss"]
            spectrum = {name: self.bench.spectrum(name).tolist() for name in self.bench.modules}
            measurements = {**history[last].measurements, "spectrum": spectrum}
            record = dataclasses.replace(history[last], probe_after=loss, measurements=measurements)
            self._now = (key, History(history.method, history.settings, [*history.rounds[:last], record]))
        return self._now[1]

    _now: tuple[tuple[int, int], History] | None = None

    def _modules(self, record: Round) -> str:
        every, chosen = list(self.bench.modules), record.modules
        names = short(every)
        which = ", ".join(names.get(n, n) for n in chosen[:12]) + (", …" if len(chosen) > 12 else "")
        count = f"all {len(every)}" if len(chosen) == len(every) > 1 else f"{len(chosen)} of {len(every)}"
        return f"Modules chosen: {count} ({which})."

    def _absent(self) -> str:
        """Which rounds' boosters are out of the model, and what the figure shows of that."""
        if not self._dropped:
            return ""
        gone = ", ".join(map(str, sorted(self._dropped)))
        text = f"Out of the model: the boosters of round {gone}."
        if self._as_it_stands() is not self.bench.history:
            text += " The last round is drawn as the model is now, the others as they were measured."
        return text

    def _enable(self) -> None:
        """Which buttons can be pressed now, and in a tooltip why not."""
        method, running = self.bench.method, self.running
        done = len(self.bench.history)
        wait = "A run is under way: pause it first" if running else ""
        none = "" if done else "There is no round yet"
        fixed = "" if method.rewindable else f"{method.name} keeps no earlier rounds, so it cannot go back"
        single = "" if method.additive else f"{method.name} has no separate boosters; boosting does"
        for control, hint, why in (
            (self.next_button, "Train one round", wait),
            (self.run_button, "Train several rounds; Pause stops after the present one", wait),
            (self.pause_button, "Stop after the present round", "" if running else "Nothing is running"),
            (self.reset_button, "Go back to the base model and forget all rounds", fixed or wait or none),
            (self.rewind_button, "Forget the rounds after this one", fixed or wait or none),
            (self.drop_button, "Take this round's boosters out of the model", single or wait or none),
        ):
            control.disabled, control.tooltip = bool(why), why or hint
        self.count.disabled = running
        self.slider.disabled = done < 2


def _summary(record: Round, planned: int) -> list[str]:
    done = record.index + 1
    plan = f"{done} of {planned} planned" if done <= planned else f"{done} done, {planned} were planned"
    text = f"Round {record.index} ({plan}): residual loss {brief(record.probe_before)} → "
    text += f"{brief(record.probe_after)}, gain {brief(record.gain)}."
    own = f"Own batch {brief(record.loss_before)} → {brief(record.loss_after)};"
    return [text, f"{own} {plural(len(record.losses), 'step')} in {brief(record.seconds)} s."]
