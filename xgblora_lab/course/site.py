"""What stands on the site beside the lessons: the playground, the API reference, the teacher's pack."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xgblora_lab.course import sources
from xgblora_lab.course.pages import to_html
from xgblora_lab.course.reference import reference
from xgblora_lab.files import replaced, write_text
from xgblora_lab.report.playground import playground

PACK = "notebooks-with-solutions.zip"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that an archive knows: the same files, the same archive


@dataclass(frozen=True)
class Part:
    """A part of the site.

    Parameters
    ----------
    name : str
        Its folder.
    title, about : str
        What the site's first page calls it, and says of it.
    make : callable
        Writes it into a folder and returns its first page.
    """

    name: str
    title: str
    about: str
    make: Callable[[Path], Path]


def teachers(out: Path) -> Path:
    """Write the teacher's pack: the guide as a page, and the notebooks with solutions as one archive.

    Raises
    ------
    FileNotFoundError
        There are no instructor's notebooks.
    """
    from nbformat.v4 import new_markdown_cell, new_notebook

    found = sources.shipped(instructor=True)
    guide = (found[0].parent / "README.md").read_text(encoding="utf-8")
    link = f"[All notebooks with their solutions, and this guide]({PACK})"
    head, rest = guide.split("\n", 1)
    page = new_notebook(cells=[new_markdown_cell(f"{head}\n\n{link}\n{rest}")])
    write_text(
        out / "index.html", to_html(page, title="For instructors", about="How to teach with xgblora_lab.")
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (found[0].parent / "README.md", *found):
            archive.writestr(zipfile.ZipInfo(path.name, _DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    with replaced(out / PACK) as partial:
        partial.write_bytes(packed.getvalue())
    return out / "index.html"


PARTS = (
    Part("playground", "The playground", "Press “next round” now, without installing anything.", playground),
    Part("reference", "The reference", "Every public name of the library, with shapes and units.", reference),
    Part(
        "teachers", "For instructors", "A plan for the class, the answers, the notebooks to take.", teachers
    ),
)
