// The pictures under the map of a token, what the map's colours stand for, and where attention is.

const page = JSON.parse(document.getElementById("page").textContent);
const $ = (id) => document.getElementById(id);
const runs = page.runs.map(unpacked);
// `token` is of run `run`; the other answer shows the token that goes together with it.
const state = {run: runs.length - 1, token: 0, channel: ""};
const GAP = 6; // pixels between pictures
const SVG = ["svg", "rect", "path", "line", "text", "circle", "title", "g"];

function element(parent, name, attributes, text) {
  const made = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name)
                                  : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

const images = page.images.map((source) => {
  const image = new Image();
  image.src = source;
  return image;
});

function tokenIn(run) {
  // The chosen token of an answer, -1 where it has none that goes together with the chosen one.
  if (run.number === state.run) return state.token;
  return runs[state.run].partners[state.token] ?? -1;
}

function makePictures(run) {
  run.canvases = run.grids.map(([h, w], i) => {
    const image = images[run.images[i]];
    const [wide, high] = image ? [image.naturalWidth, image.naturalHeight] : [w * 28, h * 28];
    const scale = Math.min(Math.max(640 / Math.max(wide, high), 1), 1280 / Math.max(wide, high));
    const canvas = element($("pictures-" + run.number), "canvas", {role: "img"});
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(high * scale);
    canvas.setAttribute("aria-label", `image ${i + 1}, ${run.name}`);
    return canvas;
  });
}

function arrange(run) {
  // In as many columns as make the pictures large in the width and the height that there are, and
  // leave little of the width empty.
  const box = $("pictures-" + run.number), count = run.canvases.length;
  if (!count) return;
  const wide = box.parentElement.clientWidth;
  const high = innerHeight * (matchMedia("(max-width: 40rem)").matches ? 0.36 : 0.6);
  let best = {good: 0};
  for (let columns = 1; columns <= count; columns++) {
    const own = (wide - GAP * (columns - 1)) / columns;
    let total = 0;
    for (let i = 0; i < count; i += columns) {
      const row = run.canvases.slice(i, i + columns);
      total += GAP + Math.max(...row.map((canvas) => own * canvas.height / canvas.width));
    }
    const filled = Math.min(1, high / total), good = filled / columns * Math.sqrt(filled);
    if (good > best.good) best = {good, columns, width: wide * filled};
  }
  box.style.gap = GAP + "px";
  box.style.width = Math.round(best.width) + "px";
  box.style.gridTemplateColumns = `repeat(${best.columns}, minmax(0, 1fr))`;
}

function mapOf(run) {
  // A channel's map at the chosen token: levels, and what the highest stands for; or undefined.
  const channel = run.channels.get(state.channel), step = run.stepOf.get(tokenIn(run));
  if (!channel || channel.start < 0 || step === undefined) return undefined;
  const from = channel.start + step * run.cells;
  return {values: run.maps.subarray(from, from + run.cells), top: run.tops[channel.top + step]};
}

function changeOf(run) {
  // Per image token, how much more than the first run the last one looks there; or undefined.
  if (run.number === 0 || !$("kind") || $("kind").value !== "change") return undefined;
  const [before, after] = runs.map(mapOf);
  if (!before || !after || String(runs[0].sizes) !== String(run.sizes)) return undefined;
  const values = Float32Array.from(after.values,
    (value, i) => (value * after.top - before.values[i] * before.top) / 255);
  const top = values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
  return {values: values.map((value) => value / top), top};
}

function whyNot(run) {
  // Why there is no map of the chosen token: then the picture is that of the question.
  if (mapOf(run)) return "";
  const token = tokenIn(run), instead = ": the picture is the map at the question.";
  const why = token < 0 ? "This answer has no such token" :
    run.stepOf.has(token) ? (run.grids.length ? "No maps of these heads" : "") : "Not measured at this token";
  return why && why + (run.grids.length ? instead : ".");
}

