/**
 * The errors that a call can throw.
 *
 * LamplighterError
 * ├── Unreachable      no answer from the edge
 * ├── Rejected         the edge refused; nothing was written
 * │   ├── NotFound     404
 * │   ├── Unauthorized 401 and 403
 * │   ├── Conflict     409: the resource is not in the state that the request needs
 * │   └── Busy         429, 502, 503, 504 and 507: the same request may succeed later
 * └── JobFailed        the job ended without success; `job` has the error
 *
 * A call that its `signal` aborts throws the signal's reason.
 *
 * @module
 */

/** @typedef {import("./types.js").Problem} Problem */
/** @typedef {import("./types.js").FieldError} FieldError */

export class LamplighterError extends Error {
  /**
   * @param {string} message
   * @param {Partial<Problem> & {cause?: unknown, retryAfter?: number|null}} [problem]
   */
  constructor(message, problem = {}) {
    super(message, { cause: problem.cause });
    this.name = new.target.name;
    /** The status of the answer; 0 without an answer. */
    this.status = problem.status ?? 0;
    this.code = problem.code ?? "";
    this.title = problem.title ?? "";
    this.detail = problem.detail ?? message;
    /** @type {FieldError[]} The invalid fields of the request. */
    this.errors = problem.errors ?? [];
    /** @type {string[]} Digests of files that were not uploaded. */
    this.missing = problem.missing ?? [];
    /** @type {number|null} Seconds after which the edge asks to try again. */
    this.retryAfter = problem.retryAfter ?? null;
  }
}

/** The edge did not answer. Whether it did what was asked is unknown. */
export class Unreachable extends LamplighterError {}
/** The edge refused the request; nothing was written. */
export class Rejected extends LamplighterError {}
/** The resource does not exist, or belongs to another owner. */
export class NotFound extends Rejected {}
/** The key is not valid, or lacks a scope. */
export class Unauthorized extends Rejected {}
/** The resource is not in the state that the request needs. */
export class Conflict extends Rejected {}
/** A limit is reached, or a part of the server is unavailable. The same request may succeed later. */
export class Busy extends Rejected {}

/** The job ended as failed, cancelled or expired. */
export class JobFailed extends LamplighterError {
  /** @param {import("./types.js").Job} job */
  constructor(job) {
    const why = job.error ? `${job.error.code}: ${job.error.message}` : job.message ?? "no reason was recorded";
    super(`job ${job.id} ${job.status}: ${why}`, { code: job.error?.code ?? job.status });
    this.job = job;
  }
}

/** @type {Record<number, typeof Rejected>} */
const BY_STATUS = {
  401: Unauthorized, 403: Unauthorized, 404: NotFound, 409: Conflict,
  429: Busy, 502: Busy, 503: Busy, 504: Busy, 507: Busy,
};

/**
 * Return the error for a refusal. A proxy's page is not a problem document, so its text becomes the detail.
 *
 * @param {Response} response
 * @returns {Promise<LamplighterError>}
 */
export async function errorFromResponse(response) {
  const text = await response.text().catch(() => "");
  /** @type {Partial<Problem>} */
  let problem = {};
  try {
    problem = JSON.parse(text);
  } catch {
    // not an edge's answer
  }
  const detail = problem.detail ?? (text.replace(/\s+/g, " ").trim().slice(0, 200) || response.statusText);
  const code = problem.code ?? `http_${response.status}`;
  const fields = (problem.errors ?? []).map(({ path, message }) => `${path}: ${message}`);
  const more = fields.filter((field) => field !== detail);
  const seconds = Number(response.headers.get("Retry-After") ?? "");
  return new (BY_STATUS[response.status] ?? Rejected)([`${code}: ${detail}`, ...more].join("; "), {
    ...problem, detail, code, status: response.status, retryAfter: seconds > 0 ? seconds : null,
  });
}
