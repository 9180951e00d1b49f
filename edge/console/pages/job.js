/**
 * One job: what happens now and until when, its steps, its files and result, its log, and what can be done with it.
 *
 * @module
 */
import { can, client, errorText, get, owner, request, session } from "../api.js";
import { uploadStore } from "../drafts.js";
import { askDialog, fill, h, throttled } from "../dom.js";
import { bytes, duration, energy, fullTime, money, number, percent, secondsBetween, time, vram } from "../format.js";
import { listen, noticesSince } from "../live.js";
import { fact, fileChooser, statusPill, timeElement, uploadProgress } from "../parts.js";
import { has, t } from "../text.js";
import { forgetUpload, lacksFiles, noteState, startUpload, uploadOf, watchUploads } from "../uploads.js";

const FINAL = new Set(["succeeded", "failed", "cancelled", "expired"]);
const NOTICE_LIMIT = 3;
const LOG_LIMIT = 400_000; // characters that are kept on the page; the whole log is a download

export function jobPage(main, id) {
  const stop = new AbortController();
  const view = { job: null, log: "", history: [], deliveries: [], followLog: true, search: "" };
  const headline = h("section", { class: "panel" }), facts = h("section", { class: "panel" }), media = h("section", { class: "panel" }), failure = h("section", { class: "panel failure", hidden: true });
  const timeline = h("section", { class: "panel" }), webhooks = h("section", { class: "panel", hidden: true }), log = logPanel(view, id), missing = missingPanel(view);
  fill(main, h("p", { class: "empty", role: "status" }, t("loading")));
  const drawSoon = throttled(draw, 250);

  function draw() {
    if (!view.job || stop.signal.aborted) return;
    drawHeadline(headline, view.job, noticesSince(view.job.created_at).slice(-NOTICE_LIMIT));
    missing.draw();
    drawFacts(facts, view.job, act);
    drawFailure(failure, view.job);
    drawMedia(media, view.job);
    drawTimeline(timeline, view.history);
    drawDeliveries(webhooks, view);
    log.draw();
  }

  async function load() {
    view.job = await get(`/v1/jobs/${encodeURIComponent(id)}`, {}, { signal: stop.signal });
    fill(main, h("div", { class: "title" }, h("h1", { class: "mono" }, view.job.id), h("a", { href: "#/jobs", class: "soft" }, t("page_jobs"))),
      headline, missing.element, failure, h("div", { class: "cols" }, h("div", { class: "stack" }, media, log.element), h("div", { class: "stack" }, facts, timeline, webhooks)));
    draw();
    await loadHistory();
  }

  async function loadHistory() {
    view.history = await get(`/v1/jobs/${encodeURIComponent(id)}/history`, {}, { signal: stop.signal });
    view.deliveries = (await get(`/v1/jobs/${encodeURIComponent(id)}/deliveries`, {}, { signal: stop.signal })).deliveries;
    drawSoon();
  }

  async function follow() {
    let lastStatus = null;
    for await (const event of client().follow(id, { signal: stop.signal, reconnectS: Infinity, query: { owner: owner() === session().owner ? undefined : owner() } })) {
      if (event.kind === "state") {
        if (event.data.revision < view.job.revision) continue;
        view.job = { ...event.data, progress: event.data.progress ?? (event.data.status === view.job.status ? view.job.progress : null) };
        if (event.data.status !== lastStatus) loadHistory().catch(() => {});
        lastStatus = event.data.status;
      } else if (event.kind === "progress") {
        if (event.data.attempt === view.job.attempt) view.job.progress = event.data;
      } else if (event.kind === "log") {
        view.log = (view.log + event.data.text).slice(-LOG_LIMIT);
      }
      drawSoon();
    }
  }

  /** Refresh what changes without an event: the position, the estimate, the host that wakes. */
  async function refresh() {
    while (!stop.signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, 3000));
      if (document.hidden || !view.job || FINAL.has(view.job.status)) continue;
      const job = await get(`/v1/jobs/${encodeURIComponent(id)}`, {}, { signal: stop.signal }).catch(() => null);
      if (job && job.revision >= view.job.revision) view.job = { ...job, progress: job.progress ?? view.job.progress };
      drawSoon();
    }
  }

  async function act(action) {
    if (action === "delete" && !(await askDialog(t("ask_delete"), [], t("do_delete"), t("back"), true))) return;
    if (action === "cancel" && !(await askDialog(t("ask_cancel"), [], t("do_cancel"), t("back")))) return;
    try {
      const path = `/v1/jobs/${encodeURIComponent(id)}`;
      if (action === "delete") {
        await request("DELETE", path);
        location.hash = "#/jobs";
        return;
      }
      view.job = await request("POST", `${path}/${action}`);
      noteState(view.job);
      if (action === "retry") {
        view.log = "";
        follow().catch(fail);
      }
      await loadHistory();
    } catch (error) {
      fail(error);
    }
  }

  function fail(error) {
    if (stop.signal.aborted) return;
    if (view.job) headline.append(h("p", { class: "error", role: "alert" }, errorText(error)));
    else fill(main, h("section", { class: "panel" }, h("p", { class: "error", role: "alert" }, errorText(error)), h("a", { href: "#/jobs" }, t("page_jobs"))));
  }

  load().then(() => Promise.all([FINAL.has(view.job.status) ? log.loadWhole() : follow(), refresh()])).catch(fail);
  const stops = [watchUploads(drawSoon), listen((event) => event.kind === "notice" && drawSoon()), () => stop.abort()];
  return () => stops.forEach((end) => end());
}

