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
      const text = now.toString();
      window.history.replaceState(window.history.state, "", window.location.pathname + (text ? `?${text}` : ""));
      window.dash_clientside.set_props("rested", { data: Date.now() });
    }, 200);
  }

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
    text(`${name}-command`, side.map ? `spectra export ${side.map} --format peft` : `${side.command} ${target} --out map.json`);
    return at;
  }

  // the threshold's lines as they are, moved to where they are going to be
  function moveThreshold(cut) {
    const graph = drawn("figure4"), shape = graph?.layout?.shapes?.[0], axis = graph?._fullLayout?.yaxis;
    if (!shape || !axis || cut === null) return;
    const pixels = axis.l2p(cut) - axis.l2p(shape.y0);
    for (const line of graph.querySelectorAll(".shapelayer path")) line.setAttribute("transform", `translate(0, ${pixels})`);
  }

  let following, beside;
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
      // controls follow the address where it changed, else the address follows the controls
      sync(search, values, ids, defaults) {
        const names = ids.map((id) => id.control);
        const usual = defaults ?? {};
        if (triggered().some((prop) => prop.startsWith("address."))) {
          return [unchanged(), values.map((value, i) => {
            const wanted = asked(names[i], value) ?? usual[names[i]] ?? value;
            return same(wanted, value) ? unchanged() : wanted;
          })];
        }
        const now = query();
        names.forEach((name, i) => {
          now.delete(name);
          // runs stay in the address: which one is the default depends on what there is
          const said = name === "run" || name === "other";
          if (values[i] === null || values[i] === undefined || (same(values[i], usual[name]) && !said)) return;
          for (const value of [values[i]].flat()) if (value !== "") now.append(name, value);
        });
        const next = now.toString() ? `?${now}` : "";
        return [next === window.location.search ? unchanged() : next, values.map(() => unchanged())];
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
        const step = query().get("step") ?? news.step;
        if (step === null) return "no snapshot yet";
        const of = news.steps ? ` of ${news.steps.toLocaleString("en")}` : "";
        const newer = Number(step) < news.step ? `; the last is ${news.step.toLocaleString("en")}` : "";
        return `step ${Number(step).toLocaleString("en")}${of}${newer} · ${news.count} ${news.count === 1 ? "snapshot" : "snapshots"} · ` +
          `${window.dashAgGridFunctions.ago(news.updated)} · ${news.state}`;
      },

      snapshots: (news, had) =>
        news && had?.run === news.run && had.count === news.count && had.step === news.step ? unchanged() : news && { run: news.run, count: news.count, step: news.step },

      pause: (live) => !live,

      // rows that are new, below (and of pairs of snapshots also beside) those that are there
      grow(rows, figure, held) {
        if (!rows || !figure?.data?.length) return [unchanged(), unchanged()];
        const [count, columns] = rows.shape, all = unpack(rows.values, "f4");
        const fresh = Array.from({ length: count }, (_, r) => all.subarray(r * columns, (r + 1) * columns));
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
      scrub(place, news, search, steps, max) {
        const why = triggered(), had = place;
        let all = steps;
        if (news && news.count !== steps.length && why.some((prop) => prop.startsWith("news."))) {
          all = [...steps.slice(0, news.first), ...news.new];
        }
        const last = all.length - 1;
        if (why.some((prop) => prop.startsWith("address."))) {
          const step = query().get("step");
          place = step === null ? last : all.indexOf(Number(step));
          if (place < 0) place = last;
        } else if (place === steps.length - 1 || place > last) place = last; // the last stays the last
        rest("step", place === last ? null : all[place]);
        for (const panel of document.querySelectorAll(".panel .js-plotly-plot")) {
          if (!panel.data?.length) continue;
          const line = { type: "line", xref: "paper", x0: 0, x1: 1, y0: all[place], y1: all[place], line: { color: "#c2571a", width: 1 } };
          window.Plotly.relayout(panel, { shapes: place === last ? [] : [line] });
        }
        return [all[place].toLocaleString("en"), Math.max(last, 1) === max ? unchanged() : Math.max(last, 1), place === had ? unchanged() : place, all === steps ? unchanged() : all];
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
          "stored as": factored[at * count + m] ? "factors" : "whole",
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

  // figures of matrices are asked for when they come into sight
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      window.dash_clientside.set_props({ type: "seen", key: target.dataset.key }, { data: true });
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
