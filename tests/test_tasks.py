from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import EOS, PAD, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

from xgblora_lab.tasks import rows
from xgblora_lab.tasks.matrix import matrix
from xgblora_lab.tasks.scores import classification_scores, correlation
from xgblora_lab.tasks.task import IGNORED, row_lengths
from xgblora_lab.tasks.text import TextTask, load_task

TEXTS = [
    "a",
    "a good film",
    "a rather long and dull story",
    "fine",
    "never again",
    "what joy",
    "poor",
    "great fun",
]
TOKENIZER = tiny_tokenizer()


def _task(columns: dict[str, list[Any]], tokenizer: Any = TOKENIZER, **options: Any) -> TextTask:
    return load_task({"train": columns, "dev": columns}, tokenizer, **options)


def _classification(**options: Any) -> TextTask:
    return _task({"text": TEXTS, "label": [0, 1, 2, 1, 0, 1, 0, 2]}, **options)


# ---------------------------------------------------------------- loss, weight and scores, per kind


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama])
def test_classification_scores_are_exact_and_padding_changes_nothing(make: Any) -> None:
    task, model = _classification(), make(num_labels=3)
    for parameter in model.parameters():
        parameter.data.mul_(4.0)  # random initialisation is so small that nothing would show
    alone = [model(input_ids=torch.tensor([TOKENIZER(t).input_ids])).logits[0] for t in TEXTS]
    labels = torch.tensor([0, 1, 2, 1, 0, 1, 0, 2])
    expected = F.cross_entropy(torch.stack(alone), labels).item()
    scores = task.evaluate(model)
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    predicted = torch.stack(alone).argmax(1)
    assert task.predict(model).tolist() == predicted.tolist()
    assert scores["accuracy"] == pytest.approx((predicted == labels).float().mean().item())
    batch = task.batch("train", range(8))
    assert task.weight(batch) == 8
    assert task.tokens(batch) == sum(len(TOKENIZER(t).input_ids) for t in TEXTS)
    assert task.loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
    unmasked = {k: v for k, v in batch.items() if k != "attention_mask"}
    if make is tiny_bert:  # the comparison can fail
        assert model(**unmasked).loss.item() != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_causal_lm_loss_is_the_mean_over_label_tokens(make: Any) -> None:
    task, model = _task({"text": TEXTS[1:]}), make()
    batch = task.batch("train", [0, 1, 2])
    assert task.weight(batch) == sum(len(TOKENIZER(t).input_ids) - 1 for t in TEXTS[1:4])
    expected = model(**batch).loss  # transformers' own shifted mean
    torch.testing.assert_close(task.loss(model, batch), expected)
    scores = task.evaluate(model)
    total = sum(model(**task.batch("dev", [i])).loss.item() * (len(TEXTS[1:][i]) - 1) for i in range(7))
    count = sum(len(t) - 1 for t in TEXTS[1:])  # one token per byte; the first is not predicted
    assert scores["loss"] == pytest.approx(total / count, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(total / count / math.log(2), rel=1e-5)
    assert task.predict(model)[0] == pytest.approx(task.loss(model, task.batch("dev", [0])).item(), rel=1e-5)


def test_long_texts_become_windows_that_score_every_token_once() -> None:
    text = "héllo " * 40
    task = _task({"text": [text, "ab"]}, max_length=32)
    examples = task.splits["train"]
    assert max(len(e.ids) for e in examples) == 32
    assert task.truncated["train"] == 0.0
    assert sum(e.text_bytes for e in examples) == len(text.encode()) - 1 + 1  # of text and of "ab"
    assert sum(len(e.ids) - 1 for e in examples) == len(text.encode()) - 1 + 1
    joined = examples[0].ids + [i for e in examples[1:-1] for i in e.ids[1:]]
    assert joined == TOKENIZER(text).input_ids


def test_prompt_answer_scores_the_answer_only() -> None:
    columns = {"prompt": ["2+2?", "capital of France?"], "answer": ["4", "Paris"]}
    task, model = _task(columns), tiny_llama()
    assert task.kind == "prompt-answer"
    batch = task.batch("train", [0, 1])
    for row, answer in zip(batch["labels"], columns["answer"], strict=True):
        scored = row[row != IGNORED]
        assert scored.tolist() == [*TOKENIZER(answer).input_ids, EOS]
    assert task.weight(batch) == 2 + 6
    torch.testing.assert_close(task.loss(model, batch), model(**batch).loss)
    everything = {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}
    assert abs(model(**everything).loss - task.loss(model, batch)) > 1e-3  # the prompt would count


def test_encoder_decoder_gets_the_prompt_and_is_scored_on_the_answer() -> None:
    columns = {"prompt": ["2+2?", "capital of France?"], "answer": ["4", "Paris"]}
    task, model = _task(columns, encoder_decoder=True), tiny_t5()
    assert task.kind == "seq2seq-lm"
    batch = task.batch("train", [0, 1])
    assert batch["input_ids"][0, :5].tolist() == [*TOKENIZER("2+2?").input_ids, EOS]
    assert batch["labels"][0].tolist() == [*TOKENIZER("4").input_ids, EOS] + [IGNORED] * 4
    assert task.weight(batch) == 8
    assert task.tokens(batch) == 5 + 19 + 8
    torch.testing.assert_close(task.loss(model, batch), model(**batch).loss)


def test_regression() -> None:
    values = [0.5, 1.5, -2.0, 0.25, 3.0, 1.0, 0.0, 2.5]
    task, model = _task({"text": TEXTS, "score": values}), tiny_bert(num_labels=1)
    assert task.kind == "regression"
    assert not task.greater_is_better
    outputs = np.array([model(input_ids=torch.tensor([TOKENIZER(t).input_ids])).logits.item() for t in TEXTS])
    scores = task.evaluate(model)
    assert scores["mse"] == scores["loss"] == pytest.approx(np.mean((outputs - values) ** 2), rel=1e-5)
    assert scores["pearson"] == pytest.approx(np.corrcoef(outputs, values)[0, 1], rel=1e-4)
    np.testing.assert_allclose(task.predict(model), outputs, rtol=1e-4, atol=1e-6)


def test_float64_stays_float64() -> None:
    task = _task({"text": TEXTS[1:]})
    single, double = tiny_llama(), tiny_llama().double()
    batch = task.batch("train", [0, 1])
    assert task.loss(double, batch).dtype == torch.float64
    assert 0 < abs(task.loss(double, batch) - task.loss(single, batch)) < 1e-4


def test_evaluate_leaves_the_model_and_limit_counts_rows() -> None:
    task, model = _classification(), tiny_bert(num_labels=3).train()
    model.classifier.eval()
    before = copy.deepcopy(model.state_dict())
    assert len(task.predict(model, limit=3)) == 3
    assert task.evaluate(model, limit=3) != task.evaluate(model)
    assert model.training
    assert not model.classifier.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_batch_is_a_pure_function() -> None:
    task = _classification()
    a, b = task.batch("train", [2, 0]), task.batch("train", [2, 0])
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["input_ids"], task.batch("train", [0, 2])["input_ids"])
    assert a["input_ids"][1, 1:].eq(PAD).all()
    assert a["attention_mask"][1].tolist() == [1] + [0] * 27


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"text": TEXTS, "label": [0, 1] * 4}, {}),
        ({"text": TEXTS[1:]}, {}),
        ({"prompt": TEXTS, "answer": TEXTS[3:] + TEXTS[:3]}, {}),
        ({"prompt": TEXTS, "answer": TEXTS[3:] + TEXTS[:3]}, {"encoder_decoder": True}),
    ],
)
def test_lengths_are_the_tokens_of_every_row(columns: dict, options: dict) -> None:
    task = _task(columns, **options)
    lengths = task.lengths("dev")
    assert lengths == [task.tokens(task.batch("dev", [i])) for i in range(task.size("dev"))]
    assert len(set(lengths)) > 3
    assert row_lengths(task, "dev") == lengths
    assert row_lengths(matrix()[1]) is None  # its rows are all alike, and it does not say
    with pytest.raises(ValueError, match="has no test split"):
        task.lengths("test")


