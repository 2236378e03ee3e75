// The brush: for each picture a raster of what is painted, which goes with the question.

function drawPainted(draw, mask, width, height) {
  if (!mask) return;
  const small = document.createElement("canvas");
  small.width = mask.w;
  small.height = mask.h;
  const dots = small.getContext("2d"), pixels = dots.createImageData(mask.w, mask.h);
  mask.cells.forEach((on, i) => on && pixels.data.set([0, 158, 255, state.page ? 90 : 150], 4 * i));
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

function sent(mask) {
  if (!mask || !mask.cells.some(Boolean)) return null;
  return {w: mask.w, h: mask.h, bits: btoa(String.fromCharCode(...mask.cells))};
}

// A question is asked: what the page sends with it, for each picture its painted raster, or null.
window.vrgaAsked = () => {
  waitForTurn();
  return JSON.stringify(state.pictures.map((_, i) => sent(state.painted[i])));
};
