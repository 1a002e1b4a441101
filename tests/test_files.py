"""Files are written whole or not at all, and JSON stays compact."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from xgblora_lab.files import load_tensors, replaced, replaced_folder, save_tensors, write_json, write_text


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "old")
    with suppress(KeyError), replaced(tmp_path / "deep" / "a.txt") as partial:
        assert partial.suffix == ".txt"
        partial.write_text("half")
        raise KeyError
    with pytest.raises(TypeError, match="object is not a JSON value"):
        write_json(tmp_path / "deep" / "a.txt", [object()])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole_and_only_where_it_is_ours(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with replaced_folder(tmp_path / "f", "mark") as partial:
            (partial / "mark").touch()
            (partial / name).touch()
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["mark", "two"]
    with pytest.raises(KeyError), replaced_folder(tmp_path / "f", "mark"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "two").is_file()
    with (
        pytest.raises(FileExistsError, match="choose another folder"),
        replaced_folder(tmp_path / "f", "other"),
    ):
        pass


def test_no_number_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    value = {
        "name": "x",
        "rounds": [{"losses": [i / 7 for i in range(50)], "seconds": 0.5}] * 3,
        "none": None,
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert not any(line.strip(" ,").replace(".", "").isdigit() for line in text.splitlines())
    assert 3 < len(text.splitlines()) < 30
    write_json(tmp_path / "b.json", {"a": 1, "b": [1, float("nan")]})
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{"a": 1, "b": [1, "nan"]}\n'


def test_tensors_come_back_and_a_missing_file_is_named(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T}
    save_tensors(tmp_path / "a.safetensors", tensors)
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["a"], tensors["a"])
    with pytest.raises(FileNotFoundError, match="incomplete"):
        load_tensors(tmp_path / "b.safetensors")


def test_importing_files_loads_nothing_heavy() -> None:
    code = "import sys, xgblora_lab.files; print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
