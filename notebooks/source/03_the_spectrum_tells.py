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
# # The spectrum tells
#
# *What does the accumulated update look like, and where does it agree with full fine-tuning?*
#
# Two runs can have the same loss and different weights. So look at the update itself: how strong its
# directions are, how many there are, and where they point.
#
# **You will be able to**
#
# 1. read the spectrum of an update, round by round, against a spectrum that is known;
# 2. tell three kinds of rank apart, and say which one is bounded;
# 3. find the modules, layers and rounds that the gain came from;
# 4. measure whether two updates point the same way, and how many of their directions do;
# 5. count intruder dimensions, and measure what was forgotten;
# 6. say when boosting ends lower than LoRA of rank *r*, and when it does not.
#
# **Time.** {time}.
#
# **You need.** Notebook 02: **booster**, **round**, **accumulated update**.
#
# A question comes before each answer. **Write down your guess, then run the cell.** Five exercises check
# themselves: replace `None` by your answer, run the cell, run the next one. Figures, the lines below them,
# and sentences behind a grey bar are written by code, from the numbers of *your* run.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (short), "laptop" (some minutes) or "classroom" (longer)
seed: int = 0  # of the planted update, the boosters, the choice of modules and the order of the data
rank: int = 4  # of the planted update, and of the LoRA that boosting is compared with
progress: bool = False  # show progress bars

# %% tags=["folded"]
import pandas as pd
import torch

from xgblora_lab import (
    Bench,
    Full,
    Gain,
    LoRA,
    Spectrum,
    XGBLoRA,
    check,
    figures,
    load,
    matrix,
    race,
    spectra,
)
from xgblora_lab.course import saved
from xgblora_lab.course.board import chart, line, pick, say
from xgblora_lab.racing.measures import Forgetting, Intruders, intruders
from xgblora_lab.tasks.written import written

torch.set_num_threads(1)  # the lab model is so small that a second thread costs more than it brings

#            rounds, κ | learning rates of boosting and LoRA | of full fine-tuning
runs = {
    "ci": (3, 20, (0.03,), (0.003,)),
    "laptop": (8, 24, (0.003, 0.01, 0.03), (0.0003, 0.001, 0.003)),
    "classroom": (16, 60, (0.003, 0.01, 0.03, 0.1), (0.0003, 0.001, 0.003, 0.01)),
}
#            the map: steepness | budgets | learning rates | seeds
maps = {
    "ci": ((0, 2), (20, 100), (0.03, 0.1, 0.3), 1),
    "laptop": ((0, 0.5, 1, 2), (20, 80, 240), (0.01, 0.03, 0.1, 0.3, 1.0), 1),
    "classroom": ((0, 0.5, 1, 1.5, 2), (20, 60, 180, 540, 1620), (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), 3),
}
rounds, steps_per_round, low_rank_lrs, full_lrs = pick(profile, runs)
steps = rounds * steps_per_round  # the budget of every run on the planted task
held_out = 128  # sequences to measure the loss on


# %% [markdown]
# ## 1 · Three secrets
#
# The task is **planted**, as in notebook 02. A teacher is the lab model plus an update that we know. This
# time the update sits in three modules. In each it has a few singular values, and they fall off as 1, 1/2,
# 1/3 …
#
# Boosters may go on these three modules only. So the question is not *where* the update is, but what it is.

# %%
layers = {"model.layers.2.mlp": ["down_proj"], "model.layers.3": ["self_attn.o_proj", "mlp.down_proj"]}
modules = [f"{layer}.{part}" for layer, parts in layers.items() for part in parts]
model, task = load("lab", "planted", modules=modules, rank=rank, strength=1.0, length=8, seed=seed)

planted = {name: spectra.singular_values(*factors) for name, factors in task.truth.items()}
table = pd.DataFrame({name: s.numpy().round(2) for name, s in planted.items()}).T
table.columns = [f"σ{i}" for i in range(1, rank + 1)]
table.insert(0, "shape", [str(tuple(model.get_submodule(name).weight.shape)) for name in planted])
table

# %% [markdown]
# First the learning rate. Every method below gets its own, by the loss on held-out sequences. These runs are
# **saved**: after a restart of the kernel the search goes on where it was.


