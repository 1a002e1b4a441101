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
# # Take it with you
#
# *How does the result leave this lab, and how do your own data, hook and method come in?*
#
# A lab is of little use if nothing gets out of it. Here a model is trained on a file of your own. It leaves
# as an ordinary checkpoint and as a PEFT adapter, and answers over HTTP. Then the other direction: an
# observer of your own, a method of your own that races against LoRA, and a training loop of your own.
#
# **You will be able to**
#
# 1. load a file of your own, and read what the lab says when it cannot;
# 2. export a merged checkpoint and a PEFT adapter, and prove that they are the model you trained;
# 3. make the adapter smaller, and say what that costs;
# 4. serve the model with the standard library;
# 5. write a hook and a method, each on half a page;
# 6. run boosting's rounds inside the `Trainer` of `transformers`.
#
# **Time.** {time}.
#
# **You need.** Notebook 02: booster, round, accumulated update, LoRA. A little Python: classes, and what a
# thread is.
#
# A question comes before each answer. **Write down your guess, then run the cell.** Sentences behind a grey
# bar are written by code, from the numbers of *your* run.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (seconds of training), "laptop" (a minute or two) or "classroom" (longer)
seed: int = 0  # of the example data, the boosters, the choice of modules and the order of the data
progress: bool = False  # show progress bars

# %% tags=["folded"]
import http.client
import json
import random
import tempfile
import threading
import warnings
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from IPython.display import display
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging

from xgblora_lab import (
    Bench,
    Hook,
    LoRA,
    XGBLoRA,
    XGBLoRACallback,
    check,
    figures,
    load,
    load_model,
    load_task,
    load_tokenizer,
    race,
    spectra,
)
from xgblora_lab.course.board import chart, line, pick, say
from xgblora_lab.methods import METHODS

torch.set_num_threads(1)  # the lab model is so small that a second thread costs more than it brings
logging.disable_progress_bar()  # of loading and saving, which take no time here

#            steps, κ | learning rates of the race in section 7, seeds
profiles = {
    "ci": (24, 4, (0.01,), 1),
    "laptop": (80, 10, (0.001, 0.003, 0.01, 0.03), 1),
    "classroom": (300, 15, (0.001, 0.003, 0.01, 0.03), 3),
}
steps, steps_per_round, lrs, seeds = pick(profile, profiles)
scratch = tempfile.TemporaryDirectory()  # every file of this notebook; removed by the last cell
folder = Path(scratch.name)


# %% [markdown]
# ## 1 · Your own data
#
# A file of your own: one row for each example, one column for the text, one for the label. Put yours in place
# of this one. Ours is made by a few lines: remarks on things in a shop, and what kind of remark each is.

# %%
things = ["chair", "lamp", "coat", "kettle", "pen", "clock", "table", "spoon", "hat", "box", "rug", "bell"]
good = ["fine", "lovely", "useful", "strong", "pretty", "cheap", "soft", "clean", "bright", "new"]
bad = ["broken", "ugly", "useless", "weak", "dirty", "faulty", "rough", "dull", "dark", "torn"]
remarks = [(f"The {t} is {g}.", "praise") for t in things for g in good]
remarks += [(f"The {t} is {b}.", "complaint") for t in things for b in bad]
remarks += [(f"Is the {t} {a}?", "question") for t in things for a in good[::2] + bad[::2]]
random.Random(seed).shuffle(remarks)

file = folder / "remarks.csv"
pd.DataFrame(remarks, columns=["remark", "kind"]).to_csv(file, index=False)
print(*file.read_text().splitlines()[:6], sep="\n")
print(f"… {len(remarks)} rows")

# %% [markdown]
# **Question.** The columns are called `remark` and `kind`. What will the lab say if we do not tell it which
# is which?

# %%
try:
    load_task(file)
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# The lab refuses what it cannot use, in one sentence that says what to do. We follow it.
#
# A single file is split by row: 80 % for training, 10 % each for dev and test. In a folder, name the files
# `train.csv`, `dev.csv`, `test.csv`.

