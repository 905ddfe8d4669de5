"use strict";
// Shared by rows and groups. Text of the data only ever becomes textContent: it cannot become markup.

const add = (parent, name, text = "", settings = {}) => {
  const { data, ...properties } = settings;
  const element = Object.assign(document.createElement(name), properties);
  if (text !== "") element.textContent = text;
  for (const [key, value] of Object.entries(data ?? {})) element.setAttribute(key, value);
  parent.append(element);
  return element;
};

const readData = (box) => JSON.parse(document.getElementById(box.dataset.source).textContent);

const fixed = (value, digits = 3) => (typeof value === "number" ? value.toFixed(digits) : "-");

let names = 0;

/** A select or input with its label; `change` is called with what it says, now and whenever it changes. */
const control = (parent, label, options, change) => {
  const id = `control-${names++}`;
  const box = add(parent, "div", "", { className: "field" });
  add(box, "label", label, { htmlFor: id });
  const field = add(box, options ? "select" : "input", "", { id });
  if (options) for (const [value, text] of options) add(field, "option", text, { value });
  else field.type = "search";
  field.addEventListener(options ? "change" : "input", () => change(field.value));
  return field;
};

/** Shows `size` of a list at a time, with buttons for the others. Returns a function that begins again with a list. */
const pager = (parent, size, noun, draw) => {
  const bar = add(parent, "div", "", { className: "pages" });
  const before = add(bar, "button", "Previous", { type: "button" });
  const after = add(bar, "button", "Next", { type: "button" });
  const says = add(bar, "span", "", { data: { role: "status" } });
  let list = [], start = 0;
  const show = () => {
    const end = Math.min(start + size, list.length);
    says.textContent = list.length ? `${start + 1} to ${end} of ${list.length} ${noun}` : `no ${noun}`;
    before.disabled = start === 0;
    after.disabled = end === list.length;
    draw(list.slice(start, end), start);
  };
  before.addEventListener("click", () => { start = Math.max(0, start - size); show(); });
  after.addEventListener("click", () => { start += size; show(); });
  return (found) => { list = found; start = 0; show(); };
};

const probabilities = (parent, probs) => {
  const bars = add(parent, "div", "", { className: "bars" });
  for (const grade of [4, 3, 2, 1]) {
    add(bars, "span", `P(${grade})`);
    const track = add(bars, "span");
    add(track, "i").style.width = `${100 * probs[grade - 1]}%`;
    add(bars, "span", fixed(probs[grade - 1], 4));
  }
};
