"use strict";
/* "Try this": settings, the question to ask first, and what is to be seen. tests/test_playground.py holds every
   sentence to the numbers. */

const EXAMPLES = [
  {
    id: "one-by-one",
    title: "One singular value at a time",
    ask: "Which piece of the target does a round take?",
    set: {kappa: 60},
    seen: "Each round takes the largest singular value that is left. After every one of the eight rounds the loss is " +
      "within 2 % of the best that any matrix of that rank can do (Eckart and Young, 1936).",
  },
  {
    id: "lora-stops",
    title: "LoRA of rank 1 comes to a halt",
    ask: "Both train one pair at a time. Who gets further?",
    set: {kappa: 20, lr: 0.03},
    seen: "LoRA of rank 1 stops at .38 of the starting loss: a matrix of rank 1 can do no better. Boosting trains as " +
      "many numbers at a time, but adds a new rank each round. It ends below a twentieth of LoRA's loss.",
  },
  {
    id: "lora-is-faster",
    title: "Give LoRA rank 8",
    ask: "Eight rounds of rank 1, or rank 8 at once: who needs fewer steps?",
    set: {kappa: 60, lorarank: 8},
    seen: "Both come within 2 % of the best of rank 8. LoRA is there in less than a third of the steps, because it " +
      "trains all eight directions together. Boosting trains an eighth of the numbers at any moment.",
  },
  {
    id: "short-rounds",
    title: "Rounds that are too short",
    ask: "Three steps a round make 160 boosters. Is that better than eight good ones?",
    set: {kappa: 3, lr: 0.1},
    seen: "Here it is not. The first steps of a fresh Adam are as long as the learning rate allows, however little is " +
      "left to fit. Three steps end before they get shorter, and the loss stays above .2.",
  },
  {
    id: "small-steps",
    title: "Short rounds with a small rate",
    ask: "The same three steps a round. Can a tenth of the learning rate save them?",
    set: {kappa: 3, lr: 0.01},
    seen: "Yes. The loss ends below .006, a tenth of what eight long rounds reach. The price is rank: 160 boosters " +
      "fill all 32 directions. κ and learning rate must be tuned together.",
  },
  {
    id: "long-rounds",
    title: "Rounds that are too long",
    ask: "What does a booster do once it is fitted?",
    set: {kappa: 120},
    seen: "Nothing. Every round is within 2 % of its floor after half of its steps and then waits. Four rounds make rank 4, " +
      "and rank 4 leaves .118 of the loss.",
  },
  {
    id: "shrinkage",
    title: "Shrinkage of one half",
    ask: "Every booster is halved when it is merged. What does the loss do at that moment?",
    set: {kappa: 30, shrinkage: 0.5},
    seen: "It goes up at every merge, because the booster was fitted at full strength. Later rounds must take the same " +
      "singular values again, and the loss ends about three times as high as without shrinkage.",
  },
  {
    id: "flat",
    title: "A target without a first direction",
    ask: "All 32 singular values are equal. What is left to be greedy about?",
    set: {spectrum: "flat", kappa: 30},
    seen: "Every round takes one thirty-second of the loss. Sixteen rounds leave half of it. Low rank helps only where " +
      "the spectrum falls.",
  },
  {
    id: "four",
    title: "When to stop",
    ask: "Four singular values are large, the others tiny. Can you see it in the loss?",
    set: {spectrum: "four", kappa: 60},
    seen: "The loss falls for four rounds and then bends: the other four rounds together gain less than a hundredth of " +
      "the starting loss. The residual loss says when to stop; LoRA's rank must be chosen before.",
  },
  {
    id: "rank-four",
    title: "Boosters of rank 4",
    ask: "What changes when each booster may take four pieces?",
    set: {rank: 4, kappa: 60, lorarank: 4},
    seen: "Each round takes about four singular values. Eight rounds end below a thousandth of the starting loss, where " +
      "LoRA of rank 4 stops at .118. Each round trains four times as many numbers as a booster of rank 1.",
  },
];
