"""`Figure`: a plotly figure and its text twin, one sentence or two with the numbers and a small table."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.figures._style import layout, say


@dataclass(frozen=True)
class Figure:
    """What every function of `xgblora_lab.figures` returns.

    In a notebook it shows itself: the plot, and below it the text. `print(figure)` gives the text and the
    table, for a log or a screen reader.

    Parameters
    ----------
    plot : plotly.graph_objects.Figure
        The picture.
    text : str
        What the plot shows, in words, with its numbers.
    table : pandas.DataFrame
        The numbers.
    frame_texts : tuple of str
        One sentence per frame of a figure that scrubs.
    """

    plot: go.Figure
    text: str
    table: pd.DataFrame
    frame_texts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text if self.table.empty else f"{self.text}\n{self.table.to_string(index=False)}"

    def scrub(self, frame: int, target: go.Figure | None = None) -> str:
        """Put one frame on the plot, in place.

        Only the traces that change are touched, and nothing is computed, so that a slider may call it at
        every move.

        Parameters
        ----------
        frame : int
            Position of the frame in `frame_texts`.
        target : plotly.graph_objects.Figure, optional
            A figure (or `FigureWidget`) made from `plot` to change in its place.

        Returns
        -------
        str
            The frame's sentence.

        Raises
        ------
        IndexError
            Where there is no such frame.
        """
        chosen = self.plot.frames[frame]
        drawn = self.plot if target is None else target
        with drawn.batch_update():
            for index, trace in zip(chosen.traces, chosen.data, strict=True):
                drawn.data[index].update({k: v for k, v in trace.to_plotly_json().items() if k != "type"})
        return self.frame_texts[frame]

    def show(self, *args: Any, **kwargs: Any) -> None:
        """Show the plot, as plotly's `Figure.show` does."""
        self.plot.show(*args, **kwargs)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.plot)
        display({"text/plain": self.text, "text/markdown": f"*{_plain(self.text)}*"}, raw=True)

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bundle = self.plot._repr_mimebundle_(*args, **kwargs)
        return {**(bundle or {}), "text/plain": str(self)}


def _plain(text: str) -> str:
    """Escape what Markdown and HTML would read as markup: labels and names come from outside."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(text, quote=False))


def blank(title: str, message: str) -> Figure:
    """A figure that says why there is nothing to draw, and what to do."""
    plot = say(layout(go.Figure(), title, height=320), message)
    plot.update_xaxes(visible=False).update_yaxes(visible=False)
    return Figure(plot, message, pd.DataFrame())
