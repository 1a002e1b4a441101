"use strict";
/* The first tab: boosting beside LoRA on one matrix. `settings` say which runs, `round` how much of them is seen. */

const SHOWN = 16;  // singular values in the chart

class MatrixTab {
  constructor(found) {
    this.settings = found.settings;
    this.loss = new LossChart($("loss"), DATA.steps, "optimizer steps");
    this.spectrum = new SpectrumChart($("spectrum"), SHOWN);
    this.tiles = new Tiles(["target", "before", "newest", "left"]);
    this.motion = new Motion();  // along the steps
    this.morph = new Motion();  // from one setting's curves to another's
    this.example = null;
    this.position = 0;
    this.controls();
    this.train();
    this.round = Math.min(found.round ?? 0, this.boosting.planned);
    this.place(this.boosting.stepAfter(this.round));
    this.tell(found.note);
  }

  /* Both runs with the present settings, to their last step. */
  train() {
    const {spectrum, seed, rank, kappa, lr, shrinkage, lorarank, loralr} = this.settings, steps = DATA.steps;
    this.problem = this.kept("problem", [spectrum, seed], () => new Problem(spectrum, seed));
    const own = [spectrum, seed, kappa];
    this.boosting = this.kept("boosting", [...own, rank, lr, shrinkage],
      () => new Boosting(this.problem, {rank, kappa, lr, shrinkage, steps}));
    this.lora = this.kept("lora", [...own, lorarank, loralr],
      () => new LoRA(this.problem, {rank: lorarank, kappa, lr: loralr, steps}));
    this.tiles.sort(this.problem);
    const {planned} = this.boosting, rounds = Array.from({length: planned}, (_, t) => t + 1);
    const floor = rounds.map(t => this.problem.floor(this.boosting.rankAfter(t)));
    const loraFloor = this.problem.floor(lorarank);
    const curves = {
      floor: {y: log10(floor), stairs: true},
      "lora-floor": {y: log10(rounds.map(() => loraFloor)), stairs: true},
      lora: {y: log10(this.lora.losses), stride: 1},
      boosting: {y: log10(this.boosting.losses), stride: 1},
    };
    this.goal = {curves, ends: rounds.map(t => this.boosting.stepAfter(t)), domain: domain(curves)};
  }
  kept(name, key, make) {
    this.cache ??= {};
    if (this.cache[name]?.key !== key.join()) this.cache[name] = {key: key.join(), value: make()};
    return this.cache[name].value;
  }

  /* Draw at a step, which may lie between two; spectra are those of the whole step before. */
  place(position) {
    this.position = position;
    const step = Math.floor(position + 1e-9);
    this.seen = {
      ...this.goal, position,
      target: this.problem.values.slice(0, SHOWN),
      boosting: this.boosting.spectrum(step).slice(0, SHOWN),
      lora: this.lora.spectrum(step).slice(0, SHOWN),
    };
    const peak = Math.max(this.problem.values[0] * 1.12, this.seen.boosting[0] * 1.04);
    this.seen.top = Math.min(peak, 4 * this.problem.values[0]);
    this.draw(this.seen);
    const {kappa} = this.settings, begun = Math.floor(Math.max(0, step - 1) / kappa) * kappa;
    const now = this.boosting.states[step], before = this.boosting.states[begun];
    const newest = now.map((w, n) => w - before[n]), left = this.boosting.residual(step).map(e => -e);
    this.tiles.draw({target: this.problem.target, before, newest, left});
    const round = Math.floor(step / kappa + (step === DATA.steps && step % kappa ? 1 : 0));
    this.readout(step, step ? Math.ceil(step / kappa) : 0);
    if (round !== this.round) this.round = round;
    this.follow();
  }
  draw(view) {
    this.loss.draw(view);
    this.spectrum.draw(view);
  }
  redraw() {
    if (this.seen) this.place(this.position);
  }

  /* Numbers in the legend, the slider, the sentence. */
  readout(step, round) {
    const {boosting, lora, problem, settings} = this;
    $("value-boosting").textContent = brief(boosting.losses[step]);
    $("value-lora").textContent = brief(lora.losses[step]);
    $("value-floor").textContent = brief(problem.floor(boosting.rankAfter(round)));
    $("value-lora-floor").textContent = brief(problem.floor(settings.lorarank));
    $("name-lora").textContent = `LoRA of rank ${settings.lorarank}`;
    $("name-floor").textContent = `best of rank ${boosting.rankAfter(round)}`;
    $("name-lora-floor").textContent = `best of rank ${settings.lorarank}`;
    $("newest-name").textContent = round ? `booster of round ${round}` : "no booster yet";
    $("before-name").textContent = round > 1 ? `${plural(round - 1, "round")} before` : "nothing before";
  }
  follow() {
    const {planned} = this.boosting, slider = $("round");
    slider.max = planned;
    slider.value = this.round;
    slider.setAttribute("aria-valuetext", `round ${this.round} of ${planned}`);
    $("round-text").textContent = `round ${this.round} of ${planned}`;
    $("next").disabled = this.round >= planned;
    $("said").textContent = this.sentence();
  }
  sentence() {
    const {boosting, lora, problem, round} = this, step = boosting.stepAfter(round);
    if (!round) return `Nothing is trained yet. The target has ${SIZE} singular values; press “Next round”.`;
    const rank = boosting.rankAfter(round), end = round === boosting.planned ? " All steps are done." : "";
    return `After ${plural(round, "round")}, ${step} steps, boosting has rank ${rank} and ${brief(boosting.losses[step])} ` +
      `of the loss is left; the best of rank ${rank} leaves ${brief(problem.floor(rank))}. LoRA of rank ` +
      `${lora.rank} has ${brief(lora.losses[step])} left.${end}`;
  }

