# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A real model on a real task
#
# *What do boosting and LoRA bring on a model and a data set of your choice, and how would you know?*
#
# Planted tasks are for looking. This notebook is for work. You name a model and data, and it goes the whole
# way: look at the data, find the scores to beat, train under one budget, count the cost, read the mistakes.
#
# **You will be able to**
#
# 1. put any model and data into the lab, from the hub or from a folder, by the same two parameters;
# 2. name the scores that a tuned model has to beat before you tune it;
# 3. compare boosting and LoRA on it, with the uncertainty of the comparison;
# 4. say what a run holds in memory, and what changes on a GPU;
# 5. read a model's mistakes, and not only count them.
#
# **Time.** {time}.
#
# **You need.** Notebook 02: booster, round, LoRA, the bench. No GPU: without one, the lab model and the
# documentation of your Python stand in for RoBERTa and a benchmark.
#
# A question comes before each answer. **Write down your guess, then run the cell.** Sentences behind a grey
# bar are written by code, from the numbers of *your* run; so is everything said about who wins.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (under a minute), "laptop" (minutes) or "classroom" (sized for a GPU)
model: str = ""  # "lab", a model folder, or a hub id such as "openai-community/gpt2"; "" = by profile
data: str = ""  # "pydocs", a file or folder, or a hub id such as "nyu-mll/glue:mrpc"; "" = by profile
targets: str = "all-linear"  # maps to adapt: "all-linear", "attention", or names such as "query,value"
precision: str = ""  # "no", "bf16" or "fp16"; "" = what the device is good at; fixed until a kernel restart
metric: str | None = None  # what to rank by, such as "matthews" for CoLA; None = the kind's usual score
steps: int | None = None  # optimizer steps of every run; None = by profile
batch_size: int | None = None  # rows in a step; None = by profile
max_length: int | None = None  # tokens in a row, longer rows are cut; None = by profile
seed: int = 0  # of a new head, and of the order in which rows are held out
progress: bool = False  # show progress bars

# %% tags=["folded"]
import random
from collections import Counter

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from IPython.display import display

from xgblora_lab import Hook, LoRA, Probe, Spectrum, XGBLoRA, check, figures, load, load_tokenizer
from xgblora_lab.course import saved
from xgblora_lab.course.board import chart, pick, say
from xgblora_lab.lowrank.linear import find_modules, head_parameters, weight_shape
from xgblora_lab.tasks.scores import classification_scores

#            steps, κ, rows in a step | train rows, dev and test rows, tokens in a row | seeds, trials
profiles = {
    "ci": (12, 4, 8, 400, 40, 24, 1, 1),
    "laptop": (40, 10, 8, 2000, 240, 40, 1, 3),
    "classroom": (400, 20, 32, 20_000, 1000, 128, 3, 4),
}
by_profile = pick(profile, profiles)
steps, batch_size = steps or by_profile[0], batch_size or by_profile[2]
max_length = max_length or by_profile[5]
_, steps_per_round, _, train_rows, checked, _, seeds, trials = by_profile

gpu = torch.cuda.is_available()
hub = profile == "classroom" and gpu  # a download is worth it there
model_name = model or ("FacebookAI/roberta-base" if hub else "lab")
data_name = data or ("nyu-mll/glue:sst2" if hub else "pydocs")
if not precision and gpu:
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
precision = precision or "no"
device = Accelerator(mixed_precision=precision).device
if not gpu:
    torch.set_num_threads(1)  # the lab model is so small that a second thread costs more than it brings
where = torch.cuda.get_device_name() if gpu else f"{device.type}, no CUDA GPU"


print(f"{model_name} on {data_name}; device: {where}; mixed precision: {precision}")

# %% [markdown]
# ## 1 · Two names
#
# A model name is `lab`, a folder that `save_pretrained` wrote, or a hub id. A data name is `pydocs`, a CSV,
# TSV or JSONL file, a folder that holds `train` and `dev`, or a hub id with the configuration after a colon.
# The same names work here, in `race(…)`, and behind `--model` and `--data` on the command line.
#
# What the columns are, and which head the model needs, is guessed from the columns' names. Say so yourself
# where the guess is wrong: `load(…, kind="classification", text="remark", label="verdict")`.

