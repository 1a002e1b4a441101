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
# # Take a decision
#
# *Which method, with which settings, for my model and my data, and what shall I report?*
#
# You have a model of seven billion parameters, one GPU with 24 GB, and labels that are not all right. This
# notebook goes through the decision in the order in which it comes: does it fit, where do I start, when do I
# stop, what do I report, and what is boosting good for at all?
#
# **You will be able to**
#
# 1. compute what a method holds in memory, kind by kind, from the shapes of a model;
# 2. choose starting values, and plan trials that are fair;
# 3. see overfitting in a run, and stop at the right round;
# 4. compute an interval by hand, and say what it allows you to report;
# 5. say for which task you would take boosting, and for which LoRA.
#
# **Time.** {time}.
#
# **You need.** Notebooks 01 and 04: **booster**, **round**, **peak** and **total** parameters, paired
# differences.
#
# A question comes before each answer. **Write down your guess, then run the cell.** Sentences behind a grey
# bar are written by code, from the numbers of *your* run.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (short), "laptop" (about a minute) or "classroom" (longer runs)
seed: int = 0  # of the wrong labels, the boosters and the order of the data
memory_gb: float = 24.0  # of the GPU, in units of 10⁹ bytes
tokens: int = 512  # length of the one sequence in a batch
progress: bool = False  # show progress bars

# %% tags=["folded"]
import dataclasses
import math
import random

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from IPython.display import display
from scipy import stats
from transformers import LlamaConfig

from xgblora_lab import Bench, LoRA, Stop, XGBLoRA, check, load
from xgblora_lab.course.board import chart, line, pick, say
from xgblora_lab.course.ledger import activation_bytes, map_numbers, on_paper, pair_numbers
from xgblora_lab.figures._style import COLOURS, layout

torch.set_num_threads(1)  # the lab model is so small that a second thread costs more than it brings

#            rounds, κ | rows to train on, rows to score
profiles = {
    "ci": ((10, 6), (96, 120)),
    "laptop": ((24, 10), (240, 400)),
    "classroom": ((48, 10), (480, 600)),
}
(rounds, kappa), (rows, scored) = pick(profile, profiles)
pd.set_option("display.float_format", "{:.3g}".format)

# %% [markdown]
# ## 1 · Does it fit?
#
# A Llama of seven billion parameters, in bfloat16: two bytes for each number. We need its shapes, not its
# numbers. So it is made **on paper**, and takes no memory.

# %%
model = on_paper(LlamaConfig())
weights = sum(p.numel() for p in model.parameters())
print(f"{weights:,} parameters, {map_numbers(model):,} of them in linear maps that can be adapted")
for rank in (1, 8):
    print(f"pairs of rank {rank} on all of them: {pair_numbers(model, rank):,} numbers")

# %% [markdown]
# What lies on the GPU while a step is computed?
#
# - **weights**: 2 bytes for each number;
# - **gradients** and Adam's **two moments**: of what is trained. Thin pairs train in float32, so 4 + 8 bytes
#   for each of *their* numbers. Full fine-tuning keeps 2 + 8, and a float32 **copy** of every weight, 4 more;
# - **activations**: what the forward pass leaves for the backward pass;
# - boosting in half precision: a float32 **copy** of every weight that is merged into, 4 bytes. Notebook 02
#   showed why: many small merges into bfloat16 get lost. The base and all boosters would be enough to make a
#   weight again, but then every merge would add up all rounds. The bench keeps their sum instead.
#
# **Question.** The GPU has 24 GB. Which fit: full fine-tuning, LoRA of rank 8, boosting of rank 1? And which
# kind of memory decides it?


# %%
def on_gpu(numbers: int, activations: int, copied: int, gradient: int = 4) -> dict[str, float]:
    """10⁹ bytes on the GPU, by kind, where `numbers` are trained and `copied` are kept in float32."""
    held = {
        "weights": 2 * weights,
        "gradients": gradient * numbers,
        "two moments": 8 * numbers,
        "activations": activations,
        "float32 copy": 4 * copied,
    }
    return {kind: count / 1e9 for kind, count in held.items()}


