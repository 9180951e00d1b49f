/**
 * One stream of events for the page, as long as the page can be seen: states, progress and notices.
 *
 * @module
 */
import { client, owner, session } from "./api.js";

const HIDDEN_LIMIT_MS = 60_000; // a browser allows six connections to one edge over HTTP/1.1, and tabs stay open

const NOTICE_LIMIT = 20;

const listeners = new Set();
let controller = null, lastId = null, hiddenTimer = 0, notices = [];

/** Whether the edge answers, and since when it has not. */
export const connection = { isLost: false, lastNews: Date.now() };

/** Call `listener(event)` with every event; `{kind: "connection"}` when the stream opens or breaks. Returns a stop. */
export function listen(listener) {
  listeners.add(listener);
  if (!controller) start();
  return () => listeners.delete(listener);
}

/** Return the last notices since a time, oldest first, also those that came before the page that asks was opened. */
export const noticesSince = (at) => notices.filter((notice) => new Date(notice.at) >= new Date(at));

function emit(event) {
  for (const listener of [...listeners]) listener(event);
}

export function restart() {
  stop();
  lastId = null;
  notices = [];
  if (session()) start();
}

export function stop() {
  controller?.abort();
  controller = null;
}

async function start() {
  if (!session()?.scopes.includes("jobs:read")) return;
  const own = (controller = new AbortController());
  const path = { after: lastId ?? "now", signal: own.signal, reconnectS: Infinity, onConnection };
  try {
    for await (const event of client().events({ ...path, owner: owner() })) {
      if (own !== controller) return;
      lastId = event.id;
      connection.lastNews = Date.now();
      if (event.kind === "notice") notices = [...notices, event.data].slice(-NOTICE_LIMIT);
      emit(event);
    }
  } catch (error) {
    if (own.signal.aborted) return;
    controller = null;
    if (error.status === 401) emit({ kind: "signed_out" });
    else setTimeout(() => session() && !controller && start(), 5000);
  }
}

function onConnection(state) {
  const wasLost = connection.isLost;
  connection.isLost = state === "lost";
  if (!connection.isLost) connection.lastNews = Date.now();
  if (wasLost !== connection.isLost) emit({ kind: "connection" });
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) hiddenTimer = setTimeout(stop, HIDDEN_LIMIT_MS);
  else if (!controller && session()) start();
});