function drawPictures(run) {
  const original = $("original").checked, strength = $("opacity").value / 100;
  const change = changeOf(run), map = change || mapOf(run);
  const values = map ? map.values : run.relevance, sizes = map ? run.sizes : run.grids;
  const region = run.relocated.reduce((now, [step, later]) => tokenIn(run) >= step ? later : now, run.region);
  let from = 0, cell = 0;
  run.canvases.forEach((canvas, i) => {
    const draw = canvas.getContext("2d"), [h, w] = sizes[i], {width, height} = canvas;
    const image = images[run.images[i]], [gh, gw] = run.grids[i];
    draw.imageSmoothingEnabled = image ? image.naturalWidth > width : false;
    draw.fillStyle = "#fff";
    draw.fillRect(0, 0, width, height);
    if (image) draw.drawImage(image, 0, 0, width, height);
    if (!original) {
      const paint = change ? shadeChange : shade;
      paint(draw, values.subarray(from, from + h * w), h, w, width, height, strength);
      const scale = width / (canvas.clientWidth || width);
      outline(draw, region.slice(cell, cell + gh * gw), gh, gw, width, height, scale);
    }
    from += h * w;
    cell += gh * gw;
  });
  $("title-" + run.number).textContent = change ? `${run.name} \u2212 ${runs[0].name}` : run.name;
  drawScale(run, change, map, original);
  drawShares(run);
}

function drawScale(run, change, map, original) {
  const box = $("scale-" + run.number), most = map && `${+(100 * map.top).toPrecision(3)} % on one image token`;
  box.textContent = "";
  if (!run.grids.length) return;
  if (original) { box.textContent = "the original"; return; }
  const rgb = (color) => `rgb(${color.join(",")})`;
  const colors = change ? [rgb(LESS), "#808080", rgb(MORE)] : HEAT.map(rgb);
  box.append(change ? "less" : "0");
  element(box, "i", {}).style.background = `linear-gradient(to right, ${colors.join(",")})`;
  box.append(change ? `more, up to ${most}` : map ? `up to ${most}` : "most: where the question looks");
}

function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

function partsOf(run, channel, step) {
  // Where all of the attention is: [name, share], which sum to 1.
  const of = (name) => share(run, channel, name, step);
  const text = ["question", "prompt", "generated"].filter((name) => run.series.includes(name));
  if (!text.length) return [["image", of("image")], ["text", 1 - of("image")]];
  return [["image", of("image")], ...text.map((name) => [name, of(name)])];
}

function rounded(parts) {
  // In tenths of a percent that sum to as many as all: the largest remainders are rounded up.
  const total = parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  const exact = parts.map(([, value]) => 1000 * value / total), whole = exact.map(Math.floor);
  const order = exact.map((value, i) => [value - whole[i], i]).sort((a, b) => b[0] - a[0]);
  const missing = 1000 - whole.reduce((sum, value) => sum + value, 0);
  for (const [, i] of order.slice(0, missing)) whole[i] += 1;
  return whole.map((value) => (value / 10).toFixed(1));
}

const SAID = {question: "question", prompt: "other prompt", generated: "answer so far", text: "text"};

function drawShares(run) {
  const channel = run.channels.get(state.channel), step = run.stepOf.get(tokenIn(run));
  const box = $("shares-" + run.number), bar = $("bar-" + run.number);
  box.textContent = bar.textContent = "";
  if (channel && step !== undefined) {
    const parts = partsOf(run, channel, step), told = rounded(parts);
    const region = share(run, channel, "region", step);
    parts.forEach(([name, value], i) => {
      if (i) box.append(", ");
      const said = element(box, "span");
      const pieces = name === "image" ? [["region", region], ["image", value - region]] : [[name, value]];
      for (const [piece, size] of pieces) {
        element(bar, "i", {title: piece}).style.cssText = `width: ${100 * size}%; background: var(--${piece})`;
      }
      element(said, "b").style.background = `var(--${name})`;
      said.append(`${SAID[name] || name} ${told[i]} %`);
      if (name !== "image") return;
      said.append(" (");
      element(said, "b").style.background = "var(--region)";
      said.append(`region ${percent(region)}`);
      if (run.series.includes("watched")) said.append(`, watched ${percent(share(run, channel, "watched", step))}`);
      said.append(")");
    });
  }
  const why = whyNot(run);
  if (why) box.append((box.textContent && ". ") + why);
}
