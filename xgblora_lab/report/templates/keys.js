const all = [...document.querySelectorAll(".slide")];
addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, button")) return;
  const by = {ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1}[event.key];
  if (!by) return;
  event.preventDefault();
  const now = all.findLastIndex(slide => slide.getBoundingClientRect().top < 10);
  all[Math.min(all.length - 1, Math.max(0, now + by))].scrollIntoView();
});