kept = {rank: activation_bytes(model, rank, tokens) for rank in (None, 1, 8)}
gpu = {
    "full fine-tuning": on_gpu(weights, kept[None], copied=weights, gradient=2),
    "LoRA, rank 8": on_gpu(pair_numbers(model, 8), kept[8], copied=0),
    "boosting, rank 1": on_gpu(pair_numbers(model, 1), kept[1], copied=map_numbers(model)),
}
ledger = pd.DataFrame(gpu).T
ledger.assign(sum=ledger.sum(axis=1), fits=ledger.sum(axis=1) < memory_gb)

# %%
figure = go.Figure()
for look, kind in enumerate(ledger):
    marker = {"color": COLOURS[look], "pattern_shape": ["", "/", "x", ".", "-"][look]}
    figure.add_bar(y=ledger.index, x=ledger[kind], name=kind, orientation="h", marker=marker)
figure.add_vline(x=memory_gb, line={"color": "#222222", "width": 3, "dash": "dot"})
layout(figure, "A 7B model while it trains", f"dotted: the {memory_gb:g} GB of the GPU; one sequence", 420)
figure.update_layout(barmode="stack", legend={"y": -0.4, "traceorder": "normal"})
figure.update_xaxes(title="memory on the GPU (GB)")
figure.update_yaxes(autorange="reversed").show()

# %%
total = ledger.sum(axis=1)
pairs = ledger[["gradients", "two moments"]].sum(axis=1)
saved = pairs["LoRA, rank 8"] - pairs["boosting, rank 1"]
fit = [name for name in total.index if total[name] < memory_gb]
say(
    f"What fits into {memory_gb:g} GB: {', '.join(fit) or 'none of them'}. Between rank 8 and rank 1, "
    f"gradients and moments shrink by {saved:.2f} GB, {saved / memory_gb:.1%} of the GPU. The "
    f"activations of one sequence take {ledger['activations']['LoRA, rank 8']:.1f} GB."
)

# %% [markdown]
# Read that twice, for it is not what one expects. An eighth of LoRA's gradients and moments is a fine number,
# and on this GPU it hardly counts. The weights and the activations decide, and they are the same for both.
# And the copy that exact merging needs costs more than LoRA's pairs ever did.
#
# So for a 7B model on 24 GB: **LoRA fits, and full fine-tuning does not. Boosting fits only if it merges into
# few maps**, or if the base is quantised: then nothing is merged, and the boosters stand beside the weights.
#
# Main memory is another ledger. There boosting keeps a snapshot of the base, to go back, and the ensemble.

# %%
T = 40  # rounds
host = {
    "snapshot of the base": 2 * map_numbers(model) / 1e9,
    f"ensemble after {T} rounds": T * 4 * pair_numbers(model, 1) / 1e9,
}
pd.Series(host, name="main memory for boosting (GB)").to_frame()

# %% [markdown]
# Are these formulas right? Gradients and moments can be asked of a run that is measured: the lab model, in
# float32. (The activations are counted from the shapes that a forward pass saves, `activation_bytes`.)

# %%
small, text = load("lab", "planted", sequences=64, length=8, seed=seed)
for method, rank in ((XGBLoRA(steps_per_round=2), 1), (LoRA(rank=8, steps_per_round=2), 8)):
    with Bench(small, text, method, steps=2, batch_size=4, probe_size=0) as bench:
        record = bench.step()
    numbers = pair_numbers(small, rank)
    assert record.gradient_bytes == 4 * numbers
    assert record.optimizer_bytes == 8 * numbers + 4 * 2 * len(record.modules)  # and a step counter a factor
    print(f"{method.name}, rank {rank}: {record.gradient_bytes:,} and {record.optimizer_bytes:,} bytes")

# %% [markdown]
# ### Exercise 1.1 · A larger rank (4 minutes, easy)
#
# How many GB do the gradients and the two moments of LoRA of rank **64** take on this model? `ledger` has the
# numbers for rank 8.

# %% tags=["exercise"]
# solution: rank_64 = None  # your answer: a number of GB
rank_64 = 8 * (ledger["gradients"]["LoRA, rank 8"] + ledger["two moments"]["LoRA, rank 8"])
# end

