// The rollout browser: filters over the index, a table, one item at a time, one scene at several steps. Every text of a
// rollout is put into the page as text (textContent), never as markup.
"use strict";

(() => {
  const { element, inWords, messages, rolloutPart, said, shown, signed, small, textOf } = RolloutView;
  const embedded = JSON.parse(document.getElementById("rollout-index").textContent);
  const browser = document.getElementById("rollout-browser");
  const form = document.getElementById("rollout-filters");
  const panel = document.getElementById("rollout-item");
  const scenePicker = document.getElementById("scene-choice");
  const sceneSteps = document.getElementById("scene-steps");
  const MOST_SCENE_STEPS = 12;
  const MOST_SCENES = 300;
  const PAGE_SIZE = 15;
  let index = null;
  let columns = null;
  let found = [];
  let order = { field: null, descending: false };
  let lastHead = ""; // of the column that was clicked, and the direction
  let table = null;
  let opened = -1;

  // --- data ---------------------------------------------------------------------------------------------------------

  const blocks = new Map();
  const MOST_BLOCKS = 24;

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  async function fetched(path) {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response.json();
  }

  /** The texts of the step that an item is of. */
  function block(at) {
    const parts = [columns.run[at], columns.source[at], columns.step[at]];
    const name = parts.join("-");
    if (!blocks.has(name)) {
      if (blocks.size >= MOST_BLOCKS) blocks.delete(blocks.keys().next().value);
      const text = document.getElementById(`block-${name}`)?.textContent;
      blocks.set(name, text === undefined ? fetched(`rollouts/${parts.join("/")}.json`) : unpacked(text));
    }
    return blocks.get(name);
  }

  const address = (at) => [columns.run, columns.source, columns.step, columns.row, columns.sample].map((column) => column[at]).join(".");
  const change = (at) => (columns.before[at] === null || columns.after[at] === null ? null : columns.after[at] - columns.before[at]);

  // --- filters ------------------------------------------------------------------------------------------------------

  function options(select, names, any = "any") {
    select.replaceChildren(element("option", any, { value: "" }));
    names.forEach((name, number) => select.append(element("option", inWords(name) || "(no name)", { value: number })));
  }

  function fillFilters() {
    if (form.elements.run) options(form.elements.run, embedded.runs, "all");
    options(form.elements.source, index.sources, "all");
    options(form.elements.task, index.tasks, "all");
    options(form.elements.outcome, index.outcomes);
    options(form.elements.role, index.roles);
    options(form.elements.flag, index.flags);
  }

  const asNumber = (name) => (form.elements[name].value === "" ? null : Number(form.elements[name].value));
  const choice = (name) => (form.elements[name] && form.elements[name].value !== "" ? Number(form.elements[name].value) : null);

  const CHANGES = { rose: (c) => c !== null && c > 0, same: (c) => c === 0, fell: (c) => c !== null && c < 0, none: (c) => c === null };

  /** Numbers of the items that every set filter lets through. */
  function filtered() {
    const tests = [];
    const equals = (name, column) => { const wanted = choice(name); if (wanted !== null) tests.push((at) => column[at] === wanted); };
    const holds = (name, column) => { const wanted = choice(name); if (wanted !== null) tests.push((at) => (column[at] >> wanted) & 1); };
    const between = (name, column) => {
      const [low, high] = [asNumber(`${name}_low`), asNumber(`${name}_high`)];
      if (low !== null) tests.push((at) => column[at] !== null && column[at] >= low);
      if (high !== null) tests.push((at) => column[at] !== null && column[at] <= high);
    };
    equals("run", columns.run);
    equals("source", columns.source);
    equals("task", columns.task);
    holds("outcome", columns.outcomes);
    holds("role", columns.roles);
    holds("flag", columns.flags);
    between("step", columns.step);
    between("reward", columns.before);
    const changed = CHANGES[form.elements.change.value];
    if (changed) tests.push((at) => changed(change(at)));
    const part = form.elements.scene.value.trim().toLowerCase();
    if (part) {
      const fits = index.prompts.map((name) => name.toLowerCase().includes(part));
      tests.push((at) => fits[columns.prompt[at]]);
    }
    const kept = [];
    for (let at = 0; at < columns.run.length; at += 1) if (tests.every((test) => test(at))) kept.push(at);
    return kept;
  }

  const SORTED = {
    run: (at) => columns.run[at], step: (at) => columns.step[at], task: (at) => columns.task[at],
    scene: (at) => index.prompts[columns.prompt[at]], sample: (at) => columns.sample[at], before: (at) => columns.before[at],
    after: (at) => columns.after[at], change: (at) => change(at),
  };

  function sorted(items) {
    const key = SORTED[order.field];
    if (!key) return items;
    const sign = order.descending ? -1 : 1;
    const known = (value) => value !== null && value !== undefined;
    return items.slice().sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!known(x) || !known(y)) return known(y) - known(x) || a - b;
      return (x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
    });
  }

  function applyFilters() {
    found = sorted(filtered());
    const all = columns.run.length.toLocaleString("en");
    document.getElementById("rollout-count").textContent =
      `${found.length.toLocaleString("en")} of ${all} items (${index.rollouts.toLocaleString("en")} rollouts)`;
    browser.setAttribute("aria-busy", "true");
    return table.setPage(1).then(() => browser.removeAttribute("aria-busy"));
  }

  /** Sorts as the form says, until the head of a column is clicked. */
  function applyOrder() {
    const [field, direction] = form.elements.order.value.split(":");
    order = { field: field || null, descending: direction === "desc" };
    return applyFilters();
  }

  // --- the table ----------------------------------------------------------------------------------------------------

  const names = (bits, all) => all.filter((_, number) => (bits >> number) & 1).map(inWords).join(", ");

  function row(at) {
    return {
      at, run: embedded.runs[columns.run[at]], step: columns.step[at], task: index.tasks[columns.task[at]],
      scene: index.prompts[columns.prompt[at]], sample: columns.sample[at], before: shown(columns.before[at]),
      after: shown(columns.after[at]), change: signed(change(at)), outcome: names(columns.outcomes[at], index.outcomes),
      marks: names(columns.flags[at], index.flags),
    };
  }

  /** The page of rows that the table asks for, from the filtered items; sorting is done here, on the columns. */
  async function pageOf(_url, _config, wanted) {
    const by = wanted.sort?.[0];
    const head = by ? `${by.field}:${by.dir}` : "";
    if (head !== lastHead) {
      lastHead = head;
      order = { field: by?.field ?? null, descending: by?.dir === "desc" };
      found = sorted(filtered());
    }
    const first = ((wanted.page || 1) - 1) * PAGE_SIZE;
    return { data: found.slice(first, first + PAGE_SIZE).map(row), last_page: Math.max(1, Math.ceil(found.length / PAGE_SIZE)) };
  }

  function link(cell) {
    const at = cell.getData().at;
    return element("a", `${columns.step[at]}`, { href: `#item=${address(at)}`, "aria-label": `open: step ${columns.step[at]}, ${index.prompts[columns.prompt[at]]}, sample ${columns.sample[at]}` });
  }

  function makeTable() {
    const text = (title, field, rest = {}) => ({ title, field, formatter: "plaintext", ...rest });
    const number = (title, field, rest = {}) => text(title, field, { hozAlign: "right", minWidth: 92, widthGrow: 0.4, ...rest });
    const several = embedded.runs.length > 1;
    return new Tabulator("#rollout-table", {
      columns: [
        { title: "Step", field: "step", formatter: link, minWidth: 68, widthGrow: 0.2, responsive: 0 },
        ...(several ? [text("Run", "run", { minWidth: 100, responsive: 4 })] : []),
        text("Task", "task", { minWidth: 90, responsive: 1 }),
        text("Scene", "scene", { minWidth: 150, widthGrow: 1.6, responsive: 2 }),
        number("Sample", "sample", { minWidth: 100, responsive: 6 }),
        number("Draft", "before", { responsive: 0 }),
        number("Refined", "after", { minWidth: 100, responsive: 0 }),
        number("Change", "change", { minWidth: 100, responsive: 1 }),
        text("Outcome", "outcome", { minWidth: 90, responsive: 3, headerSort: false }),
        text("Marks", "marks", { minWidth: 90, responsive: 5, headerSort: false }),
      ],
      layout: "fitColumns",
      responsiveLayout: "hide",
      pagination: true,
      paginationMode: "remote",
      paginationSize: PAGE_SIZE,
      paginationButtonCount: 3,
      sortMode: "remote",
      ajaxURL: "columns",
      ajaxRequestFunc: pageOf,
      placeholder: "No rollout passes these filters.",
      rowFormatter: (shownRow) => shownRow.getElement().classList.toggle("opened", shownRow.getData().at === opened),
    });
  }

  // --- one item -----------------------------------------------------------------------------------------------------

  function neighbours(at) {
    const bar = element("div", null, { class: "actions" });
    const place = found.indexOf(at);
    for (const [label, other] of [["Previous", found[place - 1]], ["Next", found[place + 1]]]) {
      const button = element("button", label, { type: "button", class: "plain" });
      button.disabled = place < 0 || other === undefined;
      button.addEventListener("click", () => { location.hash = `item=${address(other)}`; });
      bar.append(button);
    }
    bar.append(element("a", "Link to this item", { href: `#item=${address(at)}` }));
    const steps = stepsOf(columns.run[at], columns.prompt[at]);
    if (steps.size > 1) {
      const button = element("button", `This scene at ${steps.size} steps`, { type: "button", class: "plain" });
      button.addEventListener("click", () => { showScene(columns.run[at], columns.prompt[at]); document.getElementById("scenes").scrollIntoView(); });
      bar.append(button);
    }
    const close = element("button", "Close", { type: "button", class: "plain" });
    close.addEventListener("click", () => { location.hash = "rollouts"; });
    bar.append(close);
    return bar;
  }

  async function openItem(at) {
    opened = at;
    const texts = await block(at);
    if (opened !== at) return;
    const rollouts = texts.items[`${columns.row[at]}.${columns.sample[at]}`];
    const run = embedded.runs.length > 1 ? `${embedded.runs[columns.run[at]]}, ` : "";
    const source = index.sources[columns.source[at]];
    const title = element("h3", `${run}${source}, step ${columns.step[at]}, ${index.prompts[columns.prompt[at]]}, sample ${columns.sample[at]}`, { id: "rollout-title", tabindex: "-1", dir: "auto" });
    const parts = [title, neighbours(at), messages(texts.prompts[rollouts[0].prompt])];
    if (rollouts[0].gold) parts.push(small(`Reference answer: ${rollouts[0].gold}`));
    for (const rollout of rollouts) parts.push(rolloutPart(rollout, rollouts[0], texts.prompts));
    panel.replaceChildren(...parts);
    panel.setAttribute("aria-labelledby", "rollout-title");
    panel.hidden = false;
    table.getRows().forEach((shownRow) => shownRow.reformat());
    title.scrollIntoView({ block: "start" });
    title.focus({ preventScroll: true });
  }

  // --- one scene at several steps -----------------------------------------------------------------------------------

  const sceneIndex = new Map();

  function indexScenes() {
    for (let at = 0; at < columns.run.length; at += 1) {
      const name = `${columns.run[at]}.${columns.prompt[at]}`;
      if (!sceneIndex.has(name)) sceneIndex.set(name, new Map());
      const steps = sceneIndex.get(name);
      if (!steps.has(columns.step[at])) steps.set(columns.step[at], []);
      steps.get(columns.step[at]).push(at);
    }
  }

  const stepsOf = (run, prompt) => sceneIndex.get(`${run}.${prompt}`) || new Map();

  function fillScenes() {
    const repeated = [...sceneIndex].filter(([, steps]) => steps.size > 1).sort((a, b) => b[1].size - a[1].size).slice(0, MOST_SCENES);
    scenePicker.replaceChildren(element("option", repeated.length ? "choose a scene" : "no scene occurs at more than one step", { value: "" }));
    for (const [name, steps] of repeated) {
      const [run, prompt] = name.split(".").map(Number);
      const where = embedded.runs.length > 1 ? `${embedded.runs[run]}: ` : "";
      scenePicker.append(element("option", `${where}${index.prompts[prompt]} (${steps.size} steps)`, { value: name }));
    }
  }

  async function showScene(run, prompt) {
    scenePicker.value = `${run}.${prompt}`;
    const steps = [...stepsOf(run, prompt)].sort((a, b) => a[0] - b[0]);
    const few = steps.length <= MOST_SCENE_STEPS ? steps
      : Array.from({ length: MOST_SCENE_STEPS }, (_, i) => steps[Math.round((i * (steps.length - 1)) / (MOST_SCENE_STEPS - 1))]);
    const cards = [];
    for (const [step, items] of few) {
      const texts = await block(items[0]);
      const candidates = items.map((at) => [at, texts.items[`${columns.row[at]}.${columns.sample[at]}`]]);
      const [at, rollouts] = candidates.find(([, parts]) => parts.some((part) => part.used_feedback)) || candidates[0];
      cards.push(sceneCard(at, step, rollouts));
    }
    sceneSteps.replaceChildren(...(few.length < steps.length ? [small(`${few.length} of ${steps.length} steps, evenly spaced.`)] : []), ...cards);
  }

  function sceneCard(at, step, rollouts) {
    const card = element("article", null, { class: "item" });
    const title = element("h4");
    title.append(element("a", `Step ${step}`, { href: `#item=${address(at)}` }));
    const first = rollouts[0];
    const taught = rollouts.find((rollout) => rollout.used_feedback);
    const words = (taught && taught.used_feedback) || (first.feedback && first.feedback.text);
    card.append(title, element("div", `${inWords(first.role || "draft")}: reward ${shown(first.score)}`, { class: "stage" }), said(textOf(first)));
    card.append(element("div", "words about it", { class: "stage" }), said(words || "(none were asked for)"));
    if (taught) card.append(element("div", `${inWords(taught.role)}: reward ${shown(taught.score)}`, { class: "stage" }), said(textOf(taught)));
    return card;
  }

  // --- the page -----------------------------------------------------------------------------------------------------

  function find(name) {
    const wanted = name.split(".").map(Number);
    const places = [columns.run, columns.source, columns.step, columns.row, columns.sample];
    return columns.run.findIndex((_, at) => places.every((column, i) => column[at] === wanted[i]));
  }

  function followHash() {
    const name = location.hash.match(/^#item=([0-9.]+)$/)?.[1];
    const at = name === undefined ? -1 : find(name);
    if (at >= 0) {
      openItem(at).catch(complain);
    } else if (name !== undefined) {
      complain(new Error(`Rollout ${name} is not in this page.`));
    } else if (location.hash === "#rollouts") {
      opened = -1;
      panel.hidden = true;
      table.getRows().forEach((shownRow) => shownRow.reformat());
    }
  }

  function complain(error) {
    panel.replaceChildren(element("p", error.message));
    panel.hidden = false;
  }

  async function start() {
    const line = document.getElementById("rollout-none");
    const none = line.textContent;
    if (embedded.served) line.textContent = "The index of the rollouts is being made; that of a large run takes a while.";
    index = embedded.served ? await fetched("rollouts.json") : embedded;
    columns = index.columns;
    line.textContent = none;
    if (!columns.run.length) return;
    browser.hidden = false;
    line.hidden = true;
    fillFilters();
    indexScenes();
    fillScenes();
    found = filtered();
    table = makeTable();
    await new Promise((ready) => table.on("tableBuilt", ready));
    applyFilters();
    form.addEventListener("input", (event) => (event.target.name === "order" ? applyOrder() : applyFilters()));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(applyOrder));
    scenePicker.addEventListener("change", () => {
      if (!scenePicker.value) sceneSteps.replaceChildren();
      else showScene(...scenePicker.value.split(".").map(Number)).catch(complain);
    });
    addEventListener("hashchange", followHash);
    followHash();
    browser.dataset.ready = "yes";
  }

  const begin = () => start().catch((error) => {
    const line = document.getElementById("rollout-none");
    line.textContent = `The rollouts cannot be shown: ${error.message}`;
    line.hidden = false;
  });
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", begin);
  else begin();
})();