function drawHeadline(section, job, notices) {
  const progress = job.status === "running" ? job.progress : null;
  const now = progress ? progressText(progress) : FINAL.has(job.status) ? t(`now_${job.status}`) : job.message ?? t(`now_${job.status}`);
  const bar = job.status === "running" && h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round((progress?.fraction ?? 0) * 100), "aria-label": t("progress") }, h("i", {}));
  if (bar) bar.firstChild.style.width = `${Math.round((progress?.fraction ?? 0) * 1000) / 10}%`;
  fill(section, h("div", { class: "now" }, h("h2", { class: "big", "aria-live": "polite" }, now), statusPill(job.status), h("span", { class: "soft num due" }, dueText(job))),
    !FINAL.has(job.status) && notices.length > 0 && h("ul", { class: "plain soft", "aria-live": "polite" }, notices.map((notice) => h("li", {}, timeElement(notice.at), " ", notice.message))), steps(job), bar);
}

function progressText(progress) {
  const stage = progress.stage ? (has(`stage_${progress.stage}`) ? t(`stage_${progress.stage}`) : progress.stage) : t("now_running");
  return progress.total ? t("stage_of", { stage, done: number(progress.done), total: number(progress.total) }) : stage;
}

/** When the job will be done, as a range from the median to the 90th percentile. */
function dueText(job) {
  if (FINAL.has(job.status)) return job.started_at ? t("took", { time: duration(secondsBetween(job.started_at, job.finished_at)) }) : "";
  const eta = job.eta, parts = [];
  if (job.queue_position !== null && job.queue_position !== undefined) parts.push(job.queue_position ? t("ahead", { n: job.queue_position }) : t("next_in_line"));
  if (eta?.finish_at) parts.push(eta.p90_finish_at && eta.p90_finish_at !== eta.finish_at ? t("done_between", { from: time(eta.finish_at), to: time(eta.p90_finish_at) }) : t("done_at", { time: time(eta.finish_at) }));
  return parts.join(" · ");
}

/** The life of a job in steps, each with its real time. */
function steps(job) {
  const isOver = FINAL.has(job.status), run = secondsBetween(job.started_at, job.finished_at);
  const all = [
    { name: t("step_accepted"), text: time(job.created_at), state: "done" },
    { name: t("step_waited"), text: job.queued_at ? duration(job.usage?.queued_s ?? secondsBetween(job.queued_at, job.started_at)) : "", state: job.started_at ? "done" : isOver ? "" : "now" },
    { name: t("step_runs"), text: job.status === "running" && job.progress ? percent(job.progress.fraction) : job.started_at ? duration(run) : "", state: job.status === "running" ? "now" : job.started_at ? (job.status === "succeeded" ? "done" : "bad") : "" },
    { name: t("step_saved"), text: job.status === "succeeded" ? time(job.finished_at) : "", state: job.status === "succeeded" ? "done" : "" },
  ];
  return h("ol", { class: "steps" }, all.map((step) => h("li", { class: step.state, "aria-current": step.state === "now" ? "step" : undefined }, step.name, h("br"), h("span", { class: "num" }, step.text))));
}

