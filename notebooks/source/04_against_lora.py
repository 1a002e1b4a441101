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
# # Against LoRA, fairly
#
# *When does boosting win, when does LoRA, and what must be tuned to know?*
#
# It is easy to say that method A beats method B. This means something only with a budget, a tuned learning
# rate, several seeds, and a score that nobody has looked at before. This notebook builds such a race step
# by step, and shows what each of its rules is good for. The small race runs while you watch. At the end,
# larger ones stand beside it, which took hours and were computed beforehand.
#
# **You will be able to**
#
# 1. say which rules make a race fair, and show what goes wrong without tuning;
# 2. read paired differences and their interval, and say when a win may be chance;
# 3. tell *equal steps*, *equal peak parameters*, *equal total parameters* and *equal time* apart;
# 4. name budgets and tasks on which boosting or LoRA ends lower, and say what you do not know.
#
# **Time.** {time}.
#
# **You need.** Notebook 01: **booster**, **round**, κ, the **tail** at which a low rank stops. Notebook 02
# helps.
#
# A question comes before each answer. **Write down your guess, then run the cell.** Sentences behind a grey
# bar are written by code, from the numbers of *your* run. Nothing here knows the winner in advance. Five
# exercises check themselves: replace `None` by your answer, run the cell, run the next one.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (half a minute), "laptop" (a few minutes) or "classroom" (longer)
seed: int = 0  # of the small transformer; the planted updates have the races' own seeds, from 0
progress: bool = False  # show a progress bar for every race

# %% tags=["folded"]
import tempfile

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from scipy import stats
from transformers.utils import logging

from xgblora_lab import LoRA, XGBLoRA, check, figures, load
from xgblora_lab.course import large, saved
from xgblora_lab.course.board import chart, line, pick, say
from xgblora_lab.course.small import small_llama
from xgblora_lab.racing.summary import compare

logging.disable_progress_bar()  # of saving a tiny model
torch.set_num_threads(1)  # the models are so small that a second thread costs more than it brings

