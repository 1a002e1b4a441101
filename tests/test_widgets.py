"""The interactive pieces, driven from Python: what a click does, what is shown, and what is never trained."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import IPython.display
import nbformat
import pytest
import torch
from ipywidgets.widgets import widget
from synthetic import history, race
from toy import ToyTask

from xgblora_lab import Bench, Full, Hook, LoRA, Spectrum, XGBLoRA, figures, first_look, matrix
from xgblora_lab.bench.records import History
from xgblora_lab.course.execute import hidden_errors
from xgblora_lab.widgets import Canvas, RaceView, SpectrumExplorer, Stepper, canvas

instances = getattr(
    widget, "_instances", widget.Widget.__dict__.get("widgets")
)  # since ipywidgets 8, and before


class Broken(Hook):
    """Raises in the middle of one round, once."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        self.at, self.error = at, error or RuntimeError("the hook fell off its hinge")

    def on_step(self, bench: Bench, step: int, loss: torch.Tensor) -> None:
        if len(bench.history) == self.at and step == 1:
            self.at = -1
            raise self.error


@pytest.fixture(autouse=True)
def no_loop() -> Iterator[None]:
    """Tests here bring their own event loop; a browser of other tests marks its own as running for ever."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


def small(method: Any = None, hooks: Any = (), **options: Any) -> Bench:
    model, task = matrix(d=8, k=8)
    method = method or XGBLoRA(steps_per_round=5, lr=0.1)
    return Bench(model, task, method, steps=50, batch_size=1, hooks=hooks, **options)


@pytest.fixture(params=[True, False], ids=["live", "plain"])
def stepper(request: pytest.FixtureRequest) -> Stepper:
    return Stepper(small(), live=request.param)


def shown(piece: Any) -> list[float]:
    """The spectrum that is drawn now."""
    drawn = canvas._live if piece.canvas.live else piece.canvas.figure.plot
    (trace,) = (t for t in drawn.data if t.name == "after the round under the slider")
    return [float(v) for v in trace.y if v == v]


def plain_figure(piece: Any) -> dict[str, Any]:
    """What the `Output` of a plain canvas holds."""
    (output,) = piece.canvas.children
    found: dict[str, Any] = output.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    return found


def test_a_round_changes_the_words_and_the_figure(stepper: Stepper) -> None:
    assert "no round yet, 10 rounds planned" in stepper.text
    assert shown(stepper) == []  # the target alone
    drawn = canvas._live if stepper.canvas.live else stepper.canvas.figure.plot
    (target,) = (t for t in drawn.data if t.name == "target")
    assert list(target.y) == pytest.approx([1 / i for i in range(1, 9)])
    stepper.next_button.click()
    first, said = shown(stepper), stepper.text
    assert len(first) == 1
    record = stepper.bench.history[0]
    assert f"residual loss {record.probe_before:.3g} → {record.probe_after:.3g}" in said
    assert "Modules chosen: 1 of 1 (matrix)." in said
    assert 'role="status"' in stepper._words.value
    stepper.next_button.click()
    assert len(shown(stepper)) == 2
    assert shown(stepper) == pytest.approx(stepper.bench.spectrum("matrix").tolist()[:2], rel=1e-5)
    assert stepper.text != said
    assert stepper.error == ""


def test_looking_back_trains_nothing_and_forgets_nothing(stepper: Stepper) -> None:
    seen = []
    for _ in range(6):
        stepper.next_button.click()
        seen.append((shown(stepper), stepper.text))
    before = stepper.bench.update("matrix"), list(stepper.bench.history)
    for t in (0, 3, 5, 2):
        stepper.slider.value = t
        assert (shown(stepper), stepper.text) == seen[t]
    assert torch.equal(stepper.bench.update("matrix"), before[0])
    assert list(stepper.bench.history) == before[1]
    stepper.next_button.click()
    assert stepper.slider.value == stepper.slider.max == 6


def test_rewind_drop_and_reset_do_what_the_bench_says(stepper: Stepper) -> None:
    stepper.run(5)
    there = stepper.bench.update("matrix", upto=3)
    stepper.slider.value = 2
    stepper.rewind_button.click()
    assert len(stepper.bench.history) == 3
    assert torch.equal(stepper.bench.update("matrix"), there)
    assert stepper.slider.max == 2

    stepper.slider.value = 1
    boosters = stepper.bench.ensemble[1]["matrix"]
    measured = stepper.bench.history[2].probe_after
    stepper.drop_button.click()
    assert torch.allclose(stepper.bench.update("matrix"), there - boosters[0] @ boosters[1])
    assert "Out of the model: the boosters of round 1." in stepper.text
    loss = stepper.bench.evaluate()["loss"]
    assert f"residual loss {loss:.3g}; round 2 had measured {measured:.3g}" in stepper.text
    assert shown(stepper) == pytest.approx(stepper.bench.spectrum("matrix").tolist()[:2], rel=1e-5)
    assert stepper.bench.history[2].probe_after == measured  # the record stays as it was
    stepper.next_button.click()
    assert "The model as it is now" not in stepper.text
    stepper.reset_button.click()
    assert not stepper.bench.update("matrix").any()
    assert "no round yet" in stepper.text
    assert "Out of the model" not in stepper.text
    assert stepper.error == ""


def test_the_next_round_is_trained_with_what_stands_beside_the_plot_and_rewound_with_it() -> None:
    stepper = Stepper(small(), live=False)
    knobs, method = stepper.knobs.controls, stepper.bench.method
    assert set(knobs) == {"lr", "steps_per_round", "rank"}  # one module: there is nothing to select from
    stepper.next_button.click()
    knobs["rank"].value, knobs["steps_per_round"].value, knobs["lr"].value = 2, 15, 0.05
    assert "1 of 4 planned" in stepper.text  # 5 of 50 steps are done, and three rounds of 15 are left
    stepper.next_button.click()
    first, second = stepper.bench.history
    assert first.measurements["options"] == {
        "lr": 0.1, "steps_per_round": 5, "rank": 1, "selection": "all",
    }  # fmt: skip
    assert second.measurements["options"]["rank"] == 2
    assert len(second.losses) == 15
    assert max(second.learning_rates) == pytest.approx(0.05 * 45 / 50)
    assert stepper.bench.ensemble[1]["matrix"][1].shape[0] == 2
    assert "learning rate 0.05, κ, steps 15, rank 2" in stepper.text
    assert "error" not in figures.ranks(stepper.bench.history).text  # the bound follows the rank
    stepper.slider.value = 0
    stepper.rewind_button.click()
    assert (method.lr, method.steps_per_round, method.rank) == (0.1, 5, 1)
    assert [control.value for control in knobs.values()] == [0.1, 5, 1]
    again = stepper.bench.history[0], stepper.bench.step()
    assert again[1].measurements["options"] == again[0].measurements["options"]
    assert again[0].losses == first.losses


def test_a_setting_that_the_method_refuses_is_said_and_taken_back() -> None:
    stepper = Stepper(small(), live=False)
    stepper.knobs.controls["lr"].value = -1
    assert stepper.error == "ValueError: lr must be a number above 0; got -1.0."
    assert stepper.knobs.controls["lr"].value == stepper.bench.method.lr == 0.1
    stepper.knobs.controls["lr"].value = 0.2
    assert stepper.error == ""
    assert stepper.bench.method.lr == 0.2
    assert set(Stepper(small(LoRA(steps_per_round=5)), live=False).knobs.controls) == {
        "lr",
        "steps_per_round",
    }


def test_a_round_with_its_settings_is_the_same_as_a_run_that_began_with_them() -> None:
    changed, begun = Stepper(small(), live=False), small(XGBLoRA(steps_per_round=10, lr=0.02, rank=2))
    for name, value in (("lr", 0.02), ("steps_per_round", 10), ("rank", 2)):
        changed.knobs.controls[name].value = value
    changed.next_round()
    assert changed.bench.history[0].losses == begun.step().losses


@pytest.mark.parametrize("live", [True, False])
def test_drop_rewind_and_reset_can_be_undone(live: bool) -> None:
    stepper = Stepper(small(), live=live)
    stepper.run(4)
    assert stepper.undo_button.disabled
    whole = stepper.bench.update("matrix"), list(stepper.bench.history), stepper.text
    actions = (stepper.drop_button, stepper.rewind_button, stepper.reset_button)
    for action, name in zip(actions, ("drop", "rewind", "reset"), strict=True):
        stepper.slider.value = 1
        action.click()
        assert not torch.equal(stepper.bench.update("matrix"), whole[0])
        assert stepper.undo_button.description == f"Undo {name}"
        stepper.undo_button.click()
        assert stepper.error == ""
        assert torch.equal(stepper.bench.update("matrix"), whole[0])
        assert list(stepper.bench.history) == whole[1]
        assert stepper.text == f"Undone: {name}.\n{whole[2]}"
        assert stepper.undo_button.disabled
    stepper.bench.rewind(2)  # every earlier round is there again too
    assert torch.equal(stepper.bench.update("matrix"), stepper.bench.ensemble.update("matrix", 2))
    stepper.refresh()
    stepper.reset_button.click()
    stepper.next_button.click()
    stepper.reset_button.click()
    for rounds in (1, 2):  # one after the other
        stepper.undo_button.click()
        assert len(stepper.bench.history) == rounds


def test_after_drop_and_rewind_the_words_speak_of_the_present_round() -> None:
    stepper = Stepper(small(), live=False)
    stepper.run(3)
    stepper.slider.value = 0
    stepper.drop_button.click()
    stepper.slider.value = 1
    stepper.rewind_button.click()
    assert "The model as it is now" in stepper.text  # round 1 was measured before the drop
    stepper.next_button.click()
    assert stepper.text.startswith("Round 2 (3 of 10 planned)")
    assert "The last round is drawn as the model is now" not in stepper.text
    assert "Out of the model: the boosters of round 0." in stepper.text


def test_rounds_past_the_plan_are_said_and_never_offered() -> None:
    stepper = Stepper(small(), live=False)
    assert stepper.count.value == 10
    stepper.run(7)
    assert stepper.count.value == 3
    assert "rounds past it" not in stepper.text
    stepper.run_button.click()
    assert len(stepper.bench.history) == 10
    assert stepper.count.value == 0
    assert "The plan of 50 steps is done; rounds past it keep its last learning rate." in stepper.text
    stepper.run_button.click()
    assert len(stepper.bench.history) == 10
    assert "Write into “rounds to run” how many more" in stepper.text
    stepper.count.value = 2  # asked for
    stepper.run_button.click()
    assert len(stepper.bench.history) == 12
    assert stepper.text.startswith("Round 11 (past the plan)")
    assert stepper.count.value == 0


def test_before_a_round_is_trained_the_page_hears_of_it() -> None:
    seen = []

    class Watch(Hook):
        def on_round_start(self, bench: Any, index: int) -> None:
            seen.append((stepper.busy.value, stepper.next_button.disabled, stepper.next_button.tooltip))

    stepper = Stepper(small(hooks=[Watch()]), live=False)
    stepper.next_button.click()
    ((words, disabled, why),) = seen
    assert "Training round 0 …" in words
    assert disabled
    assert why == "A round is being trained"
    assert stepper.busy.value == ""
    assert not stepper.next_button.disabled


@pytest.mark.parametrize("live", [True, False])
def test_a_run_beside_is_trained_along_and_a_kept_one_stays(live: bool) -> None:
    other = small(LoRA(rank=2, steps_per_round=5, lr=0.05))
    stepper = Stepper(small(), live=live, beside=other)
    stepper.run(2)
    assert other.trained_steps == 10
    reached = other.history[1].probe_after
    name = other.history.label
    assert f"Beside it {name} after 10 steps: {reached:.3g}." in stepper.text
    drawn = canvas._live if live else stepper.canvas.figure.plot
    loss, spectrum = (t for t in drawn.data if t.name == f"beside: {name}")
    assert list(loss.x) == [-1, 0, 1]
    assert loss.y[2] == reached
    assert len([v for v in spectrum.y if v == v]) == 2
    stepper.rewind_button.click()
    stepper.slider.value = 0
    stepper.rewind_button.click()
    stepper.next_button.click()
    assert other.trained_steps == 10  # it had done as many
    stepper.keep_button.click()
    kept = [record.probe_after for record in stepper.bench.history]
    stepper.reset_button.click()
    stepper.knobs.controls["steps_per_round"].value = 10
    stepper.next_button.click()
    drawn = canvas._live if live else stepper.canvas.figure.plot
    loss = next(t for t in drawn.data if t.name == "beside: kept after 2 rounds")
    assert list(loss.y)[1:] == kept
    assert list(loss.x) == [-1, -0.5, 0]  # half as many steps, half as far
    assert stepper.error == ""


def test_the_first_look_is_ready_to_press() -> None:
    stepper = first_look(rounds=3)
    stepper.next_button.click()
    assert stepper.error == ""
    assert "Round 0 (1 of 3 planned)" in stepper.text
    assert "Beside it LoRA of rank 4 after 60 steps" in stepper.text
    assert len(shown(stepper)) == 1


def test_the_first_look_loads_what_it_needs_and_no_more() -> None:
    code = (
        "import sys\nfrom xgblora_lab import first_look\nlook = first_look()\nlook.next_round()\n"
        "names = {'torch', 'transformers', 'datasets', 'peft', 'sklearn', 'scipy', 'torch._dynamo', 'lark'}\n"
        "print(look.text[:7], sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Round 0 ['torch']\n"  # lark compiles the grammar that `figures` leaves out


def test_a_piece_without_a_kernel_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    for place in (IPython.display, widget):  # ipywidgets 7 shows itself
        monkeypatch.setattr(place, "display", lambda bundle, raw: shown.append(bundle), raising=False)
    Stepper(small(), live=False)._ipython_display_()
    asleep, piece = shown
    assert "run this cell again" in asleep["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in piece


def test_an_error_is_shown_in_words_and_the_next_click_works() -> None:
    stepper = Stepper(small(hooks=[Broken(at=2)]), live=False)
    stepper.run(2)
    update = stepper.bench.update("matrix")
    stepper.next_button.click()
    assert stepper.error == "RuntimeError: the hook fell off its hinge"
    assert "RuntimeError: the hook fell off its hinge" in stepper._alert.value
    assert 'role="alert"' in stepper._alert.value
    (output,) = stepper._output.outputs  # what a test of a notebook finds
    assert output["output_type"] == "error"
    assert output["traceback"][-1] == stepper.error
    state = {"a": {"model_name": "OutputModel", "state": {"outputs": [output]}}}
    metadata = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": state}}}
    (hidden,) = hidden_errors(nbformat.v4.new_notebook(metadata=metadata))
    assert stepper.error in str(hidden)
    assert torch.equal(stepper.bench.update("matrix"), update)
    stepper.next_button.click()
    assert stepper.error == stepper._alert.value == ""
    assert stepper._output.outputs == ()
    assert len(stepper.bench.history) == 3


def test_markup_in_an_error_is_text() -> None:
    stepper = Stepper(small(hooks=[Broken(0, ValueError("<b>no</b>"))]), live=False)
    stepper.next_button.click()
    assert "&lt;b&gt;no" in stepper._alert.value


def test_an_interrupted_kernel_leaves_the_bench_usable() -> None:
    stepper = Stepper(small(hooks=[Broken(1, KeyboardInterrupt())]), live=False)

    async def interrupted() -> None:
        stepper.run_button.click()
        assert stepper.task is not None
        await stepper.task

    asyncio.run(interrupted())
    assert "stopped from outside" in stepper.error
    assert len(stepper.bench.history) == 1
    stepper.next_button.click()
    assert len(stepper.bench.history) == 2


def test_a_run_gives_way_between_rounds_and_can_be_paused() -> None:
    stepper = Stepper(small(), live=False)
    seen: list[int] = []

    async def reader() -> None:
        stepper.count.value = 50
        stepper.run_button.click()
        assert len(stepper.bench.history) == 0  # the click returned before the first round
        assert stepper.next_button.disabled
        assert not stepper.pause_button.disabled
        assert "pause it first" in stepper.reset_button.tooltip
        while len(stepper.bench.history) < 4:
            await asyncio.sleep(0.001)
            seen.append(len(stepper.bench.history))
        stepper.slider.value = 1  # looks back while the run goes on, and stays there
        stepper.rewind()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="pause it first"):
            await reader()
        task = stepper.task
        assert task is not None
        assert "Round 1 " in stepper.text
        stepper.pause_button.click()
        await task

    asyncio.run(main())
    done = len(stepper.bench.history)
    assert 4 <= done <= 5
    assert {1, 2, 3} <= set(seen)  # never more than one round between two turns
    assert f"Paused after {done} of 50 rounds." in stepper.text
    assert stepper.slider.value == 1
    assert stepper.pause_button.disabled
    assert not stepper.next_button.disabled


def test_an_error_inside_a_run_ends_it_and_is_shown() -> None:
    stepper = Stepper(small(hooks=[Broken(at=2)]), live=False)

    async def main() -> None:
        stepper.run(5)
        assert stepper.task is not None
        await stepper.task

    asyncio.run(main())
    assert stepper.error == "RuntimeError: the hook fell off its hinge"
    assert len(stepper.bench.history) == 2
    assert not stepper.next_button.disabled
    assert "Round 1 " in stepper.text


def test_a_hook_that_ends_the_run_is_told() -> None:
    class Enough(Hook):
        def on_round_end(self, bench: Bench, record: Any) -> bool:
            return record.index == 1

    stepper = Stepper(small(hooks=[Enough()]), live=False)
    stepper.run(5)
    assert "A hook ended the run after 2 of 5 rounds." in stepper.text


@pytest.mark.parametrize(
    ("method", "rewinds", "drops"), [(XGBLoRA, True, True), (LoRA, True, False), (Full, False, False)]
)
def test_what_a_method_cannot_do_is_disabled_and_says_why(method: Any, rewinds: bool, drops: bool) -> None:
    stepper = Stepper(small(method(steps_per_round=5, lr=1e-2)), live=False)
    assert stepper.reset_button.disabled
    stepper.run(2)
    assert stepper.error == ""
    assert stepper.rewind_button.disabled == stepper.reset_button.disabled == (not rewinds)
    assert stepper.drop_button.disabled == (not drops)
    if not rewinds:
        assert "cannot go back" in stepper.rewind_button.tooltip
    if not drops:
        assert "no separate boosters" in stepper.drop_button.tooltip
    stepper.slider.value = 0  # looking back is always possible
    assert "Round 0 " in stepper.text


def test_a_run_that_diverges_is_said_and_can_be_taken_back() -> None:
    stepper = Stepper(small(XGBLoRA(steps_per_round=5, lr=1e25)), live=False)
    stepper.run(2)
    assert stepper.error == ""
    assert "not a number" in stepper.text or "infinite" in stepper.text
    assert "No spectrum was measured in this round." in stepper.text
    stepper.reset_button.click()
    assert stepper.error == ""


def test_a_bench_with_rounds_and_an_unknown_module() -> None:
    bench = small(hooks=[Spectrum()])
    bench.run(3, progress=False)
    assert "Round 2 " in Stepper(bench, "matrix", live=False).text
    assert sum(isinstance(hook, Spectrum) for hook in bench.hooks) == 1
    with pytest.raises(ValueError, match="no module 'other'; it has matrix"):
        Stepper(bench, "other")


def test_there_is_one_live_figure_and_the_newest_piece_has_it() -> None:
    first = Stepper(small(), live=True)
    first.run(2)
    assert first.canvas.children == (canvas._live,)
    second = Stepper(small(), live=True)
    second.run(3)
    assert second.canvas.children == (canvas._live,)
    assert not first.canvas.live
    assert plain_figure(first)["data"]
    assert len(shown(first)) == 2
    assert len(shown(second)) == 3
    kinds = [type(widget).__name__ for widget in list(instances.values())]
    assert kinds.count("FigureWidget") == 1


def test_a_live_figure_that_does_not_come_to_life_is_drawn_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_alive", True)
    stepper = Stepper(small(), live=True)
    stepper.run(2)
    (care,) = (w for w in stepper.children if type(w).__name__ == "Care")
    care.stuck = True  # as `panel.js` says it
    assert not stepper.canvas.live
    assert plain_figure(stepper)["data"]
    assert plain_figure(stepper)["config"]["showSendToCloud"] is False
    stepper.next_button.click()
    assert len(shown(stepper)) == 3
    assert not Stepper(small()).canvas.live  # a new one does not try again
    monkeypatch.setattr(canvas, "_alive", True)
    assert Stepper(small()).canvas.live


def test_what_a_live_figure_sends_is_json() -> None:
    explorer = SpectrumExplorer(history(rounds=12), live=True)
    explorer.slider.value = 0
    name = "_widget_data" if canvas._live.has_trait("_widget_data") else "_data"  # plotly 6, and 5
    sent = canvas._live.traits()[name].metadata["to_json"](getattr(canvas._live, name), canvas._live)
    json.dumps(sent, allow_nan=False, default=lambda buffer: None)


def test_without_a_live_figure_the_same_is_drawn_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    assert not Canvas().live
    with pytest.raises(ValueError, match="pip install anywidget"):
        Canvas(live=True)
    stepper = Stepper(small())
    stepper.run(3)
    drawn = plain_figure(stepper)
    assert not drawn.get("frames")
    assert not drawn["layout"].get("sliders")
    (trace,) = (t for t in drawn["data"] if t.get("name") == "after the round under the slider")
    assert trace["y"]
    stepper.slider.value = 0
    assert plain_figure(stepper) != drawn


def test_on_colab_a_figure_comes_in_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAB_NOTEBOOK_ID", "x")
    stepper = Stepper(small())
    assert not stepper.canvas.live
    stepper.run(1)
    (html,) = stepper.canvas.children
    assert "<iframe" in html.value
    assert "cdn.plot.ly" in html.value
    assert len(html.value) < 100_000


def labelled(widget: Any) -> Iterator[Any]:
    for child in getattr(widget, "children", ()):
        yield child
        yield from labelled(child)


@pytest.mark.parametrize(
    "make", [lambda: Stepper(small()), lambda: SpectrumExplorer(history()), lambda: RaceView(race())]
)
def test_every_control_has_a_name(make: Any) -> None:
    piece = make()
    controls = [w for w in labelled(piece) if hasattr(w, "description") and hasattr(w, "disabled")]
    assert len(controls) >= 3
    sliders = {id(w) for w in controls if "Slider" in type(w).__name__}  # each beside a field of its name
    assert all(w.description for w in controls if id(w) not in sliders)
    assert all(not w.readout for w in controls if id(w) in sliders)


def test_the_explorer_goes_over_modules_rounds_and_references() -> None:
    run = history(rounds=9)
    explorer = SpectrumExplorer(run, {"full": history("full", rounds=9, rank=8)}, live=False)
    assert explorer.reference.options == ("the planted truth", "full", "none")
    name, other = "model.layers.2.mlp.up_proj", "model.layers.0.self_attn.q_proj"
    explorer.module.value = name
    explorer.slider.value = 4
    assert explorer.error == ""
    assert explorer.text.startswith(f"{name}. {figures.spectrum(run, name).frame_texts[4]}")
    assert f"truth's {run[4].measurements['alignment'][name]:.3g};" in explorer.text
    assert shown(explorer) == pytest.approx(run[4].measurements["spectrum"][name])
    explorer.module.value = other
    assert shown(explorer) == pytest.approx(run[4].measurements["spectrum"][other])
    names = {t.name for t in explorer.canvas.figure.plot.data}
    assert "target" in names
    explorer.reference.value = "full"
    assert "full, last round" in {t.name for t in explorer.canvas.figure.plot.data}
    explorer.reference.value = "none"
    assert "target" not in {t.name for t in explorer.canvas.figure.plot.data}
    assert explorer.aligned.figure is not None


def test_the_explorer_follows_a_bench_and_refuses_a_run_without_spectra() -> None:
    bench = small(hooks=[Spectrum()])
    bench.run(3, progress=False)
    explorer = SpectrumExplorer(bench, live=False)
    assert explorer.slider.max == 2
    bench.run(2, progress=False)
    explorer.reference.value = "none"
    assert explorer.slider.max == explorer.slider.value == 4
    with pytest.raises(ValueError, match=r"add the hook, Bench\(…, hooks=\[Spectrum\(\)\]\)"):
        SpectrumExplorer(history(hooks=False))


def test_the_race_view_switches_methods_budgets_and_learning_rates(tmp_path: Path) -> None:
    runs = race(seeds=2)
    view = RaceView(runs)
    assert "3 methods against optimizer steps, each at its chosen learning rate." in view.text

    def drawn() -> set[str]:
        return {t.name for t in view.canvas.figure.plot.data if t.name and t.name != "chosen"}

    assert drawn() == {"xgblora", "lora", "full"}
    view.methods["full"].value = False
    assert drawn() == {"xgblora", "lora"}
    view.axis.value = "tokens"
    assert view.canvas.figure.plot.layout.xaxis.title.text == "tokens"
    view.rate.value = 1e-1
    assert "learning rate 0.1 for all" in view.text
    rings = [t.x[0] for t in view.canvas.figure.plot.data if t.name == "chosen"]
    assert rings == [1e-1, 1e-1]
    assert {h.settings.lr for h in runs if h.settings.chosen} == {1e-2}  # the race itself is unmoved
    for box in view.methods.values():
        box.value = False
    assert "No method is switched on." in view.text
    assert view.error == ""
    with pytest.raises(ValueError, match="No history in this race has a round yet"):
        RaceView([History("xgblora")])


def test_a_learning_rate_that_a_method_was_not_run_at_is_said() -> None:
    view = RaceView([*race(seeds=1), history("pissa", lr=5e-2, chosen=True)])
    view.rate.value = 1e-3
    assert "It was not tried for pissa, shown at the chosen one." in view.text


def test_scrubbing_200_rounds_costs_less_than_a_tenth_of_one_round() -> None:
    from tiny import tiny_llama

    bench = Bench(tiny_llama(), ToyTask(length=64, vocabulary=200), XGBLoRA(steps_per_round=20), steps=4000)
    a_round = statistics.median(_seconds(bench.step) for _ in range(3))
    for live in (True, False):
        explorer = SpectrumExplorer(history(rounds=200), live=live)
        rounds = [int(200 * (math.sqrt(5) * i % 1)) for i in range(1, 22)]
        scrub = statistics.median(_seconds(partial(setattr, explorer.slider, "value", t)) for t in rounds)
        print(f"one round {a_round * 1e3:.0f} ms, one scrub {scrub * 1e3:.1f} ms")
        assert explorer.error == ""
        assert scrub < a_round / 10


def _seconds(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
