"use strict";
/* The matrix problem and its rounds, in float64, number for number what the library does: `matrix`, `XGBLoRA`,
   `LoRA` and `Bench`, with AdamW as in torch. A matrix is a Float64Array, row after row. */

const SIZE = DATA.size;  // rows and columns of the matrix
const BETA1 = 0.9, BETA2 = 0.999, EPSILON = 1e-8;

/* The generator of torch on the CPU (Matsumoto and Nishimura 1998, MT19937): `rand` gives torch.rand's numbers. */
class Twister {
  constructor(seed) {
    const s = this.state = new Uint32Array(624);
    s[0] = seed;
    for (let i = 1; i < 624; i++) s[i] = Math.imul(1812433253, s[i - 1] ^ (s[i - 1] >>> 30)) + i;
    this.next = 624;
  }
  draw() {
    const s = this.state;
    if (this.next === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = s[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }
  rand() { return (this.draw() & 0xffffff) / 0x1000000; }
}

/* Singular values of the target, before its directions: (SIZE,), descending. */
const SPECTRA = {
  "1/i": i => 1 / i,
  "exponential": i => Math.exp(-(i - 1) / 2),
  "four": i => (i <= 4 ? [1, 0.8, 0.6, 0.4][i - 1] : 0.02),
  "flat": () => 1,
};

/* What is to be found: the target W*, and how good an update of any rank can be. */
class Problem {
  constructor(spectrum, seed) {
    this.seed = seed;
    this.values = Float64Array.from({length: SIZE}, (_, i) => SPECTRA[spectrum](i + 1));
    const {U, V} = DATA.directions[seed];  // orthonormal columns
    this.U = U;
    this.V = V;
    const B = U.map((u, n) => Math.fround(u * Math.sqrt(this.values[n % SIZE])));
    const A = V.map((v, n) => Math.fround(v * Math.sqrt(this.values[n % SIZE])));
    this.target = new Float64Array(SIZE * SIZE);
    for (let i = 0; i < SIZE; i++) {
      for (let j = 0; j < SIZE; j++) {
        let sum = 0;
        for (let r = 0; r < SIZE; r++) sum += B[i * SIZE + r] * A[j * SIZE + r];
        this.target[i * SIZE + j] = sum;
      }
    }
    this.total = this.tail(0);
  }
  /* The least loss at a rank (Eckart and Young 1936): ½ Σ σ² of what is left out. */
  tail(rank) {
    let sum = 0;
    for (let i = rank; i < SIZE; i++) sum += this.values[i] ** 2;
    return sum / 2;
  }
  floor(rank) { return this.tail(Math.min(rank, SIZE)) / this.total; }
}

/* One trainable pair: B (SIZE, r) starts at 0, A (r, SIZE) as kaiming does; a fresh AdamW for both. */
class Pair {
  constructor(rank, seed) {
    const random = new Twister(seed), root = Math.fround(Math.sqrt(SIZE)), n = rank * SIZE;
    this.rank = rank;
    this.A = Float64Array.from({length: n}, () => Math.fround((random.rand() * 2 - 1) / root));
    this.B = new Float64Array(n);
    this.gA = new Float64Array(n);
    this.gB = new Float64Array(n);
    this.moments = [this.A, this.B].map(() => [new Float64Array(n), new Float64Array(n)]);
    this.steps = 0;
  }
  /* Add factor · B A to a matrix, in place. */
  addTo(W, factor = 1) {
    const {A, B, rank} = this;
    for (let i = 0; i < SIZE; i++) {
      for (let r = 0; r < rank; r++) {
        const b = factor * B[i * rank + r];
        if (b) for (let j = 0; j < SIZE; j++) W[i * SIZE + j] += b * A[r * SIZE + j];
      }
    }
    return W;
  }
  /* One optimizer step on ½‖rest + B A‖²; returns the loss before it. */
  step(rest, lr) {
    const {A, B, gA, gB, rank} = this, E = this.addTo(rest.slice());
    gA.fill(0);
    for (let i = 0; i < SIZE; i++) {
      for (let r = 0; r < rank; r++) {
        const b = B[i * rank + r];
        let sum = 0;
        for (let j = 0; j < SIZE; j++) {
          const e = E[i * SIZE + j];
          sum += e * A[r * SIZE + j];
          gA[r * SIZE + j] += b * e;
        }
        gB[i * rank + r] = sum;
      }
    }
    this.steps++;
    const stride = lr / (1 - BETA1 ** this.steps), root = Math.sqrt(1 - BETA2 ** this.steps);
    [[A, gA], [B, gB]].forEach(([P, G], which) => {
      const [m, v] = this.moments[which];
      for (let n = 0; n < P.length; n++) {
        m[n] += (1 - BETA1) * (G[n] - m[n]);
        v[n] = BETA2 * v[n] + (1 - BETA2) * G[n] * G[n];
        P[n] -= stride * m[n] / (Math.sqrt(v[n]) / root + EPSILON);
      }
    });
    return half(E);
  }
}

function half(E) {
  let sum = 0;
  for (const e of E) sum += e * e;
  return sum / 2;
}

/* A run of all its steps, in rounds of κ. `states[s]` is the accumulated update after s steps, `losses[s]` its loss
   over that of the untrained matrix, which is 0. */
class Run {
  constructor(problem, {rank, kappa, lr, shrinkage = 1, steps}) {
    Object.assign(this, {problem, rank, kappa, lr, shrinkage, steps});
    this.W = new Float64Array(SIZE * SIZE);  // what is merged
    this.states = [this.W.slice()];
    this.losses = [];
    this.spectra = [];
    while (this.losses.length < steps) this.round();
    this.losses.push(half(this.residual(this.steps)) / problem.total);
  }
  round() {
    this.begin(Math.floor(this.losses.length / this.kappa));
    const rest = this.W.map((w, n) => w - this.problem.target[n]);
    for (let i = 0; i < this.kappa && this.losses.length < this.steps; i++) {
      this.losses.push(this.pair.step(rest, this.lr) / this.problem.total);
      this.states.push(this.pair.addTo(this.W.slice()));
    }
    this.end();
    this.states[this.states.length - 1] = this.now();
  }
  residual(step) { return this.states[step].map((w, n) => w - this.problem.target[n]); }
  get planned() { return Math.ceil(this.steps / this.kappa); }
  stepAfter(round) { return Math.min(round * this.kappa, this.steps); }
  spectrum(step) { return this.spectra[step] ??= singularValues(this.states[step]); }
}

/* Fresh boosters, each merged after κ steps. */
class Boosting extends Run {
  begin(round) { this.pair = new Pair(this.rank, DATA.seeds[this.problem.seed][round]); }
  end() { this.pair.addTo(this.W, this.shrinkage); }
  now() { return this.W.slice(); }
  rankAfter(round) { return Math.min(SIZE, round * this.rank); }
}

/* One pair from the first step to the last; a round is only a stretch of κ steps. */
class LoRA extends Run {
  begin() { this.pair ??= new Pair(this.rank, DATA.seeds[this.problem.seed][0]); }
  end() {}
  now() { return this.pair.addTo(this.W.slice()); }
  rankAfter(round) { return round ? this.rank : 0; }
}

/* Singular values of a SIZE × SIZE matrix, descending, by turning pairs of rows until all are orthogonal
   (one-sided Jacobi: Hestenes 1958). */
function singularValues(W) {
  const M = W.slice(), n = SIZE;
  const scale = Math.max(...M.map(Math.abs));
  if (!(scale > 0)) return new Float64Array(n);
  for (let sweep = 0, turned = true; turned && sweep < 30; sweep++) {
    turned = false;
    for (let p = 0; p < n - 1; p++) {
      for (let q = p + 1; q < n; q++) {
        let a = 0, b = 0, c = 0;
        for (let j = 0; j < n; j++) {
          const x = M[p * n + j], y = M[q * n + j];
          a += x * x;
          b += y * y;
          c += x * y;
        }
        if (Math.abs(c) <= 1e-14 * Math.sqrt(a * b) || Math.abs(c) < 1e-30 * scale * scale) continue;
        turned = true;
        const zeta = (b - a) / (2 * c);
        const t = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const cos = 1 / Math.sqrt(1 + t * t), sin = cos * t;
        for (let j = 0; j < n; j++) {
          const x = M[p * n + j], y = M[q * n + j];
          M[p * n + j] = cos * x - sin * y;
          M[q * n + j] = sin * x + cos * y;
        }
      }
    }
  }
  const norms = Float64Array.from({length: n}, (_, p) => Math.sqrt(2 * half(M.subarray(p * n, p * n + n))));
  return norms.sort().reverse();
}
