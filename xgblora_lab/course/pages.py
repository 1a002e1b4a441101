"""An executed notebook as one HTML page whose plots show without a kernel and without a network."""

from __future__ import annotations

import copy
import html
import json
import re
from typing import TYPE_CHECKING, Any

from xgblora_lab.report.offline import ICON, Plotly, packed, policy, script

if TYPE_CHECKING:
    from nbformat import NotebookNode

VIEW = "application/vnd.jupyter.widget-view+json"
_FIGURE = "application/vnd.plotly.v1+json"
_INTERACTIVE = "An interactive piece stands here when the notebook runs in a live kernel."
_AWAY = re.compile(r"!\[([^\]]*)\]\(https?://[^)]+\)")  # a picture from elsewhere, a badge: its words stay
# JupyterLab's page without the scripts that it would fetch; `resources` hold what is ours
_TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}
<meta http-equiv="Content-Security-Policy" content="{{ resources.policy }}">
<meta name="description" content="{{ resources.description | escape_html_keep_quotes }}">
<link rel="icon" href="{{ resources.icon }}">
{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>{{ resources.style }}</style>{%- endblock -%}
{%- block footer_js -%}
{%- if resources.plotly %}
{{ resources.plotly }}
<script>{{ resources.script }}</script>
{%- endif -%}
{%- endblock -%}
"""


def to_html(notebook: NotebookNode, title: str = "notebook", plotly: Plotly | None = None) -> str:
    """Return the notebook as one page, on which one copy of plotly.js draws every plotly figure.

    A progress bar shows its last state only. A widget needs a kernel, so a sentence stands in its place. What
    is collapsed in a notebook is left out. The page fetches nothing: formulas stay in TeX, and of a picture
    that lies elsewhere the words stay. A content-security policy lets no script run but the one that draws
    the figures, whatever the outputs hold.

    Parameters
    ----------
    notebook : NotebookNode
        An executed notebook; it is left as it is.
    title : str
        Title of the page in the browser.
    plotly : Plotly, optional
        Where plotly.js is; default packed in the page.
    """
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    page = copy.deepcopy(notebook)
    without_views(page)
    drawn = False
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = _AWAY.sub(r"\1", cell.source)
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}  # nbconvert's word for it
        for out in cell.get("outputs", []):
            if figure := out.get("data", {}).get(_FIGURE):
                drawn = True
                out.data = type(out.data)({"text/html": _plot(figure)})
    plotly = (plotly or packed()) if drawn else None
    drawing = script("notebook.js")
    resources = {
        "metadata": {"name": title},
        "policy": policy([drawing] if plotly else [], plotly),
        "description": f"{title}: a lesson of xgblora_lab, as it ran from top to bottom.",
        "icon": ICON,
        "style": _STYLE,
        "plotly": plotly.tag if plotly else "",
        "script": drawing,
    }
    exporter = HTMLExporter(raw_template=_TEMPLATE)
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)
    body, _ = exporter.from_notebook_node(page, resources=resources)
    return str(body)


_STYLE = """
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --jp-layout-color0: #16181c;
  --jp-layout-color1: #16181c; --jp-layout-color2: #2a2d33;
  --jp-cell-editor-background: #22252b; --jp-content-font-color0: #fff;
  --jp-content-font-color1: #e8e6e3; --jp-content-font-color2: #c4c1bc; --jp-ui-font-color1: #e8e6e3;
  --jp-mirror-editor-keyword-color: #7ec699; --jp-mirror-editor-string-color: #f0a08a;
  --jp-mirror-editor-comment-color: #8fb3b3; --jp-mirror-editor-operator-color: #d7a8ff;
  --jp-mirror-editor-number-color: #8fd18f; --jp-mirror-editor-variable-color: #e8e6e3;
  --jp-mirror-editor-punctuation-color: #9fc3f0; --jp-mirror-editor-builtin-color: #8fd18f;
  --jp-content-link-color: #79b8ff; --jp-rendermime-table-row-background: #22252b;
  --jp-border-color1: #3c4046;
  --jp-rendermime-error-background: #4a2526; --jp-cell-editor-border-color: #3c4046; } }
.jp-InputPrompt, .jp-OutputPrompt { opacity: 1 !important; color: var(--jp-content-font-color1) !important; }
.plot { min-height: 280px; } pre { white-space: pre-wrap; }
.jp-RenderedHTMLCommon a:not(.anchor-link) { text-decoration: underline !important; }
pre, .jp-RenderedHTMLCommon { overflow-wrap: anywhere; }
.jp-OutputArea-output, .jp-InputArea-editor, .highlight { min-width: 0; max-width: 100%; overflow-x: auto; }
@media (max-width: 600px) { body.jp-Notebook { padding: 0.4rem; } .jp-Cell { padding: 2px; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none; } }
"""


def _plot(figure: Any) -> str:
    """Return a place for a figure with its data, in which nothing can end the element."""
    kept = {key: figure[key] for key in ("data", "layout", "frames") if key in figure}
    data = json.dumps(kept).replace("<", "\\u003c")
    height = figure.get("layout", {}).get("height", 450)
    title = figure.get("layout", {}).get("title", "")
    said = html.escape(str(title.get("text", "") if isinstance(title, dict) else title) or "A figure")
    look = f'role="group" aria-label="{said}" style="height:{float(height):g}px"'
    return (
        f'<div class="plot plotly-graph-div" {look}></div>'
        f'<script type="application/json" class="figure">{data}</script>'
    )


def without_views(notebook: NotebookNode) -> None:
    """Put a sentence for every widget: a view without its state is an error message in every viewer."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if VIEW in out.get("data", {}):
                del out.data[VIEW]
                if not set(out.data) - {"text/plain"}:  # else it brought a picture of its own
                    out.data["text/plain"] = _INTERACTIVE
