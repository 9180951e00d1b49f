/**
 * What all connections share: waiting, and noticing that a connection is dead.
 *
 * @module
 */

const TICK_MS = 2000;

/**
 * Return the delay before try number `failures` + 1: exponential, with full jitter above half of it, so that the
 * clients of an edge that restarts do not come back all at once.
 *
 * @param {number} failures From 1.
 * @param {number} [limitMs]
 */
export function backoffMs(failures, limitMs = 15_000) {
  const whole = Math.min(limitMs, 250 * 2 ** failures);
  return whole / 2 + (Math.random() * whole) / 2;
}

/**
 * Call `listener` when the browser says that the network is back. Node has no such event.
 *
 * @param {() => void} listener
 * @returns {() => void} Stops that.
 */
function onNetworkBack(listener) {
  if (typeof globalThis.addEventListener !== "function") return () => {};
  globalThis.addEventListener("online", listener);
  return () => globalThis.removeEventListener("online", listener);
}

/**
 * Wait, but only until the network is back. Throws the signal's reason when it is aborted.
 *
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const finish = () => {
      clearTimeout(timer);
      stop();
      signal?.removeEventListener("abort", finish);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(finish, ms), stop = onNetworkBack(finish);
    signal?.addEventListener("abort", finish);
  });
}

/**
 * Aborts its `signal` when nothing was heard for a time, when the network changed, or with the caller's signal.
 *
 * It compares the clock again and again instead of setting one timer: timers stand still while a computer sleeps, and
 * the connection is dead when it wakes.
 */
export class Watchdog {
  /**
   * @param {number} silenceMs
   * @param {AbortSignal} [outer] The caller's signal.
   */
  constructor(silenceMs, outer) {
    outer?.throwIfAborted();
    const controller = new AbortController();
    this.signal = controller.signal;
    this._heardAt = Date.now();
    const timer = setInterval(() => {
      const silent = Date.now() - this._heardAt;
      if (silent > silenceMs) controller.abort(new Error(`nothing was heard for ${Math.round(silent / 1000)} s`));
    }, Math.min(TICK_MS, silenceMs));
    const stopListening = onNetworkBack(() => controller.abort(new Error("the network changed")));
    const abort = () => controller.abort(outer?.reason);
    outer?.addEventListener("abort", abort);
    /** End the watch. */
    this.close = () => {
      clearInterval(timer);
      stopListening();
      outer?.removeEventListener("abort", abort);
    };
  }

  /** Record that the other end is there. */
  heard() {
    this._heardAt = Date.now();
  }
}
