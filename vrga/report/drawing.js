// What the report and the page of `vrga app` draw with: a run's maps and shares, shade and outline.

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function unpacked(run, number) {
  // Where each channel's maps and shares begin.
  const raw = bytes(run.shares);
  const cells = run.sizes.reduce((sum, [h, w]) => sum + h * w, 0), channels = new Map();
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

function shade(draw, values, h, w, width, height, strength) {
  // Dark where nobody looked, so that the image's own colours stay true.
  for (let r = 0; r < h; r++) {
    for (let c = 0; c < w; c++) {
      draw.fillStyle = `rgba(0,0,0,${strength * (1 - values[r * w + c] / 255)})`;
      const [x, y] = [Math.round(c * width / w), Math.round(r * height / h)];
      draw.fillRect(x, y, Math.round((c + 1) * width / w) - x, Math.round((r + 1) * height / h) - y);
    }
  }
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
