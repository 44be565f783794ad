"use strict";
// The report's slider over ERR: figures 4 and 6, and the path, at one target.
function drawTarget(path, at) {
  const { removed, thresholdLines, sentence } = spectra.ranks;
  Plotly.restyle("figure6", { y: removed(path.ranks[at], path.full, path.members) });
  Plotly.relayout("path", { "shapes[0].x0": path.err[at], "shapes[0].x1": path.err[at] });
  if (data.figure4) {
    const { shapes, title } = data.figure4.layout, cut = path.threshold[at];
    const moved = thresholdLines(cut, shapes.length);
    moved["title.subtitle.text"] = title.subtitle.text.replace(/[0-9.e-]+$/, cut.toFixed(4));
    Plotly.relayout("figure4", moved);
  }
  document.getElementById("err-says").textContent = sentence(path, at);
}

function drawCompression(path) {
  const { figure: figure6, curves, target, first } = path, err = document.getElementById("err");
  Object.assign(err, { max: target.length - 1, value: first });
  const line = { type: "line", x0: 0, x1: 0, y0: 0, y1: 1, yref: "paper", line: { color: "#c2571a", width: 1.2, dash: "dash" } };
  plot(document.getElementById("figure6"), figure6);
  plot(document.getElementById("path"), { data: curves.data, layout: { ...curves.layout, shapes: [line] } });
  const draw = () => drawTarget(path, Number(err.value));
  err.addEventListener("input", draw);
  draw();
}
