"use strict";
const data = JSON.parse(document.getElementById("payload").textContent);
const hovers = window.matchMedia("(hover: hover)").matches; // elsewhere the bar would hide the titles
const config = { displaylogo: false, displayModeBar: hovers ? "hover" : false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const index = new Map(data.matrices.map((matrix, i) => [matrix.name, i]));
const view = { chosen: new Set(data.chosen), scale: "linear", norm: "raw" };
const squares = new Set(["cosine", "overlap"]); // in [-1, 1], over pairs of snapshots

function plot(target, { data: traces, layout }) {
  target.style.minHeight = `${layout.height}px`; // a figure that is resized does not hold its place
  Plotly.newPlot(target, traces, { ...layout, template: data.template }, config);
}

// rows of numbers from 16-bit codes; null where nothing was recorded
function decode(kind, i) {
  const { shape, codes, low, span } = data.arrays[kind][i];
  const bytes = Uint8Array.from(atob(codes), (c) => c.charCodeAt(0));
  const values = new DataView(bytes.buffer);
  const number = squares.has(kind)
    ? (code) => (code - 1) / 65534 * 2 - 1
    : (code) => (code === 1 ? 0 : Math.exp(low + (code - 2) / 65533 * span));
  return Array.from({ length: shape[0] }, (_, row) =>
    Array.from({ length: shape[1] }, (_, column) => {
      const code = values.getUint16(2 * (row * shape[1] + column), true);
      return code === 0 ? null : number(code);
    }));
}

function figure(kind, i) {
  if (kind === "tail") return structuredClone(data.tails[i]);
  const { data: [trace], layout } = structuredClone(data.templates[kind]);
  const { name, shape } = data.matrices[i];
  layout.title.text = name;
  layout.title.subtitle.text = `${shape[0]} × ${shape[1]}, ${layout.title.subtitle.text}`;
  trace.z = decode(kind, i);
  if (kind === "overlap") {
    trace.zmin = data.chance[i];
    layout.title.subtitle.text = layout.title.subtitle.text.replace(/[0-9.]+$/, data.chance[i].toFixed(3));
  }
  if (!squares.has(kind)) {
    trace.x = trace.z[0].map((_, k) => k + 1);
    if (view.norm === "first") {
      trace.z = trace.z.map((row) => row.map((v) => (v === null || !row[0] ? null : v / row[0])));
      layout.title.subtitle.text += " over the largest";
    }
    if (view.scale === "log") {
      trace.customdata = trace.z;
      trace.hovertemplate = trace.hovertemplate.replace("%{z:", "%{customdata:");
      trace.z = trace.z.map((row) => row.map((v) => (v ? Math.log10(v) : null)));
      delete trace.zmin;
      layout.title.subtitle.text = layout.title.subtitle.text.replace("singular", "log₁₀ of singular");
    }
  }
  return { data: [trace], layout };
}

// only what is on the screen is drawn: 224 matrices would be 672 figures
const onScreen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting || target.dataset.drawn) continue;
    target.dataset.drawn = "yes";
    plot(target, figure(target.dataset.kind, Number(target.dataset.matrix)));
  }
}, { rootMargin: "300px" });

function drawPanels() {
  const chosen = [...view.chosen];
  for (const panels of document.querySelectorAll(".panels")) {
    for (const panel of panels.children) if (panel.dataset.drawn) Plotly.purge(panel);
    panels.replaceChildren();
    const kind = panels.dataset.kind;
    const height = (kind === "tail" ? data.tails[0] : data.templates[kind])?.layout.height;
    if (!height) {
      panels.textContent = "Not recorded in this store.";
      continue;
    }
    if (!chosen.length) panels.textContent = "Choose a matrix above.";
    for (const name of chosen) {
      const panel = document.createElement("div");
      panel.className = "panel";
      panel.style.minHeight = `${height}px`;
      Object.assign(panel.dataset, { kind, matrix: index.get(name) });
      panels.append(panel);
      onScreen.observe(panel);
    }
  }
  document.getElementById("count").textContent = `${chosen.length} of ${data.matrices.length} chosen`;
  for (const button of document.querySelectorAll("#chooser td button")) {
    button.setAttribute("aria-pressed", view.chosen.has(button.title));
  }
}

function button(text, title, onClick) {
  const element = document.createElement("button");
  Object.assign(element, { type: "button", textContent: text, title });
  element.addEventListener("click", onClick);
  return element;
}

// a row or column of the chooser: choose all of it, or none if all of it is chosen
function toggle(matrices) {
  const all = matrices.every((m) => view.chosen.has(m.name));
  for (const { name } of matrices) view.chosen[all ? "delete" : "add"](name);
  drawPanels();
}

