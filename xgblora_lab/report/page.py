"""One HTML file that tells a run or a race, works offline by double click, and scrubs without a kernel."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any

from xgblora_lab.bench.records import History
from xgblora_lab.figures import Figure
from xgblora_lab.figures._read import brief, subject
from xgblora_lab.report.contents import Section, Source, histories, sections, settings_table, versions


def report(source: Source, path: str | Path, *, title: str | None = None, cells: Any = None) -> Path:
    """Write the report of `source` to `path`, whole or not at all, and return the path.

    source: a History, a Race, the folder of a run or a race, or a list of these. title: default the run's or
    the race's subject. cells: the table of `figures.boosting_map`, where there is one. The file embeds
    plotly.js once and loads nothing. Raises FileNotFoundError or ValueError for a source without a history.
    """
    runs = histories(source)
    told = sections(runs, cells)
    return write_page(path, _page(title or heading_of(runs), told, runs))


def write_page(path: str | Path, page: str) -> Path:
    """Write a page whole or not at all, with the folders on its way, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def export_images(
    source: Source,
    folder: str | Path,
    format: str = "png",
    *,
    cells: Any = None,
    width: int = 1200,
    scale: float = 2,
) -> list[Path]:
    """Every figure of the report as `folder/<section>-<figure>.png` (or svg), and its text beside it as .txt.

    width: in pixels, times `scale` for png. Raises ValueError for another format, and RuntimeError with what
    to install where kaleido or a browser is missing; nothing is written then.
    """
    if format not in ("png", "svg"):
        raise ValueError(f"Images are written as 'png' or 'svg', not {format!r}.")
    drawn = {
        f"{number:02d}-{name}": figure
        for number, section in enumerate(sections(histories(source), cells), 1)
        for name, figure in section.figures.items()
    }
    images = {name: _image(figure, format, width, scale) for name, figure in drawn.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, image in images.items():
        written.append(folder / f"{name}.{format}")
        written[-1].write_bytes(image)
        (folder / f"{name}.txt").write_text(str(drawn[name]) + "\n", encoding="utf-8")
    return written


def _image(figure: Figure, format: str, width: int, scale: float) -> bytes:
    still = _still(figure)
    try:
        return still.to_image(format=format, width=width, height=still.layout.height, scale=scale)
    except Exception as error:  # kaleido and its browser driver raise types of their own, by version
        raise RuntimeError(
            "No image could be drawn: this needs the package kaleido (pip install kaleido) and Chrome or "
            f"Chromium on this machine; the HTML report needs neither. It said: {str(error).strip()[:200]}"
        ) from error


def _still(figure: Figure) -> Any:
    """The plot without the controls that only a browser's page can answer, which it replaces by its own."""
    import plotly.graph_objects as go

    plot = go.Figure(figure.plot.to_dict() | {"frames": []})
    if plot.layout.sliders:
        plot.update_layout(height=plot.layout.height - 100)
    plot.layout.sliders = plot.layout.updatemenus = ()
    return plot


def heading_of(runs: list[History]) -> str:
    """Who ran on what: the title of a page that was given none."""
    if len(runs) == 1:
        return subject(runs[0])
    labels = list(dict.fromkeys(h.label for h in runs))
    data = {h.settings.data for h in runs} - {""}
    where = f" on {data.pop()}" if len(data) == 1 else ""
    return (" against ".join(labels) if len(labels) <= 3 else f"A race of {len(labels)} methods") + where


def _page(heading: str, told: list[Section], runs: list[History]) -> str:
    from plotly.offline import get_plotlyjs

    numbers = iter(range(1, 1000))
    body = "\n".join(_section(i, section, numbers) for i, section in enumerate(told, 1))
    links = "".join(f'<li><a href="#s{i}">{escape(s.title)}</a></li>' for i, s in enumerate(told, 1))
    links += '<li><a href="#settings">Settings and versions</a></li>'
    summary = next((f.text for s in told for f in s.figures.values()), "")
    scores = scores_html(runs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(heading)}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<header>
<h1>{escape(heading)}</h1>
<p>{escape(summary)}</p>
{scores}
<noscript><p><strong>The figures need JavaScript; texts and tables do not.</strong></p></noscript>
<nav aria-label="Sections"><ol>{links}</ol></nav>
</header>
<main>
{body}
<section id="settings">
<h2>Settings and versions</h2>
<h3>Settings</h3>
{_pairs(settings_table(runs), "setting")}
<h3>Versions</h3>
{_pairs(versions(runs), "package")}
</section>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(index: int, section: Section, numbers: Any) -> str:
    drawn = "\n".join(figure_html(next(numbers), figure) for figure in section.figures.values())
    title, prose = escape(section.title), escape(section.prose)
    return f'<section id="s{index}">\n<h2>{title}</h2>\n<p>{prose}</p>\n{drawn}\n</section>'


def figure_html(number: int, figure: Figure, level: int = 3, table: bool = True) -> str:
    """A plot, its controls as the browser's own (so that the keyboard works them), its text and its table.

    number: unique on the page; level: of the figure's heading. `SCRIPT` draws it.
    """
    menus = figure.plot.layout.updatemenus
    axes = [b for b in (menus[0].buttons if menus else ()) if b.method == "update"]
    still = _still(figure)
    data = {
        "plot": json.loads(still.to_json()),
        "frames": [_frame(f) for f in figure.plot.frames],
        "texts": figure.frame_texts,
        "axes": [_update(b) for b in axes],
    }
    controls = ""
    if axes:
        options = "".join(f"<option>{escape(b.label)}</option>" for b in axes)
        controls += f'<label>Budget <select id="a{number}">{options}</select></label>'
    if len(figure.frame_texts) > 1:
        last = len(figure.frame_texts) - 1
        first = escape(figure.frame_texts[last])
        controls += (
            f'<label for="r{number}">Round</label>'
            f'<input type="range" id="r{number}" min="0" max="{last}" value="{last}" step="1">'
            f'<button type="button" id="p{number}">Play</button>'
            f'<output for="r{number}" id="o{number}" aria-live="polite">{first}</output>'
        )
    controls = f'<div class="controls">{controls}</div>' if controls else ""
    text = escape(figure.text)
    height = still.layout.height
    return f"""<figure id="f{number}">
<h{level}>{escape(still.layout.title.text)}</h{level}>
<div class="plot" id="d{number}" role="img" aria-label="{text}" style="--height:{height}px"></div>
{controls}
<figcaption>{text}</figcaption>
{_table(figure) if table else ""}
<script type="application/json" class="figure" data-number="{number}">{_safe(data)}</script>
</figure>"""


def _frame(frame: Any) -> dict[str, Any]:
    data = [{k: _values(v) for k, v in trace.to_plotly_json().items()} for trace in frame.data]
    return {"name": frame.name, "traces": list(frame.traces), "data": data}


def _update(button: Any) -> list[Any]:
    """The three arguments of Plotly.update: new x of every trace, new titles, which traces."""
    traces, titles, which = button.args
    return [{"x": [_values(x) for x in traces["x"]]}, titles, list(which)]


def _values(value: Any) -> Any:
    """Lists, with null where a number is missing: JSON has no nan."""
    if not hasattr(value, "__iter__") or isinstance(value, str):
        return value
    return [None if v is None or v != v else float(v) for v in value]


def _safe(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _table(figure: Figure) -> str:
    if figure.table.empty:
        return ""
    columns = list(figure.table.columns)
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>"
        for row in figure.table.itertuples(index=False)
    )
    count = f"{len(figure.table)} row" + ("" if len(figure.table) == 1 else "s")
    return f"""<details><summary>The numbers ({count})</summary>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"""


def _cell(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    return "" if value != value else brief(float(value))


def _pairs(values: Any, name: str) -> str:
    if not values:
        return "<p>None were recorded.</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>' for k, v in values.items()
    )
    head = f'<thead><tr><th scope="col">{name}</th><th scope="col">value</th></tr></thead>'
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def scores_html(runs: list[History]) -> str:
    """A paragraph with the scores of a single run at its end; empty for a race, whose figures have them."""
    if len(runs) > 1 or not runs[0].scores:
        return ""
    metric = runs[0].settings.metric
    parts = [
        f"{name} {metric} {brief(value)}" if name in ("dev", "test") else f"{name} {brief(value)}"
        for name, value in runs[0].scores.items()
    ]
    return f"<p>Scores at the end: {escape(', '.join(parts))}.</p>"


STYLE = """
:root { color-scheme: light; }
body { font: 17px/1.55 "Open Sans", "DejaVu Sans", Arial, sans-serif; color: #222; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 2rem; line-height: 1.2; }
h2 { margin-top: 3rem; border-top: 2px solid #222; padding-top: 1rem; }
h3 { font-size: 1.15rem; margin-bottom: .2rem; }
figure { margin: 2rem 0; } .plot { height: var(--height); } figcaption { max-width: 75ch; }
a { color: #0058a3; } :focus-visible { outline: 3px solid #D55E00; outline-offset: 2px; }
.controls { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; margin: .3rem 0 .8rem; }
.controls input { flex: 1 1 20rem; accent-color: #D55E00; }
.controls output { flex: 1 1 100%; font-weight: 600; }
button, select { font: inherit; padding: .25rem .8rem; }
table { border-collapse: collapse; font-size: .95rem; } .wide { overflow-x: auto; max-height: 26rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd;
  vertical-align: top; }
summary { cursor: pointer; }
@media print { .controls, nav, details { display: none; } figure { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
for (const source of document.querySelectorAll("script.figure")) {
  const n = source.dataset.number, content = JSON.parse(source.textContent);
  const plot = document.getElementById("d" + n), layout = content.plot.layout;
  layout.title.text = "";  // the heading above the plot says it
  layout.margin.t = layout.title.subtitle && layout.title.subtitle.text ? 70 : 46;
  if (plot.closest(".slide")) delete layout.height;  // the screen says it
  Plotly.newPlot(plot, content.plot.data, layout, {responsive: true, displaylogo: false});
  const axis = document.getElementById("a" + n);
  if (axis) axis.addEventListener("change", () => Plotly.update(plot, ...content.axes[axis.selectedIndex]));
  const range = document.getElementById("r" + n);
  if (!range) continue;
  const words = document.getElementById("o" + n), play = document.getElementById("p" + n);
  let timer = null;
  function show(i) {
    const frame = content.frames[i], update = {};
    range.value = i;
    words.textContent = content.texts[i];
    range.setAttribute("aria-valuetext", content.texts[i]);
    for (const key of ["x", "y"]) {
      const traces = frame.traces.filter((_, k) => key in frame.data[k]);
      const values = frame.data.filter(d => key in d).map(d => d[key]);
      if (traces.length) Plotly.restyle(plot, {[key]: values}, traces);
    }
  }
  function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
  range.addEventListener("input", () => { stop(); show(+range.value); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    if (+range.value === content.frames.length - 1) show(0);
    const last = content.frames.length - 1;
    timer = setInterval(() => +range.value < last ? show(+range.value + 1) : stop(), 200);
  });
}
"""
