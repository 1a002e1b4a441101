"""The accumulated update: sums, spectra, replay, files and exports."""

from __future__ import annotations

import pytest
import tiny
import torch
from test_adapters import PackedLinear, conv1d
from torch import nn
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.lowrank.live_weights import LiveWeights
from xgblora_lab.methods import LoRA, XGBLoRA

ARCHITECTURES = {
    "bert": (lambda: tiny.tiny_bert(num_labels=2), "classification"),
    "gpt2": (tiny.tiny_gpt2, "causal-lm"),
    "llama": (tiny.tiny_llama, "causal-lm"),
    "t5": (tiny.tiny_t5, "seq2seq-lm"),
}


def boosters(rounds: int, d: int = 5, k: int = 7, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"m": (torch.randn(d, 1, generator=generator), torch.randn(1, k, generator=generator))}
        for _ in range(rounds)
    ]


def ensemble_of(rounds: list[dict], additive: bool = True) -> Ensemble:
    ensemble = Ensemble({"m": (5, 7)}, additive)
    for one in rounds:
        ensemble.append(one)
    return ensemble


def test_updates_and_spectra_equal_the_dense_sum():
    rounds = boosters(4)
    ensemble = ensemble_of(rounds)
    for t in range(5):
        dense = sum(
            (B.double() @ A.double() for B, A in (r["m"] for r in rounds[:t])), torch.zeros(5, 7).double()
        )
        torch.testing.assert_close(ensemble.update("m", t).double(), dense, atol=1e-6, rtol=1e-5)
        s = torch.linalg.svdvals(dense)
        torch.testing.assert_close(ensemble.spectrum("m", t), s[:t], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ensemble.spectra("m")[t, :t], s[:t], atol=1e-6, rtol=1e-6)
    assert int((ensemble.spectra("m")[4] > 1e-6).sum()) == 4


def test_rounds_of_a_lora_replace_one_another():
    rounds = boosters(3)
    ensemble = ensemble_of(rounds, additive=False)
    B, A = rounds[1]["m"]
    assert torch.equal(ensemble.update("m", 2), B @ A)
    assert ensemble.spectra("m").shape == (4, 1)
    with pytest.raises(ValueError, match="rounds replace one another"):
        ensemble.drop(0)


def test_dropping_a_round_takes_out_its_boosters_alone():
    rounds = boosters(3)
    ensemble = ensemble_of(rounds)
    ensemble.drop(1)
    torch.testing.assert_close(ensemble.update("m"), ensemble_of([rounds[0], rounds[2]]).update("m"))
    assert len(ensemble) == 3
    assert ensemble.times_chosen("m") == 2
    with pytest.raises(IndexError, match="rounds 0 to 2"):
        ensemble.drop(3)


def test_what_does_not_fit_is_refused():
    ensemble = ensemble_of(boosters(1))
    with pytest.raises(ValueError, match=r"needs B \(5, r\) and A \(r, 7\)"):
        ensemble.append({"m": (torch.zeros(4, 1), torch.zeros(1, 7))})
    with pytest.raises(KeyError, match="No module 'x'"):
        ensemble.update("x")
    with pytest.raises(IndexError, match="1 rounds are there"):
        ensemble.update("m", 2)


def test_save_and_load_keep_every_bit(tmp_path):
    ensemble = ensemble_of(boosters(3))
    ensemble.drop(1)
    ensemble.save(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e")
    assert loaded.shapes == ensemble.shapes
    assert len(loaded) == 3
    assert loaded[1] == {}
    for one, other in zip(ensemble.factors("m"), loaded.factors("m"), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]  # nothing half-written beside it
    assert not list((tmp_path / "e").rglob(".*"))
    assert not list(tmp_path.rglob("*.p*kl*"))
    ensemble.save(tmp_path / "e")  # its own folder may be replaced
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="choose another folder"):
        ensemble.save(tmp_path / "letters")
    assert (tmp_path / "letters" / "love.txt").read_text() == "dear"
    with pytest.raises(FileNotFoundError, match=r"ensemble\.json is missing"):
        Ensemble.load(tmp_path)


def test_half_precision_bases_round_once():
    torch.manual_seed(0)
    weight = (torch.randn(64, 64) * 0.02).bfloat16()
    module = nn.Linear(64, 64, bias=False)
    module.weight = nn.Parameter(weight.clone())
    rounds = [{"m": (torch.randn(64, 1) * 3e-3, torch.randn(1, 64) * 3e-3)} for _ in range(200)]
    weights = LiveWeights({"m": module})
    for one in rounds:
        weights.merge(one)
    master = weight.float()
    for one in rounds:
        master.addmm_(*one["m"])
    assert torch.equal(module.weight, master.bfloat16())
    careless = weight.clone()
    for one in rounds:
        careless.add_((one["m"][0] @ one["m"][1]).bfloat16())
    error = (module.weight.detach().float() - master).norm()
    assert (careless.float() - master).norm() > 3 * error  # the trap this guards against
    weights.restore()
    assert torch.equal(module.weight, weight)
    weights.replay(rounds)
    assert torch.equal(module.weight, master.bfloat16())