def test_classification_scores_against_known_values() -> None:
    truth, predicted = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])
    tp, tn, fp, fn = 3, 3, 1, 1
    scores = classification_scores(truth, predicted, 2)
    assert scores["matthews"] == pytest.approx((tp * tn - fp * fn) / math.sqrt(4 * 4 * 4 * 4))
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert scores["accuracy"] == 0.75
    assert classification_scores(truth, truth, 2)["matthews"] == pytest.approx(1.0)
    assert classification_scores(truth, 1 - truth, 2)["matthews"] == pytest.approx(-1.0)
    assert classification_scores(truth, np.ones(8, int), 2)["matthews"] == 0.0
    ones = np.ones(4, int)
    assert classification_scores(ones, ones, 2) == {"accuracy": 1.0, "matthews": 0.0, "f1": 1.0}
    three = classification_scores(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2]), 3)
    assert three["matthews"] == pytest.approx((3 * 4 - (1 * 1 + 2 * 3)) / math.sqrt((16 - 6) * (16 - 10)))
    assert three["f1"] == pytest.approx((1 + 0 + 0.8) / 3)


def test_correlation_is_zero_where_undefined() -> None:
    a = np.array([1.0, 2.0, 4.0])
    assert correlation(a, 2 - 3 * a) == pytest.approx(-1.0)
    assert correlation(a, np.full(3, 0.1)) == correlation(a[:1], a[:1]) == 0.0
    assert math.isnan(correlation(a, np.full(3, math.nan)))  # a run that diverged


