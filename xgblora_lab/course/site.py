"""What stands on the site beside the lessons: the playground, the API reference, the teacher's pack."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xgblora_lab.course import sources
from xgblora_lab.course.pack import ARCHIVE, pack
from xgblora_lab.course.reference import reference
from xgblora_lab.files import replaced
from xgblora_lab.report.playground import playground

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
    """Write the teacher's pack: its pages, and one archive of its texts and the notebooks with solutions.

    Raises
    ------
    FileNotFoundError
        There are no instructor's notebooks.
    """
    found = sources.shipped(instructor=True)
    texts = sorted(found[0].parent.glob("*.md"))
    pages = pack(found[0].parent, out)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (*texts, *found):
            archive.writestr(zipfile.ZipInfo(path.name, _DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    with replaced(out / ARCHIVE) as partial:
        partial.write_bytes(packed.getvalue())
    return pages[0]


PARTS = (
    Part("playground", "The playground", "Press “next round” now, without installing anything.", playground),
    Part("reference", "The reference", "Every public name of the library, with shapes and units.", reference),
    Part("teachers", "For instructors", "Scripts, slides, polls, a handout, a quiz, the answers.", teachers),
)
