"""What a teacher says, asks and runs, section by section, and whether it fits into the class.

`notebooks/instructor/script.md` has an entry for each section of a notebook; `script_45.md` and its like
choose among them and give each its minutes. `problems` reads both beside the notebooks and says where they do
not agree: a section that was renamed, a demo that takes longer than it says, a class that runs over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xgblora_lab.course import sources

SPOKEN = 130  # words a minute
HEARD = 40  # seconds to hear two guesses, after each question
BREAK = "break"
_LABELS = "Say|Ask|Run|Before|Expect|If it fails"
_FIELD = re.compile(rf"^\*\*({_LABELS})\.\*\* (.+?)(?=^\*\*(?:{_LABELS})\.\*\*|\Z)", re.M | re.S)
_ROW = re.compile(rf"^\| (\d+) \| (\d\d · [^|]+?|{BREAK}) \|(.*)\|$", re.M)
_TASK = re.compile(r"(poll|exercise) ([\d.]+)(?: (alone|together|by hands))?, (\d+)")
_MINUTES = re.compile(r" \((\d+) minutes, \w+\)$")


@dataclass(frozen=True)
class Entry:
    """What happens in class in one section of a notebook.

    Parameters
    ----------
    place : str
        The notebook's number and the section's heading, as "01 · 2 · Boosting by hand".
    text : str
        Markdown: paragraphs that begin with **Say.**, **Ask.**, **Run.**, **Before.**, **Expect.** or
        **If it fails.**
    """

    place: str
    text: str

    def of(self, *labels: str) -> list[str]:
        """The paragraphs with one of these labels, in order."""
        return [text.strip() for label, text in _FIELD.findall(self.text) if label in labels]

    def seconds(self, label: str) -> int:
        """The sum of the seconds in parentheses behind a label: to wait, to compute, to compute before."""
        found = re.findall(r"\((?:wait )?(\d+) s\)", " ".join(self.of(label)))
        return sum(map(int, found))

    @property
    def spent(self) -> dict[str, float]:
        """Minutes of talking (on the picture too), of waiting for and hearing guesses, of computing."""
        asked = self.seconds("Ask") + HEARD * len(self.of("Ask"))
        return {
            "talking": sum(len(text.split()) for text in self.of("Say", "Ask", "Expect")) / SPOKEN,
            "guesses": asked / 60,
            "computing": self.seconds("Run") / 60,
        }


@dataclass(frozen=True)
class Row:
    """A line of a class: its minutes, the place it goes to, and its polls and exercises."""

    minutes: int
    place: str
    tasks: tuple[tuple[str, str, str, int], ...]  # kind, number, how, minutes


def entries(text: str) -> dict[str, Entry]:
    """Read a script: its entries by place, in order."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)[1:]
    return {place: Entry(place, body) for place, body in zip(parts[::2], parts[1::2], strict=True)}


def rows(text: str) -> list[Row]:
    """Read a class: the lines of its table that name a section."""
    return [
        Row(int(minutes), place, tuple((k, n, how, int(m)) for k, n, how, m in _TASK.findall(rest)))
        for minutes, place, rest in _ROW.findall(text)
    ]


def entry_of(place: str, script: Mapping[str, Entry]) -> Entry | None:
    """The entry that a class means by "01 · 2", its notebook and the section's number or title."""
    found = [entry for name, entry in script.items() if name == place or name.startswith(f"{place} · ")]
    return found[0] if len(found) == 1 else None


def played(plan: Iterable[Row], script: Mapping[str, Entry]) -> str:
    """Say in a sentence how the minutes of a class are spent."""
    plan = list(plan)
    spent = dict.fromkeys(("talking", "guesses", "computing"), 0.0)
    for entry in (entry_of(row.place, script) for row in plan):
        for name, minutes in entry.spent.items() if entry else ():
            spent[name] += minutes
    spent["polls and exercises"] = sum(minutes for row in plan for *_, minutes in row.tasks)
    spent[BREAK] = sum(row.minutes for row in plan if row.place == BREAK)
    listed = ", ".join(f"{name} {minutes:.0f}" for name, minutes in spent.items() if minutes)
    return f"In minutes: {listed}; together {sum(spent.values()):.0f} of {sum(row.minutes for row in plan)}."


