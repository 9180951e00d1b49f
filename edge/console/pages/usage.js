/** What was used and what it cost, by day and by endpoint, and what switching off has saved. */
import { errorText, get } from "../api.js";
import { fill, h } from "../dom.js";
import { duration, energy, money, number } from "../format.js";
import { dayBars } from "../parts.js";
import { language, t } from "../text.js";

const RANGES = [7, 30];

export function usagePage(main, path, query) {
  let isGone = false;
  const days = RANGES.includes(Number(query.get("days"))) ? Number(query.get("days")) : 7;
  fill(main, h("p", { class: "empty", role: "status" }, t("loading")));
  load(days).then(([whole, daily]) => isGone || draw(main, days, whole, daily), (error) => isGone || fill(main, h("p", { class: "error", role: "alert" }, errorText(error))));
  return () => (isGone = true);
}

async function load(days) {
  const starts = Array.from({ length: days }, (_, index) => {
    const day = new Date();
    day.setHours(0, 0, 0, 0);
    day.setDate(day.getDate() - (days - 1 - index));
    return day;
  });
  const whole = await get("/v1/usage", { from: starts[0].toISOString() });
  const daily = [];
  for (const [index, start] of starts.entries()) {
    const to = starts[index + 1]?.toISOString();
    daily.push({ start, report: await get("/v1/usage", { from: start.toISOString(), to }) });
  }
  return [whole, daily];
}

function draw(main, days, whole, daily) {
  const name = new Intl.DateTimeFormat(language() === "zh" ? "zh-CN" : "en-GB", { month: "short", day: "numeric" });
  const bars = (read, text) => daily.map(({ start, report }) => ({ label: name.format(start), value: read(report), text: text(read(report)) }));
  const currency = whole.cost.currency;
  fill(main,
    h("div", { class: "title" }, h("h1", {}, t("page_usage")), h("div", { class: "buttons" }, RANGES.map((one) => h("a", { class: "button", href: `#/usage?days=${one}`, "aria-current": one === days ? "true" : undefined }, t("last_days", { n: one }))), h("button", { onclick: () => saveCsv(daily) }, "CSV"))),
    h("section", { class: "panel kpi" },
      kpi(t("jobs"), number(whole.jobs)), kpi(t("gpu_time"), duration(whole.gpu_s)), kpi(t("cost"), money(whole.cost.amount, currency)), kpi(t("energy"), energy(whole.energy_j)), kpi(t("hours_on"), duration(whole.hours_on * 3600)), kpi(t("hours_saved"), duration(whole.hours_saved * 3600), t("hours_saved_hint"))),
    h("section", { class: "panel charts" }, dayBars(bars((report) => report.jobs, (value) => number(value)), t("jobs_a_day")), dayBars(bars((report) => report.cost.amount, (value) => money(value, currency)), t("cost_a_day")), dayBars(bars((report) => report.hours_on, (value) => duration(value * 3600)), t("hours_a_day"))),
    h("section", { class: "panel" }, h("h2", {}, t("by_endpoint")), whole.by.length ? h("table", {}, h("thead", {}, h("tr", {}, [t("endpoint"), t("jobs"), t("gpu_time"), t("energy"), t("cost")].map((text, index) => h("th", { class: index ? "num" : "" }, text)))),
      h("tbody", {}, whole.by.map((row) => h("tr", {}, h("td", {}, row.endpoint), h("td", { class: "num" }, number(row.jobs)), h("td", { class: "num" }, duration(row.gpu_s)), h("td", { class: "num" }, energy(row.energy_j)), h("td", { class: "num" }, money(row.cost.amount, row.cost.currency)))))) : h("p", { class: "empty" }, t("no_usage"))));
}

function kpi(name, value, hint) {
  return h("div", { title: hint }, h("span", { class: "soft" }, name), h("b", { class: "num" }, value));
}

function saveCsv(daily) {
  const lines = ["day,endpoint,jobs,gpu_s,energy_j,cost,currency"];
  for (const { start, report } of daily) {
    const day = `${start.getFullYear()}-${String(start.getMonth() + 1).padStart(2, "0")}-${String(start.getDate()).padStart(2, "0")}`;
    for (const row of report.by) lines.push([day, row.endpoint, row.jobs, row.gpu_s, row.energy_j, row.cost.amount, row.cost.currency].join(","));
  }
  const link = h("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: "usage.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
