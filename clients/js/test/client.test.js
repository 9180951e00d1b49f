// The client against a real edge, runner and broker. tests/clients/test_js_node.py starts them and runs this file.
//
// URL, KEY: the edge and a key of every client scope. ADMIN: a key that may do everything. PROXY: the edge behind a proxy. CONTROL: a POST to it breaks every
// connection of the proxy. FILES: a folder to write files to.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { openAsBlob, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import {
  Client, Conflict, JobFailed, LamplighterError, NotFound, Rejected, Sha256, Unauthorized, Unreachable,
} from "lamplighter-client";

const { URL: url = "", KEY: key = "", ADMIN: admin = "", PROXY: proxy = "", CONTROL: control = "", FILES: folder = "" } = process.env;
const client = new Client({ url, key });
const behindProxy = new Client({ url: proxy, key });

async function breakConnections() {
  assert.equal((await fetch(control, { method: "POST" })).status, 200);
}

function makeFile(bytes) {
  const file = path.join(folder, `${randomBytes(6).toString("hex")}.bin`);
  writeFileSync(file, randomBytes(bytes));
  return file;
}

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

// Events without the estimate, which changes with every job that ends.
function withoutEta(events) {
  return events.map((event) => (event.kind === "state" ? { ...event, data: { ...event.data, eta: null } } : event));
}

// The numbers of the lines "step N of M" in the log. One event may carry several lines.
function stepsIn(events) {
  const log = events.filter(({ kind }) => kind === "log").map(({ data }) => data.text).join("");
  return [...log.matchAll(/step (\d+) of/g)].map(([, n]) => Number(n));
}

test("a job with a file, from the submit to its output", async () => {
  const file = new File(["hello\n"], "hello.txt", { type: "text/plain" });
  const submitted = await client.submit("echo", { text: "hi", file, steps: 1 }, { tags: { from: "node" } });
  const job = await client.wait(submitted.id);
  assert.equal(job.output.data.text, "hi");
  assert.equal(await (await client.download(job)).text(), "hello\n");
  const open = await fetch(await client.downloadUrl(job.id, job.output.files[0].name)); // no key
  assert.equal(await open.text(), "hello\n");
  assert.match(await client.logs(job.id), /step 1 of 1/);
  assert.ok((await client.history(job.id)).length >= 3);
  const found = await collect(client.jobs({ tag: "from:node", limit: 1 }));
  assert.deepEqual(found.map(({ id }) => id), [job.id]);
  await assert.rejects(client.downloadUrl(job.id, "nothing"), RangeError);
  await client.delete(job.id);
  await assert.rejects(client.job(job.id), NotFound);
});

test("with await_input the job is accepted before its files are sent", async () => {
  const file = new File([randomBytes(300_000)], "late.bin"), order = [];
  const options = {
    await_input: true, onAccepted: (job) => order.push(job.status),
    onProgress: ({ phase }) => { if (phase === "sending") order.push(phase); },
  };
  const accepted = await client.submit("echo", { file }, options);
  assert.deepEqual([accepted.reason, accepted.missing], ["awaiting_input", [await client.digest(file)]]);
  assert.equal((await client.wait(accepted.id)).input.file, accepted.missing[0]);
  assert.deepEqual((await client.submit("echo", { file }, options)).missing, []);
  assert.deepEqual(order, ["scheduled", "sending", "queued"], "what the edge has is not sent");
});

test("a job whose upload was stopped waits for it", async () => {
  const file = new File([randomBytes(1000)], "stopped.bin"), stop = new AbortController();
  let waiting = null;
  const onAccepted = (job) => { waiting = job; stop.abort(new Error("the page was left")); };
  await assert.rejects(client.submit("echo", { file }, { await_input: true, onAccepted, signal: stop.signal }), /the page was left/);
  assert.equal((await client.job(waiting.id)).reason, "awaiting_input");
  assert.equal((await client.upload(file)).digest, waiting.missing[0]);
  await client.wait(waiting.id);
});

