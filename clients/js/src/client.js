/**
 * `Client`: the calls to one edge.
 *
 * @module
 */
import { JobFailed, Unreachable, Busy } from "./errors.js";
import { backoffMs, pause } from "./connection.js";
import { followEvents, isFinal } from "./follow.js";
import { Http, pathOf, randomName } from "./http.js";
import { Upload, uploadAll } from "./upload.js";

/** @typedef {import("./types.js").Job} Job */
/** @typedef {import("./types.js").JobFile} JobFile */
/** @typedef {import("./types.js").SubmitFields} SubmitFields */
/** @typedef {import("./upload.js").UploadOptions} UploadOptions */
/** @typedef {import("./upload.js").Source} Source */

/**
 * @typedef {object} ClientOptions
 * @property {string|URL} [url] The address of the edge. A page that an edge serves may leave it out.
 * @property {string} [key] An API key or a token. Without one, the browser's session with this origin is used.
 * @property {typeof globalThis.fetch} [fetch]
 * @property {string} [language] `zh` or `en`: the language of messages.
 * @property {Record<string, string>} [headers] Sent with every request.
 *
 * @typedef {object} CallOptions
 * @property {AbortSignal} [signal]
 *
 * @typedef {object} SubmitOptions
 * @property {string} [id] The id that the job gets.
 * @property {string} [idempotencyKey] Without one the client makes one, so that a submit that is sent again after a
 *   lost answer makes no second job.
 * @property {(job: Job) => void} [onAccepted] With `await_input`: called before the first file is sent.
 *
 * @typedef {object} WaitOptions
 * @property {AbortSignal} [signal] `AbortSignal.timeout(ms)` limits the wait. It does not stop the job.
 */

const LONG_POLL_S = 30;
const RECONNECT_LIMIT_MS = 300_000; // since the last answer

export class Client {
  /** @param {ClientOptions} [options] */
  constructor(options = {}) {
    this._http = new Http(options);
  }

  /** The address of the edge, without a slash at its end. */
  get url() {
    return this._http.url;
  }

  /**
   * Submit a job. Files among the input (File, Blob) are uploaded first. With `await_input` the job is accepted first,
   * so that a host that is off starts during the upload; if the upload fails, the job waits for its files.
   *
   * @param {string} endpoint
   * @param {Record<string, any>} input
   * @param {SubmitFields & UploadOptions & SubmitOptions} [options]
   * @returns {Promise<Job>} The job as the submit was answered.
   */
  async submit(endpoint, input, options = {}) {
    const { id, idempotencyKey, onAccepted, onProgress, signal, store, name, ...fields } = options;
    const blobs = [...new Set(findFiles(input))], uploading = { onProgress, signal, store };
    const digests = new Map();
    if (fields.await_input) for (const blob of blobs) digests.set(blob, await this.digest(blob, uploading));
    else (await uploadAll(this._http, blobs, uploading)).forEach((asset, index) => digests.set(blobs[index], asset.digest));
    const json = { endpoint, input: replaceFiles(input, digests), ...fields };
    const headers = id ? undefined : { "Idempotency-Key": idempotencyKey ?? randomName() };
    /** @type {Job} */
    const job = await this._http.json(id ? "PUT" : "POST", id ? pathOf("jobs", id) : pathOf("jobs"), { json, headers, signal, retry: true });
    if (fields.await_input) {
      onAccepted?.(job);
      await uploadAll(this._http, blobs.filter((blob) => job.missing.includes(digests.get(blob))), uploading);
    }
    return job;
  }

  /**
   * Submit up to 1,000 jobs. An invalid one does not reject the others.
   *
   * @param {({endpoint: string, input: Record<string, any>} & SubmitFields)[]} jobs
   * @param {CallOptions & {idempotencyKey?: string}} [options]
   * @returns {Promise<import("./types.js").Batch>}
   */
  batch(jobs, { idempotencyKey = randomName(), signal } = {}) {
    const headers = { "Idempotency-Key": idempotencyKey };
    return this._http.json("POST", pathOf("batches"), { json: { jobs }, headers, signal, retry: true });
  }

  /**
   * Return the job once it has ended. Throws JobFailed unless it succeeded. Waits through a restart of the edge.
   *
   * @param {string} id
   * @param {WaitOptions} [options]
   * @returns {Promise<Job>}
   */
  async wait(id, { signal } = {}) {
    let job = await this.job(id, { signal });
    for (let failures = 0, answeredAt = Date.now(); !isFinal(job.status); ) {
      try {
        job = await this._http.json("GET", pathOf("jobs", id), { query: { wait: LONG_POLL_S }, signal, retry: false });
        [failures, answeredAt] = [0, Date.now()];
      } catch (error) {
        signal?.throwIfAborted();
        const mayPass = error instanceof Busy || error instanceof Unreachable;
        if (!mayPass || Date.now() - answeredAt > RECONNECT_LIMIT_MS) throw error;
        await pause(Math.max(backoffMs(++failures), (error.retryAfter ?? 0) * 1000), signal);
      }
    }
    if (job.status !== "succeeded") throw new JobFailed(job);
    return job;
  }