function drawChooser() {
  const table = document.getElementById("chooser");
  const layers = [...new Set(data.matrices.map((m) => m.layer))];
  const roles = [...new Set(data.matrices.map((m) => m.role))];
  const head = table.insertRow();
  head.append(document.createElement("th"));
  for (const role of roles) {
    const cell = document.createElement("th");
    cell.append(button(role, `all of role ${role}`, () => toggle(data.matrices.filter((m) => m.role === role))));
    head.append(cell);
  }
  for (const layer of layers) {
    const row = table.insertRow();
    const cell = document.createElement("th");
    cell.append(button(`layer ${layer}`, `all of layer ${layer}`, () => toggle(data.matrices.filter((m) => m.layer === layer))));
    row.append(cell);
    for (const role of roles) {
      const slot = row.insertCell();
      for (const matrix of data.matrices.filter((m) => m.layer === layer && m.role === role)) {
        slot.append(button(role, matrix.name, () => toggle([matrix])));
      }
    }
  }
}

// the chosen measure: over training, and over the model
function drawMeasure() {
  const drawn = data.measures[kinds.value][measure.value];
  for (const place of ["lines", "map"]) {
    const target = document.getElementById(`measure-${place}`);
    Plotly.purge(target);
    target.hidden = !drawn[place];
    if (drawn[place]) plot(target, drawn[place]);
  }
}

function drawMeasures() {
  const before = measure.value;
  const names = Object.entries(data.measures[kinds.value]);
  measure.replaceChildren(...names.map(([name]) => new Option(name.replaceAll("_", " "), name)));
  if (names.some(([name]) => name === before)) measure.value = before;
  drawMeasure();
}

const [kinds, measure] = ["kinds", "measure"].map((id) => document.getElementById(id));
kinds.replaceChildren(...Object.keys(data.measures).map((kind) => new Option(kind, kind)));
kinds.addEventListener("change", drawMeasures);
measure.addEventListener("change", drawMeasure);
if (Object.keys(data.measures).length) drawMeasures();
else document.getElementById("measures-section").hidden = true;
if (data.figure4) plot(document.getElementById("figure4"), data.figure4);
else document.getElementById("figure4-section").hidden = true;

// figures 4 and 6 at one point of the path
function drawPoint() {
  const path = data.compression, i = Number(err.value);
  const full = path.full;
  const removed = path.members.map((of) => of.map((m) => 1 - path.ranks[i][m] / full[m]));
  Plotly.restyle("figure6", { y: removed });
  Plotly.relayout("path", { "shapes[0].x0": path.err[i], "shapes[0].x1": path.err[i] });
  if (data.figure4) {
    const moved = {};
    data.figure4.layout.shapes.forEach((_, s) => { moved[`shapes[${s}].y0`] = moved[`shapes[${s}].y1`] = path.threshold[i]; });
    moved["title.subtitle.text"] = data.figure4.layout.title.subtitle.text.replace(/[0-9.e-]+$/, path.threshold[i].toFixed(4));
    Plotly.relayout("figure4", moved);
  }
  const bytes = path.bytes[i], [unit, size] = bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  document.getElementById("err-says").textContent =
    `${path.err[i].toFixed(3)} at threshold ${path.threshold[i].toFixed(4)}: ${path.lrc[i]} of ${full.length} matrices are LRC, ` +
    `${(100 * path.budget[i]).toFixed(1)} % of the block parameters stay, ${(bytes / size).toPrecision(3)} ${unit} as ${path.format}`;
}

const err = document.getElementById("err");
if (data.compression) {
  const { figure: figure6, curves, target, first } = data.compression;
  Object.assign(err, { max: target.length - 1, value: first });
  const line = { type: "line", x0: 0, x1: 0, y0: 0, y1: 1, yref: "paper", line: { color: "#c2571a", width: 1.2, dash: "dash" } };
  plot(document.getElementById("figure6"), figure6);
  plot(document.getElementById("path"), { data: curves.data, layout: { ...curves.layout, shapes: [line] } });
  err.addEventListener("input", drawPoint);
  drawPoint();
} else document.getElementById("compression-section").hidden = true;
document.getElementById("figure2-section").hidden = !["cosine", "gradient", "overlap"].some((kind) => data.templates[kind]);
for (const section of document.querySelectorAll(".over-training")) section.hidden = data.steps.length < 2;
data.claim.forEach((drawn, i) => plot(document.getElementById(`claim-${i}`), drawn));
document.getElementById("claim-section").hidden = !data.claim.length;
if (data.loss) plot(document.getElementById("loss"), data.loss);
else document.getElementById("loss-section").hidden = true;
document.getElementById("note").textContent = data.notes.join(" ");
for (const id of ["scale", "norm"]) {
  document.getElementById(id).addEventListener("change", (event) => {
    view[id] = event.target.value;
    drawPanels();
  });
}
document.getElementById("reset").addEventListener("click", () => {
  view.chosen = new Set(data.chosen);
  drawPanels();
});
drawChooser();
drawPanels();
