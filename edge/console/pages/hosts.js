/**
 * The GPU hosts: their state and its history, GPUs with curves, jobs, and power by hand.
 *
 * @module
 */
import { can, errorText, get, post, request } from "../api.js";
import { askDialog, fill, h } from "../dom.js";
import { duration, number, time, vram } from "../format.js";
import { listen } from "../live.js";
import { copyButton, curve, linkedJob, powerBand, statusPill, timeElement } from "../parts.js";
import { has, t } from "../text.js";

const REFRESH_MS = 5000;
const WINDOWS = { "1h": 1, "24h": 24, "7d": 168 };

export function hostsPage(main, path) {
  let isGone = false, timer = 0, window_ = "24h";
  const list = h("div", { class: "stack" }), problem = h("p", { class: "error", role: "alert" });
  fill(main, h("div", { class: "title" }, h("h1", {}, t("page_hosts")), h("div", { class: "buttons" }, windowChoice(), can("admin") && h("button", { class: "primary", onclick: addHost }, t("add_host")))), problem, list);

  function windowChoice() {
    const choice = h("select", { "aria-label": t("window") }, Object.keys(WINDOWS).map((one) => h("option", { value: one, selected: one === window_ }, t(`window_${one}`))));
    choice.addEventListener("change", () => (window_ = choice.value, load()));
    return choice;
  }

  async function load() {
    clearTimeout(timer);
    try {
      const { hosts } = await get("/v1/hosts");
      const samples = await Promise.all(hosts.map((host) => get(`/v1/hosts/${encodeURIComponent(host.id)}/samples`, { window: window_ }).catch(() => null)));
      if (isGone) return;
      problem.textContent = "";
      fill(list, hosts.length ? hosts.map((host, index) => panel(host, samples[index])) : h("section", { class: "panel empty" }, h("p", {}, t("no_hosts")), can("admin") && h("button", { onclick: addHost }, t("add_host"))));
    } catch (error) {
      if (!isGone) problem.textContent = errorText(error);
    }
    if (!isGone) timer = setTimeout(load, document.hidden ? 6 * REFRESH_MS : REFRESH_MS);
  }

  function panel(host, samples) {
    const hours = WINDOWS[window_], why = host.history?.at(-1)?.why, hold = host.hold;
    const cannot = Object.entries(host.unschedulable ?? {});
    return h("section", { class: "panel", id: `host-${host.id}` },
      h("div", { class: "title" }, h("h2", { class: "big" }, host.id), statusPill(host.state), h("span", { class: "soft" }, host.since && t("since", { time: time(host.since) }), why ? ` · ${why}` : ""), powerButtons(host)),
      hold && h("p", { class: "note" }, t(hold.want === "on" ? "held_on" : "held_off"), hold.until ? ` ${t("until", { time: time(hold.until) })}` : ""),
      host.maintenance && h("p", { class: "note" }, t("maintenance_by", { by: host.maintenance.by, time: time(host.maintenance.since) })),
      host.engine_away && h("p", { class: "error" }, `${t("engine_away")}: ${host.engine_away}`),
      host.waits?.length > 0 && h("ul", { class: "error" }, host.waits.map((text) => h("li", {}, t("host_cannot", { text })))),
      powerBand(host.history ?? [], host.state, host.since, hours),
      host.gpus.map((gpu) => gpuPanel(gpu, samples, hours)),
      h("dl", {},
        h("dt", {}, t("running_jobs")), h("dd", {}, host.jobs.length ? host.jobs.map((id) => [linkedJob(id), " "]) : t("none")),
        host.wake_median_s !== null && [h("dt", {}, t("usual_wake")), h("dd", { class: "num" }, duration(host.wake_median_s))],
        host.kept_on?.length > 0 && [h("dt", {}, t("kept_on")), h("dd", {}, host.kept_on.map((one) => one.message).join("; "))],
        host.engine && [h("dt", {}, t("engine")), h("dd", {}, host.engine)],
        host.warm?.length > 0 && [h("dt", {}, t("warm")), h("dd", {}, host.warm.map((pool) => `${pool.endpoint}: ${t("warm_counts", { ready: pool.ready, loading: pool.loading })}`).join("; "))],
        h("dt", {}, t("page_endpoints")), h("dd", {}, host.endpoints.join(", ") || t("none"))),
      cannot.length > 0 && h("ul", { class: "plain error" }, cannot.map(([name, reason]) => h("li", {}, `${name}: ${has(`reason_${reason}`) ? t(`reason_${reason}`) : reason}`))),
      host.history?.length > 0 && h("details", {}, h("summary", {}, t("history")), h("ol", { class: "timeline" }, [...host.history].reverse().slice(0, 30).map((change) => h("li", {}, timeElement(change.at), " ", has(`status_${change.state}`) ? t(`status_${change.state}`) : change.state, " ", h("span", { class: "soft" }, change.why))))));
  }

  function powerButtons(host) {
    if (!can("power") && !can("admin")) return null;
    return h("div", { class: "buttons" },
      can("power") && host.declared && ["on", "off", "auto"].map((want) => h("button", { class: "quiet", disabled: want === "auto" && !host.hold, onclick: () => power(host, want) }, t(`power_${want}`))),
      can("power") && h("button", { class: "quiet", onclick: () => maintain(host) }, t(host.maintenance ? "end_maintenance" : "maintenance")),
      can("admin") && h("button", { class: "quiet danger", onclick: () => removeHost(host) }, t("remove")));
  }

  async function power(host, want) {
    let until;
    if (want !== "auto") {
      const answer = await askDialog(t(`ask_power_${want}`, { host: host.id }), [h("label", { for: "until" }, t("until_when")), h("input", { id: "until", name: "until", type: "datetime-local" })], t(`power_${want}`), t("back"));
      if (!answer) return;
      until = answer.until ? new Date(answer.until).toISOString() : undefined;
    }
    await attempt(() => post(`/v1/hosts/${encodeURIComponent(host.id)}/power`, { want, ...(until ? { until } : {}) }));
  }

  async function maintain({ id, maintenance }) {
    if (maintenance || (await askDialog(t("ask_maintenance", { host: id }), [h("p", {}, t("maintenance_hint"))], t("maintenance"), t("back")))) await attempt(() => request(maintenance ? "DELETE" : "POST", `/v1/hosts/${encodeURIComponent(id)}/maintenance`));
  }

  async function addHost() {
    const answer = await askDialog(t("add_host"), [h("label", { for: "host-id" }, t("host_name")), h("input", { id: "host-id", name: "id", required: true, pattern: "[A-Za-z0-9_\\-]{1,64}", placeholder: "gpu-1" })], t("add_host"), t("back"));
    if (!answer) return;
    await attempt(async () => {
      const made = await post("/v1/hosts", { id: answer.id });
      await askDialog(t("run_on_host", { host: made.id }), [h("pre", { class: "log mono wrap" }, made.command), copyButton(made.command), h("p", { class: "soft" }, t("shown_once"))], t("done"), t("back"));
    });
  }

  async function removeHost(host) {
    if (await askDialog(t("ask_remove_host", { host: host.id }), [h("p", {}, t("remove_host_hint"))], t("remove"), t("back"), true)) await attempt(() => request("DELETE", `/v1/hosts/${encodeURIComponent(host.id)}`));
  }

  async function attempt(act) {
    try {
      await act();
      await load();
    } catch (error) {
      problem.textContent = errorText(error);
    }
  }

  load();
  const stopListening = listen((event) => event.kind === "notice" && load());
  return () => {
    isGone = true;
    clearTimeout(timer);
    stopListening();
  };
}

