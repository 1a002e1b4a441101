"""The README's section on the layout, counted from the files: `python tests/layout.py` updates it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

from xgblora_lab.files import write_text

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- layout -->\n", "<!-- /layout -->\n"

TOP = {
    "xgblora_lab": "the library",
    "notebooks": "the lessons; `source/` is what is edited",
    "tests": "oracles, refusals, every notebook",
    "benchmarks": "what a round costs (`python -m benchmarks`); races: commands, tables, histories",
    "binder": "the environment for Binder, from conda-forge",
    "pyproject.toml": "metadata, dependencies, settings of ruff, mypy and pytest",
    "README.md": "this page",
    "CONTRIBUTING.md": "the repository's habits, on one screen",
    "CHANGELOG.md": "what changed, by version",
    "LICENSE": "Apache-2.0",
    ".ci": "`run`: the README's test command on a bare machine; the one pinned version",
    ".github": "the workflow, which calls `.ci/run`",
    ".pre-commit-config.yaml": "the checks before a commit",
    ".gitignore": "what a checkout keeps to itself",
}


def files() -> list[str]:
    """Paths that belong to the repository: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(path for path in set(listed) if (ROOT / path).is_file())


def idea(path: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z`)])(?<! al)\. ", paragraph)[0].rstrip(".").replace("|", r"\|")


def layout(paths: list[str]) -> str:
    """The section's text."""
    count = Counter(path.split("/")[0] for path in paths)
    missing = sorted(set(count) - set(TOP))
    if missing:
        raise ValueError(f"tests/layout.py does not say what {', '.join(missing)} is")
    lines = ["| where | files | what |", "| --- | ---: | --- |"]
    lines += [
        f"| `{name}{'/' * (ROOT / name).is_dir()}` | {count[name]} | {TOP[name]} |"
        for name in TOP
        if count[name]
    ]
    inside = Counter(path.split("/")[1] for path in paths if path.startswith("xgblora_lab/"))
    lines += ["", "The library, one idea per file:", "", "| file | the one idea |", "| --- | --- |"]
    for name in sorted(inside):
        path = ROOT / "xgblora_lab" / name
        if path.is_dir() and (path / "__init__.py").is_file():
            lines.append(f"| `{name}/` ({inside[name]} files) | {idea(path / '__init__.py')} |")
        elif path.suffix == ".py":
            lines.append(f"| `{name}` | {idea(path)} |")
    return "\n".join(lines) + "\n"


def split(readme: str) -> tuple[str, str, str]:
    """The README before, in and after the section."""
    before, rest = readme.split(START)
    inside, after = rest.split(END)
    return before, inside, after


def main() -> None:
    path = ROOT / "README.md"
    before, _, after = split(path.read_text(encoding="utf-8"))
    write_text(path, before + START + layout(files()) + END + after)


if __name__ == "__main__":
    main()
