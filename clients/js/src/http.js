/**
 * Requests to one edge: the URL, the key or the browser's session, the language, and retries.
 *
 * @module
 */
import { backoffMs, pause, Watchdog } from "./connection.js";
import { Busy, errorFromResponse, Unreachable } from "./errors.js";

const CALL_TIMEOUT_MS = 45_000; // a long poll asks for at most 30 s
const RETRY_LIMIT = 4;

/**
 * @typedef {object} RequestOptions
 * @property {Record<string, string|number|string[]|undefined|null>} [query]
 * @property {Record<string, string>} [headers]
 * @property {unknown} [json] The body, sent as JSON.
 * @property {BodyInit} [body] Or the body as it is.
 * @property {AbortSignal} [signal]
 * @property {number} [timeoutMs]
 * @property {boolean} [retry] Whether the same request may be sent again; the default is: a GET may.
 */

export class Http {
  /** @param {import("./client.js").ClientOptions} options */
  constructor({ url = globalThis.location?.origin, key, fetch = globalThis.fetch, language, headers }) {
    if (!url) throw new TypeError("outside a page, give `url`: the address of the edge");
    this.url = String(url).replace(/\/+$/, "");
    this._fetch = fetch.bind(globalThis);
    this._credentials = /** @type {RequestCredentials} */ (key ? "omit" : "same-origin");
    /** @type {Record<string, string>} */
    this._headers = { ...headers };
    if (key) this._headers.Authorization = `Bearer ${key}`;
    if (language) this._headers["Accept-Language"] = language;
  }

  /**
   * Return a complete URL for a path of the edge. A complete URL stays as it is.
   *
   * @param {string} path
   * @param {RequestOptions["query"]} [query]
   */
  urlOf(path, query = {}) {
    const params = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) {
      for (const one of Array.isArray(value) ? value : [value]) {
        if (one != null && one !== "") params.append(name, String(one));
      }
    }
    const whole = path.startsWith("/") ? this.url + path : path;
    return params.size ? `${whole}?${params}` : whole;
  }

  /**
   * Send one request and return the answer, whatever its status. Throws Unreachable without an answer.
   *
   * @param {string} method
   * @param {string} path
   * @param {RequestOptions} options
   */
  async send(method, path, { query, headers, json, body, signal }) {
    /** @type {Record<string, string>} */
    const all = { ...this._headers, ...headers };
    if (json !== undefined) all["Content-Type"] = "application/json";
    try {
      return await this._fetch(this.urlOf(path, query), {
        method,
        headers: all,
        body: json === undefined ? body : JSON.stringify(json),
        signal,
        credentials: this._credentials,
        cache: "no-store",
      });
    } catch (error) {
      throw this.unreachable(error);
    }
  }

  /**
   * @param {unknown} cause
   * @returns {Unreachable}
   */
  unreachable(cause) {
    const inner = /** @type {any} */ (cause)?.cause?.message;
    const why = [/** @type {any} */ (cause)?.message ?? String(cause), inner].filter(Boolean).join(": ");
    return new Unreachable(`no answer from ${this.url} (${why}): is the edge running, and is the address right?`, { cause });
  }

  /**
   * Send a request and return what `read` makes of its answer. Throws the error for a refusal.
   *
   * @template T
   * @param {string} method
   * @param {string} path
   * @param {RequestOptions} options
   * @param {(response: Response) => Promise<T>} read
   * @returns {Promise<T>}
   */
  async call(method, path, options, read) {
    const { signal, timeoutMs = CALL_TIMEOUT_MS, retry = method === "GET" } = options;
    for (let failures = 1; ; failures++) {
      const watchdog = new Watchdog(timeoutMs, signal);
      try {
        const response = await this.send(method, path, { ...options, signal: watchdog.signal });
        if (!response.ok) throw await errorFromResponse(response);
        try {
          return await read(response);
        } catch (error) {
          throw this.unreachable(error);
        }
      } catch (error) {
        signal?.throwIfAborted();
        const mayPass = error instanceof Busy || error instanceof Unreachable;
        if (!retry || !mayPass || failures > RETRY_LIMIT) throw error;
        await pause(Math.max(backoffMs(failures), (error.retryAfter ?? 0) * 1000), signal);
      } finally {
        watchdog.close();
      }
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {RequestOptions} [options]
   * @returns {Promise<any>}
   */
  json(method, path, options = {}) {
    return this.call(method, path, options, (response) => (response.status === 204 ? Promise.resolve(null) : response.json()));
  }
}

/**
 * Join the segments of a path, whatever characters they contain.
 *
 * @param {...string} segments
 */
export function pathOf(...segments) {
  return `/v1/${segments.map(encodeURIComponent).join("/")}`;
}

/** Return a random name. `crypto.randomUUID` exists only on pages with https. */
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
