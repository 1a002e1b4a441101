"""The teacher's pack agrees with notebooks and races: sections, seconds, minutes, numbers, answers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from synthetic import small_board

from xgblora_lab.course import sources
from xgblora_lab.course.deck import board
from xgblora_lab.course.gallery import broken_links
from xgblora_lab.course.pack import html, pack, questions
from xgblora_lab.course.script import entries, headings, problems, rows
from xgblora_lab.course.times import SECTIONS, by_section, measured

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "notebooks" / "instructor"
STUDENTS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PLACE = re.compile(r"· (\d\d · .+)$", re.M)


def text(name: str) -> str:
    return (TEXTS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def known() -> set[str]:
    return headings(STUDENTS)


def test_every_demo_is_a_section_and_every_class_fits_its_minutes(known: set[str]) -> None:
    seconds = measured(ROOT / "notebooks" / "source", SECTIONS)
    assert problems(TEXTS, known, seconds) == []
    assert [path.stem for path in sorted(TEXTS.glob("script_*.md"))] == [
        "script_180",
        "script_45",
        "script_90",
    ]
    demos = {entry.place for entry in entries(text("script.md")).values() if entry.seconds("Run")}
    looked_at = {place[:2] for place in seconds}
    assert demos <= set(seconds)
    assert looked_at == {path.stem[:2] for path in STUDENTS}  # `python -m xgblora_lab.course.measure`


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("script.md", "## 01 · 2 · Boosting by hand", "## 01 · 2 · By foot", "no section 01 · 2 · By foot"),
        ("script.md", "section's cells (2 s)", "section's cells (0 s)", "boosting. takes 1 s, and says 0"),
        ("script.md", "(240 s)", "(1 s)", "03 · 9 · When does boosting win. it takes 200 s, and says 1"),
        ("script.md", "**If it fails.** Without a slider", "Without a slider", r"lacks \*\*Expect"),
        ("script_45.md", "| 6 | 00 · 1", "| 60 | 00 · 1", "its rows have 99 minutes, the class 45"),
        ("script_45.md", "| 6 | 00 · 1", "| 1 | 00 · 1", r"00 · 1 needs [\d.]+ minutes and has 1"),
        ("script_45.md", "01 · 6", "01 · 16", "no entry for 01 · 16"),
        ("script_45.md", "poll 6", "poll 16", "there is no poll 16"),
        ("script_45.md", "exercise 4.1", "exercise 4.7", "notebook 01 has no exercise 4.7"),
        ("script_90.md", "exercise 3.1 alone, 10", "exercise 3.1 alone, 3", "takes 10 minutes alone, not 3"),
        ("script_180.md", "In minutes: talking", "In minutes: singing", "it should say: In minutes: talking"),
    ],
)
def test_what_does_not_agree_is_found(
    name: str, old: str, new: str, sentence: str, known: set[str], tmp_path: Path
) -> None:
    for path in TEXTS.glob("*.md"):
        shutil.copyfile(path, tmp_path / path.name)
    assert old in text(name)
    (tmp_path / name).write_text(text(name).replace(old, new, 1), encoding="utf-8")
    seconds = {"00 · 1 · What is boosting?": 1.0, "03 · 2 · The spectrum, round by round": 40.0}
    seconds["03 · 9 · When does boosting win?"] = 160.0
    assert re.search(sentence, "\n".join(problems(tmp_path, known, seconds)))


def test_sections_share_what_the_notebook_took() -> None:
    notebook = sources.read(STUDENTS[0])
    for cell in notebook.cells:
        cell.metadata["papermill"] = {"duration": float(cell.cell_type == "code")}
    took = by_section(notebook, "00", None)
    assert took["00 · 1 · What is boosting?"] == 2  # it has two cells of code
    halved = by_section(notebook, "00", cpu_seconds=sum(took.values()) / 2)
    assert all(halved[place] == seconds / 2 for place, seconds in took.items())
    assert set(took) <= headings(STUDENTS[:1])


def test_twenty_questions_are_answered_by_the_students_notebooks(known: set[str]) -> None:
    quiz = text("quiz.md")
    parts = re.split(r"(?m)^## ", quiz)[1:]
    assert [part.partition("\n")[0] for part in parts] == [str(n) for n in range(1, 21)]
    places = [PLACE.findall(part) for part in parts]
    assert all(len(found) == 1 and found[0] in known for found in places), places
    answers = [" ".join(re.split(r"\*\*Answer\.\*\* ", part)[1].split())[:60] for part in parts]

    def told(handed_out: str) -> list[str]:
        flat = " ".join(handed_out.split())
        return [answer for answer in answers if answer in flat]

    given = [questions(quiz), *(path.read_text(encoding="utf-8") for path in STUDENTS)]
    assert [answer for page in given for answer in told(page)] == []
    assert len(told(quiz)) == 20  # an answer that is there is seen
    assert "## 20" in given[0]
    assert not list((ROOT / "notebooks").glob("*quiz*"))  # the teacher's folder alone has it


def test_ten_polls_say_what_each_wrong_answer_means(known: set[str]) -> None:
    parts = re.split(r"(?m)^## \d+ · ", text("polls.md"))[1:]
    assert len(parts) == 10
    for part in parts:
        asked, answered = part.split("**Right.** ")
        letters = re.findall(r"(?m)^- \((\w)\)", asked)
        wrong = re.findall(r"(?m)^- \((\w)\)", answered)
        right = re.match(r"\((\w)\) · ", answered)
        assert letters == ["a", "b", "c", "d"]
        assert right is not None
        assert sorted([*wrong, right[1]]) == letters
        assert PLACE.findall(answered)[0] in known


def test_the_pages_show_what_was_measured_and_lead_nowhere_wrong(tmp_path: Path) -> None:
    small = small_board()
    out = tmp_path / "teachers"
    (tmp_path / "index.html").write_text("<p>The gallery.")
    (tmp_path / "01_one_matrix.html").write_text("<p>A lesson.")
    pages = pack(TEXTS, out, small)
    (out / "notebooks-with-solutions.zip").touch()
    assert broken_links(pages) == []
    assert {page.name for page in pages} >= {"index.html", "script_45.html", "deck.html", "handout.html"}
    shown = {page.name: page.read_text(encoding="utf-8") for page in pages}
    words = {name: page.split("</style>")[1].split("<script")[0] for name, page in shown.items()}
    assert not [name for name, page in words.items() if re.search(r"\{(picture: )?\w+\}", page)]
    assert shown["deck.html"].count('class="slide') == text("deck.md").count("\n## ") + 1
    pictures = re.findall(r"\{picture: (\w+)\}", text("deck.md"))
    assert sorted(pictures) == sorted(small.pictures)
    assert shown["deck.html"].count('class="plot"') == len(pictures)
    assert f'<td style="text-align:right">{small.numbers["boost_steps"]}</td>' in shown["deck.html"]
    assert "<svg" in shown["handout.html"]
    assert "<strong>Answer" not in shown["quiz.html"]
    assert "<strong>Right" not in shown["polls_slides.html"]
    assert "<strong>Right" in shown["polls.html"]
    assert 'href="../01_one_matrix.html"' in shown["script_45.html"]
    assert "02 · 4 · Press" in shown["script_45.html"]  # without a link: there is no such page here
    for row in rows(text("script_45.md")):
        assert row.place in shown["script_45.html"]
    (out / "texts").mkdir()
    for path in TEXTS.glob("*.md"):
        (out / "texts" / path.name).write_text(path.read_text().replace("{size}", "{length}"))
    with pytest.raises(KeyError, match="length"):
        pack(out / "texts", out / "again", small)


def test_the_races_that_are_quoted_are_those_of_the_benchmarks() -> None:
    committed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")

    def unknown(table: str) -> list[str]:
        quoted = re.findall(
            r"(?m)^\| (?:ten books|planted)[^|]*\| (\S+) \| (\S+) \| (\S+ \(.+?\)) \|$", table
        )
        assert len(quoted) == 3
        return [number for row in quoted for number in row if number.strip("*") not in committed]

    assert unknown(text("deck.md")) == unknown(text("handout.md")) == []
    assert unknown(text("deck.md").replace("4.536", "4.436")) == ["**4.436**"]


def test_a_run_that_shows_something_else_makes_no_deck() -> None:
    small = small_board()
    assert int(small.numbers["high_steps"]) < int(small.numbers["boost_steps"]) < 120
    assert small.pictures["spectrum"].frame_texts
    with pytest.raises(RuntimeError, match="LoRA stops on the tail of its rank; every round ends"):
        board(size=12, rounds=4, kappa=5, lrs=(0.03,))


def test_markdown_becomes_what_a_page_can_show() -> None:
    made = html("See [the polls](polls.md).\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n")
    assert 'href="polls.html"' in made
    assert made.count('<th scope="col"') == 2
