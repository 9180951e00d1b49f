/**
 * The types of requests and answers. docs/api.md describes the fields; answers may get new ones.
 *
 * @module
 */

/**
 * @typedef {"scheduled"|"queued"|"running"|"cancelling"|"succeeded"|"failed"|"cancelled"|"expired"} JobStatus
 * @typedef {{path: string, message: string}} FieldError
 *
 * @typedef {object} Problem The body of a refusal (RFC 9457).
 * @property {string} type
 * @property {string} title
 * @property {number} status
 * @property {string} detail
 * @property {string} code
 * @property {FieldError[]} [errors]
 * @property {string[]} [missing]
 *
 * @typedef {object} JobFile
 * @property {string} name
 * @property {string} sha256
 * @property {number} bytes
 * @property {string} media_type
 * @property {string} url A path of the edge, or a complete URL. It works without a key for about an hour.
 *
 * @typedef {object} JobError
 * @property {string} code
 * @property {string} message
 * @property {string} blame
 * @property {boolean} retryable
 * @property {string[]} [log_tail]
 *
 * @typedef {object} Job
 * @property {string} id
 * @property {string} owner
 * @property {string} endpoint
 * @property {JobStatus} status
 * @property {number} revision
 * @property {string|null} reason Why it waits.
 * @property {string|null} message The same for people, in the client's language.
 * @property {string[]} missing Digests of files that must still be uploaded.
 * @property {number|null} queue_position 0 is next in line.
 * @property {{start_at: string|null, finish_at: string|null, p90_finish_at: string|null, samples: number}|null} eta
 * @property {{fraction: number, stage: string|null, done: number|null, total: number|null}|null} progress
 * @property {Record<string, any>} input
 * @property {{files: JobFile[], data: Record<string, any>}|null} output
 * @property {JobError|null} error
 * @property {number} round
 * @property {number} attempt
 * @property {number} max_attempts
 * @property {"high"|"normal"|"low"} priority
 * @property {Record<string, string>} tags
 * @property {string} trace_id
 * @property {string|null} host
 * @property {string|null} gpu
 * @property {string|null} engine
 * @property {string} created_at
 * @property {string|null} queued_at
 * @property {string|null} started_at
 * @property {string|null} finished_at
 * @property {string|null} not_before
 * @property {string|null} deadline
 * @property {Record<string, any>} usage
 * @property {{name: string, value: number, unit: string}[]} metrics
 * @property {{self: string, events: string, cancel: string, retry: string, logs: string}} urls
 *
 * @typedef {{job_id: string, at: string, round: number, attempt: number, offset: number}} EventPlace
 * @typedef {EventPlace & {fraction: number, stage: string|null, done: number|null, total: number|null}} Progress
 * @typedef {EventPlace & {stream: string, text: string}} LogLine
 * @typedef {{kind: string, host: string, message: string, at: string}} Notice
 * @typedef {{id: string, kind: "state", data: Job}} StateEvent
 * @typedef {{id: string, kind: "progress", data: Progress}} ProgressEvent
 * @typedef {{id: string, kind: "log", data: LogLine}} LogEvent
 * @typedef {{id: string, kind: "notice", data: Notice}} NoticeEvent
 * @typedef {StateEvent|ProgressEvent|LogEvent|NoticeEvent} JobEvent
 *
 * @typedef {object} Asset A file of the owner. `digest` is what a job's input takes.
 * @property {string} digest
 * @property {string} sha256
 * @property {number} bytes
 * @property {string} name
 * @property {string} media_type
 * @property {string} [created_at]
 * @property {string} [url]
 *
 * @typedef {object} Endpoint
 * @property {string} name
 * @property {string} pool
 * @property {string} description
 * @property {Record<string, any>} input The JSON Schema of a job's input.
 * @property {string} image
 * @property {boolean} warm
 * @property {string[]} hosts
 * @property {Pause|null} paused
 *
 * @typedef {{since: string, by: string}} Pause Since when and by whom something is paused.
 * @typedef {{id: string, state: string, maintenance: Pause|null} & Record<string, any>} Host
 *
 * @typedef {object} OwnerWebhook A webhook for all jobs of an owner.
 * @property {string} id
 * @property {string} url
 * @property {string[]} endpoints Empty: all.
 * @property {string[]} states
 * @property {string} created_at
 * @property {boolean} disabled Its URL answered 410, so nothing is sent to it.
 *
 * @typedef {{delivered: boolean, status: number|null, error: string|null, took_s: number}} WebhookTest
 * @typedef {Record<string, any>} Usage
 * @typedef {{accepted: Job[], rejected: {index: number, problem: Problem}[]}} Batch
 *
 * @typedef {object} SubmitFields Further fields of a submit; docs/api.md describes them.
 * @property {"high"|"normal"|"low"} [priority]
 * @property {string} [not_before]
 * @property {string} [deadline]
 * @property {boolean} [await_input]
 * @property {Record<string, number>} [policy]
 * @property {{url: string}} [webhook]
 * @property {Record<string, string>} [tags]
 * @property {string} [trace_id]
 */
export {};