# ---------------------------------------------------------------- pairs, labels, columns


def test_pairs_keep_both_texts_and_a_border() -> None:
    columns = {"sentence1": ["a" * 50, "bb"], "sentence2": ["c" * 50, "d"], "label": ["no", "yes"]}
    task = _task(columns, max_length=21)
    ids = task.splits["train"]
    assert task.labels == ["no", "yes"]
    assert task.truncated["train"] == 0.5
    a, c = TOKENIZER("a").input_ids[0], TOKENIZER("c").input_ids[0]
    assert ids[0].ids == [a] * 10 + [EOS] + [c] * 10
    assert TOKENIZER.decode(ids[1].ids) == "bb</s>d"
    from tokenizers.processors import TemplateProcessing

    bert_like = tiny_tokenizer()
    bert_like.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    example = _task(columns, bert_like, max_length=21).splits["train"][0]
    assert len(example.ids) == 21
    assert [example.ids.count(i) for i in (1, 2, a, c)] == [1, 2, 9, 9]
    long = _task({"text": ["a" * 50, "b"], "label": [0, 1]}, bert_like, max_length=10).splits["train"][0]
    assert len(long.ids) == 10
    assert long.ids[-1] == 2


def test_truncation_is_reported() -> None:
    assert _classification(max_length=8).truncated == {"train": 0.5, "dev": 0.5}
    assert _classification().truncated == {"train": 0.0, "dev": 0.0}


@pytest.mark.parametrize(
    ("columns", "options", "kind"),
    [
        ({"text": ["x"] * 2, "label": [0, 1]}, {}, "classification"),
        ({"review": ["x"] * 2, "class": ["a", "b"]}, {}, "classification"),
        ({"text": ["x"] * 2, "label": [0.5, 1.0]}, {}, "regression"),
        ({"text": ["x"] * 2, "label": [0, 1]}, {"kind": "regression"}, "regression"),
        ({"text": ["xy"] * 2}, {}, "causal-lm"),
        ({"text": ["xy"] * 2, "label": [0, 1]}, {"kind": "causal-lm"}, "causal-lm"),
        ({"question": ["x"] * 2, "answer": ["y"] * 2}, {}, "prompt-answer"),
        ({"my": ["x"] * 2, "other": ["y"] * 2}, {"prompt": "my", "answer": "other"}, "prompt-answer"),
        ({"my": ["x"] * 2, "other": ["y", "z"]}, {"text": "my", "label": "other"}, "classification"),
    ],
)
def test_kind_from_columns(columns: dict, options: dict, kind: str) -> None:
    assert _task(columns, **options).kind == kind


