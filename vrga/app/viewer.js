// The viewer: pictures under the map of a word, the words themselves, and the brush.
// Runs once, when the page is there: element, props and watch come from gr.HTML.
"use strict";
const RASTER = 96;   // cells of the painted raster on an image's longer side
const BRUSH = 0.05;  // its radius, of that side
const HINTS = ["Drop a picture, or choose an example.", "Then ask: both answers come side by side."];
const state = {page: null, images: [], pictures: [], texts: [null, null], token: [null, null],
               pinned: [null, null], channel: "", brush: "", painted: [], speaking: false};
const $ = (name) => element.querySelector("#vrga-" + name);

element.innerHTML = `
  <p class="note" id="vrga-note" role="status" aria-live="polite"></p>
  <div class="tools" role="group" aria-label="what the pictures show">
    <label class="wide">where <select id="vrga-channel" disabled><option>visual heads</option></select> look</label>
    <label>map <input type="range" id="vrga-opacity" min="0" max="100" value="78"
      aria-label="opacity of the map, in percent"></label>
    <label><input type="checkbox" id="vrga-original"> original</label>
    <span class="brush" role="group" aria-label="paint the region to steer to">
      <button type="button" id="vrga-paint" aria-pressed="false" disabled>paint a region</button>
      <button type="button" id="vrga-erase" aria-pressed="false" disabled>erase</button>
      <button type="button" id="vrga-clear" disabled>clear</button>
    </span>
  </div>
  <div class="panels">
    ${["without VRGA", "with VRGA"].map((title, run) => `
    <section class="panel" aria-label="${title}">
      <h3>${title}</h3>
      <div class="pictures" id="vrga-pictures-${run}"></div>
      <p class="shares" id="vrga-shares-${run}"></p>
      <div class="words" id="vrga-words-${run}" role="listbox" tabindex="0"
        aria-label="the answer ${title}, word by word"></div>
    </section>`).join("")}
  </div>
  <p class="foot" id="vrga-foot"></p>`;

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function make(parent, name, attributes, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function loaded(sources) {
  return Promise.all(sources.map((source) => new Promise((done) => {
    const image = new Image();
    image.onload = image.onerror = () => done(image);
    image.src = source;
  })));
}

// --- runs: where each channel's maps and shares begin ---

function unpacked(run, number) {
  const raw = bytes(run.shares);
  const cells = run.sizes.reduce((sum, [h, w]) => sum + h * w, 0);
  const channels = new Map();
  let place = 0;
  run.channels.forEach((channel, index) => {
    channels.set(channel.name, {...channel, index, start: channel.mapped ? place : -1});
    if (channel.mapped) place += run.steps.length * cells;
  });
  return {...run, number, cells, channels, maps: bytes(run.maps), relevance: bytes(run.relevance),
          shares: new Uint16Array(raw.buffer, 0, raw.length / 2),
          stepOf: new Map(run.steps.map((step, i) => [step, i]))};
}

function share(run, channel, name, step) {
  const at = (channel.index * run.series.length + run.series.indexOf(name)) * run.steps.length;
  return run.shares[at + step] / 65535;
}

function levels(run) {
  // The map to show: that of the word, or that of the question; and what it is.
  const channel = run.channels.get(state.channel), token = state.token[run.number];
  const step = token === null ? undefined : run.stepOf.get(token);
  if (channel && channel.start >= 0 && step !== undefined) {
    const from = channel.start + step * run.cells;
    const parts = ["image", "region"].filter((name) => run.series.includes(name))
      .map((name) => `${(100 * share(run, channel, name, step)).toFixed(1)} % on the ${name}`);
    const word = run.tokens[token].trim() || "\u00b7";
    return [run.maps.subarray(from, from + run.cells), run.sizes, `from \u201c${word}\u201d: ${parts.join(", ")}`];
  }
  const outlined = number => number ? "the region it is steered to" : "the region it found";
  const why = token === null ? `bright: where the question looks; outlined: ${outlined(run.number)}`
    : step === undefined ? "the last word looks nowhere; the map is the question's"
    : "no maps of these heads; the map is the question's";
  return [run.relevance, run.grids, why];
}

// --- pictures ---

function makePictures(number) {
  const run = state.page && state.page.runs[number], box = $("pictures-" + number);
  const places = run ? run.grids.map(([h, w], i) => [state.images[run.images[i]], w * 28, h * 28])
                     : state.pictures.map((image) => [image, 0, 0]);
  box.textContent = "";
  box.classList.toggle("many", places.length > 1);
  if (!places.length) make(box, "p", {class: "hint"}, HINTS[number]);
  return places.map(([image, w, h], index) => {
    const [wide, high] = image ? [image.naturalWidth || 1, image.naturalHeight || 1] : [w, h];
    const scale = Math.min(Math.max(640 / Math.max(wide, high), 1), 1280 / Math.max(wide, high));
    const figure = make(box, "figure"), canvas = make(figure, "canvas", {role: "img"});
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(high * scale);
    const crop = index >= state.pictures.length && state.pictures.length > 0;
    const name = crop ? `closer look ${index - state.pictures.length + 1}` : `picture ${index + 1}`;
    if (places.length > 1) make(figure, "figcaption", {}, name);
    canvas.setAttribute("aria-label", `${name}, ${["without", "with"][number]} VRGA`);
    const own = !crop && (!run || run.grids.length >= state.pictures.length) && image;
    if (own) canvas.dataset.picture = index;
    canvas.addEventListener("pointerdown", (event) => brush(event, canvas));
    canvas.addEventListener("pointermove", (event) => event.buttons && brush(event, canvas));
    return {canvas, image, own};
  });
}

function drawPictures(number) {
  const run = state.page && state.page.runs[number], original = $("original").checked;
  const [values, sizes, told] = run ? levels(run) : [null, null, ""];
  const strength = $("opacity").value / 100;
  let from = 0, cell = 0;
  state.places[number].forEach(({canvas, image, own}, i) => {
    const draw = canvas.getContext("2d"), {width, height} = canvas;
    draw.imageSmoothingEnabled = image ? image.naturalWidth > width : false;
    draw.fillStyle = "#fff";
    draw.fillRect(0, 0, width, height);
    if (image) draw.drawImage(image, 0, 0, width, height);
    if (run) {
      const [h, w] = sizes[i], [gh, gw] = run.grids[i];
      if (!original) {
        shade(draw, values.subarray(from, from + h * w), h, w, width, height, strength);
        const now = run.relocated.reduce(
          (last, [step, later]) => state.token[number] >= step ? later : last, run.region);
        const scale = width / (canvas.clientWidth || width);
        outline(draw, now.slice(cell, cell + gh * gw), gh, gw, width, height, scale);
      }
      from += h * w;
      cell += gh * gw;
    }
    if (own && !original) drawPainted(draw, state.painted[i], width, height);
  });
  $("shares-" + number).textContent = original && run ? "the original" : told;
}

function shade(draw, values, h, w, width, height, strength) {
  // Dark where nobody looked, so that the picture's own colours stay true.
  for (let r = 0; r < h; r++) {
    for (let c = 0; c < w; c++) {
      draw.fillStyle = `rgba(0,0,0,${strength * (1 - values[r * w + c] / 255)})`;
      const [x, y] = [Math.round(c * width / w), Math.round(r * height / h)];
      draw.fillRect(x, y, Math.round((c + 1) * width / w) - x, Math.round((r + 1) * height / h) - y);
    }
  }
}

function outline(draw, mask, h, w, width, height, scale) {
  const inside = (place, end) => Math.min(Math.max(place, scale), end - scale);
  const at = (r, c) => r >= 0 && c >= 0 && r < h && c < w && mask[r * w + c] === 1;
  draw.beginPath();
  for (let r = 0; r <= h; r++) {
    for (let c = 0; c <= w; c++) {
      const [x, right] = [c, c + 1].map((i) => inside(i * width / w, width));
      const [y, below] = [r, r + 1].map((i) => inside(i * height / h, height));
      if (c < w && at(r, c) !== at(r - 1, c)) { draw.moveTo(x, y); draw.lineTo(right, y); }
      if (r < h && at(r, c) !== at(r, c - 1)) { draw.moveTo(x, y); draw.lineTo(x, below); }
    }
  }
  draw.lineCap = "square";
  for (const [color, wide] of [["#fff", 4.5], ["#000", 2]]) {
    draw.strokeStyle = color;
    draw.lineWidth = wide * scale;
    draw.stroke();
  }
}

function draw() {
  [0, 1].forEach(drawPictures);
}

function layOut() {
  state.places = [0, 1].map(makePictures);
  draw();
}

// --- the brush ---

function drawPainted(draw, mask, width, height) {
  if (!mask) return;
  const small = document.createElement("canvas");
  small.width = mask.w;
  small.height = mask.h;
  const dots = small.getContext("2d"), pixels = dots.createImageData(mask.w, mask.h);
  mask.cells.forEach((on, i) => on && pixels.data.set([0, 158, 255, 150], 4 * i));
  dots.putImageData(pixels, 0, 0);
  draw.imageSmoothingEnabled = true;
  draw.drawImage(small, 0, 0, width, height);
}

function brush(event, canvas) {
  if (!state.brush || canvas.dataset.picture === undefined) return;
  event.preventDefault();
  const index = Number(canvas.dataset.picture), box = canvas.getBoundingClientRect();
  const image = state.pictures[index], longer = Math.max(image.naturalWidth, image.naturalHeight);
  const [w, h] = [image.naturalWidth, image.naturalHeight].map((n) => Math.max(1, Math.round(RASTER * n / longer)));
  const mask = state.painted[index] || (state.painted[index] = {w, h, cells: new Uint8Array(w * h)});
  const x = (event.clientX - box.left) / box.width * w, y = (event.clientY - box.top) / box.height * h;
  // From where the brush was last, so that a quick stroke has no gaps.
  const last = event.type === "pointermove" && state.last && state.last.index === index ? state.last : {x, y};
  const steps = Math.max(1, Math.ceil(Math.hypot(x - last.x, y - last.y)));
  for (let i = 1; i <= steps; i++) {
    dab(mask, last.x + (x - last.x) * i / steps, last.y + (y - last.y) * i / steps);
  }
  state.last = {index, x, y};
  $("clear").disabled = !state.painted.some((one) => one && one.cells.some(Boolean));
  draw();
}

function dab(mask, x, y) {
  const radius = Math.max(1, BRUSH * RASTER), on = state.brush === "paint" ? 1 : 0;
  for (let r = Math.max(0, Math.floor(y - radius)); r < Math.min(mask.h, y + radius); r++) {
    for (let c = Math.max(0, Math.floor(x - radius)); c < Math.min(mask.w, x + radius); c++) {
      if (Math.hypot(c + 0.5 - x, r + 0.5 - y) <= radius) mask.cells[r * mask.w + c] = on;
    }
  }
}

function choose(name) {
  state.brush = state.brush === name ? "" : name;
  for (const one of ["paint", "erase"]) $(one).setAttribute("aria-pressed", String(state.brush === one));
  element.dataset.brush = state.brush;
}

function clearPainted() {
  state.painted = [];
  $("clear").disabled = true;
  if (state.brush === "erase") choose("erase");
  draw();
}

// What the page sends with a question: for each picture its painted raster, or null.
window.vrgaPainted = () => JSON.stringify(state.pictures.map((_, i) => {
  const mask = state.painted[i];
  if (!mask || !mask.cells.some(Boolean)) return null;
  return {w: mask.w, h: mask.h, bits: btoa(String.fromCharCode(...mask.cells))};
}));

// --- words ---

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

// --- what the server tells ---

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
}

function note(kind, text) {
  const box = $("note");
  box.className = "note " + kind;
  box.setAttribute("role", kind === "error" ? "alert" : "status");
  box.textContent = text;
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
  async answered({page, texts, notes, warning}) {
    state.speaking = false;
    state.texts = texts;
    note(warning ? "warning" : "", warning);
    if (page) {
      state.images = await loaded(page.images);
      state.page = {runs: page.runs.map(unpacked)};
      fillChannels();
    }
    notes.unshift(texts[0] === texts[1] ? "Both answers are the same" : "The answers differ");
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
