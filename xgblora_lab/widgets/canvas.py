"""Where a figure is drawn and drawn again: the one live figure of a notebook, or a plain one redrawn."""

from __future__ import annotations

import json
import os
import sys
import weakref
from html import escape
from importlib.util import find_spec
from typing import Any, Literal

import ipywidgets
import plotly.graph_objects as go
from plotly.io import to_html
from plotly.io.json import to_json_plotly

from xgblora_lab.figures import CONFIG, Figure

Live = bool | Literal["auto"]

_live: Any = None  # the one FigureWidget: each carries 5 MB of plotly.js into a saved notebook
_owner: weakref.ref[Canvas] | None = None  # the canvas that shows it
_alive = True  # whether the page has shown it where it was tried


class Canvas(ipywidgets.VBox):
    """One drawing area.

    Parameters
    ----------
    live : bool or "auto", default "auto"
        True draws into the notebook's one `FigureWidget`, which is updated in place. The newest canvas has
        it; one that had it before goes on with plain figures. False draws plain figures. "auto" is True where
        anywidget is installed and the notebook is not on Colab.
    height : int, optional
        Pixels of a figure that stands below words and controls: without its title, in smaller type.
        Default: as the figure is made.

    Raises
    ------
    ValueError
        For True without anywidget.
    """

    children: tuple[Any, ...]  # what is drawn: nothing, or one widget

    def __init__(self, live: Live = "auto", height: int | None = None) -> None:
        if live is True and find_spec("anywidget") is None:
            raise ValueError('A live figure needs anywidget (pip install anywidget); live="auto" needs none.')
        self.live = _alive and can_be_live() if live == "auto" else live
        self.height = height
        self.figure: Figure | None = None
        self._json: dict[str, Any] = {}  # of a plain figure, as it is drawn now
        super().__init__(layout={"width": "100%"})
        if self.live:
            _take_over(self)

    def draw(self, figure: Figure) -> None:
        """Show a figure; one without traces is a message, and shown as text."""
        self.figure = figure
        if not figure.plot.data:
            self.children = (ipywidgets.HTML(f"<p>{escape(figure.text)}</p>"),)
        elif self.live:
            self.children = (_update_live(_kernelled(figure.plot, self.height)),)
        else:
            self._json = json.loads(_kernelled(figure.plot, self.height).to_json()) | {"config": CONFIG}
            self._redraw()

    def clear(self) -> None:
        """Show nothing."""
        self.figure = None
        self.children = ()

    def scrub(self, frame: int) -> str:
        """Show one frame of the present figure.

        Parameters
        ----------
        frame : int
            As in `Figure.scrub`.

        Returns
        -------
        str
            The frame's sentence.

        Raises
        ------
        ValueError
            Where no figure was drawn.
        """
        if self.figure is None:
            raise ValueError("There is no figure to scrub yet: draw one first.")
        if self.live:
            return self.figure.scrub(frame, target=_live)
        said = self.figure.scrub(frame)
        data = list(self._json["data"])
        for index in self.figure.plot.frames[frame].traces:  # only these are encoded again
            data[index] = json.loads(to_json_plotly(self.figure.plot.data[index]))
        self._json = self._json | {"data": data}
        self._redraw()
        return said

    def _redraw(self) -> None:
        self.children = (_frame(self._json) if on_colab() else self._output(),)

    def _output(self) -> Any:
        """The same `Output` each time, of a fixed height, so that the page below it does not jump."""
        old = self.children[0] if self.children else None
        drawn = old if isinstance(old, ipywidgets.Output) else ipywidgets.Output()
        drawn.layout.height = f"{self._json['layout']['height'] + 10}px"
        text = self.figure.text if self.figure else ""
        data = {"application/vnd.plotly.v1+json": self._json, "text/plain": text}
        drawn.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
        return drawn

    def give_up(self) -> None:
        """Go on with plain figures, here and in every new canvas: the page cannot show the live one."""
        global _alive, _live, _owner
        if self.live:
            _alive, _live, _owner = False, None, None
            self._lose()

    def _lose(self) -> None:
        self.live = False
        if self.figure is not None:
            self.draw(self.figure)


def on_colab() -> bool:
    """Whether this notebook runs on Google Colab."""
    return "google.colab" in sys.modules or "COLAB_NOTEBOOK_ID" in os.environ


def can_be_live() -> bool:
    """Whether this notebook can show a `FigureWidget`."""
    return find_spec("anywidget") is not None and not on_colab()


def _take_over(canvas: Canvas) -> None:
    global _owner
    before = _owner() if _owner is not None else None
    _owner = weakref.ref(canvas)
    if before is not None and before is not canvas:
        before._lose()


def _update_live(plot: go.Figure) -> Any:
    """Put a figure into the one live figure; traces of the same kinds stay and get new values."""
    global _live
    if _live is None:
        _live = go.FigureWidget(plot.data, plot.layout)
        _live._config = {"responsive": True, **CONFIG}  # as wide as the cell, also later
        return _live
    if [t.type for t in _live.data] != [t.type for t in plot.data]:
        _live.data = ()
        _live.add_traces(plot.data)
    else:
        with _live.batch_update():
            for old, new in zip(_live.data, plot.data, strict=True):
                values = new.to_plotly_json()
                old.update({key: values[key] for key in values if key != "type"}, overwrite=True)
    _live.layout = plot.layout
    return _live


def _kernelled(plot: go.Figure, height: int | None) -> go.Figure:
    """Without frames and the controls that play them: here the kernel answers the controls."""
    plain = go.Figure(plot.data, plot.layout)  # a copy, but not of the frames, most of 200 rounds' figure
    plain.layout.autosize = True
    title = plain.layout.title.text
    if len(title) > 60:  # a cell is narrower than a page, and the words above say whose figure it is
        plain.layout.title.text = title.rpartition(": ")[0] or title
    for trace in plain.data:
        if trace.type == "heatmap":
            trace.update(z=_rows(trace.z), customdata=_rows(trace.customdata))
    if plain.layout.sliders:
        plain.layout.sliders = plain.layout.updatemenus = ()
        plain.layout.update(height=plot.layout.height - 80, legend={"y": -0.19})
    if height is not None:
        plain.layout.title = None
        legend = {"y": 1.04, "yanchor": "bottom", "font": {"size": 13}}
        margin = {"l": 70, "r": 40, "t": 34, "b": 50}
        plain.update_layout(height=height, font={"size": 13}, legend=legend, margin=margin)
        plain.update_xaxes(title_font_size=14).update_yaxes(title_font_size=14)
    return plain


def _rows(table: Any) -> list[list[float | None]] | None:
    """Lists, with None for nan: a live figure sends tables as JSON, which has no nan."""
    return None if table is None else [[None if v != v else float(v) for v in row] for row in table]


def _frame(plot: dict[str, Any]) -> Any:
    """The plot in a frame of its own, which loads plotly.js itself.

    On Colab a plotly figure displayed from a widget's callback finds no plotly.js in the page ("Plotly is
    not defined", googlecolab/colabtools #5889), and scripts inside an `HTML` widget do not run. A frame's do,
    and Colab is never offline.
    """
    page = to_html(plot, include_plotlyjs="cdn", validate=False, config=CONFIG)
    style = f"width: 100%; height: {plot['layout']['height'] + 20}px; border: 0"
    frame = f'<iframe title="figure" srcdoc="{escape(page)}" style="{style}"></iframe>'
    return ipywidgets.HTML(frame, layout={"width": "100%"})
