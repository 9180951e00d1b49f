/** The webhook deliveries of all jobs: filters in the address, the attempts of each, and a replay. */
import { can, errorText, get, request } from "../api.js";
import { fill, h } from "../dom.js";
import { duration, time } from "../format.js";
import { linkedJob, statusPill, timeElement } from "../parts.js";
import { t } from "../text.js";

const STATES = ["pending", "delivered", "failed", "disabled"];
const REFRESH_MS = 5000;

export function deliveriesPage(main, path, query) {
  let isGone = false, timer = 0, cursor = null, pages = 0;
  const rows = new Map();
  const table = h("section", { class: "panel" }), problem = h("p", { class: "error", role: "alert" });
  fill(main, h("div", { class: "title" }, h("h1", {}, t("page_deliveries"))), filterForm(query), problem, table);

  /** Load the page of `from`; null: the newest deliveries. Returns the cursor of the next page. */
  async function load(from) {
    const asked = { state: query.get("state"), url: query.get("url"), from: moment("from"), to: moment("to"), cursor: from };
    const page = await get("/v1/deliveries", asked);
    if (from === null) rows.clear();
    for (const delivery of page.deliveries) rows.set(delivery.id, delivery);
    return page.next_cursor;
  }

  const moment = (name) => query.get(name) && new Date(query.get(name)).toISOString();

  async function more() {
    await attempt(async () => {
      const before = rows.size;
      do cursor = await load(cursor);
      while (cursor && rows.size === before); // a page may be empty though older deliveries match
      pages += 1;
    });
  }

  /** Read the newest deliveries again, unless the reader looks at older ones. */
  async function refresh() {
    if (!document.hidden && pages <= 1) await attempt(async () => (cursor = await load(null)));
    if (!isGone) timer = setTimeout(refresh, REFRESH_MS);
  }

  async function attempt(act) {
    try {
      await act();
      problem.textContent = "";
    } catch (error) {
      problem.textContent = errorText(error);
    }
    if (!isGone) draw();
  }

  function draw() {
    const listed = [...rows.values()].sort((one, other) => other.revision - one.revision);
    const heads = [t("status"), t("job"), t("job_state"), t("receiver"), t("attempts"), t("created"), ""];
    fill(table, listed.length ? h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, listed.map(row)))) : h("p", { class: "empty" }, t(query.size ? "no_deliveries_match" : "no_deliveries")),
      cursor && h("div", { class: "buttons" }, h("button", { onclick: more }, t("show_more"))));
  }

  function row(delivery) {
    const last = delivery.tries.at(-1);
    return h("tr", {}, h("td", {}, statusPill(`delivery_${delivery.state}`)), h("td", {}, linkedJob(delivery.job_id)), h("td", {}, statusPill(delivery.job_status)), h("td", { class: "wrap" }, delivery.url),
      h("td", {}, t("tries", { n: delivery.tries.length }), last && h("div", { class: "soft" }, last.error ?? `HTTP ${last.status}`, ` · ${duration(last.took_s)}`), delivery.next_at && h("div", { class: "soft" }, t("next_try", { time: time(delivery.next_at) })), delivery.replays > 0 && h("div", { class: "soft" }, t("replays", { n: delivery.replays }))),
      h("td", {}, timeElement(delivery.created_at)),
      h("td", {}, can("jobs:write") && h("button", { class: "quiet", disabled: delivery.state === "pending", "aria-label": t("send_again_to", { url: delivery.url, id: delivery.job_id }), onclick: () => replay(delivery) }, t("send_again"))));
  }

  async function replay(delivery) {
    await attempt(async () => rows.set(delivery.id, await request("POST", `/v1/deliveries/${encodeURIComponent(delivery.id)}/replay`)));
  }

  more().then(() => (timer = isGone ? 0 : setTimeout(refresh, REFRESH_MS)));
  return () => {
    isGone = true;
    clearTimeout(timer);
  };
}

function filterForm(query) {
  const field = (name, properties) => h("input", { name, value: query.get(name) ?? "", placeholder: t(`filter_${name}`), "aria-label": t(`filter_${name}`), title: t(`filter_${name}`), ...properties });
  const state = h("select", { name: "state", "aria-label": t("status") }, h("option", { value: "" }, t("any_status")),
    STATES.map((one) => h("option", { value: one, selected: query.get("state") === one }, t(`status_delivery_${one}`))));
  const form = h("form", { class: "filters", role: "search" }, field("url", { type: "search" }), state, field("from", { type: "datetime-local" }), field("to", { type: "datetime-local" }), h("button", {}, t("search")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = [...new FormData(form)].filter(([, value]) => value);
    location.hash = `#/deliveries${values.length ? `?${new URLSearchParams(values)}` : ""}`;
  });
  state.addEventListener("change", () => form.requestSubmit());
  return form;
}
