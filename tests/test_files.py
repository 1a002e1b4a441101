"""Files are written whole or not at all, and JSON stays compact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import xgblora_lab.files as files
from xgblora_lab.disk import digest, scratch_prefix
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
        with replaced_folder(tmp_path / "f") as partial:
            (partial / "in").mkdir()
            (partial / "in" / name).write_text(name)
    assert sorted(path.name for path in (tmp_path / "f").rglob("*")) == ["in", "manifest.json", "two"]
    with pytest.raises(KeyError), replaced_folder(tmp_path / "f"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "in" / "two").read_text() == "two"
    (tmp_path / "f" / "in" / "two").unlink()  # less than was written is no reason to refuse
    with replaced_folder(tmp_path / "f") as partial:
        (partial / "three").touch()
    assert (tmp_path / "f" / "three").is_file()


def test_a_folder_that_holds_something_else_is_refused_before_the_work(tmp_path: Path) -> None:
    def refused(folder: Path, why: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((FileExistsError, NotADirectoryError), match=why), replaced_folder(folder):
            raise AssertionError("the work was begun")
        assert sorted(tmp_path.rglob("*")) == before

    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text("{}")
    refused(tmp_path / "project", "config|no manifest.json of xgblora_lab.*choose another folder")
    with replaced_folder(tmp_path / "f") as partial:
        (partial / "a").write_text("1")
    (tmp_path / "f" / "notes").write_text("mine")
    refused(tmp_path / "f", "notes was put there or changed since")
    (tmp_path / "f" / "notes").unlink()
    (tmp_path / "f" / "a").write_text("2")
    refused(tmp_path / "f", "a was put there or changed since")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    refused(tmp_path / "link", "is a link to")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    refused(tmp_path / "nowhere", "is a link to")
    refused(tmp_path / "f" / "a", "is a file, not a folder")
    refused(tmp_path / "f" / "a" / "b", "is a file, so nothing")
    refused(Path.cwd(), "the folder that you work in")
    refused(Path("."), "the folder that you work in")


def test_a_file_takes_the_place_of_a_plain_file_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("folder", "is a folder"),
        ("link", "is a link"),
        ("pipe", "is a device"),
        ("a/b", "is a file"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(OSError, match=why), replaced(tmp_path / name):
            raise AssertionError("the work was begun")
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(FileExistsError, match="is a device"):
        write_text("/dev/null", "x")
    (tmp_path / "a.partial").write_text("mine")
    write_text(tmp_path / "a", "new")
    assert ((tmp_path / "a").read_text(), (tmp_path / "a.partial").read_text()) == ("new", "mine")


@pytest.mark.parametrize("swap", [True, False])
def test_what_a_killed_process_left_is_cleared_and_what_it_put_aside_comes_back(
    tmp_path, monkeypatch, swap
) -> None:
    monkeypatch.setattr(files, "exchange", files.exchange if swap else lambda one, other: False)
    with replaced_folder(tmp_path / "f") as partial:
        (partial / "a").write_text("old")
    scratch = tmp_path / f"{scratch_prefix(tmp_path / 'f')}killed"
    (scratch / "new").mkdir(parents=True)
    (tmp_path / "f").rename(scratch / "old")  # killed between the two renames
    with pytest.raises(KeyError), replaced_folder(tmp_path / "f"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "old"
    with replaced_folder(tmp_path / "f") as partial, replaced_folder(tmp_path / "f") as other:
        (partial / "a").write_text("one")  # somebody who writes now is left alone
        (other / "a").write_text("other")
    assert (tmp_path / "f" / "a").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_equal_digests_mean_equal_bits() -> None:
    one = torch.arange(6.0).reshape(2, 3)
    same = [digest([("a", t)]) for t in (one, one.T.contiguous().T, one.clone())]
    assert len(set(same)) == 1
    other = [one + 0, one.reshape(3, 2), one.double(), one * -1, one.bfloat16()]
    others = {digest([("a", t)]) for t in other[1:]} | {digest([("b", one)]), digest([("a", 1)]), digest([])}
    assert len(others | set(same)) == 8


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