def test_packed_weights_keep_their_boosters_beside_them():
    torch.manual_seed(0)
    module, x = PackedLinear(6, 4), torch.randn(3, 6)
    codes, before = module.weight.clone(), module(x)
    rounds = [{"m": (torch.randn(4, 1), torch.randn(1, 6))} for _ in range(3)]
    weights = LiveWeights({"m": module})
    for one in rounds:
        weights.merge(one)
    total = sum(B @ A for B, A in (one["m"] for one in rounds))
    torch.testing.assert_close(module(x), before + x @ total.T)
    assert torch.equal(module.weight, codes)
    assert len(module._forward_hooks) == 1
    weights.replay(rounds[:1])
    torch.testing.assert_close(module(x), before + x @ (rounds[0]["m"][0] @ rounds[0]["m"][1]).T)
    weights.replay(rounds)
    torch.testing.assert_close(module(x), before + x @ total.T)
    weights.restore()
    assert torch.equal(module(x), before)
    assert not module._forward_hooks


def test_conv1d_weights_merge_and_come_back():
    torch.manual_seed(0)
    module, x = conv1d(6, 4), torch.randn(3, 6)
    stored, before = module.weight.clone(), module(x)
    weights = LiveWeights({"m": module})
    B, A = torch.randn(4, 1), torch.randn(1, 6)
    weights.merge({"m": (B, A)})
    torch.testing.assert_close(module(x), before + x @ (B @ A).T)
    torch.testing.assert_close(weights.base("m"), stored.T)
    weights.restore()
    assert torch.equal(module.weight, stored)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs_merges_rewinds_and_exports(architecture, tmp_path):
    from peft import PeftModel

    make, kind = ARCHITECTURES[architecture]
    model, task = make(), ToyTask(kind)
    base = snapshot(model)
    method = XGBLoRA(lr=0.05, steps_per_round=3, modules_per_round=0.5, alpha=2.0, head_lr=0.01)
    bench = Bench(model, task, method, steps=12, batch_size=8)
    before = bench.evaluate("train")["loss"]
    bench.run(2, progress=False)
    two, logits_at_two = snapshot(model), bench.predict()
    bench.run(progress=False)
    logits = bench.predict()
    assert bench.evaluate("train")["loss"] < before
    assert not equal(two, snapshot(model))

    bench.export_merged(tmp_path / "merged")
    merged = type(model).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(torch.tensor(task.predict(merged)), torch.tensor(logits))
    report = bench.export_peft(tmp_path / "adapter")
    assert set(report["relative_error"].values()) == {0.0}
    with torch.random.fork_rng():
        adapted = PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
    torch.testing.assert_close(
        torch.tensor(task.predict(adapted)), torch.tensor(logits), atol=1e-5, rtol=1e-4
    )
    assert abs(torch.tensor(task.predict(make())) - torch.tensor(logits)).max() > 1e-3  # the adapter matters

    fresh = make()
    weights = bench.ensemble.apply(fresh)
    for name, module in bench.modules.items():
        assert torch.equal(fresh.get_submodule(name).weight, module.weight)
    weights.restore()
    assert equal(snapshot(fresh), base)

    bench.rewind(2)
    assert equal(snapshot(model), two)
    assert torch.equal(torch.tensor(bench.predict()), torch.tensor(logits_at_two))
    bench.close()
    assert equal(snapshot(model), base)


def test_a_truncated_export_reports_its_error(tmp_path):
    from peft import PeftModel

    model, task = tiny.tiny_llama(), ToyTask()
    bench = Bench(
        model, task, XGBLoRA(lr=0.05, steps_per_round=2, selection="all"), steps=8, targets="q_proj"
    )
    bench.run(progress=False)
    report = bench.export_peft(tmp_path / "a", rank=2)
    name = "model.layers.0.self_attn.q_proj"
    s = torch.linalg.svdvals(bench.update(name).double())
    assert report["rank"] == 2
    assert report["relative_error"][name] == pytest.approx(
        float((s[2:].square().sum() / s.square().sum()).sqrt()), rel=1e-4
    )
    adapted = PeftModel.from_pretrained(tiny.tiny_llama(), tmp_path / "a").eval()
    written = adapted.base_model.model.get_submodule(name).get_delta_weight("default")
    error = (written - bench.update(name)).norm() / bench.update(name).norm()
    assert float(error) == pytest.approx(report["relative_error"][name], rel=1e-3)
    with pytest.raises(ValueError, match="at least 1"):
        bench.export_peft(tmp_path / "b", rank=0)
    assert not (tmp_path / "b").exists()


def test_a_lora_exports_what_it_computes(tmp_path):
    from peft import PeftModel

    model, task = tiny.tiny_gpt2(), ToyTask()
    bench = Bench(model, task, LoRA(rank=3, alpha=6, lr=0.01), steps=10)
    bench.run(progress=False)
    logits = torch.tensor(bench.predict())
    bench.export_peft(tmp_path / "adapter")
    bench.export_merged(tmp_path / "merged")
    assert torch.equal(torch.tensor(bench.predict()), logits)  # exporting left the live model alone
    adapted = PeftModel.from_pretrained(tiny.tiny_gpt2(), tmp_path / "adapter").eval()
    torch.testing.assert_close(torch.tensor(task.predict(adapted)), logits, atol=1e-5, rtol=1e-4)
    merged = type(model).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(torch.tensor(task.predict(merged)), logits, atol=1e-5, rtol=1e-4)


def test_an_ensemble_is_refused_by_another_model():
    bench = Bench(tiny.tiny_llama(), ToyTask(), XGBLoRA(steps_per_round=1), steps=1)
    bench.run(progress=False)
    with pytest.raises(ValueError, match=r"matches|another model"):
        bench.ensemble.apply(tiny.tiny_gpt2())