test("the events of a job come in order and end with it", async () => {
  const job = await client.submit("echo", { text: "hi", steps: 3 });
  const events = withoutEta(await collect(client.follow(job.id)));
  const states = events.filter(({ kind }) => kind === "state").map(({ data }) => data.status);
  assert.equal(states.at(-1), "succeeded");
  assert.deepEqual(stepsIn(events), [1, 2, 3]);
  assert.ok(events.some(({ kind, data }) => kind === "progress" && data.fraction === 1));
  assert.deepEqual(withoutEta(await collect(client.follow(job.id, { after: events[0].id }))), events.slice(1));
  assert.deepEqual(await collect(client.follow(job.id, { after: events.at(-1).id })), []);
});

test("a stream that is cut goes on after its last event, and nothing is missing or repeated", async () => {
  const job = await client.submit("echo", { steps: 12, seconds: 3 });
  const events = [], connections = [];
  for await (const event of behindProxy.follow(job.id, { onConnection: (state) => connections.push(state) })) {
    events.push(event);
    if (event.kind === "log" && /step [38] of/.test(event.data.text)) await breakConnections();
  }
  assert.deepEqual(connections, ["open", "lost", "open", "lost", "open"]);
  assert.deepEqual(stepsIn(events), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  assert.equal(events.at(-1).id, (await collect(client.follow(job.id))).at(-1).id);
});

test("a stream that falls silent is opened again", async () => {
  const job = await client.submit("echo", { steps: 1 });
  await client.wait(job.id);
  let calls = 0;
  const silentOnce = new Client({
    url, key,
    fetch: (input, init) => {
      if (++calls > 1) return fetch(input, init);
      const body = new ReadableStream({ start: (stream) => init.signal.addEventListener("abort", () => stream.error(init.signal.reason)) });
      return Promise.resolve(new Response(body));
    },
  });
  const events = await collect(silentOnce.follow(job.id, { silenceS: 0.1 }));
  assert.equal(events.at(-1).data.status ?? "log", events.at(-1).kind === "state" ? "succeeded" : "log");
  assert.equal(calls, 2);
});

test("following stops with its signal, and at a refusal", async () => {
  const stop = new AbortController();
  const job = await client.submit("echo", { seconds: 60 });
  const following = collect(client.follow(job.id, { signal: stop.signal, onConnection: () => stop.abort(new Error("enough")) }));
  await assert.rejects(following, /enough/);
  await client.cancel(job.id);
  await assert.rejects(client.wait(job.id), (error) => error instanceof JobFailed && error.job.status === "cancelled");
  await assert.rejects(collect(client.follow("nowhere")), NotFound);
  const nobody = new Client({ url: "http://127.0.0.1:9", key });
  await assert.rejects(nobody.submit("echo", {}, { signal: AbortSignal.timeout(300) }), { name: "TimeoutError" });
});

test("the events of all jobs", async () => {
  const stop = new AbortController();
  const job = await client.submit("echo", { steps: 1 });
  await assert.rejects(async () => {
    for await (const event of client.events({ signal: stop.signal })) {
      if (event.kind === "state" && event.data.id === job.id && event.data.status === "succeeded") stop.abort(new Error("seen"));
    }
  }, /seen/);
});

test("an upload that is cut goes on where it was, and is not sent again", async () => {
  const file = makeFile(24 * 1024 * 1024), told = [];
  const isIn = (phase) => told.some((progress) => progress.phase === phase && progress.done >= 1024 * 1024);
  const breakUntilLost = async () => { while (!isIn("waiting") && !isIn("done")) await breakConnections(); };
  const asset = await behindProxy.upload(file, {
    onProgress: (progress) => {
      if (progress.phase === "sending" && progress.done === 1024 * 1024 && !isIn("sending")) breakUntilLost();
      told.push(progress);
    },
  });
  assert.equal(asset.digest, `sha256:${createHash("sha256").update(Buffer.from(await (await openAsBlob(file)).arrayBuffer())).digest("hex")}`);
  assert.equal(asset.present, false);
  const lost = told.findIndex(({ phase }) => phase === "waiting");
  assert.ok(lost > 0, "the connection was never lost");
  const offsets = told.filter(({ phase }) => phase === "sending").map(({ done }) => done);
  assert.deepEqual(offsets, offsets.toSorted((a, b) => a - b));
  assert.ok(told.slice(lost).find(({ phase }) => phase === "sending").done >= 1024 * 1024);
  assert.deepEqual(told.at(-1), { phase: "done", done: 24 * 1024 * 1024, total: 24 * 1024 * 1024, present: false, bytesPerS: null });
  assert.equal((await client.upload(file)).present, true);
});

test("an upload that was stopped goes on by its store, and hashes once", async () => {
  const file = makeFile(9 * 1024 * 1024), store = new Map(), stop = new AbortController();
  const stopped = client.upload(file, {
    store, signal: stop.signal,
    onProgress: ({ phase, done }) => { if (phase === "sending" && done > 0) stop.abort(new Error("reload")); },
  });
  await assert.rejects(stopped, /reload/);
  assert.equal(store.size, 2);
  const told = [];
  await client.upload(file, { store, onProgress: (progress) => told.push(progress) });
  assert.ok(!told.some(({ phase }) => phase === "hashing"));
  assert.ok(told.find(({ phase }) => phase === "sending").done > 0);
  assert.deepEqual([...store.keys()].filter((name) => name.startsWith("upload")), []);
});

test("a lost upload begins again, and a file that changed is refused", async () => {
  const file = makeFile(5 * 1024 * 1024), store = new Map();
  const { sha256 } = await client.upload(makeFile(1024), { store: { get: () => undefined, set: () => {}, delete: () => {} } });
  const digest = createHash("sha256").update(Buffer.from(await (await openAsBlob(file)).arrayBuffer())).digest("hex");
  store.set(`upload ${url} ${digest}`, "/v1/uploads/gone");
  assert.equal((await client.upload(file, { store })).sha256, digest);
  const other = makeFile(1024);
  const wrong = { get: (name) => (name.startsWith("digest") ? "0".repeat(64) : undefined), set: () => {}, delete: (name) => dropped.push(name) };
  const dropped = [];
  await assert.rejects(client.upload(other, { store: wrong }), { code: "digest_mismatch", status: 422 });
  assert.ok(dropped.some((name) => name.startsWith("digest")));
  assert.notEqual(sha256, digest);
});

test("several files are sent at a time", async () => {
  const files = [1, 2, 3, 4].map(() => new File([randomBytes(100_000)], "part.bin"));
  let sending = 0, most = 0;
  const assets = await client.uploadAll(files, {
    parallel: 2,
    onProgress: ({ phase }) => {
      if (phase === "sending") most = Math.max(most, ++sending);
      if (phase === "done") sending -= 1;
    },
  });
  assert.equal(new Set(assets.map(({ digest }) => digest)).size, 4);
  assert.equal(most, 2);
});

test("refusals have a class and say what is wrong", async () => {
  await assert.rejects(client.submit("echo", { text: 5 }), (error) => {
    assert.ok(error instanceof Rejected && error instanceof LamplighterError);
    assert.equal(error.status, 422);
    assert.equal(error.code, "input_invalid");
    assert.equal(error.errors[0].path, "$.input.text");
    assert.ok(error.title && error.detail && error.message.includes("$.input.text"));
    return true;
  });
  await assert.rejects(new Client({ url, key: "lamp_no_no" }).jobsPage(), Unauthorized);
  const unknown = client.submit("echo", { steps: 1, behave: "exit", exit: 65 });
  await assert.rejects(client.wait((await unknown).id), { name: "JobFailed", code: "bad_input" });
  assert.equal((await client.retry((await unknown).id)).round, 2);
  await assert.rejects(client.wait((await unknown).id), JobFailed);
  await assert.rejects(client.cancel((await unknown).id), Conflict);
});

test("an answer that was lost makes no second job", async () => {
  let calls = 0;
  const forgetful = new Client({
    url, key,
    fetch: async (input, init) => {
      const answer = await fetch(input, init);
      if (init.method === "POST" && ++calls === 1) throw new TypeError("connection reset");
      return answer;
    },
  });
  const job = await forgetful.submit("echo", { steps: 1 }, { tags: { once: "yes" } });
  assert.equal(calls, 2);
  assert.deepEqual((await collect(client.jobs({ tag: "once:yes" }))).map(({ id }) => id), [job.id]);
});

test("batches, endpoints, hosts, usage, languages, and an id of one's own", async () => {
  const { accepted, rejected } = await client.batch([{ endpoint: "echo", input: {} }, { endpoint: "nowhere", input: {} }]);
  assert.deepEqual([accepted.length, rejected[0].index, rejected[0].problem.code], [1, 1, "endpoint_unknown"]);
  assert.ok((await client.endpoints()).some(({ name }) => name === "echo"));
  assert.ok((await client.endpoint("echo")).input.properties.text);
  assert.deepEqual((await client.hosts()).map(({ id }) => id), ["gpu-1"]);
  assert.ok("jobs" in (await client.usage({ from: "2026-11-01T00:00:00Z" })));
  assert.equal((await client.submit("echo", {}, { id: "mine-1", priority: "low" })).id, "mine-1");
  assert.equal((await client.submit("echo", {}, { id: "mine-1", priority: "low" })).id, "mine-1");
  assert.ok(Array.isArray((await client.request("GET", "/v1/assets", { query: { limit: 1 } })).assets));
  const chinese = await new Client({ url, key, language: "zh" }).submit("echo", {}, { not_before: "2099-01-01T00:00:00Z" });
  assert.match(chinese.message, /[\u4e00-\u9fff]/);
  await assert.rejects(client.power("gpu-1", "off"), Rejected);
  assert.throws(() => new Client(), TypeError);
});

test("endpoints are paused, hosts are put into maintenance, and both end", async () => {
  const operator = new Client({ url, key: admin });
  const paused = await operator.pauseEndpoint("echo");
  assert.equal(paused.paused.by, "boss");
  assert.deepEqual((await client.endpoint("echo")).paused, paused.paused);
  let job = await client.submit("echo", {});
  while ((await client.job(job.id)).reason !== "endpoint_paused") {
    await client.wait(job.id); // the host claimed it before it knew of the pause
    job = await client.submit("echo", {});
  }
  assert.equal((await operator.resumeEndpoint("echo")).paused, null);
  await client.wait(job.id);
  assert.equal((await operator.startMaintenance("gpu-1")).maintenance.by, "boss");
  assert.equal((await operator.endMaintenance("gpu-1")).maintenance, null);
  await assert.rejects(client.pauseEndpoint("echo"), Unauthorized);
});

test("webhooks for all jobs are added, listed, tested and deleted", async () => {
  const wanted = { url: "https://hooks.invalid/ended", endpoints: ["echo"], states: ["failed"] };
  const webhook = await client.addWebhook(wanted);
  assert.deepEqual([webhook.url, webhook.endpoints, webhook.states], Object.values(wanted));
  assert.equal((await client.addWebhook(wanted)).id, webhook.id);
  assert.deepEqual(await client.webhooks(), [webhook]);
  const tested = await client.testWebhook(webhook.id);
  assert.deepEqual([tested.delivered, typeof tested.error], [false, "string"], "nobody has this name");
  await client.deleteWebhook(webhook.id);
  assert.deepEqual(await client.webhooks(), []);
});

test("without an edge the error says so", async () => {
  const nobody = new Client({ url: "http://127.0.0.1:9/", key });
  await assert.rejects(nobody.cancel("x"), (error) => error instanceof Unreachable && /is the edge running/.test(error.message));
});

test("our SHA-256 is SHA-256", () => {
  for (const size of [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_003]) {
    const data = randomBytes(size), hash = new Sha256();
    for (let at = 0; at < size; at += 37) hash.update(data.subarray(at, at + 37));
    assert.equal(hash.hex(), createHash("sha256").update(data).digest("hex"), `${size} bytes`);
  }
});
