from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

from xgblora_lab.tasks import checkpoint
from xgblora_lab.tasks.checkpoint import load_config, load_tokenizer
from xgblora_lab.tasks.models import language_model_kind, load, load_model

MAKERS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama, "t5": tiny_t5}
KINDS = {"bert": "masked-lm", "gpt2": "causal-lm", "llama": "causal-lm", "t5": "seq2seq-lm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(make(), root / name) for name, make in MAKERS.items()}


def _same(a: torch.nn.Module, b: torch.nn.Module) -> list[str]:
    other = b.state_dict()
    return [name for name, value in a.state_dict().items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize("name", MAKERS)
def test_default_kind_and_weights(folders: dict[str, Path], name: str) -> None:
    model = load_model(folders[name])
    assert language_model_kind(model.config) == KINDS[name]
    assert type(model) is type(MAKERS[name]())
    assert _same(model, MAKERS[name]()) == []
    assert _same(model, MAKERS[name](seed=1))  # the comparison can fail
    assert not model.training


@pytest.mark.parametrize("name", MAKERS)
def test_new_head_follows_the_seed_and_leaves_the_global_state(folders: dict[str, Path], name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        load_model(folders[name], kind="classification", num_labels=3, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert not torch.equal(before, torch.get_rng_state())
    assert _same(first, again) == []
    changed = _same(first, other)
    assert changed
    assert all("score" in n or "classifi" in n or "pooler" in n for n in changed)
    assert first.config.num_labels == 3
    assert first.config.problem_type == "single_label_classification"


def test_regression_has_one_output(folders: dict[str, Path]) -> None:
    model = load_model(folders["bert"], kind="regression")
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids).logits.shape == (1, 1)
    assert model.config.problem_type == "regression"


def test_loads_in_float32_whatever_the_checkpoint_holds(tmp_path: Path) -> None:
    folder = save_tiny(tiny_gpt2().to(torch.bfloat16), tmp_path / "half")
    assert load_model(folder).dtype == torch.float32
    assert load_model(folder, dtype="auto").dtype == torch.bfloat16
    assert load_model(folder, dtype="float64").dtype == torch.float64
    with pytest.raises(ValueError, match="Unknown dtype 'half'; accepted are float16"):
        load_model(folder, dtype="half")


def test_new_head_is_not_reported(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load_model(folders["llama"], kind="classification", num_labels=2)
    assert capfd.readouterr() == ("", "")


def test_a_head_of_another_size_is_replaced(tmp_path: Path) -> None:
    folder = save_tiny(tiny_bert(num_labels=3), tmp_path / "three")
    kept = load_model(folder, kind="classification", num_labels=3)
    new = load_model(folder, kind="classification", num_labels=5)
    assert _same(kept, tiny_bert(num_labels=3)) == []
    assert new.config.num_labels == 5
    assert new.classifier.weight.shape[0] == 5


@pytest.mark.parametrize("damage", ["lost", "reshaped"])
def test_a_damaged_body_is_refused(tmp_path: Path, damage: str) -> None:
    folder = save_tiny(tiny_llama(), tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    if damage == "lost":
        del weights[key]
    else:
        weights[key] = weights[key][:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_a_random_language_head_is_announced(tmp_path: Path) -> None:
    folder = save_tiny(tiny_bert().bert, tmp_path / "headless")
    with pytest.warns(UserWarning, match="has no masked-lm head"):
        load_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(folder, kind="classification", num_labels=2)


def test_kinds_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"\(bert\) is a masked-lm model and cannot do causal-lm"):
        load_model(folders["bert"], kind="causal-lm")
    with pytest.raises(ValueError, match="is a causal-lm model and cannot do seq2seq-lm"):
        load_model(folders["gpt2"], kind="seq2seq-lm")
    with pytest.raises(ValueError, match="Unknown kind of model 'diffusion'; accepted are classification"):
        load_model(folders["gpt2"], kind="diffusion")
    assert load_model(folders["gpt2"], kind="prompt-answer").config.model_type == "gpt2"


def test_absent_things_get_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for call in (load_model, load_tokenizer):
        with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
            call(empty)
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            call(tmp_path / "nowhere")
        with pytest.raises(OSError, match="hub could not be reached for 'some/model'"):
            call("some/model")
    monkeypatch.setattr(checkpoint, "LAB", empty)
    for call in (load_model, load_tokenizer):
        with pytest.raises(FileNotFoundError, match=r"python -m xgblora_lab\.lab_model\.pretrain"):
            call("lab")
    tiny_llama().config.save_pretrained(empty)
    with pytest.raises(
        FileNotFoundError, match=r"no weights here .*python -m xgblora_lab\.lab_model\.pretrain"
    ):
        load_model("lab")
    with pytest.raises(FileNotFoundError, match="lab holds no tokenizer"):
        load_tokenizer("lab")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tiny_gpt2(), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_gpt2().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="it needs weights in safetensors files"):
        load_model(folder)


def test_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(ValueError, match="gives no model configuration"):
        load_config(tmp_path)


def test_tokenizer_gets_a_pad_token(folders: dict[str, Path], tmp_path: Path) -> None:
    assert load_tokenizer(folders["gpt2"]).pad_token == "<pad>"
    folder = save_tiny(tiny_gpt2(), tmp_path / "padless", tiny_tokenizer(pad=False))
    assert load_tokenizer(folder).pad_token == "</s>"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(folder)


def test_load_gives_a_model_and_a_task_that_fit(folders: dict[str, Path]) -> None:
    words = ["good film", "bad film", "fine story", "dull story", "warm play", "cold play"]
    data = {
        "train": {"text": words, "label": ["yes", "no"] * 3},
        "dev": {"text": words[:2], "label": ["yes", "no"]},
    }
    for folder in folders.values():
        model, task = load(folder, data, seed=3)
        assert model.config.id2label == {0: "no", 1: "yes"}
        assert model.config.pad_token_id == task.pad_token_id == 0
        assert set(task.evaluate(model)) == {"loss", "accuracy", "matthews", "f1"}
    model, task = load(folders["t5"], "planted", sequences=8, length=4, rank=2)
    assert task.kind == "planted"
    assert task.evaluate(model)["relative"] == 1.0


def test_the_real_language_models(shared: Path) -> None:
    for name in ("TinyStories-656K", "stories260K"):
        model, task = load(
            shared / "models" / name, shared / "data" / "tinystories_sample" / "tiny_stories.txt"
        )
        bits = task.evaluate(model, limit=64)["bits_per_byte"]
        fresh = type(model)(model.config)
        assert bits < 1.6
        assert 1.5 * bits < task.evaluate(fresh, limit=64)["bits_per_byte"]


@pytest.mark.skipif(
    not (checkpoint.LAB / "model.safetensors").exists(), reason=f"no lab weights; {checkpoint.PRETRAIN}"
)
def test_the_lab_model_on_the_embedded_data() -> None:
    model, task = load(limit=64)
    assert (task.name, task.kind, len(task.labels)) == ("pydocs", "classification", model.config.num_labels)
    assert task.evaluate(model, limit=8)["loss"] < 10
    language, text = load("lab", "pydocs", kind="causal-lm", limit=8)
    fresh = type(language)(language.config)
    assert text.evaluate(language, limit=64)["loss"] < text.evaluate(fresh, limit=64)["loss"] - 0.5
    _, planted = load("lab", "planted", sequences=8, length=8, rank=2)
    assert planted.size() == 8
