/**
 * A client of the Lamplighter API, for browsers and Node 20 or newer. Start reading at `Client`.
 *
 * @module
 */
export { Client } from "./client.js";
export {
  Busy, Conflict, JobFailed, LamplighterError, NotFound, Rejected, Unauthorized, Unreachable,
} from "./errors.js";
export { isFinal } from "./follow.js";
export { Sha256 } from "./sha256.js";

/** @typedef {import("./types.js").Asset} Asset */
/** @typedef {import("./types.js").Batch} Batch */
/** @typedef {import("./types.js").Endpoint} Endpoint */
/** @typedef {import("./types.js").Host} Host */
/** @typedef {import("./types.js").Job} Job */
/** @typedef {import("./types.js").JobEvent} JobEvent */
/** @typedef {import("./types.js").OwnerWebhook} OwnerWebhook */
/** @typedef {import("./types.js").Problem} Problem */
/** @typedef {import("./types.js").Usage} Usage */
/** @typedef {import("./upload.js").UploadProgress} UploadProgress */
/** @typedef {import("./upload.js").UploadStore} UploadStore */