# %%
options = {} if metric is None else {"metric": metric}
base, task = load(model_name, data_name, max_length=max_length, limit=train_rows, seed=seed, **options)
base.to(device)
tokenizer = load_tokenizer(model_name)

parameters = sum(p.numel() for p in base.parameters())
head = (
    sum(p.numel() for p in head_parameters(base).values()) if task.labels or task.kind == "regression" else 0
)
print(f"{type(base).__name__}, {parameters:,} parameters, on {base.device}")
print(
    f"task: {task.kind}, ranked by {task.metric}", f"; labels: {', '.join(task.labels)}" * bool(task.labels)
)

# %% [markdown]
# Three splits, three jobs. **Train** fits the parameters. **Dev** chooses the learning rate. **Test** is
# looked at once, at the end, and chooses nothing.
#
# Some benchmarks keep the labels of their test split to themselves. Then we set half of dev aside *before
# anything is looked at* and use it as test. Rows are shuffled first: many files come sorted by label.

# %%
shuffle = random.Random(seed)
for rows in task.splits.values():
    shuffle.shuffle(rows)
borrowed = "test" not in task.splits
if borrowed:
    half = len(task.splits["dev"]) // 2
    task.splits["dev"], task.splits["test"] = task.splits["dev"][:half], task.splits["dev"][half:]
for split in ("dev", "test"):
    task.splits[split] = task.splits[split][:checked]
if borrowed:
    say(f"No test labels here ({task.absent.get('test', 'no such split')}): half of dev is test now.")


# %% tags=["folded"]
def text(example, width: int = 110) -> str:
    """The row as the model sees it, cut for display."""
    whole = " ".join(tokenizer.decode(example.ids, skip_special_tokens=True).split())
    return whole if len(whole) <= width else whole[: width - 1] + "…"


shown = [{"label": task.labels[e.label]} | {"text": text(e)} if task.labels else {"text": text(e)}
         for e in task.splits["train"][:5]]  # fmt: skip
pd.set_option("display.max_colwidth", 120)
pd.DataFrame(shown)

# %% [markdown]
# ## 2 · Look before you train
#
# **Question.** How many tokens has a row? How many rows are too long and get cut? Are there rows in test
# that the model will have seen in training, word for word?

# %%
seen = {tuple(e.ids) for e in task.splits["train"]}
looks = {
    split: {
        "rows": len(rows),
        "median tokens": float(np.median([len(e.ids) for e in rows])),
        "most tokens": max(len(e.ids) for e in rows),
        "share of rows cut": round(task.truncated.get(split, task.truncated["dev"]), 3),
        "rows also in train": sum(tuple(e.ids) in seen for e in rows) if split != "train" else "–",
    }
    for split, rows in task.splits.items()
}
display(pd.DataFrame.from_dict(looks, orient="index"))
cut, twice = looks["train"]["share of rows cut"], looks["test"]["rows also in train"]
say(
    f"{cut:.0%} of the training rows are cut at {max_length} tokens. {twice} of {looks['test']['rows']} test "
    f"rows are in train too, as far as the model can see."
)

# %% [markdown]
# Cut rows are no mistake, but they set a limit: no model can learn what stands behind the cut. Rows that are
# in both splits flatter every method, and most of all the one that memorises best.
#
# **Question.** Somebody does not read the rows at all and always gives the answer that is most frequent in
# train. How many test rows does this person get right?


# %% tags=["folded"]
def labels_of(split: str) -> list:
    return [e.label for e in task.splits[split]]


def without_reading() -> tuple[str, float]:
    """A score that needs no text, and how it is had."""
    if task.kind == "classification":
        ((favourite, _),) = Counter(labels_of("train")).most_common(1)
        truth = np.array(labels_of("test"))
        scores = classification_scores(truth, np.full(len(truth), favourite), len(task.labels))
        if task.metric in scores:
            return f"always “{task.labels[favourite]}”", scores[task.metric]
    if task.kind == "regression" and task.metric in ("mse", "loss"):
        middle = np.mean(labels_of("train"))
        return "always the mean", float(np.mean((np.array(labels_of("test")) - middle) ** 2))
    return "untrained", task.evaluate(base, "test")[task.metric]


