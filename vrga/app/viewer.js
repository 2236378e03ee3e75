// The viewer: pictures under the map of a word, the words themselves, and the brush.
// Runs once, when the page is there: element, props and watch come from gr.HTML.
const RASTER = 96;   // cells of the painted raster on an image's longer side
const BRUSH = 0.05;  // its radius, of that side
const HINTS = ["Drop a picture, or choose an example.", "Then ask: both answers come side by side."];
const state = {page: null, images: [], pictures: [], texts: [null, null], token: [null, null],
               pinned: [null, null], channel: "", brush: "", painted: [], paintedAsked: false, closer: false, speaking: false};
const $ = (name) => element.querySelector("#vrga-" + name);

element.innerHTML = `
  <p class="note" id="vrga-note" role="status" aria-live="polite"></p>
  <div class="tools" role="group" aria-label="what the pictures show">
    <label class="wide">where <select id="vrga-channel" disabled><option>visual heads</option></select> look</label>
    <label>map <input type="range" id="vrga-opacity" min="0" max="100" value="65"
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
      <h3 id="vrga-title-${run}">${title}</h3>
      <div class="pictures" id="vrga-pictures-${run}"></div>
      <p class="shares" id="vrga-shares-${run}"></p>
      <div class="words" id="vrga-words-${run}" role="listbox" tabindex="0"
        aria-label="the answer ${title}, word by word"></div>
    </section>`).join("")}
  </div>
  <p class="foot" id="vrga-foot"></p>`;

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
  const region = state.paintedAsked ? "painted region" : run.number ? "region it is steered to" : "region it found";
  const why = token === null ? `bright: where the question looks; outlined: the ${region}`
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
    // A closer look has its crops behind the pictures; else there may be tiles of them.
    const crop = index >= state.pictures.length, tiles = run && !state.closer && run.grids.length !== state.pictures.length;
    const name = tiles ? `tile ${index + 1}` : crop ? `closer look ${index - state.pictures.length + 1}` : `picture ${index + 1}`;
    if (places.length > 1) make(figure, "figcaption", {}, name);
    canvas.setAttribute("aria-label", `${name}, ${["without", "with"][number]} VRGA`);
    const own = !crop && !tiles && image;
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

function draw() {
  [0, 1].forEach(drawPictures);
}

function layOut() {
  state.places = [0, 1].map(makePictures);
  draw();
}
