// The answers' tokens, and choosing among them: by pointer, finger, keys and buttons.

function makeText(run) {
  const box = $("text-" + run.number), differs = new Set(run.differs);
  const back = (i) => run.back.some(([first, last]) => i >= first && i <= last);
  run.spans = run.tokens.map((text, i) => {
    const span = element(box, "span", {class: "token", role: "option", id: `t${run.number}-${i}`,
                                       "aria-selected": "false"},
                         text === "" ? "\u00b7" : text.replaceAll("\n", "\u21b5\n"));
    span.classList.toggle("back", back(i));
    span.classList.toggle("differs", differs.has(i));
    span.classList.toggle("unmeasured", !run.stepOf.has(i));
    span.dataset.token = i;
    return span;
  });
  const choose = (event) => {
    const token = event.target.dataset.token;
    if (token !== undefined) select(run.number, Number(token), run);
  };
  box.addEventListener("pointerover", choose);
  box.addEventListener("click", choose);
}

function underline(run) {
  const channel = run.channels.get(state.channel);
  let top = 1e-9;
  const values = run.tokens.map((_, i) => {
    const step = run.stepOf.get(i);
    const value = channel && step !== undefined ? share(run, channel, "image", step) : 0;
    top = Math.max(top, value);
    return value;
  });
  run.spans.forEach((span, i) => {
    const strength = Math.round(100 * values[i] / top);
    span.style.borderBottomColor = `color-mix(in srgb, var(--image) ${strength}%, transparent)`;
  });
}

function reveal(run, span) {
  // An answer that scrolls in its own box shows the chosen token; the window stays.
  const box = $("text-" + run.number);
  if (box.scrollHeight <= box.clientHeight) return;
  const over = span.offsetTop - 8, below = span.offsetTop + span.offsetHeight + 8 - box.clientHeight;
  if (box.scrollTop > over) box.scrollTop = over;
  if (box.scrollTop < below) box.scrollTop = below;
}

function select(number, token, still) {
  // `still`: a run whose box stays as it is, under the pointer.
  state.run = number;
  state.token = Math.min(Math.max(token, 0), runs[number].tokens.length - 1);
  for (const run of runs) {
    const span = run.spans[tokenIn(run)];
    if (run.chosen) {
      run.chosen.classList.remove("chosen");
      run.chosen.setAttribute("aria-selected", "false");
    }
    run.chosen = span;
    if (span) {
      span.classList.add("chosen");
      span.setAttribute("aria-selected", "true");
      $("text-" + run.number).setAttribute("aria-activedescendant", span.id);
      if (run !== still) reveal(run, span);
    }
    drawPictures(run);
  }
  drawTrends.move();
  const own = runs[number], doubt = own.doubts?.[own.stepOf.get(state.token)];
  $("where").textContent = `token ${state.token + 1} of ${own.tokens.length}${doubt ? `, ${doubt}` : ""}`;
}

function show() {
  state.channel = $("channel").value;
  $("differ").textContent = state.channel === "visual heads" ? page.differ : "";
  runs.forEach(underline);
  drawTrends();
  select(state.run, state.token);
}

function redraw() {
  runs.forEach(arrange);
  runs.forEach(drawPictures);
}

function follow() {
  // Arrow keys may lead to tokens out of sight; hovered ones are in sight.
  const box = runs[state.run].chosen.getBoundingClientRect(), viewer = $("viewer").getBoundingClientRect();
  const above = viewer.right < box.left ? 0 : viewer.bottom; // beside the answer or above it
  if (box.top < above) window.scrollBy(0, box.top - above - 8);
  if (box.bottom > window.innerHeight) window.scrollBy(0, box.bottom - window.innerHeight + 8);
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("select, input") || event.altKey || event.ctrlKey || event.metaKey) return;
  const text = event.target.closest(".text");
  // Elsewhere these two scroll the page.
  if (["Home", "End"].includes(event.key) && !text) return;
  const own = text ? Number(text.id.slice(5)) : state.run;
  const now = own === state.run ? state.token : Math.max(tokenIn(runs[own]), 0);
  const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: runs[own].tokens.length - 1}[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(own, to);
  follow();
});
$("previous").addEventListener("click", () => select(state.run, state.token - 1));
$("next").addEventListener("click", () => select(state.run, state.token + 1));
$("channel").addEventListener("change", show);
for (const id of ["kind", "opacity", "original"]) {
  if ($(id)) $(id).addEventListener("input", () => runs.forEach(drawPictures));
}

function chosen(name) {
  // Whether a single head is a visual one, and of which run.
  const own = runs.filter((run) => run.channels.get(name)?.single);
  const visual = own.filter((run) => {
    const [layer, head] = run.channels.get(name).single;
    return run.heads?.visual[layer][head];
  });
  if (!visual.length) return "";
  return visual.length === own.length ? " (visual)" : ` (visual in ${visual[0].name})`;
}

const names = [...new Set(runs.flatMap((run) => [...run.channels.keys()]))];
for (const name of names) element($("channel"), "option", {value: name}, name + chosen(name));
Promise.all(images.map((image) => image.decode())).then(() => {
  for (const run of runs) { makePictures(run); arrange(run); makeText(run); }
  for (const number of page.atlases) makeAtlas(runs[number]);
  makeLegend();
  state.token = page.opening;
  show();
  window.addEventListener("resize", redraw);
  document.body.dataset.ready = "yes";
});