if task.labels:
    shares = {split: pd.Series(labels_of(split)).value_counts(normalize=True) for split in ("train", "test")}
    display(pd.DataFrame(shares).rename(index=dict(enumerate(task.labels))).round(3))
blind_name, blind = without_reading()
untrained = task.evaluate(base, "test")[task.metric]
say(
    f"Test {task.metric} without reading ({blind_name}): **{blind:.3f}**. Of the untrained model: "
    f"{untrained:.3f}."
)

# %% [markdown]
# A score below the first number means that nothing useful was learnt, however nice its curve looks. For
# language models there is no such person; there the untrained model is what has to be beaten.

# %% [markdown]
# ### Exercise 2.1 · The score of somebody who does not read (8 minutes, medium)
#
# Write the function for any labels: the share of `test` labels that are the most frequent label of `train`.


# %% tags=["exercise"]
def majority(train: list, test: list) -> float:
    """Accuracy on `test` of always answering the most frequent label of `train`."""
    # solution: return None  # your answer
    favourite = max(set(train), key=train.count)
    return sum(label == favourite for label in test) / len(test)
    # end


# %% tags=["check"]
check.function(
    "2.1", majority,
    [(([0, 0, 1], [0, 1, 1, 1]), 0.25), ((["a", "b", "b", "c"], ["b", "a"]), 0.5), (([2, 2, 1], [1]), 0.0)],
    hints=[
        (lambda train, test: max(test.count(x) for x in test) / len(test),
         "You chose the favourite by looking at test. Nobody may look there before the end."),
        (lambda train, test: max(train.count(x) for x in train) / len(train),
         "That is its share of train. The answers are given on test."),
    ],
    because="The favourite comes from train, the score from test.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The favourite must come from train: choosing it on test would be a (very small) way of training on test.
# Where the classes are uneven, accuracy flatters this person, and Matthews correlation gives 0: set
# `metric="matthews"`.

# %% [markdown]
# **How sure is a score?** A test split is a sample. With *n* rows an accuracy *p* is uncertain by about
# √(*p* (1 − *p*) / *n*), one standard error. In general it is the spread of the rows' scores over √*n*.


# %% tags=["folded"]
def row_scores(answers, split: str = "test") -> np.ndarray:
    """What each row counts for, larger is better: right or wrong, minus the squared error, minus the loss."""
    answers = np.asarray(answers, float)
    if task.kind == "classification":
        return (answers == np.array(labels_of(split))).astype(float)
    if task.kind == "regression":
        return -((answers - np.array(labels_of(split))) ** 2)
    return -answers  # of a language model the task predicts each row's mean loss


row_score = {"classification": "share of right answers", "regression": "minus squared error"}
row_score = row_score.get(task.kind, "minus mean loss, nats")


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


before = row_scores(task.predict(base, "test"))
error = standard_error(before)
n = len(before)
say(f"Untrained, on {n} test rows: {row_score} {before.mean():.3f}, with a standard error of {error:.3f}.")

# %% [markdown]
# ### Exercise 2.2 · Twice as sure (3 minutes, easy)
#
# How many test rows would make the standard error half as large?

# %% tags=["exercise"]
# solution: rows_needed = None  # your answer: a number
rows_needed = 4 * n
# end

# %% tags=["check"]
check.number(
    "2.2", rows_needed, 4 * n, unit="rows",
    hints={
        2 * n: "Twice the rows divide the error by √2 only.",
        n**2: "The error falls with √n, so ask which factor has the square root 2.",
        4: "That is the factor. How many rows is it?",
    },
    because="The error falls with the square root of n, so half the error takes four times the rows.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# This is why differences of half a point on a few hundred rows say little. It is also why we will compare
# two methods *row by row* below: both answer the same rows, and what makes a row hard for both cancels.

# %% [markdown]
# ## 3 · What would be trained?
#
# `targets` decides which linear maps get factors. On an encoder like RoBERTa these are called `query`, `key`,
# `value`, `dense`, on a Llama `q_proj`, `down_proj` …; `all-linear` takes all of them but not the head.
#
# **Question.** How many numbers train at one moment: full fine-tuning, LoRA of rank 8, boosters of rank 1?

# %%
chosen = targets.split(",") if "," in targets else targets
modules = find_modules(base, chosen)
shapes = {name: weight_shape(module) for name, module in modules.items()}


def factors_of(rank: int) -> int:
    return sum(rank * (d + k) for d, k in shapes.values())


trained = {"full": parameters - head, "LoRA, rank 8": factors_of(8), "boosters, rank 1": factors_of(1)}
base_bytes = sum(p.numel() * p.element_size() for p in base.parameters())
plan = pd.DataFrame({"numbers trained (without head)": trained})
plan["gradients and Adam's moments, MB"] = plan.iloc[:, 0] * 12 / 1e6  # 4 bytes and 2 × 4 bytes each
plan["with the base model, MB"] = plan.iloc[:, 1] + base_bytes / 1e6
print(f"{len(modules)} modules, the first: {next(iter(shapes))}, shape {next(iter(shapes.values()))}")
plan.round(1).style.format(dict.fromkeys(plan.columns[1:], "{:,.1f}") | {plan.columns[0]: "{:,}"})

# %% [markdown]
# Read the last two columns together: the base is in all rows, whatever trains. So are the **activations**,
# which are not counted here. The larger these two are, the less the rank matters. Section 5 measures.

# %% [markdown]
# ### Exercise 3.1 · Count once yourself (4 minutes, easy)
#
# A map takes `k` numbers to `d` numbers. How many numbers do its LoRA factors of rank `r` hold?


# %% tags=["exercise"]
def lora_numbers(d: int, k: int, r: int) -> int:
    # solution: return None  # your answer
    return r * (d + k)
    # end


# %% tags=["check"]
check.function(
    "3.1", lora_numbers, [((*shape, r), r * sum(shape)) for shape in set(shapes.values()) for r in (1, 8)],
    hints=[
        (lambda d, k, r: d * k * r, "That is a dense matrix, r times. A is r × k and B is d × r."),
        (lambda d, k, r: d * k, "That is the weight itself. A is r × k and B is d × r."),
        (lambda d, k, r: r * d, "That is B. And A?"),
        (lambda d, k, r: r * k, "That is A. And B?"),
    ],
    because="B holds d × r numbers, A r × k.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# r (d + k). LoRA stops being smaller than the weight where r (d + k) = d k: for a square map of width d at
# r = d / 2.

# %% [markdown]
# ## 4 · One budget
#
# Three methods: boosters of rank 1 on every module in every round, LoRA of rank 1, LoRA of rank 8. All get
# the same steps on the same batches, and each has the same number of trials: learning rates a
# quarter decade apart, around its own default. Dev chooses.
#
# Four **hooks** watch each run. `Probe` notes the dev scores after every round, `Spectrum` the singular
# values. The other two are written here, because they are short: `Memory` notes what the GPU held, `Answers`
# what the model says on test at the end. (Notebook 10 is about writing your own.)
#
# Every finished run is **saved** beside this notebook. Has your kernel been stopped in between, as free
# servers do after some idle minutes? Start it and run all cells again: the contest goes on where it was, and
# only the runs that are missing are trained. With other parameters it begins anew.


# %%
class Memory(Hook):
    """The most bytes the GPU held in a round, measured by torch; nothing without a GPU."""

    def on_round_start(self, bench, index):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def measure(self, bench):
        return {"gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else None


class Answers(Hook):
    """The predictions on test after the last step."""

    def measure(self, bench):
        return {"answers": bench.predict("test").tolist()} if bench.trained_steps >= bench.steps else None


# %%
run = {
    "steps": steps, "steps_per_round": steps_per_round, "batch_size": batch_size, "targets": chosen,
    "precision": precision, "progress": progress,
    "hooks": lambda: [Memory(), Probe("dev"), Spectrum(limit=32), Answers()],
}  # fmt: skip
common = {"steps_per_round": steps_per_round}
contest = {
    "XGBLoRA, rank 1": XGBLoRA(selection="all", **common),
    "LoRA, rank 1": LoRA(rank=1, **common),
    "LoRA, rank 8": LoRA(rank=8, **common),
}
found = saved.race(base, task, list(contest.values()), trials=trials, seeds=seeds, **run)
names = dict(zip(found.labels, contest, strict=True))
for history in found.histories:
    history.label = names[history.label]

# %% [markdown]
# One more run is a baseline that papers forget: **the head alone**. The model stays as it is, and only the
# new head learns, with the same steps and the same head optimizer. (Boosters at a learning rate of almost
# zero stand still.) What the methods add to *that* is what adapting the model is worth.

# %%
runs = {name: found.chosen(name) for name in names.values()}
if head:
    alone = saved.race(base, task, [XGBLoRA(selection="all", **common)], lrs=(1e-12,), seeds=seeds, **run)
    for history in alone.histories:
        history.label = "head alone"
    runs["head alone"] = alone.histories

# %% [markdown]
# **Question.** Which method is best on dev after the same steps? By more than the learning rate matters?

# %%
figures.race(found.histories, y=f"dev_{task.metric}")

# %%
scores = {
    name: {
        "learning rate": histories[0].settings.lr if name != "head alone" else np.nan,
        f"dev {task.metric}": np.median([h.scores["dev"] for h in histories]),
        f"test {task.metric}": np.median([h.scores["test"] for h in histories]),
        "train loss, last round": np.median([np.mean(h[-1].losses) for h in histories]),
        "seeds": len(histories),
    }
    for name, histories in runs.items()
}
table = pd.DataFrame(scores).T.astype({"seeds": int})
display(table.style.format("{:.4g}", na_rep="–"))
edges = [name for name in names.values() if "edge" in found.table["chosen"][name]]
if edges:
    say(f"At the edge of the grid of learning rates, so perhaps not at its best: {'; '.join(edges)}.")

# %% [markdown]
# Now test, row by row. For every row we have each method's answer. The difference of two methods on the same
# rows has a standard error of its own. Compare it with those of the scores.

# %% tags=["folded"]
answered = {
    name: np.mean([row_scores(h[-1].measurements["answers"]) for h in histories], axis=0)  # over seeds
    for name, histories in runs.items()
}
gaps = {
    name: (
        float((values - answered["LoRA, rank 8"]).mean()),
        standard_error(values - answered["LoRA, rank 8"]),
    )
    for name, values in answered.items()
}


def versus(name: str) -> str:
    """In words, against LoRA of rank 8; two standard errors count as a difference."""
    gap, spread = gaps[name]
    verdict = "above" if gap > 2 * spread else "below" if gap < -2 * spread else "not clearly apart from"
    return f"{name} is {verdict} it ({gap:+.3f} ± {spread:.3f})"


rows = {
    name: {row_score: v.mean(), "standard error": standard_error(v), "minus LoRA, rank 8": gaps[name][0],
           "standard error of the difference": gaps[name][1]}
    for name, v in answered.items()
}  # fmt: skip
display(pd.DataFrame(rows).T.round(4))
leaders = [
    name for name in answered if np.isclose(rows[name][row_score], max(r[row_score] for r in rows.values()))
]
others = [name for name in answered if name != "LoRA, rank 8"]
say(
    f"Highest {row_score} on {n} test rows: **{' and '.join(leaders)}**, {answered[leaders[0]].mean():.3f}; "
    f"the untrained model had {before.mean():.3f}. LoRA of rank 8 has {answered['LoRA, rank 8'].mean():.3f}. "
    + "; ".join(versus(name) for name in others)
    + (". One seed only: another one may turn small differences round." if seeds == 1 else ".")
)

# %% [markdown]
# Two uncertainties are in play. The standard error is about *rows*: another test split. The spread over
# *seeds* is about training: another order, another initialisation. A claim needs both. The profile
# `classroom` trains three seeds.

# %% [markdown]
# ### Exercise 4.1 · Right where the other is wrong (6 minutes, medium)
#
# Two methods with the same accuracy may know different things. From two lists of answers and the truth,
# return how many rows only the first has right, and how many only the second.


# %% tags=["exercise"]
def only_one(first: list, second: list, truth: list) -> tuple[int, int]:
    # solution: return None  # your answer
    rights = [(a == t, b == t) for a, b, t in zip(first, second, truth, strict=True)]
    return sum(a and not b for a, b in rights), sum(b and not a for a, b in rights)
    # end


# %% tags=["check"]
check.function(
    "4.1", only_one,
    [(([0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]), (2, 0)), (([1, 1, 2], [2, 2, 2], [2, 2, 2]), (0, 2))],
    hints=[
        (lambda a, b, t: (sum(x == z for x, z in zip(a, t, strict=True)),
                          sum(y == z for y, z in zip(b, t, strict=True))),
         "These are all the rows each has right. Leave out those that both have."),
        (lambda a, b, t: (sum(x != y for x, y in zip(a, b, strict=True)),) * 2,
         "Where both are wrong in different ways, they differ too, and neither is right."),
    ],
    because="These are the only rows that speak about the difference of the two.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The difference of the accuracies is (first − second) / n, and the rows that both have right, or both wrong,
# take no part in it. McNemar's test asks how surprising such an uneven pair of numbers would be if each of
# these rows had been decided by a coin.

# %% [markdown]
# ## 5 · What it cost
#
# **Question.** Boosters train an eighth of the numbers of LoRA of rank 8. Are they eight times as cheap, in
# memory, in time?

# %%
figures.costs([h for name in names.values() for h in runs[name]])

# %% tags=["folded"]
cost = {}
for name in names.values():
    first = runs[name][0]
    seconds = [sum(r.seconds for r in h) for h in runs[name]]
    cost[name] = {
        "peak trainable numbers": max(r.peak_parameters for r in first),
        "of them the head": head,
        "total trained numbers": first[-1].total_parameters,
        "tokens a second": np.median([sum(r.tokens for r in h) for h in runs[name]]) / np.median(seconds),
        "seconds": np.median(seconds),
    }
    if "gpu_bytes" in first[-1].measurements:
        cost[name]["peak GPU memory, MB"] = max(r.measurements["gpu_bytes"] for r in first) / 1e6
cost = pd.DataFrame(cost).T
display(cost.style.format("{:,.0f}"))
boosted, joint = cost.loc["XGBLoRA, rank 1"], cost.loc["LoRA, rank 8"]
say(
    f"At its peak LoRA of rank 8 trains {joint.iloc[0] / boosted.iloc[0]:.1f} times as many numbers as "
    f"boosting, head included. Time: {joint['seconds'] / boosted['seconds']:.2f} times as long. Summed over "
    f"the {len(runs['XGBLoRA, rank 1'][0])} rounds, boosting trains "
    f"{boosted.iloc[2] / joint.iloc[2]:.1f} times as many numbers as LoRA of rank 8."
)

# %% [markdown]
# Compare the two ratios. Forward and backward through the base are the same for all methods, so time need not
# follow the number of trained numbers. (Times here are of whole rounds, with the scores of the probe.)
#
# ## 6 · What the rounds built
#
# **Question.** After these rounds, what is the rank of boosting's accumulated update? And how many directions
# does it really use?

# %%
boosting = runs["XGBLoRA, rank 1"][0]
if len(boosting) == 1:
    say("Boosting's best trial was one long round: one booster for each module, so every rank is 1 here.")
figures.ranks(boosting)

# %%
size = {
    name: sum(s**2 for s in values) ** 0.5 for name, values in boosting[-1].measurements["spectrum"].items()
}
moved = {name: size[name] / float(modules[name].weight.detach().float().norm()) for name in size}
most = max(moved, key=moved.get)
say(
    f"Relative to its weight, `{most}` moved most: ‖ΔW‖ is {moved[most]:.1%} of ‖W‖. The median of the "
    f"{len(moved)} modules is {np.median(list(moved.values())):.1%}."
)
figures.spectrum(boosting, most)

# %% [markdown]
# ## 7 · Read the mistakes
#
# A score is one number. Before you trust it, read what the model gets wrong.
#
# **Question.** Which classes are mixed up? Are there rows that *every* method gets wrong, and would you get
# them right?

# %% tags=["folded"]
if task.kind == "classification":
    mix = np.zeros((len(task.labels), len(task.labels)), int)
    np.add.at(mix, (labels_of("test"), boosting[-1].measurements["answers"]), 1)
    share = mix / np.maximum(mix.sum(1, keepdims=True), 1)
    figure = chart("XGBLoRA on test: how many rows of each class get which answer", "answer", "truth")
    figure.add_heatmap(
        z=share, x=task.labels, y=task.labels, colorscale="Blues", zmin=0, zmax=1, text=mix,
        texttemplate="%{text}" if len(task.labels) <= 20 else "", colorbar_title="share of row",
        hovertemplate="%{y} called %{x}: %{text} rows<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(tickformat="").update_yaxes(
        autorange="reversed", tickformat="", showgrid=False
    ).show()

    off = mix - np.diag(np.diag(mix))
    a, b = np.unravel_index(off.argmax(), off.shape)
    recall = {label: share[i, i] for i, label in enumerate(task.labels) if mix[i].any()}
    worst_class = min(recall, key=recall.get)
    say(
        f"Most frequent mistake: “{task.labels[a]}” called “{task.labels[b]}”, {off[a, b]} of "
        f"{mix[a].sum()} rows. Hardest class: “{worst_class}”, {recall[worst_class]:.0%} of its rows right."
        if off.any()
        else "There is no mistake on test: ask whether test is too easy."
    )

# %%
together = np.mean([answered[name] for name in names.values()], axis=0)
hardest = np.argsort(together, kind="stable")[:8]
mistakes = []
for i in hardest:
    example = task.splits["test"][i]
    row = {"mean score of the methods": round(float(together[i]), 3)}
    if task.labels:
        row["truth"] = task.labels[example.label]
        said = Counter(
            task.labels[h[-1].measurements["answers"][i]] for name in names.values() for h in runs[name]
        )
        row["said most often"] = said.most_common(1)[0][0]
    mistakes.append(row | {"text": text(example)})
display(pd.DataFrame(mistakes))
if task.kind == "classification":
    say(
        f"{(together == 0).sum()} of {n} test rows are wrong with every method and seed, "
        f"{(together == 1).sum()} are right with all of them."
    )

# %% [markdown]
# Sort what you read into three heaps. *The label is wrong* or could be either: no method should be asked for
# it. *The row was cut* before the point: raise `max_length`. *The model does not know*: only these are a
# matter of methods.

# %% [markdown]
# ## 8 · On a GPU
#
# Nothing in this notebook knows where it runs. Change the parameters, not the code:
#
# | you want | parameters |
# | --- | --- |
# | an encoder, sentiment | `model="FacebookAI/roberta-base"`, `data="nyu-mll/glue:sst2"` |
# | a pair of sentences | `data="nyu-mll/glue:mrpc"` |
# | grammatical or not, uneven classes | `data="nyu-mll/glue:cola"`, `metric="matthews"` |
# | a decoder that classifies | `model="openai-community/gpt2"` |
# | a small Llama | `model="HuggingFaceTB/SmolLM2-135M"` |
# | school mathematics, on a decoder | `data="openai/gsm8k:main"`, `max_length=512` |
# | your own | `model="my/folder"`, `data="my/rows.csv"` |
#
# From a shell: `xgblora-lab run 8 --profile classroom -p data=nyu-mll/glue:cola -p metric=matthews`.
#
# On prompts with answers, such as GSM8K, the score is the loss on the answer's tokens. It is no measure of
# solved problems; that takes generating and checking.
#
# **Precision.** The base stays in float32 and mixed precision computes in 16 bits. A T4 has no fast bfloat16,
# so it takes fp16, with scaled losses; newer cards take bf16. Factors, their gradients and the ensemble stay
# in float32 in every case, and notebook 02 shows why.
#
# **Batch size.** A GPU wants larger batches than a laptop. Then fewer steps see the same rows, and boosting
# starts every new booster from nothing. Compare at equal steps *and* at equal rows.
#
# **Rates.** A learning rate that is best on the lab model need not be best elsewhere. The grid above is laid
# around each method's default; where the best rate lies at an edge, widen it.

# %%
spent = sum(sum(r.seconds for r in h) for h in found.histories)
say(
    f"This run: {where}, precision {precision}. The {len(found.histories)} runs of the contest took "
    f"{spent / 60:.1f} minutes, {spent / sum(h[-1].step for h in found.histories):.3f} s a step."
)
if profile == "classroom" and not gpu:
    say(
        "There is no CUDA GPU here, so the profile `classroom` ran on the lab model unless you named another."
    )

# %% [markdown]
# ### Exercise 8.1 · Seven billion (4 minutes, easy)
#
# Full fine-tuning with Adam in float32 holds, for every parameter, the weight, its gradient and two moments.
# How many gigabytes (10⁹ bytes) is that for a model of 7 billion parameters, before any activation?

# %% tags=["exercise"]
# solution: gigabytes = None  # your answer: a number
gigabytes = 7e9 * 4 * (1 + 1 + 2) / 1e9
# end

# %% tags=["check"]
check.number(
    "8.1", gigabytes, 7e9 * (4 + 4 + 8) / 1e9, unit="gigabytes",
    hints={
        28: "That is the weights alone.",
        56: "Weights and gradients. And Adam's two moments?",
        84: "Adam keeps two moments. Are the weight, the gradient and both moments in?",
        7 * 4: "That is the weights alone.",
        112e9: "That is bytes.",
    },
    because="Four numbers of four bytes for each parameter.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# 16 bytes for each parameter, 112 GB. With factors only the 28 GB of weights remain, 14 GB in 16 bits, and
# the factors' own 16 bytes each, which are few. This step from 112 to 28 is the one that matters; the step
# from rank 8 to rank 1 changes it by very little.

# %% [markdown]
# ## What to take away
#
# - Two names put a model and data into the lab; everything else follows from the columns.
# - Three scores come before any tuning: of somebody who does not read, of the untrained model, of the head
#   alone.
# - A score on *n* rows has a standard error; two methods are compared on the same rows.
# - Dev chooses, test is looked at once.
# - Trained numbers, memory and time are three things. Measure all three.
# - Mistakes are for reading. Some are the label's, some the cut's.
#
# **Try it.** Set `targets="attention"`: what happens to the score, what to the count? Double `steps`: does
# the order of the methods stay? Give the notebook a file of your own.
#
# ## References
#
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - Y. Zhang and others. *Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of
#   LLMs.* [arXiv 2410.19694](https://arxiv.org/abs/2410.19694)
# - A. Wang and others. *GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
#   Understanding.* [arXiv 1804.07461](https://arxiv.org/abs/1804.07461)
# - K. Cobbe and others. *Training Verifiers to Solve Math Word Problems* (GSM8K).
#   [arXiv 2110.14168](https://arxiv.org/abs/2110.14168)
# - Y. Liu and others. *RoBERTa: A Robustly Optimized BERT Pretraining Approach.*
#   [arXiv 1907.11692](https://arxiv.org/abs/1907.11692)
# - Q. McNemar. *Note on the sampling error of the difference between correlated proportions or percentages.*
#   Psychometrika 12, 1947.
#
# The last cell checks what must hold on any model and data.

# %% tags=["folded"]
# Section 2: held-out rows are held out by position; the classes' shares add up.
assert all(len(task.splits[split]) <= checked for split in ("dev", "test"))
# Section 3: what was counted is what was trained.
for name, rank in (("XGBLoRA, rank 1", 1), ("LoRA, rank 1", 1), ("LoRA, rank 8", 8)):
    assert cost.loc[name].iloc[0] == factors_of(rank) + head
# Section 4: one budget, the same batches.
assert len({(sum(r.tokens for r in h), h[-1].step) for h in found.histories if h.settings.seed == 0}) == 1
# Section 5: what boosting saves is at the peak, not in total.
assert cost.loc["XGBLoRA, rank 1"].iloc[2] == factors_of(1) * len(boosting) + head
# Section 6: rank 1 a round, so at most as many directions as rounds.
assert all(len(values) <= len(boosting) for values in boosting[-1].measurements["spectrum"].values())
# Section 7: the answers are those that the score counted.
if task.kind == "classification":
    assert np.isclose(
        row_scores(boosting[-1].measurements["answers"]).mean(), boosting.scores["test_accuracy"]
    )
# And the benches have put the model back to where it began.
assert np.allclose(row_scores(task.predict(base, "test")), before)
print("All facts hold.")
