"use strict";
/* Small helpers for SVG, numbers in words, and movement. */

const STILL = matchMedia("(prefers-reduced-motion: reduce)");

function $(id) { return document.getElementById(id); }

function node(tag, attributes = {}, parent = null, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(made, attributes);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

function html(tag, properties = {}, parent = null) {
  const made = Object.assign(document.createElement(tag), properties);
  if (parent) parent.append(made);
  return made;
}

/* Three digits are enough to read: 0.0544, 0.38, 1, 2.6 × 10⁻⁵. */
function brief(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-4) {
    const power = Math.floor(Math.log10(Math.abs(value)) + 1e-12);
    return `${+(value / 10 ** power).toPrecision(2)} × 10${raised(power)}`;
  }
  return String(+value.toPrecision(3));
}

function raised(power) {
  return String(power).replace(/[-\d]/g, c => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
}

/* The label of a tick on a logarithmic axis. */
function power(exponent) {
  return exponent >= -3 && exponent <= 3 ? String(+(10 ** exponent).toPrecision(1)) : `10${raised(exponent)}`;
}

/* Ticks at 1, 2 or 5 times a power of ten, about `count` of them from 0 to `top`. */
function ticks(top, count) {
  const rough = top / count, unit = 10 ** Math.floor(Math.log10(rough));
  const stride = [1, 2, 5, 10].map(m => m * unit).find(s => s >= rough * 0.99);
  return Array.from({length: Math.floor(top / stride + 1e-9) + 1}, (_, i) => +(i * stride).toPrecision(6));
}

function plural(count, word) { return `${count} ${word}${count === 1 ? "" : "s"}`; }

/* Calls `frame(t)` with t from 0 to 1 over so many milliseconds; the promise is true if it came to its end.
   A reader who asked for less movement gets the end at once. */
class Motion {
  constructor() { this.stop(); }
  stop() {
    cancelAnimationFrame(this.request);
    if (this.finish) this.finish(false);
    this.finish = null;
  }
  start(milliseconds, frame) {
    this.stop();
    if (STILL.matches || milliseconds <= 0 || document.hidden) {
      frame(1);
      return Promise.resolve(true);
    }
    return new Promise(finish => {
      this.finish = finish;
      let began = null;
      const tick = now => {
        began ??= now;
        const t = Math.min(1, (now - began) / milliseconds);
        frame(t);
        if (t < 1) this.request = requestAnimationFrame(tick);
        else {
          this.finish = null;
          finish(true);
        }
      };
      this.request = requestAnimationFrame(tick);
    });
  }
  get running() { return this.finish !== null; }
}

function eased(t) { return t * t * (3 - 2 * t); }

function mix(a, b, t) { return a + (b - a) * t; }

/* Between two lists of one length; of different lengths the second is taken. */
function mixed(a, b, t) {
  return a && a.length === b.length && t < 1 ? Float64Array.from(b, (value, i) => mix(a[i], value, t)) : b;
}
