// Draws the charts of the page when they come into view, in the colours of the present scheme; legend buttons switch
// series off. Specifications are data of the page; expressions in them are interpreted, never evaluated as code.
"use strict";

(() => {
  const specs = JSON.parse(document.getElementById("chart-specs").textContent);
  const views = new Map();
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // Data stay as they are: the name of a run may begin like that of an ink.
  function coloured(value, key) {
    if (key === "data" || key === "title") return value;
    if (typeof value === "string") return value.startsWith("ink:") ? colour(value.slice(4)) : value;
    if (Array.isArray(value)) return value.map((entry) => coloured(entry));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, coloured(entry, name)]));
  }

  async function draw(plot) {
    const whole = coloured(specs[plot.id]);
    views.get(plot.id)?.finalize();
    const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", tooltip: { theme: "custom" } };
    const result = await vegaEmbed(plot, whole, options);
    views.set(plot.id, result);
    await hide(plot);
    plot.dataset.drawn = dark.matches ? "dark" : "light";
  }

  function hide(plot) {
    const off = [...plot.closest("figure").querySelectorAll('.key[aria-pressed="false"]')];
    return views.get(plot.id).view.signal("hidden", off.map((key) => key.dataset.series)).runAsync();
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });

  document.querySelectorAll(".plot").forEach((plot) => seen.observe(plot));
  dark.addEventListener("change", () => [...views.keys()].forEach((id) => draw(document.getElementById(id))));
  addEventListener("beforeprint", () => document.querySelectorAll(".plot:not([data-drawn])").forEach(draw));
  document.querySelectorAll(".key").forEach((key) => key.addEventListener("click", () => {
    key.setAttribute("aria-pressed", String(key.getAttribute("aria-pressed") === "false"));
    const plot = key.closest("figure").querySelector(".plot");
    if (views.has(plot.id)) hide(plot);
  }));
})();
