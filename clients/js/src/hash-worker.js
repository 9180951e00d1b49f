/**
 * The worker of hash.js: takes one Blob, says how far it is, then its digest.
 *
 * @module
 */
import { hashHere } from "./hash.js";

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ sha256: await hashHere(data, (done) => self.postMessage({ done })) });
  } catch (error) {
    self.postMessage({ error: String(error) });
  }
};