  /* At rest: the address, what a screen reader hears, the table, the code. */
  rest(note = "") {
    const done = this.round === this.boosting.planned;
    writeAddress("matrix", this.round, this.settings);
    $("play").textContent = "Play";
    $("lesson").hidden = !(this.example && done);
    if (this.example && done) $("lesson-text").textContent = this.example.seen;
    const lesson = this.example && done ? ` What you saw: ${this.example.seen}` : "";
    this.tell(note + this.sentence() + lesson);
    $("loss").setAttribute("aria-label", `Residual loss over optimizer steps. ${this.sentence()}`);
    const first = [...this.boosting.spectrum(this.boosting.stepAfter(this.round))].slice(0, 4).map(brief).join(", ");
    const target = [...this.problem.values].slice(0, 4).map(brief).join(", ");
    $("spectrum").setAttribute("aria-label",
      `Spectrum after round ${this.round}. The largest singular values of the target are ${target}; of boosting ${first}.`);
    table(this);
    $("code").textContent = python(this.settings);
  }
  tell(text) { if (text) $("heard").textContent = text; }

  /* Movement */

  async go(round, milliseconds) {
    const from = this.position, to = this.boosting.stepAfter(round);
    this.morph.stop();
    const ended = await this.motion.start(milliseconds, t => this.place(mix(from, to, t)));
    if (ended) this.rest();
    return ended;
  }
  next() {
    const step = this.boosting.stepAfter(Math.floor(this.position / this.settings.kappa + 1e-9) + 1);
    return this.go(Math.ceil(step / this.settings.kappa), 650);
  }
  async play() {
    if (this.motion.running) return this.pause();
    if (this.round >= this.boosting.planned) this.place(0);
    $("play").textContent = "Pause";
    $("lesson").hidden = true;
    return this.go(this.boosting.planned, 6500 * (1 - this.position / DATA.steps));
  }
  pause() {
    this.motion.stop();
    this.place(this.boosting.stepAfter(this.round));
    this.rest();
  }
  back() {
    this.motion.stop();
    this.place(0);
    this.rest();
  }

  /* New settings: the curves move to where they belong, at the same number of steps. */
  async change(settings, {keep = true} = {}) {
    const old = this.seen;
    this.motion.stop();
    this.settings = {...this.settings, ...settings};
    if (keep) this.example = null;
    this.marks();
    this.train();
    const {planned, kappa} = this.boosting;
    const step = this.boosting.stepAfter(Math.min(planned, Math.round((keep ? this.position : 0) / kappa)));
    this.place(step);
    const goal = this.seen;
    const ended = await this.morph.start(280, t => this.draw(blend(old, goal, eased(t))));
    if (ended && !this.motion.running) this.rest();
  }
  /* An address that was typed or came from another page. */
  visit(address) {
    this.example = null;
    this.change(address.settings, {keep: false});
    this.morph.stop();
    show(this.settings);
    this.place(this.boosting.stepAfter(Math.min(address.round ?? 0, this.boosting.planned)));
  }
  async try(example) {
    this.example = example;
    $("lesson").hidden = true;
    this.change({...defaults(), ...example.set}, {keep: false});
    show(this.settings);
    $("spectrum").closest("figure").scrollIntoView({block: "nearest", behavior: STILL.matches ? "auto" : "smooth"});
    this.morph.stop();
    this.place(0);
    return this.play();
  }
  marks() {
    for (const button of document.querySelectorAll("#tries button")) {
      button.setAttribute("aria-pressed", String(this.example?.id === button.dataset.example));
    }
  }

  controls() {
    $("next").addEventListener("click", () => this.next());
    $("play").addEventListener("click", () => this.play());
    $("back").addEventListener("click", () => this.back());
    $("round").addEventListener("input", event => {
      this.motion.stop();
      this.place(this.boosting.stepAfter(+event.target.value));
      this.rest();
    });
    for (const [name, choice] of Object.entries(CHOICES)) {
      const input = $(inputOf(name));
      input.addEventListener("input", () => {
        const value = input.type === "range" ? choice.values[+input.value] : choice.values[input.selectedIndex];
        this.change({[name]: value});
        show(this.settings);
      });
    }
    for (const example of EXAMPLES) {
      const button = html("button", {type: "button"}, html("li", {}, $("tries")));
      button.dataset.example = example.id;
      html("strong", {textContent: example.title}, button);
      html("span", {textContent: example.ask}, button);
      button.addEventListener("click", () => this.try(example));
    }
    $("reset").addEventListener("click", () => {
      this.change(defaults());
      show(this.settings);
    });
    $("save").addEventListener("click", () => saveCsv(this));
    $("table").addEventListener("toggle", () => table(this));
    this.marks();
    show(this.settings);
  }
}

/* The ends of the axis, log10: everything that the two runs do, and the floors down to a factor of 4 below them. */
function domain({boosting, lora, floor}) {
  const low = Math.min(...boosting.y, ...lora.y);
  const floors = [...floor.y].filter(v => v > low - 0.6);
  const high = Math.max(0, ...boosting.y, ...lora.y);
  return [Math.max(-9, Math.min(low, ...floors)) - 0.12, high + 0.08];
}

function blend(old, goal, t) {
  const curves = {};
  for (const [name, curve] of Object.entries(goal.curves)) {
    curves[name] = {...curve, y: mixed(old.curves[name].y, curve.y, t)};
  }
  const view = {...goal, curves, top: mix(old.top, goal.top, t), position: mix(old.position, goal.position, t)};
  for (const name of ["domain", "target", "boosting", "lora"]) view[name] = mixed(old[name], goal[name], t);
  return view;
}
