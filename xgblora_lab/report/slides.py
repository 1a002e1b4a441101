"""Slides: the report's figures, one to a screen, in one HTML file that needs no network and no kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xgblora_lab.files import check_file, write_text
from xgblora_lab.report.contents import Source
from xgblora_lab.report.page import render


def slides(source: Source, path: str | Path, *, title: str | None = None, cells: Any = None) -> Path:
    """Write the figures of a report as slides, whole or not at all.

    The first slide has the title. Every figure follows on a slide of its own, with its sentence and, where it
    scrubs, its slider. The keys → and ←, page down and page up, and scrolling lead on and back. Printing
    gives one page per slide.

    Parameters
    ----------
    source, title, cells
        As for `report`.
    path : str or Path
        The HTML file.

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
    write_text(path, render("slides.html", source, title, cells))
    return Path(path)
