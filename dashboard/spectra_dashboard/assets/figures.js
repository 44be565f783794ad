"use strict";
// All figures: which are in view, what a click on one opens, how one is saved; and the theme.
(() => {
  const drawn = (id) => document.getElementById(id)?.querySelector(".js-plotly-plot") ?? null;
  window.spectra = Object.assign(window.spectra ?? {}, { figures: { drawn } });

  Object.assign((window.dash_clientside ??= {}).spectra ??= {}, {
    // a cell of a map opens its matrix
    open(click, places) {
      const point = click?.points?.[0];
      const name = point && places?.[`${point.y}|${point.x}`];
      if (name) window.dash_clientside.set_props({ control: "matrix" }, { value: name });
      return spectra.address.unchanged();
    },
  });

  // figures of matrices are requested when they come into view, and grow only while in view
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (target.isConnected) window.dash_clientside.set_props({ type: "seen", key: target.dataset.key }, { data: isIntersecting });
    }
  }, { rootMargin: "200px" });
  const watched = new WeakSet();
  function watch() {
    for (const panel of document.querySelectorAll(".panel[data-key]")) {
      if (watched.has(panel)) continue;
      watched.add(panel);
      sight.observe(panel);
    }
  }

  // tables follow the theme of the page
  const mirror = () => { document.body.dataset.agThemeMode = document.documentElement.dataset.mantineColorScheme ?? "light"; };

  document.addEventListener("DOMContentLoaded", () => {
    mirror();
    new MutationObserver(mirror).observe(document.documentElement, { attributeFilter: ["data-mantine-color-scheme"] });
    new MutationObserver(watch).observe(document.body, { childList: true, subtree: true });
  });

  // figures are saved as they look on paper, regardless of the theme
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
})();
