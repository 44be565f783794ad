"use strict";
// The address of the window holds the state of a page: controls write it and follow it.
// Files here add to two objects, window.spectra and Dash's namespace of callbacks; they use each
// other's functions only inside calls, so their order does not matter.
(() => {
  const query = () => new URLSearchParams(window.location.search);
  const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
  const unchanged = () => window.dash_clientside.no_update; // defined only once the page runs
  const triggered = () => window.dash_clientside.callback_context.triggered.map((t) => t.prop_id);

  // a field of the address; null if the address does not have it
  function given(name, like) {
    const values = query().getAll(name);
    if (!values.length) return null;
    return Array.isArray(like) ? values : values[0];
  }

  // the slider's value goes to the address when the slider rests: no server, no entry for "back"
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

  const own = { query, same, unchanged, triggered, rest };
  window.spectra = Object.assign(window.spectra ?? {}, { address: own });

  Object.assign((window.dash_clientside ??= {}).spectra ??= {}, {
    // controls follow the address if it changed; else the address follows the control
    sync(search, values, ids, defaults) {
      const names = ids.map((id) => id.control), usual = defaults ?? {}, why = triggered();
      window.dash_clientside.set_props("rested", { data: { search: window.location.search } });
      if (why.some((prop) => prop.startsWith("address."))) {
        return [unchanged(), values.map((value, i) => {
          const wanted = given(names[i], value) ?? usual[names[i]] ?? value;
          return same(wanted, value) ? unchanged() : wanted;
        })];
      }
      const now = query(), moved = names.findIndex((name) => why.length === 1 && why[0].includes(`"control":"${name}"`));
      const value = values[moved], name = names[moved];
      const none = [unchanged(), values.map(unchanged)];
      if (moved < 0 || value === null || value === undefined) return none; // the page was just laid out
      // runs stay in the address: the default run depends on the stores in the folder
      const wanted = same(value, usual[name]) && name !== "run" && name !== "other" ? [] : [value].flat().filter((v) => v !== "");
      if (same(now.getAll(name), wanted)) return none;
      now.delete(name);
      for (const one of wanted) now.append(name, one);
      return [now.toString() ? `?${now}` : "", none[1]];
    },

    // the first page has the plain address and shows all runs; the others keep the run
    navigation(pathname, search, shown, ids) {
      const run = query().get("run"), here = pathname.replace(/^\//, "") || ids[0].nav;
      const carried = run ? `?run=${encodeURIComponent(run)}` : "";
      return [
        ids.map(({ nav }, i) => (i ? `/${nav}${carried}` : "/")),
        ids.map(({ nav }) => (nav === here ? "nav here" : "nav")),
      ];
    },

    // address and label of the link that compares the rows chosen in the table of runs
    compared(rows, href) {
      const [a, b] = (rows ?? []).map((row) => encodeURIComponent(row.name)), page = href.split("?")[0];
      if (!a) return [page, "Compare two runs"];
      return [`${page}?run=${a}${b ? `&other=${b}` : ""}`, b ? "Compare the two chosen" : "Compare its snapshots"];
    },
  });
})();
