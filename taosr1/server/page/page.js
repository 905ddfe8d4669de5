// The page: a form, the judged products, their reasons as they are decoded, and snippets of the same request.
// Text of others reaches the document by textContent alone.

import { Failed, ask, events, hasKey, sentence, setKey } from "./server.js";
import { GRADES, SNIPPETS, cumulativeTier, readProducts, shown, visible } from "./texts.js";

const STEPS = ["query", "item", "category", "attributes", "decision"];
const find = (id) => document.getElementById(id);
const WELCOME = find("summary").textContent;
const base = new URL(".", document.baseURI).href.replace(/\/$/, "");

// judges: one or two of {name, ask ("" or "compare"), beta, served (beta), results}. rows: one per product.
const state = { info: null, body: null, judges: [], rows: [], needsKey: false, working: null };

// --- Building blocks --------------------------------------------------------------------------------------------------

function make(tag, text = "", properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== "") element.textContent = text;
  return element;
}
const copyOf = (id) => find(id).content.firstElementChild.cloneNode(true);
const percent = (share) => `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;
const short = (hash) => String(hash ?? "").slice(0, 8);
const gradeName = (grade) => `${grade} ${GRADES[grade]}`;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function fillFacts(list, facts) {
  list.replaceChildren(...facts.filter(([, value]) => value !== undefined && value !== "").flatMap(
    ([name, value]) => [make("dt", name), make("dd", String(value))]));
}

// --- Errors, waiting, the key -----------------------------------------------------------------------------------------

function sayError(problem) {
  const key = hasKey() ? "The server does not take this API key." : "This server needs its API key: write it into the field above the examples.";
  find("error-text").textContent = problem.status === 401 ? key : visible(problem.message);
  find("error").hidden = false;
  find("again").hidden = !(problem instanceof Failed) || problem.status === 401 || (problem.status >= 400 && problem.status < 429);
  if (problem.status === 401) askForKey();
}

function askForKey() {
  state.needsKey = true;
  find("key-part").hidden = false;
  find("key").focus();
}

const waitingWords = (seconds, words) => `${words}. Asking again in ${plural(seconds, "second")}.`;

// --- The judges -------------------------------------------------------------------------------------------------------

async function loadInfo() {
  try {
    // A large model takes minutes to load. Once something is being judged, the summary belongs to that.
    const waiting = (left, words) => { if (!state.working) find("summary").textContent = waitingWords(left, words); };
    state.info = await (await ask("info", undefined, { waiting, maxTries: Infinity })).json();
  } catch (problem) {
    sayError(problem);
    return;
  }
  find("error").hidden ||= !state.working;
  if (!state.working) find("summary").textContent = WELCOME;
  const info = state.info, other = info.compare;
  find("model-name").textContent = visible(String(info.model));
  const facts = (judge, label) => [
    [label, visible(String(judge.model))], ["SHA-256 of the model", judge.model_sha],
    ["rubric (hash of the prompt's wording)", judge.rubric], ["beta", judge.beta], ["temperature", judge.temperature],
  ];
  const server = [["taosr1", info.version]];
  fillFacts(find("facts"), [...facts(info, "model"), ...(other ? facts(other, "second model") : []), ...server]);
  if (info.fields) find("fields").textContent = `This judge reads: ${info.fields.join(", ")}.`;
  find("compare-part").hidden = !other;
  find("compare-how").hidden = Boolean(other);
  if (other) find("compare-name").textContent = visible(String(other.model));
}

// --- Judging ----------------------------------------------------------------------------------------------------------

async function judge() {
  state.working?.abort();
  const working = state.working = new AbortController();
  find("error").hidden = true;
  const began = performance.now();
  try {
    const products = readProducts(find("products").value);
    state.body = { query: find("query").value, products };
    showSnippet();
    find("results").setAttribute("aria-busy", "true");
    find("judge").textContent = "Judging …";
    find("summary").textContent = `Judging ${plural(products.length, "product")} …`;
    setKey(find("key").value);
    const options = { signal: working.signal, waiting: (left, words) => { find("summary").textContent = waitingWords(left, words); } };
    const asked = find("compare").checked && state.info?.compare ? ["", "compare"] : [""];
    const replies = await Promise.all(asked.map(async (which) => {
      const body = which ? { ...state.body, judge: which } : state.body;
      return (await ask("score", body, options)).json();
    }));
    if (!state.info) await loadInfo();
    showResults(replies.map((reply, place) => ({ ...reply, ask: asked[place] })), performance.now() - began);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    find("summary").textContent = "Nothing was judged.";
    find("controls").hidden = find("table").hidden = true;
    sayError(problem);
  } finally {
    if (state.working === working) {
      find("results").removeAttribute("aria-busy");
      find("judge").textContent = "Judge";
    }
  }
}

function showResults(replies, tookMs) {
  for (const row of state.rows) row.open?.abort();
  state.judges = replies.map((reply) => ({
    name: visible(String(reply.model)), ask: reply.ask, beta: reply.beta, served: reply.beta, results: reply.results,
  }));
  state.rows = state.body.products.map((product, place) => makeRow(product, place));
  state.took = `in ${(tookMs / 1000).toFixed(2)} s`;
  const compared = state.judges.length > 1;
  find("table").classList.toggle("compared", compared);
  find("heads").replaceChildren(make("th", "Product", { scope: "col" }),
    ...state.judges.map((one) => make("th", one.name, { scope: "col" })));
  find("betas").replaceChildren(...state.judges.map(makeBeta));
  find("controls").hidden = find("table").hidden = state.rows.length === 0;
  order();
  retier();
  if (matchMedia("(max-width: 65.99rem)").matches) find("results").scrollIntoView(); // they are below the form
}

function makeRow(product, place) {
  const [title, rest] = shown(product);
  const tr = make("tr"), name = make("th", "", { scope: "row" });
  const text = make("span", visible(title) || "(no title)", { className: "title", dir: "auto" });
  const why = make("button", "Reasons", { type: "button", className: "why" });
  why.setAttribute("aria-expanded", "false");
  why.setAttribute("aria-label", `Reasons for ${visible(title).slice(0, 80)}`);
  name.append(text);
  const under = make("span", "", { className: "under" });
  if (rest) under.append(make("span", visible(rest), { className: "rest quiet", dir: "auto" }));
  under.append(why);
  name.append(under);
  const cells = state.judges.map((one) => {
    const cell = make("td");
    cell.dataset.judge = one.name; // shown where the table's head is not
    cell.append(makeVerdict(one.results[place]));
    return cell;
  });
  const verdicts = cells.map((cell) => ({ tier: cell.querySelector(".tier"), line: cell.querySelector(".strip b") }));
  tr.append(name, ...cells);
  const row = { place, product, tr, why, verdicts, panel: null, open: null };
  why.addEventListener("click", () => toggle(row));
  return row;
}

function makeVerdict(result) {
  const verdict = copyOf("verdict"), part = (name) => verdict.querySelector(name);
  part(".v-grade dd").textContent = gradeName(result.grade);
  part(".v-score dd").textContent = result.score.toFixed(3);
  const number = (name, value) => {
    const item = make("li");
    item.append(make("span", name), " ", make("span", value.toFixed(2)));
    part(".numbers").append(item);
  };
  for (const grade of [4, 3, 2, 1]) {
    part(`.strip .g${grade}`).style.width = percent(result.probs[grade - 1]);
    number(`P(${grade})`, result.probs[grade - 1]);
  }
  number("label mass", result.label_mass);
  if (result.outside) verdict.append(outsideNote(result.outside));
  return verdict;
}

function outsideNote(reason) {
  const note = make("div", "", { className: "outside" });
  note.append(make("dt", "Outside"), make("dd", `Outside of what this judge has learned, so the grade means little (${visible(reason)}).`));
  return note;
}

// --- Tiers and order --------------------------------------------------------------------------------------------------

function makeBeta(one, number) {
  const part = copyOf("beta-part"), slider = part.querySelector("input"), reset = part.querySelector("button");
  slider.id = `beta-${number}`;
  part.querySelector("label").htmlFor = slider.id;
  if (state.judges.length > 1) part.querySelector(".of").textContent = `Beta of ${one.name}`;
  part.querySelector(".mark").style.left = `calc(var(--thumb) / 2 + (100% - var(--thumb)) * ${(one.served - 0.005) / 0.995})`;
  reset.textContent = `served ${one.served.toFixed(3)}`;
  reset.title = "Back to the beta that this server uses";
  const set = (beta) => { one.beta = beta; retier(); };
  slider.addEventListener("input", () => set(Number(slider.value)));
  reset.addEventListener("click", () => { slider.value = one.served; set(one.served); });
  slider.value = one.served;
  return part;
}

// Everything that depends on beta: called for each move of a slider, so it touches little.
function retier() {
  const counts = state.judges.map((one, number) => {
    const found = { Good: 0, Mid: 0, Bad: 0 };
    for (const row of state.rows) {
      const tier = cumulativeTier(one.results[row.place].probs, one.beta), { tier: label, line } = row.verdicts[number];
      found[tier] += 1;
      line.style.left = percent(one.beta);
      if (label.textContent !== tier) {
        label.textContent = tier;
        label.className = `tier ${tier.toLowerCase()}`;
      }
    }
    const control = find("betas").children[number];
    control.querySelector("output").textContent = one.beta.toFixed(3);
    control.querySelector("input").setAttribute("aria-valuetext", `${one.beta.toFixed(3)}; served ${one.served.toFixed(3)}`);
    control.querySelector("button").disabled = one.beta === one.served;
    return found;
  });
  let differ = 0;
  for (const row of state.rows) {
    const tiers = new Set(row.verdicts.map((verdict) => verdict.tier.textContent));
    row.tr.classList.toggle("differs", tiers.size > 1);
    differ += tiers.size > 1;
  }
  const said = counts.map((found, number) => {
    const whose = counts.length > 1 ? `${state.judges[number].name}: ` : "";
    return `${whose}${found.Good} Good, ${found.Mid} Mid, ${found.Bad} Bad at beta ${state.judges[number].beta.toFixed(3)}`;
  });
  const compared = counts.length > 1 ? ` Tiers differ for ${plural(differ, "product")}.` : "";
  find("summary").textContent = state.rows.length ? `${plural(state.rows.length, "product")} ${state.took}. ${said.join("; ")}.${compared}` : "No products were given.";
}

function order() {
  const rows = [...state.rows], scores = state.judges[0].results;
  if (document.querySelector("[name=order]:checked").value === "score") {
    rows.sort((a, b) => scores[b.place].score - scores[a.place].score || a.place - b.place);
  }
  find("rows").replaceChildren(...rows.flatMap((row) => (row.panel ? [row.tr, row.panel] : [row.tr])));
}

// --- Reasons ----------------------------------------------------------------------------------------------------------

function toggle(row) {
  row.open?.abort(); // a closed panel frees the server's work
  row.open = null;
  const opened = !row.panel;
  row.panel?.remove();
  row.panel = null;
  row.why.setAttribute("aria-expanded", String(opened));
  if (!opened) return;
  row.open = new AbortController();
  row.panel = make("tr", "", { className: "panel", id: `reasons-${row.place}` });
  row.why.setAttribute("aria-controls", row.panel.id);
  const cell = make("td", "", { colSpan: state.judges.length + 1 }), side = make("div", "", { className: "sides" });
  cell.append(side);
  row.panel.append(cell);
  row.tr.after(row.panel);
  for (const one of state.judges) {
    const part = copyOf("reasons");
    side.append(part);
    explain(row, one, part, row.open.signal);
  }
}

async function explain(row, one, part, signal) {
  const steps = part.querySelector(".steps"), say = (text) => { part.querySelector(".state").textContent = text; };
  part.querySelector("h3").textContent = `Reasons of ${one.name}`;
  steps.replaceChildren(...STEPS.flatMap((name) => [make("dt", name[0].toUpperCase() + name.slice(1)), make("dd", "", { className: name, dir: "auto" })]));
  steps.setAttribute("aria-busy", "true");
  showFour(part.querySelector(".four"), one.results[row.place]);
  say("Reading …");
  try {
    const body = { query: state.body.query, product: row.product, ...(one.ask && { judge: one.ask }) };
    const reply = await ask("explain", body, { signal, waiting: (left, words) => say(waitingWords(left, words)) });
    let ended = false;
    for await (const [event, data] of events(reply)) {
      if (event === "error") throw new Failed(sentence(data.error ?? "The explanation failed."), data.status);
      ended ||= event === "done";
      showEvent(part, event, data, say);
    }
    if (!ended) throw new Failed("The connection broke off before the reasons were complete.");
  } catch (problem) {
    if (problem.name === "AbortError") return;
    say(visible(problem.message));
    const begun = part.querySelector(".reply pre").textContent !== "";
    for (const empty of part.querySelectorAll(".steps, details")) empty.hidden = !begun;
    if (problem.status === 401) askForKey();
  } finally {
    steps.removeAttribute("aria-busy");
    part.querySelector(".now")?.classList.remove("now");
  }
}

function showEvent(part, event, data, say) {
  const reply = part.querySelector(".reply pre");
  if (event === "score") {
    showPrompt(part.querySelector(".seen pre"), data.prompt ?? []);
    say("Reasoning …");
  } else if (event === "step") {
    const line = part.querySelector(`.steps .${data.name}`);
    if (line) line.textContent = visible(data.text);
    line?.classList.remove("now");
  } else if (event === "token") {
    reply.textContent += visible(data.text);
    const [, name, text] = reply.textContent.match(/(?:^|\n)([A-Z][a-z]+): ?([^\n]*)$/) ?? [];
    const line = STEPS.includes(name?.toLowerCase()) ? part.querySelector(`.steps .${name.toLowerCase()}`) : null;
    if (line) line.textContent = text; // the line that is being decoded
    line?.classList.add("now");
  } else if (event === "done") {
    part.querySelector(".notes").replaceChildren(...(data.notes ?? []).map((note) => make("li", visible(note))));
    say((data.notes ?? []).length ? "" : "Five well-formed lines, in agreement with the grade.");
  }
}

function showPrompt(pre, pieces) {
  pre.replaceChildren(...pieces.map(({ text, untrusted }) => make(untrusted ? "mark" : "span", visible(text))));
}

function showFour(list, result) {
  list.replaceChildren(...[4, 3, 2, 1].flatMap((grade) => {
    const bar = make("div", "", { className: "one" }), fill = make("i", "", { className: `g${grade}` });
    fill.style.width = percent(result.probs[grade - 1]);
    bar.append(fill);
    bar.setAttribute("aria-hidden", "true");
    const value = make("dd");
    value.append(bar, make("span", result.probs[grade - 1].toFixed(4)));
    return [make("dt", gradeName(grade)), value];
  }), make("dt", "Label mass"), make("dd", result.label_mass.toFixed(4)));
}

// --- Snippets, examples, start ------------------------------------------------------------------------------------------

function showSnippet() {
  find("snippets").hidden = !state.body;
  const language = document.querySelector("[name=snippet]:checked").value;
  if (state.body) find("snippet").textContent = SNIPPETS[language](base, state.body, state.needsKey || hasKey());
  find("copied").textContent = "";
}

async function copySnippet() {
  const pre = find("snippet");
  try {
    await navigator.clipboard.writeText(pre.textContent);
    find("copied").textContent = "Copied.";
  } catch { // no permission, or not a secure address: leave it selected
    getSelection().selectAllChildren(pre);
    find("copied").textContent = "Selected: press Ctrl+C or ⌘C.";
  }
}

function countProducts() {
  let words = "";
  try { words = plural(readProducts(find("products").value).length, "product"); } catch (problem) { words = problem.message; }
  find("count").textContent = find("products").value.trim() ? words : "";
}

function choose(example, button) {
  for (const other of find("examples").children) other.setAttribute("aria-pressed", String(other === button));
  find("query").value = example.query;
  find("products").value = example.products;
  find("example-note").textContent = example.note;
  countProducts();
  judge();
}

async function loadExamples() {
  const examples = await (await ask("examples.json")).json();
  find("examples").replaceChildren(...examples.map((example) => {
    const button = make("button", example.name, { type: "button" });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => choose(example, button));
    return button;
  }));
}

find("ask").addEventListener("submit", (event) => { event.preventDefault(); judge(); });
find("again").addEventListener("click", () => (state.working ? judge() : loadInfo()));
find("copy").addEventListener("click", copySnippet);
find("products").addEventListener("input", countProducts);
for (const radio of document.getElementsByName("order")) radio.addEventListener("change", order);
for (const radio of document.getElementsByName("snippet")) radio.addEventListener("change", showSnippet);
loadExamples().catch(sayError);
loadInfo();