  /**
   * Yield the events of a job until its end: `state`, `progress`, `log`.
   *
   * @param {string} id
   * @param {import("./follow.js").FollowOptions} [options]
   */
  follow(id, options = {}) {
    return followEvents(this._http, pathOf("jobs", id, "events"), options);
  }

  /**
   * Yield the events of all jobs of the owner, and notices about hosts, without an end.
   *
   * @param {import("./follow.js").FollowOptions} [options]
   */
  events(options = {}) {
    return followEvents(this._http, pathOf("events"), { ...options, endless: true });
  }

  /**
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<Job>}
   */
  job(id, options) {
    return this._http.json("GET", pathOf("jobs", id), options);
  }

  /**
   * Return one page of the jobs, newest first.
   *
   * @param {import("./http.js").RequestOptions["query"]} [filters] status, endpoint, priority, tag (`name:value`), code,
   *   text, from, to, limit, cursor. status and tag may be lists.
   * @param {CallOptions} [options]
   * @returns {Promise<{jobs: Job[], next_cursor: string|null}>}
   */
  jobsPage(filters = {}, options) {
    return this._http.json("GET", pathOf("jobs"), { ...options, query: filters });
  }

  /**
   * Yield jobs, newest first, page after page.
   *
   * @param {import("./http.js").RequestOptions["query"]} [filters]
   * @param {CallOptions} [options]
   * @returns {AsyncGenerator<Job, void, undefined>}
   */
  async *jobs(filters = {}, options) {
    for (let cursor = filters.cursor; ; ) {
      const page = await this.jobsPage({ ...filters, cursor }, options);
      yield* page.jobs;
      cursor = page.next_cursor;
      if (!cursor) return;
    }
  }

  /**
   * Stop a waiting or running job. Throws Conflict if it has ended.
   *
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<Job>}
   */
  cancel(id, options) {
    return this._http.json("POST", pathOf("jobs", id, "cancel"), options);
  }

  /**
   * Start a new round of a job that failed, was cancelled or expired.
   *
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<Job>}
   */
  retry(id, options) {
    return this._http.json("POST", pathOf("jobs", id, "retry"), options);
  }

  /**
   * Remove a job that has ended, with its outputs and logs.
   *
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<void>}
   */
  delete(id, options) {
    return this._http.json("DELETE", pathOf("jobs", id), options);
  }

  /**
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<string>}
   */
  logs(id, options = {}) {
    return this._http.call("GET", pathOf("jobs", id, "logs"), options, (response) => response.text());
  }

  /**
   * Return the last events of the job's record.
   *
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<Record<string, any>[]>}
   */
  history(id, options) {
    return this._http.json("GET", pathOf("jobs", id, "history"), options);
  }

  /**
   * Upload a file unless the edge has it. Continues after a lost connection and, with a `store`, after a reload.
   *
   * @param {Source} file
   * @param {UploadOptions} [options]
   */
  upload(file, options = {}) {
    return new Upload(this._http, file, options).run();
  }

  /**
   * Return the digest of a file, `sha256:` and 64 hex digits, without sending the file.
   *
   * @param {Source} file
   * @param {UploadOptions} [options]
   */
  digest(file, options = {}) {
    return new Upload(this._http, file, options).digest();
  }

  /**
   * Upload several files, `parallel` (3) at a time.
   *
   * @param {Source[]} files
   * @param {UploadOptions & {parallel?: number}} [options]
   */
  uploadAll(files, options = {}) {
    return uploadAll(this._http, files, options);
  }

  /**
   * Return a URL of an output that works without a key for about an hour, for `<video src>` or a link.
   *
   * @param {string|Job} job With an id, the job is read again, so that the URL is fresh.
   * @param {string} [name] The name of the output; it may be left out where there is only one.
   * @param {CallOptions} [options]
   * @returns {Promise<string>}
   */
  async downloadUrl(job, name, options) {
    const read = typeof job === "string" ? await this.job(job, options) : job;
    const files = read.output?.files ?? [];
    const file = name === undefined && files.length === 1 ? files[0] : files.find((one) => one.name === name);
    if (!file) {
      const problem = name === undefined ? `name one output of job ${read.id}` : `job ${read.id} has no output ${name}`;
      throw new RangeError(`${problem}: it has ${files.map((one) => one.name).join(", ") || "none"}`);
    }
    return this._http.urlOf(file.url);
  }

