"use strict";
// Ranks of all matrices along a path of targets: the numbers and texts that a slider shows.
// The report holds this file, the dashboard serves it; it knows no page and no figure.
//
// A path has err, budget, bytes, lrc and threshold of every target (threshold is null if the method
// has none), and the full rank of every matrix: path.full. `rank` holds all matrices at one target.
(() => {
  const nearest = (targets, value) => targets.reduce(
    (best, target, i) => (Math.abs(target - value) < Math.abs(targets[best] - value) ? i : best), 0);

  function size(bytes) {
    const [one, unit] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
    return `${(bytes / one).toPrecision(3)} ${unit}`;
  }

  const isLrc = (rank, full, factor) => rank < factor * full;

  // figure 6: share of the ranks removed, of the matrices of each trace
  const removed = (rank, full, traces) => traces.map((of) => of.map((m) => 1 - rank[m] / full[m]));

  // the map: share of the ranks kept, and the text, of each cell; places has the row and the column
  // of every matrix, among layers and roles
  function cells(rank, full, factor, places) {
    const members = places.layers.map(() => places.roles.map(() => []));
    for (let m = 0; m < full.length; m++) members[places.row[m]][places.column[m]].push(m);
    const low = (m) => isLrc(rank[m], full[m], factor);
    const sum = (of, values) => of.reduce((total, m) => total + values[m], 0);
    const label = (of) => {
      if (!of.length) return "";
      if (of.length === 1) return `${low(of[0]) ? "● " : ""}${rank[of[0]]}`;
      return `● ${of.filter(low).length} of ${of.length}`;
    };
    return {
      z: members.map((row) => row.map((of) => (of.length ? sum(of, rank) / sum(of, full) : null))),
      labels: members.map((row) => row.map(label)),
    };
  }

  // numbers at one target: as fields by name, and as one sentence
  function numbers(path, at) {
    const cut = path.threshold[at];
    return {
      err: path.err[at].toFixed(4),
      budget: `${(100 * path.budget[at]).toFixed(2)} %`,
      bytes: size(path.bytes[at]),
      lrc: `${path.lrc[at]} / ${path.full.length - path.lrc[at]}`,
      threshold: cut === null ? "none" : cut.toFixed(5),
    };
  }
  function sentence(path, at) {
    return `${path.err[at].toFixed(3)} at threshold ${path.threshold[at].toFixed(4)}: ` +
      `${path.lrc[at]} of ${path.full.length} matrices are LRC, ` +
      `${(100 * path.budget[at]).toFixed(1)} % of the block parameters stay, ${size(path.bytes[at])} as ${path.format}`;
  }

  // figure 4: the moving part of its layout, a threshold line in each of `count` panels
  function thresholdLines(cut, count) {
    const moved = {};
    for (let s = 0; s < count; s++) {
      moved[`shapes[${s}].y0`] = moved[`shapes[${s}].y1`] = cut ?? 0;
      moved[`shapes[${s}].visible`] = cut !== null;
    }
    return moved;
  }

  const own = { nearest, size, isLrc, removed, cells, numbers, sentence, thresholdLines };
  globalThis.spectra = Object.assign(globalThis.spectra ?? {}, { ranks: own });
})();
