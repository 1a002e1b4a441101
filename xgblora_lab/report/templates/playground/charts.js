"use strict";
/* Two charts in SVG, drawn anew for every frame of a movement: a loss over steps, and a spectrum. */

const LOWEST = -14;  // log10 of what stands for a loss of 0

function log10(values) {
  return Float64Array.from(values, v => (v > 0 && Number.isFinite(v) ? Math.max(LOWEST, Math.log10(v)) : LOWEST));
}

class Chart {
  constructor(svg, draw) {
    this.svg = svg;
    this.view = null;
    this.frame = node("g", {class: "axes"}, svg);
    const clip = `${svg.id}-clip`;
    this.clip = node("rect", {}, node("clipPath", {id: clip}, node("defs", {}, svg)));
    this.marks = node("g", {"clip-path": `url(#${clip})`}, svg);
    new ResizeObserver(() => this.measure()).observe(svg);
    this.measure();
  }
  measure() {
    const {width, height} = this.svg.getBoundingClientRect();
    if (!width || (width === this.width && height === this.height)) return;
    Object.assign(this, {width, height, left: 48, right: width - 14, top: 12, bottom: height - 42});
    set(this.svg, {viewBox: `0 0 ${width} ${height}`});
    if (this.view) this.draw(this.view);
  }
  axes(xticks, x, yticks, y, xlabel) {
    this.frame.replaceChildren();
    for (const [value, text] of yticks) {
      const at = y(value);
      if (at < this.top - 1 || at > this.bottom + 1) continue;
      node("line", {class: "grid", x1: this.left, x2: this.right, y1: at, y2: at}, this.frame);
      node("text", {class: "tick", x: this.left - 8, y: at + 4, "text-anchor": "end"}, this.frame, text);
    }
    for (const [value, text] of xticks) {
      node("text", {class: "tick", x: x(value), y: this.bottom + 18, "text-anchor": "middle"}, this.frame, text);
    }
    node("line", {class: "base", x1: this.left, x2: this.right, y1: this.bottom, y2: this.bottom}, this.frame);
    const label = {class: "label", x: (this.left + this.right) / 2, y: this.height - 6, "text-anchor": "middle"};
    node("text", label, this.frame, xlabel);
    const {left, right, top, bottom} = this;
    set(this.clip, {x: left, y: top - 8, width: right - left + 8, height: bottom - top + 8});
  }
}

/* A view holds `position` (in steps), `domain` (log10 of the axis' ends) and `curves`: name → {y, stride}, where y is
   log10 of the loss at every `stride` steps, or a stair with `stairs: true`. `ends`: steps at which rounds end. */
class LossChart extends Chart {
  constructor(svg, steps, xlabel) {
    super(svg);
    Object.assign(this, {steps, xlabel, paths: {}});
    this.ends = node("path", {class: "ends boosting"}, this.marks);
    this.dots = {};
  }
  draw(view) {
    this.view = view;
    if (!this.width) return;
    const [low, high] = view.domain, {left, right, top, bottom} = this;
    const x = s => left + (right - left) * s / this.steps;
    const y = v => top + (bottom - top) * (high - v) / (high - low);
    const stride = Math.max(1, Math.ceil((high - low) / 6));
    const powers = [];
    for (let n = Math.ceil(low - 0.01); n <= high + 0.01; n++) if (n % stride === 0) powers.push([n, power(n)]);
    if (powers.length < 3) {
      for (const part of [2, 5]) for (let n = Math.floor(low); n <= high; n++) {
        const at = n + Math.log10(part);
        if (at > low + 0.02 && at < high) powers.push([at, String(+(10 ** at).toPrecision(1))]);
      }
    }
    const parts = [4, 5, 3].find(n => this.steps % n === 0) ?? 1; // whole steps
    const xs = Array.from({length: parts + 1}, (_, i) => i * this.steps / parts).map(s => [s, String(s)]);
    this.axes(xs, x, powers, y, this.xlabel);
    for (const [name, curve] of Object.entries(view.curves)) {
      this.paths[name] ??= node("path", {class: `line ${name}`}, this.marks);
      const path = curve.stairs ? stairs(curve.y, view, x, y) : line(curve, view.position, x, y);
      set(this.paths[name], {d: path});
      if (curve.stairs) continue;
      this.dots[name] ??= node("circle", {class: `dot ${name}`, r: 6}, this.marks);
      const i = view.position / curve.stride, n = Math.floor(i);
      const value = mix(curve.y[n], curve.y[Math.min(n + 1, curve.y.length - 1)], i - n);
      set(this.dots[name], {cx: x(view.position), cy: y(value)});
    }
    const main = view.curves.boosting, marks = view.ends.length > 60 ? [] : view.ends;
    set(this.ends, {d: marks.filter(s => s <= view.position)
      .map(s => `M${x(s).toFixed(1)} ${y(main.y[s / main.stride]).toFixed(1)}h.01`).join("")});
    this.marks.append(this.ends, ...Object.values(this.dots));
  }
}

