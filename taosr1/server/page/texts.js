// Pure functions of texts and numbers: tiers, pasted products, snippets. No document, no network.

export const GRADES = ["", "Irrelevant", "Mismatch", "Related", "Excellent"];
const TIER_OF_GRADE = ["", "Bad", "Mid", "Good", "Good"];

// CumPT, as cumulative_tier of taosr1/serving/tiering.py: from grade 4 down, the first grade at which the added
// probability reaches beta. probs: P(1) to P(4). Grade 1 decides whatever is left, however the sum was rounded.
export function cumulativeTier(probs, beta) {
  let sum = 0;
  for (let grade = 4; grade > 1; grade -= 1) {
    sum += probs[grade - 1];
    if (Math.min(sum, 1) >= beta) return TIER_OF_GRADE[grade];
  }
  return TIER_OF_GRADE[1];
}

// What would be invisible or would reorder its line: controls, zero-width and bidirectional marks.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const escaped = (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0");
export const visible = (text) => text.replace(UNSEEN, escaped);

// --- Products -------------------------------------------------------------------------------------------------------

// Names of the title in the files that taosr1 reads; one of them in the first line makes it a header.
export const TITLES = new Set(["title", "product_title", "product_name", "item_title", "item_name", "productname", "name"]);
const plainName = (text) => text.replace(/^\ufeff/, "").trim().toLowerCase().replace(/[\s-]+/g, "_");

// Products as /score takes them. Throws an Error that names the line.
export function readProducts(text) {
  const trimmed = text.replace(/^\ufeff/, "").trim();
  if (trimmed.startsWith("[")) {
    const list = whole(trimmed);
    if (list) return list;
  }
  if (trimmed.startsWith("{")) return jsonLines(trimmed);
  const first = trimmed.split(/\r?\n/, 1)[0];
  const mark = first.includes("\t") ? "\t" : first.includes(";") && !first.includes(",") ? ";" : ",";
  const names = cells(first, mark)[0] ?? [];
  if (names.some((name) => TITLES.has(plainName(name))) && (names.length > 1 || plainName(first) === "title")) {
    return table(trimmed, mark);
  }
  return trimmed.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
}

function whole(text) { // a title may begin with a bracket, too
  try {
    const list = JSON.parse(text);
    return Array.isArray(list) ? list : null;
  } catch { return null; }
}

function jsonLines(text) {
  return text.split(/\r?\n/).flatMap((line, number) => {
    if (!line.trim()) return [];
    try { return [JSON.parse(line)]; } catch (problem) {
      throw new Error(`Line ${number + 1} of the products is not JSON (${problem.message}). Write one JSON object a line.`);
    }
  });
}

// Rows of cells. A quoted cell may hold the separator, line breaks and doubled quotes.
function cells(text, mark) {
  const rows = [[]];
  let cell = "", quoted = false, line = 1, opened = 0;
  for (let i = 0; i < text.length; i += 1) {
    const character = text[i];
    if (character === "\n") line += 1;
    if (quoted) {
      if (character !== '"') cell += character;
      else if (text[i + 1] === '"') { cell += '"'; i += 1; } else quoted = false;
    } else if (character === '"' && cell === "") { quoted = true; opened = line; }
    else if (character === mark) { rows.at(-1).push(cell); cell = ""; }
    else if (character === "\n") { rows.at(-1).push(cell); cell = ""; rows.push([]); }
    else if (character !== "\r") cell += character;
  }
  if (quoted) throw new Error(`The quote that begins in line ${opened} of the products is not closed: write "" for a quote inside.`);
  rows.at(-1).push(cell);
  return rows;
}

function table(text, mark) {
  const [header, ...rows] = cells(text, mark);
  const names = header.map((name) => name.trim());
  return rows.filter((row) => row.some((cell) => cell.trim())).map((row, number) => {
    if (row.length > names.length) {
      const found = `Row ${number + 1} of the products has ${row.length} cells, the header has ${names.length}.`;
      throw new Error(`${found} Put a cell with ${mark === "\t" ? "tabs" : `"${mark}"`} in it into quotes.`);
    }
    return Object.fromEntries(row.map((cell, place) => [names[place], cell]).filter(([, cell]) => cell.trim()));
  });
}

// The title of a product as given, and its other columns in one line.
export function shown(product) {
  if (product === null || typeof product !== "object") return [String(product), ""];
  const name = Object.keys(product).find((key) => TITLES.has(plainName(key))) ?? ("text" in product ? "text" : "");
  const rest = Object.entries(product).filter(([key, value]) => key !== name && value !== null && value !== "");
  const said = rest.map(([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return [name ? String(product[name]) : "", said.join(" · ")];
}

// --- Snippets -------------------------------------------------------------------------------------------------------

const json = (value, space) => JSON.stringify(value, null, space).replace(UNSEEN, escaped); // JSON's escapes are Python's, too
// For a POSIX shell: nothing is special between single quotes but the single quote.
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// A JSON value as a Python literal; JSON's strings and numbers are Python's own.
function python(value, indent = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return json(value);
  const deeper = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => python(item, deeper))
    : Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return items.length ? `${open}\n${deeper}${items.join(`,\n${deeper}`)},\n${indent}${close}` : open + close;
}

// The request on the screen as a program. The key itself is never written into one.
export const SNIPPETS = {
  curl(origin, body, needsKey) {
    const key = needsKey ? ' \\\n  -H "Authorization: Bearer $TAOSR1_API_KEY"' : "";
    return `curl -sS ${shell(`${origin}/score`)} \\\n  -H 'Content-Type: application/json'${key} \\\n  --data-raw ${shell(json(body, 1))}`;
  },
  python(origin, body, needsKey) {
    const key = needsKey ? '\n    "Authorization": f"Bearer {os.environ[\'TAOSR1_API_KEY\']}",' : "";
    return `import json${needsKey ? "\nimport os" : ""}
import urllib.request

body = ${python(body)}
headers = {
    "Content-Type": "application/json",${key}
}
request = urllib.request.Request(${json(`${origin}/score`)}, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as reply:
    for result in json.load(reply)["results"]:
        print(result["index"], result["grade"], result["tier"], round(result["score"], 3))`;
  },
  elasticsearch(origin, body, needsKey) {
    const headers = { "Content-Type": "application/json", ...(needsKey && { Authorization: "Bearer ${api_key}" }) };
    const service = {
      service: "custom",
      service_settings: {
        secret_parameters: { api_key: needsKey ? "YOUR KEY" : "none" },
        url: `${origin}/v1/rerank`,
        headers,
        request: '{"query": ${query}, "documents": ${input}}',
        response: { json_parser: {
          relevance_score: "$.results[*].relevance_score", reranked_index: "$.results[*].index",
        } },
      },
    };
    const input = body.products.map((product) => shown(product)[0]);
    return `PUT _inference/rerank/taosr1\n${json(service, 2)}\n\nPOST _inference/rerank/taosr1\n${json({ query: body.query, input }, 2)}`;
  },
};
