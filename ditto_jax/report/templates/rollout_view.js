// One rollout → elements of the page: prompt, reply, word-level difference, verdict, advantages. Every text of a rollout
// is put into the page as text (textContent), never as markup.
"use strict";

const RolloutView = (() => {
  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  const said = (text) => element("div", text || "(nothing)", { class: "said", dir: "auto" });
  const small = (text) => element("p", text, { class: "small", dir: "auto" });
  const shown = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());
  const signed = (value) => (value === null ? "" : (value > 0 ? "+" : "") + shown(value));
  const inWords = (name) => name.replaceAll("_", " ");

  const textOf = (rollout) => (rollout.turns ? rollout.turns.filter((t) => t.author === "policy").map((t) => t.text).join("\n") : rollout.reply || "");

  function messages(prompt) {
    const length = prompt.reduce((sum, message) => sum + message.content.length, 0);
    const details = element("details");
    details.open = length <= 1500;
    details.append(element("summary", `Prompt (${length.toLocaleString("en")} characters)`));
    for (const message of prompt) details.append(element("div", message.role, { class: "role" }), said(message.content));
    return details;
  }

  function reply(rollout) {
    const part = element("div");
    if (!rollout.turns) part.append(said(rollout.reply));
    for (const turn of rollout.turns || []) {
      const box = element("div", null, { class: "turn" });
      box.append(element("div", `${turn.speaker} (${turn.author})`, { class: "role", dir: "auto" }), said(turn.text));
      part.append(box);
    }
    return part;
  }

  function dimensions(rollout) {
    const entries = Object.entries(rollout.dimensions || {});
    if (!entries.length) return [];
    const grid = element("table", null, { "aria-label": "Verdict by dimension" });
    for (const [name, value] of entries) {
      const line = element("tr");
      line.append(element("th", inWords(name), { scope: "row" }), element("td", shown(value)));
      grid.append(line);
    }
    return [grid];
  }

  function verdict(rollout, first) {
    const part = element("div");
    const line = element("p", "Verdict: ", { class: "stage" });
    const better = first && first !== rollout && rollout.score !== undefined && first.score !== undefined ? Math.sign(rollout.score - first.score) : 0;
    line.append(element("span", rollout.score === undefined ? "no reward" : `reward ${shown(rollout.score)}`, { class: `reward ${["down", "", "up"][better + 1]}` }));
    part.append(line, ...dimensions(rollout));
    const about = [rollout.detail, `outcome: ${inWords(rollout.outcome || "unknown")}`, `by ${rollout.judge || "unknown"}`];
    if (rollout.truncated) about.push("cut off by a token limit");
    if (rollout.kept === false) about.push("not kept for training");
    part.append(small(about.filter(Boolean).join(" · ")));
    if (rollout.critique) part.append(element("div", "The judge’s critique", { class: "role" }), said(rollout.critique));
    return part;
  }

  function feedback(rollout) {
    const given = rollout.feedback;
    if (!given) return [];
    const title = given.text ? "The words about this" : "No words about this";
    const about = [`by ${given.judge || "unknown"}`, given.outcome !== "ok" && `outcome: ${inWords(given.outcome || "")}`, given.leak && `withheld: ${given.leak}`, given.detail];
    const parts = [element("h5", title)];
    if (given.text) parts.push(said(given.text));
    return [...parts, small(about.filter(Boolean).join(" · "))];
  }

  function advantages(rollout) {
    const entries = Object.entries(rollout.advantage || {});
    if (!entries.length) return [small("No advantage: in no pool, no gradient.")];
    return [small(`Advantage: ${entries.map(([view, value]) => `${signed(value)} as ${inWords(view)}`).join(", ")}.`)];
  }

  /** Words of `before` and `after`, side by side in one text: deleted and inserted ones are marked and named. */
  function difference(before, after) {
    const details = element("details");
    details.open = true;
    details.append(element("summary", "Difference from the draft, word by word"));
    const box = element("div", null, { class: "said diff", dir: "auto" });
    const parts = Diff.diffWordsWithSpace(before, after, { timeout: 1500 });
    if (!parts) {
      details.append(small("The two are too long and too different to be compared here."));
      return details;
    }
    for (const part of parts) box.append(part.added ? element("ins", part.value) : part.removed ? element("del", part.value) : part.value);
    details.append(box);
    return details;
  }

  function rolloutPart(rollout, first, prompts) {
    const kind = rollout === first ? "first" : rollout.used_feedback ? "taught" : "";
    const part = element("section", null, { class: `rollout ${kind}` });
    const name = inWords(rollout.role || "rollout");
    part.append(element("h4", name.charAt(0).toUpperCase() + name.slice(1) + (rollout.used_feedback ? `, under ${rollout.used_feedback === first.feedback?.text ? "the words above" : "these words"}` : "")));
    if (rollout.used_feedback && rollout.used_feedback !== first.feedback?.text) part.append(said(rollout.used_feedback));
    if (rollout !== first && rollout.prompt !== first.prompt) {
      const own = messages(prompts[rollout.prompt]);
      own.open = false;
      part.append(own);
    }
    part.append(reply(rollout));
    if (rollout.used_feedback) part.append(difference(textOf(first), textOf(rollout)));
    part.append(verdict(rollout, first), ...advantages(rollout), ...feedback(rollout));
    for (const [what, values] of [["Facts", rollout.facts], ["Partners", rollout.partners]]) {
      if (values) part.append(small(`${what}: ${Object.entries(values).map(([key, value]) => `${inWords(key)} = ${value}`).join(", ")}.`));
    }
    return part;
  }

  return { element, inWords, messages, rolloutPart, said, shown, signed, small, textOf };
})();