# %%
columns = {"text": "remark", "label": "kind"}
model, task = load("lab", file, seed=seed, **columns)
sizes = {split: task.size(split) for split in ("train", "dev", "test")}
print(sizes, "labels:", task.labels)

# %% [markdown]
# Then boosters, on a third of the modules in every round, chosen at random.

# %%
method = XGBLoRA(selection="random", steps_per_round=steps_per_round, lr=0.03)
options = {"steps": steps, "seed": seed, "data_seed": seed}
bench = Bench(model, task, method, **options)
start = bench.evaluate("test")["accuracy"]
bench.run(progress=progress)
bench.history.label = "XGBLoRA"
after = bench.evaluate("test")["accuracy"]
say(
    f"Accuracy on the {sizes['test']} test rows: {start:.2f} before, {after:.2f} after {len(bench.history)} "
    f"rounds. This data is easy, and its rows are alike; the numbers are here to be carried, not admired."
)

# %% [markdown]
# ## 2 · An ordinary checkpoint
#
# `export_merged` writes what `save_pretrained` would write for any model: all boosters merged into the
# weights, the trained head, the configuration with your labels, and the tokenizer if you hand it over.

# %%
bench.export_merged(folder / "merged", tokenizer=load_tokenizer("lab"))


def megabytes(where: Path) -> float:
    return sum(path.stat().st_size for path in where.rglob("*") if path.is_file()) / 1e6


print(", ".join(sorted(path.name for path in (folder / "merged").iterdir())))
print(f"{megabytes(folder / 'merged'):.1f} MB")

# %% [markdown]
# **Question.** Somebody loads it with `transformers` alone, without ever having heard of boosters. By how
# much do the logits differ from those of the model on the bench?

# %%
rows = task.batch("dev", range(min(64, sizes["dev"])))


def logits(which: torch.nn.Module) -> torch.Tensor:
    """The model's answers to the rows, (N, labels), on the CPU."""
    device = next(which.parameters()).device
    inputs = {name: value.to(device) for name, value in rows.items() if name != "labels"}
    with torch.no_grad():
        return which(**inputs).logits.float().cpu()


# %%
live = logits(bench.model)
with bench.at(0):
    untrained = logits(bench.model)
stranger = AutoModelForSequenceClassification.from_pretrained(folder / "merged").eval()
merged_error = float((logits(stranger) - live).abs().max())
change = float((untrained - live).abs().max())
say(
    f"Largest difference of a logit: {merged_error:.1e} from the model on the bench, {change:.2f} from the "
    f"untrained one. The second number is there so that the first means something."
)

# %% [markdown]
# Always measure both. A checkpoint in which nothing was merged would also load without a complaint, and it
# would be far from the bench and close to the base.
#
# ## 3 · A PEFT adapter
#
# A checkpoint holds the whole model again. An adapter holds only what was added, for anybody who has the
# base. A sum of boosters is one LoRA: put the columns of all *B* side by side and the rows of all *A* below
# each other.

# %%
report = bench.export_peft(folder / "adapter", base="lab")


