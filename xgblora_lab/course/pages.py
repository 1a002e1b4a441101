"""An executed notebook as one HTML page whose plots show without a kernel and without a network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

VIEW = "application/vnd.jupyter.widget-view+json"
_INTERACTIVE = "An interactive piece stands here when the notebook runs in a live kernel."


def to_html(notebook: NotebookNode, title: str = "notebook") -> str:
    """Return the notebook as one page, on which one copy of plotly.js draws every plotly figure.

    A progress bar shows its last state only. A widget needs a kernel, so a sentence stands in its place. What
    is collapsed in a notebook is left out.

    Parameters
    ----------
    notebook : NotebookNode
        An executed notebook; it is left as it is.
    title : str
        Title of the page in the browser.
    """
    import plotly.io
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    page = copy.deepcopy(notebook)
    without_views(page)
    drawn = 0
    for cell in page.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}  # nbconvert's word for it
        for out in cell.get("outputs", []):
            figure = out.get("data", {}).get("application/vnd.plotly.v1+json")
            if figure is None:
                continue
            kept = {key: figure[key] for key in ("data", "layout", "frames") if key in figure}
            # plotly.js travels with the first figure; the others find it there
            div = plotly.io.to_html(
                kept, include_plotlyjs=drawn == 0, full_html=False, validate=False, auto_play=False
            )
            out.data = type(out.data)({"text/html": div})
            drawn += 1
    # require.js, which the template would fetch, keeps plotly.js from registering itself
    exporter = HTMLExporter(require_js_url="")
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)
    body, _ = exporter.from_notebook_node(page, resources={"metadata": {"name": title}})
    return str(body).replace('<script src=""></script>', "")


def without_views(notebook: NotebookNode) -> None:
    """Put a sentence for every widget: a view without its state is an error message in every viewer."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if VIEW in out.get("data", {}):
                del out.data[VIEW]
                if not set(out.data) - {"text/plain"}:  # else it brought a picture of its own
                    out.data["text/plain"] = _INTERACTIVE
