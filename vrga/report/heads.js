// R, H_img and EFR of every head, as tables of colours, and how R and H_img go together.

const RAMP = [[0, 32, 77], [66, 78, 108], [124, 123, 120], [187, 175, 104], [255, 234, 70]]; // cividis

function ramp(t) {
  return `rgb(${mixed(RAMP, t).join(",")})`;
}

function makeAtlas(run) {
  const heads = run.heads, atlas = $("atlas");
  if (page.atlases.length > 1) element(atlas, "h3", {}, run.name);
  if (!heads) { element(atlas, "p", {}, "No image in this row."); return; }
  const box = element(atlas, "div", {class: "panels"});
  const layers = heads.R.length, count = heads.R[0].length;
  for (const name of ["R", "H_img", "EFR"]) {
    const sorted = heads[name].flat().sort((a, b) => a - b);
    const [low, high] = [0.02, 0.98].map((q) => sorted[Math.round(q * (sorted.length - 1))]);
    const figure = element(box, "figure");
    element(figure, "h3", {}, name);
    const size = 240 / count, tall = Math.max(size * 0.7, Math.min(size, 220 / layers));
    const svg = element(figure, "svg", {viewBox: `-20 -2 264 ${layers * tall + 18}`, role: "img",
                                        tabindex: 0, "aria-label": `${name} of every head`});
    const outlines = [], cells = [];
    for (let l = 0; l < layers; l++) for (let h = 0; h < count; h++) {
      const value = heads[name][l][h], t = Math.min(Math.max((value - low) / (high - low || 1), 0), 1);
      const place = {x: h * size, y: l * tall, width: size, height: tall};
      const cell = element(svg, "rect", {...place, fill: ramp(t)});
      const kind = heads.visual[l][h] ? " (visual)" : heads.background[l][h] ? " (background)" : "";
      const told = `layer ${l}, head ${h}${kind}: R ${heads.R[l][h]}, H_img ${heads.H_img[l][h]}, EFR ${heads.EFR[l][h]}`;
      element(cell, "title", {}, told);
      const channel = [...run.channels.values()].find((c) => c.single && c.single[0] === l && c.single[1] === h);
      if (channel) cell.classList.add("has");
      const choose = () => {
        $("head").textContent = told + (channel ? ", shown above." : ".");
        if (channel) { $("channel").value = channel.name; show(); }
      };
      cell.addEventListener("click", choose);
      cells.push({place, told, choose});
      if (heads.visual[l][h]) outlines.push(place);
    }
    for (const place of outlines) element(svg, "rect", {...place, class: "visual", "pointer-events": "none"});
    makeKeys(svg, cells, count);
    for (const l of [0, layers - 1]) {
      element(svg, "text", {x: -4, y: l * tall + tall / 2 + 4, "text-anchor": "end"}, l);
    }
    for (const h of [0, count - 1]) {
      element(svg, "text", {x: (h + 0.5) * size, y: layers * tall + 13, "text-anchor": "middle"}, h);
    }
    element(figure, "figcaption", {}, `dark ${low} to bright ${high}`);
  }
  makeScatter(heads, box);
}

function makeKeys(svg, cells, count) {
  // Arrow keys go from head to head, Enter shows its map: what a pointer does.
  const marks = [0, 1].map(() => element(svg, "rect", {class: "at", visibility: "hidden"}));
  let now = 0;
  const mark = (shown) => {
    for (const one of marks) {
      for (const [key, value] of Object.entries(cells[now].place)) one.setAttribute(key, value);
      one.setAttribute("visibility", shown ? "visible" : "hidden");
    }
    if (shown) $("head").textContent = cells[now].told + ".";
  };
  svg.addEventListener("focus", () => mark(svg.matches(":focus-visible")));
  svg.addEventListener("blur", () => mark(false));
  svg.addEventListener("keydown", (event) => {
    const column = now % count, step = {ArrowLeft: column > 0 ? -1 : 0, ArrowUp: -count,
      ArrowRight: column < count - 1 ? 1 : 0, ArrowDown: count}[event.key];
    if (step === undefined && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    if (step === undefined) { cells[now].choose(); return; }
    if (cells[now + step]) now += step;
    mark(true);
  });
}

function makeScatter(heads, box) {
  const figure = element(box, "figure");
  element(figure, "h3", {}, "R and H_img of every head");
  const svg = element(figure, "svg", {viewBox: "0 0 264 200", role: "img", "aria-label": "H_img against R"});
  const r = heads.R.flat(), e = heads.H_img.flat(), visual = heads.visual.flat();
  const [right, top] = [Math.max(...r) || 1, Math.max(...e) || 1];
  element(svg, "line", {x1: 30, x2: 260, y1: 174, y2: 174, class: "axis"});
  element(svg, "line", {x1: 30, x2: 30, y1: 6, y2: 174, class: "axis"});
  r.forEach((value, i) => element(svg, "circle", {
    cx: 30 + value / right * 222, cy: 174 - e[i] / top * 162, r: visual[i] ? 4 : 2.4,
    fill: visual[i] ? "var(--region)" : "var(--image)", "fill-opacity": visual[i] ? 1 : 0.55}));
  element(svg, "text", {x: 145, y: 194, "text-anchor": "middle"}, `R, up to ${right}`);
  element(svg, "text", {x: 12, y: 90, "text-anchor": "middle", transform: "rotate(-90 12 90)"}, `H_img, up to ${top}`);
  const p = heads.pearson;
  element(figure, "figcaption", {}, (p ? `Pearson r ${p[0].toFixed(2)} (95 %: ${p[1].toFixed(2)} to ${p[2].toFixed(2)}). ` : "")
          + "Large: visual heads.");
}

