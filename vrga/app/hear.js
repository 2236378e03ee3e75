// What the server tells, one thing after the other, and what the tools do.

function fillChannels() {
  const box = $("channel"), names = new Map();
  for (const run of state.page.runs) {
    for (const channel of run.channels.values()) if (channel.mapped) names.set(channel.name, channel);
  }
  box.textContent = "";
  const groups = [["groups of heads", []], ["single layers", []], ["single heads", []]];
  for (const [name, channel] of names) {
    groups[channel.single ? 2 : /^layer \d+$/.test(name) ? 1 : 0][1].push(name);
  }
  for (const [label, members] of groups) {
    if (!members.length) continue;
    const group = make(box, "optgroup", {label});
    for (const name of members) make(group, "option", {value: name}, name);
  }
  if (!names.has(state.channel)) state.channel = names.keys().next().value || "";
  box.value = state.channel;
  box.disabled = names.size === 0;
}

function forgetAnswer() {
  Object.assign(state, {page: null, token: [null, null], pinned: [null, null], texts: [null, null]});
  $("channel").disabled = true;
  $("foot").textContent = "";
  ["without VRGA", "with VRGA"].forEach((title, number) => { $("title-" + number).textContent = title; });
}

function note(kind, text) {
  const box = $("note");
  box.className = "note " + kind;
  box.setAttribute("role", kind === "error" ? "alert" : "status");
  box.textContent = text;
}

let turn = null;  // until something is heard of the question

function waitForTurn() {
  clearTimeout(turn);
  turn = setTimeout(() => note("", "One question at a time: yours is in the queue."), 600);
}

const HEARD = {
  async pictures({images}) {
    forgetAnswer();
    state.pictures = await loaded(images);
    state.painted = [];
    for (const name of ["paint", "erase"]) $(name).disabled = images.length === 0;
    $("clear").disabled = true;
    if (images.length === 0 && state.brush) choose(state.brush);
    note("", "");
    [0, 1].forEach(makeWords);
    layOut();
  },
  async speaking({texts}) {
    if (!state.speaking) {
      forgetAnswer();
      state.speaking = true;
      note("", "");
      layOut();
      const top = element.getBoundingClientRect().top;
      if (top > innerHeight * 0.6) element.scrollIntoView({behavior: "smooth", block: "start"});
    }
    state.texts = texts;
    [0, 1].forEach(makeWords);
  },
  async answered({page, texts, titles, notes, warning, painted, closer}) {
    state.speaking = false;
    Object.assign(state, {paintedAsked: painted, closer});
    state.texts = texts;
    note(warning ? "warning" : "", warning);
    if (page) {
      state.images = await loaded(page.images);
      state.page = {runs: page.runs.map(unpacked)};
      fillChannels();
    }
    notes.unshift(texts[0] === texts[1] ? "Both answers are the same" : "The answers differ");
    titles.forEach((title, number) => { $("title-" + number).textContent = title; });
    $("foot").textContent = notes.join(" \u00b7 ");
    [0, 1].forEach(makeWords);
    if (state.page) state.page.runs.forEach(underline);
    layOut();
  },
  async error({told}) {
    state.speaking = false;
    note("error", told);
    [0, 1].forEach(makeWords);
  },
  async stopped({told}) {
    state.speaking = false;
    note("", told);
    [0, 1].forEach(makeWords);
  },
};

// One after the other: pictures are decoded meanwhile.
let hearing = Promise.resolve();
watch("value", () => {
  const told = props.value && JSON.parse(props.value);
  if (!told) return;
  clearTimeout(turn);
  hearing = hearing.then(() => HEARD[told.kind](told)).then(() => {
    element.dataset.heard = told.kind;
  });
});

$("channel").addEventListener("change", (event) => {
  state.channel = event.target.value;
  state.page.runs.forEach(underline);
  draw();
});
$("opacity").addEventListener("input", draw);
$("original").addEventListener("change", draw);
$("paint").addEventListener("click", () => choose("paint"));
$("erase").addEventListener("click", () => choose("erase"));
$("clear").addEventListener("click", clearPainted);
new ResizeObserver(() => state.places && draw()).observe(element);
layOut();
element.dataset.ready = "yes";
