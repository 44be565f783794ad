"use strict";
// The slider over ERR, budget or threshold: shows the results of the library's ranks.js on the page.
(() => {
  const DEFAULT = 0.5; // value of the target, as in view.py

  const tables = new WeakMap(); // unpacked once
  function tableOf(side) {
    if (!tables.has(side)) {
      const { unpackRows } = spectra.numbers, shape = [side.targets.length, side.full.length];
      tables.set(side, { rank: unpackRows(side.rank, "u4", shape), factored: unpackRows(side.factored, "u1", shape), error: unpackRows(side.error, "u2", shape) });
    }
    return tables.get(side);
  }
  const write = (id, value) => { const element = document.getElementById(id); if (element) element.textContent = value; };

  function drawMap(name, side, places, at) {
    const graph = spectra.figures.drawn(`map-${name}`);
    if (!graph?.data?.length) return;
    const { z, labels } = spectra.ranks.cells(tableOf(side).rank[at], side.full, side.lrcFactor, places);
    window.Plotly.restyle(graph, { z: [z], text: [labels] }, [0]);
  }

  // numbers of one side, its files, and the commands that make them
  function writeSide(name, side, at) {
    const said = { ...spectra.ranks.numbers(side, at), error: side.meanError[at].toFixed(4) };
    for (const [field, value] of Object.entries(said)) write(`${name}-${field}`, value);
    const target = String(side.targets[at]);
    for (const link of document.querySelectorAll(`[id^="${name}-get-"]`)) {
      const format = link.id.slice(`${name}-get-`.length);
      link.href = `${side.file}${side.map ? "" : `&value=${target}`}&format=${format}`;
      const none = format === "peft" && side.lrc[at] === 0;
      link.toggleAttribute("aria-disabled", none);
      if (none) link.removeAttribute("href");
    }
    const map = side.map ?? "map.json", made = side.map ? [] : [`${side.command} ${target} --out map.json`];
    for (const [format, out] of [["csv", "map-csv.csv"], ["peft", "adapter_config.json"]]) {
      if (format !== "peft" || side.lrc[at]) made.push(`spectra export ${map} --format ${format} --out ${out}`);
    }
    write(`${name}-command`, made.join("\n"));
  }

  // move the drawn threshold lines at once; drawFollowing redraws them later
  function moveThreshold(cut) {
    const graph = spectra.figures.drawn("figure4"), shape = graph?.layout?.shapes?.[0], axis = graph?._fullLayout?.yaxis;
    if (!shape || !axis || cut === null) return;
    const pixels = axis.l2p(cut) - axis.l2p(shape.y0);
    for (const line of graph.querySelectorAll(".shapelayer path")) line.setAttribute("transform", `translate(0, ${pixels})`);
  }

  function drawFollowing(found, at) {
    const a = found.a, cut = a.threshold[at], { drawn } = spectra.figures, { removed, thresholdLines } = spectra.ranks;
    const six = drawn("figure6"), four = drawn("figure4");
    if (!six?.data || !four?.layout) return; // the page has been left
    window.Plotly.restyle(six, { y: removed(tableOf(a).rank[at], a.full, found.places.traces) });
    const moved = thresholdLines(cut, four.layout.shapes.length);
    moved["title.subtitle.text"] = `over the share of the ranks; the first layer dark${cut === null ? "" : `; dashed: threshold ${cut.toFixed(4)}`}`;
    window.Plotly.relayout(four, moved);
  }

  let following, beside;
  const callbacks = Object.assign((window.dash_clientside ??= {}).spectra ??= {}, {
    // numbers and maps at once; figures 4 and 6, which Plotly draws more slowly, when the slider rests
    ranks(value, found) {
      if (!found) return "";
      clearTimeout(following);
      clearTimeout(beside);
      const { a, b, places } = found, { nearest } = spectra.ranks, at = nearest(a.targets, value);
      writeSide("a", a, at);
      drawMap("a", a, places, at);
      if (b) {
        const other = nearest(b.targets, value);
        writeSide("b", b, other);
        beside = setTimeout(() => drawMap("b", b, places, other), 30); // once the first is drawn
      }
      moveThreshold(a.threshold[at]);
      const there = ["map-a", b && "map-b", "figure4", "figure6"].every((id) => !id || spectra.figures.drawn(id)?.data?.length);
      following = setTimeout(() => (there ? drawFollowing(found, at) : callbacks.ranks(value, found)), 120);
      spectra.address.rest("value", Math.abs(a.targets[at] - DEFAULT) < 1e-9 ? null : a.targets[at]);
      return a.targets[at].toFixed(3);
    },

    rankRows(value, grid, found) {
      if (!found) return [];
      const a = found.a, at = spectra.ranks.nearest(a.targets, value), table = tableOf(a);
      const [rank, factored, error] = [table.rank[at], table.factored[at], table.error[at]];
      return found.matrices.map(([matrix, , , rows, cols], m) => ({
        matrix, rows, cols, "full rank": a.full[m], rank: rank[m],
        kept: Number((rank[m] / a.full[m]).toFixed(4)),
        kind: spectra.ranks.isLrc(rank[m], a.full[m], a.lrcFactor) ? "LRC" : "N-LRC",
        "stored as": factored[m] ? a.storage : "whole",
        error: Number((error[m] / 65535).toFixed(4)),
      }));
    },
  });
})();
