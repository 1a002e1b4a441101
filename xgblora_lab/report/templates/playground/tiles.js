"use strict";
/* The target as a sum of pictures: earlier rounds, the newest booster, and what is left. Rows and columns stand in the
   order of the first singular direction, which makes its pattern visible. */

class Tiles {
  constructor(names) {
    this.canvases = Object.fromEntries(names.map(name => [name, $(`tile-${name}`)]));
    for (const canvas of Object.values(this.canvases)) canvas.width = canvas.height = SIZE;
  }
  sort(problem) {
    const order = M => Array.from({length: SIZE}, (_, i) => i).sort((a, b) => M[a * SIZE] - M[b * SIZE]);
    this.rows = order(problem.U);
    this.columns = order(problem.V);
    this.scale = 0.6 * Math.max(...problem.target.map(Math.abs));
  }
  draw(pictures) {
    const ends = ["--cold", "--zero", "--warm"].map(name => rgb(name));
    for (const [name, W] of Object.entries(pictures)) {
      const context = this.canvases[name].getContext("2d"), image = context.createImageData(SIZE, SIZE);
      for (let i = 0; i < SIZE; i++) {
        for (let j = 0; j < SIZE; j++) {
          const value = W[this.rows[i] * SIZE + this.columns[j]] / this.scale;
          const t = Math.min(1, Math.abs(value)), end = ends[value < 0 ? 0 : 2], at = 4 * (i * SIZE + j);
          for (let c = 0; c < 3; c++) image.data[at + c] = mix(ends[1][c], end[c], t);
          image.data[at + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    }
  }
}

/* A colour of the style sheet as three numbers. */
function rgb(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16));
}
