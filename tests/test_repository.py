"""The repository's habits: style, types, a README that counts, nothing of one machine in it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

import xgblora_lab

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location("layout", ROOT / ".ci" / "layout.py")
layout = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layout)

LIMITS = {
    ".safetensors": 6_000_000,
    ".json": 2_000_000,
    ".html": 2_000_000,
    ".svg": 1_000_000,
    ".png": 1_000_000,
}


@pytest.fixture(scope="module")
def paths() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is unknown")
    return layout.files()


def tool(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-5000:]}{done.stderr[-5000:]}"


def test_ruff_check() -> None:
    tool("ruff", "check", "--quiet", ".")


def test_ruff_format() -> None:
    tool("ruff", "format", "--check", "--quiet", ".")


@pytest.mark.long
def test_mypy() -> None:
    tool("mypy")


def test_every_public_name_is_there_and_documented() -> None:
    for name in xgblora_lab.__all__:
        assert getattr(xgblora_lab, name).__doc__, name
    assert set(xgblora_lab.__all__) <= set(dir(xgblora_lab))
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = xgblora_lab.nothing


def test_every_public_method_is_documented_where_it_is_first_declared() -> None:
    bare = set()
    for module in map(
        importlib.import_module, sorted(grimp.build_graph("xgblora_lab", cache_dir=None).modules)
    ):
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__ or cls.__name__.startswith("_"):
                continue
            for name, member in vars(cls).items():
                method = isinstance(member, staticmethod | classmethod | property) or inspect.isfunction(
                    member
                )
                if method and not name.startswith("_") and not inspect.getdoc(getattr(cls, name)):
                    bare.add(f"{cls.__module__}.{cls.__qualname__}.{name}")
    assert not bare, "\n".join(sorted(bare))


def test_the_readme_names_every_method() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## The methods")[1].split("##")[0]
    assert set(re.findall(r"`([a-z+-]+)`", table)) >= set(xgblora_lab.METHODS)


def test_type_checkers_see_what_is_exported() -> None:
    stub = ast.parse(Path(xgblora_lab.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    seen = {a.asname or a.name for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(xgblora_lab.__all__)


def test_the_readme_counts_the_files(paths: list[str]) -> None:
    _, inside, _ = layout.split((ROOT / "README.md").read_text(encoding="utf-8"))
    assert inside == layout.layout(paths), "run `python .ci/layout.py`"


def test_the_core_a_file_and_a_function_stay_short(paths: list[str]) -> None:
    assert sum(layout.is_core(path) for path in layout.lines_of(paths)) > 10  # there is something to count
    assert layout.too_long(paths) == []


def test_rooms_import_in_one_direction(capsys: pytest.CaptureFixture[str]) -> None:
    failed = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert not failed, capsys.readouterr().out


def test_no_two_modules_import_each_other() -> None:
    graph = grimp.build_graph("xgblora_lab", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_room_imports_through_the_package_face() -> None:
    # The face loads its names lazily, so that an import through it is one that no linter can follow.
    graph = grimp.build_graph("xgblora_lab", cache_dir=None)
    for importer in graph.find_modules_that_directly_import("xgblora_lab"):
        for found in graph.get_import_details(importer=importer, imported="xgblora_lab"):
            assert found["line_contents"].strip() == "from xgblora_lab import __version__", found


def test_the_readmes_links_and_files_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_ci_finds_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"^<!-- test -->\n```bash\n(.+)\n```\n<!-- /test -->$", readme, flags=re.MULTILINE)
    assert len(block) == 1
    assert "-m venv" in block[0]
    assert "pytest" in block[0]


def test_the_version_is_one() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{xgblora_lab.__version__}"\n' in pyproject
    assert f"\n## {xgblora_lab.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_nothing_of_one_machine_is_in_the_repository(paths: list[str]) -> None:
    # written in pieces, so that this file does not hold what it looks for
    homes = [
        "/" + "root/",
        "/" + "home/[a-z]",
        "/" + "Users/[a-z]",
        "/" + "work/",
        "/" + "opt/",
        r"[A-Z]:\\" + "Users",
    ]
    hosts = ["pypi" + r"\.org", "python" + "hosted", r"download\." + "pytorch"]
    pattern = re.compile("|".join(homes + hosts))
    for path in paths:
        if Path(path).suffix not in (".safetensors", ".png"):
            found = pattern.search((ROOT / path).read_text(encoding="utf-8"))
            assert found is None, f"{path} names {found[0]}"


def test_files_stay_small(paths: list[str]) -> None:
    for path in paths:
        size = (ROOT / path).stat().st_size
        assert size <= LIMITS.get(Path(path).suffix, 100_000), f"{path} has {size} bytes"


@pytest.mark.long
def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = readme.split("<!-- example -->\n```python\n")[1].split("```\n<!-- /example -->")[0]
    assert len(code.splitlines()) <= 21
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "runs" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "merged" / "model.safetensors").is_file()