def test_labels_keep_their_names_and_order() -> None:
    assert _task({"text": ["x"] * 3, "label": [10, 9, 2]}).labels == ["2", "9", "10"]
    assert _task({"text": ["x"] * 3, "label": ["b", "a", "b"]}).labels == ["a", "b"]
    assert _task({"text": ["x"] * 2, "label": [True, False]}).labels == ["False", "True"]


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"words": ["x"]}, {}, r"No text column among words; name it with text="),
        ({"text": ["x"], "tag": [1]}, {"kind": "classification"}, "No label column among text, tag"),
        ({"text": ["x"]}, {"label": "mark"}, "no column 'mark'; the columns are text"),
        ({"text": ["x", "y"], "label": [1, 1]}, {}, "All train rows have the label '1'"),
        ({"text": ["x", None], "label": [1, 0]}, {}, "Row 1 of train has no text in column 'text'"),
        ({"text": ["x", "  "], "label": [1, 0]}, {}, "Row 1 of train has no text"),
        ({"text": ["x", "y"], "label": [1, None]}, {}, "Row 1 of train has no label"),
        ({"text": ["x", "y"], "label": ["a", "b"]}, {"kind": "regression"}, "A regression needs numbers"),
        (
            {"text": ["x", "y"], "label": [0, 1]},
            {"metric": "bleu"},
            "Unknown metric 'bleu' .* accuracy, matthews",
        ),
        (
            {"text": ["x", "y"]},
            {"kind": "poetry"},
            "Unknown kind of task 'poetry'; accepted are classification",
        ),
        (
            {"text": ["x", "y"], "label": [0, 1]},
            {"max_length": 1},
            "max_length must be a whole number from 2",
        ),
        ({"text": ["", "x"]}, {}, "no text of two tokens"),
        ({"text": ["xy"]}, {"encoder_decoder": True}, "needs prompt and answer columns"),
        (
            {"prompt": ["short", "p" * 40], "answer": ["y", "z"]},
            {"max_length": 32},
            "Row 1 of train: the prompt alone has 41 tokens, so max_length 32 leaves no answer",
        ),
    ],
)
def test_what_cannot_be_used_gets_one_sentence(columns: dict, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _task(columns, **options)


def test_an_argument_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="no argument 'txt'; columns are named by text=, text_b=, label="):
        _task({"text": ["x", "y"], "label": [0, 1]}, txt="text")


def test_unknown_dev_label_and_missing_test_split() -> None:
    train = {"text": ["x", "y"], "label": ["a", "b"]}
    with pytest.raises(ValueError, match="The dev split has labels that train has not: c; train has a, b"):
        load_task({"train": train, "dev": {"text": ["z"], "label": ["c"]}}, TOKENIZER)
    with pytest.raises(ValueError, match="The dev split has no column 'text'; it has words"):
        load_task({"train": train, "dev": {"words": ["z"], "label": ["a"]}}, TOKENIZER)
    task = load_task({"train": train, "dev": train}, TOKENIZER)
    with pytest.raises(ValueError, match=r"has no test split .* it has train, dev"):
        task.batch("test", [0])
    assert task.size("test") == 0


# ---------------------------------------------------------------- files


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(records).to_parquet(path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(str(v) for v in r.values()) for r in records]
        path.write_text("\n".join([mark.join(records[0]), *lines]) + "\n", encoding="utf-8")
    return path


def _texts(source: rows.Source) -> list[str]:
    return [text for table in source.splits.values() for text in table["text"]]


