// Attention over the answer: a chart for each share, all runs on its axis.

const WIDE = 300, HIGH = 170, LEFT = 42, RIGHT = 8, TOP = 8, BOTTOM = 32;
const TRENDS = {region: "on the region", image: "on the image", question: "on the question",
                generated: "on the answer so far", watched: "on the watched cells"};
const STEPS = [1, 2, 2.5, 5, 10];

function ceiling(value) {
  // The next round number.
  const power = 10 ** Math.floor(Math.log10(value));
  return STEPS.find((step) => step * power >= value * 0.9999) * power;
}

function ticks(count) {
  // A few numbers of tokens, from 1.
  if (count <= 5) return Array.from({length: count}, (_, i) => i + 1);
  const step = Math.max(Math.round(ceiling(count / 5)), 1), found = [1];
  for (let at = step; at <= count; at += step) if (at > 1) found.push(at);
  return found;
}

function lineOf(run) {
  // Colours differ, and so do dashes: the first of two runs is dashed.
  const first = runs.length === 2 && run.number === 0;
  return first ? {stroke: "var(--soft)", "stroke-dasharray": "6 4"} : {stroke: "var(--region)"};
}

function drawTrends() {
  const box = $("trends"), count = Math.max(...runs.map((run) => run.steps[run.steps.length - 1] + 1));
  box.textContent = "";
  const cursors = runs.map(() => []), x = (token) => LEFT + (token + 0.5) / count * (WIDE - LEFT - RIGHT);
  for (const name of Object.keys(TRENDS)) {
    const shown = runs.filter((run) => run.series.includes(name) && run.channels.has(state.channel));
    if (!shown.length) continue;
    const values = shown.map((run) => run.steps.map((_, i) => share(run, run.channels.get(state.channel), name, i)));
    const top = Math.min(1, ceiling(Math.max(0.001, ...values.map((own) => own.reduce((a, b) => Math.max(a, b), 0)))));
    const y = (value) => TOP + (1 - value / top) * (HIGH - BOTTOM - TOP);
    const figure = element(box, "figure", {id: "trend-" + name});
    element(figure, "h3", {}, TRENDS[name]);
    const svg = element(figure, "svg", {viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img",
                                        "aria-label": `share of attention ${TRENDS[name]}, token by token`});
    for (const run of shown) for (const [first, last] of run.number === shown.length - 1 ? run.back : []) {
      element(svg, "rect", {x: x(first - 0.5), width: x(last + 0.5) - x(first - 0.5), y: TOP,
                            height: HIGH - BOTTOM - TOP, fill: "var(--back)"});
    }
    for (const value of [0, top / 2, top]) {
      element(svg, "line", {x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value), class: "axis"});
      element(svg, "text", {x: LEFT - 4, y: y(value) + 4, "text-anchor": "end"}, `${+(100 * value).toPrecision(3)} %`);
    }
    for (const at of ticks(count)) {
      element(svg, "text", {x: x(at - 1), y: HIGH - 18, "text-anchor": "middle"}, at);
    }
    element(svg, "text", {x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 4, "text-anchor": "middle"},
            count === 1 ? "the only token with a step" : "generated token");
    shown.forEach((run, n) => {
      const points = run.steps.map((token, i) => [x(token).toFixed(1), y(values[n][i]).toFixed(1)]);
      element(svg, "path", {d: "M" + points.join("L"), class: "series", ...lineOf(run)});
      // Few points would be a line of no length.
      if (points.length <= 3) for (const [cx, cy] of points) {
        element(svg, "circle", {cx, cy, r: 4, fill: lineOf(run).stroke, class: "dot"});
      }
    });
    for (const run of shown) cursors[run.number].push(element(svg, "line", {y1: TOP, y2: HIGH - BOTTOM, class: "cursor"}));
    svg.addEventListener("pointermove", (event) => {
      const place = svg.getBoundingClientRect();
      const at = (event.clientX - place.left) / place.width * WIDE;
      const token = Math.floor((at - LEFT) / (WIDE - LEFT - RIGHT) * count);
      if (token >= 0 && token < runs[state.run].tokens.length) select(state.run, token);
    });
  }
  drawTrends.move = () => runs.forEach((run) => cursors[run.number].forEach((line) => {
    const shown = run.number === state.run && state.token < count;
    line.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) for (const end of ["x1", "x2"]) line.setAttribute(end, x(state.token));
  }));
}

function makeLegend() {
  if (runs.length < 2) return;
  for (const run of runs) {
    const entry = element($("legend"), "span"), svg = element(entry, "svg", {viewBox: "0 0 36 8"});
    element(svg, "path", {d: "M1,4L35,4", class: "series", ...lineOf(run)});
    entry.append(" " + run.name);
  }
}
