// What the report and the page of `vrga app` draw with: a run's maps and shares, shade and outline.

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function unpacked(run, number) {
  // Where each channel's maps and shares begin.
  const raw = bytes(run.shares), tops = bytes(run.tops || "");
  const cells = run.sizes.reduce((sum, [h, w]) => sum + h * w, 0), channels = new Map();
  let place = 0;
  run.channels.forEach((channel, index) => {
    // Maps lie one after the other, and so do what the highest level of each step stands for.
    const top = cells ? place / cells : 0;
    channels.set(channel.name, {...channel, index, top, start: channel.mapped ? place : -1});
    if (channel.mapped) place += run.steps.length * cells;
  });
  return {...run, number, cells, channels, maps: bytes(run.maps), relevance: bytes(run.relevance),
          shares: new Uint16Array(raw.buffer, 0, raw.length / 2),
          tops: new Float32Array(tops.buffer, 0, tops.length / 4),
          stepOf: new Map(run.steps.map((step, i) => [step, i]))};
}

function share(run, channel, name, step) {
  const at = (channel.index * run.series.length + run.series.indexOf(name)) * run.steps.length;
  return run.shares[at + step] / 65535;
}

const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [255, 228, 60]]; // inferno, deeper at its end
const LESS = [0, 160, 255], MORE = [255, 128, 0];

function mixed(ramp, t) {
  // The colour of a ramp at t in [0, 1], as [r, g, b].
  const place = Math.min(Math.max(t, 0), 1) * (ramp.length - 1);
  const i = Math.min(Math.floor(place), ramp.length - 2), f = place - i;
  return ramp[i].map((v, k) => Math.round(v + f * (ramp[i + 1][k] - v)));
}

function fillCells(draw, h, w, width, height, colorOf) {
  for (let r = 0; r < h; r++) {
    for (let c = 0; c < w; c++) {
      draw.fillStyle = colorOf(r * w + c);
      const [x, y] = [Math.round(c * width / w), Math.round(r * height / h)];
      draw.fillRect(x, y, Math.round((c + 1) * width / w) - x, Math.round((r + 1) * height / h) - y);
    }
  }
}

function shade(draw, values, h, w, width, height, strength) {
  // Colours a picture by levels up to 255: dark where nobody looked and glowing where they did, so
  // that it shows on dark pictures as on light ones.
  fillCells(draw, h, w, width, height, (cell) => {
    const t = values[cell] / 255;
    return `rgba(${mixed(HEAT, t).join(",")},${strength * (0.4 + 0.6 * t)})`;
  });
}

function shadeChange(draw, values, h, w, width, height, strength) {
  // Colours a picture, itself made grey, by changes in [-1, 1].
  draw.globalCompositeOperation = "saturation";
  draw.fillStyle = "#808080";
  draw.fillRect(0, 0, width, height);
  draw.globalCompositeOperation = "source-over";
  fillCells(draw, h, w, width, height, (cell) =>
    `rgba(${(values[cell] < 0 ? LESS : MORE).join(",")},${strength * Math.abs(values[cell])})`);
}

function outline(draw, mask, h, w, width, height, scale) {
  // `scale`: pixels of the canvas per pixel on the screen, so that the line is as wide in small
  // pictures.
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