function drawFacts(section, job, act) {
  const usage = job.usage ?? {}, canWrite = can("jobs:write");
  fill(section, h("h2", {}, t("job")), h("dl", {},
    fact(t("endpoint"), job.endpoint), fact(t("host_gpu"), [job.host, job.gpu?.slice(0, 12)].filter(Boolean).join(" · "), job.gpu), fact(t("engine"), job.engine),
    fact(t("attempt"), job.attempt ? t("attempt_of", { n: job.attempt, most: job.max_attempts }) : null), fact(t("round"), job.round > 1 ? String(job.round) : null),
    fact(t("priority"), t(`priority_${job.priority}`)), fact(t("not_before"), job.not_before && time(job.not_before), fullTime(job.not_before)), fact(t("deadline"), job.deadline && time(job.deadline), fullTime(job.deadline)),
    fact(t("run_time"), usage.run_s ? duration(usage.run_s) : null), fact(t("energy"), usage.gpu_energy_j === null || usage.gpu_energy_j === undefined ? null : energy(usage.gpu_energy_j)),
    fact(t("cost"), usage.cost === null || usage.cost === undefined ? null : money(usage.cost, usage.currency ?? "CNY")), fact(t("vram_peak"), usage.vram_peak_mb ? vram(usage.vram_peak_mb) : null),
    job.metrics?.map((metric) => fact(metric.name, `${number(metric.value, 2)} ${metric.unit}`)), Object.entries(job.tags ?? {}).map(([name, value]) => fact(name, value))),
  h("div", { class: "buttons" },
    canWrite && !FINAL.has(job.status) && h("button", { onclick: () => act("cancel"), disabled: job.status === "cancelling" }, t("do_cancel")),
    canWrite && ["failed", "cancelled", "expired"].includes(job.status) && h("button", { class: "primary", onclick: () => act("retry") }, t("do_retry")),
    canWrite && h("a", { class: "button", href: `#/new?from=${encodeURIComponent(job.id)}` }, t("again_with_changes")),
    canWrite && FINAL.has(job.status) && h("button", { class: "danger", onclick: () => act("delete") }, t("do_delete"))));
}

function drawFailure(section, job) {
  section.hidden = !job.error;
  if (!job.error) return;
  const advice = has(`blame_${job.error.blame}`) ? t(`blame_${job.error.blame}`) : "";
  fill(section, h("h2", {}, t("why_failed")), h("p", {}, job.error.message), h("p", { class: "soft" }, h("code", {}, job.error.code), " ", advice, job.error.retryable ? ` ${t("retry_may_help")}` : ""),
    job.error.log_tail?.length > 0 && h("pre", { class: "log mono" }, job.error.log_tail.join("\n")));
}

function drawMedia(section, job) {
  const inputs = Object.entries(job.input ?? {}).filter(([, value]) => typeof value === "string" && (value.startsWith("sha256:") || /^https?:/.test(value)));
  const others = Object.entries(job.input ?? {}).filter(([name]) => !inputs.some(([input]) => input === name));
  const key = JSON.stringify([inputs, job.missing, job.output?.files?.map((file) => [file.name, file.sha256])]);
  if (section.dataset.key === key) return; // a player that plays must not be made anew
  section.dataset.key = key;
  fill(section, h("h2", {}, t("input_and_result")), h("div", { class: "media" }, inputs.map(([name, value]) => inputFile(name, value, job.missing.includes(value))), job.output ? job.output.files.map(outputFile) : h("div", { class: "placeholder" }, t(FINAL.has(job.status) ? "no_result" : "result_comes_here"))),
    others.length > 0 && h("details", {}, h("summary", {}, t("values")), h("dl", {}, others.map(([name, value]) => fact(name, typeof value === "string" ? value : JSON.stringify(value))))),
    job.output && Object.keys(job.output.data).length > 0 && h("details", { open: true }, h("summary", {}, t("data")), h("pre", { class: "log mono" }, JSON.stringify(job.output.data, null, 2))));
}