  /**
   * Return an output.
   *
   * @param {string|Job} job
   * @param {string} [name]
   * @param {CallOptions} [options]
   * @returns {Promise<Blob>}
   */
  async download(job, name, options) {
    const url = await this.downloadUrl(job, name, options);
    return this._http.call("GET", url, options ?? {}, (response) => response.blob());
  }

  /**
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Endpoint[]>}
   */
  async endpoints(options) {
    return (await this._http.json("GET", pathOf("endpoints"), options)).endpoints;
  }

  /**
   * @param {string} name
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Endpoint>}
   */
  endpoint(name, options) {
    return this._http.json("GET", pathOf("endpoints", name), options);
  }

  /**
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Host[]>}
   */
  async hosts(options) {
    return (await this._http.json("GET", pathOf("hosts"), options)).hosts;
  }

  /**
   * Keep a declared host on or off until the time `until`, or until a call with `auto`. Needs the scope `power`.
   *
   * @param {string} host
   * @param {"on"|"off"|"auto"} want
   * @param {CallOptions & {until?: string}} [options]
   * @returns {Promise<import("./types.js").Host>}
   */
  power(host, want, { until, signal } = {}) {
    return this._http.json("POST", pathOf("hosts", host, "power"), { json: { want, until }, signal });
  }

  /**
   * Pause an endpoint: its jobs are accepted and wait. Needs the scope `power`.
   *
   * @param {string} name
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Endpoint>}
   */
  pauseEndpoint(name, options) {
    return this._http.json("POST", pathOf("endpoints", name, "pause"), options);
  }

  /**
   * End the pause of an endpoint. Needs the scope `power`.
   *
   * @param {string} name
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Endpoint>}
   */
  resumeEndpoint(name, options) {
    return this._http.json("POST", pathOf("endpoints", name, "resume"), options);
  }

  /**
   * Put a host into maintenance: it starts no job, and no rule powers it on or off. Needs the scope `power`.
   *
   * @param {string} host
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Host>}
   */
  startMaintenance(host, options) {
    return this._http.json("POST", pathOf("hosts", host, "maintenance"), options);
  }

  /**
   * End the maintenance of a host. Needs the scope `power`.
   *
   * @param {string} host
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Host>}
   */
  endMaintenance(host, options) {
    return this._http.json("DELETE", pathOf("hosts", host, "maintenance"), options);
  }

  /**
   * Return the webhooks for all jobs of the owner, oldest first.
   *
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").OwnerWebhook[]>}
   */
  async webhooks(options) {
    return (await this._http.json("GET", pathOf("webhooks"), options)).webhooks;
  }

  /**
   * Add a webhook for the final states of all jobs. The same URL with the same filter returns the one that exists.
   *
   * @param {{url: string, endpoints?: string[], states?: string[]}} webhook Without `endpoints` or `states`: all.
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").OwnerWebhook>}
   */
  addWebhook(webhook, options) {
    return this._http.json("POST", pathOf("webhooks"), { ...options, json: webhook, retry: true });
  }

  /**
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<void>}
   */
  deleteWebhook(id, options) {
    return this._http.json("DELETE", pathOf("webhooks", id), options);
  }

  /**
   * Send a test message to a webhook, and return how its receiver answered.
   *
   * @param {string} id
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").WebhookTest>}
   */
  testWebhook(id, options) {
    return this._http.json("POST", pathOf("webhooks", id, "test"), options);
  }

  /**
   * Return jobs, GPU seconds, energy and cost between two times (RFC 3339). The default is the last 30 days.
   *
   * @param {{from?: string, to?: string, owner?: string}} [range]
   * @param {CallOptions} [options]
   * @returns {Promise<import("./types.js").Usage>}
   */
  usage(range = {}, options) {
    return this._http.json("GET", pathOf("usage"), { ...options, query: range });
  }

  /**
   * Send any other request of docs/api.md and return the JSON of its answer.
   *
   * @param {string} method
   * @param {string} path For example `/v1/assets`.
   * @param {import("./http.js").RequestOptions} [options]
   * @returns {Promise<any>}
   */
  request(method, path, options) {
    return this._http.json(method, path, options);
  }
}

/**
 * @param {unknown} value
 * @returns {Blob[]}
 */
function findFiles(value) {
  if (value instanceof Blob) return [value];
  return value && typeof value === "object" ? Object.values(value).flatMap(findFiles) : [];
}

/**
 * Return `value` with each file replaced by its digest.
 *
 * @param {any} value
 * @param {Map<Blob, string>} digests
 * @returns {any}
 */
function replaceFiles(value, digests) {
  if (value instanceof Blob) return digests.get(value);
  if (Array.isArray(value)) return value.map((item) => replaceFiles(item, digests));
  if (!value || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, replaceFiles(item, digests)]));
}
