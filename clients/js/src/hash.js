/**
 * The SHA-256 of a file, without blocking the page: by Node's own hash, in a worker, or in pieces where neither is.
 *
 * @module
 */
import { Sha256 } from "./sha256.js";

const PIECE_BYTES = 4 * 1024 * 1024;

/** @typedef {(done: number) => void} OnBytes */

/**
 * @param {Blob} blob
 * @param {OnBytes} onBytes
 * @param {AbortSignal} [signal]
 * @returns {Promise<string>} 64 hex digits.
 */
export async function hashBlob(blob, onBytes, signal) {
  if (isNode()) {
    const { createHash } = await import(/** @type {string} */ ("node:crypto"));
    const hash = createHash("sha256");
    await readPieces(blob, onBytes, (piece) => hash.update(piece), signal);
    return hash.digest("hex");
  }
  const worker = blob.size > PIECE_BYTES ? startWorker() : null;
  return worker ? hashInWorker(worker, blob, onBytes, signal) : hashHere(blob, onBytes, signal);
}

export function isNode() {
  return Boolean(/** @type {any} */ (globalThis).process?.versions?.node);
}

/**
 * @param {Blob} blob
 * @param {OnBytes} onBytes
 * @param {AbortSignal} [signal]
 */
export async function hashHere(blob, onBytes, signal) {
  const hash = new Sha256();
  await readPieces(blob, onBytes, (piece) => hash.update(piece), signal);
  return hash.hex();
}

/**
 * @param {Blob} blob
 * @param {OnBytes} onBytes
 * @param {(piece: Uint8Array) => void} use
 * @param {AbortSignal} [signal]
 */
async function readPieces(blob, onBytes, use, signal) {
  for (let at = 0; at < blob.size; at += PIECE_BYTES) {
    signal?.throwIfAborted();
    const piece = new Uint8Array(await blob.slice(at, at + PIECE_BYTES).arrayBuffer());
    use(piece);
    onBytes(at + piece.length);
  }
}

/** Return a worker; null where a browser does not allow one, as for a module of another origin. */
function startWorker() {
  try {
    return new Worker(new URL("./hash-worker.js", import.meta.url), { type: "module" });
  } catch {
    return null;
  }
}

/**
 * @param {Worker} worker
 * @param {Blob} blob
 * @param {OnBytes} onBytes
 * @param {AbortSignal} [signal]
 * @returns {Promise<string>}
 */
async function hashInWorker(worker, blob, onBytes, signal) {
  try {
    return await new Promise((resolve, reject) => {
      signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
      worker.onmessage = ({ data }) => {
        if (data.done !== undefined) onBytes(data.done);
        else if (data.error) reject(new Error(data.error));
        else resolve(data.sha256);
      };
      // The script itself did not load: a policy of the page may forbid it.
      worker.onerror = () => resolve(hashHere(blob, onBytes, signal));
      worker.postMessage(blob);
    });
  } finally {
    worker.terminate();
  }
}
