// Requests to the server that this page came from: its words for what went wrong, and when to ask again.

// The server begins its messages with a small letter.
export const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);

let key = ""; // in memory only: never stored, never part of an address
export const setKey = (text) => { key = text.trim(); };
export const hasKey = () => key !== "";

export class Failed extends Error {
  // status: of the reply, 0 where there was none. waitS: the server's Retry-After, in seconds, or null.
  constructor(message, status = 0, waitS = null) {
    super(message);
    this.status = status;
    this.waitS = waitS;
  }
}

// The response to a request that was taken. One that is refused with Retry-After is sent again when that time has
// passed, up to maxTries times; `waiting(seconds, words)` is called each second until then.
export async function ask(path, body, { signal, waiting = () => {}, maxTries = 4 } = {}) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await once(path, body, signal);
    } catch (problem) {
      if (!(problem instanceof Failed) || problem.waitS === null || tries === maxTries) throw problem;
      for (let left = Math.max(1, Math.ceil(problem.waitS)); left > 0; left -= 1) {
        waiting(left, problem.message);
        await pause(1000, signal);
      }
    }
  }
}

async function once(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { ...sent, headers, signal, cache: "no-store" });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Failed("The server does not answer. Is it still running? python infer/serve.py starts it.");
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => ({}));
  const words = typeof said.error === "string" ? said.error : reply.statusText || "no reason was given";
  const wait = Number(reply.headers.get("Retry-After") ?? NaN);
  throw new Failed(`${sentence(words)} (status ${reply.status})`, reply.status, Number.isFinite(wait) ? wait : null);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("", "AbortError")); });
  });
}

// Server-sent events of a response, as [name, data] with data parsed from JSON. EventSource cannot POST.
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((problem) => {
      if (problem.name === "AbortError") throw problem;
      throw new Failed("The connection broke off before the answer was complete.");
    });
    text += value ?? "";
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const fields = block.split(/\r?\n/).map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
      const name = fields.find(([, field]) => field === "event")?.[2] ?? "message";
      const data = fields.filter(([, field]) => field === "data").map((field) => field[2]).join("\n");
      if (data) yield [name, JSON.parse(data)];
    }
    if (done) return;
  }
}
