"""What the interactive pieces have in common: words beside the figure, and errors that are seen."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
from traitlets import Bool, link

from xgblora_lab.figures import DARK
from xgblora_lab.widgets.canvas import can_be_live

WIDE = {"width": "100%"}
LABEL = {"description_width": "initial"}
FOCUS = ".xgblora-panel button:focus-visible {outline: 3px solid #0072B2; outline-offset: 1px}"
# Stands in the notebook itself, so that a reader without a kernel finds it; a piece that is alive hides it.
ASLEEP = """\
<style>
.jp-OutputArea:has(.xgblora-panel:not(.jupyter-widgets-disconnected)) > * .xgblora-asleep {display: none}
</style>
<p class="xgblora-asleep" style="padding: .4em .8em; border-left: 4px solid #0072B2">
The buttons below belong to a kernel that runs. If they do nothing, or are not there, run this cell again
(and the cells above it after a restart).</p>"""


class Panel(ipywidgets.VBox):
    """Controls, a sentence or two, a place for errors, and canvases, from top to bottom.

    Jupyter does not show the reader an error that is raised in a widget's callback. Every callback here runs
    in `guard`, which shows the error in words, with its traceback folded away below.

    Parameters
    ----------
    controls, canvases : sequence of widget
        What stands above the words and below them.
    """

    def __init__(self, controls: Sequence[Any], canvases: Sequence[Any]) -> None:
        self.text = ""  # what is shown in words, as plain text
        self.error = ""  # the last error, in words; "" after a callback that went well
        self._quiet = False  # while the code itself moves a control
        self._words = ipywidgets.HTML(layout=WIDE)
        self._alert = ipywidgets.HTML(layout=WIDE)
        self._output = ipywidgets.Output()
        self._details = ipywidgets.Accordion([self._output], layout={"display": "none"})
        self._details.set_title(0, "Where it happened (traceback)")
        look = ipywidgets.HTML(f"<style>{DARK}{FOCUS}</style>", layout={"display": "none"})
        parts = [look, *controls, self._words, self._alert, self._details, *canvases]
        care = _care()
        for script in care:
            script.observe(lambda change: [canvas.give_up() for canvas in canvases], "stuck")
        super().__init__([*parts, *care], layout=WIDE)
        self.add_class("xgblora-panel")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(
            {"text/html": ASLEEP, "text/plain": "Run this cell in a kernel to use what it shows."}, raw=True
        )
        if hasattr(self, "_repr_mimebundle_"):
            display(self._repr_mimebundle_(), raw=True)
        else:  # ipywidgets 7, as on Colab
            super()._ipython_display_()

    def say(self, *lines: str) -> None:
        """Show lines of plain text; the first is the heading of what follows."""
        self.text = "\n".join(line for line in lines if line)
        first, *rest = self.text.split("\n")
        body = "".join(f"<br>{escape(line)}" for line in rest)
        self._words.value = (
            '<div role="status" aria-live="polite" style="line-height: 1.5; max-width: 75em">'
            f"<strong>{escape(first)}</strong>{body}</div>"
        )

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Show what is raised inside in words; an interrupted kernel too, which would end it in a task."""
        self._show_error(None)
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._show_error(error)

    def _show_error(self, error: BaseException | None) -> None:
        if error is None:
            self.error = self._alert.value = ""
            self._details.layout.display = "none"
            self._output.outputs = ()
            return
        self.error = in_words(error)
        self._alert.value = (
            '<div role="alert" style="line-height: 1.5; padding: .4em .8em; color: #8B0000; '
            f'background: #FDECEA; border-left: 4px solid #B00020">{escape(self.error)}</div>'
        )
        # An error output, so that what executes notebooks in tests finds it in the widget's state.
        lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
        name, value = type(error).__name__, str(error)
        self._output.outputs = ({"output_type": "error", "ename": name, "evalue": value, "traceback": lines},)
        self._details.selected_index = None
        self._details.layout.display = None

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Move controls without their callbacks."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _on(self, control: Any, callback: Any) -> None:
        """Call back, guarded, when the reader clicks the button or changes the value."""

        def guarded(event: Any) -> None:
            if not self._quiet:
                with self.guard():
                    callback()

        if isinstance(control, ipywidgets.Button):
            control.on_click(guarded)
        else:
            control.observe(guarded, "value")


def _care() -> list[Any]:
    """The script `panel.js` as an invisible piece, where a notebook can run it."""
    return [_care_class()(layout={"display": "none"})] if can_be_live() else []


@cache
def _care_class() -> Any:
    import anywidget

    stuck = Bool(False).tag(sync=True)  # whether the live figure did not come to life
    members = {"_esm": Path(__file__).with_name("panel.js"), "stuck": stuck}
    return type("Care", (anywidget.AnyWidget,), members)


def in_words(error: BaseException) -> str:
    """An error as its kind and its sentence."""
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt: stopped from outside; an unfinished round was taken back."
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def button(name: str, tooltip: str, style: str = "") -> Any:
    """A button as wide as its name; `style` as ipywidgets' `button_style`."""
    return ipywidgets.Button(
        description=name, tooltip=tooltip, button_style=style, layout={"width": "auto", "min_width": "6em"}
    )


def round_slider(live: bool) -> tuple[Any, Any]:
    """A slider over rounds, and the field that names and shows its value and takes a number.

    The field is there for screen readers: a slider's handle carries no name in ipywidgets 8.
    """
    slider = ipywidgets.IntSlider(
        0, min=0, max=0, readout=False, continuous_update=live, layout={"flex": "1 1 16em", "width": "auto"}
    )
    field = ipywidgets.BoundedIntText(
        0, min=0, max=0, description="Look at round", style=LABEL, layout={"width": "11em"}
    )
    for name in ("max", "value", "disabled"):
        link((slider, name), (field, name))
    return slider, field


def row(*controls: Any) -> Any:
    """Controls side by side, wrapped where the page is narrow."""
    return ipywidgets.HBox(
        controls, layout={"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
    )
