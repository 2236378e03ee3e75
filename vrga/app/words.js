// The answers' words: each shows where it looked, while it is pointed at or chosen.

function makeWords(number) {
  const box = $("words-" + number), run = state.page && state.page.runs[number];
  box.textContent = "";
  box.classList.toggle("speaking", false);
  if (!run) {
    const text = state.texts[number];
    box.textContent = text === null ? "" : text;
    box.classList.toggle("speaking", state.speaking && text !== null && (number === 1 || state.texts[1] === null));
    return;
  }
  run.spans = run.tokens.map((text, i) => {
    const last = i === run.tokens.length - 1;
    // The token that ends an answer is none of its words.
    const ends = last && !state.texts[number].endsWith(text.trim() || "\u0000");
    const shown = ends ? "\u25a0" : text === "" ? "\u00b7" : text.replaceAll("\n", "\u21b5\n");
    const span = make(box, "span", {class: "word", role: "option", "aria-selected": "false",
                                    id: `vrga-word-${number}-${i}`, "data-token": i}, shown);
    span.classList.toggle("last", last);
    if (ends) span.title = text;
    return span;
  });
}

function underline(run) {
  const channel = run.channels.get(state.channel);
  const values = run.tokens.map((_, i) => {
    const step = run.stepOf.get(i);
    return channel && step !== undefined ? share(run, channel, "image", step) : 0;
  });
  const top = Math.max(1e-9, ...values);
  run.spans.forEach((span, i) => {
    const strength = Math.round(100 * values[i] / top);
    span.style.borderBottomColor = `color-mix(in srgb, var(--vrga-image) ${strength}%, transparent)`;
  });
}

function select(number, token) {
  // The other answer follows where it says the same there.
  if (!state.page) return;
  const other = state.page.runs[1 - number], own = state.page.runs[number];
  selectIn(number, token);
  if (token === null) selectIn(1 - number, state.pinned[1 - number]);
  else if (other.tokens[token] === own.tokens[token]) selectIn(1 - number, token);
  else selectIn(1 - number, null);
}

function selectIn(number, token) {
  const run = state.page.runs[number];
  if (state.token[number] === token) return;
  state.token[number] = token;
  run.spans.forEach((span, i) => {
    span.classList.toggle("chosen", i === token);
    span.setAttribute("aria-selected", String(i === token));
  });
  drawPictures(number);
}

[0, 1].forEach((number) => {
  const box = $("words-" + number);
  const tokenOf = (event) => event.target.dataset.token === undefined ? null : Number(event.target.dataset.token);
  box.addEventListener("pointerover", (event) => {
    if (tokenOf(event) !== null) select(number, tokenOf(event));
  });
  box.addEventListener("pointerleave", () => select(number, state.pinned[number]));
  box.addEventListener("click", (event) => {
    const token = tokenOf(event);
    state.pinned[number] = token === state.pinned[number] ? null : token;
    select(number, token);
  });
  box.addEventListener("keydown", (event) => {
    const run = state.page && state.page.runs[number];
    if (!run) return;
    const now = state.token[number] === null ? -1 : state.token[number], end = run.tokens.length - 1;
    const next = {ArrowRight: Math.min(now + 1, end), ArrowLeft: Math.max(now - 1, 0), Home: 0,
                  End: end, Escape: null}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    state.pinned[number] = next;
    select(number, next);
    if (next !== null) run.spans[next].scrollIntoView({block: "nearest"});
  });
});