function line({y: values, stride}, position, x, y) {
  const last = position / stride, whole = Math.floor(last);
  let path = "";
  for (let i = 0; i <= whole; i++) path += `${i ? "L" : "M"}${x(i * stride).toFixed(1)} ${y(values[i]).toFixed(1)}`;
  if (last > whole) {
    const part = mix(values[whole], values[whole + 1], last - whole);
    path += `L${x(position).toFixed(1)} ${y(part).toFixed(1)}`;
  }
  return path;
}

/* One level a round; a level that stays is one line. */
function stairs(levels, {ends}, x, y) {
  let path = "";
  for (let t = 0; t < ends.length; t++) {
    const at = y(levels[t]).toFixed(1);
    path += `${t ? "L" : "M"}${x(t ? ends[t - 1] : 0).toFixed(1)} ${at}L${x(ends[t]).toFixed(1)} ${at}`;
  }
  return path;
}

/* A view holds `top`, and for the target, boosting and LoRA the singular values in descending order. */
class SpectrumChart extends Chart {
  constructor(svg, count) {
    super(svg);
    this.count = count;
    this.bars = Array.from({length: count}, () => ({
      target: node("rect", {class: "target", rx: 2}, this.marks),
      boosting: node("rect", {class: "bar boosting", rx: 1.5}, this.marks),
      lora: node("path", {class: "tick-mark lora"}, this.marks),
    }));
  }
  draw(view) {
    this.view = view;
    if (!this.width) return;
    const {left, right, top, bottom, count} = this, slot = (right - left) / count;
    const x = i => left + slot * (i - 0.5);
    const y = v => bottom - (bottom - top) * v / view.top;
    const every = this.width < 420 && count > 8 ? 3 : count > 8 ? 2 : 1;
    const xs = Array.from({length: count}, (_, i) => [i + 1, String(i + 1)]).filter((_, i) => i % every === 0);
    this.axes(xs, x, ticks(view.top, 4).map(v => [v, String(v)]), y, "singular value, in order of size");
    this.bars.forEach((bar, n) => {
      const middle = x(n + 1), outer = slot * 0.78, inner = slot * 0.5;
      box(bar.target, middle, outer, y(view.target[n] || 0), bottom);
      box(bar.boosting, middle, inner, y(view.boosting[n] || 0), bottom);
      const value = view.lora[n] || 0, at = y(value).toFixed(1), reach = slot * 0.44;
      const shown = value > 0.004 * view.top;
      set(bar.lora, {d: shown ? `M${(middle - reach).toFixed(1)} ${at}h${(2 * reach).toFixed(1)}` : ""});
    });
  }
}

function box(rect, middle, width, y, bottom) {
  set(rect, {x: (middle - width / 2).toFixed(1), width: width.toFixed(1)});
  set(rect, {y: y.toFixed(1), height: Math.max(0, bottom - y).toFixed(1)});
}
