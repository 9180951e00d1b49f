/**
 * Uploads: hash, ask whether the edge has the file, send what is missing.
 *
 * A small file is sent in one PUT. A larger one is a tus upload in pieces: fetch does not tell how much of a body was
 * sent, so the pieces are what progress counts. After any break a HEAD asks where to go on.
 *
 * @module
 */
import { backoffMs, pause, Watchdog } from "./connection.js";
import { errorFromResponse, LamplighterError, Rejected, Unreachable } from "./errors.js";
import { hashBlob, isNode } from "./hash.js";
import { pathOf } from "./http.js";

/** @typedef {import("./types.js").Asset} Asset */

const SINGLE_PUT_LIMIT_BYTES = 4 * 1024 * 1024;
const FIRST_PIECE_BYTES = 1024 * 1024;
const PIECE_LIMITS_BYTES = /** @type {const} */ ([256 * 1024, 32 * 1024 * 1024]);
const PIECE_TIME_MS = 1000; // the time that a piece should take
const PIECE_SILENCE_MS = 60_000;
const FAILURE_LIMIT = 8; // in a row, without progress
const TRANSIENT = new Set([423, 429, 500, 502, 503, 504]); // 423: the edge has not closed our last connection yet
const TUS = { "Tus-Resumable": "1.0.0" };

/**
 * @typedef {object} UploadStore Where digests and unfinished uploads are kept over a reload; `localStorage` and a Map
 *   fit with three lines. It gets no key and no secret.
 * @property {(name: string) => string|null|undefined|Promise<string|null|undefined>} get
 * @property {(name: string, value: string) => unknown} set
 * @property {(name: string) => unknown} delete
 *
 * @typedef {object} UploadProgress
 * @property {"hashing"|"checking"|"sending"|"waiting"|"done"} phase `waiting`: the connection is lost.
 * @property {number} done Bytes that are hashed, or that the edge has.
 * @property {number} total
 * @property {boolean} present Whether the edge had the file already.
 * @property {number|null} bytesPerS Of the last piece.
 *
 * @typedef {object} UploadOptions
 * @property {(progress: UploadProgress, file: Source) => void} [onProgress]
 * @property {AbortSignal} [signal] Stops the upload; it can go on later.
 * @property {UploadStore} [store]
 * @property {string} [name] The name of the file, where the source has none.
 *
 * @typedef {File|Blob|string} Source A string is the path of a file, in Node.
 */

/** @type {WeakMap<Blob, string>} Digests that were computed: a Blob never changes. */
const digests = new WeakMap();

/** One file on its way to the edge. */
export class Upload {
  /**
   * @param {import("./http.js").Http} http
   * @param {Source} source
   * @param {UploadOptions} options
   */
  constructor(http, source, { onProgress = () => {}, signal, store, name }) {
    this._http = http;
    this._source = source;
    this._signal = signal;
    this._store = store ?? new Map();
    this._name = name;
    this._onProgress = onProgress;
    this._pieceBytes = FIRST_PIECE_BYTES;
    /** @type {string|null} The path of the tus upload. */
    this._path = null;
    /** @type {number|null} What the edge has of it; null: not known. */
    this._offset = null;
  }

  /**
   * Return the digest of the file, `sha256:` and 64 hex digits. Nothing is sent.
   *
   * @returns {Promise<string>}
   */
  async digest() {
    const { blob, printed } = await openSource(this._source, this._name);
    this._total = blob.size;
    return `sha256:${await this._digest(blob, printed)}`;
  }

  /** @returns {Promise<Asset & {present: boolean}>} */
  async run() {
    const { blob, name, printed } = await openSource(this._source, this._name);
    this._total = blob.size;
    const sha256 = await this._digest(blob, printed);
    this._tell("checking", 0);
    const digest = `sha256:${sha256}`;
    const asset = { digest, sha256, bytes: blob.size, name, media_type: blob.type || "application/octet-stream" };
    const check = await this._http.json("POST", pathOf("assets", "check"), {
      json: { digests: [digest] }, signal: this._signal, retry: true,
    });
    const present = check.missing.length === 0;
    if (!present) {
      const resumeName = `upload ${this._http.url} ${sha256}`;
      this._path = blob.size > SINGLE_PUT_LIMIT_BYTES ? (await this._store.get(resumeName)) ?? null : null;
      try {
        await this._sendAll(blob, asset, resumeName);
      } catch (error) {
        if (error instanceof Rejected && error.code === "digest_mismatch") {
          digests.delete(blob);
          if (printed) await this._store.delete(printed);
        }
        throw error;
      }
      await this._store.delete(resumeName);
    }
    this._tell("done", blob.size, { present });
    return { ...asset, present };
  }

  /**
   * @param {Blob} blob
   * @param {string|null} printed
   */
  async _digest(blob, printed) {
    const known = digests.get(blob) ?? (printed && (await this._store.get(printed)));
    if (known) return known;
    this._tell("hashing", 0);
    const sha256 = await hashBlob(blob, (done) => this._tell("hashing", done), this._signal);
    digests.set(blob, sha256);
    if (printed) await this._store.set(printed, sha256);
    return sha256;
  }