/** An input. Whether it is a video, a sound or a picture shows when its type is known. */
function inputFile(name, value, isMissing) {
  const place = h("div", { class: "placeholder" }, isMissing ? t("not_uploaded") : name);
  if (isMissing || !value.startsWith("sha256:") || !can("assets:read")) return h("figure", {}, place, h("figcaption", {}, name, " ", h("span", { class: "soft" }, value.slice(0, 60))));
  const url = assetUrl(value.slice(7)), caption = h("figcaption", {}, name);
  const figure = h("figure", {}, place, caption);
  fetch(url, { method: "HEAD", credentials: "same-origin" }).then((reply) => {
    if (!reply.ok) place.textContent = t("input_gone");
    else place.replaceWith(player(url, reply.headers.get("content-type") ?? "", name));
    const size = Number(reply.headers.get("content-length"));
    if (reply.ok) caption.append(" ", h("span", { class: "soft" }, bytes(size)));
  }, () => {});
  return figure;
}

function assetUrl(sha256) {
  const query = owner() === session().owner ? "" : `?owner=${encodeURIComponent(owner())}`;
  return `/v1/assets/${sha256}${query}`;
}

function outputFile(file) {
  return h("figure", { class: "result" }, player(file.url, file.media_type, file.name), h("figcaption", {}, file.name, " ", h("span", { class: "soft" }, bytes(file.bytes)), " ", h("a", { class: "button", href: file.url, download: file.name }, t("download"))));
}

export function player(url, type, name) {
  if (type.startsWith("video/")) return h("video", { src: url, controls: true, preload: "metadata", playsInline: true, "aria-label": name });
  if (type.startsWith("audio/")) return h("audio", { src: url, controls: true, preload: "metadata", "aria-label": name });
  if (/^image\/(png|jpeg|gif|webp)/.test(type)) return h("img", { src: url, alt: name, loading: "lazy" });
  return h("div", { class: "placeholder" }, name);
}

function drawTimeline(section, history) {
  if (!history.length) return;
  fill(section, h("h2", {}, t("timeline")), h("ol", { class: "timeline" }, history.map((row) => h("li", {}, timeElement(row.at), " ", has(`event_${row.event.type}`) ? t(`event_${row.event.type}`) : row.event.type, " ",
    h("span", { class: "soft" }, [row.event.claim?.host ?? row.event.host, row.event.code ?? row.event.failure?.code ?? row.event.error?.code].filter(Boolean).join(" · "))))));
}

function drawDeliveries(section, view) {
  section.hidden = !view.deliveries.length;
  fill(section, h("h2", {}, t("webhooks")), h("ul", { class: "plain" }, view.deliveries.map((delivery) => h("li", {}, h("span", {}, `${has(`status_${delivery.job_status}`) ? t(`status_${delivery.job_status}`) : delivery.job_status}: ${t(`status_delivery_${delivery.state}`)}`), " ",
    h("span", { class: "soft" }, t("tries", { n: delivery.tries.length }), delivery.next_at ? ` · ${t("next_try", { time: time(delivery.next_at) })}` : ""), " ",
    can("jobs:write") && h("button", { class: "quiet", onclick: (event) => replay(delivery, event.target) }, t("send_again"))))));
}

async function replay(delivery, button) {
  button.disabled = true;
  button.textContent = await request("POST", `/v1/deliveries/${encodeURIComponent(delivery.id)}/replay`).then(() => t("sent"), errorText);
}

/** The files that the job waits for: how far their upload is, or a field to choose each again. */
function missingPanel(view) {
  const element = h("section", { class: "panel", hidden: true }), rows = new Map();
  return { element, draw() {
    const job = view.job;
    element.hidden = !lacksFiles(job);
    if (element.hidden) return;
    for (const digest of job.missing) if (!rows.has(digest)) rows.set(digest, missingFile(job, digest));
    fill(element, h("h2", {}, t("files_to_come")), h("p", { class: "soft" }, t(job.status === "failed" ? "upload_then_retry" : "starts_when_complete")), job.missing.map((digest) => rows.get(digest).element));
    for (const digest of job.missing) rows.get(digest).draw();
  } };
}