RECORDS = [{"text": f"sentence {i}", "label": i % 2} for i in range(40)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    for split, part in {"train": RECORDS[:30], "validation": RECORDS[30:35], "test": RECORDS[35:]}.items():
        _write(tmp_path / "data" / (split + suffix), part)
    source = rows.read(tmp_path / "data")
    assert list(source.splits) == ["train", "dev", "test"]
    assert source.splits["train"] == {k: [r[k] for r in RECORDS[:30]] for k in ("text", "label")}
    task = load_task(tmp_path / "data", TOKENIZER, limit=10)
    assert (task.size("train"), task.size("dev"), task.size("test")) == (10, 5, 5)
    assert {e.label for e in task.splits["train"]} == {0, 1}


def test_one_file_is_split_by_row_and_always_alike(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", RECORDS)
    first, again, other = rows.read(path), rows.read(path), rows.read(path, seed=1)
    assert [len(first.splits[s]["text"]) for s in ("train", "dev", "test")] == [32, 4, 4]
    everything = _texts(first)
    assert sorted(everything) == sorted(r["text"] for r in RECORDS)
    assert first.splits == again.splits != other.splits


def test_a_missing_dev_split_is_a_tenth_of_train(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", RECORDS)
    source = rows.read(tmp_path)
    assert [len(source.splits[s]["text"]) for s in source.splits] == [36, 4]
    assert "test" not in source.splits
    _write(tmp_path / "train.jsonl", RECORDS[:5])
    with pytest.raises(ValueError, match="5 rows, too few to hold out a tenth"):
        rows.read(tmp_path)


def test_words_that_look_missing_and_quotes_are_text(tmp_path: Path) -> None:
    csv = _write(
        tmp_path / "a.csv",
        [{"text": t, "label": i} for i, t in enumerate(["NA", "None", "null", '"a, b"'] * 5)],
    )
    texts = _texts(rows.read(csv))
    assert sorted(set(texts)) == ["NA", "None", "a, b", "null"]
    tsv = _write(tmp_path / "a.tsv", [{"text": t, "label": i} for i, t in enumerate(['"open', "plain"] * 10)])
    assert len(_texts(rows.read(tsv))) == 20


def test_text_files_are_read_by_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i}\nof two lines." for i in range(20)), encoding="utf-8")
    task = load_task(path, TOKENIZER)
    assert task.kind == "causal-lm"
    assert (task.size("train"), task.size("dev")) == (16, 2)
    assert TOKENIZER.decode(task.splits["train"][0].ids).endswith("of two lines.")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.csv", "", "is empty"),
        ("header.csv", "text,label\n", "train split .* has no rows"),
        ("broken.jsonl", '{"text": "a"\n{"x"', "could not be read as jsonl"),
        ("table.xlsx", "PK", "files ending in '.xlsx' are not read; use .csv"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_task(tmp_path / name, TOKENIZER)
    assert "\n" not in str(caught.value)


def test_absent_data(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"has no train file .* it holds notes\.md"):
        load_task(tmp_path, TOKENIZER)
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        load_task(tmp_path / "nothing.csv", TOKENIZER)
    with pytest.raises(OSError, match="The hub could not be reached for 'some/thing'"):
        load_task("some/thing", TOKENIZER)


def test_real_data(shared: Path) -> None:
    data = shared / "data"
    mrpc = load_task(data / "mrpc", TOKENIZER, limit=50, metric="f1")
    assert mrpc.kind == "classification"
    assert mrpc.size("test") == 1725
    assert mrpc.truncated["train"] > 0
    cola = load_task(data / "cola", TOKENIZER, limit=50, metric="matthews")
    assert cola.size("dev") == 1043
    assert cola.greater_is_better
    gsm8k = load_task(
        data / "gsm8k", TOKENIZER, limit=50, max_length=256, kind="seq2seq-lm", encoder_decoder=True
    )
    assert gsm8k.kind == "seq2seq-lm"
    assert gsm8k.size("train") == 50
