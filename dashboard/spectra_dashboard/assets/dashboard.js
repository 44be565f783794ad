"use strict";
// What the browser does by itself: it keeps the address, moves what sliders move, and adds rows.
(() => {
  const query = () => new URLSearchParams(window.location.search);
  const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
  const unchanged = () => window.dash_clientside.no_update; // known only once the page runs
  const triggered = () => window.dash_clientside.callback_context.triggered.map((t) => t.prop_id);
  const drawn = (id) => document.getElementById(id)?.querySelector(".js-plotly-plot") ?? null;

  // a value as the address has it; null where the address says nothing
  function asked(name, like) {
    const values = query().getAll(name);
    if (!values.length) return null;
    return Array.isArray(like) ? values : values[0];
  }

  // the slider's place goes to the address when it comes to rest: no server, no entry for "back"
  let resting;
  function rest(name, value) {
    clearTimeout(resting);
    resting = setTimeout(() => {
      const now = query();
      if (value === null) now.delete(name);
      else now.set(name, value);
      const search = now.toString() ? `?${now}` : "";
      if (search !== window.location.search) window.history.replaceState(window.history.state, "", window.location.pathname + search);
      window.dash_clientside.set_props("rested", { data: { search } });
    }, 200);
  }

  // an option of a select with its line below its name, which is not part of what it is called
  window.dashMantineFunctions = Object.assign(window.dashMantineFunctions ?? {}, {
    withSummary: ({ option, checked }) => {
      const { createElement } = window.React;
      const summary = option.summary && createElement("small", { "aria-hidden": true }, option.summary);
      return createElement("span", { className: checked ? "with-summary checked" : "with-summary" }, option.label, summary);
    },
  });

  // numbers as Plotly's JSON or our rows have them
  const KINDS = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };
  function unpack(text, kind) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new KINDS[kind](bytes.buffer);
  }
  function plain(values) {
    return values?.bdata ? Array.from(unpack(values.bdata, values.dtype)) : Array.from(values ?? []);
  }
  function rowsOf(values) {
    if (!values?.bdata) return values ?? [];
    const [rows, columns] = values.shape.split(",").map(Number);
    const all = unpack(values.bdata, values.dtype);
    return Array.from({ length: rows }, (_, r) => all.subarray(r * columns, (r + 1) * columns));
  }

  const tables = new WeakMap(); // unpacked once
  function table(side) {
    if (!tables.has(side)) {
      tables.set(side, { rank: unpack(side.rank, "u4"), factored: unpack(side.factored, "u1"), error: unpack(side.error, "u2") });
    }
    return tables.get(side);
  }
  function nearest(targets, value) {
    let best = 0;
    targets.forEach((target, i) => { if (Math.abs(target - value) < Math.abs(targets[best] - value)) best = i; });
    return best;
  }
  const bytes = (count) => {
    const [size, unit] = count >= 1e9 ? [1e9, "GB"] : count >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
    return `${(count / size).toPrecision(3)} ${unit}`;
  };
  const text = (id, value) => { const place = document.getElementById(id); if (place) place.textContent = value; };

  // ranks, marks and shares of one method at one target, as the map shows them
  function cells(side, places, at) {
    const { rank } = table(side), count = side.full.length;
    const shape = () => places.layers.map(() => places.roles.map(() => []));
    const members = shape();
    for (let m = 0; m < count; m++) members[places.row[m]][places.column[m]].push(m);
    const low = (m) => rank[at * count + m] < side.lrcFactor * side.full[m];
    const sum = (of, value) => of.reduce((total, m) => total + value(m), 0);
    const z = members.map((row) => row.map((of) => (of.length ? sum(of, (m) => rank[at * count + m]) / sum(of, (m) => side.full[m]) : null)));
    const labels = members.map((row) => row.map((of) => {
      if (!of.length) return "";
      if (of.length === 1) return `${low(of[0]) ? "● " : ""}${rank[at * count + of[0]]}`;
      return `● ${of.filter(low).length} of ${of.length}`;
    }));
    return { z, labels };
  }

  function drawMap(name, side, found, at) {
    const graph = drawn(`map-${name}`);
    if (!graph?.data?.length) return;
    const { z, labels } = cells(side, found.places, at);
    window.Plotly.restyle(graph, { z: [z], text: [labels] }, [0]);
  }

  function tell(name, side, value) {
    const at = nearest(side.targets, value), count = side.full.length;
    const cut = side.threshold[at];
    text(`${name}-err`, side.err[at].toFixed(4));
    text(`${name}-budget`, `${(100 * side.budget[at]).toFixed(2)} %`);
    text(`${name}-bytes`, bytes(side.bytes[at]));
    text(`${name}-lrc`, `${side.lrc[at]} / ${count - side.lrc[at]}`);
    text(`${name}-threshold`, cut === null ? "none" : cut.toFixed(5));
    text(`${name}-error`, side.meanError[at].toFixed(4));
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
    text(`${name}-command`, made.join("\n"));
    return at;
  }

  // the threshold's lines as they are, moved to where they are going to be
  function moveThreshold(cut) {
    const graph = drawn("figure4"), shape = graph?.layout?.shapes?.[0], axis = graph?._fullLayout?.yaxis;
    if (!shape || !axis || cut === null) return;
    const pixels = axis.l2p(cut) - axis.l2p(shape.y0);
    for (const line of graph.querySelectorAll(".shapelayer path")) line.setAttribute("transform", `translate(0, ${pixels})`);
  }

  // the spectra of one step, out of those of all steps that travelled with the figure
  const unpacked = new WeakMap();
  function seriesOf(meta) {
    if (!unpacked.has(meta)) {
      const [count, columns] = meta.shape, all = unpack(meta.values, "f4");
      unpacked.set(meta, Array.from({ length: count }, (_, r) => all.subarray(r * columns, (r + 1) * columns)));
    }
    return [...unpacked.get(meta), ...(meta.more ?? [])];
  }
  function moveLines(graph, step, place) {
    const meta = graph.layout.meta, rows = seriesOf(meta), points = graph.data[0].x?.bdata ? plain(graph.data[0].x).length : graph.data[0].x.length;
    const row = rows[Math.min(Math.floor(place / meta.size), rows.length - 1)];
    const y = graph.data.map((_, k) => Array.from(row.subarray(k * points, (k + 1) * points), (v) => (Number.isNaN(v) ? null : v)));
    const said = graph.layout.title.subtitle.text.replace(/^step [\d,]+/, `step ${step.toLocaleString("en")}`);
    window.Plotly.update(graph, { y }, { "title.subtitle.text": said });
  }
  function moveLine(graph, step) {
    const line = { type: "line", xref: "paper", x0: 0, x1: 1, y0: step, y1: step, line: { color: "#c2571a", width: 1 } };
    window.Plotly.relayout(graph, { shapes: step === null ? [] : [line] });
  }

  let following, beside, lining;
  const steps = new Map(); // of each run, as far as told
  function drawFollowing(found, at) {
    const a = found.a, { rank } = table(a), count = a.full.length, cut = a.threshold[at];
    const six = drawn("figure6"), four = drawn("figure4");
    window.Plotly.restyle(six, { y: found.places.traces.map((of) => of.map((m) => 1 - rank[at * count + m] / a.full[m])) });
    const moved = { "title.subtitle.text": `over the share of the ranks; the first layer dark${cut === null ? "" : `; dashed: threshold ${cut.toFixed(4)}`}` };
    four.layout.shapes.forEach((_, s) => {
      moved[`shapes[${s}].y0`] = moved[`shapes[${s}].y1`] = cut ?? 0;
      moved[`shapes[${s}].visible`] = cut !== null;
    });
    window.Plotly.relayout(four, moved);
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    spectra: {
      // controls follow the address where it changed, else the address follows the control
      sync(search, values, ids, defaults) {
        const names = ids.map((id) => id.control), usual = defaults ?? {}, why = triggered();
        window.dash_clientside.set_props("rested", { data: { search: window.location.search } });
        if (why.some((prop) => prop.startsWith("address."))) {
          return [unchanged(), values.map((value, i) => {
            const wanted = asked(names[i], value) ?? usual[names[i]] ?? value;
            return same(wanted, value) ? unchanged() : wanted;
          })];
        }
        const now = query(), moved = names.findIndex((name) => why.length === 1 && why[0].includes(`"control":"${name}"`));
        const value = values[moved], name = names[moved];
        const none = [unchanged(), values.map(unchanged)];
        if (moved < 0 || value === null || value === undefined) return none; // a page that was just laid out
        // runs stay in the address: which one is the default depends on what there is
        const wanted = same(value, usual[name]) && name !== "run" && name !== "other" ? [] : [value].flat().filter((v) => v !== "");
        if (same(now.getAll(name), wanted)) return none;
        now.delete(name);
        for (const one of wanted) now.append(name, one);
        return [now.toString() ? `?${now}` : "", none[1]];
      },

      navigation(pathname, search, shown, ids) {
        const run = query().get("run"), here = pathname.replace(/^\//, "") || "runs";
        const carried = run ? `?run=${encodeURIComponent(run)}` : "";
        return [
          ids.map(({ nav }) => (nav === "runs" ? "/" : `/${nav}${carried}`)),
          ids.map(({ nav }) => (nav === here ? "nav here" : "nav")),
        ];
      },

      status(news) {
        if (!news) return "";
        if (news.state === "gone") return "this store cannot be read any more";
        steps.set(news.run, [...(steps.get(news.run) ?? []).slice(0, news.first), ...news.new]);
        const asked = Number(query().get("step") ?? Number.NaN), step = steps.get(news.run).includes(asked) ? asked : news.step;
        if (step === null) return "no snapshot yet";
        const of = news.steps ? ` of ${news.steps.toLocaleString("en")}` : "";
        const newer = step < news.step ? `; the last is ${news.step.toLocaleString("en")}` : "";
        return `step ${step.toLocaleString("en")}${of}${newer} · ${news.count} ${news.count === 1 ? "snapshot" : "snapshots"} · ` +
          `${window.dashAgGridFunctions.ago(news.updated)} · ${news.state}`;
      },

      snapshots(news, had) {
        if (!news) return unchanged();
        const now = { run: news.run, count: news.count, step: news.step, first: news.first ?? 0, new: news.new ?? [] };
        return had && had.run === now.run && had.count === now.count && had.step === now.step ? unchanged() : now;
      },

      pause: (live) => !live,

      // rows that are new, below (and of pairs of snapshots also beside) those that are there
      grow(rows, figure) {
        if (!rows || !figure?.data?.length) return [unchanged(), unchanged()];
        const [count, columns] = rows.shape, all = unpack(rows.values, "f4");
        const fresh = Array.from({ length: count }, (_, r) => all.subarray(r * columns, (r + 1) * columns));
        if (figure.layout.meta) {
          const before = seriesOf(figure.layout.meta).slice(0, rows.first);
          const meta = { shape: [0, columns], values: "", more: [...before, ...fresh], size: rows.held.size };
          return [{ ...figure, layout: { ...figure.layout, meta } }, rows.held];
        }
        const trace = { ...figure.data[0] };
        const before = rowsOf(trace.z).slice(0, rows.first);
        trace.z = rows.pairs
          ? [...before.map((row, r) => Float32Array.from({ length: columns }, (_, c) => (c < rows.first ? row[c] : fresh[c - rows.first][r]))), ...fresh]
          : [...before, ...fresh];
        trace.y = [...plain(trace.y).slice(0, rows.first), ...rows.steps];
        if (rows.pairs) trace.x = trace.y;
        return [{ ...figure, data: [trace, ...figure.data.slice(1)] }, rows.held];
      },

      // points that are new, after those that are there
      extend(points, figure) {
        if (!points || !figure?.data?.length) return unchanged();
        const data = figure.data.map((trace, t) => (points.x[t]?.length
          ? { ...trace, x: [...plain(trace.x), ...points.x[t]], y: [...plain(trace.y), ...points.y[t]] }
          : trace));
        return { ...figure, data };
      },

      // the step of the spectra below, and its line in the figures above
      scrub(place, snapshots, search, held, had, max) {
        const why = triggered(), before = place;
        let all = had;
        if (snapshots && !same([had.length, had.at(-1)], [snapshots.count, snapshots.step])) {
          all = [...had.slice(0, snapshots.first), ...snapshots.new];
        }
        const last = all.length - 1;
        if (last < 0) return ["", unchanged(), unchanged(), all];
        if (why.some((prop) => prop.startsWith("address."))) {
          const step = query().get("step");
          place = step === null ? last : all.indexOf(Number(step));
        } else if (place === had.length - 1) place = last; // the last stays the last
        if (place < 0 || place > last) place = last;
        if (why.some((prop) => prop.includes("slider"))) rest("step", place === last ? null : all[place]);
        clearTimeout(lining);
        const draw = () => {
          for (const panel of document.querySelectorAll(".panel .js-plotly-plot")) {
            if (!panel.data?.length || !panel.layout) continue;
            if (panel.layout.meta?.shape) moveLines(panel, all[place], place);
            else moveLine(panel, place === last ? null : all[place]);
          }
        };
        // figures that were just asked for are there a moment later
        if (why.some((prop) => prop.includes("held"))) lining = setTimeout(draw, 150);
        else draw();
        const most = Math.max(last, 1);
        return [all[place].toLocaleString("en"), most === max ? unchanged() : most, place === before ? unchanged() : place, all === had ? unchanged() : all];
      },

      // numbers and maps at once; figures 4 and 6, which take Plotly longer, when the slider rests
      ranks(value, found) {
        if (!found) return "";
        clearTimeout(following);
        clearTimeout(beside);
        const at = tell("a", found.a, value);
        drawMap("a", found.a, found, at);
        if (found.b) {
          const other = tell("b", found.b, value);
          beside = setTimeout(() => drawMap("b", found.b, found, other), 30); // once the first is seen
        }
        moveThreshold(found.a.threshold[at]);
        const there = ["map-a", found.b && "map-b", "figure4", "figure6"].every((id) => !id || drawn(id)?.data?.length);
        following = setTimeout(() => (there ? drawFollowing(found, at) : window.dash_clientside.spectra.ranks(value, found)), 120);
        rest("value", Math.abs(found.a.targets[at] - 0.5) < 1e-9 ? null : found.a.targets[at]);
        return found.a.targets[at].toFixed(3);
      },

      rankRows(value, grid, found) {
        if (!found) return [];
        const a = found.a, at = nearest(a.targets, value), count = a.full.length;
        const { rank, factored, error } = table(a);
        return found.matrices.map(([matrix, , , rows, cols], m) => ({
          matrix, rows, cols, "full rank": a.full[m], rank: rank[at * count + m],
          kept: Number((rank[at * count + m] / a.full[m]).toFixed(4)),
          kind: rank[at * count + m] < a.lrcFactor * a.full[m] ? "LRC" : "N-LRC",
          "stored as": factored[at * count + m] ? a.storage : "whole",
          error: Number((error[at * count + m] / 65535).toFixed(4)),
        }));
      },

      open(click, places) {
        const point = click?.points?.[0];
        const name = point && places?.[`${point.y}|${point.x}`];
        if (name) window.dash_clientside.set_props({ control: "matrix" }, { value: name });
        return unchanged();
      },

      compared(rows) {
        const [a, b] = (rows ?? []).map((row) => encodeURIComponent(row.name));
        if (!a) return ["/compare", "Compare two runs"];
        return [`/compare?run=${a}${b ? `&other=${b}` : ""}`, b ? "Compare the two chosen" : "Compare its snapshots"];
      },
    },
  });

  // figures of matrices are asked for when they come into sight, and grow only while they are
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (target.isConnected) window.dash_clientside.set_props({ type: "seen", key: target.dataset.key }, { data: isIntersecting });
    }
  }, { rootMargin: "200px" });
  const watched = new WeakSet();
  const mirror = () => { document.body.dataset.agThemeMode = document.documentElement.dataset.mantineColorScheme ?? "light"; };
  document.addEventListener("DOMContentLoaded", () => {
    mirror();
    new MutationObserver(mirror).observe(document.documentElement, { attributeFilter: ["data-mantine-color-scheme"] });
    new MutationObserver(() => {
      for (const panel of document.querySelectorAll(".panel[data-key]")) {
        if (watched.has(panel)) continue;
        watched.add(panel);
        sight.observe(panel);
      }
    }).observe(document.body, { childList: true, subtree: true });
  });

  // figures are saved as they look on paper, whatever the theme
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-save]");
    const graph = button?.closest(".figure")?.querySelector(".js-plotly-plot");
    if (!graph) return;
    const layout = { ...graph.layout, paper_bgcolor: "#fff", plot_bgcolor: "#fff" };
    const size = { format: button.dataset.save, width: graph.clientWidth, height: graph.clientHeight, scale: 2 };
    const link = document.createElement("a");
    link.href = await window.Plotly.toImage({ data: graph.data, layout }, size);
    const title = (graph.layout.title?.text || "figure").replace(/<[^>]*>|&\w+;/g, "").replace(/[^\w.]+/g, "-");
    link.download = `${title || "figure"}.${button.dataset.save}`;
    link.click();
  });

  // cells of the table of runs
  const element = (...given) => window.React.createElement(...given);
  window.dashAgGridFunctions = Object.assign(window.dashAgGridFunctions ?? {}, {
    ago(seconds) {
      const age = Math.max(0, Date.now() / 1000 - seconds);
      if (!seconds) return "";
      for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (age >= size) return `${Math.floor(age / size)} ${unit} ago`;
      return `${Math.floor(age)} s ago`;
    },
  });
  window.dashAgGridComponentFunctions = Object.assign(window.dashAgGridComponentFunctions ?? {}, {
    RunLink: ({ data }) => element("a", {
      href: data.href, title: data.name,
      onClick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        const [pathname, search] = data.href.split("?");
        window.dash_clientside.set_props("address", { pathname, search: search ? `?${search}` : "" });
      },
    }, data.label),
    RunState: ({ data }) => element("span", { className: `state ${data.state}`, title: data.reason }, data.state),
    RunProgress: ({ data }) => {
      if (data.state === "unreadable") return element("span", { className: "reason", title: data.reason }, data.reason);
      if (data.kind === "scan") return `${data.snapshots} ${data.snapshots === 1 ? "checkpoint" : "checkpoints"}`;
      if (data.progress === null) return "";
      const of = data.steps ? ` / ${data.steps.toLocaleString("en")}` : "";
      return `${data.progress.toLocaleString("en")}${of}`;
    },
    RunSparks: ({ data }) => {
      const points = data.sparks.map((y, i) => `${(i / (data.sparks.length - 1)) * 100},${22 - y * 20}`).join(" ");
      return points ? element("svg", { className: "sparks", viewBox: "-1 0 102 24", preserveAspectRatio: "none", role: "img", "aria-label": "training loss" },
        element("polyline", { points })) : "";
    },
  });
})();