function missingFile(job, digest) {
  const name = Object.keys(job.input).find((one) => job.input[one] === digest) ?? digest.slice(0, 19), id = `missing-${digest.slice(7)}`;
  const status = h("div", { class: "upload", role: "status" }), problem = h("p", { class: "error", role: "alert" });
  const input = h("input", { type: "file", id, onchange: () => input.files[0] && check(input.files[0]) });
  const choose = h("div", { class: "field" }, h("label", { for: id }, t("continue_upload", { name })), fileChooser(input), h("p", { class: "hint soft" }, t("choose_same_file")));
  const mayUpload = can("assets:write") && owner() === session().owner;
  let isChecking = false;

  /** Send the file only if it is the one that the job waits for: another one would be uploaded in vain. */
  async function check(file) {
    isChecking = true;
    draw();
    problem.textContent = "";
    try {
      const found = await client().digest(file, { store: uploadStore, onProgress: (progress) => fill(status, uploadProgress(progress)) });
      if (found === digest) startUpload(job.id, digest, file);
      else problem.textContent = t("wrong_file", { file: file.name, name });
    } catch (error) {
      problem.textContent = errorText(error);
    }
    [isChecking, input.value] = [false, ""];
    draw();
  }

  function draw() {
    const upload = uploadOf(job.id, digest);
    choose.hidden = isChecking || !mayUpload || Boolean(upload && !upload.error);
    if (isChecking) return;
    if (upload?.error) fill(status, h("p", { class: "error", role: "alert" }, errorText(upload.error)), h("button", { onclick: () => startUpload(job.id, digest, upload.file) }, t("try_again")));
    else if (upload) fill(status, h("b", {}, name), uploadProgress(upload.progress), upload.progress.phase !== "done" && h("button", { class: "quiet", onclick: () => forgetUpload(job.id, digest) }, t("stop_upload")));
    else fill(status, !mayUpload && h("p", {}, t("owner_uploads", { name, owner: job.owner })));
  }
  return { element: h("div", { class: "drop" }, choose, status, problem), draw };
}

/** The log: live, searchable, and following its end until one scrolls up. */
function logPanel(view, id) {
  const text = h("pre", { class: "log mono", tabIndex: 0, "aria-label": t("log") }), found = h("span", { class: "soft num", role: "status" });
  const search = h("input", { type: "search", placeholder: t("search_log"), "aria-label": t("search_log") });
  const follow = h("input", { type: "checkbox", checked: true });
  const element = h("section", { class: "panel" }, h("div", { class: "title" }, h("h2", {}, t("log")), search, found, h("label", {}, follow, " ", t("follow")),
    h("a", { href: `/v1/jobs/${encodeURIComponent(id)}/logs${owner() === session().owner ? "" : `?owner=${encodeURIComponent(owner())}`}`, download: `${id}.log` }, t("download"))), text);
  let shown = null;
  function draw() {
    const wanted = search.value.toLowerCase(), key = `${wanted}\n${view.log.length}`;
    if (key === shown) return;
    shown = key;
    const lines = wanted ? view.log.split("\n").filter((line) => line.toLowerCase().includes(wanted)) : null;
    text.textContent = lines ? lines.join("\n") : view.log || t("log_empty");
    found.textContent = lines ? t("lines", { n: lines.length }) : "";
    if (follow.checked) text.scrollTop = text.scrollHeight;
  }
  search.addEventListener("input", draw);
  text.addEventListener("wheel", () => (follow.checked = text.scrollHeight - text.scrollTop - text.clientHeight < 40), { passive: true });
  follow.addEventListener("change", () => follow.checked && (text.scrollTop = text.scrollHeight));
  async function loadWhole() {
    const reply = await fetch(`/v1/jobs/${encodeURIComponent(id)}/logs${owner() === session().owner ? "" : `?owner=${encodeURIComponent(owner())}`}`, { credentials: "same-origin", headers: { Range: `bytes=-${LOG_LIMIT}` } });
    view.log = reply.ok ? await reply.text() : "";
    follow.checked = false;
    draw();
  }
  return { element, draw, loadWhole };
}
