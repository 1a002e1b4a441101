"""The teacher's pack: scripts, polls, quiz, handout and deck, made from the Markdown beside the solutions."""

from __future__ import annotations

import re
from pathlib import Path

from xgblora_lab.course import script
from xgblora_lab.course.deck import Board, board
from xgblora_lab.report.written import Slide, deck, sheet

ARCHIVE = "notebooks-with-solutions.zip"  # beside the pages
_MARK = re.compile(r"\{(\w+)\}")
_PICTURE = re.compile(r"^\{picture: (\w+)\}$", re.M)
_ANSWER = re.compile(r"^\*\*(?:Answer|Right)\.\*\* ", re.M)


def pack(folder: Path, out: Path, shown: Board | None = None) -> list[Path]:
    """Write the pages of the pack.

    Parameters
    ----------
    folder : Path
        With the Markdown, `notebooks/instructor`.
    out : Path
        Where the pages go. A section's heading leads to the lesson's page, where there is one beside `out`.
    shown : Board, optional
        What deck and handout show; default, it is computed now.

    Returns
    -------
    list of Path
        The pages.

    Raises
    ------
    KeyError
        A text names a number or a picture that there is not.
    """
    shown = shown or board()
    text = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    made = [_sheet(out / "index.html", _guide(text["README"]))]
    for name in text:
        if name.startswith("script_"):
            made.append(_sheet(out / f"{name}.html", _class(text[name], text["script"], out.parent)))
    made.append(_sheet(out / "polls.html", text["polls"]))
    made.append(_sheet(out / "quiz.html", questions(text["quiz"])))
    made.append(_handout(out / "handout.html", text["handout"], shown))
    made.append(_polls(out / "polls_slides.html", text["polls"]))
    made.append(_deck(out / "deck.html", text["deck"], shown))
    return made


def html(markdown: str) -> str:
    """Return Markdown as HTML, as a notebook shows it; links to other texts of the pack lead to pages."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    linked = re.sub(r"\]\((\w+)\.md\)", r"](\1.html)", markdown)
    made = MarkdownWithMath(renderer=IPythonRenderer(escape=False, exclude_anchor_links=True)).render(linked)
    return re.sub(r"<th(?=[ >])", '<th scope="col"', str(made))


def questions(quiz: str) -> str:
    """Return the quiz without its answers, for the students."""
    head, *parts = re.split(r"(?m)^(?=## )", quiz)
    asked = [_ANSWER.split(part)[0].rstrip() for part in parts]
    return "\n\n".join([head.partition("\n")[0], *asked]) + "\n"


def _title(markdown: str) -> str:
    return markdown.partition("\n")[0].removeprefix("# ")


def _sheet(path: Path, markdown: str) -> Path:
    return sheet(path, _title(markdown), f"{_title(markdown)}: for teachers of xgblora_lab.", html(markdown))


def _guide(readme: str) -> str:
    head, rest = readme.split("\n", 1)
    links = "[All lessons, as they ran](../index.html) · [The polls as slides](polls_slides.html) · "
    return f"{head}\n\n{links}[All notebooks with their solutions, and these texts]({ARCHIVE})\n{rest}"


def _class(plan: str, text: str, lessons: Path) -> str:
    """The plan of a class, and behind it the entries that it chooses, each with its minutes."""
    entries = script.entries(text)
    intro = re.split(r"(?m)^## ", text)[0].split("\n", 1)[1].strip()
    parts = [plan, "## How to read it", intro]
    for row in script.rows(plan):
        if row.place == script.BREAK:
            parts.append(f"## Break ({row.minutes} minutes)")
            continue
        entry = script.entry_of(row.place, entries)
        if entry is None:
            raise KeyError(f"script.md has no entry for {row.place}.")
        page = next(iter(sorted(lessons.glob(f"{entry.place[:2]}_*.html"))), None)
        place = f"[{entry.place}](../{page.name})" if page else entry.place
        tasks = "".join(f"; {kind} {number}" for kind, number, *_ in row.tasks)
        parts += [f"## {place} ({row.minutes} minutes{tasks})", entry.text.strip()]
    return "\n\n".join(parts) + "\n"


def _filled(markdown: str, shown: Board) -> str:
    """The text with the board's numbers in the place of their names."""
    return _MARK.sub(lambda mark: shown.numbers[mark[1]], markdown)


def _handout(path: Path, markdown: str, shown: Board) -> Path:
    body = html(_filled(markdown, shown)).replace("<p>{picture: stairs}</p>", shown.stairs)
    about = "What a round does, how good a rank can be, and how to race fairly, on two pages."
    return sheet(path, _title(markdown), about, body)


def _slides(markdown: str) -> list[tuple[str, str]]:
    parts = re.split(r"(?m)^## (.+)$", markdown)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _deck(path: Path, markdown: str, shown: Board) -> Path:
    slides = []
    for title, body in _slides(_filled(markdown, shown)):
        picture = _PICTURE.search(body)
        figure = shown.pictures[picture[1]] if picture else None
        slides.append(Slide(title, html(_PICTURE.sub("", body)), figure))
    return deck(path, _title(markdown), _lead(markdown), slides)


def _polls(path: Path, markdown: str) -> Path:
    slides = [Slide(title, html(_ANSWER.split(body)[0])) for title, body in _slides(markdown)]
    return deck(path, _title(markdown), "Choose first, then talk.", slides)


def _lead(markdown: str) -> str:
    found = re.search(r"(?m)^\*(.+)\*$", markdown)
    return found[1] if found else ""