# %%
def tuned(method: type, lrs: tuple[float, ...], **options) -> object:
    """The method at the best learning rate of the grid, and a line that says which."""
    if len(lrs) == 1:
        print(f"{method.name}: learning rate {lrs[0]:g}, not tuned in this profile")
        return method(lr=lrs[0], **options)
    found = saved.race(
        model, task, [method(**options)], lrs=lrs, seeds=1, batch_size=8, steps=steps, targets=modules,
        limit=held_out, progress=progress,
    )  # fmt: skip
    print(f"{method.name}: {found.table['chosen'].iloc[0]} of {', '.join(f'{lr:g}' for lr in lrs)}")
    return method(lr=found.chosen(found.labels[0])[0].settings.lr, **options)


common = {"steps_per_round": steps_per_round, "schedule": "constant"}
boosting = tuned(XGBLoRA, low_rank_lrs, selection="random", modules_per_round=2, **common)

# %% [markdown]
# Then the run. Two of the three modules get a booster in each round, drawn at random. Hooks watch:
# `Spectrum` notes the singular values after every round, and how far the truth is. `Gain` takes each new
# booster out again, one at a time, and notes by how much the loss rises. The other two wait for section 8.


# %%
options = {"steps": steps, "batch_size": 8, "targets": modules, "seed": seed, "data_seed": seed}
own_text = written(model)  # sentences that the lab model itself writes; section 8 needs them


def watched() -> list:
    """The hooks that all runs of this notebook share."""
    return [Spectrum(), Intruders(), Forgetting(own_text, limit=32)]


bench = Bench(model, task, boosting, hooks=[Gain(), *watched()], **options)
boosted = bench.run(progress=progress)
boosted.label = "XGBLoRA"  # what the figures call it
print(*boosted, sep="\n")

# %% [markdown]
# ## 2 · The spectrum, round by round
#
# Think of notebook 01. There each booster found the largest singular pair that was left, and the spectrum
# of the target filled in from the top.
#
# **Question.** Here a booster never sees the target, only the teacher's answers to a few random tokens.
# Will the first singular value still come first? Will it get to its full size?

# %%
name = max(planted, key=lambda n: boosted[-1].measurements["alignment"][n])  # the module that is found best
figures.spectrum(boosted, name)

# %% [markdown]
# Move the slider. The black ticks are the planted values. A coloured point is added in each round that
# draws the module, and the map on the left shows the same for all rounds at once: one row for each index.

# %%
now, goal = bench.spectrum(name), planted[name]
first = float(now[0] / goal[0])
second = float(now[1] / goal[1]) if len(now) > 1 else 0.0
loss_left = boosted[-1].probe_after / boosted[0].probe_before
say(
    f"In `{name}` the first singular value has come to {first:.0%} of the planted one, the second to "
    f"{second:.0%}. The loss has come down to {loss_left:.0%} of what it was."
)

# %% [markdown]
# A spectrum of the right shape is a good sign, but no more than that. Singular values say how *strong* the
# directions of an update are. They do not say which directions they are. That is section 5.

# %% [markdown]
# ## 3 · Three kinds of rank
#
# - **Numerical rank**: how many singular values are not zero, up to rounding.
# - **Stable rank**: Σσ² / σ₁². How many directions as strong as the first would hold the same energy?
# - **Effective rank**: the exponential of the entropy of the spectrum. Over how many directions is it spread?
#
# **Question.** A booster has rank 1. What is the largest rank that a module can have after *t* rounds?
# Which of the three will touch this bound?

# %%
figures.ranks(boosted)

# %%
times = {n: bench.ensemble.times_chosen(n) for n in modules}
numerical = {n: spectra.numerical_rank(bench.spectrum(n), shape=bench.ensemble.shapes[n]) for n in modules}
effective = {n: spectra.effective_rank(bench.spectrum(n)) for n in modules}
say(
    "Times drawn, numerical rank, effective rank: "
    + "; ".join(f"`{n}` {times[n]}, {numerical[n]}, {effective[n]:.1f}" for n in modules)
    + f". Effective rank of the planted updates: {spectra.effective_rank(goal):.1f}."
)

# %% [markdown]
# The bound is *r* × the times that the module was chosen, and the numerical rank tells no more than that:
# random factors are never exactly dependent, so it counts rounds. It would read the same if nothing had
# been learned. The other two weigh the directions. Compare *them* with the planted update.
#
# With more rounds the numerical rank grows past the rank of what was planted. No round knows when to stop.

# %% [markdown]
# ### Exercise 3.1 · Stable rank (4 minutes, easy)
#
# Write the function: the stable rank of a spectrum. For an update of zeros it is 0.


# %% tags=["exercise"]
def stable_rank(s: torch.Tensor) -> float:
    """Σσ² / σ₁² of the singular values s, which descend; 0 where all of them are 0."""
    # solution: return None  # your answer
    return float(s.square().sum() / s[0].square()) if s[0] > 0 else 0.0
    # end


