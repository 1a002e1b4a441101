"""Written pages: a deck of slides and a sheet to print, from HTML, with a figure where a slide has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xgblora_lab.figures import Figure
from xgblora_lab.files import check_file, write_text
from xgblora_lab.report.offline import ICON, packed, policy, script, template
from xgblora_lab.report.page import templates, view


@dataclass(frozen=True)
class Slide:
    """One screen.

    Parameters
    ----------
    title : str
        Its heading, plain text.
    body : str
        HTML, below the figure.
    figure : Figure, optional
        Its text stands below it, and its slider where it has frames.
    """

    title: str
    body: str
    figure: Figure | None = None


def deck(path: str | Path, title: str, lead: str, slides: Sequence[Slide]) -> Path:
    """Write slides as one HTML file that loads nothing: → and ← lead on and back, printing gives a PDF.

    Parameters
    ----------
    path : str or Path
        The HTML file.
    title, lead : str
        Of the first slide, plain text.
    slides : sequence of Slide
        The others, in order.

    Returns
    -------
    Path
        `path`.
    """
    check_file(path)
    shown = []
    for number, slide in enumerate(slides, 2):
        drawn = view(slide.figure, number) | {"title": slide.title} if slide.figure else None
        shown.append({"number": number, "title": slide.title, "body": slide.body, "drawn": drawn})
    plotly = packed() if any(slide.figure for slide in slides) else None
    keys = script("figures.js", "keys.js") if plotly else template("keys.js").decode()
    page = (
        templates()
        .get_template("deck.html")
        .render(
            heading=title,
            lead=lead,
            slides=shown,
            icon=ICON,
            plotly=plotly.tag if plotly else "",
            script=keys,
            policy=policy([keys], plotly),
        )
    )
    write_text(path, page)
    return Path(path)


def sheet(path: str | Path, title: str, about: str, body: str) -> Path:
    """Write a page of words to read and to print on A4; a horizontal rule begins a new page.

    Parameters
    ----------
    path : str or Path
        The HTML file.
    title, about : str
        Of the page in the browser, and what a search engine shows of it; plain text.
    body : str
        HTML, its heading included.

    Returns
    -------
    Path
        `path`.
    """
    check_file(path)
    page = (
        templates()
        .get_template("sheet.html")
        .render(heading=title, lead=about, body=body, icon=ICON, plotly="", script="", policy=policy([]))
    )
    write_text(path, page)
    return Path(path)