def headings(notebooks: Iterable[Path]) -> set[str]:
    """Every heading of the notebooks behind its notebook's number, as "01 · 2 · Boosting by hand"."""
    found = set()
    for path in notebooks:
        for cell in sources.read(path).cells:
            if cell.cell_type == "markdown":
                titles = re.findall(r"^#{1,3} (.+)$", cell.source, flags=re.M)
                found |= {f"{path.stem[:2]} · {title}" for title in titles}
    return found


def problems(folder: Path, known: set[str], seconds: Mapping[str, float]) -> list[str]:
    """List what is wrong with the script and its classes, in one sentence each.

    Parameters
    ----------
    folder : Path
        Of the script.
    known : set of str
        The notebooks' `headings`.
    seconds : mapping of str to float
        What sections took, by place, in the order of the notebooks.
    """
    script = entries((folder / "script.md").read_text(encoding="utf-8"))
    wrong = [f"There is no section {place} in the notebooks." for place in script if place not in known]
    for entry in script.values():
        wrong += _slower(entry, seconds)
        if entry.of("Expect") and entry.of("If it fails"):
            continue
        wrong.append(f"{entry.place} lacks **Expect.** or **If it fails.**")
    for path in sorted(folder.glob("script_*.md")):
        wrong += [f"{path.name}: {sentence}" for sentence in _class(path, script, known)]
    return wrong


def _slower(entry: Entry, seconds: Mapping[str, float]) -> Iterable[str]:
    """What takes longer than it says: the section itself, or all of its notebook up to its end."""
    if entry.of("Run") and not entry.of("Before") and entry.seconds("Run") < seconds.get(entry.place, 0):
        yield f"{entry.place} takes {seconds[entry.place]:.0f} s, and says {entry.seconds('Run')}."
    if entry.of("Before") and entry.place in seconds:
        places = [place for place in seconds if place[:2] == entry.place[:2]]
        upto = places[: places.index(entry.place) + 1]
        needed, stated = sum(seconds[place] for place in upto), entry.seconds("Before") + entry.seconds("Run")
        if stated < needed:
            yield f"Up to the end of {entry.place} it takes {needed:.0f} s, and says {stated}."


def _class(path: Path, script: Mapping[str, Entry], known: set[str]) -> Iterable[str]:
    text = path.read_text(encoding="utf-8")
    plan = rows(text)
    limit = int(path.stem.rpartition("_")[2])
    if not 0 < sum(row.minutes for row in plan) <= limit:
        yield f"its rows have {sum(row.minutes for row in plan)} minutes, the class {limit}."
    for row in plan:
        entry = entry_of(row.place, script)
        if entry is None:
            if row.place != BREAK:
                yield f"script.md has no entry for {row.place}."
            continue
        needed = sum(entry.spent.values()) + sum(minutes for *_, minutes in row.tasks)
        if needed > row.minutes:
            yield f"{row.place} needs {needed:.1f} minutes and has {row.minutes}."
        for kind, number, how, minutes in row.tasks:
            yield from _task(kind, number, how, minutes, row.place[:2], path.parent, known)
    if played(plan, script) not in text:
        yield f"it should say: {played(plan, script)}"


def _task(
    kind: str, number: str, how: str, minutes: int, notebook: str, folder: Path, known: set[str]
) -> Iterable[str]:
    if kind == "poll":
        if f"\n## {number} · " not in (folder / "polls.md").read_text(encoding="utf-8"):
            yield f"there is no poll {number}."
        return
    found = [title for title in known if title.startswith(f"{notebook} · Exercise {number} · ")]
    alone = _MINUTES.search(found[0]) if found else None
    if alone is None:
        yield f"notebook {notebook} has no exercise {number}."
    elif how == "alone" and minutes < int(alone[1]):
        yield f"exercise {number} of notebook {notebook} takes {alone[1]} minutes alone, not {minutes}."