# %% tags=["check"]
check.function(
    "3.1", stable_rank, [((s,), spectra.stable_rank(s)) for s in (goal, torch.ones(7), torch.zeros(3))],
    hints=[
        (lambda s: s.sum() / s[0] if s[0] else 0.0, "Energy is made of squares. Of what is your sum?"),
        (lambda s: s.square().sum(), "That is the energy. In which unit is it counted?"),
        (spectra.effective_rank, "That is the effective rank: an entropy, not an energy."),
    ],
    because="Seven equal values have stable rank 7. A spectrum that falls off has less than its rank.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The energy, counted in units of the first direction. It is never larger than the numerical rank, and it
# hardly notices small singular values: a tenth of the first one adds a hundredth. The effective rank notices
# them more, because it weighs σ and not σ².

# %% [markdown]
# ## 4 · Who earned it?
#
# **Question.** Three modules, three planted updates of the same relative size. Do they gain the same? Does
# the loss rise most without the first round, or without the last?

# %%
scores = bench.evaluate("dev", limit=held_out)  # in nats, and relative to the untrained model
whole, last_loss = scores["loss"], scores["relative"]
left_out = {t: scores["loss"] for t, scores in bench.left_out("dev", limit=held_out)}
figures.gains(boosted, left_out=left_out, whole=whole)

# %% [markdown]
# The map shows which modules were drawn when, and what each booster was worth at its merge. The bars below
# ask something else: what would be missing *now*? Later boosters were fitted to stand on the earlier ones,
# so the two need not agree.

# %%
figures.gains(boosted, by="layer")

# %%
credit = pd.DataFrame([dict(r.measurements["gain"]) for r in boosted]).sum().sort_values(ascending=False)
missed = max(left_out, key=left_out.get)
once = {n: credit[n] / times[n] for n in credit.index}
say(
    f"`{credit.index[0]}` gained most, {credit.iloc[0] / credit.sum():.0%} of all; it was drawn "
    f"{times[credit.index[0]]} times of {rounds}. Per booster, `{max(once, key=once.get)}` leads. Without "
    f"round {missed} the loss would rise most, by {left_out[missed] - whole:.4f} on {whole:.4f}."
)

# %% [markdown]
# A module that is drawn more often has more chances to gain, so look at the gain per booster too. And
# whoever is drawn early finds more that is left to gain.

# %% [markdown]
# ## 5 · The same directions?
#
# Now the directions. Take the leading singular vectors of the accumulated update, and those of the planted
# one. Each set spans a subspace. **Alignment** is the mean squared cosine between the two: 1 if they are
# the same, 0 if they are orthogonal.
#
# In a space of *d* dimensions, two random subspaces of *k* dimensions have alignment *k/d*, on average. That
# is the number to beat.

# %% [markdown]
# ### Exercise 5.1 · The number to beat (5 minutes, medium)
#
# An update has directions on both sides: left singular vectors with as many entries as the weight has rows,
# right ones with as many as it has columns. The figure below shows the mean of the two alignments. What
# would it be for a random update of rank `rank`?

# %%
d, k = model.get_submodule(name).weight.shape
print(f"{name}: {d} rows, {k} columns; rank {rank}")

# %% tags=["exercise"]
# solution: by_chance = None  # your answer: a number, computed from d, k and rank
by_chance = (rank / d + rank / k) / 2
# end

# %% tags=["check"]
check.number(
    "5.1", by_chance, sum(rank / n for n in model.get_submodule(name).weight.shape) / 2,
    unit="mean squared cosine",
    hints=[
        (rank / d + rank / k, "That is the sum of the two sides. Take their mean."),
        ((1 / d + 1 / k) / 2, "That is for a single direction. There are as many as `rank` on each side."),
        (rank / d, "That is the left side alone. What about the right one?"),
        (rank / k, "That is the right side alone. What about the left one?"),
        (rank * rank / (d * k), "The two sides are averaged, not multiplied."),
    ],
    because="Each side gives the rank over its dimensions. Small, but not zero.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# A fixed direction has squared cosines with the *d* vectors of a basis that add up to 1. So a random
# subspace of *k* of *d* dimensions holds *k/d* of it on average. The larger the weight, the less chance can
# do. A measured alignment means nothing without this number beside it.

# %% [markdown]
# **Question.** The loss has fallen by the factor you saw. How far has the alignment come, and how much of
# the distance ‖ΔW − ΔW\*‖ is gone?

# %%
figures.alignment(boosted)

# %%
chance = {n: rank / 2 * (1 / d + 1 / k) for n, (d, k) in bench.ensemble.shapes.items()}
aligned, far = (boosted[-1].measurements[key] for key in ("alignment", "distance"))
say(
    "Alignment, and what chance would give: "
    + "; ".join(f"`{n}` {aligned[n]:.2f} ({chance[n]:.2f})" for n in modules)
    + f". Median distance: {pd.Series(far).median():.2f} of the planted update's length."
)

# %% [markdown]
# The alignment is far above chance, and far from 1. Read the distance beside it: it falls only where length
# and details are right too. And you know from notebook 02 why the loss can do without: it sees a weight
# through its inputs only.

# %% [markdown]
# ### Exercise 5.2 · The right spectrum (4 minutes, hard)
#
# Take the planted update and turn it: multiply *B* with a random rotation from the left. All singular values
# stay as they are. How far is the result from the planted update, relative to its length? (No update at all
# has distance 1.) A guess within a few per cent is enough.

# %% tags=["exercise"]
# solution: how_far = None  # your answer: a number
how_far = 2**0.5
# end

# %% tags=["check"]
check.number(
    "5.2", how_far,
    spectra.distance(
        (torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0]
         @ task.truth[name][0], task.truth[name][1]),
        task.truth[name],
    ),
    tolerance=0.08, unit="relative distance",
    hints={
        0: "The singular values agree. Do the entries?",
        1: "That is the distance of no update. Here there is one, as long as the planted one.",
        2: "So far it would be if it pointed the opposite way. Random directions are nearly orthogonal.",
    },
    because="Two updates of length 1, orthogonal to each other but for chance: Pythagoras says √2.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# In many dimensions random directions are nearly orthogonal. Two sides of length 1 at a right angle are √2
# apart. So an update with a perfect spectrum can be *farther* from the truth than no update. A figure of
# singular values would never show it.

# %% [markdown]
# ## 6 · LoRA and full fine-tuning beside it
#
# Two more runs with the same steps on the same batches.
#
# **LoRA** has the rank of the planted update. We can give it that rank only because we planted it.
#
# **Full fine-tuning** moves every entry. The library's `Full` trains all weights of the model, and then the
# change may go anywhere. We want to compare what ends up in the same three weights, so `Dense` keeps all the
# others as they are. It gets a grid of its own, as wide but lower, because it moves every entry directly.
#
# **Question.** Which of the three comes closest to the planted directions? Which one has the lowest loss?


# %%
class Dense(Full):
    """Full fine-tuning of the bench's modules alone."""

    def start(self, bench):
        super().start(bench)
        inside = {f"{n}.weight" for n in bench.modules}
        for outside in self.parameters.keys() - inside:
            self.parameters.pop(outside).requires_grad_(False)


lora_label = f"LoRA, rank {rank}"
methods = {
    lora_label: tuned(LoRA, low_rank_lrs, rank=rank, **common),
    "full": tuned(Dense, full_lrs, **common),
}

# %%
histories, updates = {"XGBLoRA": boosted}, {"XGBLoRA": {n: bench.factors(n) for n in modules}}
losses = {"XGBLoRA": last_loss}
for label, method in methods.items():
    with Bench(model, task, method, hooks=watched(), **options) as other:
        histories[label] = other.run(progress=progress)
        histories[label].label = label
        updates[label] = {n: other.factors(n) for n in modules}
        losses[label] = other.evaluate("dev", limit=held_out)["relative"]
updates["truth"] = task.truth


# %%
figure = chart("Alignment with the truth, median of the modules", "optimizer steps", "mean squared cosine")
for label, history in histories.items():
    found = [pd.Series(r.measurements["alignment"]).median() for r in history]
    look = figures.style(history.method)
    line(figure, label, [0, *(r.step for r in history)], [0, *found], look, mode="lines+markers")
figure.update_yaxes(rangemode="tozero").show()

# %%
last = {label: history[-1] for label, history in histories.items()}
median = {
    label: {key: pd.Series(record.measurements[key]).median() for key in ("alignment", "distance")}
    for label, record in last.items()
}
comparison = pd.DataFrame(median).T
comparison.insert(0, "loss left", pd.Series(losses))
comparison["peak parameters"] = {n: max(r.peak_parameters for r in h) for n, h in histories.items()}
comparison["total parameters"] = {n: r.total_parameters for n, r in last.items()}
comparison.round(3)

# %%
order = ", ".join(comparison["alignment"].sort_values(ascending=False).index)
lowest = comparison["loss left"].idxmin()
peaks = comparison["peak parameters"] / comparison["peak parameters"]["XGBLoRA"]
say(
    f"From closest to farthest from the planted directions: {order}. Lowest loss: **{lowest}**, with "
    f"{losses[lowest]:.1%} of the untrained loss left, against {losses['XGBLoRA']:.1%} for boosting. At its "
    f"peak LoRA trained {peaks[lora_label]:.1f} times as many numbers as boosting, full fine-tuning "
    f"{peaks['full']:.0f} times as many."
)

# %% [markdown]
# **LoRA wins here.** It trains all its directions at once, in all modules, from the first step to the last,
# and it has been told the right rank. A booster has a part of the steps, and waits for its turn.
#
# More freedom than LoRA's does not help full fine-tuning to find the directions. It is free to fill all of
# them a little, and it does, as the next section shows.

# %% [markdown]
# ## 7 · Where does it agree with full fine-tuning?
#
# On a real task nobody knows the truth. The usual yardstick is then the update that full fine-tuning finds.
# So let us compare with that, as if we did not know better.
#
# **Question.** The spectrum of full fine-tuning's update beside that of boosting: which one is steeper?

# %%
figures.spectrum(boosted, name, target=histories["full"], top=16)

# %% [markdown]
# The next cell is an explorer: any module, after any round, against any of the runs. Which module agrees
# with full fine-tuning from the first round on? (Without a kernel, the figure above shows one of them.)

# %%
from xgblora_lab.widgets import SpectrumExplorer

others = {label: run for label, run in histories.items() if label != boosted.label}
SpectrumExplorer(boosted, others, live=False if profile == "ci" else "auto")

# %%
spread = {
    label: {
        "singular values": len(s := spectra.singular_values(*updates[label][name])),
        "effective rank": spectra.effective_rank(s),
        "stable rank": spectra.stable_rank(s),
        f"energy in the first {rank}": float(spectra.captured_energy(s)[:rank][-1]),
    }
    for label in updates
}
pd.DataFrame(spread).T.round(2)

# %% [markdown]
# The dotted line has a head and a long tail. The tail holds many directions, each of little strength.

# %% [markdown]
# ### Exercise 7.1 · The long tail (5 minutes, medium)
#
# Here are the singular values of full fine-tuning's update of that module. How many of its leading
# directions are needed to hold 90 % of its energy, the sum of the squares?

# %%
s = spectra.singular_values(*updates["full"][name])  # descending
print(len(s), "singular values, the first:", s[:6].numpy().round(3))

# %% tags=["exercise"]
# solution: needed = None  # your answer: a number, computed from s
needed = int((s.square().cumsum(0) < 0.9 * s.square().sum()).sum()) + 1
# end

# %% tags=["check"]
check.number(
    "7.1", needed, next(n for n, part in enumerate(spectra.captured_energy(s), 1) if part >= 0.9),
    unit="directions",
    hints=[
        (int((s.square().cumsum(0) < 0.9 * s.square().sum()).sum()), "With these it is still below 90 %."),
        (int((s.cumsum(0) < 0.9 * s.sum()).sum()) + 1, "Energy is the sum of squares, not of the values."),
        (len(s), "All of them hold 100 %."),
    ],
    because="Compare it with the rank of what was planted.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# `spectra.captured_energy(s)` gives the part for every number of directions. Full fine-tuning has moved every
# entry, so nothing keeps its update from having a little of every direction. The count is a better summary
# than the numerical rank, which is simply the size of the weight.

# %% [markdown]
# **Question.** Compare the leading *k* directions of two updates, for *k* = 1, 2, … Will boosting and full
# fine-tuning agree better in the first direction or in the later ones? Will they agree more with each
# other, or with the truth?

# %%
pairs = [
    ("XGBLoRA", "truth"), (lora_label, "truth"), ("full", "truth"), ("XGBLoRA", "full"), (lora_label, "full"),
]  # fmt: skip
agreement = pd.DataFrame(
    {
        f"{one} – {two}": {
            k: pd.Series([spectra.alignment(updates[one][n], updates[two][n], k) for n in modules]).median()
            for k in range(1, rank + 1)
        }
        for one, two in pairs
    }
).T

# %% tags=["folded"]
figure = chart("Alignment of the leading k directions, median of the modules", "k", "")
figure.add_heatmap(
    x=agreement.columns, y=agreement.index, z=agreement, zmin=0, zmax=1, colorscale="Cividis",
    xgap=3, ygap=3, text=agreement.round(2), texttemplate="%{text}", textfont_size=16,
    colorbar={"title": "alignment"},
)  # fmt: skip
figure.update_xaxes(dtick=1, showgrid=False)
figure.update_yaxes(autorange="reversed", showgrid=False).show()

# %% [markdown]
# The same in degrees, for the module above. Principal angles pair up the directions of two subspaces, the
# closest pair first. 0° is the same direction, 90° has nothing in common. Here for the outputs (the left
# singular vectors).

# %%
left = {label: spectra.svd(*updates[label][name])[0][:, :rank] for label in updates}
degrees = {}
for one, two in pairs:
    angles = torch.rad2deg(spectra.principal_angles(left[one], left[two])).tolist()
    degrees[f"{one} – {two}"] = {f"angle {i}": f"{angle:.0f}°" for i, angle in enumerate(angles, 1)}
pd.DataFrame(degrees).T.fillna("none")  # where an update has fewer directions

# %%
with_full, with_truth = agreement.loc["XGBLoRA – full"], agreement.loc["XGBLoRA – truth"]
bent, random = agreement.loc["full – truth"], pd.Series(chance).median()
say(
    f"Boosting agrees with full fine-tuning to {with_full[1]:.2f} in the first direction and to "
    f"{with_full[rank]:.2f} in the first {rank}; with the truth to {with_truth[1]:.2f} and "
    f"{with_truth[rank]:.2f}. By chance it would be {random / rank:.3f} and {random:.3f}. Full fine-tuning "
    f"itself agrees with the truth to {bent[1]:.2f} and {bent[rank]:.2f}."
)

# %% [markdown]
# All three updates share leading directions to a degree that chance cannot explain, and none is the same as
# another.
#
# Note the third row. Full fine-tuning is not a perfect yardstick: at this budget it has not found all of the
# planted directions either. *Far from full fine-tuning* and *wrong* are two different things.
# Where we do not know the truth, we cannot tell them apart.

# %% [markdown]
# ## 8 · Intruders, and what was forgotten
#
# Tuning changes more than the task asks for. Two measures of that.
#
# - An **intruder** is a leading singular vector of the tuned weight W + ΔW that the base does not know: its
#   cosine with *every* singular vector of W is below 0.5.
# - **Forgetting** is the loss on text that the base itself has written, minus the loss the base had there. In
#   nats a token; 0 is nothing forgotten.
#
# Shuttleworth and others found that LoRA makes intruders, that full fine-tuning hardly does, and that they go
# with forgetting.
#
# **Question.** A booster is a fresh random direction in every round. Who has the most intruders at the end,
# and who has forgotten most? And the *teacher*, the right answer itself: does it have any?

# %%
figures.intruders(histories.values())

# %%
ends = {}
for label, history in histories.items():
    seen = history[-1].measurements
    ends[label] = {
        "intruders per module": pd.Series(seen["intruders"]).mean(),
        "forgetting": seen["forgetting"],
    }
of_truth = {}
for n, (B, A) in task.truth.items():
    W = bench.weights.base(n).double()
    of_truth[n] = intruders(torch.linalg.svd(W, full_matrices=False).U, W + B.double() @ A.double())
before, after = (own_text.evaluate(m, limit=32)["loss"] for m in (model, task.teacher))
ends["teacher"] = {"intruders per module": pd.Series(of_truth).mean(), "forgetting": after - before}
ends = pd.DataFrame(ends).T
ends.assign(**{"loss left": pd.Series(losses | {"teacher": 0.0})}).round(3)

# %%
tuned_ends = ends.drop(index="teacher")
most, least = tuned_ends["forgetting"].idxmax(), tuned_ends["forgetting"].idxmin()
say(
    f"The teacher itself has {ends.loc['teacher'].iloc[0]:.1f} intruders a module, and has forgotten "
    f"{ends.loc['teacher'].iloc[1]:.2f} nats. Of the three, {most} forgot most ({ends.loc[most].iloc[1]:.2f} "
    f"nats), {least} least ({ends.loc[least].iloc[1]:.2f}). Intruders: "
    + ", ".join(f"{label} {row.iloc[0]:.1f}" for label, row in tuned_ends.iterrows())
    + "."
)

# %% [markdown]
# Here the right answer is *made* of intruders: what was planted has random directions. So an intruder is no
# mistake as such. It says that a direction came from this task and from nowhere else. And whoever comes
# nearer to this teacher must forget what the teacher forgot: read both columns beside the loss that is left,
# never alone.

# %% [markdown]
# ## 9 · When does boosting win?
#
# So far LoRA had the right rank. Mostly nobody knows it. What if LoRA's rank is too low, and how does it
# depend on the spectrum that must be found?
#
# For a map we need many runs, so back to the matrix of notebook 01. The target has full rank, and singular
# values 1/*i*ᵖ. The **steepness** *p* is 0 for a flat spectrum. The **budget** is the number of optimizer
# steps. In each cell every method tries every learning rate of the same grid. Boosting's rounds have 10
# steps, which we do not tune.
#
# **Question.** LoRA has the rank of the parameter `rank`, boosting adds rank 1 at a time. Where on the map
# does boosting win: at small or large budgets? At flat or steep spectra?

# %%
exponents, budgets, lrs, seeds = maps[profile]
size = 16
cells, edges = [], 0
for p in exponents:
    small, goal_task = matrix([i**-p for i in range(1, size + 1)], d=size, k=size, seed=seed)
    for budget in budgets:
        found = race(
            small, goal_task, [XGBLoRA(steps_per_round=10), LoRA(rank=rank), LoRA(rank=size)],
            lrs=lrs, seeds=seeds, steps=budget, batch_size=1, progress=False,
        )  # fmt: skip
        loss = {
            label: pd.Series([h.scores["dev"] for h in found.chosen(label)]).median()
            for label in found.labels
        }
        edges += int(found.table["chosen"].str.contains("edge").sum())
        boost, low, high = loss.values()
        cells.append({
            "steepness": p, "budget": budget, "ratio": boost / low, "to full rank": boost / high,
            "tail": goal_task.floor(rank) / goal_task.floor(0), "LoRA left": low / goal_task.floor(0),
        })  # fmt: skip

# %%
cells = pd.DataFrame(cells)
figures.boosting_map(cells, reference=f"LoRA of rank {rank}")

# %%
wins = cells[cells["ratio"] < 1]
early = cells[cells["budget"] == budgets[0]]
say(
    f"Boosting ends lower in {len(wins)} of {len(cells)} cells. At the smallest budget LoRA wins in "
    f"{sum(early['ratio'] > 1)} of {len(early)}. The best learning rate lay at the edge of the grid in "
    f"{edges} of {3 * len(cells)} searches."
)

# %% [markdown]
# With few steps LoRA wins. Boosting has only begun to add directions, while LoRA trains all of its own from
# the start. With many steps LoRA stands on its floor, the tail beyond its rank, and boosting goes below. A
# flat spectrum has a high floor, so boosting gets there early. A steep spectrum has next to nothing behind
# the first few directions: there the floor is low, and LoRA is hard to beat.
#
# So does boosting win, or does a rank that is too low lose? The same runs were made with LoRA at
# the full rank of the matrix.
#
# **Question.** In how many cells does boosting end lower than that one?

# %%
nearest_cell = cells.loc[cells["to full rank"].idxmin()]
say(
    f"In {int((cells['to full rank'] < 1).sum())} of {len(cells)}. Where it comes closest, its loss is "
    f"{nearest_cell['to full rank']:.2g} times that of LoRA of full rank (steepness "
    f"{nearest_cell['steepness']:g}, {nearest_cell['budget']:.0f} steps). The price of that rank: {size} "
    "times as many numbers to train at one moment."
)

# %% [markdown]
# Boosting wins where the rank of its rival was chosen too low *and* the budget is large. It wins by peak
# memory where it does not win by loss. This map is one noise-free matrix. Notebook 04 asks the same on real
# tasks.

# %% [markdown]
# ### Exercise 9.1 · The floor of a flat spectrum (3 minutes, easy)
#
# Steepness 0 means that all `size` singular values of the target are equal. Which part of the loss can LoRA
# of rank `rank` never take away there?

# %% tags=["exercise"]
# solution: never_gone = None  # your answer: a number between 0 and 1, computed from size and rank
never_gone = (size - rank) / size
# end

# %% tags=["check"]
check.number(
    "9.1", never_gone, cells.set_index("steepness")["tail"][0].iloc[0], unit="a part of the loss",
    hints=[
        (rank / size, "That is the part it takes away at best. What is left?"),
        ((1 - rank / size) ** 0.5, "The loss is made of squares already: no root is needed."),
        ((1 - rank / size) / 2, "The factor ½ is in the loss at the start, too."),
        (0, "That would be so at full rank."),
    ],
    because="Equal values, equal parts of the loss: each direction of LoRA takes one of them.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# This is the tail of notebook 01 for equal singular values: Σσ² beyond the rank over Σσ² of all. It is the
# highest floor that a rank can have, so here boosting has the easiest rival. For a steep spectrum compute the
# column `tail` of `cells` and see how fast the floor sinks.

# %% [markdown]
# ## What to take away
#
# - Each booster adds one singular value to the update of its module.
# - The numerical rank counts boosters. Effective and stable rank weigh them.
# - Gain has a time: what a booster was worth when it came is not what would be missing now.
# - Right singular values do not make right directions. Measure alignment, and compare it with chance.
# - Boosting, LoRA and full fine-tuning share leading directions: more than by chance, not all.
# - An intruder is a direction that the base does not know. Count it, measure forgetting, and read both beside
#   the loss.
# - At equal steps, LoRA of the right rank gets closer to the truth and to a lower loss. Boosting passes a
#   LoRA whose rank is too low, if there are enough steps.
#
# **Try it.** Cut the same number of steps into twice as many rounds (`runs` in the second cell): does the
# alignment rise or fall? Set `schedule` to `"linear"` for all methods: who gains most? Set `rank` to 2 and
# look at section 6 again. Put the library's `Full` in the place of `Dense`, with learning rates ten times
# lower: what happens to the size of its singular values, and to their directions? Add boosting and LoRA to
# `pairs`: do they agree more than either does with full fine-tuning?
#
# ## References
#
# - Y. Zhang and others. *Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of
#   LLMs.* [arXiv 2410.19694](https://arxiv.org/abs/2410.19694)
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - R. Shuttleworth and others. *LoRA vs Full Fine-tuning: An Illusion of Equivalence.*
#   [arXiv 2410.21228](https://arxiv.org/abs/2410.21228)
# - O. Roy, M. Vetterli. *The effective rank: a measure of effective dimensionality.* EUSIPCO 2007.
# - Å. Björck, G. H. Golub. *Numerical methods for computing angles between linear subspaces.* Mathematics of
#   Computation 27, 1973.
#
# The last cell checks what the text says about your run.

# %% tags=["folded"]
# Section 2: the loss falls, the first singular value leads.
assert boosted[-1].probe_after < boosted[0].probe_before
assert 0.1 < first < 2
# Section 3: the rank is bounded by the draws, and counts them; effective rank weighs.
assert all(numerical[n] == min(times[n], *bench.ensemble.shapes[n]) for n in modules)
assert all(effective[n] <= numerical[n] + 1e-9 for n in modules)
# Section 4: without a round the loss is another one; every module was credited.
assert max(left_out.values()) > whole
assert set(credit.index) == {n for n in modules if times[n]}
# Section 5: far above chance, and far from 1.
assert pd.Series(aligned).median() > 3 * pd.Series(chance).median()
assert pd.Series(aligned).median() < 0.9
# Section 6: LoRA of the right rank is ahead of boosting, in loss and in alignment; boosting holds the least.
assert losses[lora_label] < losses["XGBLoRA"] < 1
assert median[lora_label]["alignment"] > median["XGBLoRA"]["alignment"]
assert median[lora_label]["alignment"] > median["full"]["alignment"]
assert comparison["peak parameters"].idxmin() == "XGBLoRA"
# Section 7: full fine-tuning's update has the longer tail; the leading directions agree beyond chance.
assert spread["full"]["effective rank"] > 3 * spread["XGBLoRA"]["effective rank"]
assert max(bent[rank], with_full[rank], with_truth[rank]) < 0.9
assert (agreement[1] > 5 * pd.Series(chance).median() / rank).all()
# Section 8: the planted update is made of directions that the base does not know, and costs what it knew.
assert ends.loc["teacher"].iloc[0] > 1
assert ends.loc["teacher"].iloc[1] > 0
assert (tuned_ends["forgetting"] < ends.loc["teacher"].iloc[1]).all()
# Section 9: LoRA wins at the smallest budget; boosting wins on the flattest spectrum at the largest one.
ratio = cells.set_index(["steepness", "budget"])["ratio"]
assert (ratio.xs(budgets[0], level="budget") > 1).all()
assert ratio[exponents[0], budgets[-1]] < 0.9
assert ratio[exponents[0], budgets[-1]] < ratio[exponents[-1], budgets[-1]]
assert (cells["LoRA left"] >= 0.999 * cells["tail"]).all()  # no LoRA of this rank is below its floor
assert (cells["to full rank"] > cells["ratio"])[cells["ratio"] < 1].all()
print("All facts hold.")
