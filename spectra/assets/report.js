"use strict";
// The page: panels of the chosen matrices, measures, and the sections that have data.
// draws only what is on the screen: 224 matrices would be 672 figures
const onScreen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting || target.dataset.drawn) continue;
    target.dataset.drawn = "yes";
    plot(target, figure(target.dataset.kind, Number(target.dataset.matrix)));
  }
}, { rootMargin: "300px" });

// what records a figure's data
const HOW = { cosine: "--record-sketch records it in a run", overlap: "--record-subspaces records it in a run" };

function drawPanels() {
  const chosen = [...view.chosen];
  for (const panels of document.querySelectorAll(".panels")) {
    for (const panel of panels.children) if (panel.dataset.drawn) Plotly.purge(panel);
    panels.replaceChildren();
    const kind = panels.dataset.kind;
    const height = (kind === "tail" ? data.tails[0] : data.templates[kind])?.layout.height;
    if (!height) {
      panels.textContent = `Not recorded in this store${HOW[kind] ? ` (${HOW[kind]})` : ""}.`;
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
  for (const part of ["lines", "map"]) {
    const target = document.getElementById(`measure-${part}`);
    Plotly.purge(target);
    target.hidden = !drawn[part];
    if (drawn[part]) plot(target, drawn[part]);
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
if (data.compression) drawCompression(data.compression);
else document.getElementById("compression-section").hidden = true;
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
