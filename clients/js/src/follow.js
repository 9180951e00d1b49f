/**
 * Event streams: server-sent events read from a fetch, over any number of connections.
 *
 * `EventSource` cannot send a key, cannot begin after a given event, and does not notice a dead connection.
 *
 * @module
 */
import { backoffMs, pause, Watchdog } from "./connection.js";
import { Busy, errorFromResponse, Unreachable } from "./errors.js";

/** @typedef {import("./types.js").JobEvent} JobEvent */

const SILENCE_S = 40; // the edge sends something every 15 s
const FIRST_TRIES = 4; // an edge that never answered is probably not there
const FINAL = new Set(["succeeded", "failed", "cancelled", "expired"]);

/**
 * Return whether a status never changes again, except by a retry.
 *
 * @param {string} status
 */
export function isFinal(status) {
  return FINAL.has(status);
}

/** A parser of server-sent events (WHATWG HTML, section 9.2.6) that only ends lines at line feeds, as the edge does. */
export class SseParser {
  /** @param {string} [lastId] */
  constructor(lastId = "") {
    /** The id of the last complete event. */
    this.lastId = lastId;
    /** @type {string} */
    this._rest = "";
    /** @type {string} */
    this._id = lastId;
    this._kind = "message";
    /** @type {string[]} */
    this._data = [];
  }

  /** Begin a new connection: forget the incomplete event of the one before. */
  reset() {
    this._rest = "";
    this._id = this.lastId;
    this._kind = "message";
    this._data = [];
  }

  /**
   * Yield the events that a piece of text completes.
   *
   * @param {string} text
   * @returns {Generator<JobEvent, void>}
   */
  *read(text) {
    const lines = (this._rest + text).split("\n");
    this._rest = lines.pop() ?? "";
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line) {
        this._field(line);
        continue;
      }
      this.lastId = this._id;
      const data = this._data.join("\n"), kind = this._kind;
      this._data = [];
      this._kind = "message";
      if (data) yield /** @type {JobEvent} */ ({ id: this.lastId, kind, data: JSON.parse(data) });
    }
  }

  /** @param {string} line */
  _field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "id") this._id = value;
    else if (name === "event") this._kind = value;
    else if (name === "data") this._data.push(value);
  }
}

/**
 * @typedef {object} FollowOptions
 * @property {string} [after] The id of the last event that is known already; `now` leaves out all that has happened.
 * @property {AbortSignal} [signal]
 * @property {import("./http.js").RequestOptions["query"]} [query] For example `{owner}`, with an admin's key.
 * @property {number} [reconnectS] How many seconds to try again after the connection was lost; 300. A page that stays
 *   open gives Infinity. Time in which the computer sleeps does not count.
 * @property {number} [silenceS] After how many seconds without a byte a connection counts as dead; 40.
 * @property {(state: "open"|"lost", error?: Error) => void} [onConnection] Called when the stream opens or breaks.
 */

/**
 * Yield the events at `path`. After a lost connection, a sleep of the computer or a change of the network, go on after
 * the last event. The stream of a job ends after its final state; one with `endless` does not.
 *
 * @param {import("./http.js").Http} http
 * @param {string} path
 * @param {FollowOptions & {endless?: boolean}} options
 * @returns {AsyncGenerator<JobEvent, void, undefined>}
 */
export async function* followEvents(http, path, options) {
  const { after, signal, query, reconnectS = 300, silenceS = SILENCE_S, onConnection = () => {}, endless = false } = options;
  const parser = new SseParser(after);
  let isEnded = false, wasOpen = false, failures = 0, waitedMs = 0;
  for (;;) {
    signal?.throwIfAborted();
    const watchdog = new Watchdog(silenceS * 1000, signal);
    try {
      const headers = { Accept: "text/event-stream", ...(parser.lastId ? { "Last-Event-ID": parser.lastId } : {}) };
      const response = await http.send("GET", path, { headers, query, signal: watchdog.signal });
      if (response.status === 204) return; // the last event was sent before
      if (!response.ok || !response.body) throw await errorFromResponse(response);
      wasOpen = true;
      failures = waitedMs = 0;
      onConnection("open");
      parser.reset();
      for await (const event of readEvents(response.body, parser, watchdog)) {
        if (event.kind === "state" && !endless) isEnded = isFinal(event.data.status);
        yield event;
      }
      if (isEnded) return;
      throw new Unreachable("the edge closed the stream");
    } catch (cause) {
      signal?.throwIfAborted();
      const error = cause instanceof Error && "status" in cause ? cause : http.unreachable(cause);
      if (!(error instanceof Busy || error instanceof Unreachable)) throw error;
      failures += 1;
      if (wasOpen ? waitedMs >= reconnectS * 1000 : failures > FIRST_TRIES && reconnectS !== Infinity) throw error;
      onConnection("lost", error);
      const delay = Math.max(backoffMs(failures), (error.retryAfter ?? 0) * 1000);
      waitedMs += delay;
      await pause(delay, signal);
    } finally {
      watchdog.close();
    }
  }
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @param {SseParser} parser
 * @param {Watchdog} watchdog
 */
async function* readEvents(body, parser, watchdog) {
  const reader = body.getReader(), decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      watchdog.heard();
      yield* parser.read(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // the caller may leave the loop while the stream is open
  }
}