# %% tags=["check"]
check.number(
    "1.1", rank_64, 12 * pair_numbers(model, 64) / 1e9, unit="GB",
    hints={
        12 * pair_numbers(model, 8) / 1e9: "That is rank 8. How do the numbers of a pair grow with its rank?",
        4 * pair_numbers(model, 64) / 1e9: "Those are the gradients. Adam keeps two moments beside them.",
        8 * pair_numbers(model, 64) / 1e9: "Those are the moments. Add the gradients.",
        12 * pair_numbers(model, 1) * 64**2 / 1e9: "A pair has r (d + k) numbers: linear in the rank.",
    },
    because="Twelve bytes for each of r (d + k) numbers, and the rank counts once: pairs are cheap.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The pair's memory is linear in its rank. It is the answer to "boosting saves memory" at this size: whoever
# can hold the weights and the activations can mostly hold a rank of 64 too.

# %% [markdown]
# ### Exercise 1.2 · How many maps? (8 minutes, hard)
#
# Boost only *square* maps (4096 × 4096: `q_proj`, `k_proj`, `v_proj`, `o_proj`). Each one that is merged into
# needs its float32 copy. How many of them fit, if everything else stays as in the row *boosting, rank 1*?

# %%
beside_the_copy = total["boosting, rank 1"] - ledger["float32 copy"]["boosting, rank 1"]
print(f"all but the copy: {beside_the_copy:.2f} GB; the GPU: {memory_gb:g} GB")

# %% tags=["exercise"]
# solution: how_many = None  # your answer: a whole number
how_many = int((memory_gb - beside_the_copy) * 1e9 / (4 * 4096**2))
# end

# %% tags=["check"]
check.number(
    "1.2", how_many, math.floor((memory_gb - beside_the_copy) * 1e9 / (4 * 4096 * 4096)), unit="maps",
    hints={
        math.floor((memory_gb - beside_the_copy) * 1e9 / (2 * 4096**2)): "Float32 has four bytes.",
        math.floor((memory_gb - beside_the_copy) * 1e9 / 4096**2): "That counts a byte for each number.",
        math.floor(memory_gb * 1e9 / (4 * 4096**2)): "Something lies on the GPU already.",
    },
    because="What is left over, by the bytes of one copy. There are four such maps in each of 32 layers.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# A copy has 4 · 4096² bytes, 67 MB. So the attention maps of many layers can be boosted, not all maps of the
# model. Shorter sequences make room too: look at how `activations` follows `tokens`.

# %% [markdown]
# ## 2 · Where to start, how to tune
#
# Starting values are defaults and a direction to look in. The table holds what this lab uses. (The races
# under `benchmarks/`, which section 5 quotes, had the schedule `trapezoid`.)
#
# | knob | LoRA | boosting | look next |
# | --- | --- | --- | --- |
# | rank | 8 | 1 | as large as memory allows |
# | learning rate | its default | its default | a quarter decade up and down, until the best lies inside |
# | κ, steps in a round | (none) | a sixth of all steps | K/20, K/6, K; or `merge="plateau"` |
# | schedule | linear decay | the same | `trapezoid`: constant, then linear over the last 30 % |
# | `backfit` | (none) | off | 2: two boosters, trained in turn (notebook 07, section 2) |
# | `round_warmup` | (none) | 0 | 5 steps, as in the races |
#
# **Question.** Boosting has more knobs. If each gets its grid, boosting gets more trials. Is that fair?

# %%
for kind in (LoRA, XGBLoRA):
    print(f"{kind.name}, default learning rate {kind().lr:g}, tries beside its rates:")
    for knobs in kind.knobs(1000):
        print("   ", knobs or "nothing")

# %% [markdown]
# The best of more trials is lower by chance alone (notebook 04). So each method gets the same *number* of
# trials, `race(…, trials=8)`, and spends them on its own knobs. A method with many knobs must try each of
# them less. That is a real cost of boosting, and the race counts it.

# %% [markdown]
# ## 3 · Noisy labels, and when to stop
#
# Real labels are wrong here and there. Take few passages of Python's documentation, and give **two in five**
# of the training labels at random. Dev and test stay clean.
#
# **Question.** The training loss will fall, round by round. And the loss on dev?

# %%
reader, docs = load("lab", "pydocs", max_length=24, limit=rows, seed=seed)
chance = random.Random(seed)
labels = range(len(docs.labels))
docs.splits["train"] = [
    dataclasses.replace(row, label=chance.choice(labels)) if chance.random() < 0.4 else row
    for row in docs.splits["train"]
]
method = XGBLoRA(steps_per_round=kappa, lr=0.01, schedule="constant")
options = {"steps": rounds * kappa, "batch_size": 16, "seed": seed, "data_seed": seed, "probe_size": 0}
watch = Stop(n_iter_no_change=math.inf, split="dev", limit=scored)  # looks on, and never stops
with Bench(reader, docs, method, hooks=[watch], **options) as bench:
    untrained = bench.evaluate("dev", limit=scored)["loss"]
    history = bench.run(progress=progress)
    to_the_end = bench.evaluate("test", limit=scored)

# %%
on_train = [float(np.mean(record.losses)) for record in history]
on_dev = [untrained, *watch.losses]
lowest = int(np.argmin(on_dev))
figure = chart(
    "Two labels in five are wrong", "rounds done", "loss (nats)", note="training loss: mean of each round"
)
line(figure, "training loss", range(1, rounds + 1), on_train, 0, mode="lines+markers")
line(figure, "dev loss, clean labels", range(rounds + 1), on_dev, 1, mode="lines+markers")
figure.add_vline(x=lowest, line={"color": "#222222", "width": 2, "dash": "dot"}).show()
say(
    f"The training loss fell from {on_train[0]:.2f} to {on_train[-1]:.2f}. The dev loss was lowest when "
    f"{lowest} rounds were done ({on_dev[lowest]:.2f}), and ended at {on_dev[-1]:.2f}."
)

# %% [markdown]
# The later rounds learn the wrong labels by heart. The cure is old: watch dev, wait for some rounds, stop,
# and **go back to the best round**. In scikit-learn the option is called `n_iter_no_change`, and so it is
# here. Going back costs nothing: the ensemble knows every round.
#
# **Question.** Waiting for three rounds: how many rounds will be trained, and how many kept?

# %%
stop = Stop(n_iter_no_change=3, split="dev", limit=scored)
with Bench(reader, docs, method, hooks=[stop], **options) as bench:
    bench.run(progress=progress)
    kept_rounds, stopped = len(bench.history), bench.evaluate("test", limit=scored)
scores = {f"all {rounds} rounds": to_the_end, f"stopped: {kept_rounds} rounds kept": stopped}
display(pd.DataFrame(scores).T[["loss", "accuracy"]].rename_axis("on test"))
say(
    f"{len(stop.losses)} rounds were trained, {kept_rounds} are kept. On test the loss is "
    f"{stopped['loss']:.2f} in place of {to_the_end['loss']:.2f}."
)

# %% [markdown]
# The number of rounds was chosen on dev. So dev is spent, and the score to report is the one on test.
#
# Compare the two columns. The loss counts how *sure* a model is of its wrong answers, the accuracy only
# counts them, and on few rows they may disagree. Say beforehand which one you stop by and report.

# %% [markdown]
# ### Exercise 3.1 · The rule (8 minutes, medium)
#
# Write the rule. You get the loss on dev after each round, and a `patience`. Training stops as soon as
# `patience` rounds in a row have not been below the best so far. Return the **number of rounds that are
# kept**: those up to and with the best one.


# %% tags=["exercise"]
def rounds_kept(losses: list[float], patience: int) -> int:
    """How many rounds the model has at the end."""
    # solution: return None  # your answer
    best = 0
    for t, loss in enumerate(losses):
        if loss < losses[best]:
            best = t
        if t - best >= patience:
            break
    return best + 1
    # end


# %% tags=["check"]
check.function(
    "3.1", rounds_kept,
    [(([5.0, 4.0, 4.5, 4.6, 4.7, 1.0], 3), 2), (([3.0, 2.0, 2.5, 1.0, 1.5], 2), 4), (([2.0, 3.0], 5), 1)],
    hints=[
        (lambda x, p: int(np.argmin(x)) + 1, "Training may stop before that one. Look at the patience."),
        (lambda x, p: len(x), "Those are all rounds. Which of them are kept?"),
        (lambda x, p: int(np.argmin(x)), "The first round is round 0: how many are done after it?"),
        (lambda x, p: next((t for t in range(1, len(x)) if x[t] >= x[t - 1]), len(x)),
         "That stops at the first rise. How long does the rule wait?"),
    ],
    because="Once the best round lies `patience` rounds back, nobody trains on to see a better one.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The first case has a much better round at its end, which nobody sees, because training stopped before it.
# That is the price of stopping early. More patience costs more rounds. A tolerance (`tol`) asks for a fall
# that is worth the name.

# %% [markdown]
# ## 4 · What to report
#
# A result that somebody else can use holds:
#
# 1. model, data, how many rows to train, dev and test;
# 2. the budget: steps, batch, peak *and* total parameters, seconds, memory by kind;
# 3. how every method was tuned: how many trials, over which knobs, and whether a best value lies on an edge;
# 4. several seeds, **paired** differences, an interval, and how many comparisons were made;
# 5. the score on test, which has chosen nothing; and what was *not* tried.
#
# Point 4 is less work than it sounds. Here are the test losses of a committed race of this project (a planted
# update on the lab model, 480 steps, five seeds):

# %%
planted = pd.DataFrame(
    {
        "LoRA, rank 1": [0.1864, 0.2275, 0.2501, 0.2036, 0.1824],
        "boosting, rank 1, backfit=2": [0.1479, 0.2102, 0.2233, 0.1755, 0.1600],
    }
).rename_axis("seed")
planted.assign(difference=planted.iloc[:, 1] - planted.iloc[:, 0])

# %% [markdown]
# ### Exercise 4.1 · An interval by hand (8 minutes, medium)
#
# Compute the 95 % interval of the mean difference, *boosting minus LoRA*:
#
# $$\bar d \pm t \cdot \frac{s}{\sqrt n}$$
#
# with the mean difference, its standard deviation *s* (divide by *n* − 1), *n* = 5, and *t* = 2.776
# (Student's, four degrees of freedom). Give the two ends, the lower one first.

# %% tags=["exercise"]
# solution: interval = None  # your answer: [low, high]
d = planted.iloc[:, 1] - planted.iloc[:, 0]
half = 2.776 * d.std() / 5**0.5
interval = [d.mean() - half, d.mean() + half]
# end

# %% tags=["check"]
check.array(
    "4.1", interval,
    stats.ttest_1samp(planted.iloc[:, 1] - planted.iloc[:, 0], 0).confidence_interval(0.95), tolerance=0.02,
    hints=[
        ([-stats.ttest_rel(planted.iloc[:, 1], planted.iloc[:, 0]).confidence_interval(0.95).high,
          -stats.ttest_rel(planted.iloc[:, 1], planted.iloc[:, 0]).confidence_interval(0.95).low],
         "The other way round: boosting *minus* LoRA."),
        (list(stats.ttest_ind(planted.iloc[:, 1], planted.iloc[:, 0]).confidence_interval(0.95)),
         "That forgets the pairs. Take the five differences first."),
    ],
    because="It lies below 0 as a whole: with these five seeds boosting is ahead. Unpaired, the same numbers "
    "would say nothing, because seeds differ more than methods do.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The differences are all negative, and scatter little. The scores scatter a lot, since every seed plants
# another update: whoever compares the two columns without pairing them sees nothing. What the interval does
# not cover is the choice of the task.

# %% [markdown]
# ## 5 · What is boosting good for?
#
# These are the project's own races: equal steps, equal peak, the same number of trials, five seeds. The
# numbers are quoted from `benchmarks/README.md`, where the commands stand beside them (`python -m
# benchmarks.races capacity`, `capacity8`, `planted`). Scores are medians over the seeds. The
# difference is the mean of the five paired ones, so it need not be the difference of the medians. The total
# counts every booster: with 20 rounds it is 20 times that of LoRA.
#
# | race | LoRA | boosting | difference (95 %) | total parameters |
# | --- | ---: | ---: | ---: | ---: |
# | ten books, rank 1, 1,000 steps; nats | 4.660 | **4.536** | −0.127 (−0.139 to −0.114) | 20 times LoRA's |
# | ten books, rank 8, 1,000 steps | 4.297 | 4.296 | +0.000 (−0.007 to +0.007) | 18 times LoRA's |
# | planted, rank 1, 480 steps; 1 = untrained | 0.204 | **0.176** | −0.027 (−0.036 to −0.017) | twice LoRA's |
#
# **Question.** In which of the three lines would *you* take boosting? Remember section 1.
#
# An honest reading:
#
# - **Boosting wins at rank 1** (line 1), with the same peak. Rank is what is short there: LoRA gains much
#   from rank 8 (line 2).
# - **At rank 8 there was nothing to win** (line 2). And LoRA of rank 8 (4.297) is far ahead of boosting of
#   rank 1 (4.536). If eight times the pairs fit, take them: section 1 says that they mostly do.
# - On the planted task it is **training two boosters in turn** that wins (line 3). LoRA of rank 2, with twice
#   the peak, was not tried against it.
# - **What boosting has that LoRA has not**: no rank to fix in advance; rounds that can be looked at, dropped
#   and taken back; early stopping that keeps the best round exactly; a record of which module gained when.
# - **What it costs**: one more knob to tune (κ), a float32 copy for exact merges, an ensemble that grows.
#
# So, in one sentence: take LoRA with the largest rank that fits; take boosting where the peak is truly short,
# or where you want to *look*.

# %% [markdown]
# ### Exercise 5.1 · Decide (5 minutes, easy)
#
# A 7B model in bfloat16, 24 GB, 2,000 clean examples, 300 steps, no time for a wide search. What do you start
# with?
#
# - (a) Full fine-tuning: it is the yardstick.
# - (b) LoRA of rank 8 or more, a few learning rates.
# - (c) Boosting of rank 1 on all maps, since it trains the fewest parameters at a time.

# %% tags=["exercise"]
# solution: decision = None  # your answer: "a", "b" or "c"
decision = "b"
# end

# %% tags=["check"]
check.choice(
    "5.1", decision, "b" if total["LoRA, rank 8"] < memory_gb <= total["boosting, rank 1"] else "c",
    {"a": "full fine-tuning", "b": "LoRA of rank 8 or more", "c": "boosting of rank 1 on all maps"},
    hints={
        "a": "Look at the sum in section 1: does it fit?",
        "c": "What does exact merging need on this GPU? Look at its sum in section 1.",
    },
    because="It fits, and it has one knob. Boosting on all maps does not fit in half precision.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# Memory rules out (a), and (c) in half precision. And even if it did fit: with few steps, LoRA trains all its
# directions from the first one on (notebook 03, section 9). The answer may change when the base is quantised,
# when the GPU is much smaller, or when training is long.

# %% [markdown]
# ## What to take away
#
# - Memory comes in kinds. At 7B the weights and the activations decide; between rank 1 and rank 8 lies about
#   one per cent of the GPU.
# - Exact merging in half precision needs a float32 copy of what is merged into.
# - The same number of trials for each method, over its own knobs. Nothing best on an edge.
# - On noisy labels later rounds learn by heart. Stop on dev, go back to the best round, report test.
# - Pair by seed, compute the interval, say what was not tried.
# - Boosting won at rank 1, and not at rank 8. Take the largest LoRA that fits, unless the peak is short.
#
# **Try it.** Set `memory_gb` to 80 or 12. Set `tokens` to 2048: what decides then? In section 3 add
# `shrinkage=0.3`: does the dev loss rise later, and is its lowest point lower?
#
# ## References
#
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - Y. Zhang and others. *Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of
#   LLMs.* [arXiv 2410.19694](https://arxiv.org/abs/2410.19694)
# - L. Prechelt. *Early stopping, but when?* In: Neural Networks: Tricks of the Trade, 1998.
# - Student. *The Probable Error of a Mean.* Biometrika 6, 1908.
#
# The last cell checks what the text says about your run.

# %% tags=["folded"]
# Section 1: weights and activations decide; rank hardly counts; the copy is what keeps boosting out.
if memory_gb == 24 and tokens == 512:
    assert fit == ["LoRA, rank 8"]
    assert total["full fine-tuning"] > 4 * memory_gb
    assert 0.005 < saved / memory_gb < 0.015
    assert ledger["float32 copy"]["boosting, rank 1"] > 20 * pairs["LoRA, rank 8"]
assert np.isclose(kept[1], kept[8], rtol=0.02)  # the same activations for both
# Section 3: training goes on falling, dev does not; stopping keeps fewer rounds and the better model.
assert on_train[-1] < on_train[0]
assert lowest < rounds
assert on_dev[-1] > 1.02 * on_dev[lowest]
assert kept_rounds < rounds
assert stopped["loss"] < to_the_end["loss"]
assert rounds >= len(stop.losses) >= kept_rounds
# Section 5: the quoted means are those of the five seeds that are printed above.
assert np.allclose(planted.median(), [0.204, 0.176], atol=0.001)
assert math.isclose((planted.iloc[:, 1] - planted.iloc[:, 0]).mean(), -0.027, abs_tol=0.0005)
print("All facts hold.")
