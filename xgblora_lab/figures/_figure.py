"""`Figure`: a plotly figure and its text twin, one sentence or two with the numbers and a small table."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.figures._style import layout, say
from xgblora_lab.figures._theme import DARK
from xgblora_lab.files import replaced, write_text

# The camera in the toolbar saves a PNG of twice the size; nothing leaves for a cloud.
CONFIG = {"displaylogo": False, "showSendToCloud": False, "toImageButtonOptions": {"scale": 2}}

# On a saved page; plotly puts the figure's place into {plot_id}.
_BUTTONS = """\
const plot = document.getElementById("{plot_id}"), row = document.createElement("p");
for (const format of ["png", "svg"]) {
  const button = document.createElement("button");
  button.textContent = `Save as ${format.toUpperCase()}`;
  const image = {format, filename: "figure", scale: format === "png" ? 2 : 1};
  button.onclick = () => Plotly.downloadImage(plot, image);
  row.append(button, " ");
}
plot.after(row);"""


def renderers() -> Any:
    """What displays plotly's figures, without a second or more for a grammar of addresses.

    plotly asks for nbformat, nbformat for jsonschema, and that compiles the grammar to check a kind of text
    that a figure does not have.
    """
    grammar = "rfc3987_syntax"
    absent = grammar not in sys.modules
    if absent:
        sys.modules[grammar] = None  # type: ignore[assignment]  # to an import: it is not installed
    try:
        from plotly.io import renderers as found
    finally:
        if absent:
            del sys.modules[grammar]
    return found


def keep_at_home() -> None:
    """Take the button that sends a figure to a cloud off every plotly figure that this process displays."""
    found = renderers()
    for name in found:
        config = getattr(found[name], "config", None)
        if isinstance(config, dict):
            config.update(CONFIG)


renderers()
if "ipykernel" in sys.modules:  # a notebook, in which figures are displayed that are not ours
    keep_at_home()


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

    def save(self, path: str | Path) -> None:
        """Write the plot as an image.

        Parameters
        ----------
        path : str or Path
            Its ending says the kind: `.png`, `.svg` or `.pdf`, which need the package kaleido and Chrome; or
            `.html`, a page that needs neither, and whose buttons save a PNG or an SVG.

        Raises
        ------
        ValueError
            For another ending.
        RuntimeError
            Where kaleido or Chrome is missing; the sentence says what to do.
        """
        path = Path(path)
        kind = path.suffix[1:].lower()
        if kind == "html":
            page = self.plot.to_html(include_plotlyjs=True, config=CONFIG, post_script=_BUTTONS)
            write_text(path, page)
            return
        if kind not in ("png", "svg", "pdf"):
            raise ValueError(f"{path.name} ends in neither .png, .svg, .pdf nor .html: choose one of them.")
        try:
            image = self.plot.to_image(format=kind, width=1280, scale=2)
        except Exception as error:  # kaleido and its browser driver raise types of their own, by version
            raise RuntimeError(
                f"{path.name} was not written: this needs kaleido (pip install kaleido) and Chrome or "
                f"Chromium. Without them, save a page ({path.stem}.html): its buttons save a PNG or an "
                f"SVG. The camera above a figure saves a PNG. ({error})"
            ) from error
        with replaced(path) as partial:
            partial.write_bytes(image)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.plot)
        words = f"<style>{DARK}</style><p><em>{escape(self.text)}</em></p>"
        display(
            {"text/plain": self.text, "text/markdown": f"*{_plain(self.text)}*", "text/html": words},
            raw=True,
        )

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bundle = self.plot._repr_mimebundle_(*args, **kwargs)
        return {**(bundle or {}), "text/plain": str(self)}


def _plain(text: str) -> str:
    """Escape what Markdown and HTML would read as markup: labels and names come from outside."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", escape(text, quote=False))


def blank(title: str, message: str) -> Figure:
    """A figure that says why there is nothing to draw, and what to do."""
    plot = say(layout(go.Figure(), title, height=320), message)
    plot.update_xaxes(visible=False).update_yaxes(visible=False)
    return Figure(plot, message, pd.DataFrame())
