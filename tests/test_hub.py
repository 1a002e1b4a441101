"""Hub ids, offline: from folders laid out as the hub's cache is, and from answers that the hub would give."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from tiny import save_tiny, tiny_gpt2, tiny_tokenizer

from xgblora_lab import cli
from xgblora_lab.racing.identity import model_digest
from xgblora_lab.tasks.checkpoint import load_tokenizer
from xgblora_lab.tasks.models import load, load_model
from xgblora_lab.tasks.rows import read

SHA = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"text": f"sentence {i}", "label": ["no", "yes"][i % 2]} for i in range(12)]
FRONT = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: rows.csv\n---\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's; the libraries have read their environment long ago."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "hub"


def snapshot(cache: Path, kind: str, repository: str, sha: str = SHA) -> Path:
    """Where the files of a repository's newest commit lie, as `hf download` lays them out."""
    folder = cache / f"{kind}s--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(sha)
    (folder / "snapshots" / sha).mkdir(parents=True)
    return folder / "snapshots" / sha


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], list[str]]]:
    """Put a hub on the other end that answers every request alike; what was asked for is returned."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before it asks again
    client = type(huggingface_hub.get_session())
    library = importlib.import_module(client.__module__.partition(".")[0])
    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY

    def answer(status: int, code: str) -> list[str]:
        asked: list[str] = []

        def reply(request: Any) -> Any:
            asked.append(request.url.path)
            if not status:
                raise library.ConnectError("no route to host", request=request)
            return library.Response(status, headers={"X-Error-Code": code}, request=request)

        huggingface_hub.set_client_factory(lambda: client(transport=library.MockTransport(reply)))
        return asked

    yield answer
    huggingface_hub.set_client_factory(before)


def test_a_model_id_is_read_from_the_hubs_cache(cache: Path) -> None:
    save_tiny(tiny_gpt2(), snapshot(cache, "model", "some/model"))
    model = load_model("some/model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_gpt2().parameters(), strict=True))
    assert load_tokenizer("some/model")("word").input_ids == tiny_tokenizer()("word").input_ids
    first = model_digest("some/model")
    save_tiny(tiny_gpt2(seed=1), snapshot(cache, "model", "some/model", SHA[::-1]))
    assert model_digest("some/model") != first  # a new revision is another model
    changed = zip(load_model("some/model").parameters(), model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in changed)


def test_a_model_of_the_cache_that_is_not_whole_or_not_safe_is_refused(cache: Path) -> None:
    folder = save_tiny(tiny_gpt2(), snapshot(cache, "model", "some/model"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises((OSError, ValueError), match=r"some/model.* (not whole|could not be read)"):
        load_tokenizer("some/model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_gpt2().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"some/model.*(not whole|safetensors)"):
        load_model("some/model")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="some/model is a PEFT adapter and no model"):
        load_model("some/model")


def test_a_data_id_is_read_from_the_hubs_cache_and_then_from_what_was_prepared(cache: Path) -> None:
    folder = snapshot(cache, "dataset", "some/data")
    (folder / "rows.csv").write_text("\n".join(["text,label", *(f"{r['text']},{r['label']}" for r in ROWS)]))
    (folder / "README.md").write_text(FRONT.format("small"))
    save_tiny(tiny_gpt2(), snapshot(cache, "model", "some/model"))
    model, task = load("some/model", "some/data:small")
    assert (task.name, task.kind, task.labels) == ("data:small", "classification", ["no", "yes"])
    assert (task.size("train"), task.size("dev")) == (11, 1)
    assert model.config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(ValueError, match=r"'some/data:large' could not be read; .*small"):
        read("some/data:large")
    shutil.rmtree(cache)
    with pytest.raises(ConnectionError, match="could not be reached for 'some/data'"):
        read("some/data")


@pytest.mark.parametrize(
    ("status", "code", "kind", "sentence"),
    [
        (403, "GatedRepo", PermissionError, r"is gated: .*https://huggingface\.co/{page}.*`hf auth login`"),
        (404, "RepoNotFound", FileNotFoundError, r"The hub has no .*, or it is private: correct the id"),
        (0, "", ConnectionError, r"The hub could not be reached for .*not in the local cache"),
        (503, "", ConnectionError, r"The hub could not be reached for .*not in the local cache"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    status: int, code: str, kind: type, sentence: str, cache: Path, answering: Any
) -> None:
    asked = answering(status, code)
    for call, name, page in (
        (load_model, "some/model", "some/model"),
        (load_tokenizer, "some/model", "some/model"),
        (read, "some/data:small", "datasets/some/data"),
    ):
        with pytest.raises(kind, match=sentence.replace("{page}", page)) as caught:
            call(name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(asked) >= 3  # it was asked, and nothing came from elsewhere


def test_what_lies_in_the_cache_needs_no_hub(cache: Path, answering: Any) -> None:
    save_tiny(tiny_gpt2(), snapshot(cache, "model", "some/model"))
    answering(0, "")
    assert load_model("some/model").config.model_type == "gpt2"


def test_the_command_line_says_the_same(
    cache: Path, answering: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(403, "GatedRepo")
    monkeypatch.setattr(sys, "argv", ["xgblora-lab", "race", "--model", "some/model"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "The model 'some/model' is gated" in " ".join(capsys.readouterr().err.split())
