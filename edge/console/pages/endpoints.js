/** What can run: each endpoint with its input, its hosts, and why it cannot start where it cannot. */
import { can, errorText, get } from "../api.js";
import { fill, h } from "../dom.js";
import { duration } from "../format.js";
import { descriptionOf } from "../form.js";
import { has, t } from "../text.js";

export function endpointsPage(main) {
  fill(main, h("p", { class: "empty", role: "status" }, t("loading")));
  const hosts = can("hosts:read") ? get("/v1/hosts").then((answer) => answer.hosts, () => []) : Promise.resolve([]);
  Promise.all([get("/v1/endpoints"), hosts]).then(([{ endpoints }, known]) => {
    fill(main, h("div", { class: "title" }, h("h1", {}, t("page_endpoints"))), endpoints.length ? endpoints.map((endpoint) => panel(endpoint, known)) : h("p", { class: "empty panel" }, t("no_endpoints")));
  }, (error) => fill(main, h("p", { class: "error", role: "alert" }, errorText(error))));
}

function panel(endpoint, hosts) {
  const required = new Set(endpoint.input.required ?? []);
  const offered = endpoint.hosts.map((id) => {
    const why = hosts.find((host) => host.id === id)?.unschedulable?.[endpoint.name];
    return h("li", {}, id, why && h("span", { class: "error" }, ` – ${has(`reason_${why}`) ? t(`reason_${why}`) : why}`));
  });
  return h("section", { class: "panel" },
    h("div", { class: "title" }, h("h2", { class: "big" }, endpoint.name), can("jobs:write") && h("a", { class: "button", href: `#/new?endpoint=${encodeURIComponent(endpoint.name)}` }, t("page_new"))),
    h("p", {}, descriptionOf(endpoint)),
    h("dl", {}, h("dt", {}, t("image")), h("dd", { class: "mono" }, endpoint.image), h("dt", {}, t("page_hosts")), h("dd", {}, offered.length ? h("ul", { class: "plain" }, offered) : t("no_host_offers")),
      h("dt", {}, t("run_time")), h("dd", { class: "num" }, runTime(endpoint.run_time))),
    h("details", {}, h("summary", {}, t("fields")), h("table", {}, h("tbody", {}, Object.entries(endpoint.input.properties ?? {}).map(([name, schema]) => h("tr", {}, h("th", {}, name, required.has(name) && h("span", { class: "soft" }, ` ${t("required")}`)), h("td", { class: "soft" }, schema.format === "asset" ? t("file") : schema.enum ? schema.enum.join(", ") : schema.type), h("td", {}, descriptionOf(schema))))))));
}

function runTime(usual) {
  return usual ? t("usual_run_time", { p50: duration(usual.p50_s), p90: duration(usual.p90_s), n: usual.samples }) : t("no_run_time");
}
