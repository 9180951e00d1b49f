/**
 * The uploads of files that jobs wait for. They go on while other pages of the console are shown and, from the copy of
 * the file that this browser keeps, after a reload. Of several tabs, one sends a file and the others wait for it.
 *
 * @module
 */
import { client, get, session } from "./api.js";
import { dropFile, keepFile, keptFile, keptNames, uploadStore } from "./drafts.js";

const PREFIX = "waiting ";
const SLOW_BYTES_PER_S = 256 * 1024, PATIENCE_S = 1800;

const uploads = new Map(); // by job and digest: {file, progress, error, stop}
const watchers = new Set();

const nameOf = (job, digest) => `${PREFIX}${job} ${digest}`;

/** Return `{progress, error, file}` of an upload of this page; undefined where there is none. */
export const uploadOf = (job, digest) => uploads.get(nameOf(job, digest));

/** Call `watcher` when an upload has changed. Returns a stop. */
export function watchUploads(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

/** How long a job should wait for so many bytes: a job that waits keeps its host on, so it must not wait for days. */
export const inputTimeoutS = (count) => Math.ceil(PATIENCE_S + count / SLOW_BYTES_PER_S);

/** Whether a job is waiting for files, or has failed for want of them. */
export const lacksFiles = (job) => job.missing.length > 0 && ["scheduled", "failed"].includes(job.status);

/** Send a file that a job waits for. */
export function startUpload(job, digest, file) {
  keepFile(nameOf(job, digest), { file, job, digest, owner: session().owner });
  begin(job, digest, file, false);
}

async function begin(job, digest, file, isResumed) {
  const name = nameOf(job, digest), current = uploads.get(name);
  if (current && !current.error) return;
  const upload = { file, error: null, stop: new AbortController(), progress: { phase: "elsewhere", done: 0, total: file.size } };
  const { signal } = upload.stop, tell = (change) => (Object.assign(upload, change), watchers.forEach((watcher) => watcher()));
  const options = { signal, store: uploadStore, onProgress: (progress) => tell({ progress }) };
  uploads.set(name, upload);
  try {
    await alone(name, signal, async () => {
      if (isResumed && !(await keptFile(name))) return forgetUpload(job, digest); // another tab stopped it
      await client().upload(file, options);
      dropFile(name);
    });
  } catch (error) {
    if (!signal.aborted) tell({ error });
  }
}

/** Call `send` when no other tab does so. Browsers have locks over HTTPS and on localhost only. */
function alone(name, signal, send) {
  return navigator.locks ? navigator.locks.request(name, { signal }, send) : send();
}

/** Stop an upload, and forget its file. The edge keeps what it has of it for a while. */
export function forgetUpload(job, digest) {
  const name = nameOf(job, digest);
  uploads.get(name)?.stop.abort();
  uploads.delete(name);
  dropFile(name);
  for (const watcher of watchers) watcher();
}

/** Stop the uploads for a job that needs its files no longer. */
export function noteState({ id, status, missing }) {
  if (status === "cancelled" || status === "expired") for (const digest of missing) forgetUpload(id, digest);
}

/** Go on with what this browser keeps for the signed-in owner, after a reload or a new sign-in. */
export async function resumeUploads() {
  for (const name of await keptNames(PREFIX)) {
    const kept = await keptFile(name);
    if (kept?.owner !== session()?.owner) continue;
    const job = await get(`/v1/jobs/${encodeURIComponent(kept.job)}`).catch((error) => (error.status === 404 ? null : undefined));
    if (job === undefined) continue; // the edge does not answer; the next reload tries again
    if (job && lacksFiles(job) && job.missing.includes(kept.digest)) begin(kept.job, kept.digest, kept.file, true);
    else dropFile(name);
  }
}

/** Stop all uploads when the session ends. What is kept goes on after the next sign-in. */
export function stopUploads() {
  for (const upload of uploads.values()) upload.stop.abort();
  uploads.clear();
}
