"""`python .ci/layout.py` writes the README's section on the layout from the files; `--lines` counts lines."""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- layout -->\n", "<!-- /layout -->\n"

TOP = {
    "xgblora_lab": "the library",
    "notebooks": "the lessons; `source/` is what is edited",
    "tests": "oracles, refusals, every notebook",
    "benchmarks": "what a round costs (`python -m benchmarks`), and what races have shown",
    "binder": "the environment for Binder, from conda-forge",
    "pyproject.toml": "metadata, dependencies, settings of ruff, mypy and pytest",
    "README.md": "this page",
    "CONTRIBUTING.md": "the repository's habits, on one screen",
    "CHANGELOG.md": "what changed, by version",
    "LICENSE": "Apache-2.0",
    ".ci": "`run`: the README's test command on a bare machine; `versions`, `wheel`; `layout.py`: this list",
    ".github": "the workflows: `.ci/run`, and the site of playground and lessons",
    ".pre-commit-config.yaml": "the checks before a commit",
    ".gitignore": "what a checkout keeps to itself",
}

# The rooms and their files, in the order in which to read them. A file that is not named comes last.
ROOMS = {
    "lowrank": "spectra linear booster live_weights ensemble",
    "tasks": "task rows encoding text pydocs planted matrix models identity",
    "methods": "options optimizers schedules base weak_learner xgblora lora full family/",
    "bench": "records hooks alone step measure fit rewind settings bench checkpoint",
    "interop": "driven trainer arguments peft",
    "racing": "tuning race summary",
    "figures": "",
    "report": "contents offline page slides playground recorded",
    "widgets": "",
    "course": "sources parameters execute kernel watch watch_hooks hidden check lesson pages gallery serve",
}
# Beside the rooms: what all of them use, the lab model, and what stands on top.
BESIDE = (
    "disk",
    "files",
    "store",
    "seeds",
    "stored",
    "precision",
    "export",
    "card",
    "lab_model",
    "cli_live",
    "cli_race",
    "cli",
)

CORE = ("lowrank", "bench", "methods/base.py", "methods/xgblora.py", "methods/lora.py", "methods/full.py")
USERS = ("xgblora_lab/racing/race.py race", "xgblora_lab/cli_race.py race")
CORE_LINES, FILE_LINES, FUNCTION_LINES, PARAMETERS = 3500, 350, 60, 12


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
        raise ValueError(f".ci/layout.py does not say what {', '.join(missing)} is")
    lines = ["| where | files | what |", "| --- | ---: | --- |"]
    lines += [
        f"| `{name}{'/' * (ROOT / name).is_dir()}` | {count[name]} | {TOP[name]} |"
        for name in TOP
        if count[name]
    ]
    inside = [path.removeprefix("xgblora_lab/") for path in paths if path.startswith("xgblora_lab/")]
    unknown = {Path(path).parts[0].removesuffix(".py") for path in inside if path.endswith(".py")}
    unknown -= {*ROOMS, *BESIDE, "__init__"}
    if unknown:
        raise ValueError(f".ci/layout.py does not say where {', '.join(sorted(unknown))} stands")
    lines += ["", "The library is ten rooms. Each imports only from those above it:", ""]
    lines += ["| room | the one idea | files |", "| --- | --- | --- |"]
    for room in ROOMS:
        text = idea(ROOT / "xgblora_lab" / room / "__init__.py")
        lines.append(f"| `{room}/` | {text} | {' · '.join(members(room, inside))} |")
    lines += ["", "Beside them:", "", "| where | the one idea |", "| --- | --- |"]
    for name in BESIDE:
        path = ROOT / "xgblora_lab" / name
        if path.is_dir():
            lines.append(f"| `{name}/` | {idea(path / '__init__.py')} |")
        elif path.with_suffix(".py").is_file():
            lines.append(f"| `{name}.py` | {idea(path.with_suffix('.py'))} |")
    return "\n".join(lines) + "\n"


def members(room: str, inside: list[str]) -> list[str]:
    """The names of a room's modules; a folder inside it stands as one, with the number of its files."""
    names: Counter[str] = Counter()
    for path in inside:
        first, *rest = Path(path).parts
        if first == room and rest[0] != "__init__.py":
            names[f"{rest[0]}/" if len(rest) > 1 else rest[0].removesuffix(".py")] += 1
    first = {name: index for index, name in enumerate(ROOMS[room].split())}
    ordered = sorted(names, key=lambda name: (first.get(name, len(first)), name))
    return [f"`{name}`" + f" ({names[name]} files)" * name.endswith("/") for name in ordered]


def lines_of(paths: list[str]) -> dict[str, int]:
    """The number of lines of each Python file of the package."""
    package = [path for path in paths if path.startswith("xgblora_lab/") and path.endswith(".py")]
    return {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in package}


def is_core(path: str) -> bool:
    """Whether a file belongs to the evening's core."""
    return any(path == f"xgblora_lab/{part}" or path.startswith(f"xgblora_lab/{part}/") for part in CORE)


def functions(path: str) -> Iterator[tuple[str, int, int]]:
    """Name, lines of code (without decorators and docstring) and number of parameters of a file's functions.

    The command line's commands and what is in `USERS` are left out: their parameters are what a user gives.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        command = path == "xgblora_lab/cli.py" and node.decorator_list
        if command or f"{path} {node.name}" in USERS:
            continue
        a = node.args
        parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        told = sum(p.arg not in ("self", "cls") for p in parameters)
        text = node.body[0] if ast.get_docstring(node) is not None else None
        documented = text.end_lineno - text.lineno + 1 if text else 0
        yield f"{path}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1 - documented, told


def too_long(paths: list[str]) -> list[str]:
    """A sentence for every limit that does not hold."""
    lines = lines_of(paths)
    core = sum(n for path, n in lines.items() if is_core(path))
    found = [f"the core has {core:,} lines, at most {CORE_LINES:,}"] * (core > CORE_LINES)
    found += [f"{path} has {n} lines, at most {FILE_LINES}" for path, n in lines.items() if n > FILE_LINES]
    for path in lines:
        for name, n, parameters in functions(path):
            if n > FUNCTION_LINES:
                found.append(f"{name} has {n} lines of code, at most {FUNCTION_LINES}")
            if parameters > PARAMETERS:
                found.append(f"{name} has {parameters} parameters, at most {PARAMETERS}")
    return found


def report(paths: list[str]) -> str:
    """The line counts: the core's files, the longest of the others, and what is above a limit."""
    lines = lines_of(paths)
    core = {path: n for path, n in lines.items() if is_core(path)}
    rest = sorted(((n, path) for path, n in lines.items() if path not in core), reverse=True)
    told = [f"{n:6,}  {path}" for path, n in core.items()]
    told += [f"{sum(core.values()):6,}  the core, at most {CORE_LINES:,}", ""]
    told += [f"{n:6,}  {path}" for n, path in rest[:10]]
    told += [f"{sum(lines.values()):6,}  the package", "", *(too_long(paths) or ["every limit holds"])]
    return "\n".join(told)


def split(readme: str) -> tuple[str, str, str]:
    """The README before, in and after the section."""
    before, rest = readme.split(START)
    inside, after = rest.split(END)
    return before, inside, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", action="store_true", help="print the line counts and write nothing")
    if parser.parse_args().lines:
        print(report(files()))
        return
    path = ROOT / "README.md"
    before, _, after = split(path.read_text(encoding="utf-8"))
    partial = path.with_name("README.md.partial")
    partial.write_text(before + START + layout(files()) + END + after, encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
