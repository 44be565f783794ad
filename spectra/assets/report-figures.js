"use strict";
// Data of the report, and a figure of one matrix.
const data = JSON.parse(document.getElementById("payload").textContent);
const hovers = window.matchMedia("(hover: hover)").matches; // on touch screens the bar would hide the titles
const config = { displaylogo: false, displayModeBar: hovers ? "hover" : false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const index = new Map(data.matrices.map((matrix, i) => [matrix.name, i]));
const view = { chosen: new Set(data.chosen), scale: "linear", norm: "raw" };
const squares = new Set(["cosine", "overlap"]); // in [-1, 1], over pairs of snapshots

// a text that plotly shows as it is: texts of figures are markup
const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function plot(target, { data: traces, layout }) {
  target.style.minHeight = `${layout.height}px`; // a figure loses its height while it is resized
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
  layout.title.text = literal(name);
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
