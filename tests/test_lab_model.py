"""The shipped model: what its card says, and that there is something to adapt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xgblora_lab import load_model, load_tokenizer
from xgblora_lab.lab_model import pretrain

FOLDER = Path(pretrain.__file__).parent


def test_the_card_tells_what_pretraining_measured():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    measured = json.loads((FOLDER / "pretraining.json").read_text())
    for key in ("parameters", "tokens", "corpus_bytes", "corpus_tokens", "held_out_bytes", "held_out_tokens"):
        assert f"{measured[key]:,}" in card, key
    for key in ("held_out_loss_nats", "held_out_perplexity"):
        assert str(measured[key]) in card, key
    assert f"{measured['held_out_bits_per_byte']:.3f} bits per byte" in card
    assert load_model("lab").num_parameters() == measured["parameters"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 6 * 2**20


def test_it_is_kept_in_bfloat16_and_loads_in_float32():
    kept = load_file(FOLDER / "model.safetensors")
    loaded = load_model("lab").state_dict()
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}
    assert all(loaded[name].dtype == torch.float32 for name in kept)
    assert all(torch.equal(loaded[name], value.float()) for name, value in kept.items())
    assert load_model("lab", dtype="auto").dtype == torch.bfloat16


def test_it_predicts_english_better_than_shuffled_english():
    model, tokenizer = load_model("lab"), load_tokenizer("lab")
    text = (
        "It was a dark night, and the old man sat by the fire with his dog and thought of the days gone by."
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        plain, mixed = (model(input_ids=x, labels=x).loss.item() for x in (ids, shuffled))
    assert plain < 4.5 < mixed
    assert tokenizer.decode(ids[0]) == text


def test_pretraining_resumes_to_the_same_weights(tmp_path, monkeypatch):
    sentences = ["The cat sat on the mat.", "A dog ran over the hill.", "Nobody saw the moon."]
    (tmp_path / "text.txt").write_text("\n\n".join(sentences[i % 3] for i in range(400)), encoding="utf-8")
    options = {
        "corpus": tmp_path / "text.txt", "valid": tmp_path / "text.txt", "batch": 2, "sequence": 16,
        "vocab_size": 300, "hidden": 32, "layers": 1,
    }  # fmt: skip
    pretrain.main(**options, out=tmp_path / "whole", steps=400)
    save = pretrain.save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):  # planned longer, stopped on the plateau
        pretrain.main(**options, out=tmp_path / "halves", steps=1000)
    monkeypatch.setattr(pretrain, "save", save)
    pretrain.main(**options, out=tmp_path / "halves", steps=400)
    whole, halves = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert {value.dtype for value in whole.values()} == {torch.bfloat16}
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    result = json.loads((tmp_path / "halves" / "model" / "pretraining.json").read_text())
    assert result["held_out_loss_nats"] < result["held_out_curve"][0][1] < 5


@pytest.mark.parametrize("step", [0, 199, 1000, 2999])
def test_the_learning_rate_is_a_trapezoid(step):
    wanted = {0: 1 / 200, 199: 1.0, 1000: 1.0, 2999: 1 / 600}[step]
    assert pretrain.learning_rate(step, 3000, 1.0) == pytest.approx(wanted)
