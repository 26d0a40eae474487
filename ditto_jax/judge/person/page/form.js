// A JSON schema → fields to fill in, and back: `read()` returns the value, or throws an Error that says what is missing.
"use strict";

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// A reference is replaced by what it names; of alternatives the first that is not null is asked for.
function resolved(schema, root) {
  let found = schema ?? {};
  for (let depth = 0; depth < 16; depth += 1) {
    if (found.$ref) found = { ...root.$defs?.[found.$ref.split("/").pop()], ...found, $ref: undefined };
    else if (found.allOf?.length === 1) found = { ...found.allOf[0], ...found, allOf: undefined };
    else if (found.anyOf) {
      const one = found.anyOf.find((option) => option.type !== "null") ?? {};
      const optional = found.anyOf.some((option) => option.type === "null");
      found = { ...one, ...found, anyOf: undefined, optional };
    } else return found;
  }
  return found;
}

function field(name, given, root, required) {
  const schema = resolved(given, root);
  const must = required && !schema.optional;
  if (schema.enum || schema.const !== undefined) return choice(name, schema, must);
  if (schema.type === "object" && schema.properties) return group(name, schema, root);
  if (schema.type === "integer" || schema.type === "number") return number(name, schema, must);
  if (schema.type === "boolean") return yesOrNo(name, schema);
  if (schema.type === "array" && resolved(schema.items, root).type === "string") return lines(name, schema, must);
  if (schema.type === "string") return text(name, schema, must);
  return anything(name, schema, must);
}

const labelled = (name, schema, hint, input) => {
  const parts = [make("span", { textContent: name })];
  const about = [schema.description, hint].filter(Boolean).join(" · ");
  if (about) parts.push(make("small", { textContent: about }));
  return make("label", {}, ...parts, input);
};

function group(name, schema, root) {
  const required = new Set(schema.required ?? []);
  const parts = Object.entries(schema.properties).map(([key, one]) => [key, field(key, one, root, required.has(key))]);
  const box = name
    ? make("fieldset", {}, make("legend", { textContent: name }), ...parts.map(([, part]) => part.element))
    : make("div", {}, ...parts.map(([, part]) => part.element));
  const read = () => {
    const value = {};
    for (const [key, part] of parts) {
      const found = part.read();
      if (found !== undefined) value[key] = found;
    }
    return value;
  };
  return { element: box, read };
}

function number(name, schema, must) {
  const step = schema.type === "integer" ? 1 : "any";
  const input = make("input", { type: "number", step, required: must });
  if (schema.minimum !== undefined) input.min = schema.minimum;
  if (schema.maximum !== undefined) input.max = schema.maximum;
  const range = schema.minimum !== undefined || schema.maximum !== undefined;
  const hint = range ? `${schema.minimum ?? "…"} to ${schema.maximum ?? "…"}` : "";
  return { element: labelled(name, schema, hint, input), read: () => (input.value === "" ? undefined : Number(input.value)) };
}

function choice(name, schema, must) {
  const values = schema.enum ?? [schema.const];
  const input = make("select", { required: must }, make("option", { value: "", textContent: "" }));
  values.forEach((value, index) => input.append(make("option", { value: String(index), textContent: String(value) })));
  if (values.length === 1) input.value = "0";
  return { element: labelled(name, schema, "", input), read: () => (input.value === "" ? undefined : values[Number(input.value)]) };
}

function yesOrNo(name, schema) {
  const input = make("input", { type: "checkbox" });
  return { element: labelled(name, schema, "", input), read: () => input.checked };
}

function text(name, schema, must) {
  const input = make("textarea", { required: must });
  if (schema.maxLength !== undefined) input.maxLength = schema.maxLength;
  return { element: labelled(name, schema, "", input), read: () => (input.value.trim() === "" && !must ? undefined : input.value.trim()) };
}

function lines(name, schema, must) {
  const input = make("textarea", { required: must });
  return { element: labelled(name, schema, "one a line", input), read: () => input.value.split("\n").map((one) => one.trim()).filter(Boolean) };
}

function anything(name, schema, must) {
  const input = make("textarea", { required: must, spellcheck: false });
  const read = () => {
    if (input.value.trim() === "") return undefined;
    try {
      return JSON.parse(input.value);
    } catch {
      throw new Error(`${name}: this is not JSON`);
    }
  };
  return { element: labelled(name, schema, `JSON of this schema: ${JSON.stringify(schema)}`, input), read };
}

// What a question asks for: fields of its schema, or one free text. `read` returns the text to send.
function answerForm(schema) {
  if (!schema) {
    const reply = text("Your reply", {}, true);
    return { element: reply.element, read: () => reply.read() };
  }
  const found = field("", schema, schema, true);
  return { element: found.element, read: () => JSON.stringify(found.read()) };
}