#            κ | rounds | learning rates | seeds | budgets in rounds, and their learning rates
profiles = {
    "ci": (8, 3, (0.03, 0.1, 0.3), 3, (1, 3), (0.03, 0.1, 0.3)),
    "laptop": (24, 6, (0.01, 0.03, 0.1, 0.3), 4, (1, 3, 6), (0.01, 0.03, 0.1, 0.3)),
    "classroom": (
        24,
        12,
        (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        8,
        (1, 4, 12, 40),
        (0.003, 0.01, 0.03, 0.1, 0.3),
    ),
}
#        real text: steps | rows | learning rates | seeds | test rows
texts = {
    "ci": (4, 100, (0.01,), 1, 20),
    "laptop": (50, 2000, (0.001, 0.003, 0.01), 2, 300),
    "classroom": (400, 3000, (0.001, 0.003, 0.01, 0.03), 3, 10_000),
}
kappa, rounds, lrs, seeds, budgets, few_lrs = pick(profile, profiles)
steps = rounds * kappa  # the budget of the first races, in optimizer steps
sequences = 256 if profile == "ci" else 2048  # to train on


# %% [markdown]
# ## 1 · The track and the runners
#
# A race needs many runs, so the model must be quick. We draw a tiny Llama of two layers at random, and
# **plant** an update of rank 16 in four of its weights. The planted model is the teacher. The loss is the
# divergence from the teacher's answers, relative to the untrained model: 1 at the start, 0 if all is found.
#
# A race runs with several **seeds**. Here a seed draws another update, other boosters and other data: it is
# another task of the same kind. So the model is put into a folder, from which every race takes it.

# %%
model = small_llama(seed)
folder = tempfile.TemporaryDirectory()  # gone when the kernel stops
home = f"{folder.name}/small"
model.save_pretrained(home)

# %%
targets = ["o_proj", "down_proj"]
secret = {"modules": targets, "rank": 16, "strength": 1.0, "length": 8, "sequences": sequences}
track = {"steps": steps, "batch_size": 8, "targets": targets, "progress": progress, **secret}
model, task = load(home, "planted", seed=0, **secret)  # what the races' seed 0 sees
print(f"{sum(p.numel() for p in model.parameters()):,} parameters; changed: {', '.join(task.truth)}")
sizes = {split: task.size(split) for split in ("train", "dev", "test")}
print("sequences:", ", ".join(f"{size} {split}" for split, size in sizes.items()))

# %% [markdown]
# Three runners.
#
# - **XGBLoRA**: boosters of rank 1 on all four modules, one round after the other.
# - **LoRA, rank 1**: trains as many numbers *at one moment*.
# - **LoRA of a higher rank**, as many as there are rounds: trains as many numbers *in total*.
#
# Empty kitchen scales must show zero. As you would check that first, first race two methods that are the
# same: a single round that lasts for the whole run **is** LoRA of rank 1.
#
# **Question.** Race these two at one learning rate. How far apart will they end?

# %%
common = {"steps_per_round": kappa}
lora_1, lora_high = "LoRA, rank 1", f"LoRA, rank {rounds}"
colours = {"XGBLoRA": ("xgblora", 0), lora_1: ("lora", 0), lora_high: ("lora", 1)}
names = list(colours)


# %% tags=["folded"]
def named(found, given):
    """The race with the names of its figures in the place of the methods' labels."""
    new = dict(zip(found.labels, given, strict=True))
    for history in found.histories:
        history.label = new[history.label]
    return found


# %%
same = [XGBLoRA(steps_per_round=steps, selection="all"), LoRA(rank=1, steps_per_round=steps)]
zero = named(saved.race(home, "planted", same, lrs=(0.03,), seeds=1, **track), ["one long round", lora_1])
ends = [zero.chosen(label)[0].scores["dev"] for label in zero.labels]
losses = [[loss for r in zero.chosen(label)[0] for loss in r.losses] for label in zero.labels]
print(zero.table["dev relative"].to_string())
apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
say(
    f"The training losses of the {steps} steps differ by {apart:g} at most. At the end the dev losses differ "
    f"by {abs(ends[0] - ends[1]):.0e}."
)

# %% [markdown]
# The track favours nobody: where the methods are the same, so are the numbers. All through training they
# agree to the last bit. At the end boosting *merges* its pair into the weight, and LoRA lets it stand beside
# the weight; that is the same sum in another order, and rounding sees the order.
#
# Every difference beyond rounding comes from the methods, the learning rates, or the seeds. The rest of the
# notebook takes these three apart.

# %% [markdown]
# ## 2 · One learning rate for all?
#
# It looks fair: the same learning rate for every method.
#
# **Question.** A booster starts from *B* = 0 in every round, LoRA only once. Which of them needs the larger
# learning rate? Is there a rate at which *another method wins*?
#
# The next cell is the whole race. It tries every learning rate with every method, and runs the best one
# again with further seeds. Section 3 needs that. Here we look at the tries alone. Every finished run is
# **saved**: after a restart of the kernel, run all cells again, and the race goes on where it was.

# %%
methods = [XGBLoRA(selection="all", **common), LoRA(rank=1, **common), LoRA(rank=rounds, **common)]
contest = named(saved.race(home, "planted", methods, lrs=lrs, seeds=seeds, **track), names)

tries = pd.DataFrame(
    {
        label: {
            h.settings.lr: h.scores["dev"]
            for h in contest.histories
            if h.label == label and h.settings.seed == 0
        }
        for label in names
    }
).rename_axis("learning rate")
tries


# %%
looks = {label: figures.style(*which) for label, which in colours.items()}  # the same in every figure
title = f"Every learning rate, {steps} steps, seed 0"
figure = chart(title, "learning rate", "dev loss (1 = untrained)", log="xy")
for label in names:
    line(figure, label, tries.index, tries[label], looks[label], mode="lines+markers")
figure.update_xaxes(tickvals=list(lrs)).show()

# %%
order = {lr: " < ".join(row.sort_values().index) for lr, row in tries.iterrows()}
orders = list(dict.fromkeys(order.values()))
factor = tries["XGBLoRA"] / tries[lora_high]
say(
    f"The three methods have {len(orders)} different "
    + ("orders" if len(orders) > 1 else "order")
    + " over the grid, lowest loss first: "
    + "; ".join(f"*{o}* at {', '.join(f'{lr:g}' for lr in order if order[lr] == o)}" for o in orders)
    + f". Boosting's loss is {factor.max():.2g} times that of {lora_high} at one rate, and "
    f"{factor.min():.2g} times at another. Best rates: "
    f"{'; '.join(f'{n} {tries[n].idxmin():g}' for n in names)}."
)

# %% [markdown]
# **The winner depends on the rate.** Somebody who may choose the common rate may choose who wins. No lie is
# needed, only a default: a rate that was found for one method, and then used for all.
#
# The cure is simple. Each method tries **the same grid**, and is judged at **its own best** rate. (Boosting
# and LoRA share a unit: Adam's steps on a thin pair. Where methods do not, as in notebook 06, each gets the
# same *number* of rates around its own default.) The price is that every method needs many runs. Look at
# the ends of the curves, too. If the best rate lies at the edge of the grid, the method may have been cut
# short, and the grid must grow.

# %% [markdown]
# ### Exercise 2.1 · Choose and report (6 minutes, medium)
#
# A sweep gives two scores for each learning rate, both losses: one on dev, one on test. Write the function
# that returns the number to report. `sweep` is a dictionary: rate → (dev, test).


# %% tags=["exercise"]
def report(sweep: dict[float, tuple[float, float]]) -> float:
    """The loss to report for this method."""
    # solution: return None  # your answer
    chosen = min(sweep, key=lambda lr: sweep[lr][0])
    return sweep[chosen][1]
    # end


# %% tags=["check"]
check.function(
    "2.1", report,
    [
        (({0.01: (0.6, 0.65), 0.03: (0.4, 0.47), 0.1: (0.45, 0.44)},), 0.47),
        (({0.01: (0.5, 0.3), 0.1: (0.4, 0.6)},), 0.6),
    ],
    hints=[
        (lambda s: min(t for _, t in s.values()), "You let test choose. What may it still be believed for?"),
        (lambda s: min(d for d, _ in s.values()), "That is the score you chose by. Was it seen before?"),
        (lambda s: min(s, key=lambda lr: s[lr][0]), "That is the learning rate. What did it score on test?"),
        (lambda s: max(s.values())[1], "These are losses: lower is better."),
    ],
    because="Dev chooses, test tells. A score that has chosen cannot be a witness any more.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The lowest of many noisy numbers is lower than it deserves. This holds for whatever we choose by. So the
# split that chooses is spent, and the number to report comes from another one. Students often take the
# smallest test score of the sweep: that is the same mistake with the two names exchanged.

# %% [markdown]
# ## 3 · The race
#
# The rules, all in one place:
#
# 1. the same optimizer steps, the same batches in the same order;
# 2. the same grid of learning rates, chosen by dev;
# 3. the chosen rate runs with several seeds, each with its own boosters and its own order of the data;
# 4. the test score takes part in no choice;
# 5. costs stand beside the scores.
#
# **Question.** Three runners, each at its best rate. In which order do they arrive?

# %%
figures.race(contest.histories)

# %%
contest.table.drop(columns=["train loss", "extra passes", "extra forwards"]).T

# %%
medians = {label: float(np.median([h.scores["test"] for h in contest.chosen(label)])) for label in names}
gaps = {
    label: float(np.median([h.scores["test"] - h.scores["dev"] for h in contest.chosen(label)]))
    for label in names
}
first, *others = sorted(names, key=lambda label: medians[label])
edges = [label for label in names if "edge" in contest.table["chosen"][label]]
say(
    f"**{first} wins at {steps} steps**, with {medians[first]:.1%} of the untrained divergence left on test; "
    + ", ".join(f"{label} leaves {medians[label]:.1%}" for label in others)
    + ". Test minus dev: "
    + ", ".join(f"{label} {gaps[label]:+.3f}" for label in names)
    + "."
)
if edges:
    say(f"Chosen at the edge of the grid, so perhaps not at its best: {'; '.join(edges)}.")

# %% [markdown]
# ## 4 · Or was it chance?
#
# Each method ran with several seeds. A seed decides which update is planted, where the boosters start, and
# which batch comes when. All methods with the same seed have the same task. So compare seed by seed: the
# difference of two scores of **the same seed**.
#
# **Question.** Some seeds are hard for all methods, some are easy. Will the differences scatter more than
# the scores, or less?

# %%
test = pd.DataFrame(
    {label: {h.settings.seed: h.scores["test"] for h in contest.chosen(label)} for label in names}
).rename_axis("seed")

figure = chart("One line for each method, one point for each seed", "seed", "test loss (1 = untrained)")
for label in names:
    line(figure, label, test.index, test[label], looks[label], mode="lines+markers")
figure.update_xaxes(dtick=1).update_yaxes(rangemode="tozero").show()
test.round(4)

# %%
differences = {rival: test["XGBLoRA"] - test[rival] for rival in (lora_1, lora_high)}
for rival, gaps in differences.items():
    say(
        f"XGBLoRA minus {rival}: the differences scatter by {gaps.std():.3f}; the scores of XGBLoRA by "
        f"{test['XGBLoRA'].std():.3f}, those of {rival} by {test[rival].std():.3f}. Without pairs the "
        f"differences would scatter by {np.hypot(test['XGBLoRA'].std(), test[rival].std()):.3f}."
    )

# %% [markdown]
# Against LoRA of rank 1 pairing pays: what makes a task hard for one rank-1 method makes it hard for the
# other, and in the difference it cancels. Against the higher rank it need not pay: look at whether its line
# goes up and down with the others. Without pairs a difference of two scores would scatter by √(s₁² + s₂²),
# where s₁ and s₂ are the scatters of the two. What pairing saves from that is what the two methods share: the
# seeds that both find hard. If they shared nothing, it would save nothing.

# %% [markdown]
# ### Exercise 4.1 · The mean difference (4 minutes, easy)
#
# What is the mean paired difference of **LoRA of rank 1** minus XGBLoRA, on test? Use the table `test`,
# which has one row for each seed. A negative number means that LoRA of rank 1 is ahead.

# %% tags=["exercise"]
# solution: mean_difference = None  # your answer: a number
mean_difference = (test["LoRA, rank 1"] - test["XGBLoRA"]).mean()
# end

# %% tags=["check"]
check.number(
    "4.1", mean_difference, float((test[lora_1] - test["XGBLoRA"]).mean()), unit="relative loss",
    hints={
        float((test["XGBLoRA"] - test[lora_1]).mean()): "The other way round: who is subtracted from whom?",
        float(test[lora_1].iloc[0] - test["XGBLoRA"].iloc[0]): "That is one seed. Take the mean of all.",
        float(test[lora_1].mean() / test["XGBLoRA"].mean()): "That is a ratio. A difference is asked for.",
        float((test[lora_1] - test["XGBLoRA"]).abs().mean()): "The size is right. What says the sign?",
        float((test[lora_high] - test["XGBLoRA"]).mean()): "That is the higher rank. Take rank 1.",
        float((test[lora_1] - test["XGBLoRA"]).sum()): "That is the sum over seeds. Divide by their number.",
    },
    because="Seed by seed, then the mean: the sign says who is ahead, the scatter says how sure you may be.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The mean of the differences equals the difference of the means. What pairing changes is the scatter, and
# with it the interval: what a seed does to both methods alike cancels. Whether that is much depends on the
# run; the sentences above say it.

# %% [markdown]
# How sure is such a mean? An **interval** says which true differences are compatible with these seeds.

# %%
for rival, gaps in differences.items():
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    verdict = "it includes 0: it may be chance" if low <= 0 <= high else "it excludes 0"
    say(
        f"XGBLoRA minus {rival}: {gaps.mean():+.3f} on average, with a 95 % interval from {low:+.3f} to "
        f"{high:+.3f} ({seeds} seeds); {verdict}."
    )

# %% [markdown]
# Two comparisons are two chances to be wrong. **Holm's rule** counts them: the smallest p-value is multiplied
# by the number of comparisons, the next one by one less, and so on; none may end below the one before it.
# What is then below 5 % is told. The column `verdict (Holm)` of the table in section 3 does the same for its
# own comparisons, those with the LoRA of the highest rank.

# %%
paired = compare({rival: list(gaps) for rival, gaps in differences.items()})
for rival, d in paired.items():
    say(
        f"XGBLoRA and {rival}: p = {d.p:.2g}, after Holm's correction {d.corrected:.2g}. Verdict on XGBLoRA: "
        f"**{d.verdict(greater_is_better=False)}**."
    )

# %% [markdown]
# The interval is Student's, from the paired differences. With so few seeds it is wide, and it should be. It
# covers what the seeds decide: the planted update, the boosters, the data. It does not cover the *kind* of
# task, the model, or the grid.

# %% [markdown]
# ## 5 · Equal what?
#
# So far, *equal steps*. But a step of a higher rank holds more numbers, and takes longer. The same runs can
# be judged by several budgets:
#
# | budget | question | LoRA to compare with |
# | --- | --- | --- |
# | steps | who learns more from the same data? | any rank |
# | peak parameters | who learns more in the same memory? | the rank of one booster |
# | total parameters | who stores the same number of factors in the end? | rank × rounds |
# | time | who learns more in the same minutes? | any, stopped at the same time |
#
# **Question.** In which rows of the table will boosting be ahead?


# %% tags=["folded"]
def loss_at(history, seconds: float) -> float:
    """Relative probe loss after the last round that was finished within this time."""
    spent = np.cumsum([r.seconds for r in history])
    done = [r.probe_after for r, s in zip(history, spent, strict=True) if s <= seconds * 1.0001]
    return (done[-1] if done else history[0].probe_before) / history[0].probe_before


clock = min(float(np.median([sum(r.seconds for r in h) for h in contest.chosen(n)])) for n in names)
at_clock = {n: float(np.median([loss_at(h, clock) for h in contest.chosen(n)])) for n in names}
rivals = {
    "steps": (medians, names),
    "peak parameters": (medians, ["XGBLoRA", lora_1]),
    "total parameters": (medians, ["XGBLoRA", lora_high]),
    f"time ({clock:.1f} s)": (at_clock, names),
}
verdicts = pd.DataFrame(
    {
        budget: {n: f"{losses[n]:.3f}" if n in who else "–" for n in names}
        | {"lowest": min(who, key=lambda n: losses[n])}
        for budget, (losses, who) in rivals.items()
    }
).T.rename_axis("at equal")
display(verdicts)
say(
    f"Boosting is lowest in {int((verdicts['lowest'] == 'XGBLoRA').sum())} of {len(verdicts)} rows at this "
    f"number of steps ({steps})."
)

# %% [markdown]
# Three remarks before you quote the table.
#
# - *Time* was measured on this machine, with tiny matrices. What is slow here is calling, not multiplying.
#   On a large model the ratio may be another one. (In this row the loss is that of the probe batch, at the
#   end of the last round that was finished in time.)
# - *Peak* means the numbers trained at one moment, with their gradients and optimizer state. The weights of
#   the model and its activations come on top, and are often the larger part.
# - *Total* says what has to be stored, or sent to somebody, if the factors are kept apart. There boosting
#   saves nothing.
#
# Turn the race yourself. Take methods out, change the budget, and move the learning rate. (Without a
# running kernel you see no controls; the figure of section 3 has a list of budgets that works without.)

# %%
from xgblora_lab.widgets import RaceView

RaceView(contest)

# %% [markdown]
# ### Exercise 5.1 · The same total (3 minutes, medium)
#
# Cut the same number of steps into rounds of half the length (κ/2 steps each). Which rank must LoRA have now
# to train as many numbers *in total* as boosting?

# %% tags=["exercise"]
# solution: equal_rank = None  # your answer: a number
equal_rank = 2 * rounds
# end

# %% tags=["check"]
check.number(
    "5.1", equal_rank, steps // (kappa // 2), unit="the rank",
    hints={
        rounds: "That was right for rounds of κ steps. How many rounds are there now?",
        1: "That gives the same peak. What is summed over the rounds?",
        rounds // 2: "Shorter rounds: are there more of them, or fewer?",
    },
    because="Twice as many rounds, one rank in each. Shorter rounds raise the total, not the peak.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# In each round every module gets a booster of rank 1. So a module collects as many ranks as there are
# rounds. The peak does not depend on the number of rounds at all. This is the one thing that boosting can
# trade and LoRA cannot: rank against time, at a constant peak.

# %% [markdown]
# ## 6 · The length of the race
#
# Notebook 01 showed a matrix on which LoRA of rank 1 stops at its tail, while boosting goes on. If that is
# so here too, then the winner depends on the budget.
#
# **Question.** Take budgets from one round to many. Where does boosting pass LoRA of rank 1? Where does it
# pass the higher rank?

# %%
by_budget = {}
for count in budgets:
    runners = [XGBLoRA(selection="all", **common), LoRA(rank=1, **common), LoRA(rank=rounds, **common)]
    at = track | {"steps": count * kappa}
    by_budget[count * kappa] = named(saved.race(home, "planted", runners, lrs=few_lrs, seeds=1, **at), names)

lengths = pd.DataFrame(
    {budget: {n: r.chosen(n)[0].scores["test"] for n in names} for budget, r in by_budget.items()}
).T.rename_axis("steps")
title = "Each at its own best rate, one seed"
figure = chart(title, "budget (optimizer steps)", "test loss (1 = untrained)", log="xy")
for label in names:
    line(figure, label, lengths.index, lengths[label], looks[label], mode="lines+markers")
figure.update_xaxes(tickvals=list(lengths.index)).show()
lengths.assign(lowest=lengths.idxmin(axis=1))


# %%
def ahead_of(rival: str) -> str:
    """At which budgets boosting ends below a rival, in words."""
    wins = lengths.index[lengths["XGBLoRA"] < 0.999 * lengths[rival]]  # one round differs by rounding only
    listed = ", ".join(f"{b}" for b in wins)
    return f"below {rival} at {listed} steps" if len(wins) else f"below {rival} at none of the budgets"


longest = lengths.iloc[-1]
tuned_at_edge = sum("edge" in lr for r in by_budget.values() for lr in r.table["chosen"])
say(f"Boosting ends {ahead_of(lora_1)}, and {ahead_of(lora_high)}.")
say(
    f"At {lengths.index[-1]} steps: "
    + ", ".join(f"{n} {longest[n]:.3f}" for n in names)
    + f". Of the {3 * len(budgets)} learning rates chosen here, {tuned_at_edge} lie at the edge of the grid "
    f"of {len(few_lrs)}. One seed: believe large differences only."
)

# %% [markdown]
# At a budget of a single round, boosting and LoRA of rank 1 are the same thing, and the two curves start in
# one point. What happens next is the trade of this method. Every new round starts from *B* = 0 and needs
# steps to get going; it also brings a direction that rank 1 does not have. Which of the two counts more,
# and at which budget, is what the figure shows.
#
# Is it boosting that wins, then, or the low rank that loses? The curve of the higher rank is the answer to
# that. If you have the memory for it, compare with *it*.

# %% [markdown]
# ### Exercise 6.1 · One knob more (3 minutes, medium)
#
# Somebody tries five lengths of a round with every learning rate of the grid for boosting. LoRA gets
# the grid of learning rates alone. Each is reported at its best dev score. What is wrong?
#
# - (a) Nothing: each method is tuned over all the knobs that it has.
# - (b) Boosting had five times as many tries, and the best of more tries is lower by chance alone.
# - (c) A dev score must not be used for choosing.

# %% tags=["exercise"]
# solution: what_is_wrong = None  # your answer: "a", "b" or "c"
what_is_wrong = "b"
# end

# %% tags=["check"]
check.choice(
    "6.1", what_is_wrong, "b",
    {"a": "nothing", "b": "more tries for one side", "c": "choosing by dev"},
    hints={
        "a": "How many runs did each side have? And which score is reported: one that has chosen?",
        "c": "For choosing it is the right one. What else was it used for here?",
    },
    because="Equal tries for all (LoRA has knobs too: rank, alpha, initialisation), and a report from test.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# A fair race gives each side the same number of tries: if boosting may tune κ, LoRA may tune its rank or
# its alpha. And the report must come from test, on which the advantage of many tries is gone. What stays is
# a real cost: a method with more knobs needs more runs before it is at its best.

# %% [markdown]
# ## 7 · Real text
#
# Planted tasks know the truth, and real tasks are what we care for. `pydocs`: passages from the
# documentation of the Python that runs this notebook; the label is the area they come from. Whole modules
# of Python are kept apart for dev and test. The model is the lab model, with a fresh head that trains beside
# the boosters, with all methods alike.
#
# **Question.** Accuracy is counted in passages. If two methods are equally good, how far apart may their
# accuracies lie, just because the test set is what it is?

# %%
doc_steps, doc_rows, doc_lrs, doc_seeds, doc_limit = pick(profile, texts)
reader, docs = load("lab", "pydocs", max_length=24 if profile == "ci" else 32, limit=doc_rows, seed=seed)
doc_kappa = doc_steps // 3
doc_common = {"steps_per_round": doc_kappa}
doc_names = ["XGBLoRA", lora_1, "LoRA, rank 8"]
doc_runners = [XGBLoRA(selection="all", **doc_common), LoRA(rank=1, **doc_common), LoRA(**doc_common)]
text_race = saved.race(
    reader, docs, doc_runners, lrs=doc_lrs, seeds=doc_seeds, steps=doc_steps, batch_size=8, limit=doc_limit,
    progress=progress,
)  # fmt: skip
text_race = named(text_race, doc_names)
figures.race(text_race.histories)

# %% tags=["folded"]
tested = min(doc_limit, docs.size("test"))
accuracy = {n: float(np.median([h.scores["test"] for h in text_race.chosen(n)])) for n in doc_names}
noise = {n: (p * (1 - p) / tested) ** 0.5 for n, p in accuracy.items()}
best, second, _ = sorted(doc_names, key=lambda n: -accuracy[n])
apart_by = (noise[best] ** 2 + noise[second] ** 2) ** 0.5  # two scores, two errors
display(
    text_race.table[
        ["chosen", "dev accuracy", "test accuracy", "peak parameters", "total parameters", "seconds"]
    ]
)
say(
    f"**{best}** has the highest test accuracy, {accuracy[best]:.3f}. Boosting has "
    f"{accuracy['XGBLoRA']:.3f}. One standard error on {tested} passages is {noise[best]:.3f}, so {best} and "
    f"{second} ({accuracy[second]:.3f}) are "
    + ("further apart than" if accuracy[best] - accuracy[second] > 2 * apart_by else "within")
    + f" two standard errors of a *difference*, which is √2 times as large: {apart_by:.3f}. "
    f"{doc_steps} steps, {doc_seeds} seeds."
)
if any("edge" in lr for lr in text_race.table["chosen"]):
    say("A learning rate was chosen at the edge of the grid: widen it before you quote this.")
elif len(doc_lrs) == 1:
    say("In this profile the learning rate is not tuned: nobody's number should be quoted.")

# %% [markdown]
# ### Exercise 7.1 · How sure is an accuracy? (4 minutes, easy)
#
# An accuracy of *p* on *n* passages has a standard error of about √(*p*(1 − *p*)/*n*). Take the accuracy of
# XGBLoRA, `accuracy["XGBLoRA"]`. How large is the standard error on a test set **four times** as large as
# ours, of `4 * tested` passages?

# %% tags=["exercise"]
# solution: standard_error = None  # your answer: a number
standard_error = (accuracy["XGBLoRA"] * (1 - accuracy["XGBLoRA"]) / (4 * tested)) ** 0.5
# end

# %% tags=["check"]
check.number(
    "7.1", standard_error, noise["XGBLoRA"] / 2, unit="accuracy, as a fraction",
    hints={
        noise["XGBLoRA"]: "That is the one for our test set. What does four times the data do to it?",
        noise["XGBLoRA"] / 4: "Data four times, error a quarter? Look at the root.",
        noise["XGBLoRA"] ** 2 / 4: "That is its square. Take the root.",
    },
    because="Four times the passages halve the error. A tenth of it would take a hundred times the passages.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The root makes precision expensive. Small improvements in tables of papers, on small test sets, are often
# less than one standard error. Passages of one module are alike, so the formula may flatter: it takes
# them for independent.

# %% [markdown]
# ## 8 · Larger races, computed beforehand
#
# What runs in minutes is a small model for a few hundred steps at most. Larger races took hours. They keep
# the same rules: equal steps, the same batches, several seeds, and equal trials, six or seven for each side.
# LoRA spends them on the learning rate, boosting also on κ and on the moment to merge: after κ steps, or
# where the loss stops falling (`merge="plateau"`). Their test scores, seed by seed, come with the package.
#
# - **ten books**: a model of 656,000 weights learns ten classic English books; once with rank 1 on both
#   sides, once with rank 8. Then for 4,000 steps, at the rates found before: boosting and LoRA of rank 1
#   against LoRA of rank 8. The score is the loss in nats.
# - **planted update**: an update of rank 16 in the lab model; both sides have rank 1.
# - **SST-2**: a model of 22.7 million weights learns whether a sentence is friendly; both sides have rank 1.
#   The score is accuracy.
# - The last two once more, with full fine-tuning against LoRA of rank 8: what could be won there at all?
#
# At rank 1 boosting runs twice: with all of its knobs tuned, and merged at a plateau with its learning rate
# alone tuned.
#
# **Question.** In which of these is boosting ahead, at equal peak? Where will it not be told from LoRA?

# %%
computed = large.races()
large.table(computed)

# %%
large.forest(computed).show()

# %%
sides = {"ahead": [], "behind": [], "cannot be told apart": []}
for (title, method, reference), row in large.table(computed).iterrows():
    sides[row["verdict"]].append(f"{title}, {method} against {reference} ({row['difference (95 %)']})")
for verdict, who in sides.items():
    say(f"**{verdict}**: {'; '.join(who) or 'nobody'}.")

# %% [markdown]
# So at equal peak boosting wins at rank 1 on the books, in both ways, and on the planted update where its
# knobs are tuned. At rank 8 on the same books it brings nothing in 1,000 steps. On SST-2 neither way can be
# told from LoRA, nor merged at a plateau on the planted update. No reason to expect a gain everywhere.
#
# What do more steps bring? In 4,000 of them LoRA of rank 1 hardly moves any more, and boosting does.

# %%
longer = computed["capacity4000"]
one, boosted_one, eight = (
    float(np.mean(longer.scores[name])) for name in ("LoRA, rank 1", "XGBLoRA, rank 1", "LoRA, rank 8")
)
way = (one - boosted_one) / (one - eight)
gap = longer.differences("LoRA, rank 1")["XGBLoRA, rank 1"]
say(
    f"After {longer.steps:,} steps: LoRA of rank 1 {one:.3f}, boosting of rank 1 {boosted_one:.3f} ({gap}), "
    f"LoRA of rank 8 {eight:.3f}. Boosting has gone {way:.0%} of the way to eight times the peak."
)

# %% [markdown]
# Which knobs did it? Here is every trial of boosting in three of the races. A trial without a score was ended
# half-way, because it was behind.

# %%
looked_at = {"capacity": "books, rank 1", "planted": "planted, rank 1", "capacity8": "books, rank 8"}
boosted = [
    {"race": title} | trial
    for name, title in looked_at.items()
    for trial in computed[name].trials
    if trial["method"].startswith("XGBLoRA")
]
tried = pd.DataFrame(boosted).set_index("race").drop(columns="method")
tried

# %% [markdown]
# On the books many short rounds won, on the planted update two boosters that train in turn (`backfit`).
# Merging at a plateau had one trial beside them in each race. At rank 1 on the books that was at three times
# its best rate; with six rates to itself it did as well as short rounds. So a knob that lost one trial has
# not lost, and one good knob in one race is not a rule for the next.

# %% [markdown]
# ## 9 · The result, in your numbers
#
# All of the notebook in one table, and written by code.

# %%
wins = lengths.idxmin(axis=1)
if budgets[0] == 1 and wins.iloc[0] != lora_high:
    wins.iloc[0] = f"XGBLoRA = {lora_1}"  # one round: the same runner twice
summary = [
    (f"planted, {steps} steps, {seeds} seeds", "steps", first),
    *((f"planted, {steps} steps", b, v) for b, v in verdicts["lowest"].items() if b != "steps"),
    *((f"planted, {budget} steps, one seed", "steps", who) for budget, who in wins.items()),
    *(
        (f"planted, {budget} steps, one seed", "peak parameters", min(names[:2], key=lambda n: row[n]))
        for budget, row in lengths.iterrows()
        if budget > kappa  # one round: the same runner twice
    ),
    (f"pydocs, {doc_steps} steps, {doc_seeds} seeds", "steps", best),
]
summary = pd.DataFrame(summary, columns=["task", "at equal", "lowest loss or highest accuracy"])
display(summary)
counts = summary.iloc[:, 2].value_counts()
say("Rows won: " + ", ".join(f"{n} {count}" for n, count in counts.items()) + f", of {len(summary)}.")

# %% [markdown]
# ## What to take away
#
# - First show that the race is level: where two methods are the same, their numbers must be too.
# - Learning rates do not carry over between methods. Each method tries the same grid and is judged at its
#   best; one common rate can decide the order by itself.
# - Dev chooses, test tells. Best of many is too good, whatever was chosen.
# - Compare seed by seed, and show the interval. It covers seeds, and not the choice of the task.
# - *Equal* needs a noun. Boosting has the peak of its booster's rank, and the total of all its rounds.
# - A winner holds for a budget. A single round is LoRA of that rank; the more rounds, the more rank.
# - Ask who the rival is: LoRA of the same peak, or the best LoRA that fits into your memory.
#
# **Try it.** Change `seed`: another model. Which rows of the last table stay? Plant a flat spectrum
# (`"spectrum": "flat"` in `secret`, section 1): does boosting need more rounds or fewer to pass rank 1?
# Add `Full()` to the runners with a grid of its own, ten times lower. Let the methods of section 6 keep a
# constant learning rate with `schedule="constant"`.
#
# ## References
#
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - Y. Zhang and others. *Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of
#   LLMs.* [arXiv 2410.19694](https://arxiv.org/abs/2410.19694)
# - Two evaluations of LoRA's variants with tuned learning rates:
#   [arXiv 2602.04998](https://arxiv.org/abs/2602.04998),
#   [arXiv 2601.22708](https://arxiv.org/abs/2601.22708)
# - Student. *The Probable Error of a Mean.* Biometrika 6, 1908.
#
# The last cell checks what the text says whatever the winner is.

# %% tags=["folded"]
# Section 1: the track is level.
assert apart == 0
assert np.isclose(*ends, rtol=1e-4)
# Section 2: the best rate is each method's own, and no run without a score.
assert set(tries.index) == set(lrs)
assert all(contest.chosen(n)[0].settings.lr == tries[n].idxmin() for n in names)
if profile != "classroom" and seed == 0:  # the winner depends on the rate
    assert tries.idxmin(axis=1).nunique() > 1
# Section 4: the same seeds for all, and pairing pays between the two methods of rank 1.
if seed == 0:
    assert differences[lora_1].std() < 0.8 * test["XGBLoRA"].std()
assert all(sorted(h.settings.seed for h in contest.chosen(n)) == list(range(seeds)) for n in names)
assert all(d.p <= d.corrected <= 2 * d.p for d in paired.values())
# Section 5: the runners agree in the counts that the table says.
last = {n: contest.chosen(n)[0][-1] for n in names}
assert last["XGBLoRA"].peak_parameters == last[lora_1].peak_parameters
assert last["XGBLoRA"].total_parameters == last[lora_high].total_parameters
# Section 6: few best rates lie at the edge of the grid; one round is LoRA of rank 1.
assert tuned_at_edge <= len(by_budget)
if budgets[0] == 1:
    assert np.isclose(lengths["XGBLoRA"].iloc[0], lengths[lora_1].iloc[0], rtol=1e-4)
won_by = {
    race: next(t["knobs"] for t in computed[race].trials if t["chosen"] and "XGB" in t["method"])
    for race in looked_at
}


def beforehand(name: str, same: int) -> str:
    """The verdict on boosting of a rank, against LoRA of the same rank, in a race computed beforehand."""
    gap = computed[name].differences(f"LoRA, rank {same}")[f"XGBLoRA, rank {same}"]
    return gap.verdict(computed[name].greater_is_better)


# Section 8: at equal peak ahead at rank 1 on the books and on the planted update, nowhere else told apart.
assert [beforehand("capacity", 1), beforehand("planted", 1)] == ["ahead", "ahead"]
plateau = computed["capacity"].differences("LoRA, rank 1")["XGBLoRA, rank 1, plateau"]
assert plateau.verdict(False) == "ahead"
merged = [t for t in computed["capacity"].trials if t["method"].endswith("plateau") or "merge" in t["knobs"]]
alone = next(t["lr"] for t in merged if t["chosen"])
assert 2.9 < next(t["lr"] for t in merged if "merge" in t["knobs"]) / alone < 3.1
assert beforehand("capacity4000", 1) == "ahead"
assert 0.5 < way < 0.65
assert {beforehand("capacity8", 8), beforehand("sst2", 1)} == {"cannot be told apart"}
assert set(won_by["capacity"]) == {"steps_per_round"}
assert won_by["planted"]["backfit"] == 2
assert won_by["capacity8"]["merge"] == "plateau"
print("All facts hold.")
