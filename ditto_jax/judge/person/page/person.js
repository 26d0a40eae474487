// Asks every second what is waiting. A question that is there already keeps what was typed; one that has gone leaves.
"use strict";

const place = document.getElementById("questions");
const state = document.getElementById("state");
const cards = new Map();

async function post(number, text, declined) {
  const body = JSON.stringify({ text, declined });
  return fetch(`/answers/${number}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

function card(question) {
  const form = answerForm(question.schema);
  const problem = make("p", { className: "problem" });
  const send = make("button", { className: "send", type: "submit", textContent: "Send" });
  const decline = make("button", { type: "button", textContent: "Decline to answer", title: "The run counts a refusal: no score, no words" });
  const said = question.messages.map(({ role, text }) =>
    make("div", { className: "said" }, make("div", { className: "role", textContent: role }), make("pre", { textContent: text, tabIndex: 0 })));
  const element = make("form", { className: "question" },
    make("h2", { textContent: `Question ${question.number}` }), ...said, form.element, problem, send, " ", decline);

  const submit = async (text, declined) => {
    send.disabled = decline.disabled = true;
    try {
      const reply = await post(question.number, text, declined);
      if (!reply.ok && reply.status !== 410) throw new Error((await reply.json()).error?.message ?? `status ${reply.status}`);
      remove(question.number);
    } catch (error) {
      problem.textContent = `not sent: ${error.message}`;
      send.disabled = decline.disabled = false;
    }
  };
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    let text;
    try {
      text = form.read();
    } catch (error) {
      problem.textContent = error.message;
      return;
    }
    submit(text, false);
  });
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element.requestSubmit();
  });
  decline.addEventListener("click", () => submit("the person declined to answer", true));
  return element;
}

function remove(number) {
  cards.get(number)?.remove();
  cards.delete(number);
  document.querySelector(".question textarea, .question input, .question select")?.focus();
}

async function look() {
  try {
    const { waiting, answered } = await (await fetch("/waiting.json")).json();
    const numbers = new Set(waiting.map(({ number }) => number));
    for (const number of [...cards.keys()]) if (!numbers.has(number)) remove(number);
    for (const question of waiting) {
      if (cards.has(question.number)) continue;
      cards.set(question.number, card(question));
      place.append(cards.get(question.number));
    }
    state.textContent = waiting.length ? `${waiting.length} waiting, ${answered} answered` : `Nothing is waiting, ${answered} answered`;
  } catch {
    state.textContent = "The server does not answer: it has ended, or the run's machine sleeps";
  }
  setTimeout(look, 1000);
}

look();