  /**
   * @param {Blob} blob
   * @param {Asset} asset
   * @param {string} resumeName
   */
  async _sendAll(blob, asset, resumeName) {
    for (let failures = 0, best = -1; ; ) {
      try {
        if (blob.size <= SINGLE_PUT_LIMIT_BYTES) return await this._put(blob, asset);
        if (await this._sendNext(blob, asset)) return;
        await this._store.set(resumeName, this._path ?? "");
        if (this._offset !== null && this._offset > best) [best, failures] = [this._offset, 0];
      } catch (error) {
        this._signal?.throwIfAborted();
        if (!(error instanceof LamplighterError) || error.code === "quota_exceeded") throw error; // it does not pass by itself
        const isOurs = this._path !== null;
        if (isOurs && (error.status === 404 || error.status === 410)) this._path = null; // it expired
        else if (!(error instanceof Unreachable || TRANSIENT.has(error.status) || (isOurs && error.status === 409))) throw error;
        if (++failures > FAILURE_LIMIT) throw error;
        this._tell("waiting", this._offset ?? Math.max(best, 0));
        this._offset = null;
        await pause(Math.max(backoffMs(failures, 8000), (error.retryAfter ?? 0) * 1000), this._signal);
      }
    }
  }

  /**
   * @param {Blob} blob
   * @param {Asset} asset
   */
  async _put(blob, asset) {
    this._tell("sending", 0);
    await this._request("PUT", pathOf("assets", asset.sha256), {
      "Content-Type": asset.media_type, "X-Filename": encodeURIComponent(asset.name),
    }, blob);
  }

  /**
   * Send the next request of a tus upload. Return whether the edge has the whole file.
   *
   * @param {Blob} blob
   * @param {Asset} asset
   */
  async _sendNext(blob, asset) {
    const at = this._offset, started = Date.now();
    let sent = 0, response;
    if (this._path === null) {
      const fields = { filename: asset.name, filetype: asset.media_type, sha256: asset.sha256 };
      const metadata = Object.entries(fields).map(([name, value]) => `${name} ${base64(value)}`).join(",");
      response = await this._request("POST", pathOf("uploads"), { ...TUS, "Upload-Length": String(blob.size), "Upload-Metadata": metadata });
    } else if (at === null) {
      response = await this._request("HEAD", this._path, TUS);
    } else {
      const piece = blob.slice(at, at + this._pieceBytes);
      sent = piece.size;
      response = await this._request("PATCH", this._path, {
        ...TUS, "Upload-Offset": String(at), "Content-Type": "application/offset+octet-stream",
      }, piece);
    }
    if (response.headers.get("Lamplighter-Asset") === asset.digest) return true;
    this._path = response.headers.get("Location") ?? this._path;
    this._offset = Number(response.headers.get("Upload-Offset") ?? 0);
    const bytesPerMs = sent / Math.max(1, Date.now() - started);
    if (sent) this._adapt(bytesPerMs);
    this._tell("sending", this._offset, { bytesPerS: sent ? Math.round(bytesPerMs * 1000) : null });
    return false;
  }

  /** @param {number} bytesPerMs */
  _adapt(bytesPerMs) {
    const [least, most] = PIECE_LIMITS_BYTES;
    this._pieceBytes = Math.round(Math.min(most, 2 * this._pieceBytes, Math.max(least, bytesPerMs * PIECE_TIME_MS)));
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {Record<string, string>} headers
   * @param {Blob} [body]
   */
  async _request(method, path, headers, body) {
    const watchdog = new Watchdog(PIECE_SILENCE_MS, this._signal);
    try {
      const response = await this._http.send(method, path, { headers, body, signal: watchdog.signal });
      if (!response.ok) throw await errorFromResponse(response);
      await response.arrayBuffer().catch(() => null); // an unread answer keeps its connection busy
      return response;
    } finally {
      watchdog.close();
    }
  }

  /**
   * @param {UploadProgress["phase"]} phase
   * @param {number} done
   * @param {Partial<UploadProgress>} [more]
   */
  _tell(phase, done, more) {
    this._onProgress({ phase, done, total: this._total ?? 0, present: false, bytesPerS: null, ...more }, this._source);
  }
}

/**
 * Upload several files, a few at a time. If one fails, the others are stopped.
 *
 * @param {import("./http.js").Http} http
 * @param {Source[]} sources
 * @param {UploadOptions & {parallel?: number}} options
 */
export async function uploadAll(http, sources, { parallel = 3, ...options }) {
  const stop = new AbortController(), { signal } = options;
  const abort = () => stop.abort(signal?.reason);
  signal?.throwIfAborted();
  signal?.addEventListener("abort", abort);
  /** @type {(Asset & {present: boolean})[]} */
  const assets = [];
  let next = 0;
  const worker = async () => {
    while (next < sources.length) {
      const index = next++;
      assets[index] = await new Upload(http, sources[index], { ...options, signal: stop.signal }).run();
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(parallel, sources.length) }, worker));
    return assets;
  } catch (error) {
    stop.abort(error);
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

/**
 * Return the bytes of a source, the name of the file, and a name for this state of it, to remember its digest by.
 *
 * @param {Source} source
 * @param {string} [name]
 */
async function openSource(source, name) {
  if (typeof source !== "string") {
    const own = /** @type {Partial<File>} */ (source);
    const printed = own.name && own.lastModified ? `digest ${own.name} ${source.size} ${own.lastModified}` : null;
    return { blob: source, name: name ?? own.name ?? "file", printed };
  }
  if (!isNode()) throw new TypeError("give a File or a Blob: a page cannot open a path");
  const fs = await import(/** @type {string} */ ("node:fs")), path = await import(/** @type {string} */ ("node:path"));
  const { mtimeMs, size } = fs.statSync(source);
  return { blob: /** @type {Blob} */ (await fs.openAsBlob(source)), name: name ?? path.basename(source), printed: `digest ${path.resolve(source)} ${size} ${mtimeMs}` };
}

/** @param {string} text */
function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}
