"use strict";
/* What the learner may choose, and the address that holds it: `#round=7&kappa=30` is a state to send to others. */

const CHOICES = {
  spectrum: {values: Object.keys(SPECTRA), start: "1/i"},
  seed: {values: Object.keys(DATA.seeds).map(Number), start: 0},
  rank: {values: [1, 2, 3, 4, 8], start: 1},
  kappa: {values: [1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 480], start: 60},
  lr: {values: [0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5], start: 0.05},
  shrinkage: {values: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], start: 1},
  lorarank: {values: [1, 2, 4, 8, 16, 32], start: 1},
  loralr: {values: [0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5], start: 0.05},
};
const TABS = ["matrix", "model"];

function defaults() {
  return Object.fromEntries(Object.entries(CHOICES).map(([name, choice]) => [name, choice.start]));
}

/* The nearest value on offer. */
function nearest(values, wanted) {
  return values.reduce((best, v) => (Math.abs(v - wanted) < Math.abs(best - wanted) ? v : best));
}

/* Read an address's part behind #: the settings, the round, the tab, and a sentence about what it asked in vain. */
function readAddress(hash) {
  const asked = new URLSearchParams(hash.replace(/^#/, "")), settings = defaults(), notes = [];
  const found = {settings, tab: "matrix", module: 0, round: null, given: [...asked].length > 0};
  for (const [name, text] of asked) {
    const number = text.trim() === "" ? NaN : Number(text), choice = CHOICES[name];
    if (name === "tab" && TABS.includes(text)) found.tab = text;
    else if ((name === "round" || name === "module") && Number.isInteger(number) && number >= 0) found[name] = number;
    else if (choice && choice.values.includes(typeof choice.start === "number" ? number : text)) {
      settings[name] = typeof choice.start === "number" ? number : text;
    } else if (choice && typeof choice.start === "number" && Number.isFinite(number)) {
      settings[name] = nearest(choice.values, number);
      notes.push(`${name}=${text} is not on offer; you see the nearest, ${settings[name]}.`);
    } else if (choice) {
      notes.push(`${name}=${text} is not on offer; choose one of ${choice.values.join(", ")}.`);
    } else notes.push(`The address asks for ${name}=${text}, which this page cannot set.`);
  }
  found.note = notes.join(" ");
  return found;
}

/* Settings that are the page's own stay out of the address. */
function writeAddress(tab, round, more) {
  const parts = tab === "matrix" ? [] : [["tab", tab]];
  parts.push(["round", round]);
  for (const [name, value] of Object.entries(more)) {
    if (!CHOICES[name] || CHOICES[name].start !== value) parts.push([name, value]);
  }
  const hash = "#" + parts.map(([name, value]) => `${name}=${String(value).replace(/&/g, "%26")}`).join("&");
  if (hash !== location.hash) history.replaceState(null, "", hash);
}
