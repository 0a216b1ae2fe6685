/** The server's interface: JSON, pictures and streamed answers; whatever fails is a `Trouble`. */
import { byId } from "./dom.js";

const TOKEN = "medisee-token";
const SILENCE_MS = 60_000; // between two events of an answer that has begun

/**
 * Why something did not work.
 * kind: "lost" (no connection), "busy" (try later), "expired" (the session is gone),
 * "denied" (no token), "refused" (the server says what is wrong with the input).
 */
export class Trouble extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

/** fetch() below the page's own address, with the token where there is one. */
export async function request(path, options = {}) {
  const response = await send(path, options);
  if (response.status === 401 && (await askForToken())) return check(await send(path, options));
  return check(response);
}

async function send(path, options) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  try {
    return await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw lost();
  }
}

const lost = () => new Trouble("lost", "There is no connection to the server.");

async function check(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw toTrouble(response.status, body.error, Number(response.headers.get("Retry-After")));
}

function toTrouble(status, error, retryAfter) {
  const message = error?.message ?? `The server answered with an error (${status}).`;
  if (status === 503 || status === 429) return new Trouble("busy", message, retryAfter || 3);
  if (status === 404 || status === 410) return new Trouble("expired", message);
  if (status === 401 || status === 403) return new Trouble("denied", message);
  return new Trouble("refused", message);
}

let asking = null; // several requests may find the token missing at the same time

/** Asks the person for the token; false where they do not give one. */
function askForToken() {
  asking ??= askInDialog().finally(() => (asking = null));
  return asking;
}

function askInDialog() {
  const dialog = byId("token-dialog");
  const field = byId("token");
  field.value = "";
  dialog.showModal();
  return new Promise((answered) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "ok" && field.value.trim();
        if (given) sessionStorage.setItem(TOKEN, given);
        answered(Boolean(given));
      },
      { once: true },
    );
  });
}

export const getJson = async (path) => (await request(path)).json();
export const getBlob = async (path) => (await request(path)).blob();

export async function postJson(path, body, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  return request(path, { ...options, method: "POST", headers, body: JSON.stringify(body) });
}

/**
 * Opens an image: {file} or {example}; choices are slice, plane, frame and window.
 * Gives {id, expires_in, image, suggestions}.
 */
export async function openSession(source, choices = {}) {
  const given = Object.entries(choices).filter(([, value]) => value !== null && value !== "");
  if (source.example) {
    const body = { example: source.example, ...Object.fromEntries(given) };
    return (await postJson("v1/sessions", body)).json();
  }
  const form = new FormData();
  form.append("image", source.file, source.file.name);
  for (const [name, value] of given) form.append(name, String(value));
  return (await request("v1/sessions", { method: "POST", body: form })).json();
}

/** Forgets a session; whether that works matters to nobody. */
export function closeSession(id) {
  request(`v1/sessions/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

/**
 * Asks a question and reads the streamed answer: on.answer(answer) once the masks are there,
 * on.text(piece) for the explanation. Resolves with {answer, round}, whole and with its number in
 * the session; rejects with a Trouble of kind "lost" when the stream ends before that.
 */
export async function ask(id, question, on, signal) {
  const headers = { Accept: "text/event-stream" };
  const body = { question, explain: true };
  const response = await postJson(`v1/sessions/${id}/ask`, body, { headers, signal });
  for await (const { event, data, id: round } of events(response.body)) {
    if (event === "answer") on.answer(data);
    else if (event === "text") on.text(data.piece);
    else if (event === "done") return { answer: data, round };
    else if (event === "error") throw toTrouble(data.error?.status ?? 500, data.error, 3);
  }
  throw lost();
}

/** The server-sent events of a body, each with its JSON. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await readOrGiveUp(reader);
      if (done) return;
      buffer += decoder.decode(value, { stream: true }).replaceAll("\r\n", "\n");
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const parsed = parseEvent(block);
        if (parsed) yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function readOrGiveUp(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(lost()), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  } finally {
    clearTimeout(timer);
  }
}

function parseEvent(block) {
  const fields = { event: "message", id: null, data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = line.match(/^(\w+): ?(.*)$/) ?? [];
    if (name === "event" || name === "id") fields[name] = value;
    if (name === "data") fields.data.push(value);
  }
  return fields.data.length ? { ...fields, data: JSON.parse(fields.data.join("\n")) } : null;
}
