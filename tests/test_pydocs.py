from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_tokenizer

from xgblora_lab.tasks import pydocs
from xgblora_lab.tasks.text import load_task


@pytest.fixture(scope="module")
def tables() -> dict[str, dict[str, list]]:
    return pydocs.read().splits


def test_sizes_and_balance(tables: dict[str, dict[str, list]]) -> None:
    assert 1500 <= len(tables["train"]["text"]) <= 4000
    for split, table in tables.items():
        counts = Counter(table["label"])
        assert len(counts) == len(pydocs.AREAS)
        assert max(counts.values()) <= 1.6 * min(counts.values())
        assert len(table["text"]) >= 300, split
        assert all(8 <= len(text.split()) <= 40 for text in table["text"])


def test_no_passage_lies_in_two_splits(tables: dict[str, dict[str, list]]) -> None:
    texts = [text for table in tables.values() for text in table["text"]]
    assert len(texts) == len(set(texts))
    whole = {
        split: set(" ".join(t["text"]).split("\n\n")) for split, t in pydocs.read("causal-lm").splits.items()
    }
    assert not whole["train"] & whole["dev"]
    assert not whole["train"] & whole["test"]


def test_both_kinds_split_the_same_modules(tables: dict[str, dict[str, list]]) -> None:
    for split, table in tables.items():
        words = " ".join(" ".join(pydocs.read("causal-lm").splits[split]["text"]).split())
        assert all(text[:20] in words for text in table["text"])
        elsewhere = "dev" if split == "train" else "train"
        other = " ".join(" ".join(pydocs.read("causal-lm").splits[elsewhere]["text"]).split())
        assert sum(text[:30] in other for text in table["text"]) < 0.1 * len(table["text"])


def test_another_process_reads_the_same() -> None:
    script = (
        "import hashlib, json; from xgblora_lab.tasks import pydocs; "
        "print(hashlib.sha256(json.dumps(pydocs.read().splits).encode()).hexdigest())"
    )
    root = Path(pydocs.__file__).parent.parent
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, env={"PYTHONHASHSEED": "7"}, cwd=root, capture_output=True, check=True)
    here = hashlib.sha256(json.dumps(pydocs.read().splits).encode()).hexdigest()
    assert other.stdout.decode().strip() == here


def test_words_tell_the_area_but_not_wholly(tables: dict[str, dict[str, list]]) -> None:
    """A linear bag of words is well above chance (1/6), and far from done."""
    counts = Counter(word for text in tables["train"]["text"] for word in set(text.lower().split()))
    index = {word: i for i, word in enumerate(w for w, n in counts.items() if n >= 3)}
    areas = sorted(pydocs.AREAS)

    def features(table: dict[str, list]) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.zeros(len(table["text"]), len(index))
        for row, text in enumerate(table["text"]):
            x[row, [index[w] for w in set(text.lower().split()) if w in index]] = 1.0
        return F.normalize(x), torch.tensor([areas.index(label) for label in table["label"]])

    (x, y), (x_dev, y_dev) = features(tables["train"]), features(tables["dev"])
    weight = torch.zeros(len(areas), len(index), requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(x @ weight.T, y).backward()
        optimizer.step()
    accuracy = float((x_dev @ weight.T).argmax(1).eq(y_dev).float().mean())
    assert 0.35 < accuracy < 0.75


def test_as_a_task() -> None:
    task = load_task("pydocs", tiny_tokenizer(), limit=50, max_length=64)
    assert task.kind == "classification"
    assert task.labels == sorted(pydocs.AREAS)
    assert task.size() == 50
    lm = load_task("pydocs", tiny_tokenizer(), kind="causal-lm", limit=20, max_length=64)
    assert lm.kind == "causal-lm"
    assert lm.size("dev") > 500
    with pytest.raises(ValueError, match="not 'regression'"):
        load_task("pydocs", tiny_tokenizer(), kind="regression")


def test_a_library_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    pydocs._documents.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="holds no library sources"):
            pydocs.read()
    finally:
        pydocs._documents.cache_clear()


def test_what_was_parsed_is_kept_and_a_damaged_or_forbidden_cache_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = pydocs._parsed()
    counted = []
    monkeypatch.setattr(pydocs, "_parsed", lambda: counted.append(1) or parsed)
    monkeypatch.setattr(pydocs.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    for content, times in ((None, 1), (None, 1), ("{", 2), (None, 2), ("[]", 3)):
        if content is not None:
            (kept,) = (tmp_path / "cache").glob("*.json")
            kept.write_text(content, encoding="utf-8")
        pydocs._documents.cache_clear()
        assert pydocs._documents() == parsed
        assert len(counted) == times
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(pydocs.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "file" / "cache"))
    pydocs._documents.cache_clear()
    assert pydocs._documents() == parsed
    assert len(counted) == 4


def test_the_first_rows_of_every_split_are_of_all_areas() -> None:
    source = pydocs.read()
    for split, table in source.splits.items():
        assert set(table["label"][:64]) == set(table["label"]), split
