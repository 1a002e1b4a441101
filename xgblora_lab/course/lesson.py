"""What a notebook says about itself at its head."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode


@dataclass(frozen=True)
class Lesson:
    """What a notebook says about itself at its head; each text is empty where it says nothing."""

    title: str
    question: str
    time: str  # to work through it


def lesson(notebook: NotebookNode) -> Lesson:
    """Read title, question and time from the first Markdown cell with a heading.

    The title is its first line, the question the first paragraph that is wholly in italics, and the time what
    follows `**Time.**` up to the end of the sentence.
    """
    heads = (c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# "))
    head = next(heads, "")
    title = head.partition("\n")[0].removeprefix("# ").strip()
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", head)]
    italics = (m[1] for p in paragraphs if (m := re.fullmatch(r"[*_](?![*_])(.+?)(?<![*_])[*_]", p)))
    time = re.search(r"\*\*Time\.\*\* ([^.]+)\.", " ".join(paragraphs))
    return Lesson(title, next(italics, ""), time[1] if time else "")
