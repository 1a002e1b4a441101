"""What the wheel and the sdist hold, by the patterns that the build reads: all that runs, and no more."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pathspec
import pytest

tomllib = pytest.importorskip("tomllib", reason="Python reads TOML since 3.11")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no clone of the repository")
    return done.stdout.splitlines()


def packed(target: str, files: list[str]) -> set[str]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    patterns = settings["targets"][target]["include"]
    return set(pathspec.PathSpec.from_lines("gitignore", patterns).match_files(files))


def test_the_wheel_holds_the_library_and_the_lessons(tracked):
    wheel = packed("wheel", tracked)
    assert {path for path in tracked if path.startswith("xgblora_lab/")} <= wheel
    lessons = {path for path in wheel if path.endswith(".ipynb")}
    assert lessons == {path for path in tracked if path.endswith(".ipynb")}
    assert len(lessons) >= 20
    others = {path for path in wheel - lessons if not path.startswith("xgblora_lab/")}
    assert others == {path for path in tracked if path.startswith("notebooks/instructor/")} - lessons
    for needed in (
        "lab_model/model.safetensors",
        "widgets/panel.js",
        "report/templates/base.html",
        "py.typed",
    ):
        assert f"xgblora_lab/{needed}" in wheel


def test_the_sdist_holds_what_the_wheel_is_built_from_and_the_tests(tracked):
    sdist = packed("sdist", tracked)
    assert packed("wheel", tracked) <= sdist
    assert {path for path in tracked if path.startswith(("tests/", "notebooks/examples/"))} <= sdist
    assert not any(path.startswith((".github/", "benchmarks/")) for path in sdist)
