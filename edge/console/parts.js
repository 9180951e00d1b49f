/**
 * Pieces that several pages show: a status, a host's day, a curve, a copy button.
 *
 * @module
 */
import { h, svg } from "./dom.js";
import { bytes, duration, fullTime, time } from "./format.js";
import { has, t } from "./text.js";

const DOTS = { running: "run", cancelling: "run", succeeded: "ok", online: "ok", failed: "bad", fault: "bad", expired: "bad", waking: "wake", starting: "wake", stopping: "wake", draining: "wake", blocked: "wake", queued: "wait", paused: "wait", scheduled: "wait", delivery_delivered: "ok", delivery_failed: "bad", delivery_disabled: "bad", delivery_pending: "wait" };

/** A status in words, with a dot: never by its colour alone. */
export function statusPill(status) {
  return h("span", { class: "pill" }, h("span", { class: `dot ${DOTS[status] ?? ""}`, "aria-hidden": "true" }), has(`status_${status}`) ? t(`status_${status}`) : status);
}

export function fact(name, value, title) {
  return value === null || value === undefined || value === "" ? [] : [h("dt", {}, name), h("dd", { class: "num", title }, value)];
}

export function copyButton(text) {
  const button = h("button", { type: "button", class: "quiet", onclick: async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = t("copied");
  } }, t("copy"));
  return button;
}

/** A button that opens the browser's choice of a file. The browser's own one has the browser's language, not the page's. */
export function fileChooser(input, note = "") {
  return h("div", { class: "chooser" }, h("label", { class: "button" }, input, t("choose_file")), note);
}

const BAND = { online: "on", draining: "on", waking: "wake", stopping: "wake", blocked: "bad", fault: "bad" };

/** How far an upload is, with its rate and the time left. `progress`: of the client's `onProgress`. */
export function uploadProgress({ phase, done, total, present, bytesPerS }) {
  const rest = phase === "sending" && bytesPerS ? (total - done) / bytesPerS : null;
  const text = phase === "done" ? t(present ? "already_there" : "uploaded", { size: bytes(total) }) : t(`upload_${phase}`, { done: bytes(done), total: bytes(total) });
  const more = rest === null ? "" : ` · ${bytes(bytesPerS)}/s · ${t("time_left", { time: duration(rest) })}`;
  return [h("p", { class: "num" }, text, more), phase !== "done" && h("progress", { max: total || 1, value: done, "aria-label": t("upload") })];
}

/** The power history of a host as a band that ends now. `changes`: of `history`, oldest first; without any, `since`. */
export function powerBand(changes, state, since, hours) {
  const end = Date.now(), start = end - hours * 3600e3, spans = [];
  const points = changes.map((change) => ({ at: Date.parse(change.at), state: change.state, why: change.why }));
  if (!points.length && since) points.push({ at: Date.parse(since), state, why: "" });
  points.forEach((point, index) => {
    const from = Math.max(start, point.at), to = Math.min(end, points[index + 1]?.at ?? end);
    if (to > from) spans.push({ ...point, from, to });
  });
  const drawing = svg("svg", { viewBox: "0 0 1000 16", preserveAspectRatio: "none", class: "band", role: "img", "aria-label": bandText(spans, hours) });
  for (const span of spans) {
    const x = ((span.from - start) / (end - start)) * 1000;
    const rect = svg("rect", { x, y: 0, height: 16, width: Math.max(2, ((span.to - span.from) / (end - start)) * 1000), class: BAND[span.state] ?? "off" });
    const title = svg("title");
    title.textContent = `${has(`status_${span.state}`) ? t(`status_${span.state}`) : span.state} · ${time(span.from)} – ${time(span.to)} (${duration((span.to - span.from) / 1000)})${span.why ? ` · ${span.why}` : ""}`;
    rect.append(title);
    drawing.append(rect);
  }
  return drawing;
}

function bandText(spans, hours) {
  const on = spans.filter((span) => BAND[span.state] === "on").reduce((sum, span) => sum + span.to - span.from, 0) / 1000;
  return t("band_text", { on: duration(on), hours });
}

/** A curve over time. `points`: [time in ms, value or null]; a gap of more than `gapMs` breaks the line. */
export function curve(points, { start, end, top, gapMs, label, text }) {
  const drawing = svg("svg", { viewBox: "0 0 300 60", preserveAspectRatio: "none", class: "curve", role: "img", "aria-label": `${label}: ${text}` });
  let path = "", last = null;
  for (const [at, value] of points) {
    if (value === null || value === undefined) {
      last = null;
      continue;
    }
    const x = ((at - start) / (end - start)) * 300, y = 58 - (Math.min(value, top) / (top || 1)) * 56;
    path += `${last === null || at - last > gapMs ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    last = at;
  }
  drawing.append(svg("line", { x1: 0, x2: 300, y1: 58, y2: 58, class: "axis" }), svg("path", { d: path, "vector-effect": "non-scaling-stroke" }));
  return h("figure", {}, h("figcaption", {}, h("span", { class: "soft" }, label), h("b", { class: "num" }, text)), drawing);
}

/** Bars of one value a day. `days`: [{label, value, text}]. */
export function dayBars(days, label) {
  const top = Math.max(...days.map((day) => day.value), 1e-9), width = 100 / days.length;
  const drawing = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", class: "bars", role: "img", "aria-label": `${label}: ${days.map((day) => `${day.label} ${day.text}`).join("; ")}` });
  drawing.append(svg("line", { x1: 0, x2: 100, y1: 40, y2: 40, class: "axis", "vector-effect": "non-scaling-stroke" }));
  days.forEach((day, index) => {
    const height = (day.value / top) * 38;
    const bar = svg("rect", { x: index * width + width * 0.15, width: width * 0.7, y: 40 - height, height });
    const title = svg("title");
    title.textContent = `${day.label}: ${day.text}`;
    bar.append(title);
    drawing.append(bar);
  });
  return h("figure", {}, h("figcaption", { class: "soft" }, label), drawing);
}

export function timeElement(moment) {
  return h("time", { dateTime: moment ?? "", title: fullTime(moment) }, time(moment));
}

export function linkedJob(id) {
  return h("a", { class: "mono", href: `#/jobs/${encodeURIComponent(id)}` }, id);
}
