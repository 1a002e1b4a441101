"""One HTML file that tells a run or a race, works offline by double click, and scrubs without a kernel."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.bench.records import History
from xgblora_lab.figures import Figure
from xgblora_lab.figures._read import brief, subject
from xgblora_lab.files import check_file, replaced, write_text
from xgblora_lab.report.contents import Source, histories, lead, sections, settings_table, versions
from xgblora_lab.report.offline import ICON, packed, policy
from xgblora_lab.report.offline import script as joined

if TYPE_CHECKING:
    from jinja2 import Environment


def report(source: Source, path: str | Path, *, title: str | None = None, cells: Any = None) -> Path:
    """Write the report of runs or a race as one HTML file, whole or not at all.

    The file carries plotly.js, packed, and loads nothing. A content-security policy lets no other script run.

    Parameters
    ----------
    source : History, Race, str, Path or a list of these
        A history, a race, the folder of a run or a race, or a JSON file.
    path : str or Path
        The HTML file.
    title : str, optional
        The heading; default the run's or the race's subject.
    cells : DataFrame, optional
        The table of `figures.boosting_map`.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    FileNotFoundError
        There is no run in a folder.
    ValueError
        A source is not a history, or there is none.
    FileExistsError, NotADirectoryError, PermissionError
        At `path` there is something else than a plain file, or no file may be written there.
    """
    check_file(path)
    write_text(path, render("report.html", source, title, cells))
    return Path(path)


def export_images(
    source: Source,
    folder: str | Path,
    format: str = "png",
    *,
    cells: Any = None,
    width: int = 1200,
    scale: float = 2,
) -> list[Path]:
    """Write every figure of the report as an image, and its text beside it.

    Parameters
    ----------
    source, cells
        As for `report`.
    folder : str or Path
        Where `<section>-<figure>.png` (or svg) and the `.txt` of the same name go.
    format : {"png", "svg"}
        Pixels, or lines that scale.
    width : int, default 1200
        Width in pixels, before `scale`.
    scale : float, default 2
        Pixels of a png per pixel of `width`.

    Returns
    -------
    list of Path
        The images.

    Raises
    ------
    ValueError
        `format` is neither png nor svg.
    RuntimeError
        Kaleido or a browser is missing; the sentence says what to install, and nothing is written.
    """
    if format not in ("png", "svg"):
        raise ValueError(f"Images are written as 'png' or 'svg', not {format!r}.")
    drawn = {
        f"{number:02d}-{name}": figure
        for number, section in enumerate(sections(histories(source), cells), 1)
        for name, figure in section.figures.items()
    }
    images = {name: _image(figure, format, width, scale) for name, figure in drawn.items()}
    written = []
    for name, image in images.items():
        written.append(Path(folder) / f"{name}.{format}")
        with replaced(written[-1]) as partial:
            partial.write_bytes(image)
        write_text(Path(folder) / f"{name}.txt", str(drawn[name]) + "\n")
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


def render(template: str, source: Source, title: str | None, cells: Any) -> str:
    """Return a page of this room: what `source` tells, through one of the `templates`.

    Parameters
    ----------
    template : str
        `report.html` or `slides.html`.
    source, title, cells
        As for `report`.
    """
    runs = histories(source)
    numbers = count(1)
    told = []
    for part in sections(runs, cells):
        drawn = [view(figure, next(numbers)) for figure in part.figures.values()]
        told.append({"title": part.title, "prose": part.prose, "figures": drawn})
    plotly = packed()
    script = joined("figures.js", *(["keys.js"] if template == "slides.html" else []))
    return (
        templates()
        .get_template(template)
        .render(
            heading=title or heading_of(runs),
            sections=told,
            scores=_scores(runs),
            settings=settings_table(runs),
            versions=versions(runs),
            lead=lead(runs),
            icon=ICON,
            plotly=plotly.tag,
            script=script,
            policy=policy([script], plotly),
        )
    )


def templates() -> Environment:
    """Return the templates of this room: what they print is escaped, and an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("xgblora_lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return found


def view(figure: Figure, number: int) -> dict[str, Any]:
    """Return what the templates show of a figure; `number` is unique on the page."""
    menus = figure.plot.layout.updatemenus
    axes = [b for b in (menus[0].buttons if menus else ()) if b.method == "update"]
    still = _still(figure)
    return {
        "number": number,
        "title": still.layout.title.text,
        "text": figure.text,
        "height": still.layout.height,
        "axes": [button.label for button in axes],
        "scrubs": len(figure.frame_texts) > 1,
        "columns": [str(column) for column in figure.table.columns],
        "rows": [[_cell(v) for v in row] for row in figure.table.itertuples(index=False)],
        "data": {  # for figures.js
            "plot": json.loads(still.to_json()),
            "frames": [_frame(f) for f in figure.plot.frames],
            "texts": figure.frame_texts,
            "axes": [_update(b) for b in axes],
        },
    }


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


def _cell(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    return "" if value != value else brief(float(value))


def _scores(runs: list[History]) -> str:
    """Return the scores of a single run at its end, in words; empty for a race, whose figures have them."""
    if len(runs) > 1 or not runs[0].scores:
        return ""
    metric = runs[0].settings.metric
    parts = [
        f"{name} {metric} {brief(value)}" if name in ("dev", "test") else f"{name} {brief(value)}"
        for name, value in runs[0].scores.items()
    ]
    return ", ".join(parts)
