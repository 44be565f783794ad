"use strict";
// Figures over snapshots: add new rows, and follow the slider over steps.
(() => {
  // the spectra of all steps, which came with the figure that shows those of one step
  const unpacked = new WeakMap();
  function seriesOf(meta) {
    if (!unpacked.has(meta)) unpacked.set(meta, spectra.numbers.unpackRows(meta.values, "f4", meta.shape));
    return [...unpacked.get(meta), ...(meta.more ?? [])];
  }

  function moveLines(graph, step, index) {
    const meta = graph.layout.meta, rows = seriesOf(meta), points = spectra.numbers.plain(graph.data[0].x).length;
    const row = rows[Math.min(Math.floor(index / meta.size), rows.length - 1)];
    const y = graph.data.map((_, k) => Array.from(row.subarray(k * points, (k + 1) * points), (v) => (Number.isNaN(v) ? null : v)));
    const said = graph.layout.title.subtitle.text.replace(/^step [\d,]+/, `step ${step.toLocaleString("en")}`);
    window.Plotly.update(graph, { y }, { "title.subtitle.text": said });
  }

  function moveLine(graph, step) {
    const line = { type: "line", xref: "paper", x0: 0, x1: 1, y0: step, y1: step, line: { color: "#c2571a", width: 1 } };
    window.Plotly.relayout(graph, { shapes: step === null ? [] : [line] });
  }

  // the slider's step in every figure: its spectra, or a line at it unless it is the last
  function drawStep(step, index, last) {
    for (const panel of document.querySelectorAll(".panel .js-plotly-plot")) {
      if (!panel.data?.length || !panel.layout) continue;
      if (panel.layout.meta?.shape) moveLines(panel, step, index);
      else moveLine(panel, index === last ? null : step);
    }
  }

  // pairs of snapshots: the numbers of the new rows, to the right of the old rows
  const beside = (before, fresh, first, columns) => before.map(
    (row, r) => Float32Array.from({ length: columns }, (_, c) => (c < first ? row[c] : fresh[c - first][r])));

  let lining;
  Object.assign((window.dash_clientside ??= {}).spectra ??= {}, {
    // new rows below the old ones; for pairs of snapshots, new columns too
    grow(rows, figure) {
      const { unchanged } = spectra.address, { unpackRows, plain, plainRows } = spectra.numbers;
      if (!rows || !figure?.data?.length) return [unchanged(), unchanged()];
      const columns = rows.shape[1], fresh = unpackRows(rows.values, "f4", rows.shape);
      if (figure.layout.meta) {
        const before = seriesOf(figure.layout.meta).slice(0, rows.first);
        const meta = { shape: [0, columns], values: "", more: [...before, ...fresh], size: rows.held.size };
        return [{ ...figure, layout: { ...figure.layout, meta } }, rows.held];
      }
      const trace = { ...figure.data[0] };
      const before = plainRows(trace.z).slice(0, rows.first);
      trace.z = [...(rows.pairs ? beside(before, fresh, rows.first, columns) : before), ...fresh];
      trace.y = [...plain(trace.y).slice(0, rows.first), ...rows.steps];
      if (rows.pairs) trace.x = trace.y;
      return [{ ...figure, data: [trace, ...figure.data.slice(1)] }, rows.held];
    },

    // new points after the old ones
    extend(points, figure) {
      if (!points || !figure?.data?.length) return spectra.address.unchanged();
      const { plain } = spectra.numbers;
      const data = figure.data.map((trace, t) => (points.x[t]?.length
        ? { ...trace, x: [...plain(trace.x), ...points.x[t]], y: [...plain(trace.y), ...points.y[t]] }
        : trace));
      return { ...figure, data };
    },

    // the step of the spectra below, and its line in the figures above
    scrub(index, snapshots, search, held, had, max) {
      const { query, same, unchanged, triggered, rest } = spectra.address;
      const why = triggered(), before = index;
      let all = had;
      if (snapshots && !same([had.length, had.at(-1)], [snapshots.count, snapshots.step])) {
        all = [...had.slice(0, snapshots.first), ...snapshots.new];
      }
      const last = all.length - 1;
      if (last < 0) return ["", unchanged(), unchanged(), all];
      if (why.some((prop) => prop.startsWith("address."))) {
        const step = query().get("step");
        index = step === null ? last : all.indexOf(Number(step));
      } else if (index === had.length - 1) index = last; // the last stays the last
      if (index < 0 || index > last) index = last;
      if (why.some((prop) => prop.includes("slider"))) rest("step", index === last ? null : all[index]);
      clearTimeout(lining);
      const draw = () => drawStep(all[index], index, last);
      // figures that were just requested arrive a moment later
      if (why.some((prop) => prop.includes("held"))) lining = setTimeout(draw, 150);
      else draw();
      const most = Math.max(last, 1);
      return [all[index].toLocaleString("en"), most === max ? unchanged() : most, index === before ? unchanged() : index, all === had ? unchanged() : all];
    },
  });
})();