def with_adapter(name: str) -> torch.nn.Module:
    """A fresh base with the adapter of this folder, by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a name that has changed
        return PeftModel.from_pretrained(load_model("lab", task, seed=seed), folder / name).eval()


adapted = with_adapter("adapter")
peft_error = float((logits(adapted) - live).abs().max())
whole, small = megabytes(folder / "merged"), megabytes(folder / "adapter")
say(
    f"Largest difference of a logit from the model on the bench: {peft_error:.1e}. The adapter has "
    f"{small:.2f} MB, the checkpoint {whole:.1f} MB. The trained head travels in both."
)

# %% [markdown]
# ### Exercise 3.1 · The adapter's rank (3 minutes, easy)
#
# Each round put boosters of rank 1 on some of the modules. Which rank must the adapter have at least, so that
# nothing is lost on any module? `bench.ensemble.times_chosen(name)` says how often a module was drawn;
# `bench.modules` has the names.

# %% tags=["exercise"]
# solution: adapter_rank = None  # your answer: a number
adapter_rank = max(bench.ensemble.times_chosen(name) for name in bench.modules)
# end

# %% tags=["check"]
check.number(
    "3.1", adapter_rank, report["rank"], unit="the rank",
    hints={
        len(bench.history): "So many rounds there were. Was one module drawn in every round?",
        sum(bench.ensemble.times_chosen(name) for name in bench.modules):
            "That is the number of boosters on all modules together. Each module has factors of its own.",
        min(bench.ensemble.times_chosen(name) for name in bench.modules):
            "That is enough for the module drawn least often.",
        1: "That is the rank of one booster, and they add up.",
    },
    because="Every booster on a module adds one column, so the module drawn most often decides.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The ranks of the boosters on one module add up. An adapter may have a rank for each module (PEFT calls it
# `rank_pattern`), and the export makes use of that; the largest of them is what the adapter needs at most.

# %% [markdown]
# ## 4 · A smaller adapter, and its price
#
# Late boosters are small. So cut: keep the *r* largest singular values of each module's update. Eckart and
# Young proved that no other choice of this rank is closer.
#
# **Question.** Half the rank is about half the size. How much of the update is lost? How many answers change?

# %%
full = report["rank"]
kept = sorted({1, max(1, full // 4), max(1, full // 2), full})
cuts, price = {}, {}
for rank in kept:
    cuts[rank] = bench.export_peft(folder / f"rank-{rank}", rank=rank, base="lab")["relative_error"]
    other = with_adapter(f"rank-{rank}")
    errors = pd.Series(cuts[rank])
    price[rank] = {
        "size, MB": megabytes(folder / f"rank-{rank}"),
        "lost of the update, median": errors.median(),
        "lost of the update, worst module": errors.max(),
        "answers changed": float((logits(other).argmax(-1) != live.argmax(-1)).float().mean()),
        "test accuracy": task.evaluate(other, "test")["accuracy"],
    }
price = pd.DataFrame(price).T.rename_axis("rank")
display(price.round(3))

# %% tags=["folded"]
figure = chart("What a smaller adapter loses", "rank kept", "relative error of the update")
for look, column in enumerate(("lost of the update, worst module", "lost of the update, median")):
    line(figure, column, price.index, price[column], look, mode="lines+markers")
figure.update_xaxes(tickvals=kept).update_yaxes(rangemode="tozero").show()
lossless = price.index[price["answers changed"] == 0]
say(
    f"At rank 1 the module that fares worst loses {price.iloc[0, 2]:.0%} of its update, and "
    f"{price.iloc[0, 3]:.0%} of the answers to {len(live)} rows change. The smallest rank here at which no "
    f"answer changes is {lossless.min()}."
)

# %% [markdown]
# Error of the update and error of the answers are two things. Only the second one matters to a user, and
# only rows like the user's can measure it.

# %% [markdown]
# ### Exercise 4.1 · The price, from the spectrum alone (5 minutes, medium)
#
# From the singular values of an update, the relative error of its best approximation of rank *r*.


# %% tags=["exercise"]
def lost(values: torch.Tensor, r: int) -> float:
    """‖ΔW − cut‖ / ‖ΔW‖ from the singular values of ΔW, descending."""
    # solution: return None  # your answer
    return float((values[r:].square().sum() / values.square().sum()).sqrt())
    # end


# %% tags=["check"]
check.function(
    "4.1", lost,
    [((bench.spectrum(name), rank), error) for rank in kept[:2] for name, error in cuts[rank].items()],
    hints=[
        (lambda s, r: float(s[r:].square().sum() / s.square().sum()), "Almost: a norm is a square root."),
        (lambda s, r: float(s[r:].sum() / s.sum()), "The norm of a matrix is made of squares."),
        (lambda s, r: float((s[:r].square().sum() / s.square().sum()).sqrt()), "That is what is kept."),
    ],
    because="What is cut off is the tail of the spectrum, and the norm is the root of the sum of squares.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# ‖ΔW‖² = Σ σᵢ², and the cut takes away all σᵢ with i > r. So the price can be read off the spectrum before
# anything is written; the lab gets it from the factors, without forming the matrix.

# %% [markdown]
# ## 5 · Serve it
#
# The checkpoint is an ordinary model, so `transformers.pipeline` takes it, and the labels come out by name.
# The server is a page of Python's own library.
#
# **Question.** What does the server need to have installed, `xgblora_lab`, PEFT, or neither?

# %%
classify = pipeline(
    "text-classification",
    model=stranger,
    tokenizer=AutoTokenizer.from_pretrained(folder / "merged"),
    device=-1,
)


# %%
class Answer(BaseHTTPRequestHandler):
    """POST {"text": …} gives {"label": …, "score": …}; anything else gives 400 and a sentence."""

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, result = 200, classify(body["text"])[0]
        except (KeyError, TypeError, ValueError):
            status, result = 400, {"error": 'Send JSON of the form {"text": "The lamp is fine."}.'}
        data = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet: the default writes every request to stderr."""


