"""How long a lesson takes: reading by its words, exercises by their headings, computing as it was measured.

`python -m xgblora_lab.course.measure` runs the notebooks and writes what they took to
`notebooks/source/seconds.json`. The build puts the sum into each notebook's head. What each section took
goes to `sections.json` beside it, which the teacher's script is held to.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

MARK = "{time}"  # what the build replaces in a source's head
SECONDS = "seconds.json"
SECTIONS = "sections.json"
WORDS_A_MINUTE = 180
_EXERCISE = re.compile(r"^### Exercise [\d.]+ · .+ \((\d+) minutes, (?:easy|medium|hard)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Minutes:
    """What a lesson takes, in minutes.

    Parameters
    ----------
    reading : float
        Of the text and of the code that is not folded; references and what is tagged `lookup` are left out.
    exercises : float
        The sum of what their headings say.
    computing : float or None
        Of the `laptop` profile, on one processor; None where nobody has measured it.
    """

    reading: float
    exercises: float
    computing: float | None

    def __str__(self) -> str:
        whole = 5 * math.ceil((self.reading + self.exercises + (self.computing or 0)) / 5)
        parts = [f"{max(1, round(self.reading))} to read"]
        if self.exercises:
            parts.append(f"{self.exercises:.0f} for the exercises")
        if self.computing is not None:
            parts.append(f"{max(1, math.ceil(self.computing))} for computing on a laptop")
        return f"About {whole} minutes: {', '.join(parts)}"


def minutes(cells: list[NotebookNode], seconds: float | None) -> Minutes:
    """Return what a student's notebook takes.

    Parameters
    ----------
    cells : list of NotebookNode
        Of the student's version.
    seconds : float or None
        Measured computing.
    """
    words, exercises = 0, 0
    for cell in cells:
        looked_up = "lookup" in cell.metadata.get("tags", [])
        if looked_up or cell.metadata.get("jupyter", {}).get("source_hidden"):
            continue
        words += len(cell.source.partition("\n## References")[0].split())
        if cell.cell_type == "markdown":
            exercises += sum(map(int, _EXERCISE.findall(cell.source)))
    computing = None if seconds is None else seconds / 60
    return Minutes(words / WORDS_A_MINUTE, exercises, computing)


def measured(folder: Path, name: str = SECONDS) -> dict[str, float]:
    """Return the measured seconds by notebook, or by section, from a file in this folder; else nothing."""
    path = folder / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def by_section(notebook: NotebookNode, number: str, cpu_seconds: float | None) -> dict[str, float]:
    """Return what each section of an executed notebook took, in seconds, by "01 · 2 · Boosting by hand".

    Parameters
    ----------
    notebook : NotebookNode
        With the durations that papermill leaves.
    number : str
        Of the notebook, "01".
    cpu_seconds : float or None
        Of the whole run. Where it is known, sections share it by their durations, so that a busy machine
        does not count.
    """
    took: dict[str, float] = {}
    place = ""
    for cell in notebook.cells:
        titles = re.findall(r"^##? (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        place = f"{number} · {titles[-1]}" if titles else place
        if place:  # what stands above the title belongs to no section
            took[place] = took.get(place, 0.0) + (cell.metadata.get("papermill", {}).get("duration") or 0.0)
    total = sum(took.values())
    share = cpu_seconds / total if cpu_seconds and total else 1.0
    return {place: round(share * seconds, 1) for place, seconds in took.items()}
