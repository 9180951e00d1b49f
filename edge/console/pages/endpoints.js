/** What can run: each endpoint with its input, its hosts, and why it cannot start where it cannot. */
import { can, errorText, get, request } from "../api.js";
import { askDialog, fill, h } from "../dom.js";
import { duration, time } from "../format.js";
import { descriptionOf } from "../form.js";
import { statusPill } from "../parts.js";
import { has, t } from "../text.js";

export function endpointsPage(main) {
  let isGone = false;
  const list = h("div", { class: "stack" }, h("p", { class: "empty", role: "status" }, t("loading"))), problem = h("p", { class: "error", role: "alert" });
  fill(main, h("div", { class: "title" }, h("h1", {}, t("page_endpoints"))), problem, list);

  async function load() {
    const [{ endpoints }, hosts] = await Promise.all([get("/v1/endpoints"), can("hosts:read") ? get("/v1/hosts").then((answer) => answer.hosts, () => []) : []]);
    if (!isGone) fill(list, endpoints.length ? endpoints.map((endpoint) => panel(endpoint, hosts, setPause)) : h("p", { class: "empty panel" }, t("no_endpoints")));
  }

  async function setPause({ name, paused }) {
    if (!paused && !(await askDialog(t("ask_pause", { name }), [h("p", {}, t("pause_hint"))], t("pause"), t("back")))) return;
    await attempt(async () => {
      await request("POST", `/v1/endpoints/${encodeURIComponent(name)}/${paused ? "resume" : "pause"}`);
      await load();
    });
  }

  async function attempt(act) {
    problem.textContent = await act().then(() => "", errorText);
  }

  attempt(load);
  return () => (isGone = true);
}

function panel(endpoint, hosts, setPause) {
  const required = new Set(endpoint.input.required ?? []), { paused } = endpoint;
  const offered = endpoint.hosts.map((id) => {
    const host = hosts.find((one) => one.id === id), why = host?.maintenance ? "host_in_maintenance" : host?.unschedulable?.[endpoint.name];
    return h("li", {}, id, why && h("span", { class: "error" }, ` – ${has(`reason_${why}`) ? t(`reason_${why}`) : why}`));
  });
  return h("section", { class: "panel" },
    h("div", { class: "title" }, h("h2", { class: "big" }, endpoint.name), paused && statusPill("paused"), h("div", { class: "buttons" }, can("power") && h("button", { class: "quiet", onclick: () => setPause(endpoint) }, t(paused ? "resume" : "pause")), can("jobs:write") && h("a", { class: "button", href: `#/new?endpoint=${encodeURIComponent(endpoint.name)}` }, t("page_new")))),
    paused && h("p", { class: "note" }, t("paused_by", { by: paused.by, time: time(paused.since) })),
    h("p", {}, descriptionOf(endpoint)),
    h("dl", {}, h("dt", {}, t("image")), h("dd", { class: "mono" }, endpoint.image), h("dt", {}, t("page_hosts")), h("dd", {}, offered.length ? h("ul", { class: "plain" }, offered) : t("no_host_offers")),
      h("dt", {}, t("run_time")), h("dd", { class: "num" }, runTime(endpoint.run_time))),
    h("details", {}, h("summary", {}, t("fields")), h("table", {}, h("tbody", {}, Object.entries(endpoint.input.properties ?? {}).map(([name, schema]) => h("tr", {}, h("th", {}, name, required.has(name) && h("span", { class: "soft" }, ` ${t("required")}`)), h("td", { class: "soft" }, schema.format === "asset" ? t("file") : schema.enum ? schema.enum.join(", ") : schema.type), h("td", {}, descriptionOf(schema))))))));
}

function runTime(usual) {
  return usual ? t("usual_run_time", { p50: duration(usual.p50_s), p90: duration(usual.p90_s), n: usual.samples }) : t("no_run_time");
}
