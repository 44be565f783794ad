"use strict";
// Components, named in Python, that draw the entries of tables and selects.
(() => {
  const element = (...given) => window.React.createElement(...given);

  // an option of a select with a line below its name, hidden from its accessible name
  function withSummary({ option, checked }) {
    const summary = option.summary && element("small", { "aria-hidden": true }, option.summary);
    return element("span", { className: checked ? "with-summary checked" : "with-summary" }, option.label, summary);
  }
  window.dashMantineFunctions = Object.assign(window.dashMantineFunctions ?? {}, { withSummary });

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
