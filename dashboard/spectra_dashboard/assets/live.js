"use strict";
// News of the run shown, and its age.
(() => {
  const steps = new Map(); // known steps of each run

  function ago(seconds) {
    const age = Math.max(0, Date.now() / 1000 - seconds);
    if (!seconds) return "";
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (age >= size) return `${Math.floor(age / size)} ${unit} ago`;
    return `${Math.floor(age)} s ago`;
  }
  window.dashAgGridFunctions = Object.assign(window.dashAgGridFunctions ?? {}, { ago });

  Object.assign((window.dash_clientside ??= {}).spectra ??= {}, {
    status(news) {
      if (!news) return "";
      if (news.state === "gone") return "this store can no longer be read";
      steps.set(news.run, [...(steps.get(news.run) ?? []).slice(0, news.first), ...news.new]);
      const chosen = Number(spectra.address.query().get("step") ?? Number.NaN);
      const step = steps.get(news.run).includes(chosen) ? chosen : news.step;
      if (step === null) return "no snapshot yet";
      const of = news.steps ? ` of ${news.steps.toLocaleString("en")}` : "";
      const newer = step < news.step ? `; the last is ${news.step.toLocaleString("en")}` : "";
      return `step ${step.toLocaleString("en")}${of}${newer} · ${news.count} ${news.count === 1 ? "snapshot" : "snapshots"} · ` +
        `${ago(news.updated)} · ${news.state}`;
    },

    snapshots(news, had) {
      const { unchanged } = spectra.address;
      if (!news) return unchanged();
      const now = { run: news.run, count: news.count, step: news.step, first: news.first ?? 0, new: news.new ?? [] };
      return had && had.run === now.run && had.count === now.count && had.step === now.step ? unchanged() : now;
    },

    pause: (live) => !live,
  });
})();