# %% tags=["folded"]
def ask(port: int, body: str) -> tuple[int, dict]:
    """One request to the server on this machine: the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# %%
server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)  # this machine only; 0 asks for any free port
threading.Thread(target=server.serve_forever, daemon=True).start()
try:
    replies = {
        remark: ask(server.server_port, json.dumps({"text": remark}))
        for remark in ("The kettle is lovely.", "The pen is broken.", "Is the clock strong?")
    }
    refused = ask(server.server_port, "hello")
finally:
    server.shutdown()
    server.server_close()

for remark, (status, reply) in replies.items():
    print(f"{status}  {remark:<24} {reply['label']:<10} {reply['score']:.2f}")
print(*refused)

# %% [markdown]
# Neither. `transformers` is enough. The address `127.0.0.1` keeps it on your machine; in front of strangers a
# server needs more than this one has: limits on size and rate, and encryption.
#
# (To serve the adapter, load it with PEFT. To serve many adapters on one base, PEFT can switch between them:
# `load_adapter`, `set_adapter`.)

# %% [markdown]
# ## 6 · Your own hook
#
# A hook looks at a run. It may have any of these methods: `on_run_start`, `on_round_start`, `on_step`,
# `measure`, `on_round_end`, `on_run_end`. What `measure` returns becomes part of the round's record, so it
# lands in tables, figures and files. If `on_round_end` returns something true, the run
# stops.
#
# **Question.** How far do the *answers* move in a round, whether for better or worse? The loss cannot say
# that: two models with the same loss can disagree everywhere. Measure the divergence from the base's answers.


# %%
class Moved(Hook):
    """`{"moved": nats}`: mean divergence KL(now ‖ base) of the answers to the first rows of dev."""

    def __init__(self, rows: int = 16) -> None:
        self.rows = rows

    def on_run_start(self, bench: Bench) -> None:
        self.base = self.answers(bench)

    def measure(self, bench: Bench) -> dict[str, float]:
        now = self.answers(bench)
        return {"moved": float((now.exp() * (now - self.base)).sum(-1).mean())}

    @torch.no_grad()
    def answers(self, bench: Bench) -> torch.Tensor:
        """Log-probabilities, (rows, labels)."""
        count = min(self.rows, bench.task.size("dev"))
        batch = bench.trainer.on_device(bench.task.batch("dev", range(count)))
        batch.pop("labels")
        return bench.model(**batch).logits.float().log_softmax(-1)


# %%
curve = [r.losses for r in bench.history]
histories = []
for label, watched in {
    "XGBLoRA": method,
    "LoRA, rank 4": LoRA(rank=4, steps_per_round=steps_per_round),
}.items():
    with Bench(model, task, watched, hooks=[Moved()], **options) as other:
        histories.append(other.run(progress=progress))
        histories[-1].label = label
assert [r.losses for r in histories[0]] == curve  # it only looked: the same losses as without it

# %% tags=["folded"]
figure = chart(
    "How far the answers moved, against what it brought: one point a round",
    "probe loss (nats), falling to the right", "divergence from the base (nats)",
)  # fmt: skip
for history in histories:
    losses = [history[0].probe_before, *(r.probe_after for r in history)]
    moved = [0.0, *(r.measurements["moved"] for r in history)]
    line(figure, history.label, losses, moved, figures.style(history.method), mode="lines+markers")
figure.update_xaxes(autorange="reversed").update_yaxes(rangemode="tozero").show()

# %%
record = pd.DataFrame({h.label: [r.measurements["moved"] for r in h] for h in histories}).rename_axis("round")
display(record.round(4).T)
last = record.iloc[-1]
gained = {h.label: h[0].probe_before - h[-1].probe_after for h in histories}
say(
    "Divergence from the base at the end, and what the probe loss fell by: "
    + "; ".join(f"{name} {last[name]:.3f} and {gained[name]:.3f} nats" for name in record)
    + ". Both at one learning rate each, so this says nothing about which is better."
)

# %% [markdown]
# Every run starts at the lower left. Where one line lies above the other, its answers moved further for the
# same loss.
#
# The `assert` above the figure is the test that every hook should pass: with it and without it, the run is
# the same, number by number.

# %% [markdown]
# ### Exercise 6.1 · A bar for stopping (6 minutes, medium)
#
# A simple rule: stop when a round gains less than a tenth of what the best round so far has gained. Write the
# bar, from the gains of all rounds so far. The cell below puts it into a hook. (While you have no bar,
# nothing stops.)


# %% tags=["exercise"]
def bar(gains: list[float]) -> float:
    """The gain, in nats, below which the run should stop."""
    # solution: return None  # your answer
    return 0.1 * max(gains)
    # end


# %% tags=["check"]
check.function(
    "6.1", bar, [(([0.5],), 0.05), (([0.5, 0.2, 0.04],), 0.05), (([0.1, 0.4, 0.05],), 0.04)],
    hints=[
        (lambda gains: 0.1 * gains[0], "The best round need not be the first."),
        (lambda gains: 0.1 * gains[-1], "A tenth of the best round, and not of the last."),
        (lambda gains: max(gains), "That is the best gain. The bar is a tenth of it."),
        (lambda gains: 0.1, "A tenth of what the best round gained, and not a tenth of a nat."),
    ],
    because="A tenth of the best so far, whichever round that was.",
)  # fmt: skip


# %%
class Enough(Hook):
    """Ends the run by the rule above."""

    def on_round_end(self, bench: Bench, record) -> bool | None:
        level = bar([r.gain for r in bench.history])
        return level is not None and record.gain < level


with Bench(model, task, method, hooks=[Enough()], **options) as other:
    stopped = len(other.run(progress=progress))
    planned = other.planned_rounds
say(f"The rule stopped the run after {stopped} of {planned} rounds." if stopped < planned else
    f"All {planned} rounds were run: no round fell below a bar.")  # fmt: skip

# %% [markdown] tags=["solution"]
# A single weak round is thin evidence: with a third of the modules drawn at random, some rounds draw the
# wrong ones. A better rule waits for several of them. The library's `Stop(n_iter_no_change=…)` does.

# %% [markdown]
# ## 7 · Your own method
#
# A method says only what is different about it. LoRA-FA freezes *A* as it was drawn and trains *B* alone. So
# it is LoRA, but for two lines: *A* gets no gradient, and only what gets one is trained.


# %%
@dataclass
class LoRAFA(LoRA):
    """LoRA with a frozen A (Zhang and others 2023, arXiv 2308.03303)."""

    name: ClassVar[str] = "lora-fa"

    def make_boosters(self, bench):
        boosters = super().make_boosters(bench)
        for booster in boosters.values():
            booster.A.requires_grad_(False)
        return boosters

    def trainable(self):
        return {name: p for name, p in super().trainable().items() if p.requires_grad}


METHODS[LoRAFA.name] = LoRAFA  # from now on its name works wherever a method's name does

# %% [markdown]
# **Question.** It trains fewer numbers. Does it reach what LoRA of the same rank reaches, each at its best
# learning rate?

# %%
contest = race(
    model, task, ["lora:r=4", "lora-fa:r=4"], lrs=lrs, seeds=seeds, steps=steps,
    steps_per_round=steps_per_round, progress=progress,
)  # fmt: skip
figures.race(contest.histories)

# %%
shown = ["chosen", "dev accuracy", "test accuracy", "train loss", "peak parameters", "optimizer bytes"]
display(contest.table[shown])
joint, frozen = (contest.chosen(label)[0] for label in contest.labels)
ends = {h.method: h[-1].probe_after for h in (joint, frozen)}
ahead = min(ends, key=ends.get)
edges = [label for label in contest.labels if "edge" in contest.table["chosen"][label]]
say(
    f"Lower probe loss at the end: **{ahead}** ({ends['lora']:.4f} for lora, {ends['lora-fa']:.4f} for "
    f"lora-fa). Optimizer memory of lora-fa: {frozen[-1].optimizer_bytes / joint[-1].optimizer_bytes:.0%} of "
    f"lora's, head included. "
    + (f"At the edge of the grid, so perhaps not at its best: {', '.join(edges)}. " if edges else "")
    + ("One seed: a small difference may be chance." if seeds == 1 else "")
)

# %% [markdown]
# Table, figure, tuning, records: all of that knew the new method at once. So do rewinding and the exports. To
# keep it, put the class into a file of its own in `xgblora_lab/methods/`, with one line in `METHODS`; the
# suite then tests it like all others, and `xgblora-lab race --methods lora:r=4,lora-fa:r=4` runs it.

# %% [markdown]
# ### Exercise 7.1 · Count it (2 minutes, easy)
#
# How many numbers does LoRA-FA train on a map from `k` to `d` numbers at rank `r`?


# %% tags=["exercise"]
def fa_numbers(d: int, k: int, r: int) -> int:
    # solution: return None  # your answer
    return d * r
    # end


# %% tags=["check"]
check.function(
    "7.1", fa_numbers, [((d, k, r), r * d) for d, k in set(bench.ensemble.shapes.values()) for r in (1, 4)],
    hints=[
        (lambda d, k, r: r * (d + k), "That is LoRA. A is frozen here."),
        (lambda d, k, r: r * k, "That is A, and A is the one that is frozen."),
        (lambda d, k, r: r * (d + k) // 2, "Half of LoRA's only where d = k."),
    ],
    because="B alone, d × r.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# d r. On a map that widens (d > k) that is more than half of LoRA's numbers, on one that narrows less. The
# sum over all modules and the head is what the table shows as peak parameters.

# %% [markdown]
# ### Exercise 7.2 · And the other way round? (3 minutes, medium)
#
# Freeze *B* instead, as it starts, and train *A*. What does this method learn on its maps?
#
# (a) the same as LoRA-FA, (b) nothing, (c) what LoRA learns, more slowly.

# %% tags=["exercise"]
# solution: frozen_b = None  # your answer: "a", "b" or "c"
frozen_b = "b"
# end

# %% tags=["check"]
check.choice(
    "7.2", frozen_b, "b", {"a": "the same as LoRA-FA", "b": "nothing", "c": "what LoRA learns, more slowly"},
    hints={
        "a": "A and B look alike in the product, but they do not start alike.",
        "c": "What is the gradient of A at the start? Which factor does it contain?",
    },
    because="B starts at 0 and stays there, so BA = 0 whatever A is.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# B = 0 and stays 0. Then BA = 0 whatever A is, and A's gradient, which contains B as a factor, is 0 too. Only
# the head would learn. This is why the random factor may be frozen and the zero one may not.

# %% [markdown]
# ## 8 · Your own training loop
#
# Perhaps you have a training loop already: the `Trainer` of `transformers`, with your collator, your logging
# and your evaluation. Keep it. A **callback** brings the rounds into it. It attaches fresh boosters when a
# round begins, and merges them when it ends.


# %%
def rows_of(split: str) -> list[dict]:
    """The rows as `Trainer` takes them."""
    return [{"input_ids": example.ids, "labels": example.label} for example in task.splits[split]]


callback = XGBLoRACallback(method)
arguments = TrainingArguments(
    str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=16, seed=seed, report_to="none",
    save_strategy="no", dataloader_pin_memory=False, disable_tqdm=not progress,
)  # fmt: skip
trainer = Trainer(
    load_model("lab", task, seed=seed),
    arguments,
    data_collator=DataCollatorWithPadding(load_tokenizer("lab")),
    train_dataset=rows_of("train"),
    eval_dataset=rows_of("dev"),
    callbacks=[callback],
)

# %% [markdown]
# **Question.** `Trainer` evaluates with code of its own, which has never heard of boosters. Whose loss will
# it report after the training, the base's or the tuned model's?

# %%
loss_before = trainer.evaluate()["eval_loss"]
trainer.train()
loss_after = trainer.evaluate()["eval_loss"]
callback.history.label = "XGBLoRA, inside Trainer"
figures.loss(callback.history)

# %%
on_bench = callback.bench.evaluate("dev")["loss"]
say(
    f"`Trainer`'s own evaluation on dev: {loss_before:.3f} nats before, {loss_after:.3f} after "
    f"{len(callback.history)} rounds. The bench says {on_bench:.3f} for the same rows."
)

# %% [markdown]
# The tuned model's. Between two rounds everything is merged, so that whoever looks finds ordinary weights. An
# evaluation or a checkpoint that falls inside a round waits for its end.
#
# What remains is what a bench leaves: `callback.history`, `callback.ensemble`, and `callback.bench`, which
# rewinds and exports. After a stop, `trainer.train(resume_from_checkpoint=True)` goes on to the same curve.

# %% [markdown]
# ## What to take away
#
# - A file with two columns is enough; the lab refuses what it cannot use, with a sentence.
# - A merged checkpoint needs `transformers` alone. An adapter needs the base and PEFT, and is small.
# - Prove an export by two differences: from the live model (nearly none) and from the base (not none).
# - Cutting the rank has a price that the spectrum tells beforehand. What it costs in answers is measured.
# - A hook looks and changes nothing, and a run with it is the run without it.
# - A method is its difference from another one.
# - The rounds also run inside `Trainer`, which sees ordinary weights between them.
#
# **Try it.** Give section 1 a file of yours. Write a hook that keeps the number of the dev row with the
# largest loss in each round (`bench.task.predict` and `labels`). Freeze *A* at the leading directions of the
# inputs and not at random ones: does LoRA-FA catch up?
#
# ## References
#
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - L. Zhang and others. *LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
#   Fine-tuning.* [arXiv 2308.03303](https://arxiv.org/abs/2308.03303)
# - C. Eckart, G. Young. *The approximation of one matrix by another of lower rank.* Psychometrika 1, 1936.
# - PEFT, *LoRA*: [huggingface.co/docs/peft](https://huggingface.co/docs/peft/index)
#
# The last cell checks what the text says about your run, and leaves nothing behind.

# %% tags=["folded"]
# Sections 2 and 3: what left the lab is what was trained, and not the base.
assert merged_error < 1e-3 < 1e-2 < change
assert peft_error < 1e-3
assert small < whole
assert stranger.config.id2label == dict(enumerate(task.labels))
# Section 4: the exact adapter loses nothing, and a smaller one loses more.
assert price["lost of the update, worst module"].iloc[-1] < 1e-5
assert price["lost of the update, worst module"].is_monotonic_decreasing
assert all(spectra.numerical_rank(bench.ensemble.spectrum(n)) <= full for n in bench.ensemble.shapes)
# Section 5: every answer came, and nonsense was refused.
assert all(status == 200 and reply["label"] in task.labels for status, reply in replies.values())
assert refused[0] == 400
# Section 7: B alone was trained.
head = sum(p.numel() for p in bench.head.values())
assert frozen[-1].peak_parameters == head + sum(4 * d for d, _ in bench.ensemble.shapes.values())
assert frozen[-1].optimizer_bytes < joint[-1].optimizer_bytes
# Section 8: Trainer and bench see the same model, and it is not the base.
assert len(callback.history) == bench.planned_rounds
assert abs(loss_after - on_bench) < 1e-3 < 1e-2 < loss_before - loss_after
del METHODS[LoRAFA.name]
scratch.cleanup()
assert not folder.exists()
print("All facts hold.")
