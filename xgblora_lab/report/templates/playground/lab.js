"use strict";
/* The second tab: a recorded run of the lab model, round by round and map by map. */

class ModelTab {
  constructor() {
    const run = this.run = DATA.run, kappa = run.steps_per_round;
    this.planned = run.boosting.spectra.length;
    this.round = 0;
    this.module = 0;
    this.motion = new Motion();
    this.loss = new LossChart($("model-loss"), this.planned * kappa, "optimizer steps");
    this.states = {boosting: staged(run.boosting, run.modules.length), lora: staged(run.lora, run.modules.length)};
    const largest = Object.values(this.states).flat(2).map(values => values[0]);
    this.top = 1.08 * Math.max(...run.truth.flat(), ...largest);
    this.spectrum = new SpectrumChart($("map-spectrum"), SHOWN_HERE);
    const curves = {
      lora: {y: log10(run.lora.loss), stride: kappa},
      boosting: {y: log10(run.boosting.loss), stride: kappa},
    };
    const low = Math.min(...curves.lora.y, ...curves.boosting.y);
    const ends = Array.from({length: this.planned}, (_, t) => (t + 1) * kappa);
    this.view = {curves, ends, domain: [low - 0.05, 0.04]};
    this.maps = run.modules.map((name, m) => this.map(name, m));
    this.controls();
    this.place(0);
  }

  /* A small picture of a map's spectrum that is a radio button, so that one key stop and the arrows reach all. */
  map(name, m) {
    const label = html("label", {className: "map"}, $("maps"));
    const input = html("input", {type: "radio", name: "map", value: m, checked: m === 0}, label);
    input.addEventListener("change", () => {
      this.module = m;
      this.place(this.position);
      this.rest();
    });
    const text = html("span", {className: "map-name", textContent: spoken(name)}, label);
    const svg = node("svg", {viewBox: "0 0 100 46", "aria-hidden": "true", preserveAspectRatio: "none"}, label);
    const bars = Array.from({length: SHOWN_HERE}, () => ({
      target: node("rect", {class: "target", "vector-effect": "non-scaling-stroke"}, svg),
      boosting: node("rect", {class: "bar boosting"}, svg),
    }));
    html("span", {className: "map-note"}, label);
    return {label, text, bars, input};
  }

  place(position) {
    this.position = position;
    const {run, states, module} = this, kappa = run.steps_per_round;
    const before = Math.floor(position + 1e-9), t = position - before, after = Math.min(before + 1, this.planned);
    this.round = before;
    const between = (name, m) => mixed(states[name][before][m], states[name][after][m], t || 1e-9);
    const now = m => (t < 1e-6 ? states.boosting[before][m] : between("boosting", m));
    this.loss.draw({...this.view, position: position * kappa});
    this.spectrum.draw({
      top: this.top, target: run.truth[module] || [], boosting: now(module),
      lora: t < 1e-6 ? states.lora[before][module] : between("lora", module),
    });
    const trained = run.boosting.spectra[(t < 1e-6 ? before : after) - 1] || {};
    this.maps.forEach(({label, bars}, m) => {
      const values = now(m), planted = run.truth[m] || [];
      label.classList.toggle("trained", String(m) in trained);
      label.lastChild.textContent = String(m) in trained ? "new booster" : "";
      bars.forEach((bar, n) => {
        const middle = 100 / SHOWN_HERE * (n + 0.5), y = v => 45 - 43 * Math.min(1, v / this.top);
        box(bar.target, middle, 8.4, planted[n] ? y(planted[n]) : 45, 45);
        box(bar.boosting, middle, 6, y(values[n] || 0), 45);
      });
    });
    this.follow();
  }
  follow() {
    const {run, round, planned} = this, slider = $("model-round"), text = `round ${round} of ${planned}`;
    slider.value = round;
    slider.setAttribute("aria-valuetext", text);
    $("model-round-text").textContent = text;
    $("model-next").disabled = round >= planned;
    $("model-value-boosting").textContent = brief(run.boosting.loss[round]);
    $("model-value-lora").textContent = brief(run.lora.loss[round]);
    $("map-name").textContent = spoken(run.modules[this.module]) + (run.truth[this.module].length ? ", changed in the teacher" : ", not changed");
    $("model-said").textContent = this.sentence();
  }
  sentence() {
    const {run, round} = this;
    if (!round) return "Nothing is trained yet. Three of the pictures show in outline what the teacher was given.";
    const trained = Object.keys(run.boosting.spectra[round - 1]).map(m => spoken(run.modules[m]));
    return `Round ${round} gave a booster to ${trained.join("; ")}. After ${round * run.steps_per_round} steps ` +
      `${brief(run.boosting.loss[round])} of the loss is left; LoRA of rank ${run.lora.rank} has ` +
      `${brief(run.lora.loss[round])} left.`;
  }
  rest() {
    const {run, round, module} = this;
    writeAddress("model", round, {module});
    $("model-play").textContent = "Play";
    const values = [...this.states.boosting[round][module]].filter(v => v > 0);
    const own = `${spoken(run.modules[module])}: ${plural(values.length, "singular value")}, ` +
      (values.length ? `the largest ${brief(values[0])}.` : "none yet.");
    const planted = run.truth[module].length ? ` Planted: ${run.truth[module].map(brief).join(", ")}.` : " Nothing is planted here.";
    $("heard").textContent = `${this.sentence()} ${own}${planted}`;
    $("map-spectrum").setAttribute("aria-label", own + planted);
    $("model-loss").setAttribute("aria-label", `Loss over optimizer steps. ${this.sentence()}`);
    this.maps.forEach(({input}, m) => { input.checked = m === module; });
  }
  visit({round, module}) {
    this.module = Math.min(module, this.run.modules.length - 1);
    this.place(Math.min(round ?? 0, this.planned));
  }

  async go(round, milliseconds) {
    const from = this.position;
    const ended = await this.motion.start(milliseconds, t => this.place(mix(from, round, t)));
    if (ended) this.rest();
  }
  play() {
    if (this.motion.running) {
      this.motion.stop();
      this.place(this.round);
      return this.rest();
    }
    if (this.round >= this.planned) this.place(0);
    $("model-play").textContent = "Pause";
    return this.go(this.planned, 450 * (this.planned - this.position));
  }
  controls() {
    $("model-next").addEventListener("click", () => this.go(Math.min(this.planned, this.round + 1), 500));
    $("model-play").addEventListener("click", () => this.play());
    const jump = round => {
      this.motion.stop();
      this.place(round);
      this.rest();
    };
    $("model-back").addEventListener("click", () => jump(0));
    $("model-round").addEventListener("input", event => jump(+event.target.value));
  }
}

const SHOWN_HERE = 8;  // singular values of a map

/* The spectra after every round from 0, for every map: a map that a round left out keeps what it had. */
function staged(method, count) {
  const padded = values => Float64Array.from({length: SHOWN_HERE}, (_, i) => values[i] || 0);
  let now = Array.from({length: count}, () => padded([]));
  const stages = [now];
  for (const round of method.spectra) {
    now = now.map((values, m) => (m in round ? padded(round[m]) : values));
    stages.push(now);
  }
  return stages;
}

/* "2.mlp.down_proj" → "layer 2, down". */
function spoken(module) {
  const [layer, , part] = module.split(".");
  return `layer ${layer}, ${{o_proj: "attention out", down_proj: "MLP down"}[part] || part}`;
}