function gpuPanel(gpu, samples, hours) {
  const end = Date.now(), start = end - hours * 3600e3, gapMs = (samples?.interval_s ?? 60) * 2500;
  const points = (read) => (samples?.samples ?? []).map((sample) => [Date.parse(sample.at), read(sample.gpus.find((one) => one.uuid === gpu.uuid) ?? {})]);
  const shown = { start, end, gapMs }, used = gpu.memory_total_mb === null || gpu.memory_free_mb === null ? null : gpu.memory_total_mb - gpu.memory_free_mb;
  return h("div", { class: "gpu" },
    h("p", {}, h("b", {}, gpu.name), " ", gpu.fitness !== "fit" && h("span", { class: "error" }, `${gpu.fitness}${gpu.reason ? `: ${gpu.reason}` : ""}`),
      gpu.share_free > 0 && gpu.share_free < 1 && t("share_free", { part: `${number(100 * gpu.share_free)} %` })),
    h("div", { class: "curves" },
      curve(points((one) => one.utilization), { ...shown, top: 100, label: t("load"), text: gpu.utilization === null ? "–" : `${gpu.utilization} %` }),
      curve(points((one) => one.memory_used_mb), { ...shown, top: gpu.memory_total_mb ?? 1, label: t("vram"), text: used === null ? "–" : `${vram(used)} / ${vram(gpu.memory_total_mb)}` }),
      curve(points((one) => one.temperature_c), { ...shown, top: 100, label: t("temperature"), text: gpu.temperature_c === null ? "–" : `${gpu.temperature_c} °C` }),
      curve(points((one) => one.power_w), { ...shown, top: Math.max(1, ...points((one) => one.power_w).map(([, value]) => value ?? 0)), label: t("draw"), text: gpu.power_w === null ? "–" : `${number(gpu.power_w)} W` })));
}
